//! Several things polled by one task: each has a waker of its own, which leaves a mark that says which of them
//! it was.
//!
//! The handshake: the task registers its waker, then collects the marks; who wakes leaves the mark first and
//! wakes the task second. One of the two sees the other (`AtomicWaker` orders `register` and `wake`).

use crate::sync::AtomicWaker;
use crate::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::Arc as StdArc;
use std::task::{Wake, Waker};

/// The marks, and the task.
pub(crate) struct Bells {
    rung: Box<[AtomicU64]>,
    task: AtomicWaker,
}

impl Bells {
    /// For things 0 to `count` − 1.
    pub(crate) fn new(count: usize) -> StdArc<Self> {
        let words = count.div_ceil(u64::BITS as usize);
        let rung = (0..words).map(|_| AtomicU64::new(0)).collect();
        StdArc::new(Self { rung, task: AtomicWaker::new() })
    }

    /// The waker of one of them.
    pub(crate) fn waker(self: &StdArc<Self>, index: usize) -> Waker {
        Waker::from(StdArc::new(Bell { bells: self.clone(), index }))
    }

    /// Collects what rang since the last time. What rings from now on wakes `task`.
    pub(crate) fn collect(&self, task: &Waker, into: &mut Vec<usize>) {
        #[cfg(not(alru_mutation = "deaf_bells"))]
        self.task.register(task);
        for (number, word) in self.rung.iter().enumerate() {
            // AcqRel: an RMW, as the other side's is; it takes each mark once.
            let mut marks = word.swap(0, AcqRel);
            while marks != 0 {
                into.push(number * u64::BITS as usize + marks.trailing_zeros() as usize);
                marks &= marks - 1;
            }
        }
        #[cfg(alru_mutation = "deaf_bells")]
        self.task.register(task);
    }
}

struct Bell {
    bells: StdArc<Bells>,
    index: usize,
}

impl Wake for Bell {
    fn wake(self: StdArc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &StdArc<Self>) {
        let (word, bit) = (self.index / u64::BITS as usize, self.index % u64::BITS as usize);
        // AcqRel: what was done before the wake is seen by the poll that follows it.
        self.bells.rung[word].fetch_or(1 << bit, AcqRel);
        self.bells.task.wake();
    }
}
