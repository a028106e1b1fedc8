//! `#[alru_cache]`: lines F1 to F16 of the behaviour as they show through the macro, and what the
//! attribute does to a function. The same lines with time under control are in `memo.rs`, the errors
//! of wrong uses in `macros/tests/ui`.
#![cfg(feature = "macros")]
#![deny(unfulfilled_lint_expectations, reason = "attributes are kept: see the last tests")]

mod common;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

use alru::{LoadError, alru_cache};
use common::poll_once;
use tokio::sync::Semaphore;

/// The body of a function under test: counts its runs and their ends, and can be made to wait.
struct Body {
    runs: AtomicUsize,
    gone: AtomicUsize,
    /// One permit a run.
    gate: Semaphore,
}

impl Body {
    /// Its runs wait for `open`.
    const fn shut() -> Self {
        Self { runs: AtomicUsize::new(0), gone: AtomicUsize::new(0), gate: Semaphore::const_new(0) }
    }

    /// Its runs do not wait.
    const fn free() -> Self {
        Self { gate: Semaphore::const_new(Semaphore::MAX_PERMITS), ..Self::shut() }
    }

    /// Its runs wait no more.
    fn open(&self) {
        self.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    async fn run(&self) {
        struct Gone<'a>(&'a Body);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.gone.fetch_add(1, SeqCst);
            }
        }
        self.runs.fetch_add(1, SeqCst);
        let _gone = Gone(self);
        self.gate.acquire().await.expect("is never closed").forget();
    }

    fn runs(&self) -> usize {
        self.runs.load(SeqCst)
    }

    /// Runs that ended or were dropped.
    fn gone(&self) -> usize {
        self.gone.load(SeqCst)
    }
}

type Call<T> = Pin<Box<dyn Future<Output = T>>>;

/// A call that has begun and waits.
fn waiting<T>(call: impl Future<Output = T> + 'static) -> Call<T> {
    let mut call: Call<T> = Box::pin(call);
    assert!(poll_once(call.as_mut()).is_pending(), "answers at the first poll");
    call
}

/// The answer of a call that need not wait.
#[track_caller]
fn now<T>(call: impl Future<Output = T>) -> T {
    match poll_once(pin!(call)) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("pending"),
    }
}

/// The message of the panic of a call that need not wait.
#[track_caller]
fn panic_of<T>(call: impl Future<Output = T>) -> String {
    let Err(payload) = catch_unwind(AssertUnwindSafe(|| now(call))) else {
        panic!("has not panicked");
    };
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => (*payload.downcast::<&str>().expect("a message")).to_owned(),
    }
}

// F1

#[test]
fn f1_the_default_maxsize_is_128() {
    #[alru_cache]
    async fn square(n: u64) -> u64 {
        n * n
    }
    assert_eq!(
        square::cache_info().to_string(),
        "CacheInfo(hits=0, misses=0, maxsize=128, currsize=0)"
    );
    for n in 0..1_000 {
        assert_eq!(now(square(n)), n * n);
        assert!(square::cache_info().currsize <= 128);
    }
    assert_eq!(square::cache_info().misses, 1_000);
    assert!(square::cache_info().currsize >= 125);
}

#[test]
fn f1_maxsize_none_is_unbounded() {
    #[alru_cache(maxsize = None)]
    async fn square(n: u64) -> u64 {
        n * n
    }
    (0..5_000).for_each(|n| assert_eq!(now(square(n)), n * n));
    (0..5_000).for_each(|n| assert_eq!(now(square(n)), n * n));
    assert_eq!(
        square::cache_info().to_string(),
        "CacheInfo(hits=5000, misses=5000, maxsize=None, currsize=5000)"
    );
    assert_eq!(square::cache_parameters().maxsize, None);
}

#[test]
fn f1_maxsize_0_keeps_nothing_and_shares_nothing() {
    static BODY: Body = Body::shut();
    #[alru_cache(maxsize = 0)]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let callers = [(); 3].map(|()| waiting(double(4)));
    assert_eq!(BODY.runs(), 3);
    assert!(!double::cache_contains(&4));
    BODY.open();
    callers.into_iter().for_each(|caller| assert_eq!(now(caller), 8));
    assert_eq!(now(double(4)), 8);
    assert_eq!(BODY.runs(), 4);
    assert_eq!(
        double::cache_info().to_string(),
        "CacheInfo(hits=0, misses=4, maxsize=0, currsize=0)"
    );
}

#[test]
fn f1_settings_may_be_expressions() {
    const SIZE: usize = 16;
    fn life() -> Duration {
        Duration::from_secs(60)
    }
    #[alru_cache(maxsize = 2 * SIZE, ttl = life(), jitter = life() / 4)]
    async fn f() {}
    let parameters = f::cache_parameters();
    assert_eq!(parameters.maxsize, Some(32));
    assert_eq!(parameters.ttl, Some(Duration::from_secs(60)));
    assert_eq!(parameters.jitter, Some(Duration::from_secs(15)));
}

// F3

#[test]
fn f3_several_arguments_are_the_key_in_their_order() {
    static BODY: Body = Body::free();
    #[alru_cache]
    async fn join(a: u32, b: u32, c: String) -> String {
        BODY.run().await;
        format!("{a}-{b}-{c}")
    }
    let c = || "c".to_owned();
    assert_eq!(now(join(1, 2, c())), "1-2-c");
    assert_eq!(now(join(2, 1, c())), "2-1-c");
    assert_eq!(now(join(1, 2, c())), "1-2-c");
    assert_eq!(BODY.runs(), 2);
    assert!(join::cache_contains(&(1, 2, c())));
    assert!(!join::cache_contains(&(2, 2, c())));
    assert!(join::cache_invalidate(&(1, 2, c())));
    assert_eq!(now(join(1, 2, c())), "1-2-c");
    assert_eq!(BODY.runs(), 3);
}

#[test]
fn f3_references_are_cached_by_their_owned_form() {
    static BODY: Body = Body::free();
    #[alru_cache]
    async fn len(s: &str) -> usize {
        BODY.run().await;
        s.len()
    }
    // The argument need not live as long as the cache.
    assert_eq!(now(len(&"x".repeat(3))), 3);
    assert_eq!(now(len("xxx")), 3);
    assert_eq!(BODY.runs(), 1);
    assert!(len::cache_contains("xxx") && !len::cache_contains("xx"));
    assert!(len::cache_contains(&"xxx".to_owned()));
    assert!(len::cache_invalidate("xxx") && !len::cache_invalidate("xxx"));

    #[alru_cache]
    async fn first(mut items: &[u8], path: &Path, n: &u64) -> (Option<u8>, PathBuf, u64) {
        items = &items[1..];
        (items.first().copied(), path.to_owned(), *n)
    }
    let answer = (Some(2), PathBuf::from("p"), 7);
    assert_eq!(now(first(&[1, 2], Path::new("p"), &7)), answer);
    assert!(first::cache_contains(&(vec![1, 2], PathBuf::from("p"), 7)));

    #[alru_cache]
    async fn literal(s: &'static str) -> &'static str {
        s
    }
    assert_eq!(now(literal("a")), "a");
    assert!(literal::cache_contains(&"a"));
}

#[test]
fn f3_no_argument_is_one_key() {
    static BODY: Body = Body::free();
    #[alru_cache]
    async fn answer() -> u32 {
        BODY.run().await;
        42
    }
    assert!(!answer::cache_contains(&()));
    assert_eq!((now(answer()), now(answer())), (42, 42));
    assert_eq!(BODY.runs(), 1);
    assert!(answer::cache_invalidate(&()));
    assert_eq!(now(answer()), 42);
    assert_eq!(BODY.runs(), 2);
}

#[test]
fn f3_arguments_may_be_mutable_or_unnamed() {
    #[alru_cache]
    async fn next(mut n: u32, _: bool) -> u32 {
        n += 1;
        n
    }
    assert_eq!((now(next(1, true)), now(next(1, false))), (2, 2));
    assert_eq!(next::cache_info().misses, 2);
}

// F4

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn f4_a_hundred_calls_are_one_miss_ninety_nine_hits_and_one_run() {
    static BODY: Body = Body::shut();
    #[alru_cache(maxsize = 32)]
    async fn get_pep(num: u32) -> Result<String, String> {
        BODY.run().await;
        Ok(format!("PEP {num}"))
    }
    let calls: Vec<_> = (0..100).map(|_| tokio::spawn(get_pep(8))).collect();
    // The run waits until all calls have been counted.
    let counted = || get_pep::cache_info().hits + get_pep::cache_info().misses;
    while counted() < 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(get_pep::cache_parameters().tasks, 1);
    BODY.open();
    for call in calls {
        assert_eq!(call.await.expect("no panic").expect("is Ok"), "PEP 8");
    }
    assert_eq!(BODY.runs(), 1);
    assert_eq!(get_pep::cache_parameters().tasks, 0);
    assert_eq!(
        get_pep::cache_info().to_string(),
        "CacheInfo(hits=99, misses=1, maxsize=32, currsize=1)"
    );
}

#[test]
fn f4_a_miss_counts_at_its_start_and_though_it_fails() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn fail(_: u32) -> Result<(), String> {
        BODY.run().await;
        Err("no".to_owned())
    }
    let call = fail(1);
    assert_eq!(fail::cache_info().misses, 0, "not polled yet");
    let call = waiting(call);
    assert_eq!(fail::cache_info().misses, 1);
    BODY.open();
    assert!(now(call).is_err() && now(fail(1)).is_err());
    assert_eq!(
        fail::cache_info().to_string(),
        "CacheInfo(hits=0, misses=2, maxsize=128, currsize=0)"
    );
}

// F5, F10

#[test]
fn f5_f10_an_entry_exists_from_the_start_of_its_load_and_asking_for_it_counts_as_nothing() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    assert!(!double::cache_contains(&1));
    let call = waiting(double(1));
    let before = double::cache_info();
    assert_eq!(before.to_string(), "CacheInfo(hits=0, misses=1, maxsize=128, currsize=1)");
    assert_eq!(double::cache_parameters().tasks, 1);
    assert!(double::cache_contains(&1) && !double::cache_contains(&2));
    BODY.open();
    assert_eq!(now(call), 2);
    assert!(double::cache_contains(&1));
    assert_eq!(double::cache_info(), before);
    assert_eq!(double::cache_parameters().tasks, 0);
}

#[test]
fn f5_a_load_that_was_crowded_out_runs_on_for_its_callers() {
    static BODY: Body = Body::shut();
    #[alru_cache(maxsize = 4)]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let calls: Vec<_> = (0..20).map(|n| waiting(double(n))).collect();
    assert!(double::cache_info().currsize <= 4);
    assert_eq!(double::cache_parameters().tasks, 20);
    BODY.open();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(now(call), 2 * n);
    }
    assert_eq!(BODY.runs(), 20);
    assert_eq!(double::cache_parameters().tasks, 0);
}

// F6

#[test]
fn f6_a_hit_answers_at_the_first_poll() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let first = waiting(double(4));
    BODY.gate.add_permits(1);
    assert_eq!(now(first), 8);
    // The body would wait again.
    assert_eq!(now(double(4)), 8);
    assert_eq!(BODY.runs(), 1);
}

// F7

#[test]
fn f7_all_callers_get_the_error_of_their_run_and_the_next_call_runs_again() {
    static BODY: Body = Body::shut();
    /// Not `Clone`: it is shared.
    #[derive(Debug, PartialEq)]
    struct Broken(usize);
    #[alru_cache]
    async fn fetch(_num: u32) -> Result<u32, Broken> {
        BODY.run().await;
        Err(Broken(BODY.runs()))
    }
    let calls = [(); 20].map(|()| waiting(fetch(1)));
    BODY.open();
    let errors = calls.map(|call| match now(call) {
        Err(LoadError::Failed(error)) => error,
        other => panic!("{other:?}"),
    });
    assert_eq!(*errors[0], Broken(1));
    assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
    assert!(!fetch::cache_contains(&1));
    assert_eq!(now(fetch(1)).unwrap_err().failed(), Some(&Broken(2)));
    assert_eq!(BODY.runs(), 2);
}

// F8

#[test]
fn f8_a_waiter_that_leaves_leaves_alone() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let first = waiting(double(1));
    let second = waiting(double(1));
    drop(first);
    assert_eq!(BODY.gone(), 0);
    BODY.open();
    assert_eq!(now(second), 2);
    assert_eq!(BODY.runs(), 1);
}

#[test]
fn f8_the_last_waiter_that_leaves_takes_the_load_along() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let calls = [(); 3].map(|()| waiting(double(1)));
    drop(calls);
    assert_eq!((BODY.runs(), BODY.gone()), (1, 1), "dropped at once");
    assert!(!double::cache_contains(&1));
    assert_eq!(double::cache_parameters().tasks, 0);
    BODY.open();
    assert_eq!(now(double(1)), 2);
    assert_eq!(double::cache_info().misses, 2);
}

// F9

#[test]
fn f9_ttl_and_jitter_reach_the_cache() {
    #[alru_cache(ttl = "10s", jitter = "2.5s")]
    async fn both(n: u64) -> u64 {
        n
    }
    #[alru_cache(ttl = None, jitter = None)]
    async fn none(n: u64) -> u64 {
        n
    }
    let parameters = both::cache_parameters();
    assert_eq!(parameters.ttl, Some(Duration::from_secs(10)));
    assert_eq!(parameters.jitter, Some(Duration::from_millis(2_500)));
    let parameters = none::cache_parameters();
    assert_eq!((parameters.ttl, parameters.jitter), (None, None));
}

#[test]
fn f9_a_ttl_of_zero_expires_at_once_and_still_shares_loads() {
    static BODY: Body = Body::shut();
    #[alru_cache(ttl = "0s")]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let calls = [(); 2].map(|()| waiting(double(1)));
    BODY.open();
    assert_eq!(calls.map(now), [2, 2]);
    assert_eq!(BODY.runs(), 1);
    assert!(!double::cache_contains(&1));
    assert_eq!(now(double(1)), 2);
    assert_eq!(BODY.runs(), 2);
}

#[test]
fn f9_an_entry_lives_for_its_ttl_and_then_expires() {
    static BODY: Body = Body::free();
    #[alru_cache(ttl = "1ms")]
    async fn brief(n: u64) -> u64 {
        BODY.run().await;
        n
    }
    #[alru_cache(ttl = "1d")]
    async fn long(n: u64) -> u64 {
        n
    }
    assert_eq!(now(long(1)), 1);
    // Hits do not extend it: it expires under calls that never pause.
    let begin = Instant::now();
    while BODY.runs() < 3 {
        assert_eq!(now(brief(1)), 1);
        // Rather than hang.
        assert!(begin.elapsed() < Duration::from_secs(60), "does not expire");
    }
    assert_eq!(now(long(1)), 1);
    assert_eq!(long::cache_info().hits, 1);
}

// F11, F16

#[test]
fn f11_f16_the_result_of_an_invalidated_run_is_not_stored_nor_does_it_touch_the_next() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn run_of(_n: u64) -> usize {
        let run = BODY.runs() + 1;
        BODY.run().await;
        run
    }
    assert!(!run_of::cache_invalidate(&1));
    let old = waiting(run_of(1));
    let before = run_of::cache_info();
    assert!(run_of::cache_invalidate(&1));
    assert!(!run_of::cache_contains(&1));
    let after = run_of::cache_info();
    assert_eq!((after.hits, after.misses), (before.hits, before.misses));
    assert_eq!(after.currsize, 0);

    let new = waiting(run_of(1));
    assert_eq!(run_of::cache_parameters().tasks, 2);
    BODY.open();
    assert_eq!(now(old), 1, "its waiters get the old value");
    assert!(run_of::cache_contains(&1), "the new load is still the entry");
    assert_eq!(now(new), 2);
    assert_eq!(now(run_of(1)), 2);
    assert_eq!(BODY.runs(), 2);
}

// F12

#[test]
fn f12_clear_drops_all_and_running_loads_finish_uncached() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        if n < 10 {
            return 2 * n;
        }
        BODY.run().await;
        2 * n
    }
    for n in [1, 2, 3, 3] {
        now(double(n));
    }
    let running = waiting(double(77));
    double::cache_clear();
    let empty = "CacheInfo(hits=0, misses=0, maxsize=128, currsize=0)";
    assert_eq!(double::cache_info().to_string(), empty);
    BODY.open();
    assert_eq!(now(running), 154);
    assert_eq!(double::cache_info().to_string(), empty);
    assert!(!double::cache_contains(&1) && !double::cache_contains(&77));
    assert_eq!((now(double(1)), now(double(77))), (2, 154));
    assert_eq!(double::cache_info().misses, 2);
}

// F13

#[test]
fn f13_close_drops_running_loads_and_later_calls_are_told() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> Result<u64, String> {
        if n < 10 {
            return Ok(2 * n);
        }
        BODY.run().await;
        Ok(2 * n)
    }
    now(double(1)).expect("does not wait");
    let calls = [(); 3].map(|()| waiting(double(77)));

    // Closed by the call: the future only waits.
    drop(double::cache_close(false));
    assert_eq!(BODY.gone(), 1, "dropped at once");
    for call in calls {
        assert!(matches!(now(call), Err(LoadError::Closed)));
    }
    assert!(matches!(now(double(1)), Err(LoadError::Closed)), "a hit too");
    assert!(matches!(now(double(2)), Err(LoadError::Closed)));
    let parameters = double::cache_parameters();
    assert!(parameters.closed);
    assert_eq!(parameters.tasks, 0);

    now(double::cache_close(false));
    now(double::cache_close(true));
    assert!(double::cache_contains(&1));
    assert!(double::cache_invalidate(&1));
    double::cache_clear();
    assert_eq!(double::cache_info().currsize, 0);
}

#[tokio::test]
async fn f13_a_close_that_waits_lets_running_loads_finish() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> Result<u64, String> {
        BODY.run().await;
        Ok(2 * n)
    }
    // Nobody polls it again before the close is done: the close drives it.
    let idle = waiting(double(1));
    let close = tokio::spawn(double::cache_close(true));
    while !double::cache_parameters().closed {
        tokio::task::yield_now().await;
    }
    assert!(matches!(double(2).await, Err(LoadError::Closed)));
    assert_eq!(double::cache_parameters().tasks, 1);
    BODY.open();
    close.await.expect("no panic");
    assert_eq!((BODY.gone(), double::cache_parameters().tasks), (1, 0));
    assert_eq!(now(idle).expect("has finished"), 2);
}

#[test]
fn f13_a_function_that_cannot_fail_panics_once_closed() {
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        2 * n
    }
    assert_eq!(now(double(1)), 2);
    now(double::cache_close(true));
    assert_eq!(panic_of(double(1)), "the cache is closed");
}

// F14

#[test]
fn f14_a_load_outlives_the_runtime_that_began_it() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn double(n: u64) -> u64 {
        BODY.run().await;
        2 * n
    }
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.build().expect("a runtime")
    };
    let first = runtime();
    first.block_on(async {
        tokio::spawn(double(1));
        while BODY.runs() == 0 {
            tokio::task::yield_now().await;
        }
    });
    let second = waiting(double(1));
    drop(first);
    assert_eq!(BODY.gone(), 0);
    BODY.open();
    assert_eq!(runtime().block_on(second), 2);
    assert_eq!(BODY.runs(), 1);
}

// F15

#[test]
fn f15_a_panic_reaches_who_polled_and_the_others_get_its_message() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn fetch(num: u32) -> Result<u32, String> {
        BODY.run().await;
        assert!(BODY.runs() > 1, "no {num}");
        Ok(num)
    }
    let [polled, others @ ..] = [(); 4].map(|()| waiting(fetch(8)));
    BODY.open();
    assert_eq!(panic_of(polled), "no 8");
    for other in others {
        match now(other) {
            Err(LoadError::Panicked(message)) => assert_eq!(&*message, "no 8"),
            other => panic!("{other:?}"),
        }
    }
    assert!(!fetch::cache_contains(&8));
    assert_eq!(now(fetch(8)).expect("the second run"), 8);
}

#[test]
fn f15_all_callers_of_a_function_that_cannot_fail_panic_with_it() {
    static BODY: Body = Body::shut();
    #[alru_cache]
    async fn fetch(num: u32) -> u32 {
        BODY.run().await;
        assert!(BODY.runs() > 1, "no {num}");
        num
    }
    let calls = [(); 4].map(|()| waiting(fetch(8)));
    BODY.open();
    for call in calls {
        assert_eq!(panic_of(call), "no 8");
    }
    assert_eq!(BODY.runs(), 1);
    assert_eq!(now(fetch(8)), 8);
}

// Results

#[test]
fn a_function_that_can_fail_is_told_by_the_name_of_its_result() {
    mod own {
        #[derive(Debug, PartialEq)]
        pub struct Error;
        pub type Result<T, E = Error> = std::result::Result<T, E>;
        pub type Answer = std::result::Result<u32, Error>;
    }
    #[alru_cache]
    async fn alias(n: u32) -> own::Result<u32> {
        n.checked_sub(1).ok_or(own::Error)
    }
    #[alru_cache]
    async fn io(n: u32) -> std::io::Result<u32> {
        n.checked_sub(1).ok_or_else(|| std::io::Error::other("none"))
    }
    let failed: Result<u32, LoadError<own::Error>> = now(alias(0));
    assert_eq!(failed.unwrap_err().failed(), Some(&own::Error));
    assert_eq!(now(alias(1)).expect("1 > 0"), 0);
    assert_eq!(alias::cache_info().currsize, 1);
    let error: LoadError<std::io::Error> = now(io(0)).unwrap_err();
    assert_eq!(error.to_string(), "the load failed: none");

    // Under another name it is a value like any other, errors included.
    #[alru_cache]
    async fn whole(n: u32) -> Arc<own::Answer> {
        Arc::new(n.checked_sub(1).ok_or(own::Error))
    }
    assert!(now(whole(0)).is_err() && now(whole(0)).is_err());
    assert_eq!(whole::cache_info().hits, 1);
}

#[test]
fn a_function_that_cannot_fail_keeps_its_return_type() {
    static BODY: Body = Body::free();
    #[alru_cache]
    async fn find(n: u32) -> Option<u32> {
        BODY.run().await;
        n.checked_sub(1)
    }
    #[alru_cache]
    async fn unit(_n: u32) {
        BODY.run().await;
    }
    let found: [Option<u32>; 2] = [now(find(0)), now(find(0))];
    assert_eq!(found, [None, None]);
    assert_eq!(BODY.runs(), 1, "None is a value");
    let () = now(unit(1));
    let () = now(unit(1));
    assert_eq!(BODY.runs(), 2);
}

#[test]
fn question_marks_and_early_returns_are_the_body_s() {
    #[alru_cache]
    async fn parse(text: &str) -> Result<u32, std::num::ParseIntError> {
        if text.is_empty() {
            return Ok(0);
        }
        let n: u32 = text.parse()?;
        Ok(n)
    }
    assert_eq!(now(parse("")).expect("is empty"), 0);
    assert_eq!(now(parse("7")).expect("a number"), 7);
    assert!(matches!(now(parse("x")), Err(LoadError::Failed(_))));
}

#[test]
fn a_function_may_call_itself_with_another_key_but_not_with_its_own() {
    #[alru_cache]
    async fn fibonacci(n: u64) -> u64 {
        if n < 2 {
            return n;
        }
        fibonacci(n - 1).await + fibonacci(n - 2).await
    }
    assert_eq!(now(fibonacci(60)), 1_548_008_755_920);
    assert_eq!(fibonacci::cache_info().misses, 61);

    #[alru_cache]
    async fn endless(n: u64) -> Result<u64, bool> {
        Err(matches!(endless(n).await, Err(LoadError::Recursive)))
    }
    assert_eq!(now(endless(1)).unwrap_err().failed(), Some(&true));
}

// Where the function is, and what is around it

mod client {
    use super::alru_cache;

    /// Not public, as what a private function takes and gives may be.
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct Key(u32);

    #[alru_cache]
    pub async fn visible(n: u32) -> u32 {
        hidden(Key(n)).await.0
    }

    #[alru_cache]
    async fn hidden(key: Key) -> Key {
        key
    }

    pub mod deep {
        #[alru::alru_cache]
        pub(in crate::client) async fn within(n: u32) -> u32 {
            n
        }

        #[alru::alru_cache]
        pub(crate) async fn everywhere(n: u32) -> u32 {
            super::deep::within(n).await
        }
    }

    pub async fn through(n: u32) -> (u32, u64) {
        (deep::within(n).await, deep::within::cache_info().hits + hidden::cache_info().hits)
    }
}

#[test]
fn access_is_imported_with_the_function() {
    use client::visible;
    assert_eq!((now(visible(3)), now(visible(3))), (3, 3));
    assert_eq!(visible::cache_info().hits, 1);
    assert!(client::visible::cache_contains(&3));
    assert_eq!(now(client::deep::everywhere(4)), 4);
    assert!(client::deep::everywhere::cache_contains(&4));
    assert_eq!(now(client::through(4)), (4, 1));
}

#[test]
fn functions_of_one_name_in_two_places_have_two_caches() {
    async fn one() -> u64 {
        #[alru_cache]
        async fn same(n: u64) -> u64 {
            n
        }
        same(1).await + same::cache_info().misses
    }
    async fn two() -> u64 {
        struct Local(u64);
        impl From<u64> for Local {
            fn from(n: u64) -> Self {
                Self(n)
            }
        }
        // Sees the items beside it.
        #[alru_cache]
        async fn same(n: u64) -> u64 {
            Local::from(10 * n).0
        }
        same(1).await + same::cache_info().misses
    }
    assert_eq!((now(one()), now(two())), (2, 11));
}

#[test]
fn the_expansion_takes_no_name_from_around_it() {
    #[allow(dead_code, non_upper_case_globals)]
    mod crowded {
        mod alru {}
        mod core {}
        mod std {}
        struct Send;
        struct Result;
        struct String;
        struct Option;
        struct AlruCache;
        const CACHE: usize = 5;
        const arg0: u8 = 0;
        const maxsize: usize = 5;

        #[::alru::alru_cache(maxsize = CACHE)]
        pub async fn call(cache: u8, key: &str, wait: u8, load: u8) -> usize {
            key.len() + (cache + wait + load) as usize
        }

        #[::alru::alru_cache(maxsize = maxsize)]
        pub async fn cache(cache: u8) -> u8 {
            cache
        }

        #[::alru::alru_cache]
        pub async fn r#match(r#type: u8) -> u8 {
            r#type
        }
    }
    assert_eq!(now(crowded::call(1, "key", 2, 4)), 10);
    assert_eq!(now(crowded::cache(1)), 1);
    assert!(crowded::cache::cache().cache_contains(&1));
    assert_eq!(now(crowded::r#match(1)), 1);
    assert!(crowded::r#match::cache_contains(&1));
}

#[test]
fn a_macro_may_write_the_function() {
    macro_rules! cached {
        ($name:ident, $argument:ty, $output:ty, $body:expr) => {
            #[alru_cache(maxsize = 8)]
            async fn $name(argument: $argument) -> $output {
                $body(argument)
            }
        };
    }
    cached!(len, &str, usize, str::len);
    cached!(parse, &str, Result<u32, std::num::ParseIntError>, str::parse);
    assert_eq!(now(len("abc")), 3);
    assert!(len::cache_contains("abc"));
    assert!(matches!(now(parse("x")), Err(LoadError::Failed(_))));
    assert_eq!(parse::cache_info().maxsize, Some(8));
}

#[test]
fn the_library_may_go_by_another_name() {
    mod renamed {
        pub use ::alru::*;
    }
    #[renamed::alru_cache(crate = "renamed", maxsize = 3)]
    async fn f(n: u8) -> u8 {
        n
    }
    assert_eq!(now(f(1)), 1);
    assert_eq!(f::cache_info().maxsize, Some(3));
}

#[test]
fn attributes_stay_with_the_function() {
    /// Documented.
    #[alru_cache]
    #[deprecated]
    #[must_use = "kept"]
    async fn old(n: u8) -> u8 {
        n
    }
    // An expectation that is not met is an error in this file.
    #[expect(deprecated)]
    let old_one = now(old(1));
    assert_eq!(old_one, 1);
    // Access is not what is deprecated.
    assert!(old::cache_contains(&1));

    #[alru_cache]
    #[expect(unused_variables)]
    async fn careless(n: u8) -> u8 {
        let unused = 1;
        n
    }
    assert_eq!(now(careless(1)), 1);

    #[alru_cache]
    #[cfg(any())]
    async fn chosen(_: u8) -> u8 {
        1
    }
    #[alru_cache]
    #[cfg(not(any()))]
    async fn chosen(_: u8) -> u8 {
        2
    }
    assert_eq!(now(chosen(1)), 2);
    assert!(chosen::cache_contains(&1));
}

#[test]
fn the_cache_itself_is_at_hand() {
    #[alru_cache(maxsize = 8)]
    async fn fetch(num: u32) -> Result<u64, String> {
        Ok(num.into())
    }
    let cache: &'static alru::AlruCache<u32, u64, String> = fetch::cache();
    assert_eq!(now(cache.call(1)).expect("is Ok"), 1);
    assert_eq!(now(fetch(1)).expect("is Ok"), 1);
    assert_eq!(fetch::cache_info().hits, 1);
    assert_eq!(cache.clone().cache_info(), fetch::cache_info());
    assert_eq!(cache.cache_parameters(), fetch::cache_parameters());
    let parameters = fetch::cache_parameters();
    assert_eq!((parameters.maxsize, parameters.tasks, parameters.closed), (Some(8), 0, false));
}

#[test]
fn calls_and_closes_are_send() {
    #[alru_cache]
    async fn fetch(num: u32) -> Result<u64, String> {
        Ok(num.into())
    }
    fn send<T: Send>(_: &T) {}
    send(&fetch(1));
    send(&fetch::cache_close(true));
    assert!(fetch::cache_parameters().closed, "by the call, not by a poll");
}
