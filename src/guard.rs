//! Reads under one pin.

use crate::cache::{self, Cache};
use crate::raw::core::Core;
use crate::raw::reclaim::{self, Guard};
use crate::stats::Counter;
use std::borrow::Borrow;
use std::cell::Cell;
use std::hash::{BuildHasher, Hash};

/// A pinned view of a [`Cache`]: values by reference, without a clone, and one pin for many reads.
///
/// While it lives, removed values are not dropped, so hold it briefly: other threads' removals pile up in
/// the cache's [reserve](crate::CacheBuilder::reserve), for all caches of the process. It is not `Send`, so
/// a future that holds one across an await is not either. Its hits and misses are in the
/// [statistics](Cache::stats) when it is gone.
#[must_use = "a pin that is not used only holds up reclamation"]
pub struct Pinned<'a, K, V, S = crate::DefaultHasher> {
    cache: &'a Cache<K, V, S>,
    /// Its parts, so that a read follows one pointer less.
    core: &'a Core<K, V>,
    hasher: &'a S,
    guard: Guard,
    counted: Counted,
}

/// Hits and misses that are not in the statistics yet.
#[derive(Default)]
struct Counted {
    hits: Cell<u64>,
    misses: Cell<u64>,
}

fn add_one(count: &Cell<u64>) {
    count.set(count.get() + 1);
}

impl<K, V, S> Drop for Pinned<'_, K, V, S> {
    fn drop(&mut self) {
        let thread = self.guard.thread();
        let counters = self.core.counters();
        counters.add_many(thread, Counter::Hits, self.counted.hits.get());
        counters.add_many(thread, Counter::Misses, self.counted.misses.get());
    }
}

impl<K, V, S> std::fmt::Debug for Pinned<'_, K, V, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("cache", self.cache).finish()
    }
}

impl<'a, K, V, S> Pinned<'a, K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    #[inline(always)]
    pub(crate) fn new(cache: &'a Cache<K, V, S>) -> Self {
        Self {
            cache,
            core: cache.core(),
            hasher: cache.hasher(),
            guard: reclaim::pin(),
            counted: Counted::default(),
        }
    }

    /// The value of a key, as [`Cache::get`], but by reference.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        match self.core.get(&self.guard, cache::tag(self.hasher, key), key) {
            Some(slot) => {
                self.core.touch(slot);
                add_one(&self.counted.hits);
                // SAFETY: `get` read READY under this guard, which lives as long as the borrow.
                Some(unsafe { slot.value() })
            }
            None => {
                add_one(&self.counted.misses);
                None
            }
        }
    }

    /// Is there an entry, as [`Cache::contains_key`]?
    #[inline]
    #[must_use]
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.core.contains(&self.guard, cache::tag(self.hasher, key), key)
    }
}
