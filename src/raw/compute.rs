//! Compute: what becomes of a key's entry is decided from its value, and holds only if that is still its value.
//!
//! What a look showed is proved to be unchanged by the very step that changes it:
//!
//! | seen | proof |
//! |---|---|
//! | a value, or one past its deadline | the header CAS that replaces or unlinks its slot. A slot has one value a life, and its index is not reused: under the pin of the look, or, where the decision takes an await, under a **lease** of the slot |
//! | nothing | the header CAS that makes a new slot a member, after a scan without the key |
//! | a load | its slot's state goes from PENDING with its flight to PENDING without one: it can't become a value any more. Then as a value |
//!
//! So nothing is lost between look and change: if the proof fails, the decision is made again. A lease is a bit
//! of the state word, set on READY and kept through EXPIRED; the drainer passes over a slot that has it. Whoever
//! has it may read the value without a pin.

use super::bin::{Commit, Tag};
use super::core::{Core, Publish};
use super::draft::Draft;
use super::flight::FlightId;
use super::reclaim::{self, Guard};
use super::slot::Slot;
use super::state::Phase;
use crate::op::{CompResult, Op};
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};

/// What a look at a key showed. Good as long as its guard is neither dropped nor let go of.
enum Seen<'g, K, V> {
    Value(u32, &'g Slot<K, V>),
    /// A value past its deadline.
    Stale(u32),
    /// A load under way, by the field of its slot.
    Loading(u32, u64),
    Nothing,
}

impl<'g, K, V> Seen<'g, K, V> {
    fn value(&self) -> Option<&'g V> {
        match self {
            // SAFETY: `look` read READY under the guard that 'g borrows.
            Self::Value(_, slot) => Some(unsafe { slot.value() }),
            _ => None,
        }
    }
}

/// A slot that is not reused until this is dropped.
pub struct Lease<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    core: &'a Arc<Core<K, V>>,
    index: u32,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Lease<'_, K, V> {
    fn slot(&self) -> &Slot<K, V> {
        // SAFETY: handed out.
        unsafe { self.core.slab.slot(self.index) }
    }

    /// The value that the slot had when it was leased, whatever became of the entry.
    pub fn value(&self) -> &V {
        // SAFETY: it was READY when it was leased, by an RMW that acquired it, and no drainer drops the cells of a
        // leased slot.
        unsafe { self.slot().value() }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Lease<'_, K, V> {
    fn drop(&mut self) {
        self.slot().state.give_back();
        let mut panics = FirstPanic::default();
        panics.catch(|| self.core.aside.crowd.wake_all());
        panics.resume_unless_panicking();
    }
}

/// What there is to lease.
pub enum Held<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    Value(Lease<'a, K, V>),
    /// Somebody has the lease.
    Leased,
    /// No value.
    Nothing,
}

/// What became of a change that was decided under a lease.
#[must_use]
pub enum Settled<V> {
    Stored,
    /// There is no place for the value: as if it had been evicted at once.
    Bypassed(V),
    /// The entry is another meanwhile: decide again.
    Moved,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    fn look<'g>(&'g self, guard: &'g Guard, tag: Tag, key: &K) -> Seen<'g, K, V>
    where
        K: Eq,
    {
        while let Some((index, slot)) = self.find(guard, tag, key) {
            let state = slot.state.load();
            match (state.phase(), state.flight()) {
                (Phase::Ready, _) if self.clock.is_expired(state) => return Seen::Stale(index),
                (Phase::Ready, _) => return Seen::Value(index, slot),
                (_, Some(flight)) => return Seen::Loading(index, flight),
                // The life ended after the look-up validated it: see `get`.
                _ => {}
            }
        }
        Seen::Nothing
    }

    /// The slot that was seen, whose load can't become a value any more. `Err`: it is another one by now.
    fn settle(&self, seen: &Seen<'_, K, V>) -> Result<Option<u32>, ()> {
        match *seen {
            Seen::Nothing => Ok(None),
            Seen::Value(index, _) | Seen::Stale(index) => Ok(Some(index)),
            Seen::Loading(index, flight) => {
                // SAFETY: a linked index.
                let slot = unsafe { self.slab.slot(index) };
                if slot.state.orphan(flight) { Ok(Some(index)) } else { Err(()) }
            }
        }
    }

    /// Publishes a draft in the place of a slot, or nowhere: `Occupied`.
    fn publish_over<'a>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        draft: Draft<'a, K, V>,
        old: u32,
    ) -> Publish<'a, K, V>
    where
        K: Eq,
    {
        if cfg!(alru_mutation = "blind_put") {
            return self.publish(guard, tag, draft, |_| true, || false);
        }
        loop {
            match self.index.replace(guard, tag, old, draft.index, || false) {
                Commit::Done => {
                    // Linked now: before anything else, the draft is no longer ours to withdraw.
                    draft.publish();
                    let last = self.end(guard, old);
                    if !self.is_entry(last) {
                        self.count(guard, Counter::Expirations);
                    }
                    return Publish::Done;
                }
                Commit::Full if !self.clear_group(guard, tag, Some(old)) => {
                    return Publish::Refused(draft);
                }
                Commit::Full => {}
                Commit::Gone | Commit::Exists | Commit::Frozen => return Publish::Occupied(draft),
            }
        }
    }

    /// Removes a slot and nothing else; false if it is not the entry any more.
    fn take_away(self: &Arc<Self>, guard: &Guard, tag: Tag, index: u32) -> bool {
        let Some(last) = self.unlink(guard, tag, index) else { return false };
        self.ledger.refund();
        if !self.is_entry(last) {
            self.count(guard, Counter::Expirations);
        }
        // As `remove` does.
        self.limbo.drain(&self.slab, guard.thread());
        true
    }

    /// Lets `decide` say what becomes of the entry, as often as it takes until nobody came in between.
    pub fn compute<E>(
        self: &Arc<Self>,
        tag: Tag,
        mut key: K,
        mut decide: impl FnMut(Option<&V>) -> Result<Op<V>, E>,
    ) -> Result<CompResult<V>, E>
    where
        K: Eq,
        V: Clone,
    {
        self.index.prefetch(tag);
        // A slot for the value, from an attempt that needed another pin to get one.
        let mut spare: Option<Draft<'_, K, V>> = None;
        let mut is_refused = self.capacity() == Some(0);
        loop {
            let mut guard = reclaim::pin();
            let seen = self.look(&guard, tag, &key);
            if let Seen::Value(_, slot) = seen {
                self.touch(slot);
            }
            let present = seen.value();
            let value = match decide(present)? {
                Op::Nop => {
                    return Ok(match present {
                        Some(value) => CompResult::Unchanged(value.clone()),
                        None => CompResult::StillNone,
                    });
                }
                Op::Remove => {
                    let old = present.cloned();
                    match self.settle(&seen) {
                        Ok(None) => {}
                        Ok(Some(index)) if self.take_away(&guard, tag, index) => {}
                        _ => continue,
                    }
                    self.detach_beside(tag);
                    return Ok(old.map_or(CompResult::StillNone, CompResult::Removed));
                }
                Op::Put(value) => value,
            };
            let mut draft = match spare.take() {
                Some(draft) => draft,
                None if is_refused => match self.bypass(&guard, tag, &seen) {
                    true => return Ok(CompResult::Bypassed(value)),
                    false => continue,
                },
                None => match self.draft_pinned(&guard) {
                    Some(draft) => draft,
                    None => {
                        // The next step lets go of the pin, and what was seen is good no longer.
                        spare = self.draft(&mut guard);
                        is_refused = spare.is_none();
                        continue;
                    }
                },
            };
            let copy = value.clone();
            draft.set_key(key);
            draft.begin_ready(tag, value, self.clock.new_deadline());
            let published = match self.settle(&seen) {
                Ok(None) => self.publish(&guard, tag, draft, |_| false, || false),
                Ok(Some(old)) => self.publish_over(&guard, tag, draft, old),
                Err(()) => Publish::Occupied(draft),
            };
            match published {
                Publish::Done => {
                    self.detach_beside(tag);
                    self.count(&guard, Counter::Insertions);
                    return Ok(match present {
                        Some(_) => CompResult::ReplacedWith(copy),
                        None => CompResult::Inserted(copy),
                    });
                }
                // What it was computed from is gone, and so is what was computed.
                Publish::Occupied(draft) => key = draft.into_key(),
                Publish::Refused(draft) => {
                    key = draft.into_key();
                    if self.bypass(&guard, tag, &seen) {
                        return Ok(CompResult::Bypassed(copy));
                    }
                }
            }
        }
    }

    /// A value found no place: takes away what it would have replaced. False if that is not there any more.
    fn bypass(self: &Arc<Self>, guard: &Guard, tag: Tag, seen: &Seen<'_, K, V>) -> bool {
        let is_over = match self.settle(seen) {
            Ok(None) => true,
            Ok(Some(index)) => self.take_away(guard, tag, index),
            Err(()) => false,
        };
        if is_over {
            self.detach_beside(tag);
            self.count(guard, Counter::Refused);
        }
        is_over
    }

    /// Leases the slot of the key's value.
    pub fn lease<'a>(self: &'a Arc<Self>, tag: Tag, key: &K) -> Held<'a, K, V>
    where
        K: Eq,
    {
        let guard = reclaim::pin();
        loop {
            let Seen::Value(index, slot) = self.look(&guard, tag, key) else {
                return Held::Nothing;
            };
            if slot.state.lease() {
                self.touch(slot);
                return Held::Value(Lease { core: self, index });
            }
            let state = slot.state.load();
            if state.is_ready() && state.is_leased() {
                return Held::Leased;
            }
        }
    }

    /// Puts a value in the place of the leased one.
    pub fn put_leased(
        self: &Arc<Self>,
        tag: Tag,
        key: K,
        lease: &Lease<'_, K, V>,
        value: V,
    ) -> Settled<V>
    where
        K: Eq,
    {
        let mut guard = reclaim::pin();
        let value = match self.draft(&mut guard) {
            None => value,
            Some(mut draft) => {
                draft.set_key(key);
                draft.begin_ready(tag, value, self.clock.new_deadline());
                match self.publish_over(&guard, tag, draft, lease.index) {
                    Publish::Done => {
                        self.detach_beside(tag);
                        self.count(&guard, Counter::Insertions);
                        return Settled::Stored;
                    }
                    Publish::Occupied(_) => return Settled::Moved,
                    Publish::Refused(draft) => draft.into_value(),
                }
            }
        };
        if !self.take_away(&guard, tag, lease.index) {
            return Settled::Moved;
        }
        self.detach_beside(tag);
        self.count(&guard, Counter::Refused);
        Settled::Bypassed(value)
    }

    /// Removes the leased entry; false if it is another meanwhile.
    pub fn remove_leased(self: &Arc<Self>, tag: Tag, lease: &Lease<'_, K, V>) -> bool {
        let guard = reclaim::pin();
        let removed = self.take_away(&guard, tag, lease.index);
        if removed {
            self.detach_beside(tag);
        }
        removed
    }

    /// Is a load, in which the caller has a seat, still what its key is to become?
    pub fn is_attached(&self, id: FlightId) -> bool {
        let (index, tag) = self.flights.entered(id).flight.slot();
        if index == super::aside::BESIDE {
            return self.aside.loads.load(tag).id() == id;
        }
        let _guard = reclaim::pin();
        // SAFETY: set from a slot that was handed out.
        unsafe { self.slab.slot(index) }.state.load().flight() == Some(id.field())
    }
}
