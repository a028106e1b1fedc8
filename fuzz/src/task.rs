//! Polling by hand: gates that hold a loader, and wakers that remember.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Wake, Waker};

/// What a loader waits for.
#[derive(Default)]
pub(crate) struct Gate {
    open: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Gate {
    pub(crate) fn new(open: bool) -> Self {
        Self { open: Cell::new(open), waker: RefCell::default() }
    }

    pub(crate) fn open(&self) {
        self.open.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(crate) async fn pass(&self) {
        poll_fn(|cx| {
            if self.open.get() {
                Poll::Ready(())
            } else {
                self.waker.replace(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
    }
}

/// A waker that remembers that it was woken.
#[derive(Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    /// Whether it was woken since the last `take`.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether it was woken since the last call.
    pub(crate) fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
