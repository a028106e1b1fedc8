//! A trail: the slots that one thread retired and that nobody has sealed yet, in their order.
//!
//! A ring with one producer, the thread whose trail it is, which pushes without a read-modify-write, and any
//! number of takers, who take all there is by one CAS of `head`. The thread takes as well, when a batch is
//! full; others do when they want a grace period at once, or in passing, so that an idle thread keeps
//! nothing.
//!
//! `head` and `tail` only grow, so there is no ABA: a CAS of `head` that succeeds saw all that it took. A cell
//! is written again only after `head` has passed it, and then the CAS of who read it before fails.
//!
//! The slots are linked too, each to the one before it, so that what is taken is a chain from the youngest to
//! the oldest. The link of the oldest names a slot that is gone; whoever puts the chain somewhere sets it.

use super::mem::{Blank, OutOfMemory, ZeroedArray};
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// A slot index.
struct Cell(AtomicU32);

// SAFETY: zero is a valid value of the atomic.
unsafe impl Blank for Cell {
    fn blank() -> Self {
        Self(AtomicU32::new(0))
    }
}

/// The ring.
pub struct Trail {
    /// Slots taken so far.
    head: AtomicU64,
    /// Slots pushed so far.
    tail: AtomicU64,
    /// A power of two of them. Memory is committed by a thread that removes something.
    cells: ZeroedArray<Cell>,
    batch: usize,
}

/// A chain of slots, linked from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    pub first: u32,
    pub last: u32,
}

impl Trail {
    /// A trail that is full with `batch` slots.
    pub fn new(batch: usize) -> Result<Self, OutOfMemory> {
        Ok(Self {
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            cells: ZeroedArray::new(batch.next_power_of_two())?,
            batch,
        })
    }

    #[inline]
    fn cell(&self, position: u64) -> &AtomicU32 {
        // SAFETY: below the length, a power of two.
        &unsafe { self.cells.get_unchecked(position as usize & (self.cells.len() - 1)) }.0
    }

    /// Pushes a slot, whose `link` is told the slot before it. True if the trail is full then, and must be taken
    /// before the next push. By the trail's thread alone.
    #[inline]
    #[must_use]
    pub fn push(&self, index: u32, link: impl FnOnce(u32)) -> bool {
        // Relaxed: this thread is the only one to write it.
        let tail = self.tail.load(Relaxed);
        link(self.cell(tail.wrapping_sub(1)).load(Relaxed));
        // Relaxed: what the cell held is gone, by the `head` that the last push or take of this thread acquired.
        self.cell(tail).store(index, Relaxed);
        // Release: pairs with the acquire of `tail` in `take`, for the cell, the link, and all that ended the
        // slot's life.
        self.tail.store(tail + 1, Release);
        // Acquire: pairs with the CAS in `take`: who took a cell had read it before this thread writes it
        // again. A head that is out of date is smaller, and the trail then looks fuller than it is.
        tail + 1 - self.head.load(Acquire) >= self.batch as u64
    }

    /// Takes all there is.
    pub fn take(&self) -> Option<Taken> {
        // Acquire: whoever moved `head` here had seen a `tail` no smaller, which is seen next.
        let mut head = self.head.load(Acquire);
        loop {
            let tail = self.tail.load(Acquire);
            if head == tail {
                return None;
            }
            // Relaxed: written before `tail`; written again since only if `head` has moved.
            let taken = Taken {
                first: self.cell(tail - 1).load(Relaxed),
                last: self.cell(head).load(Relaxed),
            };
            // Release: the cells were read before the owner writes them again.
            #[cfg(not(alru_mutation = "blind_take"))]
            let done = self.head.compare_exchange(head, tail, AcqRel, Acquire);
            #[cfg(alru_mutation = "blind_take")]
            let done = Ok::<_, u64>(self.head.swap(tail, AcqRel));
            match done {
                Ok(_) => return Some(taken),
                Err(now) => head = now,
            }
        }
    }

    /// Relaxed: a hint; taking decides.
    pub fn is_empty(&self) -> bool {
        self.head.load(Relaxed) == self.tail.load(Relaxed)
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn what_is_taken_is_linked_from_the_youngest_to_the_oldest() {
        let (trail, mut links) = (Trail::new(6).unwrap(), [0; 13]);
        for i in 2..7 {
            assert!(!trail.push(i, |before| links[i as usize] = before));
        }
        assert_eq!(trail.take(), Some(Taken { first: 6, last: 2 }));
        assert_eq!(links[3..7], [2, 3, 4, 5]);
        assert_eq!((trail.take(), trail.is_empty()), (None, true));
        let full = |i: u32| trail.push(i, |before| links[i as usize] = before);
        assert_eq!([7, 8, 9, 10, 11, 12].map(full), [false, false, false, false, false, true]);
        assert_eq!((trail.take(), links[8]), (Some(Taken { first: 12, last: 7 }), 7));
    }

    /// Slots are numbers in order, so a chain is a range, and the ranges tile what was pushed.
    #[test]
    fn every_slot_is_taken_once_however_many_take() {
        const SLOTS: u32 = if cfg!(miri) { 500 } else { 200_000 };
        const SIZE: usize = 64;
        let shared = Arc::new((Trail::new(SIZE).unwrap(), AtomicBool::new(false)));
        let thieves = [(); 2].map(|()| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                let (trail, done) = &*shared;
                let mut ranges = vec![];
                while !done.load(Acquire) || !trail.is_empty() {
                    ranges.extend(trail.take());
                }
                ranges
            })
        });
        let mut ranges = vec![];
        for index in 1..=SLOTS {
            if shared.0.push(index, |before| assert_eq!(before, index - 1)) {
                ranges.extend(shared.0.take());
            }
        }
        shared.1.store(true, Release);
        ranges.extend(thieves.into_iter().flat_map(|t| t.join().unwrap()));
        ranges.sort_unstable_by_key(|t| t.last);
        let mut next = 1;
        for Taken { first, last } in ranges {
            assert!(last == next && first >= last && first - last < SIZE as u32);
            next = first + 1;
        }
        assert_eq!(next, SLOTS + 1);
    }
}
