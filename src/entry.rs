//! One key's entry: inserts, updates and removals that depend on what is there.

use crate::cache::Cache;
use crate::load::compute::ComputeLoad;
use crate::load::get_with::{GetWith, TryGetWith};
use crate::op::{CompResult, Op};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};

/// The entry of a key, there or not: see [`Cache::entry`].
///
/// # Atomicity
///
/// Each method reads the entry and changes it as one step: between the two nobody else's insert, removal or load
/// comes in. No update is lost, and none is dropped in silence: a value for which there is no place comes back
/// as [`CompResult::Bypassed`].
///
/// To that end a closure may **run more than once**: if somebody else changes the entry while it runs, what it
/// computed is dropped, and it runs again with the newer value. So it should have no effect but its result. One
/// that writes its own key's entry is run again for ever.
///
/// # Loads and lifetimes
///
/// A load under way is no value for the synchronous methods: a [`Put`](Op::Put) or [`Remove`](Op::Remove) detaches
/// it, as [`Cache::insert`] and [`Cache::remove`] do. The async ones wait for it first. An expired value is none. A
/// computed value's time to live counts from when it takes its place.
///
/// # Statistics
///
/// The `or_` methods count as hits and misses, as look-ups do; the `and_` methods as neither.
///
/// # User code
///
/// Synchronous closures run while the calling thread is pinned, as under [`Cache::pin`]; async ones with nothing
/// held. If one panics the entry stays as it was.
#[must_use = "an entry does nothing by itself"]
pub struct Entry<'a, K, V, S = crate::DefaultHasher> {
    cache: &'a Cache<K, V, S>,
    key: K,
}

impl<K: fmt::Debug, V, S> fmt::Debug for Entry<'_, K, V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("key", &self.key).finish_non_exhaustive()
    }
}

impl<'a, K, V, S> Entry<'a, K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    pub(crate) fn new(cache: &'a Cache<K, V, S>, key: K) -> Self {
        Self { cache, key }
    }

    /// The entry's value; `value` if there was none, which takes its place then: also that of a load under way,
    /// which is detached. To wait for that, see [`or_insert_with`](Self::or_insert_with).
    ///
    /// ```
    /// let cache = alru::Cache::new(100);
    /// assert_eq!(cache.entry("a").or_insert(1), 1);
    /// assert_eq!(cache.entry("a").or_insert(2), 1);
    /// ```
    pub fn or_insert(self, value: V) -> V {
        let cache = self.cache;
        if let Some(present) = cache.get(&self.key) {
            return present;
        }
        let put = self.and_compute_with(|present| match present {
            Some(_) => Op::Nop,
            None => Op::Put(value.clone()),
        });
        put.into_value().unwrap_or(value)
    }

    /// The entry's value; that of `init` if there was none, which takes its place then. The same as
    /// [`Cache::get_or_insert_with`]: blocks while another caller loads the key, and is shared with all who ask for
    /// it meanwhile, and loses patience with a load as it does.
    ///
    /// # Panics
    /// As there.
    pub fn or_insert_with(self, init: impl FnOnce() -> V) -> V {
        self.cache.get_or_insert_with(self.key, init)
    }

    /// As [`or_insert_with`](Self::or_insert_with), with the type's default.
    pub fn or_default(self) -> V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }

    /// Puts what `update` makes of the value, or of its absence, in its place.
    ///
    /// ```
    /// let cache = alru::Cache::new(100);
    /// let count = |word: &'static str| cache.entry(word).and_upsert_with(|n| n.map_or(1, |n| n + 1));
    /// assert_eq!(count("a").into_value(), Some(1));
    /// assert_eq!(count("a").into_value(), Some(2));
    /// ```
    ///
    /// Answers [`Inserted`](CompResult::Inserted), [`ReplacedWith`](CompResult::ReplacedWith) or
    /// [`Bypassed`](CompResult::Bypassed). `update` may run more than once: see [`Entry`].
    ///
    /// # Panics
    /// If `update` does, or a destructor as in [`Cache::insert`].
    pub fn and_upsert_with(self, mut update: impl FnMut(Option<&V>) -> V) -> CompResult<V> {
        self.and_compute_with(|present| Op::Put(update(present)))
    }

    /// Does with the entry what `decide` says.
    ///
    /// ```
    /// use alru::{Cache, CompResult, Op};
    ///
    /// let cache: Cache<&str, u32> = Cache::new(100);
    /// let take_one = || cache.entry("stock").and_compute_with(|n| match n {
    ///     None => Op::Nop,
    ///     Some(1) => Op::Remove,
    ///     Some(n) => Op::Put(n - 1),
    /// });
    /// cache.insert("stock", 2);
    /// assert_eq!(take_one(), CompResult::ReplacedWith(1));
    /// assert_eq!(take_one(), CompResult::Removed(1));
    /// assert_eq!(take_one(), CompResult::StillNone);
    /// ```
    ///
    /// `decide` may run more than once: see [`Entry`].
    ///
    /// # Panics
    /// If `decide` does, or a destructor as in [`Cache::insert`].
    pub fn and_compute_with(self, mut decide: impl FnMut(Option<&V>) -> Op<V>) -> CompResult<V> {
        match self.and_try_compute_with(|present| Ok::<_, Infallible>(decide(present))) {
            Ok(result) => result,
            Err(never) => match never {},
        }
    }

    /// As [`and_compute_with`](Self::and_compute_with), for decisions that can fail.
    ///
    /// # Errors
    /// Those of `decide`; the entry is as it was then.
    ///
    /// # Panics
    /// As [`and_compute_with`](Self::and_compute_with).
    pub fn and_try_compute_with<E>(
        self,
        decide: impl FnMut(Option<&V>) -> Result<Op<V>, E>,
    ) -> Result<CompResult<V>, E> {
        let cache = self.cache;
        cache.core().compute(cache.tag(&self.key), self.key, decide)
    }

    /// The entry's value, or that of `init`, which is shared by all who ask for the key meanwhile:
    /// [`Cache::get_with`] by another name.
    ///
    /// # Cancel safety
    /// As [`Cache::get_with`].
    ///
    /// # Panics
    /// As [`Cache::get_with`].
    pub fn or_insert_with_async<F>(self, init: F) -> GetWith<'a, K, V, F>
    where
        F: Future<Output = V>,
    {
        self.cache.get_with(self.key, init)
    }

    /// As [`or_insert_with_async`](Self::or_insert_with_async), for an `init` that can fail:
    /// [`Cache::try_get_with`] by another name.
    ///
    /// # Errors
    /// As [`Cache::try_get_with`].
    ///
    /// # Cancel safety
    /// As [`Cache::get_with`].
    ///
    /// # Panics
    /// As [`Cache::get_with`].
    pub fn or_try_insert_with_async<E, F>(self, init: F) -> TryGetWith<'a, K, V, E, F>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<V, E>>,
    {
        self.cache.try_get_with(self.key, init)
    }

    /// As [`and_upsert_with`](Self::and_upsert_with), by a future.
    ///
    /// Who drives it, how often it runs and what a drop does is as for
    /// [`and_try_compute_with_async`](Self::and_try_compute_with_async).
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
    /// let cache = alru::Cache::new(100);
    /// let count = || cache.entry("a").and_upsert_with_async(|n| async move { n.map_or(1, |n| n + 1) });
    /// assert_eq!(count().await.into_value(), Some(1));
    /// assert_eq!(count().await.into_value(), Some(2));
    /// # })
    /// ```
    ///
    /// # Cancel safety
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn and_upsert_with_async<D, F>(
        self,
        mut update: D,
    ) -> impl Future<Output = CompResult<V>> + use<'a, K, V, S, D, F>
    where
        K: Clone,
        D: FnMut(Option<V>) -> F,
        F: Future<Output = V>,
    {
        self.and_compute_with_async(move |present| {
            let updated = update(present);
            async move { Op::Put(updated.await) }
        })
    }

    /// As [`and_compute_with`](Self::and_compute_with), by a future.
    ///
    /// Who drives it, how often it runs and what a drop does is as for
    /// [`and_try_compute_with_async`](Self::and_try_compute_with_async).
    ///
    /// # Cancel safety
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn and_compute_with_async<D, F>(
        self,
        mut decide: D,
    ) -> impl Future<Output = CompResult<V>> + use<'a, K, V, S, D, F>
    where
        K: Clone,
        D: FnMut(Option<V>) -> F,
        F: Future<Output = Op<V>>,
    {
        let computed = self.and_try_compute_with_async(move |present| {
            let decided = decide(present);
            async move { Ok::<_, Infallible>(decided.await) }
        });
        async move {
            match computed.await {
                Ok(result) => result,
                Err(never) => match never {},
            }
        }
    }

    /// Does with the entry what the future of `decide` says, one such future a key at a time.
    ///
    /// Async computes of a key **queue**: while one runs the others wait, and the present value stays readable. A
    /// load under way is awaited first. If there is no value the future is the key's load: callers of
    /// [`Cache::get_with`] wait for it, get the value that it puts, and start over if it puts none.
    ///
    /// If a synchronous write, an eviction or an expiry changes the entry while the future runs, what it came to
    /// is dropped, and `decide` is called again with the newer value; so `decide` can be called more than once,
    /// and a key that is written all the time keeps it busy.
    ///
    /// The future may borrow, and need not be `Send`. The task that polls this future polls it. **A compute that is
    /// alive and never polled holds up the others of its key**, by definition, and callers who wait for it as a
    /// load, unless they [steal](GetWith::steal_after) it; all else goes on. In the same way a caller of `get_with` that
    /// is never polled again holds up the computes that wait for its load. (There are 4,096 places for queues, by the
    /// keys' hashes. If two keys that are computed at one time compete for one, the later one's computes wait for each
    /// other without it, and then a write from elsewhere may let a second one of the key begin while the first still
    /// runs. No update is lost then either.)
    ///
    /// # Errors
    /// Those of the future; the entry is as it was then.
    ///
    /// # Cancel safety
    /// Safe to drop at any point: the entry stays as it was, and the next in the queue goes on.
    ///
    /// # Panics
    /// If `decide` or its future panics; the entry stays as it was, and the next goes on. If they compute
    /// their own key, or load it when it has no value, or are part of a load of it, or would wait for themselves by
    /// way of other loads: see [`Cache::get_with`].
    pub fn and_try_compute_with_async<E, D, F>(
        self,
        decide: D,
    ) -> impl Future<Output = Result<CompResult<V>, E>> + use<'a, K, V, S, E, D, F>
    where
        K: Clone,
        D: FnMut(Option<V>) -> F,
        F: Future<Output = Result<Op<V>, E>>,
    {
        let cache = self.cache;
        ComputeLoad::new(cache.core(), cache.tag(&self.key), self.key, decide)
    }
}
