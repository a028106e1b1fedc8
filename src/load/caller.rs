//! Caller-driven loads: `get_with` and `try_get_with`.
//!
//! ```text
//!   Start ─ hit ──────────────────────────────→ Done
//!     │ └── nobody loads ──→ Lead ── result ──→ Done
//!     └──── somebody loads ─→ Wait ── result ─→ Done
//!                              │ └── the lead is free: Lead
//!                              └──── a result that is not for us: Start
//! ```
//! Who leads polls its own future. A leader that is dropped gives the lead up, and whichever waiter is
//! polled next takes it, with its own future: nothing is handed to a waiter that may never be polled.

use super::shared::{Driver, Ended};
use super::{Listener, LoadName, frames, panic_message};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::flight::{Drive, Flight, FlightId, Outcome, Turn};
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::stats::Counter;
use crate::sync::Arc;
use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, ready};

/// A future that cannot fail, as one that could.
pub(crate) struct Infallibly<F>(F);

impl<F> Infallibly<F> {
    pub(crate) fn new(future: F) -> Self {
        Self(future)
    }
}

impl<F: Future> Future for Infallibly<F> {
    type Output = Result<F::Output, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: structural: the field is pinned when the struct is, and never moved out.
        unsafe { self.map_unchecked_mut(|s| &mut s.0) }.poll(cx).map(Ok)
    }
}

enum Stage<K> {
    Start(K),
    /// In the flight, with the lead.
    Lead(FlightId),
    /// In the flight, waiting for its result or for the lead.
    Wait(FlightId, Listener, K),
    /// No place in the cache: the future runs for this caller alone.
    Alone,
    Done,
}

/// One caller of `try_get_with`.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct CallerLoad<'a, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    core: &'a Arc<Core<K, V>>,
    tag: Tag,
    counted: bool,
    stage: Stage<K>,
    /// Pinned with the struct; None once it has run.
    future: Option<F>,
}

impl<'a, K, V, E, F> CallerLoad<'a, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, tag: Tag, key: K, future: F) -> Self {
        Self { core, tag, counted: false, stage: Stage::Start(key), future: Some(future) }
    }

    fn name(&self, id: FlightId) -> LoadName {
        (Arc::as_ptr(self.core).cast(), id)
    }

    /// Takes the seat back from the stage that holds it.
    fn seat(&self, id: FlightId) -> Seat<'a, K, V> {
        // SAFETY: parked when the stage was entered; each caller replaces the stage in the same breath.
        unsafe { self.core.resume_seat(id) }
    }

    /// Counts the call once, however often it starts over.
    fn count(&mut self, guard: &reclaim::Guard, counter: Counter) {
        if !std::mem::replace(&mut self.counted, true) {
            self.core.count(guard, counter);
        }
    }

    fn start(&mut self, key: K) -> Option<V> {
        let mut guard = reclaim::pin();
        let core = self.core;
        match core.admit(&mut guard, self.tag, key, Drive::Caller) {
            Admission::Hit(slot) => {
                core.touch(slot);
                // SAFETY: `admit` read READY under this guard.
                let value = unsafe { slot.value() }.clone();
                self.count(&guard, Counter::Hits);
                return Some(value);
            }
            Admission::Join(seat, key) => {
                let id = seat.entered().id;
                assert!(
                    !frames::is_polling(self.name(id)),
                    "recursive load: the future of get_with or try_get_with asks for its own key"
                );
                self.count(&guard, Counter::Hits);
                self.stage = Stage::Wait(seat.park(), Listener::new(), key);
            }
            Admission::Lead(seat) => {
                self.count(&guard, Counter::Misses);
                self.stage = Stage::Lead(seat.park());
            }
            Admission::Refused(_) => {
                self.count(&guard, Counter::Misses);
                self.stage = Stage::Alone;
            }
        }
        None
    }

    /// The leader's result: into the cache, and to the waiters.
    fn settle(&self, seat: &Seat<'_, K, V>, result: Result<V, E>) -> Result<V, StdArc<E>> {
        let entered = seat.entered();
        match result {
            Ok(value) => {
                let _ = self.core.complete(entered, || value.clone());
                if !entered.flight.close_alone() {
                    let outcome = Outcome::Value(value.clone());
                    // SAFETY: this caller holds the lead and closes once.
                    unsafe { entered.flight.close_with(outcome) };
                }
                Ok(value)
            }
            Err(error) => {
                let error = StdArc::new(error);
                self.fail(seat, || Outcome::Failed(error.clone()));
                Err(error)
            }
        }
    }

    fn fail(&self, seat: &Seat<'_, K, V>, outcome: impl FnOnce() -> Outcome<V>) {
        let entered = seat.entered();
        self.core.count(&reclaim::pin(), Counter::LoadFailures);
        // Out of the cache first: who comes after the error starts a load of its own.
        self.core.end_flight(entered.id);
        if !entered.flight.close_alone() {
            // SAFETY: this caller holds the lead, and `fail` is called for a flight that is open.
            unsafe { entered.flight.close_with(outcome()) };
        }
    }

    fn panicked(&self, seat: Seat<'_, K, V>, payload: Box<dyn Any + Send>) -> ! {
        let flight = seat.entered().flight;
        if !flight.is_closed() {
            self.fail(&seat, || Outcome::Panicked(panic_message(&*payload)));
        }
        // The first panic counts.
        let _ = catch_unwind(AssertUnwindSafe(|| flight.wake_closed()));
        drop(seat);
        resume_unwind(payload)
    }
}

impl<K, V, E, F> Future for CallerLoad<'_, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    type Output = Result<V, StdArc<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out of `future`; it is polled through a Pin and dropped in place.
        let this = unsafe { self.get_unchecked_mut() };
        if let Stage::Start(key) = &this.stage {
            // All that a hit costs. (Not twice counted: a call that starts over comes by `poll_load`.)
            if let Some(value) = this.core.read(this.tag, key, |_| {}) {
                this.stage = Stage::Done;
                return Poll::Ready(Ok(value));
            }
        }
        this.poll_load(cx)
    }
}

impl<K, V, E, F> CallerLoad<'_, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    /// A poll that is no plain hit. `self` is pinned.
    fn poll_load(&mut self, cx: &mut Context<'_>) -> Poll<Result<V, StdArc<E>>> {
        let this = self;
        loop {
            match std::mem::replace(&mut this.stage, Stage::Done) {
                Stage::Start(key) => {
                    if let Some(value) = this.start(key) {
                        return Poll::Ready(Ok(value));
                    }
                }
                Stage::Lead(id) => {
                    this.stage = Stage::Lead(id);
                    let name = this.name(id);
                    let future = this.future.as_mut().expect("polled after completion");
                    // SAFETY: `future` is pinned with `self`.
                    let future = unsafe { Pin::new_unchecked(future) };
                    let polled =
                        catch_unwind(AssertUnwindSafe(|| frames::within(name, || future.poll(cx))));
                    if matches!(polled, Ok(Poll::Pending)) {
                        return Poll::Pending;
                    }
                    this.stage = Stage::Done;
                    let seat = this.seat(id);
                    let settled = match polled {
                        Ok(Poll::Ready(result)) => {
                            // A panic in the value's Clone is the load's panic.
                            catch_unwind(AssertUnwindSafe(|| this.settle(&seat, result)))
                        }
                        Ok(Poll::Pending) => unreachable!("returned above"),
                        Err(payload) => Err(payload),
                    };
                    match settled {
                        Ok(result) => {
                            // A waker's panic is this caller's; all others have been woken then.
                            seat.entered().flight.wake_closed();
                            drop(seat);
                            this.future = None;
                            return Poll::Ready(result);
                        }
                        Err(payload) => this.panicked(seat, payload),
                    }
                }
                Stage::Wait(id, listener, key) => {
                    let entered = this.core.flights().entered(id);
                    // Back in its place first: a waker's Clone may panic.
                    this.stage = Stage::Wait(id, listener, key);
                    let Stage::Wait(_, listener, _) = &mut this.stage else { unreachable!() };
                    listener.listen(entered, cx.waker());
                    if entered.flight.is_shared() {
                        // A loader's future, which lives in the flight: any waiter drives it.
                        let Poll::Ready(ended) = Driver::new(this.core, id).poll_in_turn() else {
                            return Poll::Pending;
                        };
                        let stage = std::mem::replace(&mut this.stage, Stage::Done);
                        let Stage::Wait(_, mut listener, key) = stage else { unreachable!() };
                        let seat = this.seat(id);
                        listener.leave(entered);
                        drop(seat);
                        match ended {
                            Ended::Value(value) => return Poll::Ready(Ok(value)),
                            Ended::Failed(error) => {
                                if let Ok(error) = error.downcast::<E>() {
                                    return Poll::Ready(Err(error));
                                }
                            }
                            Ended::Panicked(message) => panic!("{message}"),
                            // The loader's cache was closed: this caller's future is its own affair.
                            Ended::Closed | Ended::Nothing | Ended::Abandoned => {}
                        }
                        this.stage = Stage::Start(key);
                        continue;
                    }
                    let turn = entered.flight.try_lead();
                    if turn == Turn::Theirs {
                        return Poll::Pending;
                    }
                    let stage = std::mem::replace(&mut this.stage, Stage::Done);
                    let Stage::Wait(_, mut listener, key) = stage else { unreachable!() };
                    match turn {
                        Turn::Theirs => unreachable!("returned above"),
                        Turn::Mine => {
                            listener.leave(entered);
                            this.stage = Stage::Lead(id);
                        }
                        Turn::Closed => {
                            listener.leave(entered);
                            let seat = this.seat(id);
                            // SAFETY: in the flight until `seat` is dropped.
                            match unsafe { entered.flight.outcome() } {
                                Some(Outcome::Value(value)) => {
                                    let value = value.clone();
                                    drop(seat);
                                    return Poll::Ready(Ok(value));
                                }
                                Some(Outcome::Failed(error)) => {
                                    let error = error.clone().downcast::<E>();
                                    drop(seat);
                                    if let Ok(error) = error {
                                        return Poll::Ready(Err(error));
                                    }
                                }
                                Some(Outcome::Panicked(message)) => {
                                    let message = message.clone();
                                    drop(seat);
                                    panic!("{message}");
                                }
                                None => drop(seat),
                            }
                            // Not for us: find out anew.
                            this.stage = Stage::Start(key);
                        }
                    }
                }
                Stage::Alone => {
                    this.stage = Stage::Alone;
                    let future = this.future.as_mut().expect("polled after completion");
                    // SAFETY: `future` is pinned with `self`.
                    let result = ready!(unsafe { Pin::new_unchecked(future) }.poll(cx));
                    this.stage = Stage::Done;
                    this.future = None;
                    return Poll::Ready(result.map_err(StdArc::new));
                }
                Stage::Done => panic!("polled after completion"),
            }
        }
    }
}

/// Gives the lead up when dropped.
struct Lead<'a, V>(&'a Flight<V>);

impl<V> Drop for Lead<'_, V> {
    fn drop(&mut self) {
        self.0.give_up_lead();
    }
}

impl<K, V, E, F> Drop for CallerLoad<'_, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Lead(id) => {
                let seat = self.seat(id);
                // The future goes first, so that it does not meet its successor; the lead goes also if that
                // panics, and the seat last.
                let _lead = Lead(seat.entered().flight);
                self.future = None;
            }
            Stage::Wait(id, mut listener, _) => {
                let seat = self.seat(id);
                listener.leave(seat.entered());
            }
            Stage::Start(_) | Stage::Alone | Stage::Done => {}
        }
    }
}
