//! Loaders and functions that count their runs and ends, and end when they are let; and callers of them that
//! are polled by hand.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use alru::{AlruCache, Cache, LoadError};

use super::runtimes::Wakers;
use super::{Flag, poll_once};

/// Loaders that count their runs and ends, and end when they are let.
#[derive(Clone, Default)]
pub struct Source(Arc<Counts>);

#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    gone: AtomicUsize,
    open: AtomicUsize,
    wakers: Wakers,
}

impl Source {
    /// A loader of `result`.
    pub fn load<T>(&self, result: T) -> impl Future<Output = T> + use<T> {
        struct Gone(Source);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.0.gone.fetch_add(1, SeqCst);
            }
        }
        let source = self.clone();
        async move {
            source.0.begun.fetch_add(1, SeqCst);
            let gone = Gone(source);
            poll_fn(|cx| {
                gone.0.0.wakers.add(cx);
                match gone.0.0.open.load(SeqCst) {
                    0 => Poll::Pending,
                    _ => Poll::Ready(()),
                }
            })
            .await;
            result
        }
    }

    /// Lets the loaders end at their next poll, and wakes who polled them.
    pub fn open(&self) {
        self.0.open.store(1, SeqCst);
        self.0.wakers.wake();
    }

    /// Loaders polled for the first time.
    pub fn begun(&self) -> usize {
        self.0.begun.load(SeqCst)
    }

    /// Loaders that were begun and ended or were dropped.
    pub fn gone(&self) -> usize {
        self.0.gone.load(SeqCst)
    }
}

/// The function behind a function cache: waits until it is let, then gives ten times its key, or fails.
#[derive(Clone, Default)]
pub struct Function(Arc<State>);

#[derive(Default)]
struct State {
    runs: AtomicUsize,
    gone: AtomicUsize,
    verdict: Mutex<Verdict>,
    wakers: Wakers,
}

/// What a run is to do.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub enum Verdict {
    #[default]
    Wait,
    Value,
    Fail,
    Panic,
}

impl Function {
    pub fn open() -> Self {
        let function = Self::default();
        function.set(Verdict::Value);
        function
    }

    pub fn cache(&self) -> alru::AlruCacheBuilder<u64, u64, String> {
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
            state.wakers.add(cx);
            let verdict = *state.verdict.lock().unwrap_or_else(PoisonError::into_inner);
            match verdict {
                Verdict::Wait => Poll::Pending,
                Verdict::Value => Poll::Ready(Ok(key * 10)),
                Verdict::Fail => Poll::Ready(Err(format!("no {key}"))),
                Verdict::Panic => panic!("panic of {key}"),
            }
        })
        .await
    }

    /// What all runs are to do, and wakes them.
    pub fn set(&self, verdict: Verdict) {
        *self.0.verdict.lock().unwrap_or_else(PoisonError::into_inner) = verdict;
        self.0.wakers.wake();
    }

    pub fn runs(&self) -> usize {
        self.0.runs.load(SeqCst)
    }

    /// Runs that ended or were dropped.
    pub fn gone(&self) -> usize {
        self.0.gone.load(SeqCst)
    }
}

pub type Cached = AlruCache<u64, u64, String>;
pub type Answer = Result<u64, LoadError<String>>;

/// A call that is polled by hand.
pub struct Caller<'a> {
    flag: Arc<Flag>,
    /// None once it has answered.
    call: Option<Pin<Box<dyn Future<Output = Answer> + 'a>>>,
}

impl<'a> Caller<'a> {
    pub fn new(cache: &'a Cached, key: u64) -> Self {
        Self { flag: Flag::new(), call: Some(Box::pin(cache.call(key))) }
    }

    /// A call that waits.
    pub fn waiting(cache: &'a Cached, key: u64) -> Self {
        let mut caller = Self::new(cache, key);
        assert!(caller.poll().is_pending());
        caller
    }

    pub fn poll(&mut self) -> Poll<Answer> {
        self.flag.take();
        let call = self.call.as_mut().expect("has not answered");
        let answer = self.flag.poll(call.as_mut());
        if answer.is_ready() {
            self.call = None;
        }
        answer
    }

    /// Polls if it was woken and has not answered.
    pub fn poll_if_woken(&mut self) -> Poll<Answer> {
        if self.flag.take() && self.call.is_some() { self.poll() } else { Poll::Pending }
    }

    /// From now on it is polled by a task with another waker.
    pub fn move_to_another_task(&mut self) {
        self.flag = Flag::new();
    }
}

#[track_caller]
pub fn value(answer: Poll<Answer>) -> u64 {
    match answer {
        Poll::Ready(Ok(value)) => value,
        Poll::Ready(Err(error)) => panic!("{error:?}"),
        Poll::Pending => panic!("pending"),
    }
}

/// A call that answers at its first poll.
#[track_caller]
pub fn call(cache: &Cached, key: u64) -> Answer {
    match poll_once(pin!(cache.call(key))) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("pending"),
    }
}

pub fn info(cache: &Cached) -> String {
    cache.cache_info().to_string()
}

/// Starts a load, does `write`, lets the load end: its callers get its value, whatever the write
/// was.
pub fn load_around(cache: &Cache<u64, u64>, write: impl FnOnce()) {
    let source = Source::default();
    let mut leader = pin!(cache.get_with(1, source.load(1)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    write();
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
    assert_eq!(source.begun(), 1);
}
