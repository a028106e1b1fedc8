//! Blocking callers: the same flights as async ones, by parking the thread.

mod common;
#[path = "common/event.rs"]
mod event;

use std::future::{Future, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use alru::{Cache, LoadError, TimedOut};
use common::{Flag, poll_once};
use event::Event;

type Loads = Cache<u64, u64>;

/// No blocking call of these gives a load up.
fn patient() -> Loads {
    Cache::builder().max_capacity(8).blocking_patience(Duration::MAX).build()
}

/// Until `callers` have joined loads of others: a joiner is counted as a hit when it has its seat.
fn until_joined(cache: &Loads, callers: u64) {
    while cache.stats().hits < callers {
        thread::yield_now();
    }
}

/// An async load of `result` that ends with the event.
fn load<T>(done: &Event, result: T) -> impl Future<Output = T> + use<T> {
    let done = done.wait();
    async move {
        done.await;
        result
    }
}

#[test]
fn a_value_that_is_there_is_returned_and_nothing_runs() {
    let cache = patient();
    cache.insert(1, 10);
    assert_eq!(cache.get_or_insert_with(1, || unreachable!("there is a value")), 10);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (1, 0, 0));
}

#[test]
fn a_missing_value_is_loaded_by_its_caller_and_stored() {
    let cache = patient();
    assert_eq!(cache.get_or_insert_with(1, || 10), 10);
    assert_eq!(cache.get(&1), Some(10));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (1, 1, 1));
}

#[test]
fn of_eight_threads_one_runs_its_closure() {
    let (cache, runs) = (patient(), AtomicUsize::new(0));
    thread::scope(|s| {
        for value in 0..8 {
            let (cache, runs) = (&cache, &runs);
            s.spawn(move || {
                let init = || {
                    runs.fetch_add(1, SeqCst);
                    until_joined(cache, 7);
                    value
                };
                let got = cache.get_or_insert_with(1, init);
                assert_eq!(cache.peek(&1), Some(got));
            });
        }
    });
    assert_eq!(runs.load(SeqCst), 1);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (7, 1, 1));
}

#[test]
fn a_thread_waits_for_an_async_load() {
    let (cache, done) = (patient(), Event::default());
    let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
    assert!(poll_once(leader.as_mut()).is_pending());
    thread::scope(|s| {
        let waiter = s.spawn(|| cache.get_or_insert_with(1, || unreachable!("joined")));
        until_joined(&cache, 1);
        done.raise();
        assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
        assert_eq!(waiter.join().expect("no panic"), 1);
    });
}

#[test]
fn an_async_caller_waits_for_the_load_of_a_thread() {
    let cache = patient();
    thread::scope(|s| {
        let led = Event::default();
        let leader = {
            let (cache, led) = (&cache, led.clone());
            s.spawn(move || {
                cache.get_or_insert_with(1, || {
                    led.raise();
                    until_joined(cache, 1);
                    1
                })
            })
        };
        smol::block_on(led.wait());
        let waiter = cache.get_with(1, async { unreachable!("joined") });
        assert_eq!(smol::block_on(waiter), 1);
        assert_eq!(leader.join().expect("no panic"), 1);
    });
}

#[test]
fn one_key_by_all_kinds_of_callers_runs_once() {
    let (cache, done) = (patient(), Event::default());
    let mut first = Box::pin(cache.try_get_with(1, load(&done, Ok::<_, &str>(1))));
    assert!(poll_once(first.as_mut()).is_pending());
    let mut second = Box::pin(cache.try_get_with(1, ready(Err::<u64, u8>(2))));
    let mut third = Box::pin(cache.get_with(1, ready(3)));
    assert!(poll_once(second.as_mut()).is_pending());
    assert!(poll_once(third.as_mut()).is_pending());
    thread::scope(|s| {
        let blocking = s.spawn(|| cache.get_or_insert_with(1, || 4));
        let fallible =
            s.spawn(|| cache.try_get_or_insert_with(1, || Err::<u64, String>("5".into())));
        until_joined(&cache, 4);
        done.raise();
        assert_eq!(poll_once(first.as_mut()), Poll::Ready(Ok(1)));
        assert_eq!(blocking.join().expect("no panic"), 1);
        assert_eq!(fallible.join().expect("no panic"), Ok(1));
    });
    assert_eq!(poll_once(second.as_mut()), Poll::Ready(Ok(1)));
    assert_eq!(poll_once(third.as_mut()), Poll::Ready(1));
    assert_eq!(cache.stats().loads, 1);
}

#[test]
fn an_error_reaches_who_can_name_it_and_the_others_run_their_own_afterwards() {
    let (cache, done) = (patient(), Event::default());
    let mut first = Box::pin(cache.try_get_with(1, load(&done, Err::<u64, &str>("broken"))));
    assert!(poll_once(first.as_mut()).is_pending());
    thread::scope(|s| {
        let same =
            s.spawn(|| cache.try_get_or_insert_with(1, || -> Result<u64, &str> { unreachable!() }));
        until_joined(&cache, 1);
        let other = s.spawn(|| cache.try_get_or_insert_with(1, || Err::<u64, u8>(9)));
        until_joined(&cache, 2);
        let infallible = s.spawn(|| cache.get_or_insert_with(1, || 7));
        until_joined(&cache, 3);
        done.raise();
        let Poll::Ready(Err(error)) = poll_once(first.as_mut()) else { panic!("it fails") };
        let same = same.join().expect("no panic").expect_err("it fails");
        assert!(Arc::ptr_eq(&error, &same), "one run, one error");
        // The two may meet again: then the first to run decides.
        assert!(matches!(other.join().expect("no panic"), Err(_) | Ok(7)));
        assert_eq!(infallible.join().expect("no panic"), 7);
    });
    assert_eq!(cache.get(&1), Some(7));
}

#[test]
fn an_error_of_a_thread_is_not_kept() {
    let cache = patient();
    assert_eq!(cache.try_get_or_insert_with(1, || Err::<u64, _>("no")), Err(Arc::new("no")));
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(cache.try_get_or_insert_with(1, || Ok::<_, &str>(1)), Ok(1));
    assert_eq!(cache.get(&1), Some(1));
}

#[test]
fn a_panic_reaches_the_thread_that_ran_and_those_that_waited() {
    let cache = patient();
    let message = |result: thread::Result<u64>| -> String {
        let payload = result.expect_err("it panics");
        let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).expect("a text")
    };
    thread::scope(|s| {
        let led = Event::default();
        let leader = {
            let (cache, led) = (&cache, led.clone());
            s.spawn(move || {
                cache.get_or_insert_with(1, || {
                    led.raise();
                    until_joined(cache, 2);
                    panic!("the closure panics")
                })
            })
        };
        smol::block_on(led.wait());
        let (flag, mut task) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
        assert!(flag.poll(task.as_mut()).is_pending());
        let waiter = s.spawn(|| cache.get_or_insert_with(1, || unreachable!("joined")));
        assert_eq!(message(leader.join()), "the closure panics");
        assert_eq!(message(waiter.join()), "the closure panics");
        assert!(flag.take());
        let ended = catch_unwind(AssertUnwindSafe(|| poll_once(task.as_mut())));
        assert!(ended.is_err());
    });
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(cache.get_or_insert_with(1, || 3), 3);
    assert_eq!(cache.stats().load_failures, 1);
}

#[test]
fn a_thread_that_waits_leads_when_the_leader_is_dropped() {
    let cache = patient();
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    thread::scope(|s| {
        let waiter = s.spawn(|| cache.get_or_insert_with(1, || 2));
        until_joined(&cache, 1);
        drop(leader);
        assert_eq!(waiter.join().expect("no panic"), 2);
    });
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn a_thread_that_waits_outlives_the_runtime_of_the_leader() {
    let cache = patient();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let led = Event::default();
    {
        let (cache, led) = (cache.clone(), led.clone());
        runtime.spawn(async move {
            let load = async {
                led.raise();
                pending().await
            };
            cache.get_with(1, load).await
        });
    }
    smol::block_on(led.wait());
    thread::scope(|s| {
        let waiter = s.spawn(|| cache.get_or_insert_with(1, || 2));
        until_joined(&cache, 1);
        drop(runtime);
        assert_eq!(waiter.join().expect("no panic"), 2);
    });
}

#[test]
fn what_is_invalidated_while_a_thread_loads_it_is_not_stored() {
    let cache = patient();
    let value = cache.get_or_insert_with(1, || {
        assert!(cache.invalidate(&1));
        1
    });
    assert_eq!((value, cache.get(&1)), (1, None));
    let value = cache.get_or_insert_with(1, || {
        cache.insert(1, 20);
        2
    });
    assert_eq!((value, cache.get(&1)), (2, Some(20)));
}

#[test]
fn a_closure_may_use_the_cache_and_load_other_keys() {
    let cache = patient();
    fn fibonacci(cache: &Loads, n: u64) -> u64 {
        cache.get_or_insert_with(n, || {
            if n < 2 { n } else { fibonacci(cache, n - 1) + fibonacci(cache, n - 2) }
        })
    }
    assert_eq!(fibonacci(&cache, 50), 12_586_269_025);
}

#[test]
fn a_cache_without_room_runs_every_closure() {
    let cache = Loads::new(0);
    for value in 0..3 {
        assert_eq!(cache.get_or_insert_with(1, || value), value);
    }
    assert_eq!(cache.get(&1), None);
}

// ---- Waiting for a time -------------------------------------------------------------------------

#[test]
fn who_does_not_wait_is_told_at_once_and_changes_nothing() {
    let (cache, done) = (patient(), Event::default());
    let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
    assert!(poll_once(leader.as_mut()).is_pending());
    let timed = cache.get_or_insert_with_timeout(1, Duration::ZERO, || unreachable!());
    assert_eq!(timed, Err(TimedOut));
    let timed: Result<Result<u64, Arc<u8>>, _> =
        cache.try_get_or_insert_with_timeout(1, Duration::from_millis(1), || unreachable!());
    assert_eq!(timed, Err(TimedOut));
    assert!(cache.contains_key(&1));
    done.raise();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(cache.get(&1), Some(1));
    assert_eq!(cache.stats().loads, 1);
    assert_eq!(TimedOut.to_string(), "timed out waiting for another caller's load");
}

#[test]
fn a_time_out_bounds_the_wait_and_not_the_load() {
    let cache = patient();
    assert_eq!(cache.get_or_insert_with_timeout(1, Duration::ZERO, || 1), Ok(1));
    assert_eq!(cache.get_or_insert_with_timeout(1, Duration::ZERO, || unreachable!()), Ok(1));
    let failed =
        cache.try_get_or_insert_with_timeout(2, Duration::ZERO, || Err::<u64, _>("broken"));
    assert_eq!(failed, Ok(Err(Arc::new("broken"))));
}

#[test]
fn a_result_that_comes_in_time_is_taken() {
    let (cache, done) = (patient(), Event::default());
    let hours = Duration::from_secs(10_000);
    let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
    assert!(poll_once(leader.as_mut()).is_pending());
    thread::scope(|s| {
        let waiter =
            s.spawn(|| cache.get_or_insert_with_timeout(1, hours, || unreachable!("joined")));
        until_joined(&cache, 1);
        done.raise();
        assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
        assert_eq!(waiter.join().expect("no panic"), Ok(1));
    });
}

// ---- Patience ------------------------------------------------------------------------------------

#[test]
fn a_thread_that_leads_the_load_itself_is_not_blocked_for_ever() {
    for patience in [Duration::ZERO, Duration::from_millis(2)] {
        let (cache, done): (Loads, _) = (
            Cache::builder().max_capacity(8).blocking_patience(patience).build(),
            Event::default(),
        );
        let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
        assert!(poll_once(leader.as_mut()).is_pending());
        // The leader is a task of this thread, which is blocked now.
        assert_eq!(cache.get_or_insert_with(1, || 2), 2);
        assert_eq!(cache.get(&1), Some(2));
        done.raise();
        assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1), "its own, uncached");
        assert_eq!(cache.get(&1), Some(2));
    }
}

#[test]
fn a_thread_waits_for_ever_only_if_it_is_told_to() {
    let cache = Loads::new(8);
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert_eq!(cache.get_or_insert_with(1, || 2), 2, "after the default patience");
}

#[tokio::test(flavor = "current_thread")]
async fn a_task_that_blocks_the_runtime_of_the_leader_goes_on() {
    let cache: Loads =
        Cache::builder().max_capacity(8).blocking_patience(Duration::from_millis(2)).build();
    let (led, done) = (Event::default(), Event::default());
    let leader = {
        let (cache, led, done) = (cache.clone(), led.clone(), done.clone());
        tokio::spawn(async move {
            let load = async {
                led.raise();
                done.wait().await;
                1
            };
            cache.get_with(1, load).await
        })
    };
    led.wait().await;
    assert_eq!(cache.get_or_insert_with(1, || 2), 2);
    done.raise();
    assert_eq!(leader.await.expect("no panic"), 1);
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn of_eight_threads_that_lose_patience_with_one_leader_each_ends() {
    let cache: Loads =
        Cache::builder().max_capacity(8).blocking_patience(Duration::from_millis(1)).build();
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    thread::scope(|s| {
        for value in 0..8 {
            let cache = &cache;
            s.spawn(move || assert!(cache.get_or_insert_with(1, || value) < 8));
        }
    });
    assert!(cache.get(&1).is_some());
}

#[test]
fn the_shorter_of_time_out_and_patience_counts() {
    let quick: Loads =
        Cache::builder().max_capacity(8).blocking_patience(Duration::from_millis(1)).build();
    let mut leader = Box::pin(quick.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    let hours = Duration::from_secs(10_000);
    assert_eq!(quick.get_or_insert_with_timeout(1, hours, || 2), Ok(2));

    let slow: Loads = Cache::builder().max_capacity(8).blocking_patience(hours).build();
    let mut leader = Box::pin(slow.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    let timed = slow.get_or_insert_with_timeout(1, Duration::from_millis(1), || unreachable!());
    assert_eq!(timed, Err(TimedOut));
}

// ---- Loads that ask for themselves ---------------------------------------------------------------

/// The message of a panic that names a recursion.
fn recursion(f: impl FnOnce() -> u64) -> bool {
    let payload = catch_unwind(AssertUnwindSafe(f)).expect_err("it panics");
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    text.contains("recursive load")
}

#[test]
fn a_closure_that_asks_for_its_own_key_is_told_at_once() {
    let cache = patient();
    assert!(recursion(|| cache.get_or_insert_with(1, || cache.get_or_insert_with(1, || 2))));
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(cache.get_or_insert_with(1, || 3), 3);
}

#[test]
fn an_async_load_that_blocks_for_its_own_key_is_told_at_once() {
    let cache = patient();
    assert!(recursion(|| {
        smol::block_on(cache.get_with(1, async { cache.get_or_insert_with(1, || 2) }))
    }));
    assert!(recursion(|| {
        cache.get_or_insert_with(1, || smol::block_on(cache.get_with(1, ready(2))))
    }));
    assert_eq!(cache.get_or_insert_with(1, || 3), 3);
}

// ---- The park token ------------------------------------------------------------------------------

#[test]
fn a_thread_that_is_unparked_by_others_keeps_waiting_and_loses_no_token() {
    for _ in 0..50 {
        let (cache, done) = (patient(), Event::default());
        let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
        assert!(poll_once(leader.as_mut()).is_pending());
        thread::scope(|s| {
            let waiter = s.spawn(|| {
                assert_eq!(cache.get_or_insert_with(1, || unreachable!("joined")), 1);
                // The token of the other thread: this would hang if the call had kept it.
                thread::park();
            });
            until_joined(&cache, 1);
            for _ in 0..100 {
                waiter.thread().unpark();
                thread::yield_now();
            }
            assert!(!waiter.is_finished());
            done.raise();
            assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
            waiter.join().expect("no panic");
        });
    }
}

/// The last token of the other thread and that of the end of the load come as one: std has no two.
#[test]
fn a_token_that_comes_together_with_the_wake_is_not_lost() {
    for _ in 0..300 {
        let (cache, done) = (patient(), Event::default());
        let mut leader = Box::pin(cache.get_with(1, load(&done, 1)));
        assert!(poll_once(leader.as_mut()).is_pending());
        done.raise();
        thread::scope(|s| {
            let waiter = s.spawn(|| {
                assert_eq!(cache.get_or_insert_with(1, || unreachable!("joined")), 1);
                // As above.
                thread::park();
            });
            until_joined(&cache, 1);
            waiter.thread().unpark();
            assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
            waiter.join().expect("no panic");
        });
    }
}

// ---- Loads of a loader ----------------------------------------------------------------------------

#[test]
fn a_thread_that_joins_a_load_of_a_loader_drives_it() {
    let done = Event::default();
    let gate = done.clone();
    let loader = move |key: u64| load(&gate, 10 * key);
    let builder = Cache::builder().max_capacity(8).blocking_patience(Duration::MAX);
    let cache = builder.loader_infallible(loader).build();
    let mut call = Box::pin(cache.get(1));
    assert!(poll_once(call.as_mut()).is_pending());
    thread::scope(|s| {
        let thread = s.spawn(|| cache.cache().get_or_insert_with(1, || unreachable!("under way")));
        until_joined(cache.cache(), 1);
        done.raise();
        assert_eq!(thread.join().expect("no panic"), 10);
    });
    assert_eq!(poll_once(call.as_mut()), Poll::Ready(Ok(10)));
    assert_eq!(cache.get_if_present(&1), Some(10));
}

#[test]
fn a_thread_in_a_runtimes_context_drives_a_load_that_needs_the_runtime() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let loader = |key: u64| async move {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        10 * key
    };
    let builder = Cache::builder().max_capacity(8).blocking_patience(Duration::MAX);
    let cache = builder.loader_infallible(loader).build();
    let _inside = runtime.enter();
    let mut call = Box::pin(cache.get(1));
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!(cache.cache().get_or_insert_with(1, || unreachable!("under way")), 10);
    drop(call);
}

#[test]
fn a_thread_that_waits_for_a_load_of_a_loader_outlives_a_close_and_runs_its_own() {
    let builder = Cache::builder().max_capacity(8).blocking_patience(Duration::MAX);
    let cache = builder.loader_infallible(|_: u64| pending::<u64>()).build();
    let mut call = Box::pin(cache.get(1));
    assert!(poll_once(call.as_mut()).is_pending());
    thread::scope(|s| {
        let thread = s.spawn(|| cache.cache().get_or_insert_with(1, || 2));
        until_joined(cache.cache(), 1);
        drop(cache.close(false));
        assert_eq!(thread.join().expect("no panic"), 2);
    });
    assert_eq!(poll_once(call.as_mut()), Poll::Ready(Err(LoadError::Closed)));
    assert_eq!(cache.get_if_present(&1), Some(2));
}
