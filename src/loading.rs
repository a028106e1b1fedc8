//! A cache with a loader attached.

mod calls;

pub use calls::LoadingGet;
use calls::{Call, Calls};

use crate::DefaultHasher;
use crate::builder::{BuildError, CacheBuilder};
use crate::cache::Cache;
use crate::error::LoadError;
use crate::load::shared::{Handle, Host, Job, SharedWaiter, Spawner};
use crate::raw::flight::{Load, Outcome};
use crate::sync::FirstPanic;
use crate::sync::atomic::{AtomicU8, Ordering::*, fence};
use std::borrow::Borrow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll};

/// A cache that loads what is missing by itself.
///
/// However many callers ask for a missing key at once, the loader runs once. Its future belongs to the cache
/// while it runs: any waiting caller that is polled drives it, so nothing is lost when the first caller goes
/// away, and it is dropped the moment the last one does. No runtime, no spawn; a
/// [`spawner`](LoadingCacheBuilder::spawner) hands loads to an executor of yours, where they outlive their
/// callers.
///
/// A handle: clones share one cache. [`cache`](Self::cache) is the [`Cache`] beneath, for everything but
/// loads.
///
/// ```
/// use alru::Cache;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let lengths = Cache::builder()
///     .max_capacity(1_000)
///     .loader(|url: String| async move { Ok::<_, std::io::Error>(url.len()) })
///     .build();
/// assert_eq!(lengths.get("https://example.org".to_owned()).await.unwrap(), 19);
/// assert_eq!(lengths.get_if_present("https://example.org"), Some(19));
/// # });
/// ```
pub struct LoadingCache<K, V, E = Infallible, S = DefaultHasher> {
    loading: StdArc<Loading<K, V, E, S>>,
}

type Loader<K, V> = Box<dyn Fn(K) -> Load<V> + Send + Sync>;

struct Loading<K, V, E, S> {
    cache: Cache<K, V, S>,
    loader: Loader<K, V>,
    spawner: Option<Spawner>,
    /// CLOSED and CUT_OFF; never cleared.
    state: AtomicU8,
    /// Invariant: errors are told apart by their type.
    _error: PhantomData<fn(E) -> E>,
}

/// No load begins any more.
const CLOSED: u8 = 1;
/// Nobody waits any more either.
const CUT_OFF: u8 = 2;

impl<K, V, E, S> Clone for LoadingCache<K, V, E, S> {
    fn clone(&self) -> Self {
        Self { loading: self.loading.clone() }
    }
}

impl<K, V, E, S> fmt::Debug for LoadingCache<K, V, E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadingCache").field("cache", &self.loading.cache).finish_non_exhaustive()
    }
}

/// Sets up a [`LoadingCache`]; what [`CacheBuilder::loader`] makes of a cache's settings.
#[must_use = "a builder does nothing before build"]
pub struct LoadingCacheBuilder<K, V, E> {
    pub(crate) cache: CacheBuilder<K, V>,
    loader: Loader<K, V>,
    spawner: Option<Spawner>,
    _error: PhantomData<fn(E) -> E>,
}

impl<K, V, E> fmt::Debug for LoadingCacheBuilder<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadingCacheBuilder").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl<K, V, E> LoadingCacheBuilder<K, V, E> {
    fn new<F, Fut>(cache: CacheBuilder<K, V>, load: F) -> Self
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome<V>> + Send + 'static,
    {
        let loader: Loader<K, V> = Box::new(move |key| Box::pin(load(key)));
        Self { cache, loader, spawner: None, _error: PhantomData }
    }

    pub(crate) fn fallible<F, Fut>(cache: CacheBuilder<K, V>, load: F) -> Self
    where
        E: Send + Sync + 'static,
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        Self::new(cache, move |key| {
            let future = load(key);
            async move {
                match future.await {
                    Ok(value) => Outcome::Value(value),
                    Err(error) => Outcome::Failed(StdArc::new(error)),
                }
            }
        })
    }

    pub(crate) fn infallible<F, Fut>(cache: CacheBuilder<K, V>, load: F) -> Self
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = V> + Send + 'static,
    {
        Self::new(cache, move |key| {
            let future = load(key);
            async move { Outcome::Value(future.await) }
        })
    }

    /// Has loads run by an executor of yours too, so that they outlive their callers and make progress though no
    /// caller is polled. Default: none; loads live as long as somebody waits for them.
    ///
    /// `spawn` is called at the start of each load, by the caller that began it, with a future that is one more
    /// waiter of the load and drives it to its end; give it to an executor:
    ///
    /// ```
    /// use alru::Cache;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let doubles = Cache::builder()
    ///     .loader_infallible(|n: u32| async move { 2 * n })
    ///     .spawner(|load| drop(tokio::spawn(load)))
    ///     .build();
    /// assert_eq!(doubles.get(4).await.unwrap(), 8);
    /// # });
    /// ```
    ///
    /// Callers still drive the load when they are polled. So an executor that drops the future or has shut down,
    /// and a `spawn` that panics, do no harm: the load lives as long as its callers then.
    ///
    /// The future keeps neither the cache nor its values: when the last handle goes (the [`Cache`]s beneath
    /// included), so do the loads under way, and the future ends. Closing without waiting ends it too. A load that
    /// panics in the executor's poll does not panic there: its callers get [`LoadError::Panicked`].
    pub fn spawner(
        mut self,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Self {
        let spawner: Box<dyn Fn(Job) + Send + Sync> = Box::new(spawn);
        self.spawner = Some(spawner);
        self
    }
}

impl<K, V, E> LoadingCacheBuilder<K, V, E>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Builds the cache.
    ///
    /// # Panics
    /// With the message of the [`BuildError`] if a setting makes no sense.
    #[must_use]
    #[track_caller]
    pub fn build(self) -> LoadingCache<K, V, E> {
        self.build_with_hasher(DefaultHasher::default())
    }

    /// Builds the cache, or says what is wrong with the settings.
    ///
    /// # Errors
    /// [`BuildError`] names the setting and the mend.
    pub fn try_build(self) -> Result<LoadingCache<K, V, E>, BuildError> {
        self.try_build_with_hasher(DefaultHasher::default())
    }

    /// Builds the cache with a hasher of your choice; see [`CacheBuilder::build_with_hasher`].
    ///
    /// # Panics
    /// As [`build`](Self::build).
    #[must_use]
    #[track_caller]
    pub fn build_with_hasher<S>(self, hasher: S) -> LoadingCache<K, V, E, S>
    where
        S: BuildHasher + Send + Sync + 'static,
    {
        match self.try_build_with_hasher(hasher) {
            Ok(cache) => cache,
            Err(error) => panic!("{error}"),
        }
    }

    /// Builds the cache with a hasher of your choice, or says what is wrong with the settings.
    ///
    /// # Errors
    /// As [`try_build`](Self::try_build).
    pub fn try_build_with_hasher<S>(self, hasher: S) -> Result<LoadingCache<K, V, E, S>, BuildError>
    where
        S: BuildHasher + Send + Sync + 'static,
    {
        Ok(LoadingCache {
            loading: StdArc::new(Loading {
                cache: self.cache.try_build_with_hasher(hasher)?,
                loader: self.loader,
                spawner: self.spawner,
                state: AtomicU8::new(0),
                _error: PhantomData,
            }),
        })
    }
}

impl<K, V, E, S> LoadingCache<K, V, E, S> {
    /// The cache beneath: inserts, removals, statistics, and loads with futures of the caller's own. They share
    /// with this cache's loads: a [`get_with`](Cache::get_with) joins a load of the loader, and drives it; a
    /// [`get`](Self::get) waits for a `get_with` under way, and has the loader run instead if that is dropped.
    ///
    /// Closing is about the loader. A handle of the cache beneath works on after it, with all that is in it.
    pub fn cache(&self) -> &Cache<K, V, S> {
        &self.loading.cache
    }

    /// Has the cache been closed?
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.loading.is_closed()
    }
}

impl<K, V, E, S> LoadingCache<K, V, E, S>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    /// The value of a key: the cached one, that of a load under way, or of a new load. A hit completes without
    /// yielding.
    ///
    /// # Who drives the load
    /// Every caller that waits for it, whenever it is polled, and the [spawner](LoadingCacheBuilder::spawner)'s
    /// executor if there is one. But if a caller of the [cache beneath](Self::cache) loads the key with a future of
    /// its own, as by [`get_with`](Cache::get_with), this call waits for that, which only its own caller can poll;
    /// see [`steal_after`](LoadingGet::steal_after).
    ///
    /// # Errors
    /// [`LoadError`]; all callers of one load get the same. Errors are not cached. [`LoadError::Recursive`] is for
    /// this call alone: it is made inside a load, and waits for the key of that load, or for one whose load waits for
    /// it; see [`Cache::get_with`] for what is recognised.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. The load goes on as long as one of its callers waits; when the last one goes,
    /// its future is dropped at once, the entry is removed, and the next call is a new miss.
    ///
    /// # Panics
    /// If the loader or its future panics, in the caller that polled it; the others get
    /// [`LoadError::Panicked`].
    pub fn get(&self, key: K) -> LoadingGet<'_, K, V, E, S> {
        LoadingGet::new(&self.loading, key)
    }

    /// The value of a key, if it is there and has not expired: no load is begun or waited for, and closing
    /// changes nothing. Counts as a hit or miss.
    pub fn get_if_present<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.loading.cache.get(key)
    }

    /// The outcomes of many keys, each as [`get`](Self::get) would have it, all at the same time: a load a key
    /// that is missing, by the loader, or a share in the load under way. If all values are there it completes
    /// without yielding.
    ///
    /// Keys that are asked for twice are asked for once. `collect` makes one result of many:
    ///
    /// ```
    /// use alru::Cache;
    /// use std::collections::HashMap;
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let halves = Cache::builder()
    ///     .loader(|n: u32| async move { if n % 2 == 0 { Ok(n / 2) } else { Err("odd") } })
    ///     .build();
    /// let some = halves.get_many([2, 3, 4]).await;
    /// assert!(some[&4].is_ok() && some[&3].is_err());
    /// let all: Result<HashMap<_, _>, _> =
    ///     halves.get_many([2, 4]).await.into_iter().map(|(n, half)| half.map(|h| (n, h))).collect();
    /// assert_eq!(all.unwrap().len(), 2);
    /// # });
    /// ```
    /// For one call of a loader for all missing keys, see [`Cache::get_many`]; to lose patience with callers of the
    /// cache beneath, ask for each key by [`get`](Self::get).
    ///
    /// # Cancel safety
    /// As [`get`](Self::get), for each key.
    ///
    /// # Panics
    /// If a load panics in a poll of this caller's; the other loads are left when the future is dropped.
    pub fn get_many<I>(
        &self,
        keys: I,
    ) -> impl Future<Output = HashMap<K, Result<V, LoadError<E>>>> + use<'_, K, V, E, S, I>
    where
        I: IntoIterator<Item = K>,
    {
        Calls::new(&self.loading, self.loading.cache.tagged(keys))
    }

    /// Closes the cache: later [`get`](Self::get)s fail with [`LoadError::Closed`], hits too. Everything else
    /// still works. Closing twice is fine.
    ///
    /// The cache is closed as soon as this function is called. `wait = false`: loads under way are dropped, and
    /// their callers get [`LoadError::Closed`]. `wait = true`: the returned future completes when they have
    /// finished; it drives those that nobody else does. It holds a handle of the cache.
    ///
    /// A load by a caller of the [cache beneath](Self::cache), with a future of its own, is that caller's: it is
    /// not waited for. `wait = false` takes it out of the cache, so that its result is not stored, and tells the
    /// `get`s that wait for it.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting only.
    ///
    /// # Panics
    /// If a destructor of a load that is dropped does, or a waker, once all loads have been ended.
    pub fn close(&self, wait: bool) -> impl Future<Output = ()> + Send + use<K, V, E, S> {
        let loading = &*self.loading;
        // AcqRel: an RMW; `is_closed` reads with Acquire.
        loading.state.fetch_or(if wait { CLOSED } else { CLOSED | CUT_OFF }, AcqRel);
        // Pairs with the fence in `is_closed_after`, and with that of a waiter that listens before it reads the
        // state: there, flight then flag; here, flag then flights.
        #[cfg(not(alru_mutation = "no_close_fence"))]
        fence(SeqCst);
        let mut open = SharedWaiter::of_all(loading.cache.core());
        let mut panics = FirstPanic::default();
        if wait {
            open.retain(SharedWaiter::is_shared);
        } else {
            for load in open.drain(..) {
                panics.catch(|| if load.is_shared() { load.abort() } else { load.detach() });
                panics.catch(|| drop(load));
            }
        }
        panics.resume();
        // The handle: waiters need the cache to be there.
        let mut closing = Closing { open, _loading: self.loading.clone() };
        std::future::poll_fn(move |cx| closing.poll(cx))
    }

    /// Loads that have not finished: those that were invalidated or evicted, and loads by callers of the cache
    /// beneath, included. Takes time in proportion to the most loads there ever were at once.
    #[must_use]
    pub fn loads(&self) -> usize {
        self.loading.cache.core().flights().open()
    }

    pub(crate) fn call(&self, key: K) -> Call<'_, K, V, E, S> {
        Call::new(&self.loading, key)
    }
}

impl<K, V, E, S> Loading<K, V, E, S> {
    #[inline(always)]
    fn is_closed(&self) -> bool {
        self.state.load(Acquire) != 0
    }

    fn is_cut_off(&self) -> bool {
        self.state.load(Acquire) & CUT_OFF != 0
    }
}

impl<K, V, E, S> Host<K, V> for Loading<K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
    S: Send + Sync + 'static,
{
    fn load(&self, key: K) -> Load<V> {
        (self.loader)(key)
    }

    fn handle(&self) -> Handle {
        self.cache.weak_handle()
    }

    fn is_closed_after(&self) -> bool {
        // Pairs with the fence in `close`: there, flag then flights; here, flight then flag.
        fence(SeqCst);
        self.is_closed()
    }

    fn spawner(&self) -> Option<&Spawner> {
        self.spawner.as_ref()
    }
}

/// A closer that waits. Its waiters go before the handle does.
struct Closing<K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    open: Vec<SharedWaiter<K, V>>,
    _loading: StdArc<Loading<K, V, E, S>>,
}

impl<K, V, E, S> Closing<K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut i = 0;
        while i < self.open.len() {
            let waiter = &mut self.open[i];
            // A load that panics under the closer has told its own waiters.
            let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                waiter.poll(cx).is_pending()
            }));
            if polled.unwrap_or(false) {
                i += 1;
            } else {
                self.open.swap_remove(i);
            }
        }
        if self.open.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}
