//! Loads under every kind of trouble, line by line: the tests named `line01_` to `line15_` hold the lines of
//! that number of their contract. Polled by hand where the order of polls matters, and on three runtimes where
//! tasks do. What needs a measure of memory is in `lines_memory.rs`.

mod common;

use std::cell::Cell;
use std::future::{Future, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use alru::{AlruCache, Cache, LoadError, LoadingCache};
use common::runtimes::{LIMIT, block_until, on_all_runtimes, poll_here, until};
use common::sources::{Cached, Caller, Function, Source, Verdict, call, load_around, value};
use common::{Counted, Flag, Tally, poll_once};

type Loads = Cache<u64, u64>;

// Line 1

#[test]
fn line01_a_caller_that_is_never_polled_again_holds_nobody_up() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut idle: Vec<_> = (0..3).map(|_| Caller::waiting(&cache, 1)).collect();
    let mut keen = Caller::waiting(&cache, 1);
    function.set(Verdict::Value);
    assert_eq!(value(keen.poll_if_woken()), 10);
    for caller in &mut idle {
        assert_eq!(value(caller.poll()), 10);
    }
    assert_eq!(function.runs(), 1);
}

on_all_runtimes! {
    async fn line01_a_first_caller_that_is_not_polled_again_keeps_no_task_from_the_value(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let mut idle = Box::pin(cache.call(1));
        assert!(poll_here(idle.as_mut()).await.is_pending());
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(1).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 3).await;
        function.set(Verdict::Value);
        for task in tasks {
            assert_eq!(task.join().await.expect("a value"), 10);
        }
        assert_eq!(cache.call(1).await.expect("cached"), 10);
        assert_eq!(idle.await.expect("a value"), 10);
        assert_eq!(function.runs(), 1);
    }
}

#[test]
fn line01_a_caller_whose_leader_is_not_polled_again_may_steal_the_load() {
    let cache = Loads::new(8);
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    let patience = Source::default();
    let call = cache.get_with(1, ready(2)).steal_after(|| patience.load(()));
    let (flag, mut caller) = (Flag::new(), Box::pin(call));
    assert!(flag.poll(caller.as_mut()).is_pending());
    assert!(flag.poll(caller.as_mut()).is_pending(), "it waits for the leader");
    patience.open();
    assert!(flag.take(), "not woken");
    assert_eq!(flag.poll(caller.as_mut()), Poll::Ready(2));
    assert_eq!((patience.begun(), cache.get(&1)), (1, Some(2)));
}

on_all_runtimes! {
    async fn line01_tasks_whose_leader_is_not_polled_again_run_one_load_of_their_own(runtime) {
        let cache = Loads::new(8);
        let (source, patience) = (Source::default(), Source::default());
        source.open();
        let mut leader = Box::pin(cache.get_with(1, pending()));
        assert!(poll_here(leader.as_mut()).await.is_pending());
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let (cache, load, patience) = (cache.clone(), source.load(n), patience.clone());
                runtime.spawn(async move {
                    cache.get_with(1, load).steal_after(|| patience.load(())).await
                })
            })
            .collect();
        until(|| patience.begun() == 10).await;
        patience.open();
        let mut values = Vec::new();
        for task in tasks {
            values.push(task.join().await);
        }
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        assert_eq!((source.begun(), cache.get(&1)), (1, Some(values[0])));
    }
}

// Line 2

#[test]
fn line02_a_waiter_that_is_not_polled_again_holds_nobody_up() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut idle = Box::pin(cache.get_with(1, source.load(2)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(idle.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert!(flag.take());
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
}

#[test]
fn line02_a_waiter_of_a_shared_load_that_is_not_polled_again_holds_nobody_up() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut first = Caller::waiting(&cache, 1);
    let mut idle = Caller::waiting(&cache, 1);
    let mut keen = Caller::waiting(&cache, 1);
    function.set(Verdict::Value);
    assert_eq!(value(first.poll_if_woken()), 10);
    assert_eq!(value(keen.poll_if_woken()), 10);
    assert_eq!(value(idle.poll()), 10);
}

on_all_runtimes! {
    async fn line02_a_waiter_that_is_not_polled_again_keeps_no_task_from_the_value(runtime) {
        let cache = Loads::new(8);
        let source = Source::default();
        let call = |n| {
            let (cache, load) = (cache.clone(), source.load(n));
            async move { cache.get_with(1, load).await }
        };
        let leader = runtime.spawn(call(1));
        until(|| source.begun() == 1).await;
        let mut idle = Box::pin(call(2));
        assert!(poll_here(idle.as_mut()).await.is_pending());
        let waiter = runtime.spawn(call(3));
        until(|| cache.stats().hits == 2).await;
        source.open();
        assert_eq!((leader.join().await, waiter.join().await), (1, 1));
        assert_eq!(idle.await, 1);
    }
}

// Line 3

#[test]
fn line03_when_the_leader_is_dropped_a_waiter_leads_with_its_own_loader() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();

    drop(leader);
    assert!(flag.take(), "not woken");
    assert_eq!((source.begun(), source.gone()), (1, 1));
    assert!(flag.poll(waiter.as_mut()).is_pending());
    assert_eq!(source.begun(), 2);
    source.open();
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(2));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn line03_a_successor_that_is_never_polled_holds_up_neither_waiters_nor_newcomers() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut idle = Box::pin(cache.get_with(1, source.load(2)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(idle.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();

    drop(leader);
    assert!(flag.take(), "not woken");
    let newcomer = pin!(cache.get_with(1, source.load(4)));
    assert_eq!(poll_once(newcomer), Poll::Ready(4));
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(4));
    assert_eq!(poll_once(idle.as_mut()), Poll::Ready(4));
}

on_all_runtimes! {
    async fn line03_a_cancelled_leader_and_an_idle_successor_keep_no_task_from_a_value(runtime) {
        let cache = Loads::new(8);
        let (stuck, source) = (Source::default(), Source::default());
        source.open();
        let call = |source: &Source, n| {
            let (cache, load) = (cache.clone(), source.load(n));
            async move { cache.get_with(1, load).await }
        };
        let leader = runtime.spawn(call(&stuck, 1));
        until(|| stuck.begun() == 1).await;
        let mut idle = Box::pin(call(&source, 2));
        assert!(poll_here(idle.as_mut()).await.is_pending());
        let waiter = runtime.spawn(call(&source, 3));
        until(|| cache.stats().hits == 2).await;
        leader.cancel().await;
        let newcomer = runtime.spawn(call(&source, 4));
        let (old, new) = (waiter.join().await, newcomer.join().await);
        assert!(old == 3 || old == 4, "{old}");
        assert_eq!((new, idle.await), (old, old));
        assert_eq!((stuck.gone(), source.begun()), (1, 1));
    }
}

// Line 4

#[test]
fn line04_an_error_reaches_every_caller_of_its_run_and_is_not_kept() {
    let cache = Loads::new(8);
    let source = Source::default();
    let fail = || Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("broken"))));
    let mut callers: Vec<_> = (0..20).map(|_| (Flag::new(), fail())).collect();
    for (flag, caller) in &mut callers {
        assert!(flag.poll(caller.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    let (_, mut leader) = callers.remove(0);
    let Poll::Ready(Err(error)) = poll_once(leader.as_mut()) else {
        panic!("the loader fails");
    };
    for (flag, mut caller) in callers {
        assert!(flag.take(), "not woken");
        match flag.poll(caller.as_mut()) {
            Poll::Ready(Err(other)) => assert!(Arc::ptr_eq(&error, &other)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.begun(), 1);
    assert_eq!(cache.stats().load_failures, 1);

    assert_eq!(cache.entry_count(), 0);
    let retry = pin!(cache.try_get_with(1, ready(Ok::<_, &str>(2))));
    assert_eq!(poll_once(retry), Poll::Ready(Ok(2)));
    assert_eq!(cache.get(&1), Some(2));
}

on_all_runtimes! {
    async fn line04_twenty_tasks_have_the_error_of_one_run_at_its_end(runtime) {
        let cache = Loads::new(8);
        let source = Source::default();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (cache, load) = (cache.clone(), source.load(Err::<u64, _>("broken")));
                runtime.spawn(async move { cache.try_get_with(1, load).await })
            })
            .collect();
        until(|| cache.stats().hits == 19).await;
        source.open();
        let mut errors = Vec::new();
        for task in tasks {
            errors.push(task.join().await.expect_err("broken"));
        }
        assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
        assert_eq!((source.begun(), cache.stats().load_failures), (1, 1));
    }
}

// Line 5

#[test]
fn line05_a_thousand_leaders_dropped_in_a_row_leave_the_patient_waiter_its_value() {
    let cache = Loads::new(8);
    let stuck = Source::default();
    let (flag, mut patient) = (Flag::new(), Box::pin(cache.get_with(1, ready(7))));
    let mut leader = Box::pin(cache.get_with(1, stuck.load(0)));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(patient.as_mut()).is_pending());
    for value in 1..1_000 {
        // A new caller joins, the leader goes, and the new caller leads before the patient one
        // is polled.
        let mut next = Box::pin(cache.get_with(1, stuck.load(value)));
        assert!(poll_once(next.as_mut()).is_pending());
        drop(std::mem::replace(&mut leader, next));
        assert!(poll_once(leader.as_mut()).is_pending());
        assert_eq!(stuck.begun() as u64, value + 1);
        assert!(flag.poll(patient.as_mut()).is_pending());
    }
    flag.take();
    drop(leader);
    assert!(flag.take(), "not woken");
    assert_eq!(flag.poll(patient.as_mut()), Poll::Ready(7));
}

#[test]
fn line05_a_thousand_first_callers_of_a_shared_load_dropped_in_a_row_leave_its_one_run_alone() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut leader = Caller::waiting(&cache, 1);
    let mut patient = Caller::waiting(&cache, 1);
    for _ in 0..1_000 {
        let next = Caller::waiting(&cache, 1);
        drop(std::mem::replace(&mut leader, next));
        assert!(patient.poll().is_pending());
    }
    drop(leader);
    function.set(Verdict::Value);
    assert_eq!(value(patient.poll_if_woken()), 10);
    assert_eq!((function.runs(), function.gone()), (1, 1));
}

on_all_runtimes! {
    async fn line05_a_thousand_cancelled_tasks_leave_the_patient_one_its_value(runtime) {
        let cache = Loads::new(8);
        let (stuck, source) = (Source::default(), Source::default());
        let call = |source: &Source, n| {
            let (cache, load) = (cache.clone(), source.load(n));
            async move { cache.get_with(1, load).await }
        };
        let mut leader = runtime.spawn(call(&stuck, 1));
        until(|| stuck.begun() == 1).await;
        let patient = runtime.spawn(call(&source, 7));
        until(|| cache.stats().hits == 1).await;
        for n in 0..1_000 {
            let next = runtime.spawn(call(&stuck, 1));
            until(|| cache.stats().hits == n + 2).await;
            std::mem::replace(&mut leader, next).cancel().await;
        }
        leader.cancel().await;
        source.open();
        assert_eq!(patient.join().await, 7);
        assert_eq!((stuck.begun(), source.begun()), (stuck.gone(), 1));
    }
}

// Line 6

#[test]
fn line06_the_result_of_an_invalidated_load_is_not_stored() {
    let cache = Loads::new(8);
    load_around(&cache, || assert!(cache.invalidate(&1)));
    assert_eq!(cache.get(&1), None);
    load_around(&cache, || assert_eq!(cache.remove(&1), None));
    assert_eq!(cache.get(&1), None);
    load_around(&cache, || cache.invalidate_all());
    assert_eq!(cache.get(&1), None);
    // Even one that keeps all: nobody can say what the load will bring.
    load_around(&cache, || cache.retain(|_, _| true));
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn line06_a_caller_after_an_invalidation_gets_a_load_that_began_after_it() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut old = pin!(cache.get_with(1, source.load(1)));
    assert!(poll_once(old.as_mut()).is_pending());
    cache.invalidate(&1);
    let mut new = pin!(cache.get_with(1, source.load(2)));
    assert!(poll_once(new.as_mut()).is_pending());
    assert_eq!(source.begun(), 2);
    source.open();

    // The old one ends first, and touches its own entry only.
    assert_eq!(poll_once(old.as_mut()), Poll::Ready(1));
    assert_eq!(cache.get(&1), None);
    assert_eq!(poll_once(new.as_mut()), Poll::Ready(2));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn line06_an_error_or_a_panic_of_an_invalidated_load_touches_nothing() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut fails = Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("late"))));
    assert!(poll_once(fails.as_mut()).is_pending());
    cache.invalidate(&1);
    let mut panics = Box::pin(cache.get_with(1, async {
        source.load(()).await;
        panic!("late")
    }));
    assert!(poll_once(panics.as_mut()).is_pending());
    cache.invalidate_all();
    let mut last = Box::pin(cache.get_with(1, source.load(3)));
    assert!(poll_once(last.as_mut()).is_pending());
    source.open();
    assert_eq!(poll_once(fails.as_mut()), Poll::Ready(Err(Arc::new("late"))));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(panics.as_mut()))).is_err());
    assert_eq!((cache.entry_count(), cache.contains_key(&1)), (1, true));
    assert_eq!(poll_once(last.as_mut()), Poll::Ready(3));
    assert_eq!(cache.get(&1), Some(3));
}

/// Gives the others some turns.
async fn turns(n: u64) {
    let mut left = n;
    until(|| {
        left = left.saturating_sub(1);
        left == 0
    })
    .await;
}

on_all_runtimes! {
    async fn line06_who_calls_after_an_invalidation_never_gets_a_load_that_began_before(runtime) {
        // Each load gives the number of the last invalidation of its key that had begun when it began.
        let begun: Arc<[AtomicU64; 3]> = Arc::default();
        let done: Arc<[AtomicU64; 3]> = Arc::default();
        let cache = Loads::new(64);
        let memo: AlruCache<u64, u64> = {
            let begun = begun.clone();
            AlruCache::builder_infallible(move |key: u64| {
                let begun = begun.clone();
                async move {
                    let number = begun[key as usize].load(SeqCst);
                    turns(key).await;
                    number
                }
            })
            .build()
        };
        let tasks: Vec<_> = (0..6)
            .map(|n| {
                let (cache, memo) = (cache.clone(), memo.clone());
                let (begun, done) = (begun.clone(), done.clone());
                runtime.spawn(async move {
                    for round in 0..500 {
                        let key = (n + round) % 3;
                        let (begun, done) = (&begun[key as usize], &done[key as usize]);
                        if (n + round) % 4 == 0 {
                            let now = begun.fetch_add(1, SeqCst) + 1;
                            match n {
                                0 | 1 => drop(cache.remove(&key)),
                                2 => cache.invalidate_all(),
                                _ => drop(cache.invalidate(&key)),
                            }
                            memo.cache_invalidate(&key);
                            done.fetch_max(now, SeqCst);
                        }
                        let least = done.load(SeqCst);
                        let load = async {
                            let number = begun.load(SeqCst);
                            turns(round % 4).await;
                            number
                        };
                        let got = cache.get_with(key, load).await;
                        assert!(got >= least, "{got} after invalidation {least}");
                        let got = memo.call(key).await.expect("not closed");
                        assert!(got >= least, "{got} after invalidation {least}, shared");
                        turns(n % 3).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.join().await;
        }
        assert!(cache.stats().hits > 0 && memo.cache_info().hits > 0, "nothing was shared");
    }
}

// Line 7

#[test]
fn line07_a_value_inserted_during_a_load_stays() {
    let cache = Loads::new(8);
    load_around(&cache, || cache.insert(1, 100));
    assert_eq!(cache.get(&1), Some(100));
}

#[test]
fn line07_a_value_inserted_during_a_load_stays_however_the_load_ends() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut fails = Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("late"))));
    let mut panics = Box::pin(cache.get_with(2, async {
        source.load(()).await;
        panic!("late")
    }));
    let mut leaves = Box::pin(cache.get_with(3, source.load(3)));
    assert!(poll_once(fails.as_mut()).is_pending());
    assert!(poll_once(panics.as_mut()).is_pending());
    assert!(poll_once(leaves.as_mut()).is_pending());
    (1..=3).for_each(|key| cache.insert(key, key * 100));
    source.open();
    assert!(matches!(poll_once(fails.as_mut()), Poll::Ready(Err(_))));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(panics.as_mut()))).is_err());
    drop(leaves);
    assert_eq!([1, 2, 3].map(|key| cache.get(&key)), [Some(100), Some(200), Some(300)]);
    assert_eq!(cache.entry_count(), 3);
}

on_all_runtimes! {
    async fn line07_what_is_inserted_among_loads_of_many_tasks_stays(runtime) {
        let cache = Loads::new(64);
        let done = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..4)
            .map(|n| {
                let (cache, done) = (cache.clone(), done.clone());
                runtime.spawn(async move {
                    while done.load(SeqCst) == 0 {
                        let load = async {
                            turns(n).await;
                            0
                        };
                        cache.get_with(1, load).await;
                        turns(2).await;
                    }
                })
            })
            .collect();
        for n in 1..=500 {
            cache.invalidate(&1);
            // A new load has begun, and may have ended.
            until(|| cache.contains_key(&1)).await;
            turns(n % 5).await;
            cache.insert(1, n);
            for _ in 0..3 {
                assert_eq!(cache.get(&1), Some(n));
                turns(2).await;
            }
        }
        done.store(1, SeqCst);
        for task in tasks {
            task.join().await;
        }
        assert_eq!(cache.get(&1), Some(500));
        assert!(cache.stats().loads > 0, "no load ran");
    }
}

// Line 8

#[test]
fn line08_callers_with_another_error_type_share_the_run_and_its_value() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut first = pin!(cache.try_get_with(1, source.load(Ok::<u64, &str>(1))));
    let mut second = pin!(cache.try_get_with(1, source.load(Ok::<u64, u8>(2))));
    let mut third = pin!(cache.get_with(1, source.load(3)));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    assert!(poll_once(third.as_mut()).is_pending());
    source.open();
    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Ok(1)));
    assert_eq!(poll_once(second.as_mut()), Poll::Ready(Ok(1)));
    assert_eq!(poll_once(third.as_mut()), Poll::Ready(1));
    assert_eq!(source.begun(), 1);
}

#[test]
fn line08_who_cannot_take_the_error_of_a_run_runs_its_own_loader_afterwards() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut first = pin!(cache.try_get_with(1, source.load(Err::<u64, _>("broken"))));
    let (flag, mut other) =
        (Flag::new(), Box::pin(cache.try_get_with(1, source.load(Err::<u64, u8>(9)))));
    let (infallible_flag, mut infallible) =
        (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(flag.poll(other.as_mut()).is_pending());
    assert!(infallible_flag.poll(infallible.as_mut()).is_pending());
    assert_eq!(source.begun(), 1);
    source.open();
    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Err(Arc::new("broken"))));
    assert!(flag.take() && infallible_flag.take(), "not woken");
    assert_eq!(flag.poll(other.as_mut()), Poll::Ready(Err(Arc::new(9))));
    assert_eq!(infallible_flag.poll(infallible.as_mut()), Poll::Ready(3));
    assert_eq!(source.begun(), 3);
}

on_all_runtimes! {
    async fn line08_tasks_of_all_asynchronous_apis_share_one_run(runtime) {
        let cache = Loads::new(8);
        let source = Source::default();
        let (one, two, three) = (cache.clone(), cache.clone(), cache.clone());
        let first = source.load(1);
        let first = runtime.spawn(async move { one.get_with(1, first).await });
        until(|| source.begun() == 1).await;
        let second = source.load(Ok::<_, u8>(2));
        let second = runtime.spawn(async move { two.try_get_with(1, second).await });
        let third = source.load(Ok::<_, String>(3));
        let third = runtime.spawn(async move { three.try_get_with(1, third).await });
        until(|| cache.stats().hits == 2).await;
        source.open();
        assert_eq!(first.join().await, 1);
        assert_eq!((second.join().await, third.join().await), (Ok(1), Ok(1)));
        assert_eq!(source.begun(), 1);
    }
}

#[test]
fn line08_async_callers_of_two_error_types_and_blocking_ones_share_one_run() {
    // Nobody loses patience here.
    let cache: Loads =
        Cache::builder().max_capacity(8).blocking_patience(std::time::Duration::MAX).build();
    for first_is_blocking in [false, true] {
        let source = Source::default();
        let (begin, began) = std::sync::mpsc::channel();
        let blocking = |n: u64| {
            let (cache, source, begin) = (cache.clone(), source.clone(), begin.clone());
            std::thread::spawn(move || {
                cache.get_or_insert_with(1, || {
                    begin.send(()).expect("the test waits");
                    smol::block_on(source.load(n))
                })
            })
        };
        let mut led = None;
        let mut threads = Vec::new();
        if first_is_blocking {
            threads.push(blocking(7));
            began.recv_timeout(LIMIT).expect("the thread leads");
        } else {
            let mut leader = Box::pin(cache.get_with(1, source.load(7)));
            assert!(poll_once(leader.as_mut()).is_pending());
            led = Some(leader);
        }
        let hits = cache.stats().hits;
        let (flag, mut one) =
            (Flag::new(), Box::pin(cache.try_get_with(1, source.load(Ok::<_, u8>(2)))));
        let (other_flag, mut other) =
            (Flag::new(), Box::pin(cache.try_get_with(1, source.load(Ok::<_, String>(3)))));
        assert!(flag.poll(one.as_mut()).is_pending());
        assert!(other_flag.poll(other.as_mut()).is_pending());
        threads.extend((4..8).map(blocking));
        block_until(|| cache.stats().hits == hits + 6);
        assert!(!flag.take() && !other_flag.take());
        source.open();
        if let Some(mut leader) = led {
            assert_eq!(poll_once(leader.as_mut()), Poll::Ready(7));
        }
        for thread in threads {
            assert_eq!(thread.join().expect("no panic"), 7);
        }
        assert!(flag.take() && other_flag.take(), "not woken");
        assert_eq!(flag.poll(one.as_mut()), Poll::Ready(Ok(7)));
        assert_eq!(other_flag.poll(other.as_mut()), Poll::Ready(Ok(7)));
        assert_eq!(source.begun(), 1);
        cache.invalidate(&1);
    }
}

#[test]
fn line08_a_blocking_caller_that_cannot_take_the_error_of_a_run_runs_its_own_afterwards() {
    let cache: Loads =
        Cache::builder().max_capacity(8).blocking_patience(std::time::Duration::MAX).build();
    let source = Source::default();
    let mut leader = Box::pin(cache.try_get_with(1, source.load(Err::<u64, u8>(9))));
    assert!(poll_once(leader.as_mut()).is_pending());
    let blocking = {
        let cache = cache.clone();
        std::thread::spawn(move || cache.try_get_or_insert_with(1, || Ok::<_, String>(2)))
    };
    block_until(|| cache.stats().hits == 1);
    assert_eq!(cache.stats().loads, 1);
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(Err(Arc::new(9))));
    assert_eq!(blocking.join().expect("no panic"), Ok(2));
    assert_eq!((cache.stats().loads, cache.get(&1)), (2, Some(2)));
}

// Line 9

#[test]
fn line09_a_load_that_asks_for_its_own_key_is_told_at_once() {
    // `this` holds the cache and the cache holds `this`, until the end.
    let this: Arc<Mutex<Option<Cached>>> = Arc::default();
    let cache: Cached = {
        let this = this.clone();
        AlruCache::builder(move |key| {
            let this = this.clone();
            async move {
                let cache = this.lock().expect("no panic").clone().expect("set below");
                match cache.call(key).await {
                    Err(LoadError::Recursive) => Err("recursive".to_owned()),
                    other => panic!("{other:?}"),
                }
            }
        })
        .build()
    };
    *this.lock().expect("no panic") = Some(cache.clone());
    let answer = call(&cache, 1);
    *this.lock().expect("no panic") = None;
    match answer {
        Err(LoadError::Failed(error)) => assert_eq!(error.as_str(), "recursive"),
        other => panic!("{other:?}"),
    }
    assert_eq!(cache.cache_parameters().tasks, 0);
}

#[test]
fn line09_a_load_of_get_with_that_asks_for_its_own_key_panics_at_once() {
    let cache = Loads::new(8);
    let message = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(message) => *message,
        Err(panic) => (*panic.downcast::<&str>().expect("a message")).to_owned(),
    };
    let call = pin!(cache.get_with(1, async { cache.get_with(1, ready(2)).await }));
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(call))).expect_err("not a hang");
    assert!(message(panic).contains("recursive"));
    let fallible = async { cache.try_get_with(1, ready(Ok::<_, ()>(2))).await };
    let call = pin!(cache.get_with(1, async { fallible.await.expect("no error") }));
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(call))).expect_err("not a hang");
    assert!(message(panic).contains("recursive"));
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
}

/// A function cache whose load of a key awaits the key after it, around a circle of `keys`.
fn circle(keys: u64) -> AlruCache<u64, u64, String> {
    let this: Arc<Mutex<Option<Cached>>> = Arc::default();
    let cache: Cached = {
        let this = this.clone();
        AlruCache::builder(move |key| {
            // Taken out at once: the cache is not to hold itself.
            let next = this.lock().expect("no panic").clone().expect("set below");
            async move {
                match next.call((key + 1) % keys).await {
                    Ok(value) => Ok(value),
                    Err(LoadError::Recursive) => Err("recursive".to_owned()),
                    Err(LoadError::Failed(error)) => Err(error.as_ref().clone()),
                    Err(other) => panic!("{other:?}"),
                }
            }
        })
        .build()
    };
    *this.lock().expect("no panic") = Some(cache.clone());
    cache
}

#[test]
fn line09_a_circle_of_loads_that_poll_each_other_is_told_at_once() {
    for keys in 1..=5 {
        let cache = circle(keys);
        match call(&cache, 0) {
            Err(LoadError::Failed(error)) => assert_eq!(error.as_str(), "recursive"),
            other => panic!("{other:?}"),
        }
        assert_eq!((cache.cache_parameters().tasks, cache.cache_info().currsize), (0, 0));
        assert_eq!(cache.cache_info().misses, keys);
    }
}

on_all_runtimes! {
    async fn line09_loads_of_two_tasks_that_wait_for_each_other_both_end(runtime) {
        for _ in 0..20 {
            let both = Arc::new(AtomicU64::new(0));
            let this: Arc<Mutex<Option<Cached>>> = Arc::default();
            let cache: Cached = {
                let (this, both) = (this.clone(), both.clone());
                AlruCache::builder(move |key: u64| {
                    let (this, both) = (this.clone(), both.clone());
                    async move {
                        let cache = this.lock().expect("no panic").clone().expect("set below");
                        both.fetch_add(1, SeqCst);
                        // Each has begun in a task of its own before it asks for the other.
                        until(|| both.load(SeqCst) == 2).await;
                        match cache.call(1 - key).await {
                            Ok(value) => Ok(value + 1),
                            Err(LoadError::Recursive) => Err(format!("{key} is told")),
                            Err(LoadError::Failed(error)) => Err(error.as_ref().clone()),
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                })
                .build()
            };
            *this.lock().expect("no panic") = Some(cache.clone());
            let tasks = [0, 1].map(|key| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(key).await })
            });
            for task in tasks {
                match task.join().await {
                    Err(LoadError::Failed(error)) => assert!(error.ends_with("is told"), "{error}"),
                    other => panic!("{other:?}"),
                }
            }
            *this.lock().expect("no panic") = None;
            assert_eq!((cache.cache_parameters().tasks, cache.cache_info().currsize), (0, 0));
        }
    }
}

// Line 10

#[test]
fn line10_when_all_callers_leave_the_load_is_dropped_and_the_key_is_free_again() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut waiter = Box::pin(cache.get_with(1, source.load(2)));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(waiter);
    drop(leader);
    assert_eq!((source.begun(), source.gone()), (1, 1));
    assert_eq!(cache.entry_count(), 0);
    assert!(!cache.contains_key(&1));
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
}

#[test]
fn line10_abandoned_loads_leave_nothing_behind() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(8);
    for key in 0..20_000 {
        let held = Counted::new(key, &tally);
        let mut call = Box::pin(cache.get_with(key % 100, async {
            pending::<()>().await;
            held
        }));
        assert!(poll_once(call.as_mut()).is_pending());
        drop(call);
        assert_eq!(tally.alive(), 0);
    }
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.evictions, stats.refused), (20_000, 0, 0), "{stats}");
}

on_all_runtimes! {
    async fn line10_tasks_that_are_all_cancelled_leave_no_load_and_a_free_key(runtime) {
        let cache = Loads::new(8);
        let (stuck, source) = (Source::default(), Source::default());
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let (cache, load) = (cache.clone(), stuck.load(n));
                runtime.spawn(async move { cache.get_with(1, load).await })
            })
            .collect();
        until(|| cache.stats().hits == 9).await;
        for task in tasks {
            task.cancel().await;
        }
        assert_eq!(stuck.begun(), stuck.gone());
        assert_eq!((cache.entry_count(), cache.contains_key(&1)), (0, false));
        source.open();
        assert_eq!(cache.get_with(1, source.load(5)).await, 5);
    }
}

// Line 11

#[test]
fn line11_a_waiter_whose_waker_changes_is_woken_by_the_last_one() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut waiter = Box::pin(cache.get_with(1, source.load(2)));
    assert!(poll_once(leader.as_mut()).is_pending());
    let flags: Vec<_> = (0..5).map(|_| Flag::new()).collect();
    for flag in &flags {
        assert!(flag.poll(waiter.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert!(flags[4].take());
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(1));
}

#[test]
fn line11_a_waiter_of_a_shared_load_that_moves_is_woken_where_it_is() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut mover = Caller::waiting(&cache, 1);
    let mut other = Caller::waiting(&cache, 1);
    for _ in 0..5 {
        mover.move_to_another_task();
        assert!(mover.poll().is_pending());
    }
    function.set(Verdict::Value);
    assert_eq!(value(mover.poll_if_woken()), 10, "not woken");
    assert_eq!(value(other.poll_if_woken()), 10, "not woken");
}

#[test]
fn line11_a_leader_that_moves_is_woken_where_it_is() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let flags = [(); 5].map(|()| Flag::new());
    for flag in &flags {
        assert!(flag.poll(leader.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    assert!(flags[4].take(), "not woken");
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
}

on_all_runtimes! {
    async fn line11_calls_that_begin_in_one_task_end_in_others(runtime) {
        let cache = Loads::new(8);
        let function = Function::default();
        let memo = function.cache().build();
        let source = Source::default();
        let mut calls: Vec<Pin<Box<dyn Future<Output = u64> + Send>>> = Vec::new();
        for n in 0..6 {
            let (cache, load) = (cache.clone(), source.load(1));
            let memo = memo.clone();
            calls.push(match n % 2 {
                0 => Box::pin(async move { cache.get_with(1, load).await }),
                _ => Box::pin(async move { memo.call(1).await.expect("a value") }),
            });
        }
        for call in &mut calls {
            assert!(poll_here(call.as_mut()).await.is_pending());
        }
        // Polled once more, by a task each; that poll is seen.
        let polled = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = calls
            .into_iter()
            .map(|mut call| {
                let polled = polled.clone();
                runtime.spawn(async move {
                    assert!(poll_here(call.as_mut()).await.is_pending());
                    polled.fetch_add(1, SeqCst);
                    call.await
                })
            })
            .collect();
        until(|| polled.load(SeqCst) == 6).await;
        source.open();
        function.set(Verdict::Value);
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.join().await, [1, 10][n % 2]);
        }
        assert_eq!((source.begun(), function.runs()), (1, 1));
    }
}

// Line 12

#[test]
fn line12_a_load_is_shared_across_runtimes_and_outlives_the_one_that_began_it() {
    let cache = Loads::new(8);
    let source = Source::default();

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let (begun, begun_here) = tokio::sync::oneshot::channel();
    let leader = {
        let (cache, load) = (cache.clone(), source.load(1));
        async move {
            let load = async {
                begun.send(()).expect("the test waits");
                load.await
            };
            cache.get_with(1, load).await
        }
    };
    runtime.spawn(leader);
    begun_here.blocking_recv().expect("the leader began");

    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
    assert!(flag.poll(waiter.as_mut()).is_pending(), "it joined");
    drop(runtime);
    assert!(flag.take(), "woken by the end of the runtime");
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(2));
    assert_eq!(source.gone(), 1);
}

on_all_runtimes! {
    async fn line12_the_end_of_the_runtime_of_the_leaders_keeps_no_task_from_a_value(runtime) {
        let cache = Loads::new(8);
        let (stuck, source) = (Source::default(), Source::default());
        let function = Function::default();
        let memo = function.cache().build();
        source.open();
        let mut others = tokio::runtime::Builder::new_multi_thread();
        let others = others.worker_threads(2).enable_time().build().expect("a runtime");
        for key in 0..4 {
            let (cache, load, memo) = (cache.clone(), stuck.load(0), memo.clone());
            others.spawn(async move { cache.get_with(key, load).await });
            others.spawn(async move { memo.call(key).await });
        }
        until(|| stuck.begun() == 4 && function.runs() == 4).await;
        let own: Vec<_> = (0..8)
            .map(|n| {
                let (cache, load) = (cache.clone(), source.load(n));
                runtime.spawn(async move { cache.get_with(n % 4, load).await })
            })
            .collect();
        let shared: Vec<_> = (0..8)
            .map(|n| {
                let memo = memo.clone();
                runtime.spawn(async move { memo.call(n % 4).await })
            })
            .collect();
        until(|| cache.stats().hits == 8 && memo.cache_info().hits == 8).await;
        // Not waited for: that would block a task.
        others.shutdown_background();
        until(|| stuck.gone() == 4).await;
        function.set(Verdict::Value);
        for (n, (own, shared)) in (0..8).zip(own.into_iter().zip(shared)) {
            assert_eq!(own.join().await % 4, n % 4);
            assert_eq!(shared.join().await.expect("a value"), n % 4 * 10);
        }
        assert_eq!((source.begun(), function.runs()), (4, 4));
    }
}

// Line 13

#[test]
fn line13_loads_share_a_full_cache_with_what_is_in_it() {
    // More loads than there is room for: all of them end, with their own values.
    let cache = Loads::new(4);
    let source = Source::default();
    let mut calls: Vec<_> =
        (0..100).map(|key| Box::pin(cache.get_with(key, source.load(key + 1)))).collect();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    assert!(cache.entry_count() <= 4);
    source.open();
    for (key, call) in calls.iter_mut().enumerate() {
        assert_eq!(poll_once(call.as_mut()), Poll::Ready(key as u64 + 1));
    }
    assert!(cache.entry_count() <= 4);
}

#[test]
fn line13_a_cache_without_room_loads_for_every_caller() {
    let cache = Loads::new(0);
    for value in 0..3 {
        let call = pin!(cache.get_with(1, ready(value)));
        assert_eq!(poll_once(call), Poll::Ready(value));
    }
    assert_eq!(cache.get(&1), None);
}

#[test]
fn line13_a_value_that_finds_no_place_reaches_every_waiter_and_nothing_is_evicted_for_it() {
    let cache = Loads::new(8);
    (1..8).for_each(|key| cache.insert(key, key));
    let source = Source::default();
    let mut leader = pin!(cache.get_with(100, source.load(1)));
    let mut waiters: Vec<_> =
        (0..5).map(|_| (Flag::new(), Box::pin(cache.get_with(100, source.load(2))))).collect();
    assert!(poll_once(leader.as_mut()).is_pending());
    for (flag, waiter) in &mut waiters {
        assert!(flag.poll(waiter.as_mut()).is_pending());
        flag.take();
    }
    // Its place goes to another entry, and now the cache is full.
    assert!(cache.invalidate(&100));
    cache.insert(8, 8);
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    for (flag, waiter) in &mut waiters {
        assert!(flag.take(), "not woken");
        assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
    }
    assert!(!cache.contains_key(&100));
    assert!((1..=8).all(|key| cache.get(&key) == Some(key)));
    assert_eq!((cache.entry_count(), cache.stats().evictions, source.begun()), (8, 0, 1));
}

// Line 14

#[test]
fn line14_the_loader_may_borrow_and_need_not_be_send() {
    let cache: Cache<u64, usize> = Cache::new(8);
    let text = String::from("borrowed");
    let borrowed: &str = &text;
    let seen = Rc::new(Cell::new(0));
    let load = {
        let seen = seen.clone();
        async move {
            seen.set(seen.get() + 1);
            borrowed.len()
        }
    };
    assert_eq!(poll_once(pin!(cache.get_with(1, load))), Poll::Ready(8));
    assert_eq!(seen.get(), 1);
}

#[test]
fn line14_the_future_of_a_small_load_is_small() {
    let cache = Loads::new(8);
    let infallible = cache.get_with(1, ready(1));
    assert!(size_of_val(&infallible) < 256, "{} bytes", size_of_val(&infallible));
    let fallible = cache.try_get_with(1, ready(Ok::<_, ()>(1)));
    assert!(size_of_val(&fallible) < 256, "{} bytes", size_of_val(&fallible));
}

// Line 15

#[test]
fn line15_a_panic_reaches_the_caller_that_polled_and_the_key_is_usable_afterwards() {
    let cache = Loads::new(8);
    let source = Source::default();
    let load = async {
        source.load(()).await;
        panic!("the loader panics")
    };
    let mut leader = Box::pin(cache.get_with(1, load));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();
    let panicked = catch_unwind(AssertUnwindSafe(|| poll_once(leader.as_mut())));
    let payload = panicked.expect_err("the panic passes through");
    assert_eq!(payload.downcast_ref(), Some(&"the loader panics"));
    drop(leader);

    // The waiter ends, one way or the other.
    assert!(flag.take(), "not woken");
    let ended = catch_unwind(AssertUnwindSafe(|| flag.poll(waiter.as_mut())));
    assert!(!matches!(ended, Ok(Poll::Pending)), "the waiter hangs");
    drop(waiter);
    cache.invalidate(&1);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
    assert_eq!(cache.get(&1), Some(3));
    assert_eq!(cache.stats().load_failures, 1);
}

/// Where user code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Hash,
    Eq,
    KeyClone,
    KeyDrop,
    ValueClone,
    ValueDrop,
    Loader,
    LoaderDrop,
    WakerClone,
    Wake,
    WakerDrop,
}

const PLACES: [Place; 11] = [
    Place::Hash,
    Place::Eq,
    Place::KeyClone,
    Place::KeyDrop,
    Place::ValueClone,
    Place::ValueDrop,
    Place::Loader,
    Place::LoaderDrop,
    Place::WakerClone,
    Place::Wake,
    Place::WakerDrop,
];

/// What is to happen at the place.
#[derive(Default)]
enum Deed {
    #[default]
    Nothing,
    PanicOnce,
    CallBack(Arc<dyn Fn() + Send + Sync>),
}

#[derive(Default)]
struct Trap {
    place: Mutex<Option<Place>>,
    deed: Mutex<Deed>,
    sprung: AtomicU64,
}

impl Trap {
    fn set(&self, place: Place, deed: Deed) {
        *self.place.lock().expect("no panic inside") = Some(place);
        *self.deed.lock().expect("no panic inside") = deed;
    }

    fn disarm(&self) {
        let deed = std::mem::take(&mut *self.deed.lock().expect("no panic inside"));
        drop(deed);
    }

    fn pass(&self, place: Place) {
        std::thread_local! {
            static INSIDE: Cell<bool> = const { Cell::new(false) };
        }
        if *self.place.lock().expect("no panic inside") != Some(place) || INSIDE.get() {
            return;
        }
        let mut armed = self.deed.lock().expect("no panic inside");
        let deed = match &*armed {
            Deed::Nothing => return,
            Deed::PanicOnce => std::mem::take(&mut *armed),
            Deed::CallBack(f) => Deed::CallBack(f.clone()),
        };
        drop(armed);
        self.sprung.fetch_add(1, SeqCst);
        match deed {
            Deed::CallBack(f) => {
                INSIDE.set(true);
                f();
                INSIDE.set(false);
            }
            _ => panic!("the trap at {place:?}"),
        }
    }
}

struct TrapKey(u64, Arc<Trap>, Counted<()>);

impl std::hash::Hash for TrapKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.1.pass(Place::Hash);
        self.0.hash(state);
    }
}

impl PartialEq for TrapKey {
    fn eq(&self, other: &Self) -> bool {
        self.1.pass(Place::Eq);
        self.0 == other.0
    }
}

impl Eq for TrapKey {}

impl Clone for TrapKey {
    fn clone(&self) -> Self {
        self.1.pass(Place::KeyClone);
        Self(self.0, self.1.clone(), self.2.clone())
    }
}

impl Drop for TrapKey {
    fn drop(&mut self) {
        self.1.pass(Place::KeyDrop);
    }
}

struct TrapValue(u64, Arc<Trap>, Counted<()>);

impl Clone for TrapValue {
    fn clone(&self) -> Self {
        self.1.pass(Place::ValueClone);
        Self(self.0, self.1.clone(), self.2.clone())
    }
}

impl Drop for TrapValue {
    fn drop(&mut self) {
        self.1.pass(Place::ValueDrop);
    }
}

/// A waker with a trap at each of its doings.
struct TrapWaker {
    woken: AtomicU64,
    trap: Arc<Trap>,
}

impl TrapWaker {
    fn waker(self: &Arc<Self>) -> std::task::Waker {
        use std::task::{RawWaker, RawWakerVTable, Waker};
        /// # Safety
        /// `data` is from `Arc::into_raw`, and its count is the caller's to keep.
        unsafe fn lend<'a>(data: *const ()) -> &'a TrapWaker {
            // SAFETY: the caller's promise.
            unsafe { &*data.cast::<TrapWaker>() }
        }
        /// # Safety
        /// As for `lend`, and the count is given up.
        unsafe fn take(data: *const ()) -> Arc<TrapWaker> {
            // SAFETY: the caller's promise.
            unsafe { Arc::from_raw(data.cast::<TrapWaker>()) }
        }
        fn rung(waker: &TrapWaker) {
            waker.woken.fetch_add(1, SeqCst);
            waker.trap.pass(Place::Wake);
        }
        static VTABLE: RawWakerVTable = RawWakerVTable::new(
            |data| {
                // SAFETY: called with the data of a waker that is alive.
                unsafe { lend(data) }.trap.pass(Place::WakerClone);
                // SAFETY: as above; the new waker has a count of its own.
                unsafe { Arc::increment_strong_count(data.cast::<TrapWaker>()) };
                RawWaker::new(data, &VTABLE)
            },
            |data| {
                // SAFETY: called with the data of a waker that ends here.
                let waker = unsafe { take(data) };
                rung(&waker);
            },
            // SAFETY: called with the data of a waker that is alive.
            |data| rung(unsafe { lend(data) }),
            // SAFETY: called with the data of a waker that ends here.
            |data| unsafe { take(data) }.trap.pass(Place::WakerDrop),
        );
        let raw = RawWaker::new(Arc::into_raw(self.clone()).cast(), &VTABLE);
        // SAFETY: the functions keep the contract of RawWaker.
        unsafe { Waker::from_raw(raw) }
    }
}

/// The ways to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    GetWith,
    TryGetWith,
    GetMany,
    Compute,
    Function,
    /// A cache with a loader, and callers of the cache beneath, in turn.
    Mixed,
    /// Many keys of a cache with a loader.
    Many,
}

const APIS: [Api; 7] = [
    Api::GetWith,
    Api::TryGetWith,
    Api::GetMany,
    Api::Compute,
    Api::Function,
    Api::Mixed,
    Api::Many,
];

impl Api {
    /// Does it ever clone a key?
    fn clones_keys(self) -> bool {
        // A load that takes over from a caller's own has a key of its caller's.
        !matches!(self, Self::GetWith | Self::TryGetWith | Self::Mixed)
    }
}

/// Caches of keys and values with traps.
#[derive(Clone)]
struct Trapped {
    cache: Cache<TrapKey, TrapValue>,
    memo: AlruCache<TrapKey, TrapValue, String>,
    loading: LoadingCache<TrapKey, TrapValue, String>,
    calls: Arc<AtomicU64>,
    source: Source,
    trap: Arc<Trap>,
    tally: Tally,
}

type TrappedCall = Pin<Box<dyn Future<Output = Option<u64>>>>;

impl Trapped {
    fn new() -> Self {
        let (source, trap, tally) = (Source::default(), Arc::<Trap>::default(), Tally::default());
        let load = Self::load(&source, &trap, &tally);
        let memo = AlruCache::builder(move |key: TrapKey| {
            let load = load(key.0);
            async move { Ok(load.await) }
        });
        let memo = memo.maxsize(8).build();
        let load = Self::load(&source, &trap, &tally);
        let loading = Cache::builder().max_capacity(8).reserve(64).loader(move |key: TrapKey| {
            let load = load(key.0);
            async move { Ok(load.await) }
        });
        let (loading, calls) = (loading.build(), Arc::default());
        let cache = Cache::builder().max_capacity(8).reserve(64).build();
        Self { cache, memo, loading, calls, source, trap, tally }
    }

    /// A loader of ten times the key.
    fn load(
        source: &Source,
        trap: &Arc<Trap>,
        tally: &Tally,
    ) -> impl Fn(u64) -> Pin<Box<dyn Future<Output = TrapValue> + Send>> + use<> {
        struct OnDrop(Arc<Trap>);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.pass(Place::LoaderDrop);
            }
        }
        let (source, trap, tally) = (source.clone(), trap.clone(), tally.clone());
        move |key| {
            let (load, trap, tally) = (source.load(()), trap.clone(), tally.clone());
            Box::pin(async move {
                let on_drop = OnDrop(trap.clone());
                trap.pass(Place::Loader);
                load.await;
                trap.pass(Place::Loader);
                // Before there is a value: one that is being returned leaks if a destructor panics.
                drop(on_drop);
                TrapValue(key * 10, trap.clone(), Counted::new((), &tally))
            })
        }
    }

    fn key(&self, key: u64) -> TrapKey {
        TrapKey(key, self.trap.clone(), Counted::new((), &self.tally))
    }

    fn call(&self, api: Api, key: u64) -> TrappedCall {
        let this = self.clone();
        let is_even = self.calls.fetch_add(1, SeqCst) % 2 == 0;
        Box::pin(async move {
            let make = Self::load(&this.source, &this.trap, &this.tally);
            let own = this.key(key);
            if api == Api::Compute {
                let entry = this.cache.entry(own);
                let upsert = entry.and_upsert_with_async(|present| {
                    let load = make(key);
                    async move {
                        match present {
                            Some(value) => value,
                            None => load.await,
                        }
                    }
                });
                return upsert.await.into_value().map(|value| value.0);
            }
            let load = make(key);
            let value = match api {
                Api::Compute => unreachable!("above"),
                Api::GetMany => {
                    let mut load = Some(load);
                    let values = this.cache.get_many([own], move |mut missing: Vec<TrapKey>| {
                        let (key, load) = (missing.pop().expect("one"), load.take());
                        async move {
                            let value = load.expect("called once").await;
                            [(key, value)]
                        }
                    });
                    values.await.into_values().next()
                }
                Api::Many => {
                    this.loading.get_many([own]).await.into_values().next().and_then(Result::ok)
                }
                Api::Mixed if is_even => Some(this.loading.cache().get_with(own, load).await),
                Api::Mixed => this.loading.get(own).await.ok(),
                Api::GetWith => Some(this.cache.get_with(own, load).await),
                Api::TryGetWith => {
                    let load = async { Ok::<_, String>(load.await) };
                    this.cache.try_get_with(own, load).await.ok()
                }
                Api::Function => this.memo.call(own).await.ok(),
            };
            value.map(|value| value.0)
        })
    }

    fn contains(&self, api: Api, key: u64) -> bool {
        match api {
            Api::Function => self.memo.cache_contains(&self.key(key)),
            _ => self.plain(api).contains_key(&self.key(key)),
        }
    }

    fn invalidate(&self, api: Api, key: u64) {
        match api {
            Api::Function => drop(self.memo.cache_invalidate(&self.key(key))),
            _ => drop(self.plain(api).invalidate(&self.key(key))),
        }
    }

    /// The cache that is used, unless that is the function's.
    fn plain(&self, api: Api) -> &Cache<TrapKey, TrapValue> {
        if matches!(api, Api::Mixed | Api::Many) { self.loading.cache() } else { &self.cache }
    }

    /// Of the cache that is used.
    fn entries(&self, api: Api) -> u64 {
        match api {
            Api::Function => self.memo.cache_info().currsize as u64,
            _ => self.plain(api).entry_count(),
        }
    }
}

/// The moments in the life of a load at which a trap is set.
const MOMENTS: usize = 5;

/// Three callers of one load, one of which leaves, with a trap set at a moment; then an invalidation. Nobody
/// waits in vain, whatever the trap does.
fn spring(api: Api, place: Place, moment: usize, deed: impl Fn(&Trapped) -> Deed) -> u64 {
    let what = format!("{api:?}, {place:?}, moment {moment}");
    let caches = Trapped::new();
    let set = |now: usize| {
        if now == moment {
            caches.trap.set(place, deed(&caches));
        }
    };
    let guarded = |f: &mut dyn FnMut()| catch_unwind(AssertUnwindSafe(f)).is_err();
    let mut calls: Vec<(Arc<TrapWaker>, Option<TrappedCall>)> = (0..4)
        .map(|_| {
            let waker = TrapWaker { woken: AtomicU64::new(1), trap: caches.trap.clone() };
            (Arc::new(waker), Some(caches.call(api, 1)))
        })
        .collect();
    // Only who was woken is polled; a call that panicked is over.
    let poll = |(waker, call): &mut (Arc<TrapWaker>, Option<TrappedCall>)| {
        if waker.woken.swap(0, SeqCst) == 0 {
            return;
        }
        let mut over = false;
        let panicked = guarded(&mut || {
            if let Some(call) = call {
                let waker = waker.waker();
                over = call.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_ready();
            }
        });
        if panicked || over {
            let mut call = call.take();
            guarded(&mut || drop(call.take()));
        }
    };
    set(0);
    poll(&mut calls[0]);
    set(1);
    calls.iter_mut().for_each(poll);
    set(2);
    let mut leaver = calls.remove(0);
    guarded(&mut || drop(leaver.1.take()));
    calls.iter_mut().for_each(poll);
    set(3);
    guarded(&mut || caches.source.open());
    for _ in 0..10 {
        calls.iter_mut().for_each(poll);
    }
    assert!(calls.iter().all(|(_, call)| call.is_none()), "{what}: a caller hangs");
    set(4);
    guarded(&mut || caches.invalidate(api, 1));
    guarded(&mut || {
        let mut call = caches.call(api, 2);
        let _ = poll_once(call.as_mut());
    });

    // All is as if nothing had been.
    caches.trap.disarm();
    for key in 1..=3 {
        let mut call = caches.call(api, key);
        assert_eq!(poll_once(call.as_mut()), Poll::Ready(Some(key * 10)), "{what}");
    }
    let there = (1..=30).filter(|key| caches.contains(api, *key)).count() as u64;
    assert_eq!(there, caches.entries(api), "{what}: a wrong count");
    let tasks = (caches.memo.cache_parameters().tasks, caches.loading.loads());
    assert_eq!(tasks, (0, 0), "{what}");
    (1..=30).for_each(|key| caches.invalidate(api, key));
    assert_eq!(caches.entries(api), 0, "{what}");
    let (sprung, tally) = (caches.trap.sprung.load(SeqCst), caches.tally.clone());
    drop(calls);
    drop(caches);
    assert_eq!(tally.alive(), 0, "{what}: keys or values that live on");
    sprung
}

#[test]
fn line15_a_panic_of_any_user_code_at_any_moment_leaves_nobody_waiting_and_the_cache_usable() {
    for api in APIS {
        for place in PLACES {
            let sprung: u64 =
                (0..MOMENTS).map(|at| spring(api, place, at, |_| Deed::PanicOnce)).sum();
            let never = place == Place::KeyClone && !api.clones_keys();
            assert_eq!(sprung == 0, never, "{api:?}, {place:?}: sprung {sprung} times");
        }
    }
}

#[test]
fn line15_any_user_code_may_call_back_into_the_cache_at_any_moment() {
    /// What a cache can do, on other keys and on the very key. The trap holds the caches until it is disarmed.
    fn call_back(caches: &Trapped, api: Api) -> Deed {
        let caches = caches.clone();
        Deed::CallBack(Arc::new(move || {
            for key in [1, 20, 21] {
                caches.contains(api, key);
                drop(caches.cache.get(&caches.key(key)));
            }
            let value = TrapValue(200, caches.trap.clone(), Counted::new((), &caches.tally));
            caches.cache.insert(caches.key(20), value);
            caches.invalidate(api, 20);
            // A load that is begun and left, and one that joins or ends.
            let _ = poll_once(caches.call(api, 21).as_mut());
            caches.cache.run_pending_tasks();
        }))
    }
    for api in APIS {
        for place in PLACES {
            let sprung: u64 =
                (0..MOMENTS).map(|at| spring(api, place, at, |c| call_back(c, api))).sum();
            let never = place == Place::KeyClone && !api.clones_keys();
            assert_eq!(sprung == 0, never, "{api:?}, {place:?}: sprung {sprung} times");
        }
    }
}
