//! alru: as it comes, with plain CLOCK, and read through a held guard.

use std::future::Future;

use super::gate::Gate;
use super::{Hasher, LOADS, Refusals, SYNC, SYNC_AND_LOADS, Subject};
use crate::workload::{BLOCK, Op, value_of};

/// `alru::Cache` with default settings.
pub(super) struct Alru(alru::Cache<u64, u64, Hasher>);

impl Alru {
    fn new(capacity: usize, policy: alru::EvictionPolicy) -> Self {
        Self(
            alru::Cache::builder()
                .max_capacity(capacity as u64)
                .eviction_policy(policy)
                .build_with_hasher(Hasher::default()),
        )
    }
}

impl Subject for Alru {
    const NAME: &'static str = "alru";
    const PACKAGE: &'static str = "alru";
    const NOTE: &'static str = "`Cache`, default settings";
    const OPS: &'static [Op] = SYNC_AND_LOADS;

    fn with_capacity(capacity: usize) -> Self {
        Self::new(capacity, alru::EvictionPolicy::default())
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    async fn get_with(&self, key: u64, init: impl Future<Output = u64>) -> u64 {
        self.0.get_with(key, init).await
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.entry_count())
    }

    fn refusals(&self) -> Option<Refusals> {
        let stats = self.0.stats();
        Some(Refusals { refused: stats.refused, inserts: stats.insertions + stats.refused })
    }
}

/// The same with plain CLOCK.
pub(super) struct AlruClock(Alru);

impl Subject for AlruClock {
    const NAME: &'static str = "alru-clock";
    const PACKAGE: &'static str = "alru";
    const NOTE: &'static str = "`Cache` with `EvictionPolicy::clock()`";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        Self(Alru::new(capacity, alru::EvictionPolicy::clock()))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    fn settle(&self) {
        Subject::settle(&self.0);
    }

    fn resident(&self) -> Option<u64> {
        Subject::resident(&self.0)
    }

    fn refusals(&self) -> Option<Refusals> {
        Subject::refusals(&self.0)
    }
}

/// The same as it comes, one guard held over a block of look-ups.
pub(super) struct AlruGuard(Alru);

impl Subject for AlruGuard {
    const NAME: &'static str = "alru-guard";
    const PACKAGE: &'static str = "alru";
    const NOTE: &'static str = "`Cache`, default settings; one `pin()` over 64 gets";
    const OPS: &'static [Op] = &[Op::Get];

    fn with_capacity(capacity: usize) -> Self {
        Self(Alru::with_capacity(capacity))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    #[inline]
    fn hits(&self, keys: &[u64; BLOCK]) -> u64 {
        let cache = self.0.0.pin();
        keys.iter().map(|key| u64::from(cache.get(key) == Some(&value_of(*key)))).sum()
    }

    fn settle(&self) {
        Subject::settle(&self.0);
    }

    fn resident(&self) -> Option<u64> {
        Subject::resident(&self.0)
    }

    fn refusals(&self) -> Option<Refusals> {
        Subject::refusals(&self.0)
    }
}

/// `alru::AlruCache`: the function is part of the cache, and boxed by every miss.
pub(super) struct AlruMemo(alru::AlruCache<u64, u64>);

impl Subject for AlruMemo {
    const NAME: &'static str = "alru-memo";
    const PACKAGE: &'static str = "alru";
    const NOTE: &'static str =
        "`AlruCache` around a function whose future is ready; loads only; own hasher (the same)";
    const OPS: &'static [Op] = LOADS;

    fn with_capacity(capacity: usize) -> Self {
        Self(alru::AlruCache::builder_infallible(Gate::load).maxsize(capacity).build())
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.0.cache_contains(&key).then(|| value_of(key))
    }

    fn insert(&self, key: u64, _: u64) {
        let _ = pollster::block_on(self.0.call(key));
    }

    async fn get_with(&self, key: u64, _: impl Future<Output = u64>) -> u64 {
        self.0.call(key).await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.cache_info().currsize as u64)
    }
}
