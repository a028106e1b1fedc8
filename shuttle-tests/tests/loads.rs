//! Loads shared by ten tasks: election, cancellation, hand-off, writes meanwhile, close.
#![cfg(alru_shuttle)]

use alru::{AlruCache, Cache, LoadError};
use alru_shuttle_tests::{Event, Source, TASKS, below, check, impatient, turns};
use shuttle::future::block_on;
use shuttle::thread;
use std::future::{Future, pending, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

type Loads = Cache<u32, usize>;

/// Nothing is reused within a schedule: there are slots enough for all that a test does.
fn cache_of(capacity: u64) -> Loads {
    Cache::builder().max_capacity(capacity).reserve(256).blocking_patience(Duration::MAX).build()
}

/// Room for all that the tasks bring at once: callers that are about to begin a load count as entries.
fn cache() -> Loads {
    cache_of(64)
}

/// A function cache whose runs last as long as `until` says. As roomy as that.
fn memo<F>(source: &Source, until: impl Fn() -> F + Send + Sync + 'static) -> AlruCache<u32, usize>
where
    F: Future<Output = ()> + Send + 'static,
{
    let source = source.clone();
    AlruCache::builder_infallible(move |_| source.run(until())).maxsize(64).build()
}

/// Ten tasks; what each came to.
fn ten<T: Send + 'static>(task: impl Fn(usize) -> T + Clone + Send + 'static) -> Vec<T> {
    let spawn = |n| {
        let task = task.clone();
        thread::spawn(move || task(n))
    };
    let tasks: Vec<_> = (0..TASKS).map(spawn).collect();
    tasks.into_iter().map(|task| task.join().expect("no panic")).collect()
}

// Election.

#[test]
fn of_ten_callers_the_leaders_of_which_give_up_one_is_left_and_gets_its_value() {
    check(|| {
        let (cache, source) = (cache(), Source::default());
        let survivor = below(TASKS);
        let (calls, runs) = (cache.clone(), source.clone());
        let got = ten(move |n| {
            let call = calls.get_with(1, runs.run(turns(below(5))));
            block_on(async { if n == survivor { Some(call.await) } else { impatient(call).await } })
        });
        let value = cache.get(&1).expect("the survivor's");
        assert!(got.iter().flatten().all(|other| *other == value), "{value}: {got:?}");
        assert_eq!(got[survivor], Some(value));
        assert_eq!(source.begun(), source.gone());
        assert_eq!((cache.entry_count(), cache.stats().loads <= source.begun() as u64), (1, true));
    });
}

/// Callers of one key that are about to begin its load count as entries. They filled a small cache, and pushed the
/// load out that one of them had begun.
#[test]
fn ten_patient_callers_run_one_load_in_a_cache_of_eight_too() {
    ten_patient_callers_of(8);
}

#[test]
fn ten_patient_callers_run_one_load() {
    ten_patient_callers_of(64);
}

fn ten_patient_callers_of(capacity: u64) {
    check(move || {
        let (cache, source) = (cache_of(capacity), Source::default());
        let (calls, runs) = (cache.clone(), source.clone());
        let got = ten(move |n| match n % 3 {
            // In real time, a blocking caller's own run is over at once.
            0 => calls.get_or_insert_with(1, || block_on(runs.run(turns(below(3))))),
            1 => block_on(calls.get_with(1, runs.run(turns(below(3))))),
            _ => {
                let load = async { Ok::<_, ()>(runs.run(turns(below(3))).await) };
                block_on(calls.try_get_with(1, load)).expect("a value")
            }
        });
        assert_eq!(got, [1; TASKS]);
        assert_eq!((source.begun(), source.gone()), (1, 1));
        let stats = cache.stats();
        assert_eq!((stats.loads, stats.misses, stats.hits), (1, 1, TASKS as u64 - 1));
    });
}

#[test]
fn callers_of_a_run_that_fails_have_its_error_and_nobody_keeps_it() {
    check(|| {
        let (cache, source) = (cache(), Source::default());
        let (calls, runs) = (cache.clone(), source.clone());
        // The youngest run whose error a caller has had.
        let over = Arc::new(AtomicUsize::new(0));
        let errors = ten(move |_| {
            let before = over.load(SeqCst);
            let load = async { Err::<usize, _>(runs.run(turns(below(4))).await) };
            let error = block_on(calls.try_get_with(1, load)).expect_err("each run fails");
            over.fetch_max(*error, SeqCst);
            (before, error)
        });
        for (before, error) in &errors {
            assert!(**error > *before, "an error of a run that was over: {errors:?}");
        }
        let same = |(n, (_, one)): (usize, &(usize, Arc<usize>))| {
            errors[n + 1..].iter().all(|(_, other)| **one != **other || Arc::ptr_eq(one, other))
        };
        assert!(errors.iter().enumerate().all(same), "one run, two errors");
        assert_eq!(cache.entry_count(), 0);
        assert_eq!(cache.stats().load_failures, source.begun() as u64);
    });
}

// Cancellation.

#[test]
fn when_all_ten_callers_give_up_their_futures_are_gone_and_the_key_is_free() {
    check(|| {
        let (cache, source) = (cache(), Source::default());
        let (calls, runs) = (cache.clone(), source.clone());
        let got = ten(move |_| block_on(impatient(calls.get_with(1, runs.run(pending())))));
        assert_eq!(got, [None; TASKS]);
        assert!(source.begun() > 0 && source.begun() == source.gone());
        assert_eq!((cache.entry_count(), cache.contains_key(&1)), (0, false));
        assert_eq!(block_on(cache.get_with(1, ready(7))), 7);
    });
}

#[test]
fn when_all_ten_callers_of_a_shared_load_give_up_it_is_dropped_with_the_last() {
    check(|| {
        let source = Source::default();
        let memo = memo(&source, pending);
        let calls = memo.clone();
        ten(move |_| assert!(block_on(impatient(calls.call(1))).is_none()));
        assert_eq!(source.begun(), source.gone());
        let info = memo.cache_info();
        assert_eq!((memo.cache_parameters().tasks, info.currsize), (0, 0));
        assert_eq!((info.misses, info.hits + info.misses), (source.begun() as u64, TASKS as u64));
    });
}

// Hand-off.

#[test]
fn a_shared_load_that_ten_tasks_drive_and_nine_leave_reaches_the_tenth() {
    check(|| {
        let (source, event) = (Source::default(), Event::default());
        let waited = event.clone();
        let memo = memo(&source, move || waited.clone().wait());
        let survivor = below(TASKS);
        let raiser = thread::spawn(move || {
            block_on(turns(below(10)));
            event.raise();
        });
        let calls = memo.clone();
        let got = ten(move |n| {
            let call = calls.call(1);
            block_on(async { if n == survivor { Some(call.await) } else { impatient(call).await } })
                .map(|answer| answer.expect("no error"))
        });
        raiser.join().expect("no panic");
        assert!(got[survivor].is_some());
        assert_eq!(source.begun(), source.gone());
        let info = memo.cache_info();
        assert_eq!((memo.cache_parameters().tasks, info.currsize), (0, 1));
        assert_eq!((info.misses, info.hits + info.misses), (source.begun() as u64, TASKS as u64));
    });
}

#[test]
fn a_shared_load_that_wakes_itself_while_it_is_polled_is_polled_again() {
    check(|| {
        let source = Source::default();
        // Longer than the first polls of ten callers carry it.
        let memo = memo(&source, || turns(3 * TASKS));
        let calls = memo.clone();
        let got = ten(move |_| block_on(calls.call(1)).expect("no error"));
        assert_eq!(got, [1; TASKS]);
        assert_eq!((source.begun(), source.gone()), (1, 1));
    });
}

// Writes meanwhile.

#[test]
fn who_calls_after_an_invalidation_never_gets_a_load_that_began_before() {
    check(|| {
        let cache = cache();
        // A load gives the number of invalidations that had begun when it began.
        let (begun, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let number = begun.clone();
        let memo: AlruCache<u32, usize> = AlruCache::builder_infallible(move |_| {
            let number = number.clone();
            async move {
                let number = number.load(SeqCst);
                turns(below(3)).await;
                number
            }
        })
        .maxsize(64)
        .build();
        ten(move |n| {
            for round in 0..2 {
                if n % 2 == 0 {
                    let now = begun.fetch_add(1, SeqCst) + 1;
                    match (n / 2 + round) % 3 {
                        0 => drop(cache.remove(&1)),
                        1 => drop(cache.invalidate(&1)),
                        _ => cache.invalidate_all(),
                    }
                    if round == 0 {
                        memo.cache_invalidate(&1);
                    } else {
                        memo.cache_clear();
                    }
                    done.fetch_max(now, SeqCst);
                }
                let least = done.load(SeqCst);
                let got = block_on(cache.get_with(1, async {
                    let number = begun.load(SeqCst);
                    turns(below(3)).await;
                    number
                }));
                assert!(got >= least, "{got} after {least} invalidations");
                let got = block_on(memo.call(1)).expect("not closed");
                assert!(got >= least, "{got} after {least} invalidations, shared");
            }
        });
    });
}

#[test]
fn a_value_inserted_among_ten_loads_stays() {
    check(|| {
        let cache = cache();
        let inserter = {
            let cache = cache.clone();
            thread::spawn(move || {
                block_on(turns(below(6)));
                cache.insert(1, 100);
                assert_eq!(cache.get(&1), Some(100));
            })
        };
        let calls = cache.clone();
        let got = ten(move |_| {
            block_on(impatient(calls.get_with(1, async {
                turns(below(3)).await;
                7
            })))
        });
        assert!(got.iter().flatten().all(|value| *value == 7 || *value == 100));
        inserter.join().expect("no panic");
        assert_eq!((cache.get(&1), cache.entry_count()), (Some(100), 1));
    });
}

// Close.

#[test]
fn a_close_ends_every_call_and_every_load_whenever_it_begins() {
    check(|| {
        let source = Source::default();
        // Busy for a while, so that the close may meet it in the middle of a poll.
        let busy = || async {
            turns(50).await;
            pending().await
        };
        let memo = memo(&source, busy);
        let closer = {
            let memo = memo.clone();
            thread::spawn(move || {
                block_on(turns(below(6)));
                block_on(memo.cache_close(false));
                assert!(memo.cache_parameters().closed);
            })
        };
        let calls = memo.clone();
        ten(move |n| {
            let ended = block_on(calls.call(n as u32 % 3));
            assert!(matches!(ended, Err(LoadError::Closed)));
        });
        closer.join().expect("no panic");
        assert_eq!(source.begun(), source.gone());
        assert_eq!((memo.cache_parameters().tasks, memo.cache_info().currsize), (0, 0));
    });
}

#[test]
fn a_close_that_waits_sees_the_end_of_every_load_though_nine_tasks_give_up() {
    check(|| {
        let (source, event) = (Source::default(), Event::default());
        let waited = event.clone();
        let memo = memo(&source, move || waited.clone().wait());
        let closer = {
            let memo = memo.clone();
            thread::spawn(move || {
                block_on(turns(below(6)));
                block_on(memo.cache_close(true));
            })
        };
        let raiser = thread::spawn(move || {
            block_on(turns(below(10)));
            event.raise();
        });
        let calls = memo.clone();
        let patient = below(TASKS);
        let got = ten(move |n| {
            let call = calls.call(1);
            block_on(async { if n == patient { Some(call.await) } else { impatient(call).await } })
        });
        closer.join().expect("no panic");
        raiser.join().expect("no panic");
        assert!(!matches!(got[patient], None), "no answer");
        assert!(got.iter().flatten().all(|a| matches!(a, Ok(_) | Err(LoadError::Closed))));
        assert_eq!(source.begun(), source.gone());
        assert_eq!(memo.cache_parameters().tasks, 0);
    });
}
