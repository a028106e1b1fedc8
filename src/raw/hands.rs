//! The hands: they sweep the slots in index order and point at victims.
//!
//! A hand is a counter that hands out spans of 512 positions; a stripe keeps what is left of its span for
//! the next eviction. So two threads rarely sweep the same lines, and each span is visited once a round.
//! The small hand skips by the probation bitmap, one load for 64 slots and one line for a span. The hands decide by what they read;
//! whether a victim really goes is decided by the header CAS that unlinks it (`core`).
//!
//! Bounded: each hand looks at most at [`BUDGET`] live entries an eviction, then the coldest seen goes.
//! Pending entries are passed over unless loads crowd out the capacity, or nothing else is there.

use super::bin::{FIRST_INDEX, Tag};
use super::ghost::Ghost;
use super::mem::{self, Blank, OutOfMemory, ZeroedArray};
use super::slab::Slab;
use super::state::{Phase, Residence, Snapshot};
use super::weight::Ledger;
use crate::policy::clock::{self, Verdict};
use crate::sync::atomic::{AtomicU64, Ordering::*};
use crossbeam_utils::CachePadded;

/// Positions in a block: a word of the bitmap.
const BLOCK: usize = if cfg!(alru_loom) { 8 } else { 64 };
/// Positions in a span, which a stripe gets at once: a line of the bitmap.
const SPAN: usize = if cfg!(alru_loom) { BLOCK } else { 8 * BLOCK };
/// Live entries that one hand inspects for one eviction.
const BUDGET: usize = if cfg!(alru_loom) { 4 } else { 256 };

/// A word of 64 probation bits.
struct Bits(AtomicU64);

// SAFETY: zero is a valid value of the atomic.
unsafe impl Blank for Bits {
    fn blank() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// A hand and what the stripes have left of its spans.
struct Hand {
    spans: CachePadded<AtomicU64>,
    /// The position to go on from, or 0 where the stripe has no span (position 0 is nobody's slot).
    rest: Box<[CachePadded<AtomicU64>]>,
}

impl Hand {
    fn new(stripes: usize) -> Self {
        debug_assert!(stripes.is_power_of_two());
        Self {
            spans: CachePadded::new(AtomicU64::new(0)),
            rest: (0..stripes).map(|_| CachePadded::new(AtomicU64::new(0))).collect(),
        }
    }

    // Relaxed here, and no RMW but for a new span: positions are hints; two threads at one are harmless.

    /// What the stripe has left of its span.
    #[inline]
    fn rest(&self, stripe: usize) -> Option<usize> {
        let rest = self.rest[stripe & (self.rest.len() - 1)].load(Relaxed) as usize;
        (rest != 0).then_some(rest)
    }

    /// The position to go on from, below `end`: the stripe's rest, or a new span.
    #[inline]
    fn take(&self, stripe: usize, end: usize) -> usize {
        self.rest(stripe).filter(|&rest| rest < end).unwrap_or_else(|| {
            self.spans.fetch_add(1, Relaxed) as usize % end.div_ceil(SPAN) * SPAN
        })
    }

    /// Leaves the rest of a span to the stripe's next eviction.
    #[inline]
    fn put_back(&self, stripe: usize, position: usize) {
        let rest = if position % SPAN == 0 { 0 } else { position as u64 };
        self.rest[stripe & (self.rest.len() - 1)].store(rest, Relaxed);
    }
}

/// The slots that are shown to the small hand, in the blocks from one to the end of its span.
struct Shown<'a> {
    probation: &'a ZeroedArray<Bits>,
    block: usize,
    /// What is still to come in `block`.
    bits: u64,
}

impl Shown<'_> {
    #[inline]
    fn load(&self) -> u64 {
        if self.block >= self.probation.len() {
            return 0;
        }
        // Acquire: as in `sweep_small`.
        self.probation.get(self.block).0.load(Acquire)
    }
}

impl Iterator for Shown<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        while self.bits == 0 {
            if (self.block + 1) % (SPAN / BLOCK) == 0 {
                return None;
            }
            self.block += 1;
            self.bits = self.load();
        }
        let index = (self.block * BLOCK) as u32 + self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        Some(index)
    }
}

/// A slot that a hand points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Victim {
    pub index: u32,
    pub tag: Tag,
    /// Evicted from probation: the ghost remembers it.
    pub from_probation: bool,
    pub expired: bool,
}

/// What a sweep keeps for the case that nobody deserves to go.
#[derive(Default)]
struct Coldest {
    ready: Option<(u8, Victim)>,
    pending: Option<Victim>,
}

impl Coldest {
    fn offer(&mut self, refs: u8, victim: Victim) {
        if self.ready.is_none_or(|(coldest, _)| refs < coldest) {
            self.ready = Some((refs, victim));
        }
    }
}

/// What the slow sweeps look at, and how.
struct Sweep<'a, K, V, E, S> {
    slab: &'a Slab<K, V>,
    ledger: &'a Ledger,
    stripe: usize,
    crowded: bool,
    is_expired: E,
    soon: S,
}

/// Which replacement policy the hands follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    TwoHand,
    Plain,
}

/// The eviction state of a bounded cache.
pub struct Hands {
    policy: Policy,
    main: Hand,
    small: Hand,
    probation: ZeroedArray<Bits>,
    probation_target: u64,
    main_target: u64,
    ghost: Ghost,
}

impl Hands {
    pub fn new(
        policy: Policy,
        capacity: u64,
        slots: usize,
        stripes: usize,
    ) -> Result<Self, OutOfMemory> {
        let plain = policy == Policy::Plain;
        let probation_target = if plain { 0 } else { clock::probation_target(capacity) };
        let plain = probation_target == 0;
        let bits = if plain { 0 } else { (slots + FIRST_INDEX as usize).div_ceil(BLOCK) };
        Ok(Self {
            policy,
            main: Hand::new(stripes),
            small: Hand::new(stripes),
            probation: ZeroedArray::new(bits)?,
            probation_target,
            main_target: capacity - probation_target,
            ghost: Ghost::new(if plain { 0 } else { clock::ghost_entries(capacity) })?,
        })
    }

    /// The counter a newcomer starts with: under plain CLOCK the reference that brought it in counts.
    pub fn first_refs(&self) -> u8 {
        match self.policy {
            Policy::TwoHand => 0,
            Policy::Plain => 1,
        }
    }

    /// Where a newcomer starts: main while it fills or when the ghost knows the key, else probation.
    #[inline]
    pub fn residence(&self, tag: Tag, ledger: &Ledger) -> Residence {
        let main =
            self.probation_target == 0 || ledger.main() < self.main_target || self.ghost.knows(tag);
        if main { Residence::Main } else { Residence::Probation }
    }

    /// Shows a newcomer in probation to the small hand; its state says PROBATION already. A slot that was
    /// in probation in its last life has its bit still, and then this writes nothing.
    ///
    /// No bit is lost to a hand that is late: a hand clears a bit only for a life that it saw in main, under
    /// the pin that it saw it under, and this life began after the grace period of that one. What remains is
    /// a draft that was withdrawn, whose slot is reused without a grace period: there the main hand, which
    /// shows every slot in probation that it meets without a bit, makes up for it.
    #[inline]
    pub fn show(&self, index: u32) {
        if let Some((bits, bit)) = self.bit(index) {
            if bits.load(Relaxed) & bit == 0 {
                // Release: the small hand that sees the bit sees the state.
                bits.fetch_or(bit, AcqRel);
            }
        }
    }

    #[inline]
    fn bit(&self, index: u32) -> Option<(&AtomicU64, u64)> {
        let word = index as usize / BLOCK;
        (word < self.probation.len())
            .then(|| (&self.probation.get(word).0, 1 << (index as usize % BLOCK)))
    }

    #[inline]
    pub fn remember(&self, tag: Tag) {
        self.ghost.remember(tag);
    }

    /// Points at the next victim. `crowded`: loads hold more than half the capacity, so pending entries
    /// are not spared. `soon` is told the tag of the entry that the same stripe's next sweep meets first,
    /// so that its bin can be brought near: the bin of a victim is a cache miss as a rule.
    #[inline]
    pub fn next_victim<K, V>(
        &self,
        slab: &Slab<K, V>,
        ledger: &Ledger,
        stripe: usize,
        crowded: bool,
        is_expired: impl Fn(Snapshot) -> bool,
        soon: impl Fn(Tag),
    ) -> Option<Victim> {
        if self.is_probation_full(ledger) {
            if let Some(victim) = self.glance_small(slab, stripe, &soon) {
                return Some(victim);
            }
        }
        self.next_victim_slow(&Sweep { slab, ledger, stripe, crowded, is_expired, soon })
    }

    #[inline]
    fn is_probation_full(&self, ledger: &Ledger) -> bool {
        let probation = ledger.total().saturating_sub(ledger.main());
        self.probation_target > 0 && probation >= self.probation_target
    }

    /// The usual case: the next entry in probation on the stripe's span is ready, was never referenced, and
    /// has no deadline. None if it is anything else, or if the span is at its end.
    #[inline]
    fn glance_small<K, V>(
        &self,
        slab: &Slab<K, V>,
        stripe: usize,
        soon: &impl Fn(Tag),
    ) -> Option<Victim> {
        let mut shown = self.shown(self.small.rest(stripe)?);
        loop {
            let index = shown.next()?;
            let slot = slab.get(index)?;
            let tag = slot.tag();
            let state = slot.state.load();
            if state.is_live() {
                let usual = in_probation(state)
                    && state.is_ready()
                    && state.deadline() == 0
                    && slot.refs() == 0;
                return usual.then(|| {
                    self.leave_small(slab, stripe, index, shown, soon);
                    Victim { index, tag, from_probation: true, expired: false }
                });
            }
        }
    }

    /// What is shown to the small hand from `position` to the end of its span.
    #[inline]
    fn shown(&self, position: usize) -> Shown<'_> {
        let mut shown = Shown { probation: &self.probation, block: position / BLOCK, bits: 0 };
        shown.bits = shown.load() & (!0 << (position % BLOCK));
        shown
    }

    /// Leaves the small hand behind `index`, before what is `shown` next.
    #[inline]
    fn leave_small<K, V>(
        &self,
        slab: &Slab<K, V>,
        stripe: usize,
        index: u32,
        mut shown: Shown<'_>,
        soon: &impl Fn(Tag),
    ) {
        self.small.put_back(stripe, index as usize + 1);
        // The next call begins with these two: the slot of the first was asked for by this call's
        // predecessor, so its tag is at hand now.
        if let Some(slot) = shown.next().and_then(|next| slab.get(next)) {
            soon(slot.tag());
        }
        if let Some(slot) = shown.next().and_then(|after| slab.get(after)) {
            mem::prefetch(slot);
        }
    }

    #[cold]
    #[inline(never)]
    fn next_victim_slow<K, V, E, S>(&self, sweep: &Sweep<'_, K, V, E, S>) -> Option<Victim>
    where
        E: Fn(Snapshot) -> bool,
        S: Fn(Tag),
    {
        let mut coldest = Coldest::default();
        let small_first = self.is_probation_full(sweep.ledger);
        let mut victim = None;
        if small_first {
            victim = self.sweep_small(sweep, &mut coldest);
        }
        if victim.is_none() {
            victim = self.sweep_main(sweep, &mut coldest);
        }
        if victim.is_none() && !small_first && self.probation_target > 0 {
            victim = self.sweep_small(sweep, &mut coldest);
        }
        victim.or(coldest.ready.map(|(_, v)| v)).or(coldest.pending)
    }

    fn sweep_small<K, V, E, S>(
        &self,
        sweep: &Sweep<'_, K, V, E, S>,
        coldest: &mut Coldest,
    ) -> Option<Victim>
    where
        E: Fn(Snapshot) -> bool,
        S: Fn(Tag),
    {
        let Sweep { slab, ledger, stripe, crowded, is_expired, soon } = sweep;
        let (stripe, crowded) = (*stripe, *crowded);
        let blocks =
            (slab.high_water() as usize).div_ceil(BLOCK).clamp(1, self.probation.len().max(1));
        let mut inspected = 0;
        // A whole round, and the rest of the span that it begins in.
        for _ in 0..blocks + SPAN / BLOCK {
            let start = self.small.take(stripe, blocks * BLOCK);
            let block = start / BLOCK;
            let mut bits = self.probation.get(block).0.load(Acquire) & (!0 << (start % BLOCK));
            let mut stale = 0;
            let mut found = None;
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                bits &= !bit;
                let index = (block * BLOCK) as u32 + bit.trailing_zeros();
                let Some(slot) = slab.get(index) else { continue };
                let tag = slot.tag();
                let state = slot.state.load();
                if !in_probation(state) {
                    // Of a dead slot the bit stays: it will be in probation again, as a rule.
                    if state.is_live() {
                        stale |= bit;
                    }
                    continue;
                }
                inspected += 1;
                let victim = |expired| Victim { index, tag, from_probation: true, expired };
                if state.phase() == Phase::Pending {
                    coldest.pending = Some(victim(false));
                    if crowded {
                        found = coldest.pending;
                        break;
                    }
                    continue;
                }
                let expired = is_expired(state);
                match clock::small_hand(slot.refs(), expired) {
                    Verdict::Evict | Verdict::Decrement => {
                        found = Some(victim(expired));
                        break;
                    }
                    Verdict::Promote => {
                        if slot.state.promote() {
                            slot.set_refs(0);
                            ledger.settle(Residence::Main);
                        }
                        stale |= bit;
                    }
                }
            }
            if stale != 0 {
                self.probation.get(block).0.fetch_and(!stale, AcqRel);
            }
            if let Some(victim) = found {
                let shown = self.shown(victim.index as usize + 1);
                self.leave_small(slab, stripe, victim.index, shown, soon);
                return found;
            }
            self.small.put_back(stripe, (block + 1) * BLOCK);
            if inspected >= BUDGET {
                break;
            }
        }
        None
    }

    fn sweep_main<K, V, E, S>(
        &self,
        sweep: &Sweep<'_, K, V, E, S>,
        coldest: &mut Coldest,
    ) -> Option<Victim>
    where
        E: Fn(Snapshot) -> bool,
        S: Fn(Tag),
    {
        let Sweep { slab, stripe, crowded, is_expired, soon, .. } = sweep;
        let (stripe, crowded) = (*stripe, *crowded);
        let high = slab.high_water() as usize;
        let blocks = high.div_ceil(BLOCK).max(1);
        let mut inspected = 0;
        // As many rounds as the counter can take, and the rest of the span that the first begins in.
        for _ in 0..(clock::MAX_REFS as usize + 1) * blocks + SPAN / BLOCK {
            let start = self.main.take(stripe, blocks * BLOCK);
            let end = (start / BLOCK + 1) * BLOCK;
            for index in start..end.min(high) {
                let Some(slot) = slab.get(index as u32) else { continue };
                let index = index as u32;
                let tag = slot.tag();
                let state = slot.state.load();
                if !state.is_live() {
                    continue;
                }
                if self.probation_target > 0 && in_probation(state) {
                    // The small hand's. Its bit may have been lost to a hand that was late.
                    if self.bit(index).is_some_and(|(bits, bit)| bits.load(Relaxed) & bit == 0) {
                        #[cfg(not(alru_mutation = "no_show_again"))]
                        self.show(index);
                    }
                    continue;
                }
                inspected += 1;
                let victim = |expired| Victim { index, tag, from_probation: false, expired };
                if state.phase() == Phase::Pending {
                    coldest.pending = Some(victim(false));
                    if !crowded {
                        continue;
                    }
                    self.main.put_back(stripe, index as usize + 1);
                    return coldest.pending;
                }
                let refs = slot.refs();
                let expired = is_expired(state);
                match clock::main_hand(refs, expired) {
                    Verdict::Evict => {
                        self.main.put_back(stripe, index as usize + 1);
                        if let Some(next) = slab.get(index + 1) {
                            soon(next.tag());
                        }
                        return Some(victim(expired));
                    }
                    _ => {
                        let left = clock::after_main_hand(refs, self.policy == Policy::Plain);
                        slot.set_refs(left);
                        coldest.offer(left, victim(false));
                    }
                }
            }
            self.main.put_back(stripe, end);
            if inspected >= BUDGET {
                break;
            }
        }
        None
    }
}

fn in_probation(state: Snapshot) -> bool {
    state.is_live() && state.residence() == Residence::Probation
}
