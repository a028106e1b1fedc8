//! Waits: circles of them, threads that park, and callers that lose patience.

use alru::Cache;
use alru::raw::core::Core;
use alru::raw::flight::{Drive, FlightId};
use alru::raw::graph::{Circle, Edge, Place};
use alru::raw::reclaim;
use alru::raw::seat::Admission;
use alru_loom_tests::{Bell, Name, Value, check, check_deeper, check_shallower, core};
use loom::thread;
use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};
use std::time::Duration;

/// Loads, by number.
type Loads<const N: usize> = Arc<[Place; N]>;

fn loads<const N: usize>() -> Loads<N> {
    Arc::new(std::array::from_fn(|_| Place::new()))
}

/// Load `from` waits for load `to`; the edge is left in place.
fn wait<const N: usize>(loads: &Loads<N>, from: usize, to: usize) -> Result<Edge, Circle> {
    let mut edge = Edge::default();
    // SAFETY: the places are cleared with the last handle.
    unsafe { edge.draw(Some(&loads[from]), &loads[to]) }.map(|()| edge)
}

#[test]
fn of_two_loads_that_come_to_wait_for_each_other_one_is_told() {
    check_deeper(|| {
        let loads = loads::<2>();
        let others = loads.clone();
        let other = thread::spawn(move || wait(&others, 1, 0));
        let here = wait(&loads, 0, 1);
        let there = other.join().unwrap();
        assert!(here.is_err() || there.is_err());
    });
}

#[test]
fn of_three_loads_that_come_to_wait_in_a_circle_one_is_told() {
    check(|| {
        let loads = loads::<3>();
        let waiters = [1, 2].map(|i| {
            let loads = loads.clone();
            thread::spawn(move || wait(&loads, i, (i + 1) % 3))
        });
        let here = wait(&loads, 0, 1);
        let told = waiters.map(|w| w.join().unwrap()).iter().filter(|w| w.is_err()).count();
        assert!(here.is_err() || told > 0);
    });
}

#[test]
fn waits_that_were_never_there_together_are_no_circle() {
    check_deeper(|| {
        let loads = loads::<3>();
        // 1 waits for 2, gives that up, and then 2 waits for 0.
        let given_up = wait(&loads, 1, 2).unwrap();
        let others = loads.clone();
        let other = thread::spawn(move || {
            drop(given_up);
            wait(&others, 2, 0)
        });
        let here = wait(&loads, 0, 1);
        let there = other.join().unwrap();
        assert!(here.is_ok() && there.is_ok());
    });
}

#[test]
fn two_calls_of_one_load_have_an_edge_each() {
    check_deeper(|| {
        let loads = loads::<3>();
        // Leaves a cell behind.
        drop(wait(&loads, 0, 1).unwrap());
        let others = loads.clone();
        let other = thread::spawn(move || wait(&others, 0, 1));
        let here = wait(&loads, 0, 2);
        let there = other.join().unwrap();
        assert!(wait(&loads, 1, 0).is_err() && wait(&loads, 2, 0).is_err());
        drop((here, there));
        assert!(wait(&loads, 1, 0).is_ok() && wait(&loads, 2, 0).is_ok());
    });
}

/// Room for two; threads wait for ever.
fn cache() -> Cache<u32, Value> {
    Cache::builder().max_capacity(2).reserve(4).blocking_patience(Duration::MAX).build()
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(&Bell::new().1))
}

#[test]
fn a_parked_thread_leads_when_the_leader_is_dropped() {
    check(|| {
        let cache = cache();
        let mut leader = Box::pin(cache.get_with(1, pending()));
        assert!(poll(&mut leader).is_pending());
        let other = cache.clone();
        let waiter = thread::spawn(move || other.get_or_insert_with(1, Value::new).read());
        drop(leader);
        waiter.join().unwrap();
        assert_eq!(cache.entry_count(), 1);
        drop(cache);
        Value::all_gone();
    });
}

#[test]
fn two_blocking_callers_share_one_load() {
    check(|| {
        let cache = cache();
        let runs = Arc::new(AtomicUsize::new(0));
        let call = |cache: &Cache<u32, Value>, runs: &AtomicUsize| {
            let init = || {
                runs.fetch_add(1, SeqCst);
                Value::new()
            };
            cache.get_or_insert_with(1, init).read();
        };
        let (other, others_runs) = (cache.clone(), runs.clone());
        let caller = thread::spawn(move || call(&other, &others_runs));
        call(&cache, &runs);
        caller.join().unwrap();
        assert_eq!(runs.load(SeqCst), 1);
        drop(cache);
        Value::all_gone();
    });
}

/// A seat of key 1, and whether it came with the lead.
fn admit(core: &Arc<Core<Name, Value>>) -> (FlightId, bool) {
    match core.admit(&mut reclaim::pin(), 1, Name::new(1), Drive::Caller) {
        Admission::Lead(seat) => (seat.park(), true),
        Admission::Join(seat, _) => (seat.park(), false),
        Admission::Hit(_) | Admission::Refused(_) => {
            unreachable!("nothing ends, and there is room")
        }
    }
}

/// As `CallerLoad` when its timer is over: takes the load out, leaves it and starts over.
fn steal(core: &Arc<Core<Name, Value>>, id: FlightId) -> (FlightId, bool) {
    core.end_flight(id);
    // SAFETY: parked by `admit`, resumed once.
    drop(unsafe { core.resume_seat(id) });
    admit(core)
}

#[test]
fn of_two_thieves_of_one_load_one_leads() {
    check_shallower(|| {
        let core = core(2);
        let [leader, a, b] = [(); 3].map(|()| admit(&core));
        assert!(leader.1 && a == b && a.0 == leader.0);
        let other = core.clone();
        let thief = thread::spawn(move || steal(&other, b.0));
        let (here, there) = (steal(&core, a.0), thief.join().unwrap());
        assert!(here.0 == there.0 && here.0 != leader.0);
        assert_eq!([here, there].iter().filter(|(_, leads)| *leads).count(), 1);
        assert_eq!(core.len(), 1);
        for id in [here.0, there.0, leader.0] {
            // SAFETY: as above.
            drop(unsafe { core.resume_seat(id) });
        }
        assert_eq!((core.len(), core.flights().active()), (0, 0));
    });
}
