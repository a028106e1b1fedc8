//! Look-ups: the usual one, without a pin behind a shield or under a pin, and the proper one for the rest.

use super::bin::{Glance, Tag};
use super::core::Core;
use super::hazard::Shield;
use super::reclaim::{self, Guard};
use super::slot::Slot;
use super::state::Snapshot;
use super::table::Steady;
use crate::stats::Counter;
use std::borrow::Borrow;

/// What a look-up without a pin showed.
enum Look<'a, K, V> {
    /// The slot of a value that has no deadline.
    Hit(&'a Slot<K, V>),
    /// The slot of the key, which wants a closer look.
    Found(&'a Slot<K, V>),
    Miss,
    /// Look properly.
    Unsure,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    #[inline(always)]
    pub(super) fn find<'g, Q>(
        &'g self,
        guard: &'g Guard,
        tag: Tag,
        key: &Q,
    ) -> Option<(u32, &'g Slot<K, V>)>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        match self.index.glance(guard, tag) {
            Glance::Candidate(index) => {
                // SAFETY: a member of the index when the header was validated, under this pin.
                let slot = unsafe { self.slab.slot(index) };
                // SAFETY: as above: it was linked, so its key is there.
                if unsafe { slot.key() }.borrow() == key {
                    return Some((index, slot));
                }
            }
            Glance::Absent => return None,
            Glance::Unsure => {}
        }
        self.find_slow(guard, tag, key)
    }

    #[cold]
    fn find_slow<'g, Q>(
        &'g self,
        guard: &'g Guard,
        tag: Tag,
        key: &Q,
    ) -> Option<(u32, &'g Slot<K, V>)>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        // SAFETY: the index holds indices that were handed out; a scan validates each before it compares,
        // so the slot was linked while this thread is pinned, and its key is there.
        let is_key = |i| unsafe { self.slab.slot(i).key() }.borrow() == key;
        let index = self.index.find(guard, tag, is_key)?;
        // SAFETY: as above.
        Some((index, unsafe { self.slab.slot(index) }))
    }

    /// The slot of a live value.
    #[inline(always)]
    pub fn get<'g, Q>(&'g self, _guard: &'g Guard, tag: Tag, key: &Q) -> Option<&'g Slot<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        match self.index.steady().map(|bins| bins.glance(tag, |_| {})) {
            Some(Glance::Candidate(index)) => {
                // SAFETY: the slab of a steady index is bounded, and has every slot that a word can name.
                let slot = unsafe { self.slab.bounded_slot(index) };
                // SAFETY: a member of the index when the header was validated, under this pin.
                let is_it = unsafe { slot.key() }.borrow() == key;
                if is_it {
                    let state = slot.state.load();
                    if state.is_ready_for_ever() {
                        return Some(slot);
                    }
                    if state.is_ready() && !self.clock.is_expired(state) {
                        return Some(slot);
                    }
                    // Over: `get_slow` looks again.
                    if !state.is_live() && cfg!(alru_mutation = "no_second_look") {
                        return None;
                    }
                }
            }
            Some(Glance::Absent) => return None,
            Some(Glance::Unsure) | None => {}
        }
        // Not the guard itself: its address would leave the caller's frame, and a loop of look-ups keeps what it
        // can in registers.
        let slot = self.get_slow(tag, key)?;
        // SAFETY: read under a pin within the guard's, so it stays as long as the guard.
        Some(unsafe { &*slot })
    }

    #[inline(never)]
    fn get_slow<Q>(&self, tag: Tag, key: &Q) -> Option<*const Slot<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let guard = reclaim::pin();
        loop {
            let (_, slot) = self.find(&guard, tag, key)?;
            let state = slot.state.load();
            if state.is_ready() {
                return (!self.clock.is_expired(state)).then_some(std::ptr::from_ref(slot));
            }
            if state.is_live() || cfg!(alru_mutation = "no_second_look") {
                return None;
            }
            // The life ended after the look-up validated it. If that was a replacement the key is there,
            // in another slot; every such round is somebody's progress.
        }
    }

    /// A whole look-up: counts a hit and gives the entry its reference, clones the value out. Counts a miss if it is
    /// to. (What is not the usual case is a tail call, so that the usual one saves no registers.)
    #[inline(always)]
    pub fn read<const COUNTS_MISSES: bool, Q>(&self, tag: Tag, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
        V: Clone,
    {
        if let Some(bins) = self.index.shielded() {
            if let Some(shield) = Shield::raise() {
                match self.look_unpinned(bins, &shield, tag, key) {
                    Look::Hit(slot) => return Some(self.hit(&shield, slot)),
                    Look::Found(slot) => {
                        return self.read_found::<COUNTS_MISSES, Q>(shield, slot, tag, key);
                    }
                    Look::Miss => {
                        if COUNTS_MISSES {
                            self.count_for(shield.thread(), Counter::Misses);
                        }
                        return None;
                    }
                    Look::Unsure => {}
                }
            }
        }
        self.read_slow::<COUNTS_MISSES, Q>(tag, key)
    }

    /// The look-up without a pin alone, for models: None if it cannot tell.
    #[cfg(alru_loom)]
    pub fn read_shielded<Q>(&self, tag: Tag, key: &Q) -> Option<Option<V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
        V: Clone,
    {
        let bins = self.index.shielded().expect("the model says that there is a barrier");
        Shield::prepare();
        let shield = Shield::raise().expect("a thread of a model has one");
        match self.look_unpinned(bins, &shield, tag, key) {
            Look::Hit(slot) => Some(Some(self.hit(&shield, slot))),
            Look::Miss => Some(None),
            Look::Found(_) | Look::Unsure => None,
        }
    }

    /// The usual look-up, without a pin: the key's bin holds still, and the first slot of its tag is its own. What
    /// is found stays as long as the shield.
    #[inline(always)]
    fn look_unpinned<Q>(
        &self,
        bins: Steady<'_>,
        shield: &Shield,
        tag: Tag,
        key: &Q,
    ) -> Look<'_, K, V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut protected = None;
        let protect = |index| {
            // SAFETY: a bounded slab holds every index that a word can have.
            let slot = unsafe { self.slab.bounded_slot(index) };
            shield.protect(slot);
            protected = Some(slot);
        };
        let slot = match (bins.glance(tag, protect), protected) {
            (Glance::Candidate(_), Some(slot)) => slot,
            (Glance::Absent, _) => return Look::Miss,
            _ => return Look::Unsure,
        };
        // SAFETY: it was a member of the index after it was protected, so its key is there as long as the shield is.
        if unsafe { slot.key() }.borrow() != key {
            return Look::Unsure;
        }
        if slot.state.load().is_ready_for_ever() { Look::Hit(slot) } else { Look::Found(slot) }
    }

    /// A hit on a slot that the shield protects, and that was READY under it.
    #[inline(always)]
    fn hit(&self, shield: &Shield, slot: &Slot<K, V>) -> V
    where
        V: Clone,
    {
        self.touch(slot);
        self.count_for(shield.thread(), Counter::Hits);
        // SAFETY: READY was read under the shield.
        unsafe { slot.value() }.clone()
    }

    /// The key's slot is one with a deadline, or no value.
    #[inline(never)]
    fn read_found<const COUNTS_MISSES: bool, Q>(
        &self,
        shield: Shield,
        slot: &Slot<K, V>,
        tag: Tag,
        key: &Q,
    ) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
        V: Clone,
    {
        let state = slot.state.load();
        if state.is_ready() && !self.clock.is_expired(state) {
            return Some(self.hit(&shield, slot));
        }
        if state.is_live() {
            // A load under way is a miss too.
            if COUNTS_MISSES {
                self.count_for(shield.thread(), Counter::Misses);
            }
            return None;
        }
        // A life that just ended may have gone on in another slot.
        drop(shield);
        self.read_slow::<COUNTS_MISSES, Q>(tag, key)
    }

    #[inline(never)]
    fn read_slow<const COUNTS_MISSES: bool, Q>(&self, tag: Tag, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
        V: Clone,
    {
        if self.index.shielded().is_some() && Shield::prepare() {
            // The thread has its shield now.
            return self.read::<COUNTS_MISSES, Q>(tag, key);
        }
        self.index.prefetch(tag);
        let guard = reclaim::pin();
        let Some(slot) = self.get(&guard, tag, key) else {
            if COUNTS_MISSES {
                self.count(&guard, Counter::Misses);
            }
            return None;
        };
        self.touch(slot);
        self.count(&guard, Counter::Hits);
        // SAFETY: `get` read READY under this guard.
        Some(unsafe { slot.value() }.clone())
    }

    /// Asks for the line that a look-up of `tag` begins with, ahead of it.
    #[inline(always)]
    pub fn prefetch(&self, tag: Tag) {
        self.index.prefetch(tag);
    }

    /// A hit on the slot, for the hands.
    #[inline(always)]
    pub fn touch(&self, slot: &Slot<K, V>) {
        slot.touch();
    }

    /// Is there a live value or a load under way?
    pub fn contains<Q>(&self, guard: &Guard, tag: Tag, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        while let Some((_, slot)) = self.find(guard, tag, key) {
            let state = slot.state.load();
            if state.is_live() {
                return !self.clock.is_expired(state);
            }
            // As in `get`.
        }
        false
    }

    pub(super) fn is_entry(&self, state: Snapshot) -> bool {
        state.is_live() && !self.clock.is_expired(state)
    }
}
