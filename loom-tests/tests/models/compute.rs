//! Computes: no update is lost, and no slot is reused under a lease.

use alru::raw::compute::Held;
use alru::raw::core::Core;
use alru::raw::flight::{Drive, FlightId};
use alru::raw::limbo::Limbo;
use alru::raw::reclaim;
use alru::raw::seat::Admission;
use alru::raw::slab::Slab;
use alru::raw::state::{Completion, Residence};
use alru::{Cache, CompResult, Op};
use alru_loom_tests::{Key, Value, check, check_deeper, check_shallower};
use loom::future::block_on;
use loom::thread;
use std::sync::Arc;

type Numbers = Cache<u32, u32>;

fn cache() -> Numbers {
    Cache::builder().max_capacity(2).reserve(4).build()
}

fn add(cache: &Numbers) -> CompResult<u32> {
    cache.entry(1).and_upsert_with(|v| v.map_or(1, |v| v + 1))
}

fn add_async(cache: &Numbers) -> CompResult<u32> {
    block_on(cache.entry(1).and_upsert_with_async(|v| async move { v.map_or(1, |v| v + 1) }))
}

fn remove(cache: &Numbers) -> CompResult<u32> {
    cache.entry(1).and_compute_with(|_| Op::Remove)
}

/// Both at once.
fn both<A: Send + 'static, B>(
    cache: &Numbers,
    a: fn(&Numbers) -> A,
    b: fn(&Numbers) -> B,
) -> (A, B) {
    let other = cache.clone();
    let a = thread::spawn(move || a(&other));
    let b = b(cache);
    (a.join().unwrap(), b)
}

#[test]
fn two_computes_of_an_absent_key_lose_no_update() {
    check(|| {
        let cache = cache();
        let _ = both(&cache, add, add);
        assert_eq!((cache.peek(&1), cache.entry_count()), (Some(2), 1));
    });
}

#[test]
fn two_computes_of_a_value_lose_no_update() {
    check(|| {
        let cache = cache();
        cache.insert(1, 10);
        let _ = both(&cache, add, add);
        assert_eq!((cache.peek(&1), cache.entry_count()), (Some(12), 1));
    });
}

#[test]
fn an_insert_comes_before_a_compute_or_after_it() {
    check(|| {
        let cache = cache();
        cache.insert(1, 10);
        let (_, added) = both(&cache, |cache| cache.insert(1, 100), add);
        let (added, now) = (added.into_value().unwrap(), cache.peek(&1).unwrap());
        assert!(matches!((added, now), (11, 100) | (101, 101)), "{added}, then {now}");
        assert_eq!(cache.entry_count(), 1);
    });
}

#[test]
fn a_removal_comes_before_a_compute_or_after_it() {
    check(|| {
        let cache = cache();
        cache.insert(1, 10);
        let (removed, added) = both(&cache, |cache| cache.remove(&1), add);
        let now = cache.peek(&1);
        match removed {
            Some(10) => assert_eq!((added, now), (CompResult::Inserted(1), Some(1))),
            Some(11) => assert_eq!((added, now), (CompResult::ReplacedWith(11), None)),
            _ => unreachable!("{removed:?}"),
        }
    });
}

#[test]
fn a_computed_removal_comes_before_a_compute_or_after_it() {
    check(|| {
        let cache = cache();
        cache.insert(1, 10);
        let (removed, added) = both(&cache, remove, add);
        let now = cache.peek(&1);
        match removed {
            CompResult::Removed(10) => assert_eq!((added, now), (CompResult::Inserted(1), Some(1))),
            CompResult::Removed(11) => {
                assert_eq!((added, now), (CompResult::ReplacedWith(11), None));
            }
            _ => unreachable!("{removed:?}"),
        }
    });
}

/// A core with a load of A under way.
fn loading() -> (Arc<Core<u32, u32>>, FlightId) {
    let core = alru_loom_tests::core_of(2);
    let id = match core.admit(&mut reclaim::pin(), A.0, A.1, Drive::Caller) {
        Admission::Lead(seat) => seat.park(),
        _ => unreachable!("the first to ask leads"),
    };
    (core, id)
}

const A: Key = (7, 1);

#[test]
fn a_load_ends_before_a_compute_or_not_at_all() {
    check_deeper(|| {
        let (core, id) = loading();
        let other = core.clone();
        let completer = thread::spawn(move || {
            other.complete(other.flights().entered(id), || 100) == Completion::Stored
        });
        let put = |v: Option<&u32>| Ok::<_, ()>(Op::Put(v.map_or(1, |v| v + 1)));
        let added = core.compute(A.0, A.1, put).unwrap();
        let stored = completer.join().unwrap();
        let expected = if stored { CompResult::ReplacedWith(101) } else { CompResult::Inserted(1) };
        assert_eq!(added, expected);
        assert_eq!((core.len(), core.lives()), (1, 1));
        // SAFETY: parked by `loading`.
        drop(unsafe { core.resume_seat(id) });
    });
}

#[test]
fn an_async_compute_and_an_insert_lose_no_update() {
    check_shallower(|| {
        let cache = cache();
        cache.insert(1, 10);
        let (_, added) = both(&cache, |cache| cache.insert(1, 100), add_async);
        let (added, now) = (added.into_value().unwrap(), cache.peek(&1).unwrap());
        assert!(matches!((added, now), (11, 100) | (101, 101)), "{added}, then {now}");
    });
}

#[test]
fn two_async_computes_of_a_value_lose_no_update() {
    check(|| {
        let cache = cache();
        cache.insert(1, 10);
        let _ = both(&cache, add_async, add_async);
        assert_eq!((cache.peek(&1), cache.entry_count()), (Some(12), 1));
    });
}

#[test]
fn a_leased_slot_is_drained_when_the_lease_is_over() {
    check_deeper(|| {
        let slab = Slab::<u32, Value>::bounded(1).unwrap();
        let limbo = Limbo::new(1, 0, Some(1), 0).unwrap();
        let all = Arc::new((slab, limbo));
        let (slab, limbo) = &*all;
        let index = slab.fresh().unwrap();
        // SAFETY: handed out, and ours.
        let slot = unsafe { slab.slot(index) };
        // SAFETY: as above.
        unsafe {
            slot.write_key(1);
            slot.write_value(Value::new());
        }
        let _ = slot.state.begin_ready(0, Residence::Main);
        assert!(slot.state.lease());
        let other = all.clone();
        let lessee = thread::spawn(move || {
            // SAFETY: handed out.
            let slot = unsafe { other.0.slot(index) };
            // SAFETY: leased when it was READY.
            unsafe { slot.value() }.read();
            slot.state.give_back();
        });
        slot.state.expire();
        let batch = limbo.retire(slab, &reclaim::pin(), index).expect("a batch of one");
        limbo.ripen(slab, &batch);
        let drained = limbo.drain(slab, 0);
        lessee.join().unwrap();
        assert!(drained || limbo.drain(slab, 0), "not lost");
        assert_eq!(limbo.allocate(slab, 0), Some(index));
        Value::all_gone();
    });
}

#[test]
fn one_of_two_leases_a_slot_and_who_waits_in_the_crowd_is_told() {
    check_deeper(|| {
        let core = alru_loom_tests::core_of(2);
        assert!(core.insert(A.0, A.1, 10));
        let Held::Value(lease) = core.lease(A.0, &A.1) else { unreachable!("nobody else has it") };
        let other = core.clone();
        let waiter = thread::spawn(move || {
            let (bell, waker) = alru_loom_tests::Bell::new();
            let node = other.crowd().join();
            // SAFETY: joined on this list.
            unsafe { node.as_ref() }.listen(&waker);
            let is_leased = matches!(other.lease(A.0, &A.1), Held::Leased);
            // SAFETY: joined on this list, and not used again.
            (is_leased, bell, node.as_ptr().addr())
        });
        drop(lease);
        let (was_leased, bell, _) = waiter.join().unwrap();
        assert!(!was_leased || bell.rang(), "asleep, and the lease is over");
        // SAFETY: no other thread is left.
        unsafe { core.drop_contents() };
    });
}
