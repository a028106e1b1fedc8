//! The public handle.

use crate::DefaultHasher;
use crate::builder::CacheBuilder;
use crate::entry::Entry;
use crate::error::TimedOut;
use crate::guard::Pinned;
use crate::load::blocking;
use crate::load::caller::Infallibly;
use crate::load::get_with::{GetWith, TryGetWith};
use crate::load::many::BulkLoad;
use crate::load::shared::Handle;
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::reclaim;
use crate::stats::Stats;
use crate::sync::Arc;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

/// A concurrent cache of `K` to `V`, bounded or not, with shared loads.
///
/// A handle: clones are cheap and share one cache, which lives until the last handle is gone. Values are
/// cloned out, so wrap large ones in an [`Arc`](std::sync::Arc).
///
/// No operation takes a lock or waits for another thread, and none starts a thread or a task. What waits, waits
/// for a load: the futures of [`get_with`](Self::get_with) and the like, without blocking, and the blocking calls
/// such as [`get_or_insert_with`](Self::get_or_insert_with), by parking their thread.
///
/// # Consistency
///
/// Operations on one key are linearizable: once an insert, removal or load has returned, every later read
/// sees it or something newer. An insert that finds no place (see [`Stats::refused`]) counts as evicted at
/// once, so nothing older is served after it.
///
/// # User code
///
/// `Hash`, `Eq`, `Clone` and loaders run in the calling thread with nothing held; they may panic or call
/// back into the cache. Keys and values are dropped by threads that write, never by readers, some time
/// after their removal: a few operations, or [`run_pending_tasks`](Self::run_pending_tasks), later.
pub struct Cache<K, V, S = DefaultHasher> {
    core: Arc<Core<K, V>>,
    shared: Arc<Shared<K, V, S>>,
}

/// What the handles share beside the core. Dropped with the last of them, which is when nobody can read
/// or write any more: batches in limbo keep the core alive, but not this.
struct Shared<K, V, S> {
    core: Arc<Core<K, V>>,
    hasher: S,
    name: Option<String>,
    /// How long a blocking call waits for one load.
    patience: Duration,
}

impl<K, V, S> Drop for Shared<K, V, S> {
    fn drop(&mut self) {
        // SAFETY: the last handle is gone, and guards and load futures borrow a handle, so no operation
        // runs and none will begin.
        unsafe { self.core.drop_contents() };
    }
}

impl<K, V, S> Clone for Cache<K, V, S> {
    fn clone(&self) -> Self {
        Self { core: self.core.clone(), shared: self.shared.clone() }
    }
}

impl<K, V, S> fmt::Debug for Cache<K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache of at most `max_capacity` entries, everything else as by default.
    ///
    /// # Panics
    /// If there is no memory for the tables.
    #[must_use]
    #[track_caller]
    pub fn new(max_capacity: u64) -> Self {
        Self::builder().max_capacity(max_capacity).build()
    }

    /// All settings.
    pub fn builder() -> CacheBuilder<K, V> {
        CacheBuilder::default()
    }
}

impl<K, V, S> Cache<K, V, S> {
    #[inline(always)]
    pub(crate) fn core(&self) -> &Arc<Core<K, V>> {
        &self.core
    }

    pub(crate) fn hasher(&self) -> &S {
        &self.shared.hasher
    }

    pub(crate) fn downgrade(&self) -> WeakCache<K, V, S> {
        WeakCache(Arc::downgrade(&self.shared))
    }

    /// For who must not keep the cache from going, and needs it to be there now and then.
    pub(crate) fn weak_handle(&self) -> Handle
    where
        K: Send + Sync + 'static,
        V: Send + Sync + 'static,
        S: Send + Sync + 'static,
    {
        let weak: std::sync::Weak<Shared<K, V, S>> = Arc::downgrade(&self.shared);
        weak
    }
}

/// A handle that does not keep the cache from going.
pub(crate) struct WeakCache<K, V, S>(std::sync::Weak<Shared<K, V, S>>);

impl<K, V, S> WeakCache<K, V, S> {
    /// A handle, if there is one still. Dropped, it may be the last.
    pub(crate) fn upgrade(&self) -> Option<Cache<K, V, S>> {
        self.0.upgrade().map(|shared| Cache { core: shared.core.clone(), shared })
    }
}

/// The 32 hash bits that the index works with. One multiply more, because its bins are chosen by the upper bits,
/// which some fast hashers leave uneven for sequential integers.
#[inline(always)]
pub(crate) fn tag<Q: Hash + ?Sized>(hasher: &impl BuildHasher, key: &Q) -> Tag {
    (hasher.hash_one(key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as Tag
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    pub(crate) fn from_core(
        core: Core<K, V>,
        hasher: S,
        name: Option<String>,
        patience: Duration,
    ) -> Self {
        let core = Arc::new(core);
        let shared = Arc::new(Shared { core: core.clone(), hasher, name, patience });
        Self { core, shared }
    }

    #[inline(always)]
    pub(crate) fn tag<Q: Hash + ?Sized>(&self, key: &Q) -> Tag {
        tag(&self.shared.hasher, key)
    }

    /// The value of a key, if it is there and has not expired. A load under way is a miss.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.core.read::<true, _>(self.tag(key), key)
    }

    /// As [`get`](Self::get), but touches neither the statistics nor the entry's standing with the
    /// eviction policy.
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let guard = reclaim::pin();
        // SAFETY: `get` read READY under this guard.
        self.core.get(&guard, self.tag(key), key).map(|slot| unsafe { slot.value() }.clone())
    }

    /// Is there an entry, a load under way included? Touches no statistics and no standing.
    #[must_use]
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.core.contains(&reclaim::pin(), self.tag(key), key)
    }

    /// Inserts a value, in place of the key's entry if there is one. A load under way for the key goes on
    /// for its waiters, and its result is not stored.
    ///
    /// Evicts an entry if the cache is full. Drops a bounded number of values removed earlier.
    ///
    /// # Panics
    /// If a destructor of one of those panics. The cache stays usable.
    pub fn insert(&self, key: K, value: V) {
        self.core.insert(self.tag(&key), key, value);
    }

    /// Removes the entry of a key and returns its value, if it had one that has not expired. A load under
    /// way goes on for its waiters, and its result is not stored.
    pub fn remove<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let guard = reclaim::pin();
        let (slot, _) = self.core.remove(&guard, self.tag(key), key);
        // SAFETY: it was READY when this thread unlinked it under this guard.
        slot.map(|slot| unsafe { slot.value() }.clone())
    }

    /// Removes the entry of a key, a load under way included; true if there was one.
    ///
    /// Whoever asks for the key after this returned never gets a value whose load began before.
    pub fn invalidate<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.core.remove(&reclaim::pin(), self.tag(key), key).1
    }

    /// Removes all entries that are there when the call begins, loads under way included. What is inserted
    /// meanwhile may stay or go. Takes time in proportion to the most entries there ever were.
    pub fn invalidate_all(&self) {
        self.core.clear();
    }

    /// The value of a key: the cached one, the result of a load under way, or that of `init`.
    ///
    /// However many callers ask for a missing key at once, one of their futures runs. `init` may borrow, and
    /// need not be `Send`. It is polled by this future's own task if it is the one to run, and dropped
    /// unpolled otherwise. A hit completes without yielding. (A load of a [`LoadingCache`](crate::LoadingCache)'s
    /// loader it joins too, and polls that as its other callers do.)
    ///
    /// # A leader that is not polled
    /// Only the caller whose `init` runs can poll it. If that caller keeps its future and never polls it again,
    /// those who wait for it wait too. This goes for two calls of one key in one task as well, when the first is
    /// polled once and kept, and the second is awaited. The way out is
    /// [`steal_after`](GetWith::steal_after); [`AlruCache`](crate::AlruCache) does not know the problem.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. If this caller's `init` was running, it is dropped, and whichever waiter
    /// is polled next runs its own.
    ///
    /// # Panics
    /// If `init` panics, in the caller that polled it, and in those who waited for it with the same
    /// message; the key is usable afterwards.
    ///
    /// If the load would wait for itself: a call that is polled inside a load panics if it asks for the key of
    /// that load, or for one whose load waits for it, directly or by way of others, in this cache or another.
    /// It says "recursive load". Two loads that come to wait for each other at the same time may both be told,
    /// and one is for certain; the other loads of the circle go on. A load waits for every call that was polled
    /// inside it and is neither finished nor dropped, even if it also waits for something else, until the call
    /// is polled elsewhere. Not recognised, and bounded by [`steal_after`](GetWith::steal_after) alone: what a
    /// load waits for by other means, such as the handle of a task that it spawned or a channel, and loads that
    /// found no place in the cache.
    pub fn get_with<F>(&self, key: K, init: F) -> GetWith<'_, K, V, F>
    where
        F: Future<Output = V>,
    {
        GetWith::new(&self.core, self.tag(&key), key, init)
    }

    /// As [`get_with`](Self::get_with), for loads that can fail. All callers of one run get the same
    /// error, which is not cached: the next call runs again.
    ///
    /// A caller that waited for a load with another error type, and cannot name its error, runs its own.
    ///
    /// # Errors
    /// What `init`, or the `init` that ran for this caller, returned.
    ///
    /// # Cancel safety
    /// As [`get_with`](Self::get_with).
    ///
    /// # Panics
    /// As [`get_with`](Self::get_with).
    pub fn try_get_with<E, F>(&self, key: K, init: F) -> TryGetWith<'_, K, V, E, F>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        TryGetWith::new(&self.core, self.tag(&key), key, init)
    }

    /// Pins the cache for reads by reference; see [`Pinned`].
    #[inline]
    pub fn pin(&self) -> Pinned<'_, K, V, S> {
        Pinned::new(self)
    }

    /// Entries that are resident, loads under way included. Expired ones count until they are cleared
    /// away. Exact while nothing else runs.
    #[must_use]
    pub fn entry_count(&self) -> u64 {
        self.core.len()
    }

    /// The most entries that may be resident; None if unbounded.
    #[must_use]
    pub fn max_capacity(&self) -> Option<u64> {
        self.core.capacity()
    }

    /// The name that the cache was built with.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.shared.name.as_deref()
    }

    /// What has been counted so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.core.stats()
    }

    /// Does now what writes would do bit by bit: clears expired entries away, and drops what was removed.
    /// With no guard held anywhere, no value but the residents' is alive afterwards. Takes time in
    /// proportion to what there is to clear and to drop, or with [`jitter`](CacheBuilder::jitter) to the most entries
    /// there ever were. Does nothing when called by a destructor that a cache
    /// is just running on this thread. [`sweeper`](Self::sweeper) does the same in small steps.
    ///
    /// # Panics
    /// If a destructor panics. The cache stays usable; call again for the rest.
    pub fn run_pending_tasks(&self) {
        self.core.run_pending();
    }

    /// The value of a key, for callers that are not async: the cached one, the result of a load under way, or
    /// that of `init`. Blocks the calling thread while another caller loads the key.
    ///
    /// Shares loads with [`get_with`](Self::get_with) and [`try_get_with`](Self::try_get_with): of all callers
    /// that ask for a missing key at once, one loads it. `init` runs on the calling thread with nothing held, and
    /// may use the cache. It is dropped unrun if it is not needed.
    ///
    /// # How long it waits
    /// The load may be led by a task of this very thread, which cannot run while the thread is blocked. So this
    /// call waits for one load no longer than the cache's
    /// [`blocking_patience`](CacheBuilder::blocking_patience), by default one second. Then it takes the load
    /// out of the cache, if it is still there, and starts over: it finds a value, waits for a newer load, or
    /// runs `init`, whose result is stored. The load that was taken out runs on for its own callers, uncached; see
    /// [`GetWith::steal_after`]. That is so whoever leads it, another blocking caller included: a patience
    /// shorter than the loads take makes them run more than once.
    ///
    /// A load of a [`LoadingCache`](crate::LoadingCache)'s loader is polled by all who wait for it, so on this thread
    /// too. If its future needs the context of a runtime, as tokio's sockets and timers do, the thread must have
    /// entered it (`tokio::runtime::Handle::enter`): else the load may panic here, for all its callers.
    ///
    /// Avoid it in async code: it blocks the runtime's thread. Inside the load of another key it counts as a wait
    /// of that load, as `get_with` does.
    ///
    /// ```
    /// use alru::Cache;
    ///
    /// let cache: Cache<u32, String> = Cache::new(100);
    /// let value = std::thread::scope(|s| {
    ///     let callers: Vec<_> =
    ///         (0..4).map(|_| s.spawn(|| cache.get_or_insert_with(1, || "one".to_owned()))).collect();
    ///     callers.into_iter().map(|c| c.join().unwrap()).next_back().unwrap()
    /// });
    /// assert_eq!(value, "one");
    /// assert_eq!(cache.stats().loads, 1);
    /// ```
    ///
    /// # Panics
    /// As [`get_with`](Self::get_with): if `init`, or the load that this call waited for, panics, or if the load
    /// would wait for itself.
    pub fn get_or_insert_with(&self, key: K, init: impl FnOnce() -> V) -> V {
        match self.get_or_insert_with_timeout(key, Duration::MAX, init) {
            Ok(value) => value,
            Err(TimedOut) => unreachable!("waits for ever"),
        }
    }

    /// As [`get_or_insert_with`](Self::get_or_insert_with), for loads that can fail. All callers of one run get
    /// the same error, which is not cached.
    ///
    /// A caller that waited for a load with another error type, and cannot name its error, runs its own.
    ///
    /// # Errors
    /// What `init`, or the load that ran for this caller, returned.
    ///
    /// # Panics
    /// As [`get_or_insert_with`](Self::get_or_insert_with).
    pub fn try_get_or_insert_with<E>(
        &self,
        key: K,
        init: impl FnOnce() -> Result<V, E>,
    ) -> Result<V, std::sync::Arc<E>>
    where
        E: Send + Sync + 'static,
    {
        match self.try_get_or_insert_with_timeout(key, Duration::MAX, init) {
            Ok(result) => result,
            Err(TimedOut) => unreachable!("waits for ever"),
        }
    }

    /// As [`get_or_insert_with`](Self::get_or_insert_with), but waits for other callers' loads no longer than
    /// `timeout` in all. Zero does not wait; `Duration::MAX` sets no limit. `init`, if it runs, takes what time it
    /// takes.
    ///
    /// # Errors
    /// [`TimedOut`] if it waited that long. `init` was not run then, and the load goes on for those who still wait.
    /// It is also in the cache as before, unless the time-out is longer than the cache's
    /// [`blocking_patience`](CacheBuilder::blocking_patience).
    ///
    /// # Panics
    /// As [`get_or_insert_with`](Self::get_or_insert_with).
    pub fn get_or_insert_with_timeout(
        &self,
        key: K,
        timeout: Duration,
        init: impl FnOnce() -> V,
    ) -> Result<V, TimedOut> {
        match self.try_get_or_insert_with_timeout(key, timeout, || Ok::<_, Infallible>(init()))? {
            Ok(value) => Ok(value),
            Err(never) => match *never {},
        }
    }

    /// As [`try_get_or_insert_with`](Self::try_get_or_insert_with), but waits for other callers' loads no longer
    /// than `timeout` in all; see [`get_or_insert_with_timeout`](Self::get_or_insert_with_timeout).
    ///
    /// # Errors
    /// The outer one is [`TimedOut`], if it waited that long. The inner one is what `init`, or the load that ran
    /// for this caller, returned.
    ///
    /// # Panics
    /// As [`get_or_insert_with`](Self::get_or_insert_with).
    pub fn try_get_or_insert_with_timeout<E>(
        &self,
        key: K,
        timeout: Duration,
        init: impl FnOnce() -> Result<V, E>,
    ) -> Result<Result<V, std::sync::Arc<E>>, TimedOut>
    where
        E: Send + Sync + 'static,
    {
        let tag = self.tag(&key);
        blocking::get(&self.core, tag, key, self.shared.patience, timeout, init)
    }

    /// The values of many keys, with one call of `load` for all that are missing.
    ///
    /// `load` is given the keys that are neither there nor being loaded, each once, in the order of their
    /// first appearance, and returns pairs of key and value, as a map or a `Vec`. Keys that others load are
    /// waited for, as [`get_with`](Self::get_with) would, while `load` runs; and other callers of a key that
    /// `load` was given wait for its value. If all values are there, `load` is not called, and the future
    /// completes without yielding.
    ///
    /// * A key that `load` left out is missing from the answer. Those who waited for it load it themselves.
    /// * Pairs that `load` was not asked for are dropped, and of several pairs with one key the first counts.
    /// * If a load of somebody else's that was waited for came to nothing (its caller was dropped, or left the
    ///   key out, or it failed with an error that this caller cannot name), `load` is called again at once,
    ///   with all keys that this happened to at one time, also while its first call is running.
    ///
    /// Each key counts as a hit or as a miss, as in `get_with`, and each key given to `load` as a load, or as refused
    /// if it found no place.
    ///
    /// A caller that leads one of the keys and is never polled again holds this call up, as it does `get_with`. There
    /// is no `steal_after` here; bound the call by a time-out if that can be, and ask for the keys one by one then.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// use alru::Cache;
    ///
    /// let cache: Cache<u32, u32> = Cache::new(100);
    /// cache.insert(1, 10);
    /// let squares = cache.get_many([1, 2, 3, 2], |missing| async move {
    ///     assert_eq!(missing, [2, 3]);
    ///     missing.into_iter().map(|n| (n, n * n))
    /// });
    /// let squares = squares.await;
    /// assert_eq!((squares[&1], squares[&2], squares[&3]), (10, 4, 9));
    /// # });
    /// ```
    ///
    /// # Who drives the load
    /// This caller polls the futures of `load`, which may borrow and need not be `Send`. Who waits for one of
    /// their keys waits for this caller to be polled.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. The futures of `load` are dropped, and each of their keys is loaded by
    /// whichever waiter is polled next, by its own means.
    ///
    /// # Panics
    /// If `load` or its future panics: here, and with the same message in those who waited for one of its keys;
    /// the keys are usable afterwards. If a load that was waited for panicked. If a load would wait for itself, as in
    /// `get_with`; the pairs that `load`'s future returned are part of the load, also if they are made lazily.
    pub fn get_many<'a, I, L, F, R>(
        &'a self,
        keys: I,
        mut load: L,
    ) -> impl Future<Output = HashMap<K, V>> + use<'a, K, V, S, I, L, F, R>
    where
        K: Clone,
        I: IntoIterator<Item = K>,
        L: FnMut(Vec<K>) -> F,
        F: Future<Output = R>,
        R: IntoIterator<Item = (K, V)>,
    {
        let load = self.bulk(keys, move |missing| Infallibly::new(load(missing)));
        async move {
            match load.await {
                Ok(values) => values,
                Err(never) => match *never {},
            }
        }
    }

    /// As [`get_many`](Self::get_many), for loads that can fail. An error is that of all keys that this call of
    /// `load` was given, for all who wait for one of them, and it is not cached: the next call runs again.
    ///
    /// # Errors
    /// The first error of a call of `load`, or of a load that was waited for if it is of the same type. What
    /// else was found or loaded stays in the cache; what this caller is still loading is given up, as if it were
    /// dropped.
    ///
    /// # Cancel safety
    /// As [`get_many`](Self::get_many).
    ///
    /// # Panics
    /// As [`get_many`](Self::get_many).
    pub fn try_get_many<'a, E, I, L, F, R>(
        &'a self,
        keys: I,
        load: L,
    ) -> impl Future<Output = Result<HashMap<K, V>, std::sync::Arc<E>>> + use<'a, K, V, S, E, I, L, F, R>
    where
        K: Clone,
        E: Send + Sync + 'static,
        I: IntoIterator<Item = K>,
        L: FnMut(Vec<K>) -> F,
        F: Future<Output = Result<R, E>>,
        R: IntoIterator<Item = (K, V)>,
    {
        self.bulk(keys, load)
    }

    fn bulk<I, L, F>(&self, keys: I, load: L) -> BulkLoad<'_, K, V, L, F>
    where
        K: Clone,
        I: IntoIterator<Item = K>,
        L: FnMut(Vec<K>) -> F,
    {
        BulkLoad::new(&self.core, self.tagged(keys), load)
    }

    /// Keys with their tags.
    pub(crate) fn tagged(&self, keys: impl IntoIterator<Item = K>) -> Vec<(Tag, K)> {
        keys.into_iter().map(|key| (self.tag(&key), key)).collect()
    }

    /// The entry of a key, to be changed depending on what is there, in one step: see [`Entry`].
    ///
    /// ```
    /// let cache = alru::Cache::new(100);
    /// let _ = cache.entry("hits").and_upsert_with(|n| n.map_or(1, |n| n + 1));
    /// assert_eq!(cache.entry("hits").or_insert(0), 1);
    /// ```
    pub fn entry(&self, key: K) -> Entry<'_, K, V, S> {
        Entry::new(self, key)
    }
}
