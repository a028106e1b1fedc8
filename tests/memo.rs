//! `AlruCache`, against the table of its behaviour (F1 to F16).

mod common;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use alru::{AlruCache, LoadError, ManualTime};
use common::{Counted, Flag, Tally, poll_once};

const SECOND: Duration = Duration::from_secs(1);

/// The function behind the cache: waits until it is let, then gives ten times its key, or fails.
#[derive(Clone, Default)]
struct Function(Arc<State>);

#[derive(Default)]
struct State {
    runs: AtomicUsize,
    gone: AtomicUsize,
    verdict: Mutex<Verdict>,
    wakers: Mutex<Vec<Waker>>,
}

#[derive(Clone, Copy, Default)]
enum Verdict {
    #[default]
    Wait,
    Value,
    Fail,
    Panic,
}

impl Function {
    fn open() -> Self {
        let function = Self::default();
        function.set(Verdict::Value);
        function
    }

    fn cache(&self) -> alru::AlruCacheBuilder<u64, u64, String> {
        let function = self.clone();
        AlruCache::builder(move |key| function.clone().run(key))
    }

    async fn run(self, key: u64) -> Result<u64, String> {
        struct Gone(Function);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.0.gone.fetch_add(1, SeqCst);
            }
        }
        self.0.runs.fetch_add(1, SeqCst);
        let gone = Gone(self);
        poll_fn(|cx| {
            let state = &gone.0.0;
            let verdict = *state.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Wait => {
                    state.wakers.lock().expect("no panic inside").push(cx.waker().clone());
                    Poll::Pending
                }
                Verdict::Value => Poll::Ready(Ok(key * 10)),
                Verdict::Fail => Poll::Ready(Err(format!("no {key}"))),
                Verdict::Panic => panic!("panic of {key}"),
            }
        })
        .await
    }

    /// What all runs are to do, and wakes them.
    fn set(&self, verdict: Verdict) {
        *self.0.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
        let wakers = std::mem::take(&mut *self.0.wakers.lock().expect("no panic inside"));
        wakers.into_iter().for_each(Waker::wake);
    }

    fn runs(&self) -> usize {
        self.0.runs.load(SeqCst)
    }

    /// Runs that ended or were dropped.
    fn gone(&self) -> usize {
        self.0.gone.load(SeqCst)
    }
}

type Cached = AlruCache<u64, u64, String>;
type Answer = Result<u64, LoadError<String>>;

/// A call that is polled by hand.
struct Caller<'a> {
    flag: Arc<Flag>,
    /// None once it has answered.
    call: Option<Pin<Box<dyn Future<Output = Answer> + 'a>>>,
}

impl<'a> Caller<'a> {
    fn new(cache: &'a Cached, key: u64) -> Self {
        Self { flag: Flag::new(), call: Some(Box::pin(cache.call(key))) }
    }

    /// A call that waits.
    fn waiting(cache: &'a Cached, key: u64) -> Self {
        let mut caller = Self::new(cache, key);
        assert!(caller.poll().is_pending());
        caller
    }

    fn poll(&mut self) -> Poll<Answer> {
        self.flag.take();
        let call = self.call.as_mut().expect("has not answered");
        let answer = self.flag.poll(call.as_mut());
        if answer.is_ready() {
            self.call = None;
        }
        answer
    }

    /// Polls if it was woken and has not answered.
    fn poll_if_woken(&mut self) -> Poll<Answer> {
        if self.flag.take() && self.call.is_some() { self.poll() } else { Poll::Pending }
    }
}

fn value(answer: Poll<Answer>) -> u64 {
    match answer {
        Poll::Ready(Ok(value)) => value,
        Poll::Ready(Err(error)) => panic!("{error:?}"),
        Poll::Pending => panic!("pending"),
    }
}

/// A call that answers at its first poll.
fn call(cache: &Cached, key: u64) -> Answer {
    match Caller::new(cache, key).poll() {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("pending"),
    }
}

fn info(cache: &Cached) -> String {
    cache.cache_info().to_string()
}

// F1

#[test]
fn the_default_size_is_128_and_a_cache_may_be_unbounded() {
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
fn a_size_of_zero_keeps_nothing_and_shares_nothing() {
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
fn a_jitter_without_a_ttl_is_an_error() {
    let error = Function::open().cache().jitter(SECOND).try_build().expect_err("no TTL");
    assert!(error.to_string().contains("jitter"), "{error}");
}

// F4, F5

#[test]
fn a_hundred_callers_are_one_miss_and_ninety_nine_hits() {
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
fn a_miss_counts_though_it_fails_later() {
    let function = Function::default();
    function.set(Verdict::Fail);
    let cache = function.cache().build();
    for _ in 0..3 {
        assert!(call(&cache, 1).is_err());
    }
    assert_eq!(info(&cache), "CacheInfo(hits=0, misses=3, maxsize=128, currsize=0)");
}

// F5

#[test]
fn loads_that_were_pushed_out_run_on_for_their_callers() {
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

// F6

#[test]
fn a_hit_answers_at_the_first_poll() {
    let function = Function::open();
    let cache = function.cache().build();
    assert_eq!(call(&cache, 1).expect("open"), 10);
    function.set(Verdict::Wait);
    assert_eq!(call(&cache, 1).expect("cached"), 10);
    assert_eq!(function.runs(), 1);
}

// F7

#[test]
fn one_error_reaches_all_callers_of_the_run_and_the_next_call_runs_again() {
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

// F8

#[test]
fn a_caller_that_leaves_takes_nothing_from_the_others() {
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
fn the_last_caller_that_leaves_takes_the_load_along() {
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
fn rounds_of_abandoned_loads_leave_nothing_behind() {
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

// F9

#[test]
fn a_life_counts_from_the_end_of_the_load_and_no_hit_extends_it() {
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
fn a_ttl_of_zero_expires_at_once_and_still_shares_loads() {
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
fn lives_with_jitter_end_between_ttl_and_ttl_and_jitter_each_at_its_own_time() {
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
fn contains_is_true_while_the_load_runs_and_counts_as_nothing() {
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
fn after_an_invalidation_the_old_callers_get_the_old_run_and_new_ones_a_new_run() {
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
fn the_result_of_an_invalidated_run_is_not_stored() {
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
fn clear_drops_all_and_zeroes_the_counters_and_running_loads_finish_uncached() {
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
fn close_drops_running_loads_and_their_callers_and_all_later_ones_are_told() {
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
fn a_close_that_waits_lets_running_loads_finish_and_drives_those_that_nobody_polls() {
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

// F14, and section 3, line 1

#[test]
fn a_caller_that_is_never_polled_again_holds_nobody_up() {
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

#[test]
fn a_load_survives_the_runtime_that_began_it() {
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
    wait_for_it.recv().expect("the first caller began");
    let mut second = Caller::waiting(&cache, 1);
    drop(runtime);
    function.set(Verdict::Value);
    assert_eq!(value(second.poll_if_woken()), 10);
    assert_eq!(function.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_share_one_run_a_key() {
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

// F15

#[test]
fn a_panic_reaches_the_caller_that_polled_and_the_others_get_its_message() {
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

// Section 3, line 9

#[test]
fn a_load_that_asks_for_its_own_key_is_told_at_once() {
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
fn a_cached_recursion_over_other_keys_works() {
    let this: Arc<Mutex<Option<AlruCache<u64, u64>>>> = Arc::default();
    let fibonacci: AlruCache<u64, u64> = {
        let this = this.clone();
        AlruCache::builder_infallible(move |n: u64| {
            let this = this.clone();
            async move {
                if n < 2 {
                    return n;
                }
                let this = this.lock().expect("no panic").clone().expect("set below");
                this.call(n - 1).await.expect("no cycle")
                    + this.call(n - 2).await.expect("no cycle")
            }
        })
        .build()
    };
    *this.lock().expect("no panic") = Some(fibonacci.clone());
    let Poll::Ready(Ok(value)) = poll_once(pin!(fibonacci.call(60))) else {
        panic!("nothing waits here");
    };
    *this.lock().expect("no panic") = None;
    assert_eq!(value, 1_548_008_755_920);
    assert_eq!(fibonacci.cache_info().misses, 61);
}

// The end

#[test]
fn the_last_handle_drops_everything_and_a_close_keeps_a_handle() {
    let tally = Tally::default();
    let cache: AlruCache<u64, Counted<u64>> = {
        let tally = tally.clone();
        AlruCache::builder_infallible(move |key| std::future::ready(Counted::new(key, &tally)))
            .build()
    };
    for key in 0..300 {
        assert!(
            matches!(poll_once(pin!(cache.call(key))), Poll::Ready(Ok(value)) if value.inner == key)
        );
    }
    let close = cache.cache_close(true);
    drop(cache);
    assert!(tally.alive() > 0);
    drop(close);
    assert_eq!(tally.alive(), 0);
}
