//! Loads beside the table: shared, found by nobody who comes after a removal, gone when they are over.

use alru::raw::core::Core;
use alru::raw::flight::{Drive, FlightId};
use alru::raw::reclaim;
use alru::raw::seat::Admission;
use alru_loom_tests::{Key, Name, Value, check, check_deeper, core};
use loom::sync::atomic::{AtomicBool, Ordering::*};
use loom::thread;
use std::sync::Arc;

const A: Key = (7, 1);
const OTHER: Key = (7 + (1 << 31), 2);

type Cache = Arc<Core<Name, Value>>;

/// A cache of six slots, all but `left` of which are in limbo for good: nothing is reused in a model.
fn cache(left: usize) -> Cache {
    let cache = core(2);
    for _ in left..6 {
        assert!(cache.insert(OTHER.0, Name::new(OTHER.1), Value::new()));
        assert!(cache.remove(&reclaim::pin(), OTHER.0, &OTHER.1).1);
    }
    cache
}

/// Asks for A: the seat, and whether it leads.
fn ask(cache: &Cache) -> (FlightId, bool) {
    match cache.admit(&mut reclaim::pin(), A.0, Name::new(A.1), Drive::Caller) {
        Admission::Lead(seat) => (seat.park(), true),
        Admission::Join(seat, _) => (seat.park(), false),
        Admission::Hit(_) | Admission::Refused(_) => {
            unreachable!("a load, in the table or beside it")
        }
    }
}

fn leave(cache: &Cache, id: FlightId) {
    // SAFETY: parked by `ask`, and resumed once.
    drop(unsafe { cache.resume_seat(id) });
}

/// The books of a cache that nobody uses any more.
fn all_is_over(cache: &Cache) {
    assert_eq!(cache.beside(), (0, 0), "berths taken, and flights");
    assert_eq!((cache.len(), cache.lives(), cache.flights().active()), (0, 0, 0));
    // SAFETY: no other thread is left.
    unsafe { cache.drop_contents() };
    Value::all_gone();
}

/// Two ask at once, and stay; one of them leads, and the other is in the same flight.
fn two_ask(left: usize) {
    let cache = cache(left);
    let other = cache.clone();
    let asker = thread::spawn(move || ask(&other));
    let (first, leads) = ask(&cache);
    let (second, also_leads) = asker.join().unwrap();
    assert_eq!((first, leads), (second, !also_leads));
    leave(&cache, first);
    leave(&cache, second);
    all_is_over(&cache);
}

#[test]
fn two_callers_without_a_slot_share_a_load() {
    check(|| two_ask(0));
}

#[test]
fn of_two_callers_one_of_whom_finds_a_slot_one_leads() {
    check(|| two_ask(1));
}

/// What the load began with, if it began before the removal, is not for who comes after that.
#[test]
fn who_comes_after_a_removal_joins_no_load_from_before() {
    check(|| {
        let cache = cache(0);
        let has_begun = Arc::new(AtomicBool::new(false));
        let (other, begun) = (cache.clone(), has_begun.clone());
        let loader = thread::spawn(move || {
            let (id, _) = ask(&other);
            begun.store(true, Release);
            id
        });
        let was_before = has_begun.load(Acquire);
        assert!(!cache.remove(&reclaim::pin(), A.0, &A.1).1);
        let (after, leads) = ask(&cache);
        assert!(leads || !was_before, "joined what was removed");
        leave(&cache, loader.join().unwrap());
        leave(&cache, after);
        all_is_over(&cache);
    });
}

#[test]
fn a_load_beside_the_table_ends_once_and_its_key_is_dropped_once() {
    check_deeper(|| {
        let cache = cache(0);
        let (first, _) = ask(&cache);
        let other = cache.clone();
        let asker = thread::spawn(move || {
            let (second, _) = ask(&other);
            leave(&other, second);
        });
        leave(&cache, first);
        asker.join().unwrap();
        all_is_over(&cache);
    });
}

#[test]
fn a_berth_is_free_when_its_load_was_detached_and_its_successor_is_over() {
    check(|| {
        let cache = cache(0);
        let (first, _) = ask(&cache);
        let other = cache.clone();
        let remover = thread::spawn(move || {
            other.remove(&reclaim::pin(), A.0, &A.1);
            let (second, _) = ask(&other);
            leave(&other, second);
        });
        leave(&cache, first);
        remover.join().unwrap();
        all_is_over(&cache);
    });
}

#[test]
fn one_of_two_has_the_turn_in_a_queue() {
    check_deeper(|| {
        let cache = core(2);
        let queue = |cache: &Cache| {
            let (seat, has_turn) = cache.queue_up(A.0, &A.1.into()).expect("there is a berth");
            (seat.park(), has_turn)
        };
        let other = cache.clone();
        let second = thread::spawn(move || queue(&other));
        let (first, has_turn) = queue(&cache);
        let (second, also_has_turn) = second.join().unwrap();
        assert_eq!((first, has_turn), (second, !also_has_turn));
        leave(&cache, first);
        leave(&cache, second);
        all_is_over(&cache);
    });
}
