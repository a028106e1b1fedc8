//! The futures of `get_with` and `try_get_with`, by name.

use super::caller::{CallerLoad, Infallibly};
use super::patience::{Forever, Patience, StealAfter};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::sync::Arc;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, ready};

/// One call of [`Cache::get_with`](crate::Cache::get_with).
///
/// `F` is the caller's own future; `P` says how long it waits for somebody else's, by default for ever.
#[must_use = "futures do nothing unless polled"]
pub struct GetWith<'a, K, V, F, P = Forever>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    F: Future<Output = V>,
    P: Patience,
{
    load: CallerLoad<'a, K, V, Infallible, Infallibly<F>, P>,
}

/// One call of [`Cache::try_get_with`](crate::Cache::try_get_with).
///
/// `F` is the caller's own future; `P` says how long it waits for somebody else's, by default for ever.
#[must_use = "futures do nothing unless polled"]
pub struct TryGetWith<'a, K, V, E, F, P = Forever>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    load: CallerLoad<'a, K, V, E, F, P>,
}

impl<'a, K, V, F> GetWith<'a, K, V, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    F: Future<Output = V>,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, tag: Tag, key: K, future: F) -> Self {
        Self { load: CallerLoad::new(core, tag, key, Infallibly::new(future)) }
    }
}

impl<'a, K, V, E, F> TryGetWith<'a, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, tag: Tag, key: K, future: F) -> Self {
        Self { load: CallerLoad::new(core, tag, key, future) }
    }
}

impl<'a, K, V, F, P> GetWith<'a, K, V, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    F: Future<Output = V>,
    P: Patience,
{
    /// Waits for somebody else's load only until `timer` completes, then goes on without it.
    ///
    /// A leader that is dropped is succeeded by whoever waits. A leader that is kept alive and never polled
    /// again is not: nobody else can poll its future. This is the way out. Two calls for one key in one
    /// task, of which the first was polled once and is kept while the second is awaited, need it too.
    ///
    /// `timer` makes the timer, any future at all, such as `|| tokio::time::sleep(SECOND)`; it is made anew
    /// each time this call begins to wait for a load that another caller leads. When it completes first, the
    /// load it was for is taken out of the cache, if it is still there, and this call starts over: it finds a
    /// value, waits for a newer load, or leads one of its own, whose result is stored. So of any number of
    /// callers that lose patience with one load, one runs its own, and each stuck leader costs one timer. A
    /// load that was taken out of the cache runs on: its leader, if it is polled again, and those who still
    /// wait for it get its result, which is not stored. It touches no newer entry. A load of a
    /// [`LoadingCache`](crate::LoadingCache)'s loader, which this call drives while it waits, is left in the same way:
    /// so take a time that loads don't.
    ///
    /// Costs nothing to who finds the value, and a timer to who waits. Replaces an earlier timer.
    ///
    /// ```
    /// use alru::Cache;
    /// use std::{future::{Future, pending}, pin::pin, task::{Context, Waker}, time::Duration};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache: Cache<u32, &str> = Cache::new(100);
    /// // Polled once, kept, and not polled again.
    /// let mut stuck = pin!(cache.get_with(1, pending()));
    /// assert!(stuck.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    ///
    /// let sleep = || tokio::time::sleep(Duration::from_millis(10));
    /// assert_eq!(cache.get_with(1, async { "fresh" }).steal_after(sleep).await, "fresh");
    /// assert_eq!(cache.get(&1), Some("fresh"));
    /// # });
    /// ```
    ///
    /// # Panics
    /// The future panics if `timer`, or the future that it makes, does.
    pub fn steal_after<M, T>(self, timer: M) -> GetWith<'a, K, V, F, StealAfter<M>>
    where
        M: FnMut() -> T,
        T: Future,
    {
        GetWith { load: self.load.with_patience(StealAfter::new(timer)) }
    }
}

impl<'a, K, V, E, F, P> TryGetWith<'a, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    /// As [`GetWith::steal_after`].
    ///
    /// # Panics
    /// As there.
    pub fn steal_after<M, T>(self, timer: M) -> TryGetWith<'a, K, V, E, F, StealAfter<M>>
    where
        M: FnMut() -> T,
        T: Future,
    {
        TryGetWith { load: self.load.with_patience(StealAfter::new(timer)) }
    }
}

impl<K, V, F, P> Future for GetWith<'_, K, V, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    F: Future<Output = V>,
    P: Patience,
{
    type Output = V;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<V> {
        // SAFETY: structural: the field is pinned when the struct is, and never moved out.
        let load = unsafe { self.map_unchecked_mut(|s| &mut s.load) };
        Poll::Ready(match ready!(load.poll(cx)) {
            Ok(value) => value,
            Err(never) => match *never {},
        })
    }
}

impl<K, V, E, F, P> Future for TryGetWith<'_, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    type Output = Result<V, StdArc<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: as above.
        unsafe { self.map_unchecked_mut(|s| &mut s.load) }.poll(cx)
    }
}

impl<K, V, F, P> fmt::Debug for GetWith<'_, K, V, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    F: Future<Output = V>,
    P: Patience,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetWith").field("stage", &self.load.stage_name()).finish_non_exhaustive()
    }
}

impl<K, V, E, F, P> fmt::Debug for TryGetWith<'_, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryGetWith").field("stage", &self.load.stage_name()).finish_non_exhaustive()
    }
}
