//! Blocking callers: threads that wait for loads.
//!
//! A blocking call is a [`CallerLoad`] whose future runs the caller's closure at its first poll, polled by the
//! calling thread, which parks in between. So it joins the same flights as async callers, by the same rules.
//!
//! The load that it waits for may be led by a task of this very thread, or by one that nobody polls: so no
//! blocking call waits for ever unless it was told to. After its patience with one load it takes that out of the
//! cache and goes on without it, whoever leads it.

use super::caller::CallerLoad;
use super::patience::Patience;
use crate::error::TimedOut;
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::sync::{Arc, Parker};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A limit on the time that passes; None: no limit.
fn deadline(limit: Duration) -> Option<Instant> {
    // `Duration::MAX`, and whatever else is beyond the clock, is for ever.
    if limit == Duration::MAX { None } else { Instant::now().checked_add(limit) }
}

/// The patience of a thread, which looks at the clock by itself: nothing wakes it at the deadline.
struct Clock(Duration);

pub(super) struct Deadline(Instant);

impl Future for Deadline {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if Instant::now() >= self.0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Patience for Clock {
    type Timer = Deadline;

    fn begin(&mut self) -> Option<Deadline> {
        deadline(self.0).map(Deadline)
    }
}

/// Finds the value, waits for the load under way, or runs `init`. Waits `patience` for one load, and `timeout` in
/// all.
pub(crate) fn get<K, V, E>(
    core: &Arc<Core<K, V>>,
    tag: Tag,
    key: K,
    patience: Duration,
    timeout: Duration,
    init: impl FnOnce() -> Result<V, E>,
) -> Result<Result<V, StdArc<E>>, TimedOut>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let mut init = Some(init);
    // Ready at its first poll, so it is polled once, by the caller that leads.
    let future = poll_fn(move |_| Poll::Ready(init.take().expect("polled once")()));
    let mut load = pin!(CallerLoad::new(core, tag, key, future).with_patience(Clock(patience)));
    // A hit, and a call that leads, need no waker.
    if let Poll::Ready(result) = load.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        return Ok(result);
    }
    let until = deadline(timeout);
    let parked = Parked::new();
    let waker = Waker::from(parked.parker.clone());
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = load.as_mut().poll(&mut cx) {
            return Ok(result);
        }
        if until.is_some_and(|u| Instant::now() >= u) {
            return Err(TimedOut);
        }
        let steal_at = load.timer().map(|t| t.0);
        parked.park(match (until, steal_at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        });
    }
}

/// This thread, parking for as long as a call takes.
struct Parked {
    parker: StdArc<Parker>,
    /// A park token may have been used up, and it may have been somebody else's: two that come together are one.
    owes_token: std::cell::Cell<bool>,
}

impl Parked {
    fn new() -> Self {
        Self { parker: StdArc::new(Parker::current()), owes_token: std::cell::Cell::new(false) }
    }

    /// Until the waker wakes, or the time has come.
    fn park(&self, until: Option<Instant>) {
        while !self.parker.take_wake() {
            let left = match until {
                None => None,
                Some(until) => match until.checked_duration_since(Instant::now()) {
                    None | Some(Duration::ZERO) => return,
                    left => left,
                },
            };
            Parker::park(left);
            self.owes_token.set(true);
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        // Other code of this thread may park as well, and wait for a token that came during this call. One too
        // many does no harm.
        if self.owes_token.get() {
            self.parker.unpark();
        }
    }
}
