//! Random schedules over the crate's own code, with ten tasks where loom has two or three threads: `tests/`, one
//! file a surface. Sequentially consistent: what an ordering is for is loom's to say.
//!
//! Each test makes one claim, with its name. A schedule in which all tasks sleep is a failure by itself.
//! `ci/shuttle.sh` runs the tests, and the controls: mutations of the crate that a test must catch.
#![cfg(alru_shuttle)]

use shuttle::rand::{Rng as _, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

/// Tasks of a test.
pub const TASKS: usize = 10;

/// Runs `test` under `ALRU_SHUTTLE_ITERATIONS` schedules (500 if it is not set) that a coin chooses, and half as
/// many with few switches at awkward places. A failure prints its seed; with `SHUTTLE_RANDOM_SEED` set to it, the
/// first schedule is that one.
pub fn check(test: impl Fn() + Clone + Send + Sync + 'static) {
    let iterations = std::env::var("ALRU_SHUTTLE_ITERATIONS")
        .map_or(500, |n| n.parse().expect("ALRU_SHUTTLE_ITERATIONS is a number"));
    let mut config = Config::new();
    config.stack_size = 1 << 18;
    let random = RandomScheduler::new(iterations);
    let run = Runner::new(random, config.clone()).run(test.clone());
    let awkward = PctScheduler::new(3, iterations.div_ceil(2));
    let run = run + Runner::new(awkward, config).run(test);
    println!("{run} schedules");
}

/// A number below `n`, part of the schedule.
pub fn below(n: usize) -> usize {
    thread_rng().gen_range(0..n)
}

/// A point at which another task may run. (shuttle's `yield_now` wakes who calls it, which would hide a wake-up
/// that got lost.)
fn switch() {
    shuttle::sync::atomic::AtomicBool::new(false).load(SeqCst);
}

/// Gives the other tasks `n` chances to run.
pub async fn turns(n: usize) {
    for _ in 0..n {
        let mut passed = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut passed, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            switch();
            Poll::Pending
        })
        .await;
    }
}

/// Polls `call` now and a few times more, woken or not, and drops it if it has no answer by then.
pub async fn impatient<F: Future>(call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    for left in (0..1 + below(4)).rev() {
        let answer = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx))).await;
        if let Poll::Ready(answer) = answer {
            return Some(answer);
        }
        if left > 0 {
            turns(1 + below(3)).await;
        }
    }
    None
}

/// An event and its waiters. Its own lock is never held while others run.
#[derive(Clone, Default)]
pub struct Event(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Event {
    /// Until it is raised.
    pub async fn wait(self) {
        poll_fn(|cx| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if state.0 {
                return Poll::Ready(());
            }
            // The last poll's waker will do: polls of one future do not overlap.
            state.1 = vec![cx.waker().clone()];
            Poll::Pending
        })
        .await;
    }

    /// From now on.
    pub fn raise(&self) {
        let wakers = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0 = true;
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Loaders that are counted. std atomics: a count is no part of a protocol.
#[derive(Clone, Default)]
pub struct Source(Arc<(AtomicUsize, AtomicUsize)>);

/// One run of a loader.
struct Run {
    source: Source,
    is_polled: Arc<AtomicBool>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.source.0.1.fetch_add(1, SeqCst);
        assert!(!self.is_polled.load(SeqCst), "dropped in the middle of a poll");
    }
}

impl Source {
    /// The future of a run, whose result is the run's number, from 1.
    pub fn run<F: Future<Output = ()>>(&self, until: F) -> impl Future<Output = usize> + use<F> {
        let source = self.clone();
        async move {
            let number = source.0.0.fetch_add(1, SeqCst) + 1;
            let is_polled = Arc::new(AtomicBool::new(false));
            let _run = Run { source, is_polled: is_polled.clone() };
            let mut until = pin!(until);
            poll_fn(|cx| {
                assert!(!is_polled.swap(true, SeqCst), "polled twice at once");
                let polled = until.as_mut().poll(cx);
                is_polled.store(false, SeqCst);
                polled
            })
            .await;
            number
        }
    }

    /// Runs that began.
    pub fn begun(&self) -> usize {
        self.0.0.load(SeqCst)
    }

    /// Runs that ended or were dropped.
    pub fn gone(&self) -> usize {
        self.0.1.load(SeqCst)
    }
}
