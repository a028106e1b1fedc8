//! The timer wheel: lists of the slots that have a deadline, by when to look at them.
//!
//! A bucket is a [`Chain`] of slot indices, through links of the wheel's own, beside the slots: 4 bytes a slot,
//! and only in caches whose entries have deadlines. The buckets of a level are there once for each stripe, so
//! that threads do not push on one head. Which bucket is which is arithmetic (`policy/wheel.rs`).
//!
//! **A slot is on one list at most.** FILED in its state word says that it is on one, or that somebody is about
//! to push it. It is set with the deadline, in one step, by whoever finds it clear: he pushes. It stays set when
//! the life ends and while the slot is free, so a life that ends early leaves nothing on the wheel but the slot's
//! one link, and its successor needs no push. Only a sweep clears it, and only after it took the slot off its
//! list and in a word without a deadline. So memory is one link a slot, whatever the churn.
//!
//! **A sweep** takes up to 64 slots off a list that is due by one CAS, and settles them one by one:
//!
//! | the slot is | then |
//! |---|---|
//! | READY, past its deadline | it is unlinked from the index as by anybody else; then as dead |
//! | READY, past its deadline, but cannot be unlinked | pushed for the next tick: a draft not linked yet, or just being ended |
//! | READY, with a deadline to come | pushed on the bucket of that; FILED stays |
//! | anything else | FILED is cleared, if the word is still the one that was seen |
//!
//! A sweep that stops in the middle keeps what it took, and nothing else.
//!
//! **Nothing is passed by.** `next` is the first bucket of a level that is not known to be empty. Who pushes looks
//! at it afterwards, and moves it back if it has passed his bucket; who moves it on looks at the buckets again
//! afterwards, and moves it back if there is something. A fence lies in between on both sides: one of the two
//! sees the other. (If the one who moves it stops just there, what was pushed at that instant may be found a
//! turn of the level later: half a second, or 131 seconds. The arithmetic needs `next` for no more than
//! that, so a wrong one costs time and nothing else.)

use super::chain::{Chain, Links};
use super::chunks::Chunks;
use super::mem::{Blank, OutOfMemory, ZeroedArray};
use super::slot::Slot;
use crate::policy::wheel::{self, BUCKETS, LEVELS, Place};
use crate::raw::bin::Tag;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};
use crossbeam_utils::CachePadded;
use std::ops::Range;

/// A stage of a sweep that took something: what it took and does not end is filed for after it.
#[derive(Debug, Clone, Copy)]
pub struct Stage {
    tick: u64,
    level: usize,
    /// One past the last bucket of the stage.
    end: u64,
}

/// Doublings of the links' array: as many as the slab has.
const CHUNKS: usize = 32;

/// Stripes at most: their buckets are memory of every cache with a time to live.
const MAX_STRIPES: usize = 4;

/// Slots that one CAS takes at most.
pub const TAKE: usize = if cfg!(alru_loom) { 2 } else { 64 };

struct Link(AtomicU32);

// SAFETY: zero is no link.
unsafe impl Blank for Link {
    fn blank() -> Self {
        Self(AtomicU32::new(0))
    }
}

/// A link for each slot, in chunks as the slab's.
struct Side {
    first: ZeroedArray<Link>,
    rest: Chunks<Link>,
}

impl Side {
    fn get(&self, index: u32) -> Option<&Link> {
        let index = index as usize;
        if index < self.first.len() {
            Some(self.first.get(index))
        } else {
            self.rest.get(index - self.first.len())
        }
    }
}

// Relaxed: the list's head carries the ordering.
impl Links for Side {
    fn next(&self, index: u32) -> u32 {
        self.get(index).map_or(0, |link| link.0.load(Relaxed))
    }

    fn set_next(&self, index: u32, next: u32) {
        self.get(index).expect("a slot that was handed out").0.store(next, Relaxed);
    }
}

/// All lists of a cache.
pub struct Wheel {
    /// By level, stripe and bucket.
    heads: ZeroedArray<Chain>,
    stripes: usize,
    links: Side,
    /// For each level the first bucket that has not been swept.
    next: CachePadded<[AtomicU64; LEVELS]>,
}

impl Wheel {
    /// For the slots below `slots`; for all that there can be if it `grows`. `stripes` is a power of two.
    pub fn new(slots: usize, grows: bool, stripes: usize) -> Result<Self, OutOfMemory> {
        debug_assert!(stripes.is_power_of_two());
        let stripes = stripes.min(if cfg!(alru_loom) { 1 } else { MAX_STRIPES });
        Ok(Self {
            heads: ZeroedArray::new(LEVELS * stripes * BUCKETS)?,
            stripes,
            links: Side {
                first: ZeroedArray::new(slots)?,
                rest: Chunks::new(slots, if grows { CHUNKS } else { 0 }),
            },
            next: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))),
        })
    }

    /// Makes the link of a slot that is handed out for the first time.
    pub fn ensure(&self, index: u32) -> Result<(), OutOfMemory> {
        match (index as usize).checked_sub(self.links.first.len()) {
            Some(in_rest) => self.links.rest.ensure(in_rest),
            None => Ok(()),
        }
    }

    fn head(&self, level: usize, stripe: usize, number: u64) -> &Chain {
        let stripe = stripe & (self.stripes - 1);
        self.heads.get((level * self.stripes + stripe) * BUCKETS + wheel::cell(number))
    }

    /// Puts a slot on a list. The caller set its FILED bit, or took it off its list.
    pub fn push(&self, stripe: usize, index: u32, place: Place) {
        let Place { level, number } = place;
        self.head(level, stripe, number).push(&self.links, index, index);
        // Pairs with the fence in `pass`: one of the two sees the other.
        #[cfg(not(alru_mutation = "no_push_fence"))]
        fence(SeqCst);
        let next = &self.next[level];
        // Relaxed: after the fence. If it is not past the bucket it will not pass it unseen.
        if next.load(Relaxed) > number && !cfg!(alru_mutation = "no_pull_back") {
            next.fetch_min(number, AcqRel);
        }
    }

    /// May anything be due? A hint.
    #[inline]
    pub fn is_due(&self, tick: u64) -> bool {
        // Relaxed: who misses a change sees it next time.
        (0..LEVELS).any(|level| self.next[level].load(Relaxed) <= wheel::number(level, tick))
    }

    /// The first list in these buckets that is not empty.
    fn first_filled(&self, level: usize, numbers: Range<u64>) -> Option<(u64, &Chain)> {
        numbers.into_iter().find_map(|number| {
            (0..self.stripes)
                .map(|stripe| (number, self.head(level, stripe, number)))
                .find(|(_, head)| !head.is_empty())
        })
    }

    /// Moves `next` past buckets that were empty.
    fn pass(&self, level: usize, from: u64, numbers: Range<u64>) {
        let next = &self.next[level];
        // AcqRel, and nobody's data hangs on it. Failed: somebody moved it.
        if next.compare_exchange(from, numbers.end, AcqRel, Acquire).is_err() {
            return;
        }
        // Pairs with the fence in `push`.
        fence(SeqCst);
        if let Some((number, _)) = self.first_filled(level, numbers) {
            next.fetch_min(number, AcqRel);
        }
    }

    /// Takes up to `out.len()` slots off a list that is due; None only if none is. The caller settles each.
    pub fn take(&self, tick: u64, out: &mut [u32]) -> Option<(usize, Stage)> {
        for level in (0..LEVELS).rev() {
            loop {
                // Acquire: as good as any; the lists carry their own order.
                let next = self.next[level].load(Acquire);
                let due = wheel::due(level, next, tick);
                if due.is_empty() {
                    break;
                }
                match self.first_filled(level, due.clone()) {
                    Some((number, head)) => {
                        if number > due.start {
                            self.pass(level, next, due.start..number);
                        }
                        match head.take(&self.links, out) {
                            // Others were faster.
                            0 => {}
                            taken => return Some((taken, Stage { tick, level, end: due.end })),
                        }
                    }
                    None => self.pass(level, next, due),
                }
            }
        }
        None
    }

    /// Settles a slot that this thread took in this stage. `end` ends its life if the slot is linked under this tag;
    /// the caller is pinned.
    pub fn settle<K, V>(
        &self,
        stripe: usize,
        index: u32,
        slot: &Slot<K, V>,
        stage: Stage,
        mut end: impl FnMut(Tag) -> bool,
    ) {
        loop {
            // The tag first, as the hands do: that of a former life leads to a bin without this slot.
            let tag = slot.tag();
            let seen = slot.state.load();
            debug_assert!(
                seen.is_filed(),
                "{seen:?}: who takes it off its list alone clears FILED"
            );
            let deadline = seen.deadline();
            if wheel::is_filed(deadline) {
                if wheel::is_due(deadline, stage.tick) && end(tag) {
                    continue;
                }
                let place = wheel::place_anew(deadline, stage.tick, stage.level, stage.end);
                return self.push(stripe, index, place);
            }
            if slot.state.unfile(seen) {
                return;
            }
        }
    }

    /// The tick at which the next bucket after `tick` is due that is not empty. It may be earlier than any
    /// deadline in it; what is filed later may be due before it.
    pub fn next_due(&self, tick: u64) -> Option<u64> {
        let begins = |level| {
            let (number, _) = self.first_filled(level, wheel::ahead(level, tick))?;
            Some(wheel::begins(Place { level, number }))
        };
        (0..LEVELS).filter_map(begins).min()
    }

    /// What is on the lists, for models while nobody else runs.
    #[cfg(alru_loom)]
    pub fn listed(&self) -> Vec<u32> {
        let mut listed = Vec::new();
        for head in 0..LEVELS * self.stripes * BUCKETS {
            let mut index = self.heads.get(head).first();
            while index != 0 {
                listed.push(index);
                assert!(listed.len() <= 1_000_000, "a list that runs in a circle");
                index = self.links.next(index);
            }
        }
        listed
    }
}
