//! A slot: where an entry lives. State word, tag, reference counter, key and value, the hot part in front.
//!
//! | field | written by | when |
//! |---|---|---|
//! | `state` | anybody | transitions of `state.rs` only |
//! | `link`  | owner | the tag while a life may be seen; a list link while retired, ripe or free |
//! | `refs`  | readers, hands | the reference counter, a hint: a lost update moves an eviction, nothing else |
//! | `held`  | sealer of a batch; drainer | somebody reads the slot without a pin (`hazard.rs`): not to be drained yet |
//! | `key`   | allocator before the life; drainer after the grace period | |
//! | `value` | allocator or the flight's leader before READY; drainer after the grace period | |
//!
//! `link` serves two: a hand may read a link instead of a tag when the slot's life ends under it. Its
//! attempt to unlink then looks into a wrong bin, where no valid word names this slot, because the hand is
//! pinned and the index is not reused: it finds nothing.

use super::bin::Tag;
use super::mem::Blank;
use super::state::State;
use crate::policy::clock;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::*};
use std::mem::MaybeUninit;

/// A stable place for one entry at a time.
#[repr(C)]
pub struct Slot<K, V> {
    pub state: State,
    link: AtomicU32,
    refs: AtomicU8,
    held: AtomicBool,
    key: UnsafeCell<MaybeUninit<K>>,
    value: UnsafeCell<MaybeUninit<V>>,
}

// SAFETY: zero is EMPTY with no link and no references; key and value are uninitialised memory, for which
// any bytes are valid.
unsafe impl<K, V> Blank for Slot<K, V> {
    /// The hot part never straddles a cache line.
    const STRIDE: usize = {
        let size = size_of::<Self>();
        let padded = if size <= 64 { size.next_power_of_two() } else { size.next_multiple_of(32) };
        padded.next_multiple_of(align_of::<Self>())
    };

    fn blank() -> Self {
        Self {
            state: State::new(),
            link: AtomicU32::new(0),
            refs: AtomicU8::new(0),
            held: AtomicBool::new(false),
            key: UnsafeCell::new(MaybeUninit::uninit()),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }
}

// SAFETY: a slot is reached by many threads, which read keys and values by reference (Sync) and drop them
// on whichever thread drains (Send). The protocol in state.rs keeps writes exclusive.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Slot<K, V> {}
// SAFETY: as above.
unsafe impl<K: Send, V: Send> Send for Slot<K, V> {}

impl<K, V> Slot<K, V> {
    /// The tag of the life; garbage once it is over (see the module).
    pub fn tag(&self) -> Tag {
        // Relaxed: written before the life was published by the header CAS, which the caller has seen, or
        // a hint that the header decides about.
        self.link.load(Relaxed)
    }

    pub fn set_tag(&self, tag: Tag) {
        self.link.store(tag, Relaxed);
    }

    /// The next slot of the list that this slot is on.
    pub fn next(&self) -> u32 {
        // Relaxed: the list's head carries the ordering.
        self.link.load(Relaxed)
    }

    pub fn set_next(&self, next: u32) {
        self.link.store(next, Relaxed);
    }

    /// A hit: raises the reference counter, which saturates. A saturated hit writes nothing.
    #[inline(always)]
    pub fn touch(&self) {
        // Relaxed load and store: a lost update is a hint lost; an RMW would cost a hot entry its scaling.
        let refs = self.refs.load(Relaxed);
        if refs < clock::MAX_REFS {
            self.refs.store(refs + 1, Relaxed);
        }
    }

    /// References since the hand's last visit.
    pub fn refs(&self) -> u8 {
        self.refs.load(Relaxed)
    }

    pub fn set_refs(&self, refs: u8) {
        self.refs.store(refs, Relaxed);
    }

    /// Keeps the drainer away once.
    pub fn hold(&self) {
        // Relaxed: the slot is on its way to the drainer, in a batch that carries the ordering.
        self.held.store(true, Relaxed);
    }

    /// Was the slot held? It is not any more.
    #[inline]
    pub fn let_go(&self) -> bool {
        // Relaxed: the drainer has the slot alone, or another scan marks a slot that it does not seal, which then
        // makes one more round.
        let held = self.held.load(Relaxed);
        if held {
            self.held.store(false, Relaxed);
        }
        held
    }

    /// # Safety
    /// The caller owns the slot (state EMPTY and private), whose cells are uninitialised.
    pub unsafe fn write_key(&self, key: K) {
        // SAFETY: exclusive by the caller's promise.
        self.key.with_mut(|k| unsafe { (*k).write(key) });
    }

    /// # Safety
    /// The caller has exclusive use of the value cell (owner before the life, or the flight's leader while
    /// PENDING with that flight and pinned), and it is uninitialised.
    pub unsafe fn write_value(&self, value: V) {
        // SAFETY: exclusive by the caller's promise.
        self.value.with_mut(|v| unsafe { (*v).write(value) });
    }

    /// # Safety
    /// The caller is pinned, and found the slot linked or owns it: the key is initialised and stays so
    /// for the borrow.
    #[inline(always)]
    pub unsafe fn key(&self) -> &K {
        // SAFETY: initialised before the life was published; dropped only after a grace period.
        self.key.with(|k| unsafe { (*k).assume_init_ref() })
    }

    /// # Safety
    /// The caller is pinned and has read READY from the state word under this pin.
    #[inline(always)]
    pub unsafe fn value(&self) -> &V {
        // SAFETY: written before READY was released; dropped only after a grace period.
        self.value.with(|v| unsafe { (*v).assume_init_ref() })
    }

    /// # Safety
    /// The caller has exclusive use of the initialised key, and nobody uses it afterwards.
    pub unsafe fn take_key(&self) -> K {
        // SAFETY: exclusive and initialised by the caller's promise.
        self.key.with_mut(|k| unsafe { (*k).assume_init_read() })
    }

    /// # Safety
    /// The caller has exclusive use of the initialised value, and nobody uses it afterwards.
    pub unsafe fn take_value(&self) -> V {
        // SAFETY: exclusive and initialised by the caller's promise.
        self.value.with_mut(|v| unsafe { (*v).assume_init_read() })
    }

    /// # Safety
    /// As for `take_key`.
    pub unsafe fn drop_key(&self) {
        // SAFETY: exclusive and initialised by the caller's promise.
        self.key.with_mut(|k| unsafe { (*k).assume_init_drop() });
    }

    /// # Safety
    /// As for `take_value`.
    pub unsafe fn drop_value(&self) {
        // SAFETY: exclusive and initialised by the caller's promise.
        self.value.with_mut(|v| unsafe { (*v).assume_init_drop() });
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    #[test]
    fn small_slots_divide_a_line() {
        assert_eq!(Slot::<u64, u64>::STRIDE, 32);
        assert_eq!(Slot::<String, std::sync::Arc<[u8]>>::STRIDE, 64);
        assert_eq!(Slot::<u64, [u64; 16]>::STRIDE % 32, 0);
    }
}
