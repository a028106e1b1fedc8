//! Magazines: free slots that a thread has at hand, so that it allocates by plain loads and stores.
//!
//! A thread with an id of its own has a magazine of its own in each cache, as it has a counter cell
//! (`stats.rs`), and nobody else touches that. A [`Guard`] is the proof: it stays on the thread whose id it
//! carries, and every write pins for itself, so the id is still the thread's. Slots in a magazine are EMPTY:
//! an idle thread keeps no key and no value. It does keep the slots, so all magazines together hold at most
//! a quarter of the reserve.

use super::reclaim::Guard;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use crossbeam_utils::CachePadded;

/// Slots that a magazine can hold.
const SIZE: usize = if cfg!(alru_loom) { 2 } else { 64 };

/// The free slots of one thread.
///
/// Relaxed loads and stores: its thread is the only one here; a successor with the same id has the release
/// and acquire of the id in between.
struct Magazine {
    len: AtomicUsize,
    slots: [AtomicU32; SIZE],
}

impl Magazine {
    fn new() -> Self {
        Self { len: AtomicUsize::new(0), slots: std::array::from_fn(|_| AtomicU32::new(0)) }
    }

    #[inline]
    fn pop(&self) -> Option<u32> {
        let len = self.len.load(Relaxed).checked_sub(1)?;
        let index = self.slots.get(len)?.load(Relaxed);
        self.len.store(len, Relaxed);
        Some(index)
    }

    /// Takes in all of `free` or nothing.
    fn fill(&self, free: &[u32], limit: usize) -> bool {
        let len = self.len.load(Relaxed);
        let full = len + free.len();
        if full > limit {
            return false;
        }
        for (cell, &index) in self.slots[len..full].iter().zip(free) {
            cell.store(index, Relaxed);
        }
        self.len.store(full, Relaxed);
        true
    }
}

/// The magazines of a cache, one for each of the lowest thread ids.
pub struct Magazines {
    owned: Box<[CachePadded<Magazine>]>,
    /// Slots that one magazine may hold.
    limit: usize,
}

impl Magazines {
    /// Magazines for `owners` threads; none if the reserve is too small to share out.
    pub fn new(owners: usize, reserve: usize) -> Self {
        let limit = (reserve / 4 / owners.max(1)).min(SIZE);
        let owners = if limit == 0 { 0 } else { owners };
        Self { owned: (0..owners).map(|_| CachePadded::new(Magazine::new())).collect(), limit }
    }

    /// How many slots the thread may have at hand; 0 if it has no magazine.
    pub fn limit(&self, guard: &Guard) -> usize {
        if guard.thread() < self.owned.len() { self.limit } else { 0 }
    }

    /// A free slot, which is the caller's now.
    #[inline]
    pub fn pop(&self, guard: &Guard) -> Option<u32> {
        self.owned.get(guard.thread())?.pop()
    }

    /// Takes in EMPTY slots of the caller's, all or, where there is no room for them, none.
    pub fn fill(&self, guard: &Guard, free: &[u32]) -> bool {
        self.owned.get(guard.thread()).is_some_and(|m| m.fill(free, self.limit))
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;
    use crate::raw::reclaim;

    #[test]
    fn a_slot_that_went_in_comes_out_once() {
        let guard = reclaim::pin();
        let magazines = Magazines::new(reclaim::THREADS, reclaim::THREADS * 4 * 3);
        assert!(magazines.fill(&guard, &[5, 6]));
        assert!(!magazines.fill(&guard, &[7, 8]), "three at most, and all or none");
        assert!(magazines.fill(&guard, &[7]));
        let mut out: Vec<u32> = std::iter::from_fn(|| magazines.pop(&guard)).collect();
        out.sort_unstable();
        assert_eq!(out, [5, 6, 7]);
    }

    #[test]
    fn together_they_hold_at_most_a_quarter_of_the_reserve() {
        for (owners, reserve) in [(8, 0), (8, 31), (8, 32), (256, 10_000), (256, 1 << 20)] {
            let m = Magazines::new(owners, reserve);
            assert!(m.owned.len() * m.limit <= reserve / 4);
            assert!(m.limit <= SIZE);
        }
    }
}
