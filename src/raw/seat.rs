//! Seats: how loads come into flights and leave them.

use super::aside::BESIDE;
use super::beside::Beside;
use super::bin::{FIRST_INDEX, Tag};
use super::core::{Core, Publish};
use super::flight::{Drive, Entered, FlightId, Left};
use super::reclaim::{self, Guard};
use super::slot::Slot;
use super::state::Completion;
use crate::stats::Counter;
use crate::sync::Arc;

/// What a load is to do.
pub enum Admission<'a, 'g, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    /// The value is there.
    Hit(&'g Slot<K, V>),
    /// A load is under way; the caller has a seat in it, and its key back.
    Join(Seat<'a, K, V>, K),
    /// The caller's load is the one; it has a seat and the turn.
    Lead(Seat<'a, K, V>),
    /// No place for an entry, nor beside the table: load for oneself. The key comes back.
    Refused(K),
}

/// A seat in a flight. Leaves when dropped, and ends the flight if it is the last.
pub struct Seat<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    pub(super) core: &'a Arc<Core<K, V>>,
    pub(super) id: FlightId,
}

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Seat<'a, K, V> {
    /// The flight.
    pub fn entered(&self) -> Entered<'a, V> {
        self.core.flights.entered(self.id)
    }

    /// The id, for a future that keeps the seat across polls; `Core::resume_seat` undoes it.
    pub fn park(self) -> FlightId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let entered = self.entered();
        let left = self.core.flights.leave(entered);
        if left == Left::LastOpen {
            self.core.end_flight(self.id);
        }
        if left != Left::Others {
            // SAFETY: this seat was the last, and leaves once.
            let key = unsafe { self.core.aside.disembark(entered) };
            // SAFETY: as above.
            let remains = unsafe { self.core.flights.recycle(entered) };
            // User destructors last, with nothing held.
            drop(key);
            drop(remains);
        }
    }
}

/// The seat of a flight that has begun, and whose slot is not published. A closer may have entered it
/// already, so a flight that comes to nothing is closed before it is left.
pub(super) struct Unpublished<'a, K: Send + Sync + 'static, V: Send + Sync + 'static>(
    pub(super) Option<Seat<'a, K, V>>,
);

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Unpublished<'a, K, V> {
    pub(super) fn published(mut self) -> Seat<'a, K, V> {
        self.0.take().expect("taken once")
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Unpublished<'_, K, V> {
    fn drop(&mut self) {
        if let Some(seat) = self.0.take() {
            let flight = seat.entered().flight;
            flight.abort();
            flight.waiters.wake_all();
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    /// Finds the value, a seat in the load under way, or the lead of a new load. Never waits.
    pub fn admit<'a, 'g>(
        self: &'a Arc<Self>,
        guard: &'g mut Guard,
        tag: Tag,
        key: K,
        drive: Drive,
    ) -> Admission<'a, 'g, K, V>
    where
        K: Eq,
        'a: 'g,
    {
        if self.capacity() == Some(0) {
            self.count(guard, Counter::Refused);
            return Admission::Refused(key);
        }
        let mut key = key;
        // Is a load of this tag beside the table to be looked for?
        let mut look_beside = true;
        loop {
            if let Some((index, slot)) = self.find(&*guard, tag, &key) {
                let state = slot.state.load();
                if state.is_ready() && !self.clock.is_expired(state) {
                    let slot: *const Slot<K, V> = slot;
                    // SAFETY: the same borrow once more: a conditional return of a reborrow is beyond the
                    // borrow checker. The guard stays pinned for 'g, as nobody has it but the caller.
                    return Admission::Hit(unsafe { &*slot });
                }
                if let Some(field) = state.flight() {
                    let id = FlightId::from_field(field);
                    let seat = self.flights.enter(id).map(|_| Seat { core: self, id });
                    if slot.state.load().flight() == Some(field) {
                        match seat {
                            Some(seat) => return Admission::Join(seat, key),
                            // Closed, and yet pending: READY comes before CLOSED, so it ended without
                            // a result. Whoever ends it may be asleep; do it for him.
                            None => {
                                if self.unlink(guard, tag, index).is_some() {
                                    self.ledger.refund();
                                }
                            }
                        }
                    }
                    continue;
                }
            }
            if look_beside && self.is_beside(tag) {
                match self.join_beside(guard, tag, &key) {
                    Beside::Seat(seat) => return Admission::Join(seat, key),
                    Beside::InTable => continue,
                    Beside::Another => look_beside = false,
                    Beside::Nobody => {}
                }
            }
            let begun = match self.draft(guard) {
                Some(draft) => self.flights.begin(drive).ok().map(|entered| (draft, entered)),
                None => None,
            };
            let Some((mut draft, entered)) = begun else {
                match self.refuse(guard, tag, key, drive) {
                    Ok(admission) => return admission,
                    Err(back) => key = back,
                }
                continue;
            };
            entered.flight.set_slot(draft.index, tag);
            let seat = Unpublished(Some(Seat { core: self, id: entered.id }));
            draft.set_key(key);
            draft.begin_pending(tag, entered.id);
            let is_beside = || look_beside && self.is_beside(tag);
            match self.publish(guard, tag, draft, |s| !self.is_entry(s), is_beside) {
                Publish::Done => {
                    self.count(guard, Counter::Loads);
                    return Admission::Lead(seat.published());
                }
                Publish::Occupied(draft) => key = draft.into_key(),
                Publish::Refused(draft) => {
                    key = draft.into_key();
                    drop(seat);
                    match self.refuse(guard, tag, key, drive) {
                        Ok(admission) => return admission,
                        Err(back) => key = back,
                    }
                }
            }
        }
    }

    /// A load that found no slot; counted if it is one more. `Err`: start over.
    #[cold]
    fn refuse<'a, 'g>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        key: K,
        drive: Drive,
    ) -> Result<Admission<'a, 'g, K, V>, K>
    where
        K: Eq,
    {
        let admission = self.admit_beside(guard, tag, key, drive)?;
        if !matches!(admission, Admission::Join(..)) {
            self.count(guard, Counter::Refused);
        }
        Ok(admission)
    }

    /// The seat that was parked with this id.
    ///
    /// # Safety
    /// `id` came from [`Seat::park`] of a seat of this core, and is resumed once.
    pub unsafe fn resume_seat<'a>(self: &'a Arc<Self>, id: FlightId) -> Seat<'a, K, V> {
        Seat { core: self, id }
    }

    /// Stores a load's result in the slot that it began with, if that is still pending on it. `copy` makes
    /// the cache's own copy of the value: user code, run at most once, while nothing is half done.
    ///
    /// The caller holds the flight's turn.
    pub fn complete(
        self: &Arc<Self>,
        entered: Entered<'_, V>,
        copy: impl FnOnce() -> V,
    ) -> Completion {
        let (index, _) = entered.flight.slot();
        if index < FIRST_INDEX {
            // A flight without a slot: see `lone`.
            return Completion::Detached;
        }
        let field = entered.id.field();
        let guard = reclaim::pin();
        // SAFETY: set from a slot that was handed out.
        let slot = unsafe { self.slab.slot(index) };
        if slot.state.load().flight() != Some(field) {
            return Completion::Detached;
        }
        let value = copy();
        let term = self.clock.new_term();
        // SAFETY: PENDING with this flight was read under this pin: the slot's life is the flight's, and
        // the slot is not recycled before the unpin. Only the holder of the turn writes the value cell,
        // and it has not yet: its life had no value.
        unsafe { slot.write_value(value) };
        match slot.state.complete(field, term.deadline) {
            Some(filing) => {
                self.file(filing, guard.thread(), index, term);
                self.count(&guard, Counter::Insertions);
                self.sweep_share(&guard, term.tick);
                Completion::Stored
            }
            None => {
                // SAFETY: the life ended without VALUE, so the drainer leaves the cell alone, and the
                // slot is not reused under this pin: the value is still ours.
                let value = unsafe { slot.take_value() };
                drop(guard);
                drop(value);
                Completion::Detached
            }
        }
    }

    /// The key of a flight's slot that the caller published under this guard, or of a flight beside the table
    /// that it began and has a seat in.
    pub fn key_of<'g>(&'g self, _guard: &'g Guard, entered: Entered<'_, V>) -> &'g K {
        let (index, _) = entered.flight.slot();
        if index == BESIDE {
            // SAFETY: boarded by the caller, which has not left.
            return unsafe { self.aside.key(entered.id) }.expect("boarded");
        }
        // SAFETY: set from a slot that was handed out; it was linked under this guard, so the key stays.
        unsafe { self.slab.slot(index).key() }
    }

    /// Takes a flight without a result out of the cache. True if it was there: its slot was still pending on it.
    pub fn end_flight(self: &Arc<Self>, id: FlightId) -> bool {
        let (index, tag) = self.flights.entered(id).flight.slot();
        if index < FIRST_INDEX {
            self.aside.unmoor(self.flights.entered(id));
            return false;
        }
        let guard = reclaim::pin();
        // SAFETY: set from a slot that was handed out.
        let slot = unsafe { self.slab.slot(index) };
        // The id is not reused before the caller recycles the flight, so PENDING with it is its own slot,
        // and stays that slot while this thread is pinned.
        let is_there = slot.state.load().flight() == Some(id.field())
            && self.unlink(&guard, tag, index).is_some();
        if is_there {
            self.ledger.refund();
        }
        is_there
    }

    /// A flight without a slot, for a load that found no place: nobody joins it but a closer. None if there are
    /// no more flights.
    pub fn lone<'a>(self: &'a Arc<Self>, drive: Drive) -> Option<Seat<'a, K, V>> {
        let entered = self.flights.begin(drive).ok()?;
        entered.flight.set_slot(0, 0);
        Some(Seat { core: self, id: entered.id })
    }
}
