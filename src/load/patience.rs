//! How long a call waits for a load that somebody else leads.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A call's patience with other callers' loads. Not to be implemented outside this crate, which is why it is
/// not exported: name [`Forever`] or [`StealAfter`].
pub trait Patience {
    /// Completes when the call has waited long enough.
    type Timer: Future;

    /// The call begins to wait for a load that somebody else leads; None: for ever.
    fn begin(&mut self) -> Option<Self::Timer>;
}

/// Waits for as long as it takes: what a call does that was not told otherwise. Takes no room in a future.
#[derive(Debug, Clone, Copy, Default)]
pub struct Forever;

/// The timer of who needs none.
#[derive(Debug)]
pub enum NoTimer {}

impl Future for NoTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        match *self {}
    }
}

impl Patience for Forever {
    type Timer = NoTimer;

    fn begin(&mut self) -> Option<NoTimer> {
        None
    }
}

/// Waits for one timer a load, then takes the load out of the cache; see
/// [`GetWith::steal_after`](crate::GetWith::steal_after).
#[derive(Clone)]
pub struct StealAfter<M>(M);

impl<M> StealAfter<M> {
    pub(crate) fn new(timer: M) -> Self {
        Self(timer)
    }
}

impl<M> std::fmt::Debug for StealAfter<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StealAfter").finish_non_exhaustive()
    }
}

impl<M, Timer> Patience for StealAfter<M>
where
    M: FnMut() -> Timer,
    Timer: Future,
{
    type Timer = Timer;

    fn begin(&mut self) -> Option<Timer> {
        Some((self.0)())
    }
}
