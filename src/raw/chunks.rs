//! An array that grows by chunks and never moves: each chunk is twice the one before, published by a CAS.

use super::mem::{Blank, OutOfMemory, ZeroedArray};
use crate::sync::atomic::{AtomicPtr, Ordering::*};

/// Chunk `c` holds the indices from `base * (2^c - 1)` on, `base * 2^c` of them.
pub struct Chunks<T: Blank> {
    base: usize,
    cells: Box<[AtomicPtr<ZeroedArray<T>>]>,
}

impl<T: Blank> Chunks<T> {
    /// Room for `chunks` chunks, the first of `base` elements; nothing is allocated yet.
    pub fn new(base: usize, chunks: usize) -> Self {
        let cells = (0..chunks).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect();
        Self { base, cells }
    }

    fn place(&self, index: usize) -> (usize, usize) {
        let chunk = (index / self.base + 1).ilog2() as usize;
        (chunk, index - self.base * ((1 << chunk) - 1))
    }

    /// The element at `index`; None while its chunk is not there.
    pub fn get(&self, index: usize) -> Option<&T> {
        let (chunk, offset) = self.place(index);
        // Acquire pairs with the CAS that published the chunk.
        let array = self.cells.get(chunk)?.load(Acquire);
        // SAFETY: not null, so a published chunk, which lives as long as `self`.
        (!array.is_null()).then(|| unsafe { (*array).get(offset) })
    }

    /// Makes the chunk of `index`.
    pub fn ensure(&self, index: usize) -> Result<(), OutOfMemory> {
        let (chunk, _) = self.place(index);
        let cell = self.cells.get(chunk).ok_or(OutOfMemory)?;
        if !cell.load(Acquire).is_null() {
            return Ok(());
        }
        let array = Box::into_raw(Box::new(ZeroedArray::new(self.base << chunk)?));
        // AcqRel: publishes the chunk; the loser frees its own.
        if cell.compare_exchange(std::ptr::null_mut(), array, AcqRel, Acquire).is_err() {
            // SAFETY: never published: ours alone.
            drop(unsafe { Box::from_raw(array) });
        }
        Ok(())
    }
}

impl<T: Blank> Drop for Chunks<T> {
    fn drop(&mut self) {
        for cell in &*self.cells {
            let array = cell.load(Relaxed);
            if !array.is_null() {
                // SAFETY: `&mut self`: nobody uses the chunks any more, and published ones are ours.
                drop(unsafe { Box::from_raw(array) });
            }
        }
    }
}
