//! Between two lives: retired slots wait for the grace period, ripen, are drained, and are free again.
//!
//! ```text
//!   retire → trail or open batch → (full: seal, defer) → ripe → drain (drops key and value) → free → next life
//!                                      ↑──────── held ←─────────┘ (somebody reads it without a pin)
//! ```
//! All lists are chains of slot indices through the slots' `link`, so none of this allocates but the
//! deferred closure of a whole batch, which fits crossbeam's inline storage. The lists live in stripes that
//! belong to the cache and that any thread may use.
//!
//! Two parts of the way are a thread's own, so that a write passes them without a read-modify-write: the
//! trail of slots that it retired (`trail.rs`), and a magazine of free slots (`magazine.rs`). Who seals a
//! batch takes another thread's trail along, each in turn: an idle thread keeps no key and no value for
//! long. Threads without an id of their own retire to their stripe's open batch.
//!
//! Readers never come here. Sealed batches are marked ripe by a closure that may run on any thread; keys
//! and values are dropped by **writers**, a bounded number a write, with nothing held: a destructor may
//! panic, or call back into the cache.

use super::chain::{Chain, Links};
use super::magazine::Magazines;
use super::mem::OutOfMemory;
use super::reclaim::Guard;
use super::slab::Slab;
use super::state::Phase;
use super::trail::{Taken, Trail};
use crate::sync::FirstPanic;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use crossbeam_utils::CachePadded;
use std::cell::Cell;

/// Slots drained in one go, and so the most destructors that one write pays for.
pub const DRAIN: usize = 16;
/// Largest batch of retired slots: what one deferred closure, and one barrier, are shared by.
const BATCH_MAX: usize = if cfg!(alru_loom) { 2 } else { 2048 };
/// Largest batch that is small beside any capacity.
const BATCH_MIN: usize = if cfg!(alru_loom) { 2 } else { 64 };

/// A full batch, ready for its grace period.
#[must_use = "a sealed batch that is not deferred is lost"]
pub struct Sealed {
    pub slots: Taken,
    pub stripe: u32,
}

struct Stripe {
    /// Retired slots of the batch that is being filled: `count32 | index32`. No tag: it only takes pushes
    /// and take-alls, and an index that a pinned thread saw here is not retired again under its pin.
    open: AtomicU64,
    ripe: Chain,
    free: Chain,
    /// Drained in vain, because they were held: to be retired once more.
    held: Chain,
}

/// All slots that are neither linked nor fresh.
pub struct Limbo {
    stripes: Box<[CachePadded<Stripe>]>,
    /// One for each of the lowest thread ids.
    trails: Box<[CachePadded<Trail>]>,
    /// The trail that is taken along next.
    gleaned: AtomicUsize,
    magazines: Magazines,
    batch: u32,
    /// Batches that wait for their grace period.
    waiting: AtomicUsize,
}

#[cfg(not(alru_loom))]
std::thread_local! {
    /// Set while this thread runs destructors: a destructor that writes to a cache does not drain in turn,
    /// so that the stack stays flat.
    static DRAINING: Cell<bool> = const { Cell::new(false) };
}
#[cfg(alru_loom)]
crate::sync::thread_local! {
    static DRAINING: Cell<bool> = Cell::new(false);
}

impl Limbo {
    /// Stripes for this machine, and trails and magazines for `owners` threads. `capacity`: None if unbounded.
    pub fn new(
        stripes: usize,
        owners: usize,
        capacity: Option<u64>,
        reserve: usize,
    ) -> Result<Self, OutOfMemory> {
        let batch = Self::batch(stripes, capacity, reserve);
        let stripe = || {
            CachePadded::new(Stripe {
                open: AtomicU64::new(0),
                ripe: Chain::new(),
                free: Chain::new(),
                held: Chain::new(),
            })
        };
        let trails: Result<_, _> =
            (0..owners).map(|_| Trail::new(batch).map(CachePadded::new)).collect();
        Ok(Self {
            stripes: (0..stripes).map(|_| stripe()).collect(),
            trails: trails?,
            gleaned: AtomicUsize::new(0),
            magazines: Magazines::new(owners, reserve),
            batch: batch as u32,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Slots in a batch. Large, because a batch costs a barrier on all processors; but open batches must not hold
    /// much of the reserve, nor of what a small cache has in use.
    fn batch(stripes: usize, capacity: Option<u64>, reserve: usize) -> usize {
        let few = capacity.map_or(0, |c| usize::try_from(c / 4).unwrap_or(usize::MAX));
        (reserve / (stripes * 16)).min(few.max(BATCH_MIN)).clamp(1, BATCH_MAX)
    }

    #[inline]
    fn stripe(&self, stripe: usize) -> &Stripe {
        &self.stripes[stripe & (self.stripes.len() - 1)]
    }

    /// Takes in a slot that the caller unlinked and that has expired. The caller is pinned, and defers
    /// [`Limbo::ripen`] for the batch if this filled one.
    #[inline]
    pub fn retire<K, V>(&self, slab: &Slab<K, V>, guard: &Guard, index: u32) -> Option<Sealed> {
        // SAFETY: the index of a linked slot.
        let slot = unsafe { slab.slot(index) };
        debug_assert_eq!(slot.state.load().phase(), Phase::Expired);
        // The guard's thread is this one, and the id its own: see `magazine.rs`.
        match self.trails.get(guard.thread()) {
            Some(trail) if trail.push(index, |before| slot.set_next(before)) => {
                self.seal_trail(guard.thread(), guard.thread())
            }
            Some(_) => None,
            None => self.retire_to_stripe(slab, guard.thread(), index),
        }
    }

    #[cold]
    #[inline(never)]
    fn retire_to_stripe<K, V>(
        &self,
        slab: &Slab<K, V>,
        stripe: usize,
        index: u32,
    ) -> Option<Sealed> {
        let stripe = stripe & (self.stripes.len() - 1);
        let open = &self.stripes[stripe].open;
        // SAFETY: the index of a linked slot.
        let slot = unsafe { slab.slot(index) };
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
        let mut last = first;
        loop {
            // SAFETY: a chain of retired slots that this thread alone holds.
            match unsafe { slab.slot(last) }.next() {
                0 => return self.sealed(Taken { first, last }, stripe),
                next => last = next,
            }
        }
    }

    fn sealed(&self, slots: Taken, stripe: usize) -> Sealed {
        // Relaxed: a count, read by who has nothing else to do.
        self.waiting.fetch_add(1, Relaxed);
        Sealed { slots, stripe: (stripe & (self.stripes.len() - 1)) as u32 }
    }

    /// Takes what is on a thread's trail; it will be free in `stripe`.
    #[cold]
    pub fn seal_trail(&self, owner: usize, stripe: usize) -> Option<Sealed> {
        self.trails.get(owner)?.take().map(|slots| self.sealed(slots, stripe))
    }

    /// Takes another trail along with a full batch, each in turn.
    pub fn glean(&self, stripe: usize) -> Option<Sealed> {
        // Relaxed: any order will do.
        let turn = self.gleaned.fetch_add(1, Relaxed);
        self.seal_trail(turn.checked_rem(self.trails.len())?, stripe)
    }

    /// How many threads have a trail.
    pub fn trails(&self) -> usize {
        self.trails.len()
    }

    /// Takes what open batch a stripe has, full or not.
    pub fn seal_open<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> Option<Sealed> {
        let first = self.stripe(stripe).open.swap(0, AcqRel) as u32;
        (first != 0).then(|| self.seal(slab, stripe, first))
    }

    /// Takes some slots of the stripe that were held when they were drained.
    pub fn seal_held<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> Option<Sealed> {
        let held = &self.stripe(stripe).held;
        if held.is_empty() {
            return None;
        }
        let mut taken = [0; DRAIN];
        let count = held.take(slab, &mut taken);
        for pair in taken[..count].windows(2) {
            slab.set_next(pair[0], pair[1]);
        }
        let slots = Taken { first: *taken[..count].first()?, last: taken[count - 1] };
        Some(self.sealed(slots, stripe))
    }

    /// The grace period of a batch is over.
    pub fn ripen<K, V>(&self, slab: &Slab<K, V>, batch: &Sealed) {
        self.stripe(batch.stripe as usize).ripe.push(slab, batch.slots.first, batch.slots.last);
        // Release: see `is_ripe`.
        self.waiting.fetch_sub(1, Release);
    }

    /// Is this thread running destructors of a drain? Then it drains no further until they are done.
    pub fn is_draining() -> bool {
        DRAINING.try_with(Cell::get).unwrap_or(false)
    }

    /// Is there something in the stripe to be drained?
    pub fn has_ripe(&self, stripe: usize) -> bool {
        !self.stripe(stripe).ripe.is_empty()
    }

    /// Has everything been drained that was held when it was to be drained?
    pub fn is_nothing_held(&self) -> bool {
        self.stripes.iter().all(|s| s.held.is_empty())
    }

    /// Has the grace period of all that is retired passed?
    pub fn is_ripe(&self) -> bool {
        // Acquire: pairs with `ripen`, which counts a batch off after it put it where drains look.
        self.waiting.load(Acquire) == 0
            && self.stripes.iter().all(|s| s.open.load(Relaxed) == 0)
            && self.trails.iter().all(|t| t.is_empty())
    }

    /// Is nothing retired that has not been drained?
    #[cfg(all(test, not(alru_loom)))]
    fn is_settled(&self) -> bool {
        self.is_ripe() && self.stripes.iter().all(|s| s.ripe.is_empty())
    }

    pub fn stripes(&self) -> usize {
        self.stripes.len()
    }

    /// A free slot for a write of the guard's thread, which owns it then. Drains its stripe if there is
    /// something ripe; that comes first, so that what was removed does not outlive many writes.
    ///
    /// # Panics
    /// As [`Limbo::drain`].
    #[inline]
    pub fn draw<K, V>(&self, slab: &Slab<K, V>, guard: &Guard) -> Option<u32> {
        if !self.stripe(guard.thread()).ripe.is_empty() {
            self.drain_to(slab, guard.thread(), Some(guard));
        }
        self.magazines.pop(guard).or_else(|| self.refill(slab, guard))
    }

    /// A free slot of the stripe, and some more for the thread's magazine.
    #[cold]
    #[inline(never)]
    fn refill<K, V>(&self, slab: &Slab<K, V>, guard: &Guard) -> Option<u32> {
        let mut taken = [0; DRAIN];
        let most = (self.magazines.limit(guard) + 1).min(DRAIN);
        let count = self.stripe(guard.thread()).free.take(slab, &mut taken[..most]);
        let (&one, rest) = taken[..count].split_first()?;
        let fits = rest.is_empty() || self.magazines.fill(guard, rest);
        debug_assert!(fits, "it was empty, and no more was taken than it holds");
        Some(one)
    }

    /// A free slot of a stripe; the caller owns it.
    pub fn allocate<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> Option<u32> {
        let mut one = [0];
        (self.stripe(stripe).free.take(slab, &mut one) == 1).then_some(one[0])
    }

    /// Gives a slot back that is EMPTY and was never published.
    pub fn free<K, V>(&self, slab: &Slab<K, V>, stripe: usize, index: u32) {
        self.stripe(stripe).free.push(slab, index, index);
    }

    /// Drops the keys and values of up to [`DRAIN`] ripe slots and frees the slots, but for those that are
    /// leased. False if there were none, or if this thread is draining already.
    ///
    /// # Panics
    /// With the first panic of a destructor, after all slots taken have been freed.
    pub fn drain<K, V>(&self, slab: &Slab<K, V>, stripe: usize) -> bool {
        !self.stripe(stripe).ripe.is_empty() && self.drain_to(slab, stripe, None)
    }

    /// The slots go to the thread's magazine, if there is a guard and it has room, else to the stripe.
    #[cold]
    #[inline(never)]
    fn drain_to<K, V>(&self, slab: &Slab<K, V>, stripe: usize, guard: Option<&Guard>) -> bool {
        let own = self.stripe(stripe);
        let drops = std::mem::needs_drop::<K>() || std::mem::needs_drop::<V>();
        if drops && DRAINING.try_with(|d| d.replace(true)).unwrap_or(false) {
            return false;
        }
        let mut taken = [0; DRAIN];
        let count = own.ripe.take(slab, &mut taken);
        let mut drained = 0;
        let mut panics = FirstPanic::default();
        for i in 0..count {
            let index = taken[i];
            // SAFETY: handed out.
            let is_read = unsafe { slab.slot(index) }.let_go();
            if is_read || !is_due(slab, index) {
                own.held.push(slab, index, index);
            } else {
                drain_one(slab, index, &mut panics);
                taken[drained] = index;
                drained += 1;
            }
        }
        let taken = &taken[..drained];
        if !guard.is_some_and(|g| self.magazines.fill(g, taken)) {
            own.free.push_all(slab, taken);
        }
        if drops {
            let _ = DRAINING.try_with(|d| d.set(false));
        }
        panics.resume();
        count > 0
    }
}

/// May a ripe slot be drained? Not while it is leased: its index is not to be reused, and its value is read.
fn is_due<K, V>(slab: &Slab<K, V>, index: u32) -> bool {
    // SAFETY: handed out. Acquire: pairs with the RMW that gave the lease back. None is given any more: the slot
    // is not READY.
    !unsafe { slab.slot(index) }.state.load().is_leased() || cfg!(alru_mutation = "drain_leased")
}

/// Drops key and value, value first, then frees the slot, whatever a destructor does.
#[inline]
fn drain_one<K, V>(slab: &Slab<K, V>, index: u32, panics: &mut FirstPanic) {
    // SAFETY: handed out.
    let slot = unsafe { slab.slot(index) };
    if std::mem::needs_drop::<V>() && slot.state.load().has_value() {
        // SAFETY: the grace period is over and the slot is off every list but this thread's: nobody else
        // reaches the cells. VALUE says that the value is initialised; it is not used again.
        panics.catch(|| unsafe { slot.drop_value() });
    }
    if std::mem::needs_drop::<K>() {
        // SAFETY: as above; every retired slot has a key.
        panics.catch(|| unsafe { slot.drop_key() });
    }
    slot.state.drained();
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;
    use crate::raw::reclaim::{self, THREADS};
    use crate::raw::state::{Filing, Residence};

    #[test]
    fn what_an_idle_thread_retired_is_taken_along() {
        let slab = Slab::<u32, u32>::bounded(3).unwrap();
        let limbo = Limbo::new(1, THREADS, None, 1 << 20).unwrap();
        let retire = |_| {
            let index = slab.fresh().unwrap();
            // SAFETY: just handed out.
            let slot = unsafe { slab.slot(index) };
            assert_eq!(slot.state.begin_ready(0, Residence::Main), Filing::Done);
            slot.state.expire();
            assert!(limbo.retire(&slab, &reclaim::pin(), index).is_none());
            index
        };
        let slots = std::thread::scope(|s| s.spawn(|| [0; 3].map(retire)).join().unwrap());
        assert!(!limbo.is_settled());
        let batch = (0..THREADS).find_map(|_| limbo.glean(0)).unwrap();
        assert_eq!(batch.slots, Taken { first: slots[2], last: slots[0] });
        limbo.ripen(&slab, &batch);
        assert!(limbo.drain(&slab, 0) && limbo.is_settled());
        let mut free: Vec<u32> = std::iter::from_fn(|| limbo.allocate(&slab, 0)).collect();
        free.sort_unstable();
        assert_eq!(free, slots);
    }
}
