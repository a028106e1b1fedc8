//! The loader of all loads. It is ready at once, unless the measuring thread has shut its gate.
//!
//! The gate is the thread's, so that the loader carries nothing: it fits caches that ask for `Send + 'static`
//! and those that do not alike, and costs all of them the same.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::task::{Poll, Waker};

use crate::workload::value_of;

std::thread_local! {
    static SHUT: Cell<bool> = const { Cell::new(false) };
    static WAITS: RefCell<Option<Waker>> = const { RefCell::new(None) };
    static LOADS: Cell<u64> = const { Cell::new(0) };
}

/// This thread's gate; open at first.
#[derive(Debug)]
pub struct Gate;

impl Gate {
    /// Loads that begin from now on wait.
    pub fn shut() {
        SHUT.set(true);
    }

    /// Loads go on; the one that waits is woken.
    pub fn open() {
        SHUT.set(false);
        if let Some(waker) = WAITS.take() {
            waker.wake();
        }
    }

    /// Loads that this thread has ended.
    pub fn loads() -> u64 {
        LOADS.get()
    }

    /// A load of `key`.
    pub fn load(key: u64) -> impl Future<Output = u64> + Send + 'static {
        poll_fn(move |cx| {
            if SHUT.get() {
                WAITS.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            LOADS.set(LOADS.get() + 1);
            Poll::Ready(value_of(key))
        })
    }
}
