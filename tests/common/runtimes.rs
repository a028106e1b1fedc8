//! One test body, three runtimes: tokio with one thread, tokio with several, and smol.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// A test that takes so long is wedged.
pub const LIMIT: Duration = Duration::from_secs(120);

/// What a test needs of a runtime.
pub trait Runtime: Copy + Send + 'static {
    /// Runs a test, and panics if it takes longer than [`LIMIT`].
    fn run(self, test: impl Future<Output = ()>);
    /// A task.
    fn spawn<T: Send + 'static>(self, task: impl Future<Output = T> + Send + 'static) -> Task<T>;
}

/// A task under way, to be joined or cancelled.
pub enum Task<T> {
    Tokio(tokio::task::JoinHandle<T>),
    Smol(smol::Task<Result<T, Box<dyn Any + Send>>>),
}

impl<T> Task<T> {
    /// What the task came to.
    ///
    /// # Panics
    /// As the task did.
    pub async fn join(self) -> T {
        match self.ended().await {
            Ok(value) => value,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// What the task came to: its value or its panic.
    pub async fn ended(self) -> Result<T, Box<dyn Any + Send>> {
        match self {
            Self::Tokio(task) => task.await.map_err(tokio::task::JoinError::into_panic),
            Self::Smol(task) => task.await,
        }
    }

    /// Drops the task's future where it stands. Returns when it is dropped, or had ended before.
    pub async fn cancel(self) {
        match self {
            Self::Tokio(task) => {
                task.abort();
                drop(task.await);
            }
            Self::Smol(task) => drop(task.cancel().await),
        }
    }
}

#[derive(Clone, Copy)]
pub struct TokioOneThread;
#[derive(Clone, Copy)]
pub struct TokioManyThreads;
#[derive(Clone, Copy)]
pub struct Smol;

async fn limited_by_tokio(test: impl Future<Output = ()>) {
    tokio::time::timeout(LIMIT, test).await.expect("the test is wedged");
}

impl Runtime for TokioOneThread {
    fn run(self, test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_time().build().expect("a runtime").block_on(limited_by_tokio(test));
    }

    fn spawn<T: Send + 'static>(self, task: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task::Tokio(tokio::spawn(task))
    }
}

impl Runtime for TokioManyThreads {
    fn run(self, test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(4).enable_time().build().expect("a runtime");
        runtime.block_on(limited_by_tokio(test));
    }

    fn spawn<T: Send + 'static>(self, task: impl Future<Output = T> + Send + 'static) -> Task<T> {
        Task::Tokio(tokio::spawn(task))
    }
}

impl Runtime for Smol {
    fn run(self, test: impl Future<Output = ()>) {
        smol::block_on(async {
            let mut test = pin!(test);
            let mut limit = pin!(smol::Timer::after(LIMIT));
            poll_fn(|cx| {
                if test.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                assert!(limit.as_mut().poll(cx).is_pending(), "the test is wedged");
                Poll::Pending
            })
            .await;
        });
    }

    fn spawn<T: Send + 'static>(self, task: impl Future<Output = T> + Send + 'static) -> Task<T> {
        // Its executor thread is not to meet a panic.
        let mut task = Box::pin(task);
        let task =
            poll_fn(move |cx| match catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(value)) => Poll::Ready(Ok(value)),
                Err(panic) => Poll::Ready(Err(panic)),
            });
        Task::Smol(smol::spawn(task))
    }
}

/// A test on each runtime, of one body that is given the runtime.
#[allow(unused_macros, reason = "each test file uses a part of this module")]
macro_rules! on_all_runtimes {
    ($($(#[doc = $doc:literal])* async fn $name:ident($runtime:ident) $body:block)*) => {$(
        mod $name {
            use super::*;
            use $crate::common::runtimes::{Runtime, Smol, TokioManyThreads, TokioOneThread};

            $(#[doc = $doc])*
            async fn test($runtime: impl Runtime) $body

            #[test]
            fn on_tokio_with_one_thread() {
                TokioOneThread.run(test(TokioOneThread));
            }

            #[test]
            fn on_tokio_with_many_threads() {
                TokioManyThreads.run(test(TokioManyThreads));
            }

            #[test]
            fn on_smol() {
                Smol.run(test(Smol));
            }
        }
    )*};
}
#[allow(unused_imports, reason = "each test file uses a part of this module")]
pub(crate) use on_all_runtimes;

/// Waits until `done`, with turns for the other tasks, on any runtime.
pub async fn until(mut done: impl FnMut() -> bool) {
    poll_fn(|cx| {
        if done() {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until `done` on a thread of its own, and panics if that takes longer than [`LIMIT`].
pub fn block_until(done: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed() < LIMIT, "the test is wedged");
        std::thread::yield_now();
    }
}

/// One poll of `future` in the present task, with its waker.
pub async fn poll_here<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Wakers that wait for something that is told by other means.
#[derive(Default)]
pub struct Wakers(Mutex<Vec<Waker>>);

impl Wakers {
    /// Before the caller looks at what it waits for.
    pub fn add(&self, cx: &Context<'_>) {
        // A waker's own code runs with nothing held.
        let waker = cx.waker().clone();
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = wakers.iter().position(|other| other.will_wake(&waker));
        let old = same.map(|same| wakers.swap_remove(same));
        wakers.push(waker);
        drop(wakers);
        drop(old);
    }

    /// After the change. All are woken, also if one panics.
    pub fn wake(&self) {
        let wakers = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let panics = wakers.into_iter().map(|w| catch_unwind(AssertUnwindSafe(|| w.wake())));
        if let Some(panic) = panics.filter_map(Result::err).reduce(|first, _| first) {
            resume_unwind(panic);
        }
    }
}
