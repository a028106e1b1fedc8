//! Flights beside the table: loads that found no slot, and the queues of async computes.
//!
//! A load whose key finds no slot (the reserve is used up while a guard is held for long, or its bin is full
//! of loads) is shared all the same: its flight has a **berth**, a word of a small fixed map from tags to
//! flights, and the flight's cell beside the table holds the key. No slot and no grace period are needed: a
//! flight's index is not reused while anybody sits in it.
//!
//! ```text
//!  word   tag, its upper 23 bits | TENTATIVE | flight id 40;   the berth of a tag: its lower 12 bits.  0: free
//! ```
//! * The **key** is written before the word shows the flight, read only by who has entered the flight and seen
//!   its word after that, and dropped by the last one to leave, when nothing is held. A word is taken back before
//!   its flight is recycled, so a word always names a flight of this life.
//! * **Joining**: read the word, enter, read the word again, compare the key.
//! * **One load a key, in the table or beside it.** A load beside the table is TENTATIVE at first, and nobody
//!   reads its key. Then the key's bin gets a new version, then the key is looked for in the table; it is not
//!   there, so the word is confirmed. Who begins a load in the table reads the header, then the berth, then
//!   commits on that header: either its commit came before the new version, and is found; or it fails, and the
//!   berth is seen. Anybody who meets a tentative word confirms it by the same steps: nobody waits.
//! * **Removals and inserts detach** a load from its berth after they changed the table, so that who comes later
//!   begins anew. For them `Berths::is_any` is one load as a rule. It may be relaxed: if what the load read came
//!   before the removal in any order that threads can tell, so did the count, and the removal sees it.
//! * Two keys whose tags agree in the lower 12 bits compete for one berth, and the later one's load is not shared.
//!   Removing one of two keys of the same tag detaches the other's load.

use super::bin::Tag;
use super::chunks::Chunks;
use super::flight::{Entered, FlightId};
use super::mem::Blank;
use super::state::FIELD_BITS;
use super::waiters::Waiters;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use crate::sync::{FirstPanic, UnsafeCell};
use crossbeam_utils::CachePadded;

/// What a flight beside the table has for a slot index; below all indices of slots.
pub const BESIDE: u32 = 1;

/// Berths of a map, which is allocated when the first of them is taken.
const BERTHS: usize = if cfg!(alru_loom) { 2 } else { 4096 };
const TENTATIVE: u64 = 1 << FIELD_BITS;
const TAG_SHIFT: u32 = FIELD_BITS + 1;
const ID: u64 = TENTATIVE - 1;

/// What a flight is beside the table for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To share a load that has no slot.
    Load,
    /// To let one async compute of its key run at a time.
    Queue,
}

/// A berth's word as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Berth(u64);

impl Berth {
    pub const FREE: Self = Self(0);

    pub fn confirmed(tag: Tag, id: FlightId) -> Self {
        Self((tag as u64 >> (Tag::BITS - (u64::BITS - TAG_SHIFT))) << TAG_SHIFT | id.field())
    }

    pub fn tentative(tag: Tag, id: FlightId) -> Self {
        Self(Self::confirmed(tag, id).0 | TENTATIVE)
    }

    pub fn is_tentative(self) -> bool {
        self.0 & TENTATIVE != 0
    }

    pub fn confirm(self) -> Self {
        Self(self.0 & !TENTATIVE)
    }

    /// Does it show a flight of this tag, as far as a word can tell?
    pub fn is_of(self, tag: Tag) -> bool {
        self != Self::FREE && self.0 >> TAG_SHIFT == Self::confirmed(tag, self.id()).0 >> TAG_SHIFT
    }

    pub fn id(self) -> FlightId {
        FlightId::from_field(self.0 & ID)
    }
}

/// A berth.
struct Word(AtomicU64);

// SAFETY: zero is a valid value of the atomic.
unsafe impl Blank for Word {
    fn blank() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// A map from tags to flights.
pub struct Berths {
    words: Chunks<Word>,
    /// Flights of this purpose that have not been recycled.
    count: CachePadded<AtomicUsize>,
}

impl Berths {
    fn new() -> Self {
        Self { words: Chunks::new(BERTHS, 1), count: CachePadded::new(AtomicUsize::new(0)) }
    }

    /// None if no flight has ever been here.
    fn word(&self, tag: Tag) -> Option<&AtomicU64> {
        self.words.get(tag as usize % BERTHS).map(|w| &w.0)
    }

    /// Is there any flight? See the module for why that is enough for a removal.
    #[inline(always)]
    pub fn is_any(&self) -> bool {
        // Relaxed: see the module. For who begins a load in the table: the header that it read before this
        // carries the count, if the new version was in it.
        self.count.load(Relaxed) != 0
    }

    pub fn count(&self) -> usize {
        // Relaxed: a hint.
        self.count.load(Relaxed)
    }

    /// Acquire: pairs with the release of the CAS that put the word there, for the key's cell.
    pub fn load(&self, tag: Tag) -> Berth {
        self.word(tag).map_or(Berth::FREE, |w| Berth(w.load(Acquire)))
    }

    /// From one word to another; true for who did it.
    pub fn change(&self, tag: Tag, from: Berth, to: Berth) -> bool {
        let Some(word) = self.word(tag) else { return false };
        #[cfg(alru_mutation = "blind_berth")]
        return word.swap(to.0, AcqRel) != to.0 || from == to;
        #[cfg(not(alru_mutation = "blind_berth"))]
        word.compare_exchange(from.0, to.0, AcqRel, Acquire).is_ok()
    }

    /// Takes the flight of a tag off its berth: who comes later does not find it.
    #[cold]
    pub fn detach(&self, tag: Tag) {
        let seen = self.load(tag);
        if seen.is_of(tag) && !self.change(tag, seen, Berth::FREE) {
            // Somebody confirmed it in between, or took it off. Confirmed, it is as old as before; a flight
            // that came in its place is younger than this call.
            let now = self.load(tag);
            if now == seen.confirm() {
                self.change(tag, now, Berth::FREE);
            }
        }
    }

    /// Takes all flights off.
    #[cold]
    pub fn detach_all(&self) {
        for word in (0..BERTHS as Tag).filter_map(|tag| self.word(tag)) {
            if word.load(Acquire) != 0 {
                word.swap(0, AcqRel);
            }
        }
    }

    /// Takes this very flight off, if it is there.
    pub fn leave(&self, tag: Tag, id: FlightId) {
        let seen = self.load(tag);
        let is_here = seen.id() == id && cfg!(not(alru_mutation = "stale_berth"));
        if is_here && !self.change(tag, seen, Berth::FREE) {
            // As in `detach`.
            self.change(tag, seen.confirm(), Berth::FREE);
        }
    }
}

/// The key of a flight beside the table.
struct KeyCell<K>(UnsafeCell<Option<(Purpose, K)>>);

// SAFETY: written and taken out by who has the cell alone, read by reference by who has entered the flight;
// keys cross threads both ways.
unsafe impl<K: Send + Sync> Sync for KeyCell<K> {}
// SAFETY: as above.
unsafe impl<K: Send> Send for KeyCell<K> {}

// SAFETY: not `IS_ZEROS`: each element is written.
unsafe impl<K> Blank for KeyCell<K> {
    const IS_ZEROS: bool = false;
    fn blank() -> Self {
        Self(UnsafeCell::new(None))
    }
}

/// All flights beside the table.
pub struct Aside<K> {
    keys: Chunks<KeyCell<K>>,
    pub loads: Berths,
    pub queues: Berths,
    /// Async computes that found another key's queue on their berth, and wait for whatever ends.
    pub crowd: Waiters,
}

impl<K> Aside<K> {
    pub fn new() -> Self {
        Self {
            keys: Chunks::new(super::flight::FIRST_CHUNK, super::flight::INDEX_BITS as usize),
            loads: Berths::new(),
            queues: Berths::new(),
            crowd: Waiters::new(),
        }
    }

    pub fn berths(&self, purpose: Purpose) -> &Berths {
        match purpose {
            Purpose::Load => &self.loads,
            Purpose::Queue => &self.queues,
        }
    }

    /// Flights that are here, so have no slot.
    pub fn count(&self) -> usize {
        self.loads.count() + self.queues.count()
    }

    /// Gives a flight that has just begun its key, and makes it one beside the table. The key comes back if
    /// there is no memory.
    ///
    /// # Safety
    /// The caller began the flight, which no word shows.
    pub unsafe fn board<V>(
        &self,
        purpose: Purpose,
        tag: Tag,
        entered: Entered<'_, V>,
        key: K,
    ) -> Result<(), K> {
        let index = entered.id.index() as usize;
        let berths = self.berths(purpose);
        let ensured = self.keys.ensure(index).and_then(|()| berths.words.ensure(0));
        let cell = ensured.ok().and_then(|()| self.keys.get(index));
        let Some(cell) = cell else { return Err(key) };
        // SAFETY: the cells of a flight that no word shows are its beginner's. None was left: `disembark`.
        cell.0.with_mut(|k| unsafe { *k = Some((purpose, key)) });
        entered.flight.set_slot(BESIDE, tag);
        // Before the word shows the flight: see `is_any`. AcqRel: an RMW, so that the count is exact.
        berths.count.fetch_add(1, AcqRel);
        Ok(())
    }

    /// The key of a flight beside the table.
    ///
    /// # Safety
    /// The caller has entered the flight and not left, and boarded it or saw its word confirmed after it entered.
    pub unsafe fn key(&self, id: FlightId) -> Option<&K> {
        let cell = self.keys.get(id.index() as usize)?;
        // SAFETY: shown by a word, so written before; taken out after the last has left.
        cell.0.with(|k| unsafe { (*k).as_ref() }).map(|(_, key)| key)
    }

    /// Takes the flight off its berth and its key out, to be dropped when nothing is held. None if it is not
    /// one beside the table.
    ///
    /// # Safety
    /// The caller was the last to leave, or began the flight and took its tentative word back itself, or never
    /// showed it.
    pub unsafe fn disembark<V>(&self, entered: Entered<'_, V>) -> Option<K> {
        let (slot, tag) = entered.flight.slot();
        if slot != BESIDE {
            return None;
        }
        entered.flight.set_slot(0, 0);
        let cell = self.keys.get(entered.id.index() as usize)?;
        // SAFETY: nobody else reads the cell, by the caller's promise.
        let (purpose, key) = cell.0.with_mut(|k| unsafe { (*k).take() })?;
        let berths = self.berths(purpose);
        berths.leave(tag, entered.id);
        berths.count.fetch_sub(1, AcqRel);
        Some(key)
    }

    /// Takes a flight off its berth; who comes later does not find it.
    pub fn unmoor<V>(&self, entered: Entered<'_, V>) {
        let (slot, tag) = entered.flight.slot();
        if slot == BESIDE {
            self.loads.leave(tag, entered.id);
            self.queues.leave(tag, entered.id);
        }
    }

    /// Drops the keys of flights that were never left: their callers' futures were forgotten.
    ///
    /// # Safety
    /// No operation of the cache runs, or ever will.
    pub unsafe fn drop_contents(&self, flights: u32, panics: &mut FirstPanic) {
        for index in 1..flights {
            let Some(cell) = self.keys.get(index as usize) else { continue };
            // SAFETY: exclusive, by the caller's promise.
            panics.catch(|| drop(cell.0.with_mut(|k| unsafe { (*k).take() })));
        }
        // SAFETY: as above.
        unsafe { self.crowd.silence(panics) };
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_berth_shows_tag_and_flight() {
        let id = FlightId::from_field(0xfe_dcba_9876);
        for tag in [0, 1, 0xfff, 0x1000, 0xdead_beef, Tag::MAX] {
            let word = Berth::tentative(tag, id);
            assert!(word.is_of(tag) && word.is_tentative() && word.id() == id);
            assert!(!word.confirm().is_tentative() && word.confirm() == Berth::confirmed(tag, id));
            assert!(!word.is_of(tag ^ 1 << 12) && !Berth::FREE.is_of(tag));
        }
    }

    #[test]
    fn a_flight_is_taken_off_its_berth_by_tag_or_by_id() {
        let (berths, id) = (Berths::new(), FlightId::from_field(7));
        assert!(!berths.change(5, Berth::FREE, Berth::tentative(5, id)), "not there yet");
        berths.words.ensure(0).unwrap();
        let other = FlightId::from_field(8);
        for (put, from) in [(Berth::tentative(5, id), 5), (Berth::confirmed(5, id), 5)] {
            assert!(berths.change(5, Berth::FREE, put));
            berths.detach(from + 0x1000);
            berths.leave(from, other);
            assert_eq!(berths.load(5), put);
            berths.detach(from);
            assert_eq!(berths.load(5), Berth::FREE);
            assert!(berths.change(5, Berth::FREE, put));
            berths.leave(from, id);
            assert_eq!(berths.load(5), Berth::FREE);
        }
    }
}
