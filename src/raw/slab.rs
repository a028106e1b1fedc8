//! The slab: slots at stable addresses, found by index.
//!
//! A bounded cache has one chunk for capacity and reserve, committed by the operating system page by page
//! as it is touched. An unbounded one starts with a small chunk and adds chunks that double the total, each
//! published by a CAS of its pointer. Indices are handed out by a counter; freed ones come back through
//! `limbo.rs`.

use super::bin::FIRST_INDEX;
use super::chain::Links;
use super::chunks::Chunks;
use super::mem::{Blank, OutOfMemory, ZeroedArray};
use super::slot::Slot;
use crate::sync::atomic::{AtomicU64, Ordering::*};
use crossbeam_utils::CachePadded;

/// Doublings that lead from the smallest first chunk to all of the index space.
const CHUNKS: usize = 32;

/// A growable array of slots.
pub struct Slab<K, V> {
    first: ZeroedArray<Slot<K, V>>,
    /// Index `i` lies at `i - first.len()`; without chunks for a bounded cache.
    rest: Chunks<Slot<K, V>>,
    /// Indices handed out so far; may run past the limit by a few when threads race for the last ones.
    fresh: CachePadded<AtomicU64>,
    limit: u64,
}

impl<K, V> Slab<K, V> {
    /// `slots` slots and no more.
    pub fn bounded(slots: usize) -> Result<Self, OutOfMemory> {
        Self::new(slots, false)
    }

    /// As many slots as the index space holds, the first `initial` in one chunk.
    pub fn unbounded(initial: usize) -> Result<Self, OutOfMemory> {
        Self::new(initial, true)
    }

    fn new(slots: usize, grows: bool) -> Result<Self, OutOfMemory> {
        let len = slots.checked_add(FIRST_INDEX as usize).ok_or(OutOfMemory)?;
        if len >= u32::MAX as usize {
            return Err(OutOfMemory);
        }
        Ok(Self {
            first: ZeroedArray::new(len)?,
            rest: Chunks::new(len, if grows { CHUNKS } else { 0 }),
            fresh: CachePadded::new(AtomicU64::new(FIRST_INDEX as u64)),
            limit: if grows { u32::MAX as u64 } else { len as u64 },
        })
    }

    /// The slot at `index`.
    ///
    /// # Safety
    /// `index` was handed out by [`Slab::fresh`] of this slab.
    #[inline(always)]
    pub unsafe fn slot(&self, index: u32) -> &Slot<K, V> {
        let index = index as usize;
        if index < self.first.len() {
            // SAFETY: just checked.
            unsafe { self.first.get_unchecked(index) }
        } else {
            self.slot_in_rest(index)
        }
    }

    /// The same without a look beyond the one chunk of a bounded slab.
    ///
    /// # Safety
    /// The slab is bounded, and `index` below the number of its slots and [`FIRST_INDEX`].
    #[inline(always)]
    pub unsafe fn bounded_slot(&self, index: u32) -> &Slot<K, V> {
        // SAFETY: the one chunk has all those.
        unsafe { self.first.get_unchecked(index as usize) }
    }

    #[cold]
    fn slot_in_rest(&self, index: usize) -> &Slot<K, V> {
        self.rest.get(index - self.first.len()).expect("a slot index that was handed out")
    }

    /// The slot of a bounded slab that lies at this address; None for any other address.
    pub fn slot_at(&self, address: *const Slot<K, V>) -> Option<&Slot<K, V>> {
        let stride = <Slot<K, V> as Blank>::STRIDE;
        let offset = address.addr().checked_sub(self.first.base().addr())?;
        let index = offset / stride;
        // SAFETY: checked.
        (index < self.first.len() && offset % stride == 0)
            .then(|| unsafe { self.first.get_unchecked(index) })
    }

    /// Indices below this one are in the first chunk.
    pub fn first_slots(&self) -> usize {
        self.first.len()
    }

    /// One past the largest index that may be in use.
    #[inline]
    pub fn high_water(&self) -> u32 {
        // Acquire: pairs with the RMW of `fresh`; a chunk below the mark may still be unpublished, which
        // `get` answers with None.
        self.fresh.load(Acquire).min(self.limit) as u32
    }

    /// A slot by any index: None if there is no such slot. One that was never handed out is blank.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&Slot<K, V>> {
        let index = index as usize;
        if index < self.first.len() {
            // SAFETY: just checked.
            return Some(unsafe { self.first.get_unchecked(index) });
        }
        self.get_in_rest(index)
    }

    #[cold]
    fn get_in_rest(&self, index: usize) -> Option<&Slot<K, V>> {
        if index >= self.high_water() as usize {
            return None;
        }
        self.rest.get(index - self.first.len())
    }

    /// Hands out an index that was never used; None at the limit or out of memory.
    pub fn fresh(&self) -> Option<u32> {
        // Relaxed: a bound on the overshoot; the RMW decides.
        if self.fresh.load(Relaxed) >= self.limit {
            return None;
        }
        let index = self.fresh.fetch_add(1, AcqRel);
        if index >= self.limit {
            return None;
        }
        match (index as usize).checked_sub(self.first.len()) {
            Some(in_rest) if self.rest.ensure(in_rest).is_err() => None,
            _ => Some(index as u32),
        }
    }
}

impl<K, V> Links for Slab<K, V> {
    fn next(&self, index: u32) -> u32 {
        // A stale link may be a tag, so the index may be one that was never handed out, or none at all.
        self.get(index).map_or(0, Slot::next)
    }

    fn set_next(&self, index: u32, next: u32) {
        // SAFETY: what a thread puts on a list was handed out to it.
        unsafe { self.slot(index) }.set_next(next);
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    #[test]
    fn unbounded_slots_keep_their_addresses_and_are_distinct() {
        let slab = Slab::<u32, u32>::unbounded(6).unwrap();
        let mut seen = std::collections::HashSet::new();
        for expected in FIRST_INDEX..5000 {
            let index = slab.fresh().unwrap();
            assert_eq!(index, expected);
            // SAFETY: just handed out.
            assert!(seen.insert(std::ptr::from_ref(unsafe { slab.slot(index) })));
            assert!(slab.get(index).is_some());
        }
        assert!(slab.get(5000).is_none());
    }

    #[test]
    fn a_bounded_slab_hands_out_what_it_says() {
        let slab = Slab::<u32, u32>::bounded(3).unwrap();
        assert_eq!((0..5).filter_map(|_| slab.fresh()).count(), 3);
    }
}
