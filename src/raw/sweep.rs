//! Sweeping: who turns the wheel, how far at a time, and what becomes of what is due.
//!
//! A write that reads the clock anyway does a share of it, [`SHARE`] slots at most, after its own work is done.
//! `run_pending` and the user's sweepers go on in steps of [`TAKE`] until nothing is due. No user's code runs
//! in a step: the clock is read before, and keys and values go to limbo.

use super::bin::Tag;
use super::core::Core;
use super::draft::Draft;
use super::lifetime::Term;
use super::limbo::Limbo;
use super::reclaim::{self, Guard};
use super::state::Filing;
use super::wheel::{Stage, TAKE, Wheel};
use crate::policy::wheel;
use crate::stats::Counter;
use crate::sync::Arc;
use std::time::Duration;

/// Slots that a write settles at most: as many as it drains.
const SHARE: usize = if cfg!(alru_loom) { 1 } else { 16 };

/// How long a sweeper sleeps at least: what ends meanwhile it clears away in one go.
const MIN_SLEEP: u64 = 16;

/// How long a sweeper sleeps at most: so much later it finds that the cache is gone.
const MAX_SLEEP: u64 = 1_000;

/// Times that a sweeper looks whether a grace period has passed, before it leaves it at that until it next wakes.
const GRACE_LOOKS: u32 = 4;

/// What a sweeper remembers of its last steps.
#[derive(Debug, Default)]
pub struct Tending {
    looks: u32,
}

impl<K, V> Core<K, V> {
    /// Puts a slot on the wheel, if that is the caller's to do.
    #[inline(always)]
    pub(super) fn file(&self, filing: Filing, stripe: usize, index: u32, term: Term) {
        if filing == Filing::Push {
            self.push(stripe, index, term);
        }
    }

    #[cold]
    #[inline(never)]
    fn push(&self, stripe: usize, index: u32, term: Term) {
        debug_assert!(self.wheel.is_some(), "a deadline in a cache without a time to live");
        if let Some(wheel) = &self.wheel {
            wheel.push(stripe, index, wheel::place(term.deadline, term.tick));
        }
    }
}

impl<K, V> Draft<'_, K, V> {
    /// Begins the life of an entry with its value, and files it. (Before it is linked: a sweep that finds it due
    /// already cannot unlink it, and looks again a tick later.)
    #[inline(always)]
    pub(super) fn begin_filed(&self, tag: Tag, value: V, term: Term) {
        if term.deadline == 0 {
            // A constant, so that nothing is left of the filing.
            let filing = self.begin_ready(tag, value, 0);
            debug_assert_eq!(filing, Filing::Done);
        } else {
            self.begin_timed(tag, value, term);
        }
    }

    #[cold]
    #[inline(never)]
    fn begin_timed(&self, tag: Tag, value: V, term: Term) {
        let filing = self.begin_ready(tag, value, term.deadline);
        self.core.file(filing, self.stripe, self.index, term);
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    /// A write's share, at the tick that it read the clock at; none without a time to live.
    #[inline(always)]
    pub(super) fn sweep_share(self: &Arc<Self>, guard: &Guard, tick: u64) {
        if tick != 0 {
            self.sweep_share_due(guard, tick);
        }
    }

    #[cold]
    #[inline(never)]
    fn sweep_share_due(self: &Arc<Self>, guard: &Guard, tick: u64) {
        if self.wheel.as_ref().is_some_and(|wheel| wheel.is_due(tick)) {
            self.sweep_step(guard, tick, SHARE);
        }
    }

    /// As [`Core::sweep_share`], for writes that set no deadline: reads the cheap clock, if there is a wheel.
    #[inline(always)]
    pub(super) fn sweep_share_now(self: &Arc<Self>, guard: &Guard) {
        if self.wheel.is_some() {
            self.sweep_share_due(guard, self.clock.coarse_tick());
        }
    }

    /// Settles up to `most` slots that are due at `tick`, of several lists if need be: what others push meanwhile
    /// on a list that is due already is one of them, and must not be all of them. False if none was.
    fn sweep_step(self: &Arc<Self>, guard: &Guard, tick: u64, most: usize) -> bool {
        let Some(wheel) = &self.wheel else { return false };
        let mut settled = 0;
        while settled < most {
            let mut taken = [0; TAKE];
            let room = (most - settled).min(TAKE);
            let Some((count, stage)) = wheel.take(tick, &mut taken[..room]) else { break };
            self.settle_all(wheel, guard, &taken[..count], stage);
            settled += count;
        }
        settled > 0
    }

    fn settle_all(self: &Arc<Self>, wheel: &Wheel, guard: &Guard, taken: &[u32], stage: Stage) {
        for &index in taken {
            // SAFETY: what is on the wheel was handed out.
            let slot = unsafe { self.slab.slot(index) };
            wheel.settle(guard.thread(), index, slot, stage, |tag| {
                let ended = self.unlink(guard, tag, index).is_some();
                if ended {
                    self.ledger.refund();
                    self.count(guard, Counter::Expirations);
                }
                ended
            });
        }
    }

    /// Clears away all that is due by now.
    pub(super) fn sweep_all(self: &Arc<Self>, guard: &mut Guard) {
        if self.wheel.is_none() {
            return;
        }
        let tick = self.clock.exact_tick();
        // As many steps as there can be slots, each on two levels: others may go on filing what is due at once.
        for _ in 0..self.slab.high_water() as usize * 2 {
            if !self.sweep_step(guard, tick, TAKE) {
                return;
            }
            guard.repin();
        }
    }

    /// One step of a sweeper: at most [`TAKE`] slots settled, or a few batches drained, or a grace period pushed
    /// on. Answers how long there is nothing to do; None: there may be more.
    ///
    /// # Panics
    /// As a destructor of a value that it drops.
    pub fn tend(self: &Arc<Self>, tending: &mut Tending) -> Option<Duration> {
        let tick = self.wheel.as_ref().map(|_| self.clock.exact_tick());
        let mut guard = reclaim::pin();
        if tick.is_some_and(|tick| self.sweep_step(&guard, tick, TAKE)) {
            return None;
        }
        if (0..self.limbo.stripes()).any(|stripe| self.limbo.drain(&self.slab, stripe)) {
            return None;
        }
        let is_settled = self.limbo.is_ripe() && self.limbo.is_nothing_held();
        if !is_settled && !Limbo::is_draining() && tending.looks < GRACE_LOOKS {
            tending.looks += 1;
            self.force_grace(&mut guard);
            let is_ripe = (0..self.limbo.stripes()).any(|s| self.limbo.has_ripe(s));
            return (!is_ripe).then_some(Duration::from_millis(MIN_SLEEP));
        }
        tending.looks = 0;
        let sleep = tick.map_or(MAX_SLEEP, |tick| self.ticks_to_sleep(tick));
        Some(Duration::from_millis(sleep))
    }

    /// How long nothing can be due after `tick`, when nothing is at `tick`.
    fn ticks_to_sleep(&self, tick: u64) -> u64 {
        let next = self.wheel.as_ref().and_then(|wheel| wheel.next_due(tick));
        let filed = next.map_or(u64::MAX, |next| next - tick);
        // What is filed from now on lives for the time to live at least.
        filed.min(self.clock.least_life()).clamp(MIN_SLEEP, MAX_SLEEP)
    }

    /// One step at this tick, for models.
    #[cfg(alru_loom)]
    pub fn sweep_at(self: &Arc<Self>, tick: u64) -> bool {
        self.sweep_step(&reclaim::pin(), tick, TAKE)
    }

    /// The wheel, for models.
    #[cfg(alru_loom)]
    pub fn wheel(&self) -> &Wheel {
        self.wheel.as_ref().expect("a cache with a time to live")
    }
}
