//! The function cache, line by line: the tests named `f01_` to `f16_` hold the lines F1 to F16 of its contract.
//! Polled by hand where the order of polls matters, and on three runtimes where tasks do.

mod common;

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use alru::{AlruCache, Cache, LoadError, ManualTime};
use common::runtimes::{LIMIT, on_all_runtimes, poll_here, until};
use common::sources::{Cached, Caller, Function, Source, Verdict, call, info, value};
use common::{Flag, poll_once};

const SECOND: Duration = Duration::from_secs(1);

// F1

#[test]
fn f01_the_default_size_is_128_and_a_cache_may_be_unbounded() {
    let function = Function::open();
    let default = function.cache().build();
    assert_eq!(default.cache_info().maxsize, Some(128));
    let unbounded = function.cache().unbounded().build();
    assert_eq!(info(&unbounded), "CacheInfo(hits=0, misses=0, maxsize=None, currsize=0)");
    for key in 0..1_000 {
        call(&default, key).expect("open");
        call(&unbounded, key).expect("open");
    }
    assert!(default.cache_info().currsize <= 128);
    assert_eq!(unbounded.cache_info().currsize, 1_000);
}

#[test]
fn f01_a_size_of_zero_keeps_nothing_and_shares_nothing() {
    let function = Function::default();
    let cache = function.cache().maxsize(0).build();
    let mut callers: Vec<_> = (0..3).map(|_| Caller::waiting(&cache, 1)).collect();
    assert_eq!(function.runs(), 3);
    assert_eq!(cache.cache_info().currsize, 0);
    function.set(Verdict::Value);
    for caller in &mut callers {
        assert_eq!(value(caller.poll_if_woken()), 10);
    }
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(function.runs(), 4);
    assert_eq!(info(&cache), "CacheInfo(hits=0, misses=4, maxsize=0, currsize=0)");
}

// F2

#[test]
fn f02_a_jitter_without_a_ttl_is_an_error() {
    let error = Function::open().cache().jitter(SECOND).try_build().expect_err("no TTL");
    assert!(error.to_string().contains("jitter"), "{error}");
}

// F3

#[test]
fn f03_arguments_are_the_key_and_their_order_matters() {
    let runs = Arc::new(AtomicUsize::new(0));
    let power: AlruCache<(u64, u32), u64> = {
        let runs = runs.clone();
        AlruCache::builder_infallible(move |(base, exponent): (u64, u32)| {
            runs.fetch_add(1, SeqCst);
            ready(base.pow(exponent))
        })
        .build()
    };
    let answers = [(2, 3), (3, 2), (2, 3), (3, 2)].map(|key| {
        let Poll::Ready(Ok(answer)) = poll_once(pin!(power.call(key))) else { panic!("ready") };
        answer
    });
    assert_eq!(answers, [8, 9, 8, 9]);
    assert_eq!((runs.load(SeqCst), power.cache_info().hits), (2, 2));
}

#[test]
fn f03_arguments_of_different_types_are_different_keys() {
    #[derive(Clone, PartialEq, Eq, Hash)]
    enum Argument {
        Number(u64),
        Text(&'static str),
    }
    let show: AlruCache<Argument, String> = AlruCache::builder_infallible(|key| {
        ready(match key {
            Argument::Number(n) => format!("number {n}"),
            Argument::Text(t) => format!("text {t}"),
        })
    })
    .build();
    for _ in 0..2 {
        for (key, answer) in [(Argument::Number(1), "number 1"), (Argument::Text("1"), "text 1")] {
            match poll_once(pin!(show.call(key))) {
                Poll::Ready(Ok(shown)) => assert_eq!(shown, answer),
                _ => panic!("ready"),
            }
        }
    }
    assert_eq!((show.cache_info().misses, show.cache_info().hits), (2, 2));
}

// F4

#[test]
fn f04_a_hundred_callers_are_one_miss_and_ninety_nine_hits() {
    let function = Function::default();
    let cache = function.cache().maxsize(32).build();
    let mut callers: Vec<_> = (0..100).map(|_| Caller::waiting(&cache, 8)).collect();
    assert_eq!(info(&cache), "CacheInfo(hits=99, misses=1, maxsize=32, currsize=1)");
    assert_eq!(cache.cache_parameters().tasks, 1);
    function.set(Verdict::Value);
    // Only who was woken is polled: one of them drives the load, all of them end.
    let mut left = callers.len();
    for _ in 0..3 {
        for caller in &mut callers {
            if caller.poll_if_woken().is_ready() {
                left -= 1;
            }
        }
    }
    assert_eq!(left, 0);
    assert_eq!(function.runs(), 1);
    assert_eq!(cache.cache_parameters().tasks, 0);
    assert_eq!(call(&cache, 8).expect("cached"), 80);
    assert_eq!(info(&cache), "CacheInfo(hits=100, misses=1, maxsize=32, currsize=1)");
}

#[test]
fn f04_a_miss_counts_though_it_fails_later() {
    let function = Function::default();
    function.set(Verdict::Fail);
    let cache = function.cache().build();
    for _ in 0..3 {
        assert!(call(&cache, 1).is_err());
    }
    assert_eq!(info(&cache), "CacheInfo(hits=0, misses=3, maxsize=128, currsize=0)");
}

on_all_runtimes! {
    async fn f04_a_hundred_tasks_are_one_miss_ninety_nine_hits_and_one_run(runtime) {
        let function = Function::default();
        let cache = function.cache().maxsize(32).build();
        let tasks: Vec<_> = (0..100)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(8).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 99).await;
        assert_eq!(info(&cache), "CacheInfo(hits=99, misses=1, maxsize=32, currsize=1)");
        function.set(Verdict::Value);
        for task in tasks {
            assert_eq!(task.join().await.expect("a value"), 80);
        }
        assert_eq!((function.runs(), cache.cache_parameters().tasks), (1, 0));
        assert_eq!(info(&cache), "CacheInfo(hits=99, misses=1, maxsize=32, currsize=1)");
    }
}

// F5

#[test]
fn f05_loads_that_were_pushed_out_run_on_for_their_callers() {
    let function = Function::default();
    let cache = function.cache().maxsize(2).build();
    let mut callers: Vec<_> = (0..10).map(|key| Caller::waiting(&cache, key)).collect();
    assert!(cache.cache_info().currsize <= 2);
    assert_eq!(cache.cache_parameters().tasks, 10);
    function.set(Verdict::Value);
    for (key, caller) in callers.iter_mut().enumerate() {
        assert_eq!(value(caller.poll_if_woken()), key as u64 * 10);
    }
    assert_eq!(function.runs(), 10);
    assert!(cache.cache_info().currsize <= 2);
    assert_eq!(cache.cache_parameters().tasks, 0);
}

#[test]
fn f05_an_entry_exists_from_the_start_of_its_load() {
    let function = Function::default();
    let cache = function.cache().build();
    let call = Caller::new(&cache, 1);
    assert_eq!(cache.cache_info().currsize, 0, "not before its first poll");
    drop(call);
    let _callers = [1, 2, 1].map(|key| Caller::waiting(&cache, key));
    assert!(cache.cache_contains(&1) && cache.cache_contains(&2));
    assert_eq!(info(&cache), "CacheInfo(hits=1, misses=2, maxsize=128, currsize=2)");
}

#[test]
fn f05_the_hands_leave_running_loads_alone_while_they_are_less_than_half_of_the_capacity() {
    let function = Function::default();
    let cache = function.cache().maxsize(32).build();
    let mut callers: Vec<_> = (0..15).map(|key| Caller::waiting(&cache, key)).collect();
    // The function waits, and is let go for one run at a time: only who is polled ends.
    let through = |key| {
        let mut other = Caller::waiting(&cache, key);
        function.set(Verdict::Value);
        assert_eq!(value(other.poll_if_woken()), key * 10);
        function.set(Verdict::Wait);
    };
    (100..400).for_each(through);
    assert!((0..15).all(|key| cache.cache_contains(&key)), "a running load was evicted");
    function.set(Verdict::Value);
    for (key, caller) in callers.iter_mut().enumerate() {
        assert_eq!(value(caller.poll()), key as u64 * 10);
    }
    assert_eq!(function.runs(), 15 + 300);
}

#[test]
fn f05_a_load_that_is_no_entry_any_more_is_still_known_to_a_close() {
    let function = Function::default();
    let cache = function.cache().maxsize(2).build();
    let mut invalidated = Caller::waiting(&cache, 77);
    cache.cache_invalidate(&77);
    let mut crowded: Vec<_> = (0..10).map(|key| Caller::waiting(&cache, key)).collect();
    assert!(cache.cache_info().currsize <= 2);
    assert_eq!(cache.cache_parameters().tasks, 11);
    assert!(poll_once(pin!(cache.cache_close(false))).is_ready());
    assert_eq!((function.gone(), cache.cache_parameters().tasks), (11, 0));
    for caller in crowded.iter_mut().chain([&mut invalidated]) {
        assert!(matches!(caller.poll_if_woken(), Poll::Ready(Err(LoadError::Closed))));
    }
}

// F6

#[test]
fn f06_a_hit_answers_at_the_first_poll() {
    let function = Function::open();
    let cache = function.cache().build();
    assert_eq!(call(&cache, 1).expect("open"), 10);
    function.set(Verdict::Wait);
    assert_eq!(call(&cache, 1).expect("cached"), 10);
    assert_eq!(function.runs(), 1);
}

on_all_runtimes! {
    async fn f06_a_hit_does_not_yield(runtime) {
        let function = Function::open();
        let cache = function.cache().build();
        cache.call(1).await.expect("open");
        let task = runtime.spawn(async move { poll_here(pin!(cache.call(1))).await.is_ready() });
        assert!(task.join().await);
    }
}

// F7

#[test]
fn f07_one_error_reaches_all_callers_of_the_run_and_the_next_call_runs_again() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut callers: Vec<_> = (0..20).map(|_| Caller::waiting(&cache, 1)).collect();
    function.set(Verdict::Fail);
    let mut errors = Vec::new();
    for _ in 0..3 {
        for caller in &mut callers {
            match caller.poll_if_woken() {
                Poll::Ready(Err(LoadError::Failed(error))) => errors.push(error),
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => {}
            }
        }
    }
    assert_eq!(errors.len(), 20);
    assert_eq!(errors[0].as_str(), "no 1");
    assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
    assert_eq!(function.runs(), 1);
    assert_eq!(cache.cache_info().currsize, 0);
    function.set(Verdict::Value);
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(function.runs(), 2);
}

on_all_runtimes! {
    async fn f07_tasks_that_share_a_run_share_its_error_and_the_next_call_runs_at_once(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(1).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 19).await;
        function.set(Verdict::Fail);
        let mut errors = Vec::new();
        for task in tasks {
            match task.join().await {
                Err(LoadError::Failed(error)) => errors.push(error),
                other => panic!("{other:?}"),
            }
        }
        assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
        assert_eq!((function.runs(), cache.cache_info().currsize), (1, 0));
        function.set(Verdict::Value);
        assert_eq!(cache.call(1).await.expect("open"), 10);
    }
}

// F8

#[test]
fn f08_a_caller_that_leaves_takes_nothing_from_the_others() {
    let function = Function::default();
    let cache = function.cache().build();
    let first = Caller::waiting(&cache, 1);
    let mut second = Caller::waiting(&cache, 1);
    drop(first);
    assert_eq!((function.runs(), function.gone()), (1, 0));
    function.set(Verdict::Value);
    // Nobody but the second is left to drive the load.
    assert_eq!(value(second.poll_if_woken()), 10);
    assert_eq!(function.runs(), 1);
}

#[test]
fn f08_the_last_caller_that_leaves_takes_the_load_along() {
    let function = Function::default();
    let cache = function.cache().build();
    let callers: Vec<_> = (0..3).map(|_| Caller::waiting(&cache, 1)).collect();
    drop(callers);
    assert_eq!((function.runs(), function.gone()), (1, 1));
    assert!(!cache.cache_contains(&1));
    assert_eq!((cache.cache_info().currsize, cache.cache_parameters().tasks), (0, 0));
    function.set(Verdict::Value);
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(cache.cache_info().misses, 2);
}

#[test]
fn f08_rounds_of_abandoned_loads_leave_nothing_behind() {
    let function = Function::default();
    let cache = function.cache().build();
    for round in 0..20_000 {
        drop(Caller::waiting(&cache, round % 7));
        assert_eq!(function.gone() as u64, round + 1);
        if round % 1_000 == 0 {
            function.set(Verdict::Wait);
        }
    }
    assert_eq!((cache.cache_info().currsize, cache.cache_parameters().tasks), (0, 0));
}

on_all_runtimes! {
    async fn f08_tasks_that_are_cancelled_take_the_load_along_with_the_last(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        for rounds in 1..=3 {
            let mut tasks: Vec<_> = (0..10)
                .map(|_| {
                    let cache = cache.clone();
                    runtime.spawn(async move { cache.call(1).await })
                })
                .collect();
            until(|| cache.cache_info().hits == 9 * rounds).await;
            let last = tasks.pop().expect("ten");
            for task in tasks {
                task.cancel().await;
            }
            assert!(cache.cache_contains(&1));
            assert_eq!(cache.cache_parameters().tasks, 1, "one waits yet");
            last.cancel().await;
            assert_eq!((function.runs(), function.gone()), (rounds as usize, rounds as usize));
            assert_eq!((cache.cache_info().currsize, cache.cache_parameters().tasks), (0, 0));
            assert_eq!(cache.cache_info().misses, rounds);
        }
    }

    async fn f08_a_task_whose_companions_are_cancelled_gets_the_value(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let mut tasks: Vec<_> = (0..10)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(1).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 9).await;
        let last = tasks.pop().expect("ten");
        for task in tasks {
            task.cancel().await;
        }
        function.set(Verdict::Value);
        assert_eq!(last.join().await.expect("a value"), 10);
        assert_eq!(function.runs(), 1);
    }
}

// F9

#[test]
fn f09_a_life_counts_from_the_end_of_the_load_and_no_hit_extends_it() {
    let (function, time) = (Function::default(), ManualTime::new());
    let cache = function.cache().ttl(SECOND * 10).time_source(time.clone()).build();
    let mut caller = Caller::waiting(&cache, 1);
    time.advance(SECOND * 100);
    function.set(Verdict::Value);
    assert_eq!(value(caller.poll_if_woken()), 10);
    for _ in 0..9 {
        time.advance(SECOND);
        assert_eq!(call(&cache, 1).expect("cached"), 10);
    }
    assert_eq!(function.runs(), 1);
    time.advance(SECOND);
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(function.runs(), 2);
}

#[test]
fn f09_a_ttl_of_zero_expires_at_once_and_still_shares_loads() {
    let function = Function::default();
    let cache = function.cache().ttl(Duration::ZERO).time_source(ManualTime::new()).build();
    let mut first = Caller::waiting(&cache, 1);
    let mut second = Caller::waiting(&cache, 1);
    function.set(Verdict::Value);
    assert_eq!(value(first.poll()), 10);
    assert_eq!(value(second.poll()), 10);
    assert_eq!(function.runs(), 1);
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(function.runs(), 2);
}

#[test]
fn f09_lives_with_jitter_end_between_ttl_and_ttl_and_jitter_each_at_its_own_time() {
    let (function, time) = (Function::open(), ManualTime::new());
    let cache = function
        .cache()
        .unbounded()
        .ttl(SECOND * 10)
        .jitter(SECOND * 2)
        .time_source(time.clone())
        .build();
    (0..500).for_each(|key| drop(call(&cache, key)));
    let alive = |at| {
        time.set(at);
        (0..500).filter(|key| cache.cache_contains(key)).count()
    };
    assert_eq!(alive(SECOND * 10 - Duration::from_millis(1)), 500);
    assert!((150..=350).contains(&alive(SECOND * 11)));
    assert_eq!(alive(SECOND * 12), 0);
}

// F10

#[test]
fn f10_contains_is_true_while_the_load_runs_and_counts_as_nothing() {
    let function = Function::default();
    let cache = function.cache().build();
    assert!(!cache.cache_contains(&1));
    let _caller = Caller::waiting(&cache, 1);
    let before = info(&cache);
    assert!(cache.cache_contains(&1) && !cache.cache_contains(&2));
    assert_eq!(info(&cache), before);
}

// F11, F16

#[test]
fn f11_after_an_invalidation_the_old_callers_get_the_old_run_and_new_ones_a_new_run() {
    let function = Function::default();
    let cache = function.cache().build();
    assert!(!cache.cache_invalidate(&1));
    let mut old = Caller::waiting(&cache, 1);
    let counted = cache.cache_info();
    assert!(cache.cache_invalidate(&1));
    assert_eq!(
        (cache.cache_info().hits, cache.cache_info().misses),
        (counted.hits, counted.misses)
    );
    assert!(!cache.cache_contains(&1));

    let mut new = Caller::waiting(&cache, 1);
    assert_eq!((function.runs(), cache.cache_parameters().tasks), (2, 2));
    function.set(Verdict::Value);
    assert_eq!(value(old.poll()), 10);
    assert!(cache.cache_contains(&1), "the new load is still the entry");
    assert_eq!(cache.cache_parameters().tasks, 1);
    assert_eq!(value(new.poll()), 10);
    assert_eq!(call(&cache, 1).expect("cached"), 10);
    assert_eq!(function.runs(), 2);
}

#[test]
fn f11_the_result_of_an_invalidated_run_is_not_stored() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut old = Caller::waiting(&cache, 1);
    cache.cache_invalidate(&1);
    function.set(Verdict::Value);
    assert_eq!(value(old.poll()), 10);
    assert!(!cache.cache_contains(&1));
    assert_eq!(cache.cache_info().currsize, 0);
}

// F12

#[test]
fn f12_clear_drops_all_and_zeroes_the_counters_and_running_loads_finish_uncached() {
    let function = Function::open();
    let cache = function.cache().build();
    (0..10).for_each(|key| drop(call(&cache, key)));
    function.set(Verdict::Wait);
    let mut running = Caller::waiting(&cache, 77);
    cache.cache_clear();
    assert_eq!(info(&cache), "CacheInfo(hits=0, misses=0, maxsize=128, currsize=0)");
    function.set(Verdict::Value);
    assert_eq!(value(running.poll_if_woken()), 770);
    assert!(!cache.cache_contains(&77));
    assert_eq!(call(&cache, 1).expect("open"), 10);
    assert_eq!(info(&cache), "CacheInfo(hits=0, misses=1, maxsize=128, currsize=1)");
}

// F13

#[test]
fn f13_close_drops_running_loads_and_their_callers_and_all_later_ones_are_told() {
    let function = Function::open();
    let cache = function.cache().build();
    call(&cache, 1).expect("open");
    function.set(Verdict::Wait);
    let mut running: Vec<_> = (0..3).map(|_| Caller::waiting(&cache, 2)).collect();
    let mut detached = Caller::waiting(&cache, 3);
    cache.cache_invalidate(&3);

    assert!(poll_once(pin!(cache.cache_close(false))).is_ready());
    assert_eq!(function.gone(), 3, "dropped at once");
    for caller in running.iter_mut().chain([&mut detached]) {
        assert!(matches!(caller.poll_if_woken(), Poll::Ready(Err(LoadError::Closed))));
    }
    assert!(matches!(call(&cache, 1), Err(LoadError::Closed)), "a hit too");
    assert!(matches!(call(&cache, 9), Err(LoadError::Closed)));
    let parameters = cache.cache_parameters();
    assert!(parameters.closed);
    assert_eq!(parameters.tasks, 0);

    assert!(poll_once(pin!(cache.cache_close(false))).is_ready(), "twice is fine");
    assert!(poll_once(pin!(cache.cache_close(true))).is_ready());
    assert!(cache.cache_contains(&1));
    assert!(cache.cache_invalidate(&1));
    cache.cache_clear();
    assert_eq!(cache.cache_info().currsize, 0);
}

#[test]
fn f13_a_close_that_waits_lets_running_loads_finish_and_drives_those_that_nobody_polls() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut idle = Caller::waiting(&cache, 2);
    let mut detached = Caller::waiting(&cache, 3);
    cache.cache_invalidate(&3);
    let (flag, mut close) = (Flag::new(), Box::pin(cache.cache_close(true)));
    assert!(flag.poll(close.as_mut()).is_pending());
    assert!(matches!(call(&cache, 9), Err(LoadError::Closed)));
    function.set(Verdict::Value);
    assert!(flag.take(), "not woken");
    assert!(flag.poll(close.as_mut()).is_ready());
    assert_eq!((function.gone(), cache.cache_parameters().tasks), (2, 0));
    assert_eq!(value(idle.poll()), 20);
    assert_eq!(value(detached.poll()), 30);
}

on_all_runtimes! {
    async fn f13_a_close_ends_the_calls_of_all_tasks(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(n % 2).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 8).await;
        cache.cache_close(false).await;
        assert_eq!(cache.cache_parameters().tasks, 0);
        for task in tasks {
            assert!(matches!(task.join().await, Err(LoadError::Closed)));
        }
        assert_eq!((function.runs(), function.gone()), (2, 2));
    }

    async fn f13_a_close_that_waits_ends_with_the_last_load(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let tasks: Vec<_> = (0..10)
            .map(|n| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(n % 2).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 8).await;
        let closer = {
            let cache = cache.clone();
            runtime.spawn(async move { cache.cache_close(true).await })
        };
        until(|| cache.cache_parameters().closed).await;
        assert!(matches!(cache.call(0).await, Err(LoadError::Closed)));
        assert_eq!((function.gone(), cache.cache_parameters().tasks), (0, 2));
        function.set(Verdict::Value);
        closer.join().await;
        assert_eq!((function.gone(), cache.cache_parameters().tasks), (2, 0));
        for (n, task) in tasks.into_iter().enumerate() {
            assert_eq!(task.join().await.expect("a value"), n as u64 % 2 * 10);
        }
    }
}

// F14

#[test]
fn f14_a_load_survives_the_runtime_that_began_it() {
    let function = Function::default();
    let cache = function.cache().build();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let (begun, wait_for_it) = std::sync::mpsc::channel();
    let first = cache.clone();
    runtime.spawn(async move {
        let mut call = pin!(first.call(1));
        poll_fn(|cx| {
            let answer = call.as_mut().poll(cx);
            begun.send(()).ok();
            answer
        })
        .await
    });
    wait_for_it.recv_timeout(LIMIT).expect("the first caller began");
    let mut second = Caller::waiting(&cache, 1);
    drop(runtime);
    function.set(Verdict::Value);
    assert_eq!(value(second.poll_if_woken()), 10);
    assert_eq!(function.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f14_callers_on_many_threads_share_one_run_a_key() {
    let runs = Arc::new(AtomicUsize::new(0));
    let cache: AlruCache<u64, u64> = {
        let runs = runs.clone();
        AlruCache::builder_infallible(move |key| {
            let runs = runs.clone();
            async move {
                runs.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
                key * 10
            }
        })
        .build()
    };
    let callers: Vec<_> = (0..1_000)
        .map(|n| {
            let cache = cache.clone();
            tokio::spawn(async move { (n % 50, cache.call(n % 50).await) })
        })
        .collect();
    for caller in callers {
        let (key, answer): (u64, Result<u64, LoadError<Infallible>>) =
            caller.await.expect("no panic");
        assert_eq!(answer.expect("infallible"), key * 10);
    }
    assert_eq!(runs.load(SeqCst), 50);
    let info = cache.cache_info();
    assert_eq!((info.hits, info.misses, info.currsize), (950, 50, 50));
}

/// A call of `cache` that says when it has begun.
async fn call_and_tell(cache: Cached, begun: std::sync::mpsc::Sender<()>) {
    let mut call = pin!(cache.call(1));
    let _ = poll_fn(|cx| {
        let answer = call.as_mut().poll(cx);
        let _ = begun.send(());
        answer
    })
    .await;
}

#[test]
fn f14_a_load_survives_a_tokio_runtime_of_one_thread_and_an_executor_of_smol() {
    type Begin = fn(Pin<Box<dyn Future<Output = ()> + Send>>) -> Box<dyn Send>;
    let tokio: Begin = |first| {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.spawn(first);
        runtime.block_on(tokio::task::yield_now());
        Box::new(runtime)
    };
    let smol: Begin = |first| {
        let executor = smol::Executor::new();
        executor.spawn(first).detach();
        while executor.try_tick() {}
        Box::new(executor)
    };
    for begin in [tokio, smol] {
        let function = Function::default();
        let cache = function.cache().build();
        let (begun, wait_for_it) = std::sync::mpsc::channel();
        let runtime = begin(Box::pin(call_and_tell(cache.clone(), begun)));
        wait_for_it.recv_timeout(LIMIT).expect("the first caller began");
        let mut second = Caller::waiting(&cache, 1);
        drop(runtime);
        assert_eq!((function.runs(), function.gone()), (1, 0));
        function.set(Verdict::Value);
        assert_eq!(value(second.poll_if_woken()), 10);
        assert_eq!(function.runs(), 1);
    }
}

#[test]
fn f14_a_load_that_cannot_outlive_its_runtime_ends_in_an_error_and_not_in_a_hang() {
    let cache: AlruCache<u64, u64, String> = AlruCache::builder(|key| async move {
        // The runtime's own timer, which is no good without it.
        tokio::time::sleep(Duration::from_secs(1 << 30)).await;
        Ok(key)
    })
    .build();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let (begun, wait_for_it) = std::sync::mpsc::channel();
    runtime.spawn(call_and_tell(cache.clone(), begun));
    wait_for_it.recv_timeout(LIMIT).expect("the first caller began");
    let mut others = [Caller::waiting(&cache, 1), Caller::waiting(&cache, 1)];
    drop(runtime);
    let mut panics = 0;
    for other in &mut others {
        match catch_unwind(AssertUnwindSafe(|| other.poll_if_woken())) {
            Ok(Poll::Pending) => panic!("a caller hangs"),
            Ok(Poll::Ready(Ok(value))) => panic!("{value}"),
            Ok(Poll::Ready(Err(error))) => assert!(matches!(error, LoadError::Panicked(_))),
            Err(_) => panics += 1,
        }
    }
    assert_eq!(panics, 1, "the one whose poll it was");
    assert_eq!((cache.cache_info().currsize, cache.cache_parameters().tasks), (0, 0));
}

#[test]
fn f14_callers_on_three_runtimes_at_once_share_one_run() {
    use common::runtimes::{Runtime, Smol, TokioManyThreads, TokioOneThread};
    let function = Function::default();
    let cache = function.cache().build();
    let callers = |runtime: fn(Cached)| {
        let cache = cache.clone();
        std::thread::spawn(move || runtime(cache))
    };
    async fn ten(runtime: impl Runtime, cache: Cached) {
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(1).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.join().await.expect("a value"), 10);
        }
    }
    let threads = [
        callers(|cache| TokioOneThread.run(ten(TokioOneThread, cache))),
        callers(|cache| TokioManyThreads.run(ten(TokioManyThreads, cache))),
        callers(|cache| Smol.run(ten(Smol, cache))),
    ];
    Smol.run(until(|| cache.cache_info().hits == 29));
    function.set(Verdict::Value);
    for thread in threads {
        thread.join().expect("no panic");
    }
    assert_eq!(function.runs(), 1);
    assert_eq!(info(&cache), "CacheInfo(hits=29, misses=1, maxsize=128, currsize=1)");
}

// F15

#[test]
fn f15_a_panic_reaches_the_caller_that_polled_and_the_others_get_its_message() {
    let function = Function::default();
    let cache = function.cache().build();
    let mut polled = Caller::waiting(&cache, 1);
    let mut others: Vec<_> = (0..3).map(|_| Caller::waiting(&cache, 1)).collect();
    function.set(Verdict::Panic);
    let panic = catch_unwind(AssertUnwindSafe(|| polled.poll())).expect_err("passes through");
    assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("panic of 1"));
    for caller in &mut others {
        match caller.poll_if_woken() {
            Poll::Ready(Err(LoadError::Panicked(message))) => assert_eq!(&*message, "panic of 1"),
            other => panic!("{other:?}"),
        }
    }
    assert!(!cache.cache_contains(&1));
    assert_eq!(cache.cache_parameters().tasks, 0);
    function.set(Verdict::Value);
    assert_eq!(call(&cache, 1).expect("open"), 10);
}

#[test]
fn f15_in_the_infallible_api_all_callers_panic_with_the_load() {
    let cache: Cache<u64, u64> = Cache::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, async {
        source.load(()).await;
        panic!("no value in run {}", source.begun())
    }));
    let mut waiters: Vec<_> =
        (0..3).map(|n| (Flag::new(), Box::pin(cache.get_with(1, ready(n))))).collect();
    assert!(poll_once(leader.as_mut()).is_pending());
    for (flag, waiter) in &mut waiters {
        assert!(flag.poll(waiter.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    let message = |panic: Box<dyn std::any::Any + Send>| panic.downcast_ref::<String>().cloned();
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(leader.as_mut())));
    assert_eq!(message(panic.expect_err("the load's")).as_deref(), Some("no value in run 1"));
    for (flag, waiter) in &mut waiters {
        assert!(flag.take(), "not woken");
        let panic = catch_unwind(AssertUnwindSafe(|| flag.poll(waiter.as_mut())));
        assert_eq!(message(panic.expect_err("the load's")).as_deref(), Some("no value in run 1"));
    }
    drop((leader, waiters));
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(5)))), Poll::Ready(5));
}

on_all_runtimes! {
    async fn f15_of_the_tasks_that_share_a_panic_one_panics_and_the_others_are_told(runtime) {
        let function = Function::default();
        let cache = function.cache().build();
        let tasks: Vec<_> = (0..10)
            .map(|_| {
                let cache = cache.clone();
                runtime.spawn(async move { cache.call(1).await })
            })
            .collect();
        until(|| cache.cache_info().hits == 9).await;
        function.set(Verdict::Panic);
        let mut panics = 0;
        for task in tasks {
            match task.ended().await {
                Ok(Err(LoadError::Panicked(message))) => assert_eq!(&*message, "panic of 1"),
                Ok(other) => panic!("{other:?}"),
                Err(panic) => {
                    assert_eq!(panic.downcast_ref::<String>().expect("a message"), "panic of 1");
                    panics += 1;
                }
            }
        }
        assert_eq!((panics, function.runs()), (1, 1));
        function.set(Verdict::Value);
        assert_eq!(cache.call(1).await.expect("usable"), 10);
    }
}

// F16

/// How the load that is not the entry any more ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Value,
    Error,
    Panic,
    Dropped,
}

/// A function whose n-th run gives n, or ends as it is told.
fn numbered(endings: &Arc<Mutex<Vec<Option<Ending>>>>) -> AlruCache<u64, u64, String> {
    let endings = endings.clone();
    AlruCache::builder(move |_| {
        let endings = endings.clone();
        let mut list = endings.lock().expect("no panic inside");
        list.push(None);
        let n = list.len() - 1;
        drop(list);
        poll_fn(move |_| {
            let ending = endings.lock().expect("no panic inside")[n];
            match ending {
                None => Poll::Pending,
                Some(Ending::Value) => Poll::Ready(Ok(n as u64)),
                Some(Ending::Error) => Poll::Ready(Err(format!("run {n}"))),
                Some(_) => panic!("run {n}"),
            }
        })
    })
    .maxsize(4)
    .build()
}

#[test]
fn f16_a_load_that_was_taken_out_touches_no_newer_entry_of_its_key_however_it_ends() {
    for ending in [Ending::Value, Ending::Error, Ending::Panic, Ending::Dropped] {
        for cleared in [false, true] {
            for newer_is_done in [false, true] {
                let endings = Arc::default();
                let cache = numbered(&endings);
                let end = |n: usize, ending| {
                    endings.lock().expect("no panic inside")[n] = Some(ending);
                };
                let mut old = Caller::waiting(&cache, 1);
                if cleared {
                    cache.cache_clear();
                } else {
                    assert!(cache.cache_invalidate(&1));
                }
                let mut newer = Caller::waiting(&cache, 1);
                if newer_is_done {
                    end(1, Ending::Value);
                    assert_eq!(value(newer.poll()), 1);
                }
                let what = format!("{ending:?}, cleared: {cleared}, done: {newer_is_done}");
                match ending {
                    Ending::Dropped => drop(old),
                    _ => {
                        end(0, ending);
                        let ended = catch_unwind(AssertUnwindSafe(|| old.poll()));
                        match ending {
                            Ending::Value => {
                                assert_eq!(value(ended.expect("a value")), 0, "{what}")
                            }
                            Ending::Error => assert!(
                                matches!(ended, Ok(Poll::Ready(Err(LoadError::Failed(_))))),
                                "{what}"
                            ),
                            _ => assert!(ended.is_err(), "{what}"),
                        }
                    }
                }
                assert!(cache.cache_contains(&1), "{what}");
                assert_eq!(cache.cache_info().currsize, 1, "{what}");
                end(1, Ending::Value);
                if !newer_is_done {
                    assert_eq!(value(newer.poll()), 1, "{what}");
                }
                assert_eq!(value(Caller::new(&cache, 1).poll()), 1, "{what}");
                assert_eq!(endings.lock().expect("no panic inside").len(), 2, "{what}");
            }
        }
    }
}

#[test]
fn f16_a_load_that_was_crowded_out_touches_no_newer_entry_of_its_key() {
    let endings = Arc::default();
    let cache = numbered(&endings);
    let end = |n: usize| endings.lock().expect("no panic inside")[n] = Some(Ending::Value);
    let mut old = Caller::waiting(&cache, 0);
    let mut crowd = Vec::new();
    while cache.cache_contains(&0) {
        crowd.push(Caller::waiting(&cache, crowd.len() as u64 + 1));
        assert!(crowd.len() < 1_000, "never pushed out");
    }
    let newer_run = crowd.len() + 1;
    let mut newer = Caller::waiting(&cache, 0);
    end(newer_run);
    assert_eq!(value(newer.poll()), newer_run as u64);
    end(0);
    assert_eq!(value(old.poll()), 0);
    assert_eq!(value(Caller::new(&cache, 0).poll()), newer_run as u64);
}

#[test]
fn f16_the_end_of_an_old_load_leaves_a_newer_value_alone() {
    let cache: Cache<u64, u64> = Cache::new(8);
    let source = Source::default();
    let mut old = Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("late"))));
    assert!(poll_once(old.as_mut()).is_pending());
    cache.invalidate(&1);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(2)))), Poll::Ready(2));
    source.open();
    assert!(matches!(poll_once(old.as_mut()), Poll::Ready(Err(_))));
    assert_eq!(cache.get(&1), Some(2));

    let mut dropped = Box::pin(cache.get_with(3, pending()));
    assert!(poll_once(dropped.as_mut()).is_pending());
    cache.insert(3, 30);
    drop(dropped);
    assert_eq!(cache.get(&3), Some(30));
}
