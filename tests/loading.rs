//! `LoadingCache`: a cache with a loader; loads that an executor drives too.

mod common;

use std::convert::Infallible;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use alru::{AlruCache, BuildError, Cache, LoadError, LoadingCache, LoadingCacheBuilder};
use common::{Collide, Counted, Flag, Meeting, Tally, poll_once};

type Loads = LoadingCache<u64, u64, String>;
type Answer = Result<u64, LoadError<String>>;
type Job = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A loader that counts its runs, polls and ends, and does what it is told to.
#[derive(Clone, Default)]
struct Source(Arc<State>);

#[derive(Default)]
struct State {
    runs: AtomicUsize,
    polls: AtomicUsize,
    gone: AtomicUsize,
    verdict: Mutex<Verdict>,
    wakers: Mutex<Vec<(u64, Waker)>>,
}

#[derive(Clone, Copy, Default)]
enum Verdict {
    #[default]
    Wait,
    Value,
    /// A value for this key.
    Only(u64),
    Fail,
    Panic,
}

impl Source {
    fn open() -> Self {
        let source = Self::default();
        source.set(Verdict::Value);
        source
    }

    fn builder(&self) -> LoadingCacheBuilder<u64, u64, String> {
        let source = self.clone();
        Cache::builder().max_capacity(100).loader(move |key| source.clone().load(key))
    }

    async fn load(self, key: u64) -> Result<u64, String> {
        struct Gone(Source);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.0.gone.fetch_add(1, SeqCst);
            }
        }
        self.0.runs.fetch_add(1, SeqCst);
        let gone = Gone(self);
        poll_fn(|cx| {
            let state = &gone.0.0;
            state.polls.fetch_add(1, SeqCst);
            let verdict = *state.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Value => Poll::Ready(Ok(key * 10)),
                Verdict::Only(only) if only == key => Poll::Ready(Ok(key * 10)),
                Verdict::Wait | Verdict::Only(_) => {
                    state.wakers.lock().expect("no panic inside").push((key, cx.waker().clone()));
                    Poll::Pending
                }
                Verdict::Fail => Poll::Ready(Err(format!("no {key}"))),
                Verdict::Panic => panic!("panic of {key}"),
            }
        })
        .await
    }

    /// What all runs are to do; wakes those that it concerns.
    fn set(&self, verdict: Verdict) {
        *self.0.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
        let is_meant = |key| !matches!(verdict, Verdict::Only(only) if only != key);
        let mut wakers = self.0.wakers.lock().expect("no panic inside");
        let (meant, others) = wakers.drain(..).partition(|(key, _)| is_meant(*key));
        *wakers = others;
        drop(wakers);
        let meant: Vec<(u64, Waker)> = meant;
        meant.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn runs(&self) -> usize {
        self.0.runs.load(SeqCst)
    }

    fn polls(&self) -> usize {
        self.0.polls.load(SeqCst)
    }

    /// Runs that ended or were dropped.
    fn gone(&self) -> usize {
        self.0.gone.load(SeqCst)
    }
}

fn done<T>(answer: Poll<T>) -> T {
    match answer {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("pending"),
    }
}

/// A call that waits.
fn waiting<F: Future>(flag: &Arc<Flag>, call: F) -> Pin<Box<F>> {
    let mut call = Box::pin(call);
    assert!(flag.poll(call.as_mut()).is_pending());
    call
}

/// A call that answers at its first poll.
fn get(cache: &Loads, key: u64) -> Answer {
    done(poll_once(pin!(cache.get(key))))
}

// ---- A loader -----------------------------------------------------------------------------------

async fn a_hundred<T: Future>(spawn: impl Fn(Job) -> T) {
    let (begun, runs) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let cache = Cache::builder()
        .loader_infallible({
            let (begun, runs) = (begun.clone(), runs.clone());
            move |key: u64| {
                runs.fetch_add(1, SeqCst);
                let begun = begun.clone();
                poll_fn(move |cx| {
                    if begun.load(SeqCst) == 100 {
                        return Poll::Ready(key * 10);
                    }
                    // A turn for the others, on any runtime.
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
            }
        })
        .build();
    let caller = |cache: LoadingCache<u64, u64>, begun: Arc<AtomicUsize>| async move {
        begun.fetch_add(1, SeqCst);
        assert_eq!(cache.get(8).await.expect("a value"), 80);
    };
    let callers: Vec<_> =
        (0..100).map(|_| spawn(Box::pin(caller(cache.clone(), begun.clone())))).collect();
    for caller in callers {
        caller.await;
    }
    let stats = cache.cache().stats();
    assert_eq!((runs.load(SeqCst), stats.misses, stats.hits), (1, 1, 99));
}

async fn a_hundred_on_tokio() {
    a_hundred(|caller| {
        let task = tokio::spawn(caller);
        async { task.await.expect("no panic") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_callers_on_many_threads_run_the_loader_once() {
    a_hundred_on_tokio().await;
}

#[tokio::test]
async fn a_hundred_callers_on_one_thread_run_the_loader_once() {
    a_hundred_on_tokio().await;
}

#[test]
fn a_hundred_callers_on_smol_run_the_loader_once() {
    smol::block_on(a_hundred(smol::spawn));
}

#[test]
fn a_hit_answers_at_the_first_poll_and_a_look_begins_no_load() {
    let source = Source::open();
    let cache = source.builder().build();
    assert_eq!(cache.get_if_present(&1), None);
    assert_eq!(get(&cache, 1), Ok(10));
    assert_eq!(get(&cache, 1), Ok(10));
    assert_eq!(cache.get_if_present(&1), Some(10));
    assert_eq!((source.runs(), cache.loads()), (1, 0));
}

#[test]
fn one_error_reaches_all_callers_of_the_load_and_is_not_kept() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let mut calls: Vec<_> = (0..3).map(|_| waiting(&flag, cache.get(1))).collect();
    source.set(Verdict::Fail);
    let errors: Vec<_> = calls
        .iter_mut()
        .map(|call| match done(poll_once(call.as_mut())) {
            Err(LoadError::Failed(error)) => error,
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(errors.iter().all(|error| **error == "no 1" && Arc::ptr_eq(error, &errors[0])));
    source.set(Verdict::Value);
    assert_eq!(get(&cache, 1), Ok(10));
    assert_eq!(source.runs(), 2);
}

#[test]
fn the_last_caller_that_leaves_takes_the_load_along() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let calls = [waiting(&flag, cache.get(1)), waiting(&flag, cache.get(1))];
    let [first, second] = calls;
    drop(first);
    assert_eq!((source.gone(), cache.loads()), (0, 1));
    drop(second);
    assert_eq!((source.gone(), cache.loads(), cache.cache().entry_count()), (1, 0, 0));
}

#[test]
fn a_loader_that_asks_for_its_own_key_is_told_at_once() {
    let cell: Arc<Mutex<Option<LoadingCache<u64, u64>>>> = Arc::default();
    let cache = Cache::builder()
        .loader_infallible({
            let cell = cell.clone();
            move |key: u64| {
                let cache = cell.lock().expect("no panic inside").clone().expect("set");
                async move {
                    let same = cache.get(key).await;
                    assert!(matches!(same, Err(LoadError::Recursive)));
                    if key > 0 { cache.get(key - 1).await.expect("another key") + 1 } else { 0 }
                }
            }
        })
        .build();
    *cell.lock().expect("no panic inside") = Some(cache.clone());
    assert_eq!(done(poll_once(pin!(cache.get(5)))), Ok(5));
    *cell.lock().expect("no panic inside") = None;
}

#[test]
fn settings_hasher_and_errors_are_those_of_a_cache() {
    let loader = |key: u64| ready(key);
    let error = Cache::builder()
        .jitter(Duration::from_secs(1))
        .loader_infallible(loader)
        .try_build()
        .expect_err("no ttl");
    assert_eq!(error, BuildError::JitterWithoutTtl);
    let cache: LoadingCache<u64, u64, Infallible, Collide> =
        Cache::builder().loader_infallible(loader).build_with_hasher(Collide);
    for key in (0..10).chain(0..10) {
        assert_eq!(done(poll_once(pin!(cache.get(key)))), Ok(key));
    }
    assert_eq!(cache.cache().stats().loads, 10);
}

#[test]
fn the_future_of_a_call_is_small() {
    let cache = Source::open().builder().build();
    assert!(size_of_val(&cache.get(1)) <= 96, "{}", size_of_val(&cache.get(1)));
}

// ---- Beside the callers' own loads ----------------------------------------------------------------

#[test]
fn a_get_with_joins_the_loaders_load_and_drives_it() {
    let (source, flags) = (Source::default(), [Flag::new(), Flag::new(), Flag::new()]);
    let cache = source.builder().build();
    let mut idle = waiting(&flags[0], cache.get(1));
    let mut with =
        waiting(&flags[1], cache.cache().get_with(1, async { unreachable!("on its way") }));
    let other = cache.cache().try_get_with(1, ready(Err::<u64, _>(String::from("mine"))));
    let mut other = waiting(&flags[2], other);
    source.set(Verdict::Value);
    assert!(flags[1].take());
    assert_eq!(done(flags[1].poll(with.as_mut())), 10, "the first caller was not polled again");
    assert_eq!(done(poll_once(other.as_mut())), Ok(10));
    assert_eq!(done(poll_once(idle.as_mut())), Ok(10));
    assert_eq!(source.runs(), 1);
}

#[test]
fn a_get_with_keeps_the_loaders_load_alive_and_shares_its_error() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let first = waiting(&flag, cache.get(1));
    let mine = || cache.cache().try_get_with(1, ready(Err::<u64, _>(String::from("mine"))));
    let (mut other, mut named) = (waiting(&flag, mine()), waiting(&flag, mine()));
    let mut unnamed = waiting(&flag, cache.cache().try_get_with(1, ready(Ok::<_, u8>(7))));
    drop(first);
    assert_eq!(source.gone(), 0);
    source.set(Verdict::Fail);
    assert_eq!(*done(poll_once(other.as_mut())).expect_err("fails"), "no 1");
    assert_eq!(*done(poll_once(named.as_mut())).expect_err("shares"), "no 1");
    assert_eq!(done(poll_once(unnamed.as_mut())), Ok(7), "cannot name it, and runs its own");
    assert_eq!((source.runs(), source.gone()), (1, 1));
}

#[test]
fn a_get_waits_for_a_get_with_and_the_loader_does_not_run() {
    let (source, flags) = (Source::open(), [Flag::new(), Flag::new()]);
    let cache = source.builder().build();
    let mut turns = 1;
    let own = poll_fn(move |_| {
        turns -= 1;
        if turns < 0 { Poll::Ready(11) } else { Poll::Pending }
    });
    let mut with = waiting(&flags[0], cache.cache().get_with(1, own));
    let mut call = waiting(&flags[1], cache.get(1));
    assert_eq!(done(flags[0].poll(with.as_mut())), 11);
    assert!(flags[1].take());
    assert_eq!(done(flags[1].poll(call.as_mut())), Ok(11));
    assert_eq!(source.runs(), 0);
}

#[test]
fn the_loader_takes_over_when_a_get_with_is_dropped() {
    let (source, flags) = (Source::default(), [Flag::new(), Flag::new(), Flag::new()]);
    let cache = source.builder().build();
    let leader = waiting(&flags[0], cache.cache().get_with(1, pending()));
    let mut first = waiting(&flags[1], cache.get(1));
    let mut with = waiting(&flags[2], cache.cache().get_with(1, ready(11)));
    drop(leader);
    assert!(flags[1].take() && flags[2].take());
    assert!(flags[1].poll(first.as_mut()).is_pending());
    assert!(flags[2].poll(with.as_mut()).is_pending(), "the load is the loader's now");
    assert_eq!((source.runs(), cache.loads()), (1, 1));
    source.set(Verdict::Value);
    assert!(flags[1].take() && flags[2].take());
    assert_eq!(done(flags[2].poll(with.as_mut())), 10);
    assert_eq!(done(flags[1].poll(first.as_mut())), Ok(10));
    assert_eq!(cache.get_if_present(&1), Some(10));
    let stats = cache.cache().stats();
    assert_eq!((stats.misses, stats.hits), (1, 3));
}

#[test]
fn a_get_shares_an_error_that_it_can_name_and_loads_after_one_that_it_cannot() {
    let (source, flag) = (Source::open(), Flag::new());
    let cache = source.builder().build();
    let once = || {
        let mut turns = 1;
        poll_fn(move |_| {
            turns -= 1;
            if turns < 0 { Poll::Ready(()) } else { Poll::Pending }
        })
    };
    let own = async {
        once().await;
        Err::<u64, _>(String::from("mine"))
    };
    let mut with = waiting(&flag, cache.cache().try_get_with(1, own));
    let mut call = waiting(&flag, cache.get(1));
    assert!(done(poll_once(with.as_mut())).is_err());
    let error = done(poll_once(call.as_mut())).expect_err("shares");
    assert_eq!(error.failed().map(String::as_str), Some("mine"));

    let own = async {
        once().await;
        Err::<u64, _>(7)
    };
    let mut with = waiting(&flag, cache.cache().try_get_with(2, own));
    let mut call = waiting(&flag, cache.get(2));
    assert!(done(poll_once(with.as_mut())).is_err());
    assert_eq!(done(poll_once(call.as_mut())), Ok(20));
    let stats = cache.cache().stats();
    assert_eq!((source.runs(), stats.misses, stats.hits), (1, 2, 2), "a call counts once");
}

#[test]
fn a_load_outlives_the_loaders_cache_while_the_cache_beneath_and_a_caller_are_there() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let beneath = cache.cache().clone();
    let call = waiting(&flag, cache.get(1));
    let mut with = waiting(&flag, beneath.get_with(1, ready(11)));
    drop(call);
    drop(cache);
    source.set(Verdict::Value);
    assert!(flag.take(), "the load's waker knows the cache beneath");
    assert_eq!(done(flag.poll(with.as_mut())), 10);
}

// ---- Closing ------------------------------------------------------------------------------------

#[test]
fn closing_without_waiting_ends_the_loaders_loads_and_leaves_callers_their_own() {
    let (source, flags) = (Source::default(), [Flag::new(), Flag::new(), Flag::new(), Flag::new()]);
    let cache = source.builder().build();
    let mut turns = 1;
    let own = poll_fn(move |_| {
        turns -= 1;
        if turns < 0 { Poll::Ready(11) } else { Poll::Pending }
    });
    let mut with = waiting(&flags[0], cache.cache().get_with(1, own));
    let mut joined = waiting(&flags[1], cache.get(1));
    let mut call = waiting(&flags[2], cache.get(2));
    let mut guest = waiting(&flags[3], cache.cache().get_with(2, ready(22)));
    assert!(!cache.is_closed());
    assert!(poll_once(pin!(cache.close(false))).is_ready());
    assert!(cache.is_closed());
    assert_eq!(source.gone(), 1, "dropped at once");
    assert!(flags[1].take() && flags[2].take() && flags[3].take());
    assert_eq!(done(poll_once(joined.as_mut())), Err(LoadError::Closed));
    assert_eq!(done(poll_once(call.as_mut())), Err(LoadError::Closed));
    assert_eq!(done(poll_once(guest.as_mut())), 22, "its own future is its own affair");
    assert_eq!(done(poll_once(with.as_mut())), 11);
    assert_eq!(cache.get_if_present(&1), None, "detached: not stored");
    assert_eq!(get(&cache, 2), Err(LoadError::Closed), "a hit too");
    assert_eq!(cache.get_if_present(&2), Some(22));
    cache.cache().insert(3, 33);
    let all = done(poll_once(pin!(cache.get_many([3, 4]))));
    assert!(all.len() == 2 && all.values().all(|answer| *answer == Err(LoadError::Closed)));
    assert!(poll_once(pin!(cache.close(true))).is_ready(), "twice is fine");
}

#[test]
fn a_close_that_waits_drives_the_loaders_loads_and_does_not_wait_for_callers_own() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let with = waiting(&flag, cache.cache().get_with(1, pending()));
    let mut joined = waiting(&flag, cache.get(1));
    let mut idle = waiting(&flag, cache.get(2));
    let close_flag = Flag::new();
    let mut close = waiting(&close_flag, cache.close(true));
    assert!(poll_once(joined.as_mut()).is_pending(), "may finish");
    source.set(Verdict::Value);
    assert!(close_flag.take());
    assert!(close_flag.poll(close.as_mut()).is_ready());
    assert_eq!(done(poll_once(idle.as_mut())), Ok(20));
    drop(with);
    assert_eq!(done(poll_once(joined.as_mut())), Err(LoadError::Closed), "no load begins any more");
    assert_eq!((source.runs(), cache.loads()), (1, 0));
}

#[test]
fn loads_that_found_no_place_are_ended_by_a_close_too() {
    let (source, flags) = (Source::default(), [Flag::new(), Flag::new()]);
    let function = source.clone();
    let cache = AlruCache::builder(move |key| function.clone().load(key)).maxsize(0).build();
    let mut calls = [waiting(&flags[0], cache.call(1)), waiting(&flags[1], cache.call(1))];
    assert_eq!((source.runs(), cache.cache_parameters().tasks), (2, 2), "nothing is shared");
    drop(cache.cache_close(false));
    assert_eq!((source.gone(), cache.cache_parameters().tasks), (2, 0));
    assert!(flags.iter().all(|flag| flag.take()));
    for call in &mut calls {
        assert_eq!(done(poll_once(call.as_mut())), Err(LoadError::Closed));
    }
}

#[test]
fn loads_that_found_no_place_end_with_their_caller_and_tell_a_panic_as_others_do() {
    let (source, flag) = (Source::default(), Flag::new());
    let function = source.clone();
    let cache = AlruCache::builder(move |key| function.clone().load(key)).maxsize(0).build();
    drop(waiting(&flag, cache.call(1)));
    assert_eq!((source.gone(), cache.cache_parameters().tasks), (1, 0));
    source.set(Verdict::Panic);
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(pin!(cache.call(1))))).is_err());
    source.set(Verdict::Fail);
    let error = done(poll_once(pin!(cache.call(1)))).expect_err("fails");
    assert_eq!(error.failed().map(String::as_str), Some("no 1"));
    assert_eq!((cache.cache_parameters().tasks, cache.cache_info().currsize), (0, 0));
}

// ---- An executor --------------------------------------------------------------------------------

/// An executor that runs nothing by itself.
#[derive(Clone, Default)]
struct Jobs(Arc<Mutex<Vec<Job>>>);

impl Jobs {
    fn spawner(&self) -> impl Fn(Job) + Send + Sync + 'static {
        let jobs = self.clone();
        move |job| jobs.0.lock().expect("no panic inside").push(job)
    }

    /// The only one.
    fn take(&self) -> Job {
        let mut jobs = self.0.lock().expect("no panic inside");
        assert_eq!(jobs.len(), 1, "one a load");
        jobs.pop().expect("one")
    }
}

#[test]
fn a_spawned_load_survives_all_its_callers_and_is_stored() {
    let (source, jobs) = (Source::default(), Jobs::default());
    let cache = source.builder().spawner(jobs.spawner()).build();
    let (flag, job_flag) = (Flag::new(), Flag::new());
    let calls = [waiting(&flag, cache.get(1)), waiting(&flag, cache.get(1))];
    let mut job = waiting(&job_flag, jobs.take());
    drop(calls);
    assert_eq!((source.gone(), cache.loads()), (0, 1));
    source.set(Verdict::Value);
    assert!(job_flag.take());
    assert!(job_flag.poll(job.as_mut()).is_ready());
    assert_eq!(cache.get_if_present(&1), Some(10));
    assert_eq!((source.runs(), source.gone(), cache.loads()), (1, 1, 0));
}

#[test]
fn a_spawned_load_makes_progress_though_no_caller_is_polled() {
    let (source, jobs, flags) = (Source::default(), Jobs::default(), [Flag::new(), Flag::new()]);
    let cache = source.builder().spawner(jobs.spawner()).build();
    let mut call = waiting(&flags[0], cache.get(1));
    let mut job = waiting(&flags[1], jobs.take());
    source.set(Verdict::Value);
    assert!(flags[1].poll(job.as_mut()).is_ready());
    assert!(flags[0].take());
    assert_eq!(done(poll_once(call.as_mut())), Ok(10));
}

#[test]
fn callers_drive_a_spawned_load_too_and_its_job_ends_with_it() {
    let (source, jobs, flags) = (Source::default(), Jobs::default(), [Flag::new(), Flag::new()]);
    let cache = source.builder().spawner(jobs.spawner()).build();
    let mut call = waiting(&flags[0], cache.get(1));
    let mut job = waiting(&flags[1], jobs.take());
    source.set(Verdict::Value);
    assert_eq!(done(poll_once(call.as_mut())), Ok(10));
    assert!(flags[1].take(), "told of the end");
    assert!(flags[1].poll(job.as_mut()).is_ready());
    // An executor may keep it, and poll it again.
    assert!(flags[1].poll(job.as_mut()).is_ready());
    drop(call);
    assert_eq!(source.gone(), 1);
}

#[test]
fn a_job_that_is_dropped_or_never_polled_does_no_harm() {
    for keep in [false, true] {
        let (source, flag) = (Source::default(), Flag::new());
        let jobs = Jobs::default();
        let spawn = jobs.spawner();
        let cache =
            source.builder().spawner(move |job| if keep { spawn(job) } else { drop(job) }).build();
        let mut call = waiting(&flag, cache.get(1));
        source.set(Verdict::Value);
        assert!(flag.take());
        assert_eq!(done(flag.poll(call.as_mut())), Ok(10));
    }
}

#[test]
fn a_job_that_is_the_last_to_leave_takes_the_load_along() {
    let (source, jobs, flag) = (Source::default(), Jobs::default(), Flag::new());
    let cache = source.builder().spawner(jobs.spawner()).build();
    drop(waiting(&flag, cache.get(1)));
    assert_eq!((source.gone(), cache.loads()), (0, 1));
    drop(jobs.take());
    assert_eq!((source.gone(), cache.loads(), cache.cache().entry_count()), (1, 0, 0));
}

#[test]
fn a_spawner_that_panics_does_no_harm() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().spawner(|_| panic!("no executor")).build();
    let mut call = waiting(&flag, cache.get(1));
    // tokio's, outside of a runtime.
    let other = source.builder().spawner(|load| drop(tokio::spawn(load))).build();
    let mut outside = waiting(&flag, other.get(1));
    source.set(Verdict::Value);
    assert_eq!(done(flag.poll(call.as_mut())), Ok(10));
    assert_eq!(done(flag.poll(outside.as_mut())), Ok(10));
}

#[test]
fn a_runtime_that_shuts_down_leaves_the_load_to_its_callers() {
    let (source, flag) = (Source::default(), Flag::new());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let handle = runtime.handle().clone();
    let cache = source.builder().spawner(move |load| drop(handle.spawn(load))).build();
    let mut call = waiting(&flag, cache.get(1));
    drop(runtime);
    let mut late = waiting(&flag, cache.get(2));
    source.set(Verdict::Value);
    assert_eq!(done(flag.poll(call.as_mut())), Ok(10));
    assert_eq!(done(flag.poll(late.as_mut())), Ok(20));
}

#[test]
fn a_spawner_that_runs_the_job_on_the_spot_is_fine() {
    let source = Source::open();
    let cache = source.builder().spawner(smol::block_on).build();
    assert_eq!(get(&cache, 1), Ok(10));
    assert_eq!((source.runs(), cache.loads()), (1, 0));
}

#[test]
fn closing_ends_a_spawned_load_and_its_job() {
    let (source, jobs, flag) = (Source::default(), Jobs::default(), Flag::new());
    let cache = source.builder().spawner(jobs.spawner()).build();
    drop(waiting(&flag, cache.get(1)));
    let mut job = waiting(&flag, jobs.take());
    drop(cache.close(false));
    assert_eq!((source.gone(), cache.loads()), (1, 0));
    assert!(flag.take());
    assert!(flag.poll(job.as_mut()).is_ready());
}

#[test]
fn a_job_keeps_neither_the_cache_nor_its_values() {
    for is_polled in [false, true] {
        let (tally, jobs, flag) = (Tally::default(), Jobs::default(), Flag::new());
        let values = tally.clone();
        let cache = Cache::builder()
            .loader_infallible(move |key: u64| {
                let held = Counted::new(key, &values);
                async move {
                    if key > 0 {
                        pending::<()>().await;
                    }
                    held
                }
            })
            .spawner(jobs.spawner())
            .build();
        assert!(poll_once(pin!(cache.get(0))).is_ready());
        drop(jobs.take());
        drop(waiting(&flag, cache.get(1)));
        let mut job = jobs.take();
        if is_polled {
            assert!(flag.poll(job.as_mut()).is_pending());
        }
        assert_eq!(tally.alive(), 2);
        drop(cache);
        assert_eq!(tally.alive(), 0, "the value and the load's future");
        // An executor that waits for the job's wake learns that it is over.
        assert_eq!(flag.take(), is_polled);
        assert!(flag.poll(job.as_mut()).is_ready());
    }
}

#[test]
fn a_job_that_goes_after_the_cache_touches_nothing() {
    let (source, jobs, flag) = (Source::default(), Jobs::default(), Flag::new());
    let cache = source.builder().spawner(jobs.spawner()).build();
    drop(waiting(&flag, cache.get(1)));
    let job = waiting(&flag, jobs.take());
    drop(cache);
    assert_eq!(source.gone(), 1);
    drop(job);
    // The load's waker may be kept even longer.
    source.set(Verdict::Value);
}

#[test]
fn a_panic_under_the_job_is_told_to_the_callers_and_not_to_the_executor() {
    let (source, jobs, flags) = (Source::default(), Jobs::default(), [Flag::new(), Flag::new()]);
    let cache = source.builder().spawner(jobs.spawner()).build();
    let mut call = waiting(&flags[0], cache.get(1));
    let mut job = waiting(&flags[1], jobs.take());
    source.set(Verdict::Panic);
    assert!(flags[1].poll(job.as_mut()).is_ready());
    assert!(flags[0].take());
    assert_eq!(done(poll_once(call.as_mut())), Err(LoadError::Panicked("panic of 1".into())));
    source.set(Verdict::Value);
    assert_eq!(get(&cache, 1), Ok(10), "usable");
}

#[test]
fn a_function_cache_has_a_spawner_too() {
    let (source, jobs, flag) = (Source::default(), Jobs::default(), Flag::new());
    let function = source.clone();
    let cache =
        AlruCache::builder(move |key| function.clone().load(key)).spawner(jobs.spawner()).build();
    drop(waiting(&flag, cache.call(1)));
    let mut job = waiting(&flag, jobs.take());
    source.set(Verdict::Value);
    assert!(flag.poll(job.as_mut()).is_ready());
    assert_eq!(
        cache.cache_info().to_string(),
        "CacheInfo(hits=0, misses=1, maxsize=128, currsize=1)"
    );
    assert_eq!(done(poll_once(pin!(cache.call(1)))), Ok(10));
}

/// Callers that leave after one poll; the executor finishes all loads.
async fn all_loads_are_finished(spawn: impl Fn(Job) + Send + Sync + 'static) {
    let finished = Arc::<AtomicUsize>::default();
    let cache = Cache::builder()
        .loader_infallible({
            let finished = finished.clone();
            move |key: u64| {
                let finished = finished.clone();
                let mut turns = key % 4;
                poll_fn(move |cx| {
                    if turns == 0 {
                        finished.fetch_add(1, SeqCst);
                        return Poll::Ready(key);
                    }
                    turns -= 1;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                })
            }
        })
        .spawner(spawn)
        .build();
    for key in 0..200 {
        let mut call = pin!(cache.get(key));
        let _ = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
    }
    poll_fn(|cx| {
        if finished.load(SeqCst) == 200 && cache.loads() == 0 {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    assert!((0..200).all(|key| cache.get_if_present(&key) == Some(key)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokio_on_many_threads_finishes_loads_that_nobody_waits_for() {
    all_loads_are_finished(|load| drop(tokio::spawn(load))).await;
}

#[tokio::test]
async fn tokio_on_one_thread_finishes_loads_that_nobody_waits_for() {
    all_loads_are_finished(|load| drop(tokio::spawn(load))).await;
}

#[test]
fn smol_finishes_loads_that_nobody_waits_for() {
    smol::block_on(all_loads_are_finished(|load| smol::spawn(load).detach()));
}

#[test]
fn jobs_and_the_last_handle_may_go_in_any_order_on_several_threads() {
    const ROUNDS: usize = 300;
    let (tally, meeting) = (Tally::default(), Meeting::new(3));
    let jobs = Mutex::new(Vec::<Job>::new());
    let cell: Mutex<Option<LoadingCache<u64, Counted<u64>>>> = Mutex::default();
    std::thread::scope(|scope| {
        // Two executors: one polls a job while the cache goes, one drops a job.
        for drops in [false, true] {
            let (seat, jobs) = (&meeting, &jobs);
            scope.spawn(move || {
                let seat = seat.seat();
                for _ in 0..ROUNDS {
                    seat.wait();
                    let job = jobs.lock().expect("no panic inside").pop().expect("two jobs");
                    seat.wait();
                    if drops {
                        drop(job);
                    } else {
                        let mut job = job;
                        while poll_once(job.as_mut()).is_pending() {
                            std::thread::yield_now();
                        }
                    }
                    seat.wait();
                }
            });
        }
        let seat = meeting.seat();
        for _ in 0..ROUNDS {
            let spawned = Jobs::default();
            let values = tally.clone();
            let cache = Cache::builder()
                .loader_infallible(move |key: u64| {
                    let held = Counted::new(key, &values);
                    async move {
                        pending::<()>().await;
                        held
                    }
                })
                .spawner(spawned.spawner())
                .build();
            for key in 0..2 {
                assert!(poll_once(pin!(cache.get(key))).is_pending());
            }
            *jobs.lock().expect("no panic inside") =
                std::mem::take(&mut *spawned.0.lock().expect("no panic inside"));
            *cell.lock().expect("no panic inside") = Some(cache);
            seat.wait();
            seat.wait();
            drop(cell.lock().expect("no panic inside").take());
            seat.wait();
            assert_eq!(tally.alive(), 0);
        }
    });
}

// ---- Many keys ----------------------------------------------------------------------------------

#[test]
fn many_keys_that_are_there_are_answered_at_the_first_poll() {
    let source = Source::open();
    let cache = source.builder().build();
    (0..50).for_each(|key| cache.cache().insert(key, key));
    let all = done(poll_once(pin!(cache.get_many((0..50).chain(0..50)))));
    assert!(all.len() == 50 && all.iter().all(|(key, answer)| *answer == Ok(*key)));
    let stats = cache.cache().stats();
    assert_eq!((source.runs(), stats.hits, stats.misses), (0, 50, 0));
}

#[test]
fn many_keys_are_loaded_at_the_same_time_and_each_has_its_own_outcome() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    cache.cache().insert(1, 11);
    let mut single = waiting(&flag, cache.get(2));
    let mut all = waiting(&flag, cache.get_many([1, 2, 3, 4, 3]));
    assert_eq!(source.runs(), 3);
    source.set(Verdict::Only(3));
    assert!(flag.take());
    assert!(flag.poll(all.as_mut()).is_pending());
    assert_eq!(cache.get_if_present(&3), Some(30));
    cache.cache().insert(4, 44);
    source.set(Verdict::Fail);
    let all = done(flag.poll(all.as_mut()));
    assert_eq!((all[&1].clone(), all[&3].clone(), all.len()), (Ok(11), Ok(30), 4));
    assert!([2, 4].iter().all(|key| all[key].as_ref().is_err_and(|e| e.failed().is_some())));
    assert!(done(poll_once(single.as_mut())).is_err());
}

#[test]
fn of_many_loads_only_those_that_were_woken_are_polled() {
    let (source, flag) = (Source::default(), Flag::new());
    let cache = source.builder().build();
    let mut all = waiting(&flag, cache.get_many(0..80));
    assert_eq!(source.polls(), 80);
    source.set(Verdict::Only(70));
    assert!(flag.take());
    assert!(flag.poll(all.as_mut()).is_pending());
    assert_eq!((source.polls(), source.gone()), (81, 1));
    assert!(flag.poll(all.as_mut()).is_pending());
    assert_eq!(source.polls(), 81);
    drop(all);
    assert_eq!((source.gone(), cache.loads()), (80, 0));
}

#[test]
fn computes_count_as_loads_of_absent_keys_alone_and_a_close_leaves_their_turns() {
    let cache = Source::open().builder().build();
    cache.cache().insert(1, 1);
    let mut present = Box::pin(cache.cache().entry(1).and_upsert_with_async(|_| pending()));
    assert!(poll_once(present.as_mut()).is_pending());
    assert_eq!(cache.loads(), 0, "no load, though it has the turn");
    let mut absent = Box::pin(cache.cache().entry(2).and_upsert_with_async(|_| pending()));
    assert!(poll_once(absent.as_mut()).is_pending());
    assert_eq!(cache.loads(), 1);
    drop(cache.close(false));
    let runs = AtomicUsize::new(0);
    let mut next = Box::pin(cache.cache().entry(1).and_upsert_with_async(|_| {
        runs.fetch_add(1, SeqCst);
        ready(2)
    }));
    assert!(poll_once(next.as_mut()).is_pending());
    drop(present);
    assert!(poll_once(next.as_mut()).is_ready());
    assert_eq!((runs.load(SeqCst), cache.get_if_present(&1)), (1, Some(2)));
}

#[test]
fn loads_for_one_caller_alone_are_refused_and_neither_loads_nor_failures() {
    for verdict in [Verdict::Value, Verdict::Fail] {
        let source = Source::default();
        source.set(verdict);
        let load = source.clone();
        let cache =
            Cache::builder().max_capacity(0).loader(move |key| load.clone().load(key)).build();
        assert_eq!(done(poll_once(pin!(cache.get(1)))).is_ok(), matches!(verdict, Verdict::Value));
        let own = cache.cache().try_get_with(1, ready(Err::<u64, _>("no")));
        assert!(poll_once(pin!(own)).is_ready());
        let stats = cache.cache().stats();
        assert_eq!((stats.misses, stats.refused, stats.loads, stats.load_failures), (2, 2, 0, 0));
    }
}
