//! Shared-driven loads: one future that lives in the flight, polled by whichever waiter is polled.
//!
//! The future is `Send + 'static`, so it does not belong to the caller that began it: any waiter drives it,
//! on its own task, and it lives until it is done or the last waiter has gone. Its waker wakes every waiter
//! that is not awake yet, so a waiter that is never polled again holds nobody up.

use super::{Listener, frames, note_wait, panic_message};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::flight::{Drive, Entered, FlightId, Load, Outcome, Released, Resident, Turn};
use crate::raw::graph::Edge;
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc as StdArc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};

/// How a shared load ended for one waiter.
pub(crate) enum Ended<V> {
    Value(V),
    Failed(StdArc<dyn Any + Send + Sync>),
    Panicked(StdArc<str>),
    Closed,
    /// It would wait for itself; the load goes on without this waiter.
    Recursive,
}

impl<V: Clone> Ended<V> {
    fn of(outcome: Option<&Outcome<V>>) -> Self {
        match outcome {
            Some(Outcome::Value(value)) => Self::Value(value.clone()),
            Some(Outcome::Failed(error)) => Self::Failed(error.clone()),
            Some(Outcome::Panicked(message)) => Self::Panicked(message.clone()),
            None => Self::Closed,
        }
    }
}

/// What the future in a flight is polled with. Wakers may be kept for ever: this one holds the core's memory,
/// but not its contents, which go with the last handle.
struct LoadWaker<K, V> {
    core: Arc<Core<K, V>>,
    id: FlightId,
    /// The handle. Taken for the time of a wake, because a seat must not outlive it.
    handle: Handle,
}

/// A handle of the cache, whatever its type; gone, or kept from going while it is upgraded.
pub(crate) type Handle = Weak<dyn Any + Send + Sync>;

impl<K, V> LoadWaker<K, V>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn notify(&self) {
        // Without a handle there are no waiters. Dropped after the seat.
        let Some(_handle) = self.handle.upgrade() else { return };
        if let Some(entered) = self.core.flights().enter(self.id) {
            // SAFETY: entered above, and the seat leaves once.
            let _seat = unsafe { self.core.resume_seat(self.id) };
            if entered.flight.notify() {
                entered.flight.waiters.wake_all();
            }
        }
    }
}

impl<K, V> Wake for LoadWaker<K, V>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn wake(self: StdArc<Self>) {
        self.notify();
    }

    fn wake_by_ref(self: &StdArc<Self>) {
        self.notify();
    }
}

/// A seat in a shared flight, kept across polls.
pub(crate) struct SharedWaiter<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    core: Arc<Core<K, V>>,
    id: FlightId,
    listener: Listener,
    /// From the load that this call is made in.
    edge: Edge,
}

impl<K, V> SharedWaiter<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn new(core: &Arc<Core<K, V>>, seat: Seat<'_, K, V>) -> Self {
        Self {
            core: core.clone(),
            id: seat.park(),
            listener: Listener::new(),
            edge: Edge::default(),
        }
    }

    /// One more waiter of each open flight.
    pub(crate) fn of_all(core: &Arc<Core<K, V>>) -> Vec<Self> {
        let waiter = |entered: Entered<'_, V>| Self {
            core: core.clone(),
            id: entered.id,
            listener: Listener::new(),
            edge: Edge::default(),
        };
        core.flights().enter_each().map(waiter).collect()
    }

    fn entered(&self) -> Entered<'_, V> {
        self.core.flights().entered(self.id)
    }

    /// Puts the future in place. The caller holds POLLING, from having begun the flight.
    fn install(&self, load: Load<V>, handle: Handle) {
        let waker = LoadWaker { core: self.core.clone(), id: self.id, handle };
        let waker = Waker::from(StdArc::new(waker));
        // SAFETY: holds POLLING.
        unsafe { self.entered().flight.set_future(Resident { load, waker }) };
    }

    /// Waits for the end, driving the load whenever nobody else does.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended<V>> {
        let entered = self.core.flights().entered(self.id);
        if note_wait(&mut self.edge, entered).is_err() {
            return Poll::Ready(Ended::Recursive);
        }
        self.listener.listen(entered, cx.waker());
        match entered.flight.try_poll() {
            Turn::Mine => self.drive(),
            Turn::Theirs => Poll::Pending,
            // SAFETY: in the flight until `self` is dropped.
            Turn::Closed => Poll::Ready(Ended::of(unsafe { entered.flight.outcome() })),
        }
    }

    /// One poll of the load. The caller holds POLLING and listens.
    fn drive(&mut self) -> Poll<Ended<V>> {
        let flight = self.entered().flight;
        let polled = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: holds POLLING.
            frames::within(&flight.place, || unsafe { flight.poll_future() })
        }));
        match polled {
            Ok(Poll::Pending) => {
                match flight.release_poll() {
                    Released::Idle => {}
                    Released::Notified => flight.waiters.wake_all(),
                    Released::Closed => {
                        // SAFETY: CLOSED was set while this waiter held POLLING: the future is its own.
                        drop(unsafe { flight.take_future() });
                        return Poll::Ready(Ended::Closed);
                    }
                }
                Poll::Pending
            }
            Ok(Poll::Ready(outcome)) => Poll::Ready(self.settle(outcome)),
            Err(payload) => self.panicked(payload),
        }
    }

    /// The load's result: into the cache, to the waiters, and to the caller, which holds POLLING.
    fn settle(&self, outcome: Outcome<V>) -> Ended<V> {
        let settled = catch_unwind(AssertUnwindSafe(|| {
            let entered = self.entered();
            // SAFETY: holds POLLING. The future is done: its destructor is the load's last act.
            drop(unsafe { entered.flight.take_future() });
            match &outcome {
                Outcome::Value(value) => {
                    let _ = self.core.complete(entered, || value.clone());
                }
                Outcome::Failed(_) | Outcome::Panicked(_) => {
                    self.core.count(&reclaim::pin(), Counter::LoadFailures);
                    self.core.end_flight(self.id);
                }
            }
            if entered.flight.close_alone() {
                return match outcome {
                    Outcome::Value(value) => Ended::Value(value),
                    Outcome::Failed(error) => Ended::Failed(error),
                    Outcome::Panicked(message) => Ended::Panicked(message),
                };
            }
            let ended = Ended::of(Some(&outcome));
            // SAFETY: holds POLLING, and closes once.
            unsafe { entered.flight.close_with(outcome) };
            ended
        }));
        match settled {
            Ok(ended) => {
                // A waker's panic is this caller's; all others have been woken then.
                self.entered().flight.wake_closed();
                ended
            }
            Err(payload) => self.panicked(payload),
        }
    }

    fn panicked(&self, payload: Box<dyn Any + Send>) -> ! {
        let flight = self.entered().flight;
        self.core.count(&reclaim::pin(), Counter::LoadFailures);
        self.core.end_flight(self.id);
        // SAFETY: holds POLLING.
        let future = unsafe { flight.take_future() };
        if !flight.is_closed() {
            // SAFETY: holds POLLING, and closes once.
            unsafe { flight.close_with(Outcome::Panicked(panic_message(&*payload))) };
        }
        // Second panics, of wakers or of the future's destructor, are swallowed: the first one counts.
        let _ = catch_unwind(AssertUnwindSafe(|| flight.wake_closed()));
        let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
        resume_unwind(payload)
    }

    /// Ends the load from outside: the future is dropped, now or when its poller returns.
    pub(crate) fn abort(&self) {
        self.core.end_flight(self.id);
        let flight = self.entered().flight;
        // SAFETY: if it is true, this call made the word CLOSED while nobody held POLLING.
        let future = if flight.abort() { unsafe { flight.take_future() } } else { None };
        let mut panics = FirstPanic::default();
        panics.catch(|| drop(future));
        panics.catch(|| flight.waiters.wake_all());
        panics.resume();
    }
}

impl<K, V> Drop for SharedWaiter<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        self.edge.erase();
        // SAFETY: parked by `new` or entered by `of_all`, and left once. Left also if a waker's destructor
        // panics.
        let seat = unsafe { self.core.resume_seat(self.id) };
        let mut panics = FirstPanic::default();
        panics.catch(|| self.listener.leave(seat.entered()));
        // The last one drops the load.
        panics.catch(|| drop(seat));
        panics.resume_unless_panicking();
    }
}

/// How a call of a shared-driven load begins.
pub(crate) enum Begun<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Hit(V),
    Waiting(SharedWaiter<K, V>),
    /// A load of this key that this very thread is polling asks for the key.
    Recursive,
    /// No place in the cache: the load runs for this caller alone.
    Alone(Load<V>),
    /// The cache was closed meanwhile.
    Closed,
}

/// Finds the value, joins the load, or begins it. `loader` makes the future of a key; `handle` is a handle of
/// the cache for its waker; `is_closed` is asked once more after the load is visible to a closer.
pub(crate) fn begin<K, V>(
    core: &Arc<Core<K, V>>,
    tag: Tag,
    key: K,
    loader: &dyn Fn(K) -> Load<V>,
    handle: impl FnOnce() -> Handle,
    is_closed: impl Fn() -> bool,
) -> Begun<K, V>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let mut guard = reclaim::pin();
    match core.admit(&mut guard, tag, key, Drive::Shared) {
        Admission::Hit(slot) => {
            core.touch(slot);
            // SAFETY: `admit` read READY under this guard.
            let value = unsafe { slot.value() }.clone();
            core.count(&guard, Counter::Hits);
            Begun::Hit(value)
        }
        Admission::Join(seat, _) => {
            core.count(&guard, Counter::Hits);
            let waiter = SharedWaiter::new(core, seat);
            if frames::is_polling(&waiter.entered().flight.place) {
                Begun::Recursive
            } else {
                Begun::Waiting(waiter)
            }
        }
        Admission::Lead(seat) => {
            core.count(&guard, Counter::Misses);
            let waiter = SharedWaiter::new(core, seat);
            let made = catch_unwind(AssertUnwindSafe(|| {
                let key = core.key_of(&guard, waiter.entered()).clone();
                // The loader may take its time: not under a pin.
                drop(guard);
                frames::within(&waiter.entered().flight.place, || loader(key))
            }));
            match made {
                Ok(load) => waiter.install(load, handle()),
                Err(payload) => waiter.panicked(payload),
            }
            // A closer sets its flag, fences, and enters the open flights; this flight was open before the
            // fence in `is_closed`. One of the two sees the other.
            if is_closed() {
                waiter.abort();
            }
            match waiter.entered().flight.release_poll() {
                // Polled at once by the caller, whatever happened meanwhile.
                Released::Idle | Released::Notified => Begun::Waiting(waiter),
                Released::Closed => {
                    // SAFETY: CLOSED was set while this waiter held POLLING.
                    drop(unsafe { waiter.entered().flight.take_future() });
                    Begun::Closed
                }
            }
        }
        Admission::Refused(key) => {
            core.count(&guard, Counter::Misses);
            drop(guard);
            Begun::Alone(loader(key))
        }
    }
}

/// Polls a load that runs for one caller alone.
pub(crate) fn poll_alone<V>(load: &mut Load<V>, cx: &mut Context<'_>) -> Poll<Ended<V>> {
    Poll::Ready(match ready!(load.as_mut().poll(cx)) {
        Outcome::Value(value) => Ended::Value(value),
        Outcome::Failed(error) => Ended::Failed(error),
        Outcome::Panicked(message) => Ended::Panicked(message),
    })
}
