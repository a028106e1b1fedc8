//! The function cache: an async function with a cache around it.

use crate::builder::{BuildError, EvictionPolicy};
use crate::cache::Cache;
use crate::error::LoadError;
use crate::loading::{LoadingCache, LoadingCacheBuilder};
use crate::sync::atomic::{AtomicU64, Ordering::*};
use crate::time::TimeSource;
use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc as StdArc;
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
    /// A handle of its own: a call reaches it in one step.
    loading: LoadingCache<K, V, E>,
    memo: StdArc<Memo>,
}

/// What a cache with a loader does not know.
struct Memo {
    settings: Settings,
    /// What the counters showed at the last `cache_clear`.
    cleared_hits: AtomicU64,
    cleared_misses: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    maxsize: Option<usize>,
    ttl: Option<Duration>,
    jitter: Option<Duration>,
}

impl<K, V, E> Clone for AlruCache<K, V, E> {
    fn clone(&self) -> Self {
        Self { loading: self.loading.clone(), memo: self.memo.clone() }
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
    settings: Settings,
    inner: LoadingCacheBuilder<K, V, E>,
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
        self.inner.cache = self.inner.cache.eviction_policy(policy);
        self
    }

    /// The clock that lifetimes are measured on; see [`CacheBuilder::time_source`](crate::CacheBuilder::time_source).
    pub fn time_source(mut self, source: impl TimeSource) -> Self {
        self.inner.cache = self.inner.cache.time_source(source);
        self
    }

    /// A name for debugging output and metrics.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.inner.cache = self.inner.cache.name(name);
        self
    }

    /// Has runs of the function polled by an executor of yours too, so that they outlive their callers; see
    /// [`LoadingCacheBuilder::spawner`]. Default: none.
    pub fn spawner(
        mut self,
        spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) + Send + Sync + 'static,
    ) -> Self {
        self.inner = self.inner.spawner(spawn);
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
            inner.cache = inner.cache.max_capacity(entries as u64);
        }
        if let Some(ttl) = ttl {
            inner.cache = inner.cache.time_to_live(ttl);
        }
        if let Some(jitter) = jitter {
            inner.cache = inner.cache.jitter(jitter);
        }
        Ok(AlruCache {
            loading: inner.try_build()?,
            memo: StdArc::new(Memo {
                settings: self.settings,
                cleared_hits: AtomicU64::new(0),
                cleared_misses: AtomicU64::new(0),
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
        AlruCacheBuilder::new(LoadingCacheBuilder::infallible(Cache::builder(), function))
    }
}

impl<K, V, E> AlruCacheBuilder<K, V, E> {
    fn new(inner: LoadingCacheBuilder<K, V, E>) -> Self {
        let settings = Settings { maxsize: Some(DEFAULT_MAXSIZE), ttl: None, jitter: None };
        Self { settings, inner }
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
        AlruCacheBuilder::new(LoadingCacheBuilder::fallible(Cache::builder(), function))
    }

    /// The function's result for `key`: the cached one, that of a run under way, or of a new run. A hit
    /// completes without yielding.
    ///
    /// # Who drives the run
    /// Every caller that waits for it, whenever it is polled, and the [spawner](AlruCacheBuilder::spawner)'s executor
    /// if there is one. So a caller that is kept and never polled again holds nobody up, and the function's future may
    /// be polled by tasks of several runtimes in turn.
    ///
    /// # Errors
    /// [`LoadError::Failed`] with the function's error and [`LoadError::Panicked`] are the same for all callers of one
    /// run; neither is cached. [`LoadError::Closed`] if the cache is closed, or was closed without waiting meanwhile.
    ///
    /// [`LoadError::Recursive`] if the call is made inside a run (of this cache, or a load of any other) that would
    /// wait for itself by it: it asks for the key of that run, or for one whose run waits for it, directly or by way of
    /// others. It is for this call alone; the run that it asked for goes on, and the one that it was made in gets the
    /// error like any other. Of runs that come to wait for each other at the same time one is told for certain, and
    /// more than one may be. What is recognised, and what is not, is said at [`Cache::get_with`]. With `maxsize = 0`
    /// nothing is shared, so nothing waits for itself: a function that asks for its own key calls itself.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. The run goes on as long as one of its callers waits; when the last one
    /// goes, the function's future is dropped at once, the entry is removed, and the next call is a new
    /// miss.
    ///
    /// # Panics
    /// If the function panics, in the caller that polled it; the others get [`LoadError::Panicked`].
    pub fn call(&self, key: K) -> impl Future<Output = Result<V, LoadError<E>>> + use<'_, K, V, E> {
        self.loading.call(key)
    }

    /// What has been counted since the start or the last [`cache_clear`](Self::cache_clear).
    #[must_use]
    pub fn cache_info(&self) -> CacheInfo {
        let memo = &*self.memo;
        let cache = self.loading.cache();
        let stats = cache.stats();
        CacheInfo {
            hits: stats.hits.saturating_sub(memo.cleared_hits.load(Relaxed)),
            misses: stats.misses.saturating_sub(memo.cleared_misses.load(Relaxed)),
            maxsize: memo.settings.maxsize,
            currsize: cache.entry_count() as usize,
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
            tasks: self.loading.loads(),
            closed: self.loading.is_closed(),
        }
    }

    /// Is there an entry for `key`, a load under way included? Touches no counter and no recency.
    #[must_use]
    pub fn cache_contains<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.loading.cache().contains_key(key)
    }

    /// Removes the entry for `key`; true if there was one. A load under way goes on for its waiters, but
    /// its result is not stored, and the next call runs anew.
    pub fn cache_invalidate<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.loading.cache().invalidate(key)
    }

    /// Removes all entries and sets hits and misses to zero. Loads under way go on for their waiters,
    /// uncached.
    pub fn cache_clear(&self) {
        let memo = &*self.memo;
        let cache = self.loading.cache();
        cache.invalidate_all();
        let stats = cache.stats();
        memo.cleared_hits.store(stats.hits, Relaxed);
        memo.cleared_misses.store(stats.misses, Relaxed);
    }

    /// Closes the cache: later calls fail with [`LoadError::Closed`], hits too. Contains, invalidate and
    /// clear still work. Closing twice is fine.
    ///
    /// The cache is closed as soon as this function is called. `wait = false`: loads under way are dropped
    /// and their waiters get [`LoadError::Closed`]. `wait = true`: the returned future completes when
    /// they have finished; it drives those that nobody else does. That includes loads that are not entries: those
    /// that were invalidated or evicted, and with `maxsize = 0` all of them.
    ///
    /// # Cancel safety
    /// Dropping the future stops the waiting only.
    ///
    /// # Panics
    /// If a destructor of a load that is dropped does, or a waker, once all loads have been ended.
    pub fn cache_close(&self, wait: bool) -> impl Future<Output = ()> + Send + use<K, V, E> {
        self.loading.close(wait)
    }
}
