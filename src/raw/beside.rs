//! How loads come beside the table, and share there; the protocol is told in `aside.rs`.

use super::aside::{Berth, Berths, Purpose};
use super::bin::Tag;
use super::core::Core;
use super::flight::Drive;
use super::reclaim::Guard;
use super::seat::{Admission, Seat, Unpublished};
use crate::stats::Counter;
use crate::sync::Arc;

/// What is on the berth of a key.
pub(super) enum Beside<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    Nobody,
    /// The key's flight.
    Seat(Seat<'a, K, V>),
    /// Another key's, whose tag is the same as far as a berth can tell.
    Another,
    /// The key has an entry in the table.
    InTable,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    /// The loads' duty of whoever has just removed or written an entry: a load beside the table that began
    /// before is not found by who comes after.
    #[inline(always)]
    pub(super) fn detach_beside(&self, tag: Tag) {
        if self.aside.loads.is_any() && cfg!(not(alru_mutation = "no_detach")) {
            self.aside.loads.detach(tag);
        }
    }

    /// Berths that are taken, and flights that are counted, for models.
    #[cfg(alru_loom)]
    pub fn beside(&self) -> (usize, usize) {
        let taken = |berths: &Berths| (0..2).filter(|t| berths.load(*t) != Berth::FREE).count();
        (taken(&self.aside.loads) + taken(&self.aside.queues), self.aside.count())
    }

    /// Does a load beside the table have this tag? For who is about to begin one in the table, between its read
    /// of the header and its commit.
    #[inline]
    pub(super) fn is_beside(&self, tag: Tag) -> bool {
        self.aside.loads.is_any() && self.aside.loads.load(tag).is_of(tag)
    }

    /// Is there an entry, now that nobody can commit one without a look at the berths?
    fn is_in_table(&self, guard: &Guard, tag: Tag, key: &K) -> bool
    where
        K: Eq,
    {
        if cfg!(not(alru_mutation = "no_renewal")) {
            self.index.renew(guard, tag);
        }
        self.contains(guard, tag, key)
    }

    /// A seat in the load of the key beside the table.
    pub(super) fn join_beside<'a>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        key: &K,
    ) -> Beside<'a, K, V>
    where
        K: Eq,
    {
        let loads = &self.aside.loads;
        loop {
            let seen = loads.load(tag);
            if !seen.is_of(tag) {
                return Beside::Nobody;
            }
            if seen.is_tentative() {
                // In its owner's place, who may be asleep. (If the tentative one is another key's it is
                // confirmed unseen; then that key is not shared between the table and here.)
                if self.is_in_table(guard, tag, key) {
                    return Beside::InTable;
                }
                loads.change(tag, seen, seen.confirm());
                continue;
            }
            match self.sit(loads, tag, seen, key) {
                Some(found) => return found,
                None => continue,
            }
        }
    }

    /// Enters a berth's flight if it is the key's; None if the word has moved, or the flight is over.
    fn sit<'a>(
        self: &'a Arc<Self>,
        berths: &Berths,
        tag: Tag,
        seen: Berth,
        key: &K,
    ) -> Option<Beside<'a, K, V>>
    where
        K: Eq,
    {
        let id = seen.id();
        if self.flights.enter(id).is_none() {
            berths.change(tag, seen, Berth::FREE);
            return None;
        }
        let seat = Seat { core: self, id };
        if berths.load(tag) != seen {
            return None;
        }
        // SAFETY: entered, and the word is confirmed and was seen after that.
        let is_it = unsafe { self.aside.key(id) }.is_some_and(|k| k == key);
        Some(if is_it { Beside::Seat(seat) } else { Beside::Another })
    }

    /// Joins or begins the load of a key that found no slot. `Err`: the key is in the table meanwhile.
    pub(super) fn admit_beside<'a, 'g>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        mut key: K,
        drive: Drive,
    ) -> Result<Admission<'a, 'g, K, V>, K>
    where
        K: Eq,
    {
        let loads = &self.aside.loads;
        loop {
            match self.join_beside(guard, tag, &key) {
                Beside::Seat(seat) => return Ok(Admission::Join(seat, key)),
                Beside::InTable => return Err(key),
                Beside::Another => return Ok(Admission::Refused(key)),
                Beside::Nobody => {}
            }
            let seen = loads.load(tag);
            if seen.is_of(tag) {
                continue;
            }
            if seen != Berth::FREE && self.flights.is_open(seen.id()) {
                return Ok(Admission::Refused(key));
            }
            let Ok(entered) = self.flights.begin(drive) else {
                return Ok(Admission::Refused(key));
            };
            let seat = Unpublished(Some(Seat { core: self, id: entered.id }));
            // SAFETY: begun here, and not shown yet.
            match unsafe { self.aside.board(Purpose::Load, tag, entered, key) } {
                Ok(()) => {}
                Err(key) => return Ok(Admission::Refused(key)),
            }
            let mine = Berth::tentative(tag, entered.id);
            if !loads.change(tag, seen, mine) {
                // SAFETY: begun here, and never shown.
                key = unsafe { self.aside.disembark(entered) }.expect("boarded");
                continue;
            }
            // SAFETY: boarded here, and this thread has a seat.
            let own = unsafe { self.aside.key(entered.id) }.expect("boarded");
            if self.is_in_table(guard, tag, own) && loads.change(tag, mine, Berth::FREE) {
                // SAFETY: begun here, and its tentative word taken back by this thread.
                return Err(unsafe { self.aside.disembark(entered) }.expect("boarded"));
            }
            // If that fails somebody else confirmed it, or detached it: it leads in any case.
            loads.change(tag, mine, mine.confirm());
            self.count(guard, Counter::Loads);
            return Ok(Admission::Lead(seat.published()));
        }
    }

    /// A seat in the queue of the key's async computes; the flag says that it is a new one, with the turn held.
    /// None if the berth is another key's, or there is no memory.
    pub fn queue_up<'a>(self: &'a Arc<Self>, tag: Tag, key: &K) -> Option<(Seat<'a, K, V>, bool)>
    where
        K: Clone + Eq,
    {
        let queues = &self.aside.queues;
        loop {
            let seen = queues.load(tag);
            if seen.is_of(tag) {
                match self.sit(queues, tag, seen, key) {
                    Some(Beside::Seat(seat)) => return Some((seat, false)),
                    Some(_) => return None,
                    None => continue,
                }
            }
            if seen != Berth::FREE && self.flights.is_open(seen.id()) {
                return None;
            }
            let copy = key.clone();
            let entered = self.flights.begin(Drive::Queue).ok()?;
            let seat = Unpublished(Some(Seat { core: self, id: entered.id }));
            // SAFETY: begun here, and not shown yet.
            unsafe { self.aside.board(Purpose::Queue, tag, entered, copy) }.ok()?;
            if queues.change(tag, seen, Berth::confirmed(tag, entered.id)) {
                return Some((seat.published(), true));
            }
        }
    }
}
