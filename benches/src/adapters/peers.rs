//! The others: caches of the same field, and a map to measure look-ups by.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::UnitWeighter;
use quick_cache::sync::DefaultLifecycle;

use super::gate::Gate;
use super::{Hasher, LOADS, SYNC, SYNC_AND_LOADS, Subject};
use crate::workload::{BLOCK, Op, value_of};

/// `quick_cache::sync::Cache`: sharded, a reader-writer lock a shard, CLOCK-PRO.
pub(super) struct QuickCache(quick_cache::sync::Cache<u64, u64, UnitWeighter, Hasher>);

impl Subject for QuickCache {
    const NAME: &'static str = "quick_cache";
    const PACKAGE: &'static str = "quick_cache";
    const NOTE: &'static str = "`sync::Cache`, default options";
    const OPS: &'static [Op] = SYNC_AND_LOADS;

    fn with_capacity(capacity: usize) -> Self {
        Self(quick_cache::sync::Cache::with(
            capacity,
            capacity as u64,
            UnitWeighter,
            Hasher::default(),
            DefaultLifecycle::default(),
        ))
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
        let init = async { Ok::<_, Infallible>(init.await) };
        let Ok(value) = self.0.get_or_insert_async(&key, init).await;
        value
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }
}

/// `moka::sync::Cache`: W-TinyLFU, reads and writes logged and applied in batches.
pub(super) struct Moka(moka::sync::Cache<u64, u64, Hasher>);

impl Subject for Moka {
    const NAME: &'static str = "moka";
    const PACKAGE: &'static str = "moka";
    const NOTE: &'static str = "`sync::Cache`, default policy";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        Self(
            moka::sync::Cache::builder()
                .max_capacity(capacity as u64)
                .build_with_hasher(Hasher::default()),
        )
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.entry_count())
    }
}

/// `moka::future::Cache`, for its asynchronous loads only.
pub(super) struct MokaFuture(moka::future::Cache<u64, u64, Hasher>);

impl Subject for MokaFuture {
    const NAME: &'static str = "moka-future";
    const PACKAGE: &'static str = "moka";
    const NOTE: &'static str = "`future::Cache`, default policy; loads only";
    const OPS: &'static [Op] = LOADS;

    fn with_capacity(capacity: usize) -> Self {
        Self(
            moka::future::Cache::builder()
                .max_capacity(capacity as u64)
                .build_with_hasher(Hasher::default()),
        )
    }

    fn get(&self, key: u64) -> Option<u64> {
        pollster::block_on(self.0.get(&key))
    }

    fn insert(&self, key: u64, value: u64) {
        pollster::block_on(self.0.insert(key, value));
    }

    async fn get_with(&self, key: u64, init: impl Future<Output = u64>) -> u64 {
        self.0.get_with(key, init).await
    }

    fn settle(&self) {
        pollster::block_on(self.0.run_pending_tasks());
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.entry_count())
    }
}

/// `foyer_memory::Cache`: foyer's cache in memory. It spawns each load on tokio.
pub(super) struct Foyer(foyer_memory::Cache<u64, u64, Hasher>);

std::thread_local! {
    static RUNTIME: tokio::runtime::Runtime =
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
}

impl Subject for Foyer {
    const NAME: &'static str = "foyer";
    const PACKAGE: &'static str = "foyer-memory";
    const NOTE: &'static str = "`Cache`, default options; loads only, which it spawns: its callers are polled within \
         a tokio runtime of the measuring thread, which gets a turn between the polls";
    const OPS: &'static [Op] = LOADS;

    fn with_capacity(capacity: usize) -> Self {
        let builder = foyer_memory::CacheBuilder::new(capacity);
        Self(builder.with_hash_builder(Hasher::default()).build())
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key).map(|entry| *entry.value())
    }

    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    async fn get_with(&self, key: u64, _: impl Future<Output = u64>) -> u64 {
        let load = || async move { Ok::<_, Infallible>(Gate::load(key).await) };
        match self.0.get_or_fetch(&key, load).await {
            Ok(entry) => *entry.value(),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn block_on<T>(&self, loads: impl Future<Output = T>) -> T {
        RUNTIME.with(|runtime| runtime.block_on(loads))
    }

    fn turn(&self) -> impl Future<Output = ()> {
        tokio::task::yield_now()
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.entries() as u64)
    }
}

type Cell = Arc<tokio::sync::OnceCell<u64>>;

/// A `tokio::sync::OnceCell` a key, in a map of 64 shards: what one writes without a cache.
pub(super) struct OnceCells(Vec<Mutex<HashMap<u64, Cell, Hasher>>>);

impl OnceCells {
    fn cell(&self, key: u64) -> Cell {
        // Keys are scrambled: any bits will do.
        let shard = &self.0[key as usize % self.0.len()];
        shard.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

impl Subject for OnceCells {
    const NAME: &'static str = "once-cell";
    const PACKAGE: &'static str = "tokio";
    const NOTE: &'static str =
        "`sync::OnceCell` a key, in `HashMap`s behind 64 mutexes: **map, no eviction**; loads only";
    const OPS: &'static [Op] = LOADS;

    fn with_capacity(_: usize) -> Self {
        Self((0..64).map(|_| Mutex::default()).collect())
    }

    fn get(&self, key: u64) -> Option<u64> {
        self.cell(key).get().copied()
    }

    fn insert(&self, key: u64, value: u64) {
        let _ = self.cell(key).set(value);
    }

    async fn get_with(&self, key: u64, init: impl Future<Output = u64>) -> u64 {
        *self.cell(key).get_or_init(|| init).await
    }

    fn resident(&self) -> Option<u64> {
        let len = |shard: &Mutex<HashMap<_, _, _>>| shard.lock().map_or(0, |map| map.len() as u64);
        Some(self.0.iter().map(len).sum())
    }
}

/// `mini_moka::sync::Cache`.
pub(super) struct MiniMoka(mini_moka::sync::Cache<u64, u64, Hasher>);

impl Subject for MiniMoka {
    const NAME: &'static str = "mini-moka";
    const PACKAGE: &'static str = "mini-moka";
    const NOTE: &'static str = "`sync::Cache`";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        Self(
            mini_moka::sync::Cache::builder()
                .max_capacity(capacity as u64)
                .build_with_hasher(Hasher::default()),
        )
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.insert(key, value);
    }

    fn settle(&self) {
        use mini_moka::sync::ConcurrentCacheExt as _;
        self.0.sync();
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.entry_count())
    }
}

/// `scc::HashCache`: 32-way set-associative, LRU within the set.
///
/// Its default capacity is 256, which no user would keep: it gets that of the
/// others, from the start, since it evicts from full sets rather than grow.
pub(super) struct Scc(scc::HashCache<u64, u64, Hasher>);

impl Scc {
    fn put(&self, key: u64, value: u64) {
        // `put_sync` is the quick way for a new key and leaves an old one alone.
        if self.0.put_sync(key, value).is_err() {
            if let Some(mut entry) = self.0.get_sync(&key) {
                entry.put(value);
            }
        }
    }
}

impl Subject for Scc {
    const NAME: &'static str = "scc";
    const PACKAGE: &'static str = "scc";
    const NOTE: &'static str = "`HashCache`, read by `get_sync` (exclusive, keeps LRU order); \
         evicts within a set of 32, rounds its capacity up to a power of two";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        Self(scc::HashCache::with_capacity_and_hasher(capacity, capacity, Hasher::default()))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get_sync(&key).map(|entry| *entry.get())
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.put(key, value);
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }
}

/// `scc::HashCache` read under its shared lock, which records no use.
pub(super) struct SccRead(Scc);

impl Subject for SccRead {
    const NAME: &'static str = "scc-read";
    const PACKAGE: &'static str = "scc";
    const NOTE: &'static str = "`HashCache`, read by `read_sync` (shared, records no use)";
    const OPS: &'static [Op] = &[Op::Get, Op::Mix];

    fn with_capacity(capacity: usize) -> Self {
        Self(Scc::with_capacity(capacity))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.0.read_sync(&key, |_, value| *value)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.put(key, value);
    }

    fn resident(&self) -> Option<u64> {
        Subject::resident(&self.0)
    }
}

/// TinyUFO: S3-FIFO with a TinyLFU admission over a concurrent map.
pub(super) struct TinyUfo(tinyufo::TinyUfo<u64, u64>);

impl Subject for TinyUfo {
    const NAME: &'static str = "tinyufo";
    const PACKAGE: &'static str = "TinyUFO";
    const NOTE: &'static str =
        "`new`, the fast form; own hasher (ahash), does not tell its entry count";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        Self(tinyufo::TinyUfo::new(capacity, capacity))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.get(&key)
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.put(key, value, 1);
    }

    fn resident(&self) -> Option<u64> {
        None
    }
}

/// `lru::LruCache` in a `std::sync::Mutex`: what many programs start with.
pub(super) struct MutexLru(Mutex<lru::LruCache<u64, u64, Hasher>>);

impl MutexLru {
    fn lock(&self) -> std::sync::MutexGuard<'_, lru::LruCache<u64, u64, Hasher>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Subject for MutexLru {
    const NAME: &'static str = "mutex-lru";
    const PACKAGE: &'static str = "lru";
    const NOTE: &'static str = "`LruCache` in a `std::sync::Mutex`; exact LRU";
    const OPS: &'static [Op] = SYNC;

    fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.try_into().unwrap_or(std::num::NonZeroUsize::MIN);
        Self(Mutex::new(lru::LruCache::with_hasher(capacity, Hasher::default())))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.lock().get(&key).copied()
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.lock().put(key, value);
    }

    fn resident(&self) -> Option<u64> {
        Some(self.lock().len() as u64)
    }
}

/// `papaya::HashMap`: no cache, but how quick a lock-free look-up can be.
pub(super) struct Papaya(papaya::HashMap<u64, u64, Hasher>);

impl Subject for Papaya {
    const NAME: &'static str = "papaya";
    const PACKAGE: &'static str = "papaya";
    const NOTE: &'static str = "`HashMap`: **map, no eviction**";
    const OPS: &'static [Op] = &[Op::Get, Op::Mix];

    fn with_capacity(capacity: usize) -> Self {
        Self(papaya::HashMap::with_capacity_and_hasher(capacity, Hasher::default()))
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u64> {
        self.0.pin().get(&key).copied()
    }

    #[inline]
    fn insert(&self, key: u64, value: u64) {
        self.0.pin().insert(key, value);
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.len() as u64)
    }
}

/// The same map, its guard held over a block of look-ups.
pub(super) struct PapayaGuard(Papaya);

impl Subject for PapayaGuard {
    const NAME: &'static str = "papaya-guard";
    const PACKAGE: &'static str = "papaya";
    const NOTE: &'static str = "`HashMap`: **map, no eviction**; one `pin()` over 64 gets";
    const OPS: &'static [Op] = &[Op::Get];

    fn with_capacity(capacity: usize) -> Self {
        Self(Papaya::with_capacity(capacity))
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
        let map = self.0.0.pin();
        keys.iter().map(|key| u64::from(map.get(key) == Some(&value_of(*key)))).sum()
    }

    fn resident(&self) -> Option<u64> {
        Subject::resident(&self.0)
    }
}
