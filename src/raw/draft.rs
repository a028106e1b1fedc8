//! What is not published yet: a draft of an entry and its charge, undone when dropped.

use super::bin::Tag;
use super::core::Core;
use super::flight::FlightId;
use super::hands::Hands;
use super::slot::Slot;
use super::state::{Filing, Residence, Snapshot};
use super::weight::Ledger;

/// A charged entry that is not published yet; refunded when dropped.
pub(super) struct Charge<'a>(pub(super) &'a Ledger);

impl Charge<'_> {
    /// The charge goes over to a published entry.
    pub(super) fn hand_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.0.refund();
    }
}

/// A slot of one's own, with a key and perhaps a value, not yet published; withdrawn when dropped.
pub(super) struct Draft<'a, K, V> {
    pub(super) core: &'a Core<K, V>,
    pub(super) index: u32,
    pub(super) stripe: usize,
    pub(super) has_key: bool,
}

impl<K, V> Draft<'_, K, V> {
    fn slot(&self) -> &Slot<K, V> {
        // SAFETY: allocated from the slab.
        unsafe { self.core.slab.slot(self.index) }
    }

    pub(super) fn set_key(&mut self, key: K) {
        debug_assert!(!self.has_key);
        // SAFETY: the slot is ours, EMPTY, without a key.
        unsafe { self.slot().write_key(key) };
        self.has_key = true;
    }

    pub(super) fn key(&self) -> &K {
        debug_assert!(self.has_key);
        // SAFETY: written by `set_key`, and only this draft can take it out again.
        unsafe { self.slot().key() }
    }

    pub(super) fn begin_pending(&self, tag: Tag, flight: FlightId) {
        let residence = self.core.residence(tag);
        self.begin(tag, residence, |s| s.state.begin_pending(flight.field(), residence));
    }

    #[inline(always)]
    pub(super) fn begin_ready(&self, tag: Tag, value: V, deadline: u64) -> Filing {
        let residence = self.core.residence(tag);
        // SAFETY: the slot is ours, EMPTY, without a value.
        unsafe { self.slot().write_value(value) };
        self.begin(tag, residence, |s| s.state.begin_ready(deadline, residence))
    }

    #[inline(always)]
    fn begin<R>(&self, tag: Tag, residence: Residence, begin: impl FnOnce(&Slot<K, V>) -> R) -> R {
        let slot = self.slot();
        slot.set_tag(tag);
        slot.set_refs(self.core.hands.as_ref().map_or(0, Hands::first_refs));
        let begun = begin(slot);
        self.core.ledger.settle(residence);
        if residence == Residence::Probation {
            if let Some(hands) = &self.core.hands {
                hands.show(self.index);
            }
        }
        begun
    }

    /// The slot is linked now, and belongs to the index.
    pub(super) fn publish(self) {
        std::mem::forget(self);
    }

    /// Takes the key out of a draft that came to nothing.
    pub(super) fn into_key(mut self) -> K {
        debug_assert!(self.has_key);
        self.has_key = false;
        // SAFETY: ours, and `has_key` is false now, so nobody uses it again.
        unsafe { self.slot().take_key() }
    }
}

impl<K, V> Draft<'_, K, V> {
    /// Takes the value out of a draft that came to nothing.
    pub(super) fn into_value(self) -> V {
        let last = self.withdraw();
        debug_assert!(last.has_value());
        // SAFETY: ours and initialised; the state says no longer that it is, so nobody uses it again.
        unsafe { self.slot().take_value() }
    }

    /// Ends the life, whose last word it answers.
    fn withdraw(&self) -> Snapshot {
        // A hand may have promoted what it took for an entry: the last word says where it was.
        let last = self.slot().state.withdraw();
        if last.is_live() {
            self.core.ledger.vacate(last.residence());
        }
        last
    }
}

impl<K, V> Drop for Draft<'_, K, V> {
    fn drop(&mut self) {
        let last = self.withdraw();
        let slot = self.slot();
        // SAFETY: never published, so ours; VALUE says that the value is initialised.
        let value = last.has_value().then(|| unsafe { slot.take_value() });
        // SAFETY: as above.
        let key = self.has_key.then(|| unsafe { slot.take_key() });
        self.core.limbo.free(&self.core.slab, self.stripe, self.index);
        // User destructors last, with nothing held.
        drop(value);
        drop(key);
    }
}
