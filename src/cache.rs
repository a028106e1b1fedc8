//! The public handle.

use crate::DefaultHasher;
use crate::builder::CacheBuilder;
use crate::entry::Entry;
use crate::guard::Pinned;
use crate::load::caller::{CallerLoad, Infallibly};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::reclaim;
use crate::stats::{Counter, Stats};
use crate::sync::Arc;
use std::borrow::Borrow;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};

/// A concurrent cache of `K` to `V`, bounded or not, with shared loads.
///
/// A handle: clones are cheap and share one cache, which lives until the last handle is gone. Values are
/// cloned out, so wrap large ones in an [`Arc`](std::sync::Arc).
///
/// No operation takes a lock or waits for another thread, and none starts a thread or a task.
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
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    pub(crate) fn from_core(core: Core<K, V>, hasher: S, name: Option<String>) -> Self {
        let core = Arc::new(core);
        let shared = Arc::new(Shared { core: core.clone(), hasher, name });
        Self { core, shared }
    }

    /// The 32 hash bits that the index works with. One multiply more, because its bins are chosen by the
    /// upper bits, which some fast hashers leave uneven for sequential integers.
    #[inline(always)]
    pub(crate) fn tag<Q: Hash + ?Sized>(&self, key: &Q) -> Tag {
        (self.shared.hasher.hash_one(key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as Tag
    }

    /// The value of a key, if it is there and has not expired. A load under way is a miss.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.core.read(self.tag(key), key, |guard| self.core.count(guard, Counter::Misses))
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
    /// unpolled otherwise. A hit completes without yielding.
    ///
    /// # Cancel safety
    /// Safe to drop at any point. If this caller's `init` was running, it is dropped, and whichever waiter
    /// is polled next runs its own.
    ///
    /// # Panics
    /// If `init` panics, in the caller that polled it, and in those who waited for it with the same
    /// message; the key is usable afterwards. If `init` asks for its own key.
    pub fn get_with<'a, F>(
        &'a self,
        key: K,
        init: F,
    ) -> impl Future<Output = V> + use<'a, K, V, S, F>
    where
        F: Future<Output = V>,
    {
        let tag = self.tag(&key);
        let load = CallerLoad::new(&self.core, tag, key, Infallibly::new(init));
        async move {
            match load.await {
                Ok(value) => value,
                Err(never) => match *never {},
            }
        }
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
    pub fn try_get_with<'a, E, F>(
        &'a self,
        key: K,
        init: F,
    ) -> impl Future<Output = Result<V, std::sync::Arc<E>>> + use<'a, K, V, S, E, F>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        let tag = self.tag(&key);
        CallerLoad::new(&self.core, tag, key, init)
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
    /// proportion to the most entries there ever were. Does nothing when called by a destructor that a cache
    /// is just running on this thread.
    ///
    /// # Panics
    /// If a destructor panics. The cache stays usable; call again for the rest.
    pub fn run_pending_tasks(&self) {
        self.core.run_pending();
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
