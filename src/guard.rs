//! Reads under one pin.

use crate::cache::Cache;
use crate::raw::reclaim::{self, Guard};
use crate::stats::Counter;
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};

/// A pinned view of a [`Cache`]: values by reference, without a clone, and one pin for many reads.
///
/// While it lives, removed values are not dropped, so hold it briefly: other threads' removals pile up in
/// the cache's [reserve](crate::CacheBuilder::reserve), for all caches of the process. It is not `Send`, so
/// a future that holds one across an await is not either.
#[must_use = "a pin that is not used only holds up reclamation"]
pub struct Pinned<'a, K, V, S = crate::DefaultHasher> {
    cache: &'a Cache<K, V, S>,
    guard: Guard,
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
    pub(crate) fn new(cache: &'a Cache<K, V, S>) -> Self {
        Self { cache, guard: reclaim::pin() }
    }

    /// The value of a key, as [`Cache::get`], but by reference.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let core = self.cache.core();
        match core.get(&self.guard, self.cache.tag(key), key) {
            Some(slot) => {
                core.touch(slot);
                core.count(&self.guard, Counter::Hits);
                // SAFETY: `get` read READY under this guard, which lives as long as the borrow.
                Some(unsafe { slot.value() })
            }
            None => {
                core.count(&self.guard, Counter::Misses);
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
        self.cache.core().contains(&self.guard, self.cache.tag(key), key)
    }
}
