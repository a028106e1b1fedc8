//! Caller-driven loads: `get_with`, `try_get_with` and the blocking calls.
//!
//! ```text
//!   Start ─ hit ──────────────────────────────→ Done
//!     │ └── nobody loads ──→ Lead ── result ──→ Done
//!     └──── somebody loads ─→ Wait ── result ─→ Done
//!                              │ ├── the lead is free: Lead
//!                              │ └── out of patience: the flight leaves the cache; Start
//!                              └──── a result that is not for us: Start
//! ```
//! Who leads polls its own future. A leader that is dropped gives the lead up, and whichever waiter is
//! polled next takes it, with its own future: nothing is handed to a waiter that may never be polled. A leader
//! that is neither polled nor dropped holds up those who wait for ever, and only them.

use super::patience::{Forever, Patience};
use super::shared::{Driver, Ended};
use super::{Listener, RECURSIVE, frames, note_wait, panic_message};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::flight::{Drive, Flight, FlightId, Outcome, Turn};
use crate::raw::graph::Edge;
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};
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

/// One caller.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct CallerLoad<'a, K, V, E, F, P = Forever>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    core: &'a Arc<Core<K, V>>,
    tag: Tag,
    counted: bool,
    stage: Stage<K>,
    /// From the load that this call is made in to the one that it leads or waits for.
    edge: Edge,
    /// Pinned with the struct; None once it has run.
    future: Option<F>,
    patience: P,
    /// Pinned with the struct; there while the call waits and has a limit.
    timer: Option<P::Timer>,
}

impl<'a, K, V, E, F> CallerLoad<'a, K, V, E, F>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, tag: Tag, key: K, future: F) -> Self {
        Self {
            core,
            tag,
            counted: false,
            stage: Stage::Start(key),
            edge: Edge::default(),
            future: Some(future),
            patience: Forever,
            timer: None,
        }
    }
}

impl<'a, K, V, E, F, P> CallerLoad<'a, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    /// The same call with another patience. Whoever has it by value has not pinned it, or need not have.
    pub(crate) fn with_patience<Q: Patience>(
        mut self,
        patience: Q,
    ) -> CallerLoad<'a, K, V, E, F, Q> {
        CallerLoad {
            core: self.core,
            tag: self.tag,
            counted: self.counted,
            stage: std::mem::replace(&mut self.stage, Stage::Done),
            edge: std::mem::take(&mut self.edge),
            future: self.future.take(),
            patience,
            timer: None,
        }
    }

    /// For debugging output.
    pub(crate) fn stage_name(&self) -> &'static str {
        match self.stage {
            Stage::Start(_) => "not begun",
            Stage::Lead(_) => "leading",
            Stage::Wait(..) => "waiting",
            Stage::Alone => "alone",
            Stage::Done => "done",
        }
    }

    /// The timer of a call that waits.
    pub(super) fn timer(&self) -> Option<&P::Timer> {
        self.timer.as_ref()
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
                assert!(!frames::is_polling(&seat.entered().flight.place), "{RECURSIVE}");
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

    /// Leaves the flight that this call waits for. Answers the key.
    fn stop_waiting(&mut self) -> K {
        let Stage::Wait(id, mut listener, key) = std::mem::replace(&mut self.stage, Stage::Done)
        else {
            unreachable!("called in Wait")
        };
        // The seat is left also if the destructor of a waker or a timer panics.
        let seat = self.seat(id);
        self.edge.erase();
        listener.leave(seat.entered());
        self.timer = None;
        drop(seat);
        key
    }

    /// One look at somebody else's load. Ready(None): the call goes on in another stage.
    fn wait(&mut self, id: FlightId, cx: &mut Context<'_>) -> Poll<Option<Result<V, StdArc<E>>>> {
        let entered = self.core.flights().entered(id);
        if note_wait(&mut self.edge, entered).is_err() {
            drop(self.stop_waiting());
            panic!("{RECURSIVE}");
        }
        // In its place: a waker's Clone may panic.
        let Stage::Wait(_, listener, _) = &mut self.stage else { unreachable!("called in Wait") };
        listener.listen(entered, cx.waker());
        let ended = if entered.flight.is_shared() {
            // A loader's future, which lives in the flight: any waiter drives it.
            Driver::new(self.core, id).poll_in_turn()
        } else {
            match entered.flight.try_lead() {
                Turn::Theirs => Poll::Pending,
                Turn::Mine => {
                    // The lead is this call's from here on, whatever the destructors of the waker, the key and
                    // the timer do.
                    let stage = std::mem::replace(&mut self.stage, Stage::Lead(id));
                    let Stage::Wait(_, mut listener, _key) = stage else {
                        unreachable!("as above")
                    };
                    listener.leave(entered);
                    self.timer = None;
                    return Poll::Ready(None);
                }
                Turn::Closed => Poll::Ready(Ended::of(entered)),
            }
        };
        let Poll::Ready(ended) = ended else {
            ready!(self.poll_timer(cx));
            // That flight and no newer one; and not if it has just ended.
            #[cfg(not(alru_mutation = "steal_any"))]
            self.core.end_flight(id);
            let key = self.stop_waiting();
            #[cfg(alru_mutation = "steal_any")]
            let _ = self.core.remove(&reclaim::pin(), self.tag, &key);
            self.stage = Stage::Start(key);
            return Poll::Ready(None);
        };
        let result = match ended {
            Ended::Value(value) => Some(Ok(value)),
            // Another error type is not for us.
            Ended::Failed(error) => error.downcast::<E>().ok().map(Err),
            Ended::Panicked(message) => {
                drop(self.stop_waiting());
                panic!("{message}");
            }
            // Of a loader's cache that was closed, too: this caller's future is its own affair.
            Ended::Closed | Ended::Recursive | Ended::Nothing | Ended::Abandoned => None,
        };
        let key = self.stop_waiting();
        match result {
            // Find out anew.
            None => self.stage = Stage::Start(key),
            // Before the return: a destructor that panicked after it would leak what is returned.
            Some(_) => drop(key),
        }
        Poll::Ready(result)
    }

    /// Ready when this call has waited long enough.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.timer.is_none() {
            self.timer = self.patience.begin();
        }
        match &mut self.timer {
            None => Poll::Pending,
            // SAFETY: pinned with `self`, and dropped in place.
            Some(timer) => unsafe { Pin::new_unchecked(timer) }.poll(cx).map(drop),
        }
    }

    /// One poll of this caller's own future.
    fn lead(&mut self, id: FlightId, cx: &mut Context<'_>) -> Poll<Result<V, StdArc<E>>> {
        let entered = self.core.flights().entered(id);
        if note_wait(&mut self.edge, entered).is_err() {
            // Others may lead it: this call keeps the lead until it is dropped, as any other that panics
            // outside its load.
            panic!("{RECURSIVE}");
        }
        let future = self.future.as_mut().expect("polled after completion");
        // SAFETY: `future` is pinned with `self`.
        let future = unsafe { Pin::new_unchecked(future) };
        let polled = catch_unwind(AssertUnwindSafe(|| {
            frames::within(&entered.flight.place, || future.poll(cx))
        }));
        if matches!(polled, Ok(Poll::Pending)) {
            return Poll::Pending;
        }
        self.stage = Stage::Done;
        self.edge.erase();
        let seat = self.seat(id);
        let settled = match polled {
            Ok(Poll::Ready(result)) => {
                // A panic in the value's Clone is the load's panic.
                catch_unwind(AssertUnwindSafe(|| self.settle(&seat, result)))
            }
            Ok(Poll::Pending) => unreachable!("returned above"),
            Err(payload) => Err(payload),
        };
        match settled {
            Ok(result) => {
                // A waker's panic is this caller's; all others have been woken then.
                seat.entered().flight.wake_closed();
                drop(seat);
                self.future = None;
                Poll::Ready(result)
            }
            Err(payload) => self.panicked(seat, payload),
        }
    }

    /// The leader's result: into the cache, and to the waiters.
    fn settle(&self, seat: &Seat<'_, K, V>, result: Result<V, E>) -> Result<V, StdArc<E>> {
        match result {
            Ok(value) => {
                super::settle(self.core, seat.entered(), &value);
                Ok(value)
            }
            Err(error) => {
                let error = StdArc::new(error);
                super::fail(self.core, seat.entered(), || Outcome::Failed(error.clone()));
                Err(error)
            }
        }
    }

    fn panicked(&self, seat: Seat<'_, K, V>, payload: Box<dyn Any + Send>) -> ! {
        let entered = seat.entered();
        if !entered.flight.is_closed() {
            super::fail(self.core, entered, || Outcome::Panicked(panic_message(&*payload)));
        }
        // The first panic counts.
        let _ = catch_unwind(AssertUnwindSafe(|| entered.flight.wake_closed()));
        drop(seat);
        resume_unwind(payload)
    }
}

impl<K, V, E, F, P> Future for CallerLoad<'_, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    type Output = Result<V, StdArc<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out of `future` and `timer`; they are polled through a Pin and dropped in
        // place.
        let this = unsafe { self.get_unchecked_mut() };
        if let Stage::Start(key) = &this.stage {
            // All that a hit costs. (Not twice counted: a call that starts over comes by `poll_load`.)
            if let Some(value) = this.core.read::<false, _>(this.tag, key) {
                this.stage = Stage::Done;
                return Poll::Ready(Ok(value));
            }
        }
        this.poll_load(cx)
    }
}

impl<K, V, E, F, P> CallerLoad<'_, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    /// A poll that is no plain hit. `self` is pinned.
    fn poll_load(&mut self, cx: &mut Context<'_>) -> Poll<Result<V, StdArc<E>>> {
        loop {
            match self.stage {
                Stage::Start(_) => {
                    let stage = std::mem::replace(&mut self.stage, Stage::Done);
                    let Stage::Start(key) = stage else { unreachable!("matched above") };
                    if let Some(value) = self.start(key) {
                        return Poll::Ready(Ok(value));
                    }
                }
                Stage::Lead(id) => return self.lead(id, cx),
                Stage::Wait(id, ..) => {
                    if let Some(result) = ready!(self.wait(id, cx)) {
                        return Poll::Ready(result);
                    }
                }
                Stage::Alone => {
                    let future = self.future.as_mut().expect("polled after completion");
                    // SAFETY: `future` is pinned with `self`.
                    let result = ready!(unsafe { Pin::new_unchecked(future) }.poll(cx));
                    self.stage = Stage::Done;
                    self.future = None;
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
        let mut panics = FirstPanic::default();
        panics.catch(|| self.0.give_up_lead());
        panics.resume_unless_panicking();
    }
}

impl<K, V, E, F, P> Drop for CallerLoad<'_, K, V, E, F, P>
where
    K: Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    F: Future<Output = Result<V, E>>,
    P: Patience,
{
    fn drop(&mut self) {
        match self.stage {
            Stage::Lead(id) => {
                self.stage = Stage::Done;
                self.edge.erase();
                let seat = self.seat(id);
                // The future goes first, so that it does not meet its successor; the lead goes also if that
                // panics, and the seat last.
                let _lead = Lead(seat.entered().flight);
                self.future = None;
            }
            Stage::Wait(..) => drop(self.stop_waiting()),
            Stage::Start(_) | Stage::Alone | Stage::Done => {}
        }
    }
}
