//! The function cache: an async function with a cache around it.

use crate::builder::{BuildError, CacheBuilder, EvictionPolicy};
use crate::cache::Cache;
use crate::error::LoadError;
use crate::load::shared::{self, Begun, Ended, SharedWaiter};
use crate::raw::flight::{Load, Outcome};
use crate::sync::FirstPanic;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::*, fence};
use crate::time::TimeSource;
use std::any::Any;
use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Entries of a function cache that was not told otherwise, as in Python's `async_lru`.
const DEFAULT_MAXSIZE: usize = 128;

/// An async function with a cache around it: what [`#[alru_cache]`](macro@crate::alru_cache) expands to.
///
/// However many callers ask for a missing key at once, the function runs once. Its future belongs to the
/// cache while it runs: any waiting caller that is polled drives it, so nothing is lost when the first
/// caller goes away, and it is dropped the moment the last one does. No runtime, no spawn.
///
/// A handle: clones share one cache.
///
/// ```
/// use alru::AlruCache;
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let double = AlruCache::builder(|n: u32| async move { Ok::<_, std::io::Error>(2 * n) })
///     .maxsize(32)
///     .build();
/// assert_eq!(double.call(4).await.unwrap(), 8);
/// assert_eq!(double.call(4).await.unwrap(), 8);
/// assert_eq!(double.cache_info().to_string(), "CacheInfo(hits=1, misses=1, maxsize=32, currsize=1)");
/// # });
/// ```
pub struct AlruCache<K, V, E = Infallible> {
    memo: StdArc<Memo<K, V, E>>,
}

struct Memo<K, V, E> {
    cache: Cache<K, V>,
    loader: Box<dyn Fn(K) -> Load<V> + Send + Sync>,
    settings: Settings,
    closed: AtomicBool,
    /// What the counters showed at the last `cache_clear`.
    cleared_hits: AtomicU64,
    cleared_misses: AtomicU64,
    /// Invariant: errors are told apart by their type.
    _error: PhantomData<fn(E) -> E>,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    maxsize: Option<usize>,
    ttl: Option<Duration>,
    jitter: Option<Duration>,
}

impl<K, V, E> Clone for AlruCache<K, V, E> {
    fn clone(&self) -> Self {
        Self { memo: self.memo.clone() }
    }
}

impl<K, V, E> fmt::Debug for AlruCache<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlruCache").field("settings", &self.memo.settings).finish_non_exhaustive()
    }
}

/// What a function cache has counted, shown as Python shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheInfo {
    /// Calls that found an entry, a load under way included.
    pub hits: u64,
    /// Calls that found none, counted at their start.
    pub misses: u64,
    /// The most entries; None: unbounded.
    pub maxsize: Option<usize>,
    /// Entries now, loads under way included.
    pub currsize: usize,
}

impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheInfo(hits={}, misses={}, maxsize=", self.hits, self.misses)?;
        match self.maxsize {
            Some(n) => write!(f, "{n}")?,
            None => f.write_str("None")?,
        }
        write!(f, ", currsize={})", self.currsize)
    }
}

/// How a function cache is set up, and how it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheParameters {
    /// The most entries; None: unbounded.
    pub maxsize: Option<usize>,
    /// How long an entry lives; None: for ever.
    pub ttl: Option<Duration>,
    /// How much longer it may live, by its own draw.
    pub jitter: Option<Duration>,
    /// Loads that have not finished, detached ones included.
    pub tasks: usize,
    /// Has the cache been closed?
    pub closed: bool,
}

/// Sets up an [`AlruCache`]. Every setting is optional.
#[must_use = "a builder does nothing before build"]
pub struct AlruCacheBuilder<K, V, E> {
    loader: Box<dyn Fn(K) -> Load<V> + Send + Sync>,
    settings: Settings,
    inner: CacheBuilder<K, V>,
    _error: PhantomData<fn(E) -> E>,
}

impl<K, V, E> fmt::Debug for AlruCacheBuilder<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlruCacheBuilder").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<K, V, E> AlruCacheBuilder<K, V, E>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// The most entries. Default: 128. 0 keeps nothing and shares nothing: every call runs.
    pub fn maxsize(mut self, entries: usize) -> Self {
        self.settings.maxsize = Some(entries);
        self
    }

    /// No bound on the entries.
    pub fn unbounded(mut self) -> Self {
        self.settings.maxsize = None;
        self
    }

    /// How long an entry lives, from the end of its load; hits do not extend it. Default: for ever. Zero
    /// expires at once.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.settings.ttl = Some(ttl);
        self
    }

    /// Lets each entry live longer by its own draw from `[0, jitter]`. Default: none. Needs a `ttl`.
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.settings.jitter = Some(jitter);
        self
    }

    /// Which entry goes when the cache is full; see [`EvictionPolicy`].
    pub fn eviction_policy(mut self, policy: EvictionPolicy) -> Self {
        self.inner = self.inner.eviction_policy(policy);
        self
    }

    /// The clock that lifetimes are measured on; see [`CacheBuilder::time_source`].
    pub fn time_source(mut self, source: impl TimeSource) -> Self {
        self.inner = self.inner.time_source(source);
        self
    }

    /// A name for debugging output and metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.inner = self.inner.name(name);
        self
    }

    /// Builds the function cache.
    ///
    /// # Panics
    /// With the message of the [`BuildError`] if a setting makes no sense.
    #[must_use]
    #[track_caller]
    pub fn build(self) -> AlruCache<K, V, E> {
        match self.try_build() {
            Ok(cache) => cache,
            Err(error) => panic!("{error}"),
        }
    }

    /// Builds the function cache, or says what is wrong with the settings.
    ///
    /// # Errors
    /// [`BuildError`] names the setting and the mend.
    pub fn try_build(self) -> Result<AlruCache<K, V, E>, BuildError> {
        let Settings { maxsize, ttl, jitter } = self.settings;
        let mut inner = self.inner;
        if let Some(entries) = maxsize {
            inner = inner.max_capacity(entries as u64);
        }
        if let Some(ttl) = ttl {
            inner = inner.time_to_live(ttl);
        }
        if let Some(jitter) = jitter {
            inner = inner.jitter(jitter);
        }
        Ok(AlruCache {
            memo: StdArc::new(Memo {
                cache: inner.try_build()?,
                loader: self.loader,
                settings: self.settings,
                closed: AtomicBool::new(false),
                cleared_hits: AtomicU64::new(0),
                cleared_misses: AtomicU64::new(0),
                _error: PhantomData,
            }),
        })
    }
}

impl<K, V> AlruCache<K, V>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache around a function that cannot fail.
    pub fn builder_infallible<F, Fut>(function: F) -> AlruCacheBuilder<K, V, Infallible>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = V> + Send + 'static,
    {
        AlruCacheBuilder::new(move |key| {
            let future = function(key);
            async move { Outcome::Value(future.await) }
        })
    }
}

impl<K, V, E> AlruCacheBuilder<K, V, E>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn new<F, Fut>(function: F) -> Self
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome<V>> + Send + 'static,
    {
        Self {
            loader: Box::new(move |key| Box::pin(function(key))),
            settings: Settings { maxsize: Some(DEFAULT_MAXSIZE), ttl: None, jitter: None },
            inner: Cache::builder(),
            _error: PhantomData,
        }
    }
}

impl<K, V, E> AlruCache<K, V, E>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// A cache around a function that can fail. Values are cached, errors never.
    pub fn builder<F, Fut>(function: F) -> AlruCacheBuilder<K, V, E>
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<V, E>> + Send + 'static,
    {
        AlruCacheBuilder::new(move |key| {
            let future = function(key);
            async move {
                match future.await {
                    Ok(value) => Outcome::Value(value),
                    Err(error) => Outcome::Failed(StdArc::new(error)),
                }
            }
        })
    }

    /// The function's result for `key`: the cached one, that of a run under way, or of a new run. A hit
    /// completes without yielding.
    ///
    /// # Errors
    /// [`LoadError`]; all callers of one run get the same.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. The run goes on as long as one of its callers waits; when the last one
    /// goes, the function's future is dropped at once, the entry is removed, and the next call is a new
    /// miss.
    ///
    /// # Panics
    /// If the function panics, in the caller that polled it; the others get [`LoadError::Panicked`].
    pub fn call(&self, key: K) -> impl Future<Output = Result<V, LoadError<E>>> + use<'_, K, V, E> {
        Call { memo: &self.memo, stage: Stage::Start(key) }
    }

    /// What has been counted since the start or the last [`cache_clear`](Self::cache_clear).
    #[must_use]
    pub fn cache_info(&self) -> CacheInfo {
        let memo = &*self.memo;
        let stats = memo.cache.stats();
        CacheInfo {
            hits: stats.hits.saturating_sub(memo.cleared_hits.load(Relaxed)),
            misses: stats.misses.saturating_sub(memo.cleared_misses.load(Relaxed)),
            maxsize: memo.settings.maxsize,
            currsize: memo.cache.entry_count() as usize,
        }
    }

    /// How the cache is set up, how many loads run, and whether it is closed.
    #[must_use]
    pub fn cache_parameters(&self) -> CacheParameters {
        let Settings { maxsize, ttl, jitter } = self.memo.settings;
        CacheParameters {
            maxsize,
            ttl,
            jitter,
            tasks: self.memo.cache.core().flights().open(),
            closed: self.memo.is_closed(),
        }
    }

    /// Is there an entry for `key`, a load under way included? Touches no counter and no recency.
    #[must_use]
    pub fn cache_contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.memo.cache.contains_key(key)
    }

    /// Removes the entry for `key`; true if there was one. A load under way goes on for its waiters, but
    /// its result is not stored, and the next call runs anew.
    pub fn cache_invalidate<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.memo.cache.invalidate(key)
    }

    /// Removes all entries and sets hits and misses to zero. Loads under way go on for their waiters,
    /// uncached.
    pub fn cache_clear(&self) {
        let memo = &*self.memo;
        memo.cache.invalidate_all();
        let stats = memo.cache.stats();
        memo.cleared_hits.store(stats.hits, Relaxed);
        memo.cleared_misses.store(stats.misses, Relaxed);
    }

    /// Closes the cache: later calls fail with [`LoadError::Closed`], hits too. Contains, invalidate and
    /// clear still work. Closing twice is fine.
    ///
    /// The cache is closed as soon as this function is called. `wait = false`: loads under way are dropped
    /// and their waiters get [`LoadError::Closed`]. `wait = true`: the returned future completes when
    /// they have finished; it drives those that nobody else does. A load that found no place in the cache (with
    /// `maxsize = 0` all of them) is its caller's alone, and runs on.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting only.
    pub fn cache_close(&self, wait: bool) -> impl Future<Output = ()> + Send + use<K, V, E> {
        let memo = &*self.memo;
        memo.closed.store(true, Release);
        // Pairs with the fence in `Memo::is_closed_after`.
        #[cfg(not(alru_mutation = "no_close_fence"))]
        fence(SeqCst);
        let mut open = SharedWaiter::of_all(memo.cache.core());
        if !wait {
            let mut panics = FirstPanic::default();
            for load in open.drain(..) {
                panics.catch(|| load.abort());
            }
            panics.resume();
        }
        // The handle: waiters need the cache to be there.
        let memo = self.memo.clone();
        let mut closing = Closing { open, _memo: memo };
        std::future::poll_fn(move |cx| closing.poll(cx))
    }
}

impl<K, V, E> Memo<K, V, E> {
    fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// For a load that has just become visible to a closer.
    fn is_closed_after(&self) -> bool {
        // Pairs with the fence in `cache_close`: there, flag then flights; here, flight then flag.
        fence(SeqCst);
        self.is_closed()
    }
}

/// A closer that waits. Its waiters go before the handle does.
struct Closing<K, V, E>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    open: Vec<SharedWaiter<K, V>>,
    _memo: StdArc<Memo<K, V, E>>,
}

impl<K, V, E> Closing<K, V, E>
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

enum Stage<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Start(K),
    Waiting(SharedWaiter<K, V>),
    Alone(Load<V>),
    Done,
}

/// One call.
struct Call<'a, K, V, E>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    memo: &'a StdArc<Memo<K, V, E>>,
    stage: Stage<K, V>,
}

// Nothing is pinned: loads are boxed, and the key moves.
impl<K, V, E> Unpin for Call<'_, K, V, E>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
}

impl<K, V, E> Future for Call<'_, K, V, E>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    type Output = Result<V, LoadError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let ended = match &mut this.stage {
                Stage::Start(key) => {
                    if this.memo.is_closed() {
                        return Poll::Ready(Err(LoadError::Closed));
                    }
                    let cache = &this.memo.cache;
                    let tag = cache.tag(key);
                    if let Some(value) = cache.core().read(tag, key, |_| {}) {
                        this.stage = Stage::Done;
                        return Poll::Ready(Ok(value));
                    }
                    let Stage::Start(key) = std::mem::replace(&mut this.stage, Stage::Done) else {
                        unreachable!()
                    };
                    let closed = || this.memo.is_closed_after();
                    let handle = || {
                        let memo: StdArc<dyn Any + Send + Sync> = this.memo.clone();
                        StdArc::downgrade(&memo)
                    };
                    let loader = &*this.memo.loader;
                    match shared::begin(cache.core(), tag, key, loader, handle, closed) {
                        Begun::Hit(value) => return Poll::Ready(Ok(value)),
                        Begun::Recursive => return Poll::Ready(Err(LoadError::Recursive)),
                        Begun::Closed => return Poll::Ready(Err(LoadError::Closed)),
                        Begun::Waiting(waiter) => this.stage = Stage::Waiting(waiter),
                        Begun::Alone(load) => this.stage = Stage::Alone(load),
                    }
                    continue;
                }
                Stage::Waiting(waiter) => std::task::ready!(waiter.poll(cx)),
                Stage::Alone(load) => std::task::ready!(shared::poll_alone(load, cx)),
                Stage::Done => panic!("polled after completion"),
            };
            this.stage = Stage::Done;
            return Poll::Ready(match ended {
                Ended::Value(value) => Ok(value),
                Ended::Failed(error) => match error.downcast::<E>() {
                    Ok(error) => Err(LoadError::Failed(error)),
                    Err(_) => unreachable!("loads of one function fail with one type"),
                },
                Ended::Panicked(message) => Err(LoadError::Panicked(message)),
                Ended::Closed => Err(LoadError::Closed),
                Ended::Recursive => Err(LoadError::Recursive),
            });
        }
    }
}
