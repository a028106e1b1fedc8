//! The state word: one atomic word holds what a slot's life is, and every transition of it.
//!
//! ```text
//!  bits 0..2   phase      EMPTY, PENDING, READY, EXPIRED
//!  bit  3      VALUE      the value cell is initialised (kept through EXPIRED, for the drainer)
//!  bit  4      MAIN       resident in main; clear: in probation
//!  bit  5      FILED      on a list of the timer wheel; survives the end of a life
//!  bit  6      LEASED     somebody counts on the slot not being reused; kept through EXPIRED, for the drainer
//!  bit  7      spare
//!  bits 8..23  era        of `invalidate_all`
//!  bits 24..63 deadline in ticks, or the flight's id while PENDING
//! ```
//!
//! A life that gets a deadline gets FILED in the same step; who set it where it was clear puts the slot on the
//! wheel's list ([`Filing`]), and only the sweep that took the slot off clears it.
//!
//! All transitions that others can race are read-modify-write loops that keep unrelated bits and give up only
//! when the phase (or the flight) is not what they need: a sweeper may clear FILED at any moment, and that
//! must neither lose FILED nor discard a load's result. The owner of an EMPTY or drained slot that is not
//! FILED is alone with the word and stores. AcqRel on success, Acquire on failure: the winner of
//! READY publishes the value cell to whoever reads READY; the winner of EXPIRED sees all that the life
//! wrote; whoever begins a life sees the drainer's last access to the cells.

use crate::policy::wheel;
use crate::sync::atomic::{AtomicU64, Ordering::*};

/// The four states of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No life: free, or private to the thread that is about to begin one.
    Empty,
    /// A load is in flight; the key is there, the value is not.
    Pending,
    /// Key and value are there.
    Ready,
    /// The life is over; key and value wait for the grace period.
    Expired,
}

const PHASE_BITS: u32 = 3;
const PHASE: u64 = (1 << PHASE_BITS) - 1;
const VALUE: u64 = 1 << PHASE_BITS;
const MAIN: u64 = VALUE << 1;
const FILED: u64 = MAIN << 1;
const LEASED: u64 = FILED << 1;
const SPARE: u64 = LEASED << 1;
const ERA_SHIFT: u32 = SPARE.trailing_zeros() + 1;
const ERA_BITS: u32 = 16;
const FIELD_SHIFT: u32 = ERA_SHIFT + ERA_BITS;
/// Width of the field that holds a deadline or a flight id.
pub const FIELD_BITS: u32 = u64::BITS - FIELD_SHIFT;
const FIELD: u64 = !0 << FIELD_SHIFT;

const _: () = assert!(FIELD_BITS == 40 && FIELD_BITS == crate::policy::expiry::DEADLINE_BITS);

const EMPTY: u64 = 0;
const PENDING: u64 = 1;
const READY: u64 = 2;
const EXPIRED: u64 = 3;

/// Where a newcomer starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    Main,
    Probation,
}

impl Residence {
    fn bits(self) -> u64 {
        match self {
            Residence::Main => MAIN,
            Residence::Probation => 0,
        }
    }
}

/// A state word as it was read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Snapshot(u64);

impl Snapshot {
    #[inline]
    pub fn phase(self) -> Phase {
        match self.0 & PHASE {
            EMPTY => Phase::Empty,
            PENDING => Phase::Pending,
            READY => Phase::Ready,
            _ => Phase::Expired,
        }
    }

    #[inline]
    pub fn is_ready(self) -> bool {
        self.0 & PHASE == READY
    }

    /// READY, and no deadline to look at.
    #[inline(always)]
    pub fn is_ready_for_ever(self) -> bool {
        self.0 & (PHASE | FIELD) == READY
    }

    #[inline]
    pub fn is_live(self) -> bool {
        matches!(self.0 & PHASE, PENDING | READY)
    }

    #[inline]
    pub fn has_value(self) -> bool {
        self.0 & VALUE != 0
    }

    /// Is somebody counting on the slot not being reused?
    #[inline]
    pub fn is_leased(self) -> bool {
        self.0 & LEASED != 0
    }

    /// On a list of the wheel, or about to be put on one.
    #[inline]
    pub fn is_filed(self) -> bool {
        self.0 & FILED != 0
    }

    #[inline]
    pub fn residence(self) -> Residence {
        if self.0 & MAIN != 0 { Residence::Main } else { Residence::Probation }
    }

    /// The deadline in ticks; 0 when there is none or the word holds a flight.
    #[inline]
    pub fn deadline(self) -> u64 {
        if self.is_ready() { self.0 >> FIELD_SHIFT } else { 0 }
    }

    /// The flight of a pending slot.
    #[inline]
    pub fn flight(self) -> Option<u64> {
        (self.0 & PHASE == PENDING).then_some(self.0 >> FIELD_SHIFT)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("phase", &self.phase())
            .field("residence", &self.residence())
            .field("field", &(self.0 >> FIELD_SHIFT))
            .finish()
    }
}

/// Did a load's result become the entry?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a detached result must be taken back out of the value cell"]
pub enum Completion {
    Stored,
    /// The slot's life ended, or belongs to another flight: the waiters get the value, the cache does not.
    Detached,
}

/// Does a slot that got its deadline have to go on the wheel?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "who set FILED pushes the slot"]
pub enum Filing {
    /// This step set FILED: whoever took it pushes the slot, and nobody else does.
    Push,
    /// There is no deadline, or the slot is on a list already.
    Done,
}

impl Filing {
    /// Of a step from `before` that set FILED if it gave a deadline to be filed for.
    #[inline]
    fn of(before: Snapshot, filed: u64) -> Self {
        let push_anyway = cfg!(alru_mutation = "push_filed");
        if filed != 0 && (!before.is_filed() || push_anyway) { Self::Push } else { Self::Done }
    }
}

/// FILED, if there is a deadline to be filed for.
#[inline(always)]
fn filed(deadline: u64) -> u64 {
    if wheel::is_filed(deadline) { FILED } else { 0 }
}

/// The atomic word.
pub struct State(AtomicU64);

impl State {
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Acquire: pairs with the release of the transition that is seen (see the module).
    #[inline(always)]
    pub fn load(&self) -> Snapshot {
        Snapshot(self.0.load(Acquire))
    }

    /// One loop for all transitions: `next` answers the new word, or None to give up.
    #[inline]
    fn update(&self, mut next: impl FnMut(u64) -> Option<u64>) -> Result<Snapshot, Snapshot> {
        let mut word = self.0.load(Acquire);
        loop {
            let Some(new) = next(word) else { return Err(Snapshot(word)) };
            match self.0.compare_exchange_weak(word, new, AcqRel, Acquire) {
                Ok(_) => return Ok(Snapshot(word)),
                Err(seen) => word = seen,
            }
        }
    }

    /// A step that only the slot's owner takes, in a phase that nobody else leaves. Without FILED no other
    /// thread changes the word then, and a store will do; with it a sweeper may clear FILED meanwhile. Answers
    /// the word before.
    #[inline]
    fn step(&self, from: u64, to: u64) -> Snapshot {
        let word = self.0.load(Acquire);
        debug_assert_eq!(word & PHASE, from, "the slot is its owner's");
        if word & FILED == 0 || cfg!(alru_mutation = "begin_by_store") {
            self.0.store(to, Release);
            Snapshot(word)
        } else {
            self.update(|w| Some((w & FILED) | to)).unwrap_or_else(|unchanged| unchanged)
        }
    }

    #[inline]
    fn begin(&self, bits: u64) -> Snapshot {
        self.step(EMPTY, bits)
    }

    /// EMPTY → PENDING(flight). The caller owns the slot and has written its key.
    #[inline]
    pub fn begin_pending(&self, flight: u64, residence: Residence) {
        debug_assert!(flight >> FIELD_BITS == 0);
        self.begin(PENDING | residence.bits() | flight << FIELD_SHIFT);
    }

    /// EMPTY → READY(deadline). The caller owns the slot and has written its key and value.
    #[inline(always)]
    pub fn begin_ready(&self, deadline: u64, residence: Residence) -> Filing {
        debug_assert!(deadline >> FIELD_BITS == 0);
        let filed = filed(deadline);
        let bits = READY | VALUE | residence.bits() | filed | deadline << FIELD_SHIFT;
        Filing::of(self.begin(bits), filed)
    }

    /// The loser of an insert takes its never-published life back: any phase → EMPTY, keeping FILED.
    /// Answers the last word of it.
    #[inline]
    pub fn withdraw(&self) -> Snapshot {
        #[cfg(alru_mutation = "withdraw_by_store")]
        {
            let last = self.load();
            self.0.store(last.0 & FILED, Release);
            return last;
        }
        #[cfg(not(alru_mutation = "withdraw_by_store"))]
        self.update(|w| Some(w & FILED)).unwrap_or_else(|unchanged| unchanged)
    }

    /// PENDING(flight) → READY(deadline). The caller holds the flight's lead, is pinned, and has
    /// written the value cell. None: detached.
    #[inline]
    pub fn complete(&self, flight: u64, deadline: u64) -> Option<Filing> {
        debug_assert!(deadline >> FIELD_BITS == 0);
        let filed = filed(deadline);
        let done = self.update(|w| {
            (Snapshot(w).flight() == Some(flight) || cfg!(alru_mutation = "blind_complete"))
                .then_some((w & !(PHASE | FIELD)) | READY | VALUE | filed | deadline << FIELD_SHIFT)
        });
        done.ok().map(|before| Filing::of(before, filed))
    }

    /// PENDING(flight) → PENDING without one, by who is about to put something in the load's place: the load
    /// can't become a value any more. True also if it was orphaned before. False if it has ended, or is another.
    #[must_use]
    pub fn orphan(&self, flight: u64) -> bool {
        if cfg!(alru_mutation = "no_orphan") {
            return true;
        }
        self.update(|w| {
            let is_it = Snapshot(w).flight().is_some_and(|f| f == flight || f == 0);
            is_it.then_some(w & !FIELD)
        })
        .is_ok()
    }

    /// Leases a READY slot, for who is pinned: its index is not reused until the lease is given back, pinned or
    /// not. False if the life is over or somebody has it.
    #[must_use]
    pub fn lease(&self) -> bool {
        self.update(|w| (Snapshot(w).is_ready() && w & LEASED == 0).then_some(w | LEASED)).is_ok()
    }

    /// Gives a lease back, whatever became of the life meanwhile. AcqRel: the drainer that finds it given back
    /// comes after all that was done under it.
    pub fn give_back(&self) {
        let before = self.0.fetch_and(!LEASED, AcqRel);
        debug_assert!(before & LEASED != 0, "given back once");
    }

    /// PENDING or READY → EXPIRED, by the thread that unlinked the slot: nobody else ends a life. Answers
    /// the last word of it.
    #[inline]
    pub fn expire(&self) -> Snapshot {
        let last = self.update(|w| Some((w & !(PHASE | FIELD)) | EXPIRED));
        let last = last.unwrap_or_else(|unchanged| unchanged);
        debug_assert!(last.is_live(), "{last:?}: the winner of the unlink ends a life once");
        last
    }

    /// PROBATION → MAIN while READY; false if the slot was not in probation any more.
    #[must_use]
    #[inline]
    pub fn promote(&self) -> bool {
        self.update(|w| (Snapshot(w).is_ready() && w & MAIN == 0).then_some(w | MAIN)).is_ok()
    }

    /// EXPIRED → EMPTY after the grace period, by the drainer, which has dropped key and value before.
    #[inline]
    pub fn drained(&self) {
        self.step(EXPIRED, EMPTY);
    }

    /// FILED → clear, by the sweep that took the slot off its list and saw there was no deadline in `seen`. False
    /// if the word is another meanwhile: it may have a deadline again, whose owner found FILED set and left it
    /// to the sweep.
    #[must_use]
    pub fn unfile(&self, seen: Snapshot) -> bool {
        debug_assert!(seen.is_filed());
        #[cfg(alru_mutation = "blind_unfile")]
        return self.0.fetch_and(!FILED, AcqRel) & FILED != 0;
        #[cfg(not(alru_mutation = "blind_unfile"))]
        self.0.compare_exchange(seen.0, seen.0 & !FILED, AcqRel, Acquire).is_ok()
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    #[test]
    fn fields_tile_the_word() {
        let parts = [PHASE, VALUE, MAIN, FILED, LEASED, SPARE, 0xffff << ERA_SHIFT, FIELD];
        assert_eq!(parts.iter().fold(0, |a, p| a | p), u64::MAX);
        assert_eq!(parts.iter().map(|p| p.count_ones()).sum::<u32>(), 64);
    }

    #[test]
    fn a_life_round_trips_and_keeps_filed() {
        let s = State(AtomicU64::new(FILED));
        s.begin_pending(77, Residence::Probation);
        assert_eq!(s.load().flight(), Some(77));
        assert!(!s.load().has_value());
        assert_eq!(s.complete(78, 5), None);
        assert_eq!(s.complete(77, 5), Some(Filing::Done));
        assert_eq!(s.complete(77, 5), None);
        assert_eq!((s.load().deadline(), s.load().flight()), (5, None));
        assert!(s.promote() && !s.promote());
        assert_eq!(s.load().residence(), Residence::Main);
        assert!(s.expire().is_ready());
        assert!(s.load().has_value(), "the drainer must know that there is a value");
        s.drained();
        assert_eq!(s.0.load(Relaxed), FILED);
    }

    #[test]
    fn a_lease_outlives_the_life_and_is_given_once() {
        let s = State(AtomicU64::new(0));
        s.begin_pending(7, Residence::Main);
        assert!(!s.lease());
        assert_eq!(s.complete(7, 0), Some(Filing::Done));
        assert!(s.lease() && !s.lease());
        s.expire();
        assert!(s.load().is_leased() && s.load().has_value());
        s.give_back();
        assert!(!s.load().is_leased() && !s.lease());
        s.drained();
        assert_eq!(s.0.load(Relaxed), EMPTY);
    }

    #[test]
    fn an_orphaned_load_does_not_become_a_value() {
        let s = State(AtomicU64::new(0));
        s.begin_pending(7, Residence::Main);
        assert!(!s.orphan(8) && s.orphan(7) && s.orphan(7));
        assert_eq!(s.load().flight(), Some(0));
        assert_eq!(s.complete(7, 9), None);
    }

    #[test]
    fn a_slot_is_filed_once_however_many_lives_have_a_deadline() {
        let s = State(AtomicU64::new(0));
        assert_eq!(s.begin_ready(0, Residence::Main), Filing::Done);
        s.withdraw();
        assert_eq!(s.begin_ready(9, Residence::Main), Filing::Push);
        s.withdraw();
        assert_eq!(s.begin_ready(11, Residence::Main), Filing::Done);
        s.expire();
        let seen = s.load();
        s.drained();
        assert!(!s.unfile(seen), "another word");
        s.begin_pending(7, Residence::Main);
        assert!(s.unfile(s.load()));
        assert_eq!(s.complete(7, 9), Some(Filing::Push));
    }

    #[test]
    fn a_withdrawn_life_leaves_nothing_but_filed() {
        let s = State(AtomicU64::new(FILED));
        assert_eq!(s.begin_ready(9, Residence::Main), Filing::Done);
        assert_eq!(s.withdraw().residence(), Residence::Main);
        assert_eq!(s.load().phase(), Phase::Empty);
        assert_eq!(s.0.load(Relaxed), FILED);
    }
}
