//! Between two lives: retired slots wait for the grace period, ripen, are drained, and are free again.
//!
//! ```text
//!   retire → open batch → (full: seal, defer) → ripe → drain (drops key and value) → free → next life
//! ```
//! All lists are chains of slot indices through the slots' `link`, so none of this allocates but the
//! deferred closure of a whole batch, which fits crossbeam's inline storage. The lists live in stripes that
//! belong to the cache and that any thread may use: an idle thread keeps nothing.
//!
//! Readers never come here. Sealed batches are marked ripe by a closure that may run on any thread; keys
//! and values are dropped by **writers**, a bounded number a write, with nothing held: a destructor may
//! panic, or call back into the cache.

use super::chain::Chain;
use super::slab::Slab;
use super::state::Phase;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use crossbeam_utils::CachePadded;
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Slots drained in one go, and so the most destructors that one write pays for.
pub const DRAIN: usize = 16;
/// Largest batch of retired slots: what one deferred closure is shared by.
const BATCH_MAX: u32 = if cfg!(alru_loom) { 2 } else { 64 };

/// A full batch, ready for its grace period.
#[must_use = "a sealed batch that is not deferred is lost"]
pub struct Sealed {
    pub first: u32,
    pub last: u32,
    pub stripe: u32,
}

struct Stripe {
    /// Retired slots of the batch that is being filled: `count32 | index32`. No tag: it only takes pushes
    /// and take-alls, and an index that a pinned thread saw here is not retired again under its pin.
    open: AtomicU64,
    ripe: Chain,
    free: Chain,
}

/// All slots that are neither linked nor fresh.
pub struct Limbo {
    stripes: Box<[CachePadded<Stripe>]>,
    batch: u32,
    /// Batches that wait for their grace period.
    sealed: AtomicUsize,
}

std::thread_local! {
    /// Set while this thread runs destructors: a destructor that writes to a cache does not drain in turn,
    /// so that the stack stays flat.
    static DRAINING: Cell<bool> = const { Cell::new(false) };
}

impl Limbo {
    /// Stripes for this machine; batches scaled so that open ones strand little of the reserve.
    pub fn new(stripes: usize, reserve: usize) -> Self {
        let batch = (reserve / (stripes * 16)).clamp(1, BATCH_MAX as usize) as u32;
        let stripe =
            || CachePadded::new(Stripe { open: AtomicU64::new(0), ripe: Chain::new(), free: Chain::new() });
        Self { stripes: (0..stripes).map(|_| stripe()).collect(), batch, sealed: AtomicUsize::new(0) }
    }

    fn stripe(&self, stripe: usize) -> &Stripe {
        &self.stripes[stripe & (self.stripes.len() - 1)]
    }

    /// Takes in a slot that the caller unlinked and that has expired. The caller is pinned, and defers
    /// [`Limbo::ripen`] for the batch if this filled one.
    pub fn retire<K, V>(&self, slab: &Slab<K, V>, stripe: usize, index: u32) -> Option<Sealed> {
        let stripe = stripe & (self.stripes.len() - 1);
        let open = &self.stripes[stripe].open;
        // SAFETY: the index of a linked slot.
        let slot = unsafe { slab.slot(index) };
        debug_assert_eq!(slot.state.load().phase(), Phase::Expired);
        let mut word = open.load(Acquire);
        loop {
            let count = (word >> 32) as u32 + 1;
            slot.set_next(word as u32);
            let full = count >= self.batch;
            let new = if full { 0 } else { (count as u64) << 32 | index as u64 };
            match open.compare_exchange_weak(word, new, AcqRel, Acquire) {
                Ok(_) if full => return Some(self.seal(slab, stripe, index)),
                Ok(_) => return None,
                Err(now) => word = now,
            }
        }
    }

    fn seal<K, V>(&self, slab: &Slab<K, V>, stripe: usize, first: u32) -> Sealed {
        // Relaxed: a count, read by who has nothing else to do.
        self.sealed.fetch_add(1, Relaxed);
        let mut last = first;
        loop {
            // SAFETY: a chain of retired slots that this thread alone holds.
            match unsafe { slab.slot(last) }.next() {
                0 => return Sealed { first, last, stripe: stripe as u32 },
                next => last = next,
            }
        }
    }

    /// Takes what open batch there is, full or not.
    pub fn seal_open<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> Option<Sealed> {
        let first = self.stripe(stripe).open.swap(0, AcqRel) as u32;
        (first != 0).then(|| self.seal(slab, stripe & (self.stripes.len() - 1), first))
    }

    /// The grace period of a batch is over.
    pub fn ripen<K, V>(&self, slab: &Slab<K, V>, batch: &Sealed) {
        self.stripe(batch.stripe as usize).ripe.push(slab, batch.first, batch.last);
        self.sealed.fetch_sub(1, Relaxed);
    }

    /// Is nothing retired that has not been drained?
    pub fn is_settled(&self) -> bool {
        let is_empty = |s: &Stripe| s.open.load(Relaxed) == 0 && s.ripe.is_empty();
        self.sealed.load(Relaxed) == 0 && self.stripes.iter().all(|s| is_empty(s))
    }

    pub fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// A free slot; the caller owns it.
    pub fn allocate<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> Option<u32> {
        let mut one = [0];
        (self.stripe(stripe).free.take(slab, &mut one) == 1).then_some(one[0])
    }

    /// Gives a slot back that is EMPTY and was never published.
    pub fn free<K, V>(&self, slab: &Slab<K, V>, stripe: usize, index: u32) {
        self.stripe(stripe).free.push(slab, index, index);
    }

    /// Drops the keys and values of up to [`DRAIN`] ripe slots and frees the slots. False if there were
    /// none, or if this thread is draining already.
    ///
    /// # Panics
    /// With the first panic of a destructor, after all slots taken have been freed.
    pub fn drain<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> bool {
        let own = self.stripe(stripe);
        if own.ripe.is_empty() {
            return false;
        }
        let drops = std::mem::needs_drop::<K>() || std::mem::needs_drop::<V>();
        if drops && DRAINING.try_with(|d| d.replace(true)).unwrap_or(false) {
            return false;
        }
        let mut taken = [0; DRAIN];
        let count = own.ripe.take(slab, &mut taken);
        let mut panicked = None;
        let mut before = None;
        for &index in &taken[..count] {
            if let Err(panic) = drain_one(slab, index) {
                panicked.get_or_insert(panic);
            }
            if let Some(before) = before.replace(index) {
                // SAFETY: handed out, and owned by this thread since `take`.
                unsafe { slab.slot(before) }.set_next(index);
            }
        }
        if count > 0 {
            own.free.push(slab, taken[0], taken[count - 1]);
        }
        if drops {
            let _ = DRAINING.try_with(|d| d.set(false));
        }
        if let Some(panic) = panicked {
            resume_unwind(panic);
        }
        count > 0
    }
}

/// Drops key and value, value first, then frees the slot, whatever a destructor does.
fn drain_one<K, V>(slab: &Slab<K, V>, index: u32) -> Result<(), Box<dyn Any + Send>> {
    // SAFETY: handed out.
    let slot = unsafe { slab.slot(index) };
    let mut outcome = Ok(());
    if std::mem::needs_drop::<V>() && slot.state.load().has_value() {
        // SAFETY: the grace period is over and the slot is off every list but this thread's: nobody else
        // reaches the cells. VALUE says that the value is initialised; it is not used again.
        outcome = catch_unwind(AssertUnwindSafe(|| unsafe { slot.drop_value() }));
    }
    if std::mem::needs_drop::<K>() {
        // SAFETY: as above; every retired slot has a key.
        let key = catch_unwind(AssertUnwindSafe(|| unsafe { slot.drop_key() }));
        outcome = outcome.and(key);
    }
    slot.state.drained();
    outcome
}
