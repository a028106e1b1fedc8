//! `Cache::entry`: a change that depends on what is there is one step, and no update is lost.

mod common;

use std::cell::Cell;
use std::collections::HashSet;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alru::{Cache, CompResult, ManualTime, Op};
use common::{Collide, Counted, Flag, Meeting, Random, Tally, eventually, poll_once};

const SECOND: Duration = Duration::from_secs(1);

type Numbers = Cache<u64, u64>;

/// Runs `f`, which panics.
fn panics<R>(f: impl FnOnce() -> R) {
    assert!(catch_unwind(AssertUnwindSafe(f)).is_err(), "it panics");
}

/// One turn for others, on any runtime.
async fn turn() {
    let mut was_here = false;
    poll_fn(move |cx| {
        if std::mem::replace(&mut was_here, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A gate for futures.
#[derive(Clone, Default)]
struct Gate(Arc<AtomicUsize>);

impl Gate {
    fn open(&self) {
        self.0.store(1, SeqCst);
    }

    async fn pass(&self) {
        poll_fn(|_| if self.0.load(SeqCst) == 1 { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

// ---- At once ----------------------------------------------------------------------------------

#[test]
fn or_insert_answers_what_is_there_and_else_puts() {
    let cache = Numbers::new(8);
    assert_eq!(cache.entry(1).or_insert(10), 10);
    assert_eq!(cache.entry(1).or_insert(20), 10);
    assert_eq!(cache.entry(1).or_insert_with(|| unreachable!()), 10);
    assert_eq!(cache.entry(2).or_insert_with(|| 20), 20);
    assert_eq!(cache.entry(3).or_default(), 0);
    assert_eq!([1, 2, 3].map(|k| cache.get(&k)), [Some(10), Some(20), Some(0)]);
}

#[test]
fn each_operation_has_its_result() {
    let cache = Numbers::new(8);
    let put = |v| move |_: Option<&u64>| Op::Put(v);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Nop), CompResult::StillNone);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Remove), CompResult::StillNone);
    assert_eq!(cache.entry(1).and_compute_with(put(10)), CompResult::Inserted(10));
    assert_eq!(cache.entry(1).and_compute_with(put(11)), CompResult::ReplacedWith(11));
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Nop), CompResult::Unchanged(11));
    assert_eq!(cache.entry_count(), 1);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Remove), CompResult::Removed(11));
    assert_eq!((cache.entry_count(), cache.get(&1)), (0, None));
    assert_eq!(cache.stats().insertions, 2);
}

#[test]
fn a_closure_sees_the_present_value() {
    let cache = Numbers::new(8);
    let add = |n| cache.entry(1).and_upsert_with(|v| v.map_or(n, |v| v + n));
    assert_eq!(add(1), CompResult::Inserted(1));
    assert_eq!(add(2), CompResult::ReplacedWith(3));
    assert_eq!(add(4).into_value(), Some(7));
}

#[test]
fn an_error_leaves_the_entry_as_it_was() {
    let cache = Numbers::new(8);
    let fail = || cache.entry(1).and_try_compute_with(|v| Err::<Op<u64>, _>(v.copied()));
    assert_eq!(fail(), Err(None));
    cache.insert(1, 10);
    assert_eq!(fail(), Err(Some(10)));
    assert_eq!((cache.get(&1), cache.entry_count()), (Some(10), 1));
}

#[test]
fn a_closure_that_somebody_came_in_between_runs_again_with_the_newer_value() {
    let between: [fn(&Numbers); 4] = [
        |cache| cache.insert(1, 100),
        |cache| assert!(cache.invalidate(&1)),
        |cache| {
            cache.invalidate(&1);
            cache.insert(1, 100);
        },
        |cache| {
            let _ = cache.entry(1).and_upsert_with(|_| 100);
        },
    ];
    for between in between {
        let cache = Numbers::new(8);
        cache.insert(1, 10);
        let mut seen = vec![];
        let _ = cache.entry(1).and_upsert_with(|v| {
            seen.push(v.copied());
            if seen.len() == 1 {
                between(&cache);
            }
            v.map_or(1, |v| v + 1)
        });
        assert_eq!(seen.len(), 2);
        assert_eq!(cache.get(&1), Some(seen[1].map_or(1, |v| v + 1)));
    }
}

#[test]
fn a_closure_that_saw_nothing_runs_again_when_something_came() {
    let cache = Numbers::new(8);
    let mut seen = vec![];
    let put = cache.entry(1).and_upsert_with(|v| {
        if seen.is_empty() {
            cache.insert(1, 10);
        }
        seen.push(v.copied());
        v.map_or(1, |v| v + 1)
    });
    assert_eq!((put, seen), (CompResult::ReplacedWith(11), vec![None, Some(10)]));
}

#[test]
fn a_removal_that_somebody_came_in_between_decides_again() {
    let cache = Numbers::new(8);
    cache.insert(1, 10);
    let mut runs = 0;
    let removed = cache.entry(1).and_compute_with(|v| {
        runs += 1;
        if runs == 1 {
            cache.insert(1, 100);
        }
        if v == Some(&10) { Op::Remove } else { Op::Nop }
    });
    assert_eq!((removed, cache.get(&1)), (CompResult::Unchanged(100), Some(100)));
}

#[test]
fn a_load_under_way_is_no_value_and_a_put_stays() {
    let cache = Numbers::new(8);
    let gate = Gate::default();
    let load = || async {
        gate.pass().await;
        1
    };
    let mut leader = pin!(cache.get_with(8, load()));
    let mut waiter = pin!(cache.get_with(8, load()));
    assert!(poll_once(leader.as_mut()).is_pending() && poll_once(waiter.as_mut()).is_pending());
    assert_eq!(
        cache.entry(8).and_compute_with(|v| {
            assert_eq!(v, None);
            Op::Nop
        }),
        CompResult::StillNone
    );
    assert!(cache.contains_key(&8), "left alone");
    assert_eq!(
        cache.entry(8).and_upsert_with(|v| v.map_or(80, |v| v + 1)),
        CompResult::Inserted(80)
    );
    gate.open();
    assert_eq!((poll_once(leader), poll_once(waiter)), (Poll::Ready(1), Poll::Ready(1)));
    assert_eq!((cache.get(&8), cache.entry_count()), (Some(80), 1));
}

#[test]
fn removing_a_load_under_way_detaches_it() {
    let cache = Numbers::new(8);
    let gate = Gate::default();
    let mut before = pin!(cache.get_with(8, async {
        gate.pass().await;
        1
    }));
    assert!(poll_once(before.as_mut()).is_pending());
    assert_eq!(cache.entry(8).and_compute_with(|_| Op::Remove), CompResult::StillNone);
    assert_eq!(poll_once(pin!(cache.get_with(8, ready(2)))), Poll::Ready(2));
    gate.open();
    assert_eq!((poll_once(before), cache.get(&8)), (Poll::Ready(1), Some(2)));
}

/// The value that a load brings between look and put is a value like any other.
#[test]
fn a_load_that_ends_while_the_closure_runs_is_not_lost() {
    let cache = Numbers::new(8);
    let gate = Gate::default();
    let mut load = pin!(cache.get_with(8, async {
        gate.pass().await;
        100
    }));
    assert!(poll_once(load.as_mut()).is_pending());
    let mut seen = vec![];
    let put = cache.entry(8).and_upsert_with(|v| {
        seen.push(v.copied());
        if seen.len() == 1 {
            gate.open();
            assert_eq!(poll_once(load.as_mut()), Poll::Ready(100));
        }
        v.map_or(1, |v| v + 1)
    });
    assert_eq!((put, seen), (CompResult::ReplacedWith(101), vec![None, Some(100)]));
}

#[test]
fn an_expired_value_is_none_and_a_computed_one_lives_from_its_compute() {
    let time = ManualTime::new();
    let cache: Numbers = Cache::builder()
        .max_capacity(8)
        .time_to_live(SECOND * 10)
        .time_source(time.clone())
        .build();
    let count = || cache.entry(1).and_upsert_with(|v| v.map_or(1, |v| v + 1));
    assert_eq!(count(), CompResult::Inserted(1));
    time.advance(SECOND * 9);
    assert_eq!(count(), CompResult::ReplacedWith(2));
    time.advance(SECOND * 9);
    assert_eq!(cache.get(&1), Some(2));
    time.advance(SECOND);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Nop), CompResult::StillNone);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Remove), CompResult::StillNone);
    assert_eq!(cache.entry_count(), 0, "cleared away");
    assert_eq!(count(), CompResult::Inserted(1));
    time.advance(SECOND * 10);
    assert_eq!(count(), CompResult::Inserted(1));
    assert_eq!((cache.entry_count(), cache.stats().expirations), (1, 2));
}

#[test]
fn without_room_a_value_comes_back() {
    let cache = Numbers::new(0);
    assert_eq!(cache.entry(1).and_upsert_with(|_| 10), CompResult::Bypassed(10));
    assert_eq!(cache.entry(1).or_insert(10), 10);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Nop), CompResult::StillNone);
    assert_eq!(cache.entry(1).and_compute_with(|_| Op::Remove), CompResult::StillNone);
    let computed = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(7, |v| v + 1))));
    assert_eq!(poll_once(computed), Poll::Ready(CompResult::Bypassed(7)));
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn a_value_for_which_there_is_no_slot_comes_back_and_nothing_older_is_served() {
    let other = Numbers::new(1);
    let _pin = other.pin();
    let cache: Numbers = Cache::builder().max_capacity(4).reserve(16).build();
    let add = |cache: &Numbers| cache.entry(1).and_upsert_with(|v| v.map_or(1, |v| v + 1));
    let mut expected = 0;
    let bypassed = loop {
        match add(&cache) {
            CompResult::Bypassed(v) => break v,
            stored => {
                expected += 1;
                assert_eq!(stored.into_value(), Some(expected));
            }
        }
    };
    assert_eq!(bypassed, expected + 1, "computed from the last one");
    assert_eq!((cache.get(&1), cache.entry_count()), (None, 0));
    assert_eq!(add(&cache), CompResult::Bypassed(1));
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(1, |v| v + 1))));
    assert_eq!(poll_once(add.as_mut()), Poll::Ready(CompResult::Bypassed(1)));
    let gate = Gate::default();
    let mut load = pin!(cache.get_with(1, async {
        gate.pass().await;
        100
    }));
    assert!(poll_once(load.as_mut()).is_pending());
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(1, |v| v + 1))));
    assert!(poll_once(add.as_mut()).is_pending(), "it waits for the load beside the table");
    gate.open();
    assert_eq!(poll_once(load), Poll::Ready(100));
    assert_eq!(poll_once(add), Poll::Ready(CompResult::Bypassed(1)), "which was not stored");
}

#[test]
fn an_async_value_for_which_there_is_no_slot_comes_back_and_nothing_older_is_served() {
    let other = Numbers::new(1);
    let _pin = other.pin();
    let cache: Numbers = Cache::builder().max_capacity(4).reserve(16).build();
    let mut expected = 0;
    let bypassed = loop {
        let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(1, |v| v + 1))));
        let Poll::Ready(added) = poll_once(add.as_mut()) else { panic!("nobody is in the way") };
        match added {
            CompResult::Bypassed(v) => break v,
            stored => {
                expected += 1;
                assert_eq!(stored.into_value(), Some(expected));
            }
        }
    };
    assert_eq!(bypassed, expected + 1);
    assert_eq!((cache.get(&1), cache.entry_count()), (None, 0));
}

#[test]
fn a_panicking_closure_leaves_the_entry_as_it_was() {
    let cache = Numbers::new(8);
    panics(|| cache.entry(1).and_upsert_with(|_| panic!("ouch")));
    assert!(!cache.contains_key(&1));
    cache.insert(1, 10);
    panics(|| cache.entry(1).and_upsert_with(|_| panic!("ouch")));
    panics(|| cache.entry(2).or_insert_with(|| panic!("ouch")));
    assert_eq!((cache.get(&1), cache.entry_count()), (Some(10), 1));
    assert_eq!(cache.entry(1).and_upsert_with(|v| v.map_or(1, |v| v + 1)).into_value(), Some(11));
}

#[test]
fn a_closure_may_call_back_into_the_cache() {
    let cache = Numbers::new(8);
    cache.insert(1, 10);
    cache.insert(2, 20);
    let put = cache.entry(1).and_upsert_with(|v| {
        assert_eq!(cache.get(&1).as_ref(), v);
        let other = cache.entry(2).and_upsert_with(|v| v.map_or(0, |v| v + 1)).into_value();
        cache.invalidate(&3);
        cache.run_pending_tasks();
        v.map_or(0, |v| v + other.unwrap_or(0))
    });
    assert_eq!(put, CompResult::ReplacedWith(31));
    assert_eq!((cache.get(&1), cache.get(&2)), (Some(31), Some(21)));
}

#[test]
fn computed_values_are_dropped_once() {
    let tally = Tally::default();
    let new = |n: u64| Counted::new(n, &tally);
    let cache: Cache<u64, Counted<u64>> = Cache::builder().max_capacity(4).reserve(16).build();
    for i in 0..200_u64 {
        let key = i % 7;
        match i % 5 {
            0 => drop(cache.entry(key).and_compute_with(|_| Op::Remove)),
            1 => drop(cache.entry(key).or_insert(new(i))),
            2 => drop(cache.entry(key).and_try_compute_with(|_| {
                let _unused = new(i);
                Err::<Op<_>, _>(())
            })),
            3 => {
                let again = Cell::new(true);
                drop(cache.entry(key).and_upsert_with(|_| {
                    if again.replace(false) {
                        cache.insert(key, new(i));
                    }
                    new(i)
                }));
            }
            _ => {
                let update = |_| async { new(i) };
                drop(poll_once(pin!(cache.entry(key).and_upsert_with_async(update))));
            }
        }
    }
    let resident = i64::try_from(cache.entry_count()).expect("few");
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == resident));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

// ---- Async ------------------------------------------------------------------------------------

/// Adds one when `gate` is open; `runs` are counted.
async fn add_one(gate: &Gate, runs: &Cell<u64>, value: Option<u64>) -> u64 {
    runs.set(runs.get() + 1);
    gate.pass().await;
    value.map_or(1, |v| v + 1)
}

#[test]
fn the_present_value_stays_readable_while_a_compute_runs() {
    let (cache, gate, runs) = (Numbers::new(8), Gate::default(), Cell::new(0));
    cache.insert(1, 10);
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(poll_once(add.as_mut()).is_pending());
    assert_eq!(cache.get(&1), Some(10));
    assert_eq!(poll_once(pin!(cache.get_with(1, pending()))), Poll::Ready(10));
    gate.open();
    assert_eq!(poll_once(add), Poll::Ready(CompResult::ReplacedWith(11)));
    assert_eq!((cache.get(&1), runs.get()), (Some(11), 1));
}

#[test]
fn async_computes_of_a_key_run_one_at_a_time() {
    for present in [None, Some(10)] {
        let (cache, flags) = (Numbers::new(8), [(); 3].map(|()| Flag::new()));
        if let Some(value) = present {
            cache.insert(1, value);
        }
        let (gates, runs) = ([(); 3].map(|()| Gate::default()), &Cell::new(0));
        let mut adds: Vec<_> = gates
            .iter()
            .map(|g| Box::pin(cache.entry(1).and_upsert_with_async(move |v| add_one(g, runs, v))))
            .collect();
        for (add, flag) in adds.iter_mut().zip(&flags) {
            assert!(flag.poll(add.as_mut()).is_pending());
        }
        assert_eq!(runs.get(), 1);
        for (i, gate) in gates.iter().enumerate() {
            gate.open();
            let value = present.unwrap_or(0) + i as u64 + 1;
            let Poll::Ready(added) = flags[i].poll(adds[i].as_mut()) else { panic!("it is open") };
            assert_eq!(added.into_value(), Some(value));
            if let Some(next) = adds.get_mut(i + 1) {
                assert!(flags[i + 1].take(), "the next is woken");
                assert!(flags[i + 1].poll(next.as_mut()).is_pending());
                assert_eq!(runs.get(), i as u64 + 2);
            }
        }
        assert_eq!(cache.get(&1), Some(present.unwrap_or(0) + 3));
    }
}

#[test]
fn computes_of_different_keys_do_not_wait_for_each_other() {
    let cache = Numbers::new(8);
    let mut stuck = pin!(cache.entry(1).and_upsert_with_async(|_| pending()));
    assert!(poll_once(stuck.as_mut()).is_pending());
    let free = pin!(cache.entry(2).and_upsert_with_async(|_| ready(2)));
    assert_eq!(poll_once(free), Poll::Ready(CompResult::Inserted(2)));
}

#[test]
fn an_async_compute_waits_for_the_load_under_way() {
    let (cache, flag, gate) = (Numbers::new(8), Flag::new(), Gate::default());
    let mut load = pin!(cache.get_with(1, async {
        gate.pass().await;
        100
    }));
    assert!(flag.poll(load.as_mut()).is_pending());
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(1, |v| v + 1))));
    assert!(flag.poll(add.as_mut()).is_pending());
    gate.open();
    flag.take();
    assert_eq!(flag.poll(load), Poll::Ready(100));
    assert!(flag.take());
    assert_eq!(flag.poll(add), Poll::Ready(CompResult::ReplacedWith(101)));
}

#[test]
fn an_async_compute_takes_over_the_load_whose_leader_goes() {
    let (cache, flag) = (Numbers::new(8), Flag::new());
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(flag.poll(leader.as_mut()).is_pending());
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| ready(v.map_or(1, |v| v + 1))));
    assert!(flag.poll(add.as_mut()).is_pending());
    let mut waiter = pin!(cache.get_with(1, pending()));
    assert!(flag.poll(waiter.as_mut()).is_pending());
    drop(leader);
    assert!(flag.take());
    assert_eq!(flag.poll(add), Poll::Ready(CompResult::Inserted(1)));
    assert_eq!(flag.poll(waiter), Poll::Ready(1));
    assert_eq!(cache.get(&1), Some(1));
}

#[test]
fn an_async_compute_of_an_absent_key_is_a_load_that_others_join() {
    let (cache, flag, gate, runs) = (Numbers::new(8), Flag::new(), Gate::default(), Cell::new(0));
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(flag.poll(add.as_mut()).is_pending());
    assert!(cache.contains_key(&1) && cache.get(&1).is_none());
    let mut joined = pin!(cache.get_with(1, pending()));
    assert!(flag.poll(joined.as_mut()).is_pending());
    gate.open();
    assert_eq!(flag.poll(add), Poll::Ready(CompResult::Inserted(1)));
    assert_eq!(flag.poll(joined), Poll::Ready(1));
    assert_eq!(cache.get(&1), Some(1));
}

#[test]
fn who_joined_a_compute_that_puts_nothing_starts_over() {
    for result in [Ok(Op::Nop), Ok(Op::Remove), Err(())] {
        let (cache, flag, gate) = (Numbers::new(8), Flag::new(), Gate::default());
        let gate = &gate;
        let mut nothing = pin!(cache.entry(1).and_try_compute_with_async(|_| async move {
            gate.pass().await;
            result
        }));
        assert!(flag.poll(nothing.as_mut()).is_pending());
        let mut joined = pin!(cache.get_with(1, ready(5)));
        assert!(flag.poll(joined.as_mut()).is_pending());
        gate.open();
        let Poll::Ready(ended) = flag.poll(nothing) else { panic!("the gate is open") };
        assert_eq!(ended, result.map(|_| CompResult::StillNone));
        assert!(flag.take());
        assert_eq!((flag.poll(joined), cache.get(&1)), (Poll::Ready(5), Some(5)));
    }
}

#[test]
fn each_async_operation_has_its_result() {
    fn run<F: Future>(f: F) -> F::Output {
        match poll_once(pin!(f)) {
            Poll::Ready(r) => r,
            Poll::Pending => panic!("nobody is in the way"),
        }
    }
    let cache = Numbers::new(8);
    let compute = |op: Op<u64>| run(cache.entry(1).and_compute_with_async(|_| ready(op)));
    assert_eq!(compute(Op::Nop), CompResult::StillNone);
    assert_eq!(compute(Op::Remove), CompResult::StillNone);
    assert_eq!(compute(Op::Put(10)), CompResult::Inserted(10));
    assert_eq!(compute(Op::Put(11)), CompResult::ReplacedWith(11));
    assert_eq!(compute(Op::Nop), CompResult::Unchanged(11));
    let fail = cache.entry(1).and_try_compute_with_async(|v| ready(Err::<Op<u64>, _>(v)));
    assert_eq!(run(fail), Err(Some(11)));
    assert_eq!(compute(Op::Remove), CompResult::Removed(11));
    assert_eq!((cache.entry_count(), cache.get(&1)), (0, None));
    assert_eq!(run(cache.entry(1).or_insert_with_async(ready(3))), 3);
    let there = cache.entry(1).or_try_insert_with_async(ready(Err::<u64, _>("no")));
    assert_eq!(run(there), Ok(3));
}

#[test]
fn a_write_while_an_async_compute_runs_makes_it_run_again() {
    type Write = (fn(&Numbers), u64);
    let writes: [Write; 5] = [
        (|cache| cache.insert(1, 100), 101),
        (|cache| assert!(cache.invalidate(&1)), 1),
        (|cache| cache.invalidate_all(), 1),
        (
            |cache| {
                cache.remove(&1);
                cache.insert(1, 200);
            },
            201,
        ),
        (
            |cache| {
                let _ = cache.entry(1).and_upsert_with(|v| v.map_or(50, |v| v + 5));
            },
            0, // by what was there
        ),
    ];
    for (write, expected) in writes {
        for present in [None, Some(10)] {
            let (cache, gate, runs) = (Numbers::new(8), Gate::default(), Cell::new(0));
            if let Some(value) = present {
                cache.insert(1, value);
            }
            let expected = match expected {
                0 => present.map_or(51, |v| v + 6),
                n => n,
            };
            let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
            assert!(poll_once(add.as_mut()).is_pending());
            write(&cache);
            gate.open();
            let Poll::Ready(added) = poll_once(add) else { panic!("the gate is open") };
            assert_eq!(added.into_value(), Some(expected));
            assert_eq!((cache.get(&1), runs.get()), (Some(expected), 2));
        }
    }
}

#[test]
fn a_removal_passes_over_no_write_that_came_in_between() {
    for present in [None, Some(10)] {
        let (cache, gate) = (Numbers::new(8), Gate::default());
        if let Some(value) = present {
            cache.insert(1, value);
        }
        let seen = Mutex::new(vec![]);
        let (gate, seen) = (&gate, &seen);
        let mut remove = pin!(cache.entry(1).and_compute_with_async(|v| async move {
            seen.lock().unwrap().push(v);
            gate.pass().await;
            if v == Some(100) { Op::Nop } else { Op::Remove }
        }));
        assert!(poll_once(remove.as_mut()).is_pending());
        cache.insert(1, 100);
        gate.open();
        assert_eq!(poll_once(remove), Poll::Ready(CompResult::Unchanged(100)));
        assert_eq!(*seen.lock().unwrap(), [present, Some(100)]);
    }
}

#[test]
fn a_value_that_is_replaced_by_an_equal_one_counts_as_replaced() {
    let (cache, gate, runs) = (Numbers::new(8), Gate::default(), Cell::new(0));
    cache.insert(1, 10);
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(poll_once(add.as_mut()).is_pending());
    // However often the slots go round.
    for _ in 0..1000 {
        cache.invalidate(&1);
        cache.run_pending_tasks();
        cache.insert(1, 10);
    }
    gate.open();
    assert_eq!(poll_once(add), Poll::Ready(CompResult::ReplacedWith(11)));
    assert_eq!(runs.get(), 2);
}

#[test]
fn an_entry_that_expires_or_is_evicted_while_an_async_compute_runs_is_computed_anew() {
    let time = ManualTime::new();
    let cache: Numbers =
        Cache::builder().max_capacity(8).time_to_live(SECOND).time_source(time.clone()).build();
    let (gate, runs) = (Gate::default(), Cell::new(0));
    cache.insert(1, 10);
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(poll_once(add.as_mut()).is_pending());
    time.advance(SECOND * 2);
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
    gate.open();
    assert_eq!(poll_once(add), Poll::Ready(CompResult::Inserted(1)));

    let cache: Numbers = Cache::builder().max_capacity(8).reserve(16).build();
    let (gate, runs) = (Gate::default(), Cell::new(0));
    cache.insert(1, 10);
    let mut add = pin!(cache.entry(1).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(poll_once(add.as_mut()).is_pending());
    let mut others = 100..;
    while cache.contains_key(&1) {
        cache.insert(others.next().expect("enough"), 0);
    }
    gate.open();
    assert_eq!(poll_once(add), Poll::Ready(CompResult::Inserted(1)));
}

#[test]
fn a_dropped_compute_leaves_the_entry_as_it_was_and_the_next_goes_on() {
    for present in [None, Some(10)] {
        let (cache, flag) = (Numbers::new(8), Flag::new());
        if let Some(value) = present {
            cache.insert(1, value);
        }
        let mut first = Box::pin(cache.entry(1).and_upsert_with_async(|_| pending()));
        let mut idle = Box::pin(cache.entry(1).and_upsert_with_async(|_| pending()));
        let add = |v: Option<u64>| ready(v.map_or(1, |v| v + 1));
        let mut last = pin!(cache.entry(1).and_upsert_with_async(add));
        assert!(poll_once(first.as_mut()).is_pending());
        assert!(poll_once(idle.as_mut()).is_pending());
        assert!(flag.poll(last.as_mut()).is_pending());
        drop(first);
        assert_eq!(cache.get(&1), present);
        // The second is not polled again, and holds nobody up.
        assert!(flag.take());
        assert!(
            matches!(flag.poll(last), Poll::Ready(r) if r.value() == Some(&(present.unwrap_or(0) + 1)))
        );
        drop(idle);
        assert_eq!(cache.get(&1), Some(present.unwrap_or(0) + 1));
    }
}

#[test]
fn a_thousand_dropped_computes_leave_nothing_behind() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::builder().max_capacity(8).reserve(16).build();
    for i in 0..1000 {
        let key = i % 3;
        if i % 2 == 0 {
            cache.insert(key, Counted::new(i, &tally));
        }
        let mut a = Box::pin(cache.entry(key).and_upsert_with_async(|_| pending()));
        let mut b = Box::pin(cache.entry(key).and_upsert_with_async(|_| pending()));
        assert!(poll_once(a.as_mut()).is_pending() && poll_once(b.as_mut()).is_pending());
        if i % 3 == 0 {
            cache.invalidate(&key);
        }
        drop(a);
        assert!(poll_once(b.as_mut()).is_pending());
    }
    let resident = i64::try_from(cache.entry_count()).expect("few");
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == resident));
    // No slot is lost: as many inserts as there are slots.
    for i in 0..1000 {
        cache.insert(i, Counted::new(i, &tally));
        cache.run_pending_tasks();
    }
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn what_a_forgotten_compute_held_goes_with_the_cache() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::builder().max_capacity(8).reserve(16).build();
    for key in 0..2 {
        cache.insert(0, Counted::new(0, &tally));
        let mut never = Box::pin(cache.entry(key).and_upsert_with_async(|v| async move {
            let _held = v;
            pending().await
        }));
        assert!(poll_once(never.as_mut()).is_pending());
        std::mem::forget(never);
    }
    // The leased slot is out of use, and no other.
    cache.invalidate(&0);
    for i in 0..100 {
        cache.insert(i % 5, Counted::new(i, &tally));
        cache.run_pending_tasks();
    }
    // The copy that the forgotten future was given is forgotten too.
    let before = tally.alive();
    let resident = 5;
    assert!(before > resident, "one leased, one copy");
    drop(cache);
    assert_eq!(tally.alive(), 1);
}

#[test]
fn a_panicking_async_compute_leaves_the_entry_as_it_was_and_the_next_goes_on() {
    for present in [None, Some(10)] {
        for late in [false, true] {
            let (cache, flag, gate) = (Numbers::new(8), Flag::new(), Gate::default());
            if let Some(value) = present {
                cache.insert(1, value);
            }
            let gate = &gate;
            let mut shout = Box::pin(cache.entry(1).and_upsert_with_async(|_| {
                let closed = gate.0.load(SeqCst) == 0;
                assert!(late || closed, "ouch");
                async move {
                    gate.pass().await;
                    assert!(!late, "ouch");
                    unreachable!()
                }
            }));
            if late {
                assert!(flag.poll(shout.as_mut()).is_pending());
            }
            gate.open();
            let add = |v: Option<u64>| ready(v.map_or(1, |v| v + 1));
            let mut next = pin!(cache.entry(1).and_upsert_with_async(add));
            if late {
                assert!(flag.poll(next.as_mut()).is_pending());
            }
            panics(|| flag.poll(shout.as_mut()));
            // The one that panicked is still there, and holds nothing.
            assert_eq!(cache.get(&1), present);
            let expected = present.unwrap_or(0) + 1;
            assert!(matches!(flag.poll(next), Poll::Ready(r) if r.value() == Some(&expected)));
            panics(|| flag.poll(shout.as_mut()));
        }
    }
}

#[test]
fn a_compute_of_the_key_that_is_computed_panics_at_once() {
    for present in [None, Some(10)] {
        let cache = Numbers::new(8);
        if let Some(value) = present {
            cache.insert(1, value);
        }
        let nested = |_| async {
            cache.entry(1).and_upsert_with_async(|_| ready(1)).await.into_value().unwrap_or(0)
        };
        panics(|| poll_once(pin!(cache.entry(1).and_upsert_with_async(nested))));
        assert_eq!(cache.get(&1), present);
        let load = cache.get_with(2, async {
            cache.entry(2).and_upsert_with_async(|_| ready(1)).await.into_value().unwrap_or(0)
        });
        panics(|| poll_once(pin!(load)));
        let asking = |_: Option<u64>| async { cache.get_with(1, ready(5)).await };
        let asked = catch_unwind(AssertUnwindSafe(|| {
            poll_once(pin!(cache.entry(1).and_upsert_with_async(asking)))
        }));
        assert_eq!(asked.is_ok(), present.is_some(), "a hit is no recursion");
        assert!(cache.entry(1).and_upsert_with(|_| 1).value().is_some(), "the key is usable");
    }
}

#[test]
fn a_compute_of_an_expired_value_is_a_load() {
    let time = ManualTime::new();
    let cache: Numbers =
        Cache::builder().max_capacity(8).time_to_live(SECOND).time_source(time.clone()).build();
    cache.insert(1, 10);
    time.advance(SECOND);
    let add = |v: Option<u64>| ready(v.map_or(1, |v| v + 1));
    let added = poll_once(pin!(cache.entry(1).and_upsert_with_async(add)));
    assert_eq!(added, Poll::Ready(CompResult::Inserted(1)));
    time.advance(SECOND - Duration::from_millis(1));
    assert_eq!(cache.get(&1), Some(1));
    time.advance(Duration::from_millis(1));
    assert_eq!(cache.get(&1), None);
}

/// All keys have one place for a queue here: the second key's computes are kept apart by the lease.
#[test]
fn keys_that_compete_for_a_queue_lose_no_update() {
    let cache: Cache<u64, u64, Collide> =
        Cache::builder().max_capacity(8).build_with_hasher(Collide);
    cache.insert(1, 10);
    cache.insert(2, 20);
    let (flag, gate, runs) = (Flag::new(), Gate::default(), Cell::new(0));
    let mut queue = pin!(cache.entry(1).and_upsert_with_async(|_| pending()));
    assert!(flag.poll(queue.as_mut()).is_pending());
    let mut first = Box::pin(cache.entry(2).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    let mut second = Box::pin(cache.entry(2).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    let mut third = Box::pin(cache.entry(2).and_upsert_with_async(|v| add_one(&gate, &runs, v)));
    assert!(flag.poll(first.as_mut()).is_pending());
    assert!(flag.poll(second.as_mut()).is_pending());
    assert!(flag.poll(third.as_mut()).is_pending());
    assert_eq!(runs.get(), 1, "one at a time");
    drop(first);
    assert!(flag.take());
    gate.open();
    assert_eq!(flag.poll(third.as_mut()), Poll::Ready(CompResult::ReplacedWith(21)));
    assert_eq!(flag.poll(second.as_mut()), Poll::Ready(CompResult::ReplacedWith(22)));
}

#[test]
fn async_computes_may_borrow_and_be_sent() {
    fn is_send<T: Send>(t: T) -> T {
        t
    }
    let (cache, text) = (Cache::<String, usize>::new(8), String::from("borrowed"));
    let by: &str = &text;
    let add =
        cache.entry("a".into()).and_upsert_with_async(|n| async move { n.unwrap_or(0) + by.len() });
    assert_eq!(poll_once(pin!(is_send(add))), Poll::Ready(CompResult::Inserted(8)));
    let not_send = std::rc::Rc::new(3);
    let add = cache.entry("a".into()).and_compute_with_async(|n| {
        let not_send = not_send.clone();
        async move { Op::Put(n.unwrap_or(0) + *not_send) }
    });
    assert_eq!(poll_once(pin!(add)), Poll::Ready(CompResult::ReplacedWith(11)));
}

// ---- Under stress -----------------------------------------------------------------------------

const THREADS: usize = 8;
const ADDS: u64 = if cfg!(miri) { 20 } else { 1_000 };

/// Eight threads add one to one key by `add`; the sum is right.
fn eight_threads_add(add: impl Fn(&Numbers, u64) -> CompResult<u64> + Sync) {
    let cache = Numbers::new(1000);
    let meeting = Meeting::new(THREADS);
    std::thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                meeting.seat().wait();
                for i in 0..ADDS {
                    // Others' keys come and go meanwhile.
                    match i % 4 {
                        0 => cache.insert(2 + i % 100, i),
                        1 => drop(cache.invalidate(&(2 + i % 100))),
                        _ => {}
                    }
                    let added = add(&cache, 1);
                    assert!(matches!(added, CompResult::Inserted(_) | CompResult::ReplacedWith(_)));
                }
            });
        }
    });
    assert_eq!(cache.get(&1), Some(THREADS as u64 * ADDS));
}

#[test]
fn eight_threads_lose_no_update_by_upsert() {
    eight_threads_add(|cache, key| cache.entry(key).and_upsert_with(|v| v.map_or(1, |v| v + 1)));
}

#[test]
fn eight_threads_lose_no_update_by_compute() {
    eight_threads_add(|cache, key| {
        cache.entry(key).and_compute_with(|v| Op::Put(v.map_or(1, |v| v + 1)))
    });
}

#[test]
fn eight_threads_lose_no_update_by_async_upsert() {
    eight_threads_add(|cache, key| {
        smol::block_on(cache.entry(key).and_upsert_with_async(|v| async move {
            turn().await;
            v.map_or(1, |v| v + 1)
        }))
    });
}

#[test]
fn eight_threads_lose_no_update_by_one_way_or_another() {
    let turns = AtomicUsize::new(0);
    eight_threads_add(|cache, key| match turns.fetch_add(1, SeqCst) % 3 {
        0 => cache.entry(key).and_upsert_with(|v| v.map_or(1, |v| v + 1)),
        1 => cache.entry(key).and_compute_with(|v| Op::Put(v.map_or(1, |v| v + 1))),
        _ => smol::block_on(cache.entry(key).and_upsert_with_async(|v| async move {
            turn().await;
            v.map_or(1, |v| v + 1)
        })),
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_tasks_lose_no_update_and_run_one_at_a_time() {
    let cache = Numbers::new(100);
    let running = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let (cache, running) = (cache.clone(), running.clone());
            tokio::spawn(async move {
                for _ in 0..20 {
                    let added = cache.entry(1).and_upsert_with_async(|v| {
                        let running = &running;
                        async move {
                            assert_eq!(running.fetch_add(1, SeqCst), 0, "one at a time");
                            tokio::task::yield_now().await;
                            running.fetch_sub(1, SeqCst);
                            v.map_or(1, |v| v + 1)
                        }
                    });
                    let _ = added.await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    assert_eq!(cache.get(&1), Some(2_000));
}

/// A value of a life of its own: whatever else happens to the key, no two updates come from one value.
#[test]
fn no_two_updates_come_from_one_value_whatever_happens_to_the_key() {
    type Lives = Cache<u64, (u64, u64)>;
    const KEYS: u64 = 5;
    let lives = AtomicU64::new(0);
    let begin = || (lives.fetch_add(1, SeqCst), 1);
    // So small that keys are evicted, and slots go round.
    let cache: Lives = Cache::builder().max_capacity(4).reserve(64).build();
    let meeting = Meeting::new(THREADS);
    let is_over = AtomicBool::new(false);
    let updates = std::thread::scope(|s| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|thread| {
                let (cache, meeting, begin) = (&cache, &meeting, &begin);
                s.spawn(move || {
                    let mut random = Random(thread);
                    let mut updates = vec![];
                    meeting.seat().wait();
                    for _ in 0..ADDS {
                        let key = random.below(KEYS);
                        let next =
                            |v: Option<(u64, u64)>| v.map_or_else(begin, |(life, n)| (life, n + 1));
                        let result = match random.below(8) {
                            0 | 1 => cache.entry(key).and_upsert_with(|v| next(v.copied())),
                            2 => cache.entry(key).and_compute_with(|v| Op::Put(next(v.copied()))),
                            3 | 4 => smol::block_on(cache.entry(key).and_upsert_with_async(
                                |v| async move {
                                    turn().await;
                                    next(v)
                                },
                            )),
                            5 => {
                                cache.insert(key, begin());
                                continue;
                            }
                            6 => {
                                cache.invalidate(&key);
                                continue;
                            }
                            _ => {
                                smol::block_on(cache.get_with(key, async {
                                    turn().await;
                                    begin()
                                }));
                                continue;
                            }
                        };
                        // A value that found no place is an update all the same.
                        if let CompResult::ReplacedWith(value) | CompResult::Bypassed(value) =
                            result
                        {
                            updates.push((key, value));
                        }
                    }
                    updates
                })
            })
            .collect();
        // Now and then there is no slot.
        s.spawn(|| {
            while !is_over.load(SeqCst) {
                let refused = cache.stats().refused;
                let pin = cache.pin();
                while !is_over.load(SeqCst) && cache.stats().refused < refused + 10 {
                    std::thread::yield_now();
                }
                drop(pin);
                std::thread::yield_now();
            }
        });
        let ended: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
        is_over.store(true, SeqCst);
        ended.into_iter().flat_map(|e| e.expect("no panic")).collect::<Vec<_>>()
    });
    assert!(cache.stats().refused > 0);
    let distinct: HashSet<_> = updates.iter().collect();
    assert_eq!(distinct.len(), updates.len(), "two updates of one value");
    assert!(updates.len() > 100, "there were some");
}

#[test]
fn counted_values_survive_the_stress_and_are_dropped_once() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::builder().max_capacity(4).reserve(64).build();
    std::thread::scope(|s| {
        for thread in 0..THREADS as u64 {
            let (cache, tally) = (&cache, &tally);
            s.spawn(move || {
                let mut random = Random(thread);
                for i in 0..ADDS / 2 {
                    let key = random.below(5);
                    let new = |v: Option<u64>| Counted::new(v.unwrap_or(i), tally);
                    match random.below(6) {
                        0 => drop(cache.entry(key).and_upsert_with(|v| new(v.map(|v| v.inner)))),
                        1 => drop(cache.entry(key).and_compute_with(|_| Op::Remove)),
                        2 => cache.insert(key, new(None)),
                        3 => drop(cache.invalidate(&key)),
                        4 => {
                            // Polled once, then dropped.
                            let never = cache.entry(key).and_upsert_with_async(|v| async move {
                                turn().await;
                                v.unwrap_or_else(|| new(None))
                            });
                            let mut never = pin!(never);
                            let _ = poll_once(never.as_mut());
                        }
                        _ => {
                            let update = cache.entry(key).and_compute_with_async(|v| async move {
                                turn().await;
                                if i % 2 == 0 {
                                    Op::Remove
                                } else {
                                    Op::Put(v.unwrap_or_else(|| new(None)))
                                }
                            });
                            drop(smol::block_on(update));
                        }
                    }
                }
            });
        }
    });
    let resident = i64::try_from(cache.entry_count()).expect("few");
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == resident));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn a_result_says_whether_it_is_kept() {
    let value = CompResult::Bypassed(1);
    assert!(value.is_bypassed() && value.value() == Some(&1));
    assert!(!CompResult::Inserted(1).is_bypassed());
    assert_eq!(CompResult::Removed(1).into_value(), None);
    let never: Result<CompResult<u64>, Infallible> =
        Numbers::new(8).entry(1).and_try_compute_with(|_| Ok(Op::Nop));
    assert_eq!(never, Ok(CompResult::StillNone));
}

#[test]
fn an_async_compute_drives_the_loaders_load_that_it_waits_for() {
    let is_open = Arc::new(AtomicBool::new(false));
    let gate = is_open.clone();
    let lengths = Cache::<u64, u64>::builder()
        .max_capacity(8)
        .loader_infallible(move |key: u64| {
            let gate = gate.clone();
            poll_fn(move |_| match gate.load(SeqCst) {
                true => Poll::Ready(key),
                false => Poll::Pending,
            })
        })
        .build();
    let cx = &mut Context::from_waker(Waker::noop());
    let mut never_polled_again = pin!(lengths.get(1));
    assert!(never_polled_again.as_mut().poll(cx).is_pending());
    let add = |v: Option<u64>| ready(v.map_or(0, |v| v + 1));
    let mut add = pin!(lengths.cache().entry(1).and_upsert_with_async(add));
    assert!(add.as_mut().poll(cx).is_pending());
    is_open.store(true, SeqCst);
    assert_eq!(add.poll(cx), Poll::Ready(CompResult::ReplacedWith(2)));
}

// ---- What a decision may ask for ------------------------------------------------------------------

#[test]
fn a_decision_that_asks_for_its_own_key_is_told_at_once_as_its_future_is() {
    let cache = Numbers::new(8);
    // The key is absent, and the run is its load.
    panics(|| {
        let compute = cache.entry(1).and_upsert_with_async(|_| {
            ready(cache.get_or_insert_with_timeout(1, Duration::ZERO, || 1).unwrap_or(2))
        });
        let _ = poll_once(pin!(compute));
    });
    // It is there, and computes of it queue.
    cache.insert(1, 1);
    panics(|| {
        let compute = cache.entry(1).and_upsert_with_async(|_| {
            let inner = cache.entry(1).and_upsert_with_async(|_| ready(2));
            ready(u64::from(poll_once(pin!(inner)).is_ready()))
        });
        let _ = poll_once(pin!(compute));
    });
    assert_eq!(cache.get(&1), Some(1));
    assert!(poll_once(pin!(cache.entry(1).and_upsert_with_async(|_| ready(3)))).is_ready());
}

#[test]
fn what_or_insert_finds_is_a_hit_and_what_it_does_not_find_a_miss() {
    let cache = Numbers::new(8);
    assert_eq!(cache.entry(1).or_insert(10), 10);
    assert_eq!(cache.entry(1).or_insert(11), 10);
    assert_eq!(cache.entry(2).or_insert_with(|| 20), 20);
    assert_eq!(cache.entry(2).or_insert_with(|| 21), 20);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (2, 2));
}

#[test]
fn a_compute_of_an_absent_key_that_fails_is_a_load_that_failed() {
    let cache = Numbers::new(8);
    let compute = cache.entry(1).and_try_compute_with_async(|_| ready(Err("no")));
    assert_eq!(poll_once(pin!(compute)), Poll::Ready(Err("no")));
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_failures), (1, 1));
}
