//! The ghost: fingerprints of keys that probation evicted lately. Whoever returns starts in main.
//!
//! Plain loads and stores: two threads that push into one bucket at once may lose a fingerprint, and a
//! torn read may see one twice or not at all. Each costs a newcomer its head start, nothing else.

use super::bin::Tag;
use super::mem::{Blank, OutOfMemory, ZeroedArray};
use crate::policy::ghost::{Bucket, LANES, fingerprint};
use crate::sync::atomic::{AtomicU64, Ordering::*};

struct Cell([AtomicU64; 2]);

// SAFETY: zero is a valid value of each word: a bucket that remembers nothing.
unsafe impl Blank for Cell {
    fn blank() -> Self {
        Self([AtomicU64::new(0), AtomicU64::new(0)])
    }
}

/// About two bytes for each key remembered.
pub struct Ghost {
    buckets: ZeroedArray<Cell>,
}

impl Ghost {
    pub fn new(entries: u64) -> Result<Self, OutOfMemory> {
        let buckets = usize::try_from(entries.div_ceil(LANES as u64)).map_err(|_| OutOfMemory)?;
        Ok(Self { buckets: ZeroedArray::new(buckets)? })
    }

    #[inline]
    fn cell(&self, tag: Tag) -> Option<&Cell> {
        let number = (tag as u64 * self.buckets.len() as u64) >> 32;
        (self.buckets.len() > 0).then(|| self.buckets.get(number as usize))
    }

    #[inline]
    fn read(cell: &Cell) -> Bucket {
        // Relaxed: hints, see the module.
        Bucket([cell.0[0].load(Relaxed), cell.0[1].load(Relaxed)])
    }

    /// Remembers an evicted key.
    #[inline]
    pub fn remember(&self, tag: Tag) {
        let Some(cell) = self.cell(tag) else { return };
        let Bucket([young, old]) = Self::read(cell).push(fingerprint(tag));
        cell.0[0].store(young, Relaxed);
        cell.0[1].store(old, Relaxed);
    }

    /// Was the key evicted lately? Wrong for about one key in eight thousand.
    #[inline]
    pub fn knows(&self, tag: Tag) -> bool {
        self.cell(tag).is_some_and(|cell| Self::read(cell).contains(fingerprint(tag)))
    }
}
