//! Hazards: how a plain `get` protects the one slot that it reads, without a pin.
//!
//! Each thread with an id has one cell, which names the slot that it is reading. Reader and reclaimer shake hands:
//! ```text
//!   reader                               reclaimer (a writer that seals a batch of unlinked slots)
//!   header, tag, slot index              unlink: header CAS, for each slot of the batch
//!   cell := slot
//!   light barrier                        heavy barrier
//!   header again: still the same?        which slots of the batch do cells name? mark them
//! ```
//! Either the reclaimer sees the cell, and the slot is marked as held; or the reader sees a header that moved on,
//! and does not touch the slot. So after the scan an unmarked slot of the batch is read by nobody without a pin.
//! (Michael's hazard pointers, 2004, with the reader's fence moved to the other side, as in Dice, Herlihy and
//! Kogan, *Fast non-intrusive memory reclamation for highly-concurrent data structures*, 2016.) The batch then
//! waits for a grace period as well, for those who are pinned. A held slot is retired once more when it is
//! drained: a reader that stops holds up one slot.
//!
//! One cell a thread: a look-up within a look-up (a key's `Eq` or a value's `Clone` that calls a cache) finds it
//! in use and pins. So do threads beyond the ids, and look-ups whose bin is changing. The cells are the
//! process's, for all caches.
//!
//! Only in caches whose index never grows: a table that is replaced is freed after a grace period, for which one
//! has to be pinned.

use super::barrier;
use super::reclaim;
use super::slab::Slab;
use super::state::Phase;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, Ordering::*};
use crossbeam_utils::CachePadded;
use std::ptr::null_mut;

/// A thread's cell: the slot that it reads, null between look-ups. Written by its thread alone.
struct Cell {
    slot: AtomicPtr<()>,
    /// The thread's id, for its counters.
    thread: AtomicUsize,
}

#[cfg(not(alru_loom))]
fn cells() -> &'static [CachePadded<Cell>] {
    static CELLS: [CachePadded<Cell>; reclaim::THREADS] = [const {
        CachePadded::new(Cell { slot: AtomicPtr::new(null_mut()), thread: AtomicUsize::new(0) })
    }; reclaim::THREADS];
    &CELLS
}

#[cfg(alru_loom)]
fn cells() -> &'static [CachePadded<Cell>] {
    loom::lazy_static! {
        static ref CELLS: Vec<CachePadded<Cell>> = (0..3)
            .map(|_| {
                let (slot, thread) = (AtomicPtr::new(null_mut()), AtomicUsize::new(0));
                CachePadded::new(Cell { slot, thread })
            })
            .collect();
    }
    &CELLS
}

#[cfg(not(alru_loom))]
std::thread_local! {
    /// This thread's cell, while it has an id. Without a destructor, so that a look is a load.
    static MINE: std::cell::Cell<Option<&'static Cell>> = const { std::cell::Cell::new(None) };
}
#[cfg(alru_loom)]
crate::sync::thread_local! {
    static MINE: std::cell::Cell<Option<&'static Cell>> = std::cell::Cell::new(None);
}

/// What names a slot: the barrier orders it before the load of the header. (A scan that reads a cell of an earlier
/// look-up holds that one's slot once more.) Release: pairs with the acquire in `hold_what_is_read`, as in
/// `Shield::drop`, whose null it may hide from the scan: the reader, or its id's former thread, is done with the
/// slots before. aarch64 has this from the store of null (a store is not seen before an earlier one to the same place,
/// nor that before what it releases), and a release here would hold up the load of the header.
const PROTECT: Ordering =
    if cfg!(any(all(target_arch = "aarch64", not(alru_loom)), alru_mutation = "relaxed_protect")) {
        Relaxed
    } else {
        Release
    };

/// The thread gives its id back.
pub fn leave() {
    let _ = MINE.try_with(|mine| mine.set(None));
}

/// The right to protect one slot at a time, without a pin. Lets go of it when dropped.
pub struct Shield {
    /// This thread's: not `Send`, as a pointer.
    cell: *const Cell,
}

impl Shield {
    /// None if the thread is using its shield, or has none so far: see [`Shield::prepare`].
    #[inline(always)]
    pub fn raise() -> Option<Self> {
        let cell = MINE.try_with(std::cell::Cell::get).ok()??;
        // Relaxed: this thread is the only one to write it.
        if !cell.slot.load(Relaxed).is_null() {
            return None;
        }
        Some(Self { cell })
    }

    /// Gives the thread its shield, if it has an id and no shield yet: true if it did.
    pub fn prepare() -> bool {
        let prepared = MINE.try_with(|mine| {
            let is_first = mine.get().is_none();
            if is_first {
                mine.set(first_cell());
            }
            is_first && mine.get().is_some()
        });
        prepared.unwrap_or(false)
    }

    #[inline(always)]
    fn cell(&self) -> &'static Cell {
        // SAFETY: from a reference to a static.
        unsafe { &*self.cell }
    }

    /// The thread's id, for its counters.
    #[inline(always)]
    pub fn thread(&self) -> usize {
        // Relaxed: written by this thread.
        self.cell().thread.load(Relaxed)
    }

    /// Protects `slot`, if it turns out to be linked by a header that is loaded after this.
    #[inline(always)]
    pub fn protect<T>(&self, slot: *const T) {
        self.cell().slot.store(slot.cast_mut().cast(), PROTECT);
        // Pairs with the heavy barrier in `hold_what_is_read`.
        barrier::light();
    }
}

#[cold]
#[inline(never)]
fn first_cell() -> Option<&'static Cell> {
    let thread = reclaim::thread_id()?;
    let cell = &**cells().get(thread)?;
    cell.thread.store(thread, Relaxed);
    Some(cell)
}

impl Drop for Shield {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: pairs with the acquire in `hold_what_is_read`: the reader is done with the slot before it may
        // be drained.
        let release = if cfg!(alru_mutation = "relaxed_lower") { Relaxed } else { Release };
        self.cell().slot.store(null_mut(), release);
    }
}

/// Marks the expired slots of a slab that are being read without a pin. All that were unlinked by then and are not
/// marked are not read that way, and never will be. False if nothing can be said.
#[must_use]
pub fn hold_what_is_read<K, V>(slab: &Slab<K, V>) -> bool {
    // Pairs with the light barrier in `Shield::protect`: there, cell then header; here, header then cell.
    if !barrier::heavy() {
        return false;
    }
    let cells = cells();
    for cell in &cells[..reclaim::most_threads().min(cells.len())] {
        // Acquire: pairs with the releases in `Shield`.
        let Some(slot) = slab.slot_at(cell.slot.load(Acquire).cast()) else { continue };
        // A linked one is none of ours: what the caller unlinked has expired.
        if slot.state.load().phase() == Phase::Expired && cfg!(not(alru_mutation = "no_hold")) {
            slot.hold();
        }
    }
    true
}
