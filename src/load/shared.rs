//! Shared-driven loads: one future that lives in the flight, polled by whichever waiter is polled.
//!
//! The future is `Send + 'static`, so it does not belong to the caller that began it: any waiter drives it,
//! on its own task, and it lives until it is done or the last waiter has gone. Its waker wakes every waiter
//! that is not awake yet, so a waiter that is never polled again holds nobody up.
//!
//! One of the waiters may be a future that the user's executor runs (a spawner was set): then the load
//! outlives its callers. It holds no handle of the cache but for the time of a poll.
//!
//! Callers of `get_with` meet such loads too, and drive them as other waiters do. The other way round a
//! waiter of ours joins a caller-driven load, and if its leader leaves it puts a load of the loader in its
//! place (`Ended::Abandoned`).

use super::{Listener, frames, note_wait, panic_message};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::flight::{
    Drive, Entered, Flight, FlightId, Load, Outcome, Released, Resident, Turn,
};
use crate::raw::graph::{Circle, Edge};
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};
use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc as StdArc, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};

/// A handle of the cache, whatever its type; gone, or kept from going while it is upgraded.
pub(crate) type Handle = Weak<dyn Any + Send + Sync>;

/// What a user's executor runs.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A user's way to run something on his executor.
pub(crate) type Spawner = Box<dyn Fn(Job) + Send + Sync>;

/// A cache with a loader, as its loads see it.
pub(crate) trait Host<K, V> {
    /// The future that loads a key: user code.
    fn load(&self, key: K) -> Load<V>;

    /// A handle of the cache.
    fn handle(&self) -> Handle;

    /// Is the cache closed? Asked after a load became visible to a closer: with a fence between.
    fn is_closed_after(&self) -> bool;

    fn spawner(&self) -> Option<&Spawner>;
}

/// How a load ended for one waiter.
pub(crate) enum Ended<V> {
    Value(V),
    Failed(StdArc<dyn Any + Send + Sync>),
    Panicked(StdArc<str>),
    /// The cache was closed.
    Closed,
    /// It would wait for itself; the load goes on without this waiter.
    Recursive,
    /// It was caller-driven and came to nothing: find out anew.
    Nothing,
    /// It was caller-driven and has no leader any more. The waiter holds POLLING, and is to begin a load.
    Abandoned,
}

impl<V: Clone> Ended<V> {
    /// Of a closed flight that the caller sits in.
    pub(super) fn of(entered: Entered<'_, V>) -> Self {
        // SAFETY: entered, and its seat is not left while this borrows it.
        match unsafe { entered.flight.outcome() } {
            Some(outcome) => Self::from(outcome),
            None if entered.flight.is_shared() => Self::Closed,
            None => Self::Nothing,
        }
    }

    fn from(outcome: &Outcome<V>) -> Self {
        match outcome {
            Outcome::Value(value) => Self::Value(value.clone()),
            Outcome::Failed(error) => Self::Failed(error.clone()),
            Outcome::Panicked(message) => Self::Panicked(message.clone()),
        }
    }
}

impl<V> Ended<V> {
    fn of_alone(outcome: Outcome<V>) -> Self {
        match outcome {
            Outcome::Value(value) => Self::Value(value),
            Outcome::Failed(error) => Self::Failed(error),
            Outcome::Panicked(message) => Self::Panicked(message),
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

/// Somebody who sits in a flight and may poll its future.
pub(crate) struct Driver<'a, K, V> {
    core: &'a Arc<Core<K, V>>,
    entered: Entered<'a, V>,
}

impl<'a, K, V> Driver<'a, K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The caller has a seat in the flight, and keeps it meanwhile.
    pub(super) fn new(core: &'a Arc<Core<K, V>>, id: FlightId) -> Self {
        Self { core, entered: core.flights().entered(id) }
    }

    /// The end of the load, or one poll of it if nobody else is about it. The caller listens.
    pub(super) fn poll_in_turn(&self) -> Poll<Ended<V>> {
        match self.entered.flight.try_poll() {
            Turn::Mine => self.drive(),
            Turn::Theirs => Poll::Pending,
            Turn::Closed => Poll::Ready(Ended::of(self.entered)),
        }
    }

    /// One poll of the load. The caller holds POLLING and listens.
    fn drive(&self) -> Poll<Ended<V>> {
        let flight = self.entered.flight;
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
        let flight = self.entered.flight;
        let settled = catch_unwind(AssertUnwindSafe(|| {
            // SAFETY: holds POLLING. The future is done: its destructor is the load's last act.
            drop(unsafe { flight.take_future() });
            match &outcome {
                Outcome::Value(value) => {
                    let _ = self.core.complete(self.entered, || value.clone());
                }
                Outcome::Failed(_) | Outcome::Panicked(_) => self.take_out(),
            }
            if flight.close_alone() {
                return Ended::of_alone(outcome);
            }
            let ended = Ended::from(&outcome);
            // SAFETY: holds POLLING, and closes once.
            unsafe { flight.close_with(outcome) };
            ended
        }));
        match settled {
            Ok(ended) => {
                // A waker's panic is this caller's; all others have been woken then.
                flight.wake_closed();
                ended
            }
            Err(payload) => self.panicked(payload),
        }
    }

    /// A load that failed: counted if it was counted as a load, which one for a single caller is not.
    fn take_out(&self) {
        if self.entered.flight.slot().0 != 0 {
            self.core.count(&reclaim::pin(), Counter::LoadFailures);
        }
        self.core.end_flight(self.entered.id);
    }

    fn panicked(&self, payload: Box<dyn Any + Send>) -> ! {
        let flight = self.entered.flight;
        self.take_out();
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
    fn abort(&self) {
        self.core.end_flight(self.entered.id);
        let flight = self.entered.flight;
        // SAFETY: if it is true, this call made the word CLOSED while nobody held POLLING.
        let future = if flight.abort() { unsafe { flight.take_future() } } else { None };
        let mut panics = FirstPanic::default();
        panics.catch(|| drop(future));
        panics.catch(|| flight.waiters.wake_all());
        panics.resume();
    }
}

/// A seat in a flight, kept across polls.
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
    /// Not left yet.
    is_seated: bool,
    /// Has put a future in place that nobody has polled: if this waiter does not come to it, others must.
    owes_a_poll: bool,
}

impl<K, V> SharedWaiter<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(core: &Arc<Core<K, V>>, seat: Seat<'_, K, V>) -> Self {
        Self::sitting(core, seat.park())
    }

    /// The caller has entered the flight; the waiter leaves it.
    fn sitting(core: &Arc<Core<K, V>>, id: FlightId) -> Self {
        Self {
            core: core.clone(),
            id,
            listener: Listener::new(),
            edge: Edge::default(),
            is_seated: true,
            owes_a_poll: false,
        }
    }

    /// One more waiter of each open flight.
    pub(crate) fn of_all(core: &Arc<Core<K, V>>) -> Vec<Self> {
        core.flights().enter_each().map(|entered| Self::sitting(core, entered.id)).collect()
    }

    fn flight(&self) -> &Flight<V> {
        self.core.flights().entered(self.id).flight
    }

    fn driver(&self) -> Driver<'_, K, V> {
        Driver::new(&self.core, self.id)
    }

    /// Is it a load of the loader's? Else it is a caller's own.
    pub(crate) fn is_shared(&self) -> bool {
        self.flight().is_shared()
    }

    /// Notes on whose behalf this waiter waits, as each of its polls does.
    ///
    /// # Errors
    /// [`Circle`] if it would wait for itself. So its next poll tells.
    pub(crate) fn note_wait(&mut self) -> Result<(), Circle> {
        note_wait(&mut self.edge, self.core.flights().entered(self.id))
    }

    /// Waits for the end, driving the load whenever nobody else does.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended<V>> {
        if self.note_wait().is_err() {
            return Poll::Ready(Ended::Recursive);
        }
        let entered = self.core.flights().entered(self.id);
        self.listener.listen(entered, cx.waker());
        let flight = entered.flight;
        if !flight.is_shared() {
            match flight.try_share() {
                Turn::Mine => return Poll::Ready(Ended::Abandoned),
                Turn::Closed => return Poll::Ready(Ended::of(entered)),
                Turn::Theirs if !flight.is_shared() => return Poll::Pending,
                // Another waiter has begun a load in its place just now.
                Turn::Theirs => {}
            }
        }
        let driver = Driver { core: &self.core, entered };
        // Whatever happens from here on, the load has been polled, or has a poller, or is over.
        self.owes_a_poll = false;
        driver.poll_in_turn()
    }

    /// Ends a load of the loader's from outside.
    pub(crate) fn abort(&self) {
        self.driver().abort();
    }

    /// Takes the load out of the cache: it runs on for its callers.
    pub(crate) fn take_out(&self) {
        self.core.end_flight(self.id);
    }

    /// Takes a caller's own load out of the cache, and lets all its waiters look up.
    pub(crate) fn detach(&self) {
        self.take_out();
        self.flight().waiters.wake_all();
    }

    /// Leaves the flight, once.
    fn leave(&mut self) {
        if !std::mem::replace(&mut self.is_seated, false) {
            return;
        }
        self.edge.erase();
        // SAFETY: parked or entered when this waiter was made, and left once: now, also if a waker's destructor
        // panics.
        let seat = unsafe { self.core.resume_seat(self.id) };
        let mut panics = FirstPanic::default();
        panics.catch(|| self.listener.leave(seat.entered()));
        if self.owes_a_poll {
            panics.catch(|| seat.entered().flight.waiters.wake_all());
        }
        panics.catch(|| drop(seat));
        panics.resume_unless_panicking();
    }
}

impl<K, V> Drop for SharedWaiter<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        self.leave();
    }
}

/// A waiter that a user's executor runs. Without a handle of the cache there is no load any more, and nothing to
/// leave.
struct Spawned<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    waiter: SharedWaiter<K, V>,
    handle: Handle,
}

impl<K, V> Future for Spawned<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        // For the time of the poll. It may be the last one when it goes, and take the cache along.
        let Some(_handle) = this.handle.upgrade() else { return Poll::Ready(()) };
        if !this.waiter.is_seated {
            return Poll::Ready(());
        }
        // A load that panics here has told its callers.
        let polled = catch_unwind(AssertUnwindSafe(|| this.waiter.poll(cx).map(drop)));
        if let Ok(Poll::Pending) = polled {
            return Poll::Pending;
        }
        // At once: an executor may keep a finished future.
        this.waiter.leave();
        Poll::Ready(())
    }
}

impl<K, V> Drop for Spawned<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        match self.handle.upgrade() {
            Some(_handle) => self.waiter.leave(),
            None => self.waiter.is_seated = false,
        }
    }
}

/// How a call begins.
pub(crate) enum Begun<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Hit(V),
    /// The caller began the load.
    Leading(SharedWaiter<K, V>),
    /// The caller joined a load; its key comes back.
    Joined(SharedWaiter<K, V>, K),
    /// A load of this key that this very thread is polling asks for the key.
    Recursive,
    /// No more flights: the load runs for this caller alone.
    Alone(Load<V>),
    /// The cache was closed meanwhile.
    Closed,
}

/// Finds the value, joins the load, or begins it. `is_new`: the call was not counted before.
pub(crate) fn begin<K, V>(
    core: &Arc<Core<K, V>>,
    tag: Tag,
    key: K,
    host: &impl Host<K, V>,
    is_new: bool,
) -> Begun<K, V>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let count = |guard: &reclaim::Guard, counter| {
        if is_new {
            core.count(guard, counter);
        }
    };
    let mut guard = reclaim::pin();
    match core.admit(&mut guard, tag, key, Drive::Shared) {
        Admission::Hit(slot) => {
            core.touch(slot);
            // SAFETY: `admit` read READY under this guard.
            let value = unsafe { slot.value() }.clone();
            count(&guard, Counter::Hits);
            Begun::Hit(value)
        }
        Admission::Join(seat, key) => {
            count(&guard, Counter::Hits);
            let waiter = SharedWaiter::new(core, seat);
            if frames::is_polling(&waiter.flight().place) {
                Begun::Recursive
            } else {
                Begun::Joined(waiter, key)
            }
        }
        Admission::Lead(seat) => {
            count(&guard, Counter::Misses);
            launch(SharedWaiter::new(core, seat), host, |waiter| {
                let key = core.key_of(&guard, waiter.driver().entered).clone();
                // The loader may take its time: not under a pin.
                drop(guard);
                key
            })
        }
        Admission::Refused(key) => {
            count(&guard, Counter::Misses);
            drop(guard);
            match core.lone(Drive::Shared) {
                Some(seat) => launch(SharedWaiter::new(core, seat), host, |_| key),
                None => Begun::Alone(host.load(key)),
            }
        }
    }
}

/// Begins a load in a flight of which the waiter holds POLLING.
pub(crate) fn launch<K, V>(
    mut waiter: SharedWaiter<K, V>,
    host: &impl Host<K, V>,
    key: impl FnOnce(&SharedWaiter<K, V>) -> K,
) -> Begun<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let made = catch_unwind(AssertUnwindSafe(|| {
        let key = key(&waiter);
        frames::within(&waiter.flight().place, || host.load(key))
    }));
    match made {
        Ok(load) => {
            let waker =
                LoadWaker { core: waiter.core.clone(), id: waiter.id, handle: host.handle() };
            let waker = Waker::from(StdArc::new(waker));
            // SAFETY: holds POLLING.
            unsafe { waiter.flight().set_future(Resident { load, waker }) };
        }
        Err(payload) => waiter.driver().panicked(payload),
    }
    // A closer sets its flag, fences, and enters the open flights; this flight was open, and shared, before the
    // fence in `is_closed_after`. One of the two sees the other.
    if host.is_closed_after() {
        waiter.abort();
    }
    match waiter.flight().release_poll() {
        // Polled at once by the caller, whatever happened meanwhile.
        Released::Idle | Released::Notified => {}
        Released::Closed => {
            // SAFETY: CLOSED was set while this waiter held POLLING.
            drop(unsafe { waiter.flight().take_future() });
            return Begun::Closed;
        }
    }
    waiter.owes_a_poll = true;
    if let Some(spawner) = host.spawner() {
        if waiter.core.flights().enter(waiter.id).is_some() {
            let spawned = SharedWaiter::sitting(&waiter.core, waiter.id);
            let job = Box::pin(Spawned { waiter: spawned, handle: host.handle() });
            // An executor that does not take it does no harm: the callers drive.
            let _ = catch_unwind(AssertUnwindSafe(|| spawner(job)));
        }
    }
    Begun::Leading(waiter)
}

/// Polls a load that runs for one caller alone.
pub(crate) fn poll_alone<V>(load: &mut Load<V>, cx: &mut Context<'_>) -> Poll<Ended<V>> {
    Poll::Ready(Ended::of_alone(ready!(load.as_mut().poll(cx))))
}
