//! Flights: who leads, who is woken, who drops the future, when it is over.

use alru::raw::flight::{
    Drive, Entered, FlightId, Flights, Left, Outcome, Released, Resident, Turn,
};
use alru::raw::waiters::Node;
use alru_loom_tests::{Bell, Value, check_deeper};
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::thread;
use std::future::poll_fn;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Poll, Waker};

type Sky = Arc<Flights<Value>>;

/// A flight with one seat taken and its turn held.
fn begin(drive: Drive) -> (Sky, FlightId) {
    let sky = Sky::new(Flights::new());
    let id = sky.begin(drive).ok().unwrap().id;
    (sky, id)
}

/// True for the last one to leave, if the flight was open till then.
fn leave(sky: &Sky, id: FlightId) -> bool {
    let entered = sky.entered(id);
    let left = sky.leave(entered);
    if left != Left::Others {
        // SAFETY: the last to leave.
        drop(unsafe { sky.recycle(entered) });
    }
    left == Left::LastOpen
}

/// A waiter with a seat.
struct Waiter {
    sky: Sky,
    id: FlightId,
    bell: Arc<Bell>,
    waker: Waker,
    node: NonNull<Node>,
}

// SAFETY: the node is on the flight's list, and used by one thread at a time.
unsafe impl Send for Waiter {}

impl Waiter {
    fn enter(sky: &Sky, id: FlightId) -> Option<Self> {
        let entered = sky.enter(id)?;
        let (bell, waker) = Bell::new();
        let node = entered.flight.waiters.join();
        Some(Self { sky: sky.clone(), id, bell, waker, node })
    }

    fn entered(&self) -> Entered<'_, Value> {
        self.sky.entered(self.id)
    }

    /// One poll of a caller-driven waiter; the turn that it found.
    fn poll(&self) -> Turn {
        self.listen();
        let turn = self.entered().flight.try_lead();
        if turn == Turn::Closed {
            // SAFETY: entered.
            if let Some(Outcome::Value(value)) = unsafe { self.entered().flight.outcome() } {
                value.read();
            }
        }
        turn
    }

    fn listen(&self) {
        self.bell.reset();
        // SAFETY: joined, and the flight is entered.
        unsafe { self.node.as_ref() }.listen(&self.waker);
    }

    fn leave(self) -> bool {
        // SAFETY: joined on this list, and not used again.
        unsafe { self.entered().flight.waiters.leave(self.node) };
        leave(&self.sky, self.id)
    }
}

fn complete(sky: &Sky, id: FlightId) {
    let flight = sky.entered(id).flight;
    // SAFETY: each model has one holder of the turn, which closes once.
    unsafe { flight.close_with(Outcome::Value(Value::new())) };
    flight.wake_closed();
}

/// Nobody sleeps that somebody should have woken: `asleep` found the turn taken.
fn nobody_is_forgotten(sky: &Sky, asleep: Waiter) {
    if !asleep.bell.rang() {
        let turn = sky.entered(asleep.id).flight.try_lead();
        assert_eq!(turn, Turn::Theirs, "asleep, and nobody leads");
    }
    asleep.leave();
}

/// Two waiters join and poll while `lead` does something with the lead; it leaves afterwards.
fn two_join_while(lead: fn(&Sky, FlightId), may_lead: bool) {
    let (sky, id) = begin(Drive::Caller);
    let joiners = [(); 2].map(|()| {
        let sky = sky.clone();
        thread::spawn(move || Waiter::enter(&sky, id).map(|w| (w.poll(), w)))
    });
    lead(&sky, id);
    leave(&sky, id);
    let joined: Vec<_> = joiners.into_iter().filter_map(|j| j.join().unwrap()).collect();
    let leaders = joined.iter().filter(|(turn, _)| *turn == Turn::Mine).count();
    assert!(leaders <= usize::from(may_lead));
    // The sleepers first: who leads would wake them.
    let (asleep, awake): (Vec<_>, Vec<_>) =
        joined.into_iter().partition(|(turn, _)| *turn == Turn::Theirs);
    asleep.into_iter().for_each(|(_, waiter)| nobody_is_forgotten(&sky, waiter));
    awake.into_iter().for_each(|(_, waiter)| {
        waiter.leave();
    });
    assert_eq!(sky.active(), 0);
    drop(sky);
    Value::all_gone();
}

#[test]
fn a_lead_given_up_is_found_or_told_to_two_joiners() {
    check_deeper(|| two_join_while(|sky, id| sky.entered(id).flight.give_up_lead(), true));
}

#[test]
fn a_result_is_found_or_told_to_two_joiners() {
    check_deeper(|| two_join_while(complete, false));
}

/// Waiter 0 is polled while the leader gives up; if it takes the lead it does `then`.
fn one_takes_over(then: fn(&Waiter)) {
    let (sky, id) = begin(Drive::Caller);
    let [first, second] = [(); 2].map(|()| Waiter::enter(&sky, id).unwrap());
    assert_eq!((first.poll(), second.poll()), (Turn::Theirs, Turn::Theirs));
    let successor = thread::spawn(move || {
        let turn = first.poll();
        if turn == Turn::Mine {
            then(&first);
        }
        (turn, first)
    });
    sky.entered(id).flight.give_up_lead();
    leave(&sky, id);
    let (turn, first) = successor.join().unwrap();
    if turn == Turn::Theirs {
        nobody_is_forgotten(&sky, first);
    } else {
        first.leave();
    }
    nobody_is_forgotten(&sky, second);
    assert_eq!(sky.active(), 0);
}

#[test]
fn who_takes_over_and_completes_leaves_nobody_asleep() {
    check_deeper(|| one_takes_over(|w| complete(&w.sky, w.id)));
}

#[test]
fn who_takes_over_and_cancels_leaves_nobody_asleep() {
    check_deeper(|| one_takes_over(|w| w.entered().flight.give_up_lead()));
}

#[test]
fn a_flight_ends_once_and_nobody_enters_it_after() {
    check_deeper(|| {
        let (sky, id) = begin(Drive::Caller);
        assert!(sky.enter(id).is_some());
        let (a, b) = (sky.clone(), sky.clone());
        let leaver = thread::spawn(move || leave(&a, id));
        let joiner = thread::spawn(move || b.enter(id).map(|_| leave(&b, id)));
        let left = [Some(leave(&sky, id)), Some(leaver.join().unwrap()), joiner.join().unwrap()];
        assert_eq!(left.iter().filter(|left| **left == Some(true)).count(), 1);
        assert_eq!(sky.active(), 0);
    });
}

#[test]
fn a_flight_is_not_entered_by_the_id_of_its_former_life() {
    check_deeper(|| {
        let (sky, old) = begin(Drive::Caller);
        let other = sky.clone();
        let joiner = thread::spawn(move || other.enter(old).is_some());
        let ended = leave(&sky, old);
        let new = sky.begin(Drive::Caller).ok().unwrap().id;
        let entered = joiner.join().unwrap();
        assert!(!(ended && entered), "{old:?} entered {new:?}");
    });
}

/// A flight with a future that never ends, of `seats` seats.
fn begin_shared(seats: usize) -> (Sky, FlightId) {
    let (sky, id) = begin(Drive::Shared);
    let held = Value::new();
    let load = Box::pin(poll_fn(move |_| {
        held.read();
        Poll::Pending
    }));
    // SAFETY: `begin` took POLLING.
    unsafe { sky.entered(id).flight.set_future(Resident { load, waker: Waker::noop().clone() }) };
    assert_eq!(sky.entered(id).flight.release_poll(), Released::Idle);
    (1..seats).for_each(|_| assert!(sky.enter(id).is_some()));
    (sky, id)
}

/// As `SharedWaiter::drive`; true if the future was pending and stays.
fn drive(sky: &Sky, id: FlightId) {
    let flight = sky.entered(id).flight;
    if flight.try_poll() != Turn::Mine {
        return;
    }
    // SAFETY: holds POLLING.
    assert!(unsafe { flight.poll_future() }.is_pending());
    match flight.release_poll() {
        Released::Idle => {}
        Released::Notified => flight.waiters.wake_all(),
        // SAFETY: closed while this thread held POLLING.
        Released::Closed => drop(unsafe { flight.take_future() }.unwrap()),
    }
}

#[test]
fn closer_poller_and_leaver_drop_the_future_once() {
    check_deeper(|| {
        let (sky, id) = begin_shared(3);
        let (a, b) = (sky.clone(), sky.clone());
        let poller = thread::spawn(move || {
            drive(&a, id);
            leave(&a, id);
        });
        let leaver = thread::spawn(move || leave(&b, id));
        if sky.entered(id).flight.abort() {
            // SAFETY: closed while nobody polled.
            drop(unsafe { sky.entered(id).flight.take_future() }.unwrap());
        }
        leave(&sky, id);
        poller.join().unwrap();
        leaver.join().unwrap();
        Value::all_gone();
    });
}

/// A future that waits for a flag is polled by two waiters while the flag is raised.
#[test]
fn a_wake_during_a_poll_reaches_a_waiter() {
    check_deeper(|| {
        let (sky, id) = begin(Drive::Shared);
        let flag = Arc::new(AtomicBool::new(false));
        let raised = flag.clone();
        let load = Box::pin(poll_fn(move |_| match raised.load(Relaxed) {
            true => Poll::Ready(Outcome::Value(Value::new())),
            false => Poll::Pending,
        }));
        let flight = sky.entered(id).flight;
        // SAFETY: `begin` took POLLING.
        unsafe { flight.set_future(Resident { load, waker: Waker::noop().clone() }) };
        assert_eq!(flight.release_poll(), Released::Idle);

        // One poll; true if it ended, or may do so: a wake came.
        let poll = move |sky: &Sky| {
            let waiter = Waiter::enter(sky, id).unwrap();
            waiter.listen();
            let flight = waiter.entered().flight;
            if flight.try_poll() == Turn::Mine {
                // SAFETY: holds POLLING.
                if unsafe { flight.poll_future() }.is_ready() {
                    return None; // Keeps POLLING, so that nobody polls again.
                }
                if flight.release_poll() == Released::Notified {
                    flight.waiters.wake_all();
                }
            }
            Some(waiter)
        };
        let other = sky.clone();
        let poller = thread::spawn(move || poll(&other));
        let raiser = sky.clone();
        let waker = thread::spawn(move || {
            flag.store(true, Relaxed);
            let flight = raiser.entered(id).flight;
            if flight.notify() {
                flight.waiters.wake_all();
            }
        });
        let pending = [poll(&sky), poller.join().unwrap()];
        waker.join().unwrap();
        if let [Some(first), Some(second)] = pending {
            assert!(first.bell.rang() && second.bell.rang(), "the flag is up, and nobody knows");
        }
        Value::all_gone();
    });
}
