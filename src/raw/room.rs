//! Room: where the places for newcomers come from, and what is cleared away for them.

use super::bin::Tag;
use super::core::Core;
use super::draft::{Charge, Draft};
use super::limbo::{DRAIN, Limbo};
use super::reclaim::{self, Guard};
use super::state::Phase;
use crate::stats::Counter;
use crate::sync::{self, Arc};

/// Victims that one charge tries to take before it gives up.
const EVICTION_TRIES: usize = if cfg!(alru_loom) { 2 } else { 16 };

/// Steps of the epoch that one call tries to bring about; a grace period takes three.
const FLUSHES: usize = if cfg!(alru_loom) { 2 } else { 8 };

/// Times that `run_pending` gives way to threads that hold up a grace period.
const GRACE_ROUNDS: usize = if cfg!(alru_loom) { 1 } else { 100 };

/// What an attempt to charge a newcomer came to.
pub(super) enum Charged<'a> {
    Done(Charge<'a>),
    /// What would have to go has the newcomer's own tag, and was perhaps not there yet when its key was looked for.
    Own,
    NoRoom,
}

/// What an attempt to evict came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Evicted {
    /// The charge is the caller's now.
    One,
    /// The hands point at an entry with the newcomer's tag.
    Own,
    Nothing,
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    /// Charges a newcomer, in place of a victim if there is no room; not of one with the tag that is `spared`.
    pub(super) fn charge<'a>(
        self: &'a Arc<Self>,
        guard: &Guard,
        spared: Option<Tag>,
    ) -> Charged<'a> {
        for _ in 0..EVICTION_TRIES {
            if self.ledger.try_charge() {
                return Charged::Done(Charge(&self.ledger));
            }
            match self.evict(guard, spared) {
                Evicted::One => return Charged::Done(Charge(&self.ledger)),
                Evicted::Own => return Charged::Own,
                Evicted::Nothing => {}
            }
        }
        Charged::NoRoom
    }

    /// Evicts one entry.
    fn evict(self: &Arc<Self>, guard: &Guard, spared: Option<Tag>) -> Evicted {
        let Some(hands) = &self.hands else { return Evicted::Nothing };
        let pending = self.flights.active().saturating_sub(self.aside.count());
        let crowded = pending as u64 * 2 > self.ledger.total();
        for _ in 0..EVICTION_TRIES {
            let Some(victim) = hands.next_victim(
                &self.slab,
                &self.ledger,
                guard.thread(),
                crowded,
                |s| self.clock.is_expired(s),
                |tag| self.index.prefetch(tag),
            ) else {
                return Evicted::Nothing;
            };
            if Some(victim.tag) == spared && cfg!(not(alru_mutation = "evict_own")) {
                return Evicted::Own;
            }
            if self.unlink(guard, victim.tag, victim.index).is_some() {
                if victim.from_probation && !victim.expired {
                    hands.remember(victim.tag);
                }
                let counter =
                    if victim.expired { Counter::Expirations } else { Counter::Evictions };
                self.count(guard, counter);
                return Evicted::One;
            }
        }
        Evicted::Nothing
    }

    /// Slots with a life, for models.
    #[cfg(alru_loom)]
    pub fn lives(&self) -> usize {
        let lives = |i: &u32| self.slab.get(*i).is_some_and(|s| s.state.load().is_live());
        (super::bin::FIRST_INDEX..self.slab.high_water()).filter(lives).count()
    }

    /// The hand alone, for models: evicts an entry if there is one.
    #[cfg(alru_loom)]
    pub fn sweep(self: &Arc<Self>) {
        if self.evict(&reclaim::pin(), None) == Evicted::One {
            self.ledger.refund();
        }
    }

    /// Makes room in the full group of `tag`: a dead entry goes, else the coldest ready one, never `keep`;
    /// an unbounded index grows. False if all there are loads.
    pub(super) fn clear_group(
        self: &Arc<Self>,
        guard: &Guard,
        tag: Tag,
        keep: Option<u32>,
    ) -> bool {
        if self.hands.is_none()
            && self.index.grow_for_group(guard, tag, self.ledger.total() as usize)
        {
            return true;
        }
        let mut coldest = None;
        for word in self.index.neighbours(guard, tag).into_iter().flatten() {
            if Some(word.index()) == keep {
                continue;
            }
            // SAFETY: a linked index, read while pinned.
            let slot = unsafe { self.slab.slot(word.index()) };
            let state = slot.state.load();
            let cold = match state.phase() {
                Phase::Ready if self.clock.is_expired(state) => 0,
                Phase::Ready => 1 + slot.refs(),
                Phase::Pending => continue,
                Phase::Empty | Phase::Expired => 0,
            };
            if coldest.is_none_or(|(c, _)| cold < c) {
                coldest = Some((cold, word));
            }
        }
        let Some((_, word)) = coldest else { return false };
        if self.unlink(guard, word.tag(), word.index()).is_some() {
            self.ledger.refund();
            self.count(guard, Counter::Evictions);
        }
        // Lost: somebody else made the room.
        true
    }

    /// A slot of one's own: what the thread has at hand and its stripe's drained slots first, then whatever is
    /// free or ripe anywhere, so that nobody's removals wait for ever, then a fresh one. None if all the
    /// reserve is in limbo.
    pub(super) fn draft(self: &Arc<Self>, guard: &mut Guard) -> Option<Draft<'_, K, V>> {
        if let Some(draft) = self.draft_pinned(guard) {
            return Some(draft);
        }
        let own = guard.thread();
        self.force_grace(guard);
        self.scavenge(own).map(|index| self.draft_of(own, index))
    }

    /// As [`Core::draft`], without letting go of the pin.
    pub(super) fn draft_pinned(&self, guard: &Guard) -> Option<Draft<'_, K, V>> {
        let own = guard.thread();
        let index = self
            .limbo
            .draw(&self.slab, guard)
            .or_else(|| self.scavenge(own))
            .or_else(|| self.fresh());
        index.map(|index| self.draft_of(own, index))
    }

    /// A slot that was never used, and its place on the wheel. (Without memory for that it is lost, as one without
    /// memory for itself is.)
    fn fresh(&self) -> Option<u32> {
        let index = self.slab.fresh()?;
        match &self.wheel {
            Some(wheel) => wheel.ensure(index).is_ok().then_some(index),
            None => Some(index),
        }
    }

    fn draft_of(&self, stripe: usize, index: u32) -> Draft<'_, K, V> {
        Draft { core: self, index, stripe, has_key: false }
    }

    /// A free slot from any stripe.
    fn scavenge(&self, own: usize) -> Option<u32> {
        (0..self.limbo.stripes()).find_map(|i| {
            self.limbo.drain(&self.slab, own + i);
            self.limbo.allocate(&self.slab, own + i)
        })
    }

    /// Seals all open batches and tries to end their grace period.
    pub(super) fn force_grace(self: &Arc<Self>, guard: &mut Guard) {
        for stripe in 0..self.limbo.stripes() {
            if let Some(batch) = self.limbo.seal_open(&self.slab, stripe) {
                self.defer(guard, batch);
            }
            if let Some(batch) = self.limbo.seal_held(&self.slab, stripe) {
                self.defer(guard, batch);
            }
        }
        for owner in 0..self.limbo.trails() {
            if let Some(batch) = self.limbo.seal_trail(owner, owner) {
                self.defer(guard, batch);
            }
        }
        for _ in 0..FLUSHES {
            guard.repin();
            guard.flush();
        }
    }

    /// Clears what a write would clear bit by bit: expired entries, and keys and values in limbo. With no
    /// guard held by anybody, only residents are alive afterwards.
    ///
    /// Does nothing when a destructor calls it that a drain of this thread runs: that drain goes on afterwards.
    pub fn run_pending(self: &Arc<Self>) {
        if Limbo::is_draining() {
            return;
        }
        let own_guard = reclaim::is_pinned();
        let mut guard = reclaim::pin();
        self.sweep_all(&mut guard);
        if self.clock.has_shorter_lives() {
            // What took the place of a longer life may be on the wheel for the end of that.
            self.each_slot(&mut guard, |guard, index, slot| {
                let tag = slot.tag();
                let state = slot.state.load();
                let is_due = state.is_ready() && self.clock.is_expired(state);
                if is_due && self.unlink(guard, tag, index).is_some() {
                    self.ledger.refund();
                    self.count(guard, Counter::Expirations);
                }
            });
        }
        // No more than there can be in limbo now: a destructor that inserts makes new work for ever.
        let mut batches = self.slab.high_water() as usize / DRAIN + self.limbo.stripes();
        // A pinned thread that was preempted delays the grace period by a time slice; give way to it some
        // times, and leave it at that if a guard is held for longer, or by this very thread.
        let mut held_rounds = 0;
        for _ in 0..if own_guard { 1 } else { GRACE_ROUNDS } {
            self.force_grace(&mut guard);
            // Asked first: then what was retired before is drained here, but for slots that are leased, which
            // may be so for long.
            let is_ripe = self.limbo.is_ripe();
            for stripe in 0..self.limbo.stripes() {
                while batches > 0 && self.limbo.drain(&self.slab, stripe) {
                    batches -= 1;
                }
            }
            if batches == 0 || (is_ripe && (self.limbo.is_nothing_held() || held_rounds == 2)) {
                break;
            }
            // What a reader held when its batch was sealed takes a round more. Held still, it may be so for long.
            held_rounds += usize::from(is_ripe);
            sync::yield_now();
        }
    }
}
