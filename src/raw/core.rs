//! The core: index, slots, hands, limbo and flights put together.
//!
//! Rules that hold throughout:
//! * **One winner.** Whoever clears an entry's valid bit by a header CAS, by unlinking or replacing it, owns
//!   all that the end of a life brings: the state's way to EXPIRED, the event, the charge and the retirement.
//!   Nobody ends a life otherwise. (A hand that expired a slot first and unlinked it second could kill one
//!   that is not linked yet, and leave a corpse in the index.)
//! * Whoever touches a slot that it does not own is pinned.
//! * User code (`Hash`, `Eq`, `Clone`, `Drop`, loaders, wakers) runs with nothing held: whatever is half done
//!   is undone by a guard if it panics.

use super::aside::Aside;
use super::barrier;
use super::bin::{Commit, FIRST_INDEX, Probe, Tag};
use super::draft::{Charge, Draft};
use super::flight::Flights;
use super::hands::{Hands, Policy};
use super::hazard;
use super::lifetime::{Clock, Source};
use super::limbo::{Limbo, Sealed};
use super::mem::OutOfMemory;
use super::reclaim::{self, Guard};
use super::room::Charged;
use super::slab::Slab;
use super::slot::Slot;
use super::state::{Phase, Residence, Snapshot};
use super::table::Index;
use super::waiters::Waiters;
use super::weight::Ledger;
use crate::stats::{Counter, Counters};
use crate::sync::{self, Arc, FirstPanic};
use crate::time::TimeSource;
use std::borrow::Borrow;
use std::time::Duration;

/// What a core is built from; validated by the builder.
pub struct Config {
    /// Entries; None: unbounded.
    pub capacity: Option<u64>,
    /// Slots beyond the capacity.
    pub reserve: usize,
    /// Entries expected, for an unbounded cache.
    pub initial: usize,
    pub policy: Policy,
    pub ttl: Option<Duration>,
    pub jitter: Duration,
    pub time: Box<dyn TimeSource>,
}

/// The lock-free cache behind every handle.
pub struct Core<K, V> {
    pub(super) index: Index,
    pub(super) slab: Slab<K, V>,
    pub(super) limbo: Limbo,
    /// None for an unbounded cache.
    pub(super) hands: Option<Hands>,
    pub(super) ledger: Ledger,
    pub(super) flights: Flights<V>,
    pub(super) aside: Aside<K>,
    pub(super) clock: Clock,
    pub(super) counters: Counters,
}

/// What became of an attempt to publish a draft.
pub(super) enum Publish<'a, K, V> {
    Done,
    /// A live entry that may not be replaced has the key.
    Occupied(Draft<'a, K, V>),
    /// There is no place for it.
    Refused(Draft<'a, K, V>),
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    pub fn new(config: Config) -> Result<Self, OutOfMemory> {
        let threads = sync::parallelism();
        let stripes = threads.next_power_of_two().min(64);
        let owners = (threads * 4).min(reclaim::THREADS);
        let (slab, index, hands) = match config.capacity {
            Some(capacity) => {
                let entries = usize::try_from(capacity).map_err(|_| OutOfMemory)?;
                let slots = entries.checked_add(config.reserve).ok_or(OutOfMemory)?;
                let hands = Hands::new(config.policy, capacity, slots, stripes)?;
                (
                    Slab::bounded(slots)?,
                    Index::new(entries)?.into_steady(barrier::is_available()),
                    Some(hands),
                )
            }
            None => {
                let initial = config.initial.max(if cfg!(alru_loom) { 4 } else { 64 });
                (Slab::unbounded(initial)?, Index::new(initial)?, None)
            }
        };
        // An unbounded cache has no reserve to share out; its batches are as large as others'.
        let reserve = config.capacity.map_or(usize::MAX, |_| config.reserve);
        let source = config.time;
        Ok(Self {
            index,
            slab,
            limbo: Limbo::new(stripes, owners, config.capacity, reserve)?,
            hands,
            ledger: Ledger::new(config.capacity),
            flights: Flights::new(),
            aside: Aside::new(),
            clock: Clock {
                origin: source.now_exact(),
                resolution: source.resolution(),
                source: Source::new(source),
                ttl: config.ttl,
                jitter: config.jitter,
            },
            counters: Counters::new(owners),
        })
    }

    pub fn capacity(&self) -> Option<u64> {
        self.ledger.capacity()
    }

    pub fn len(&self) -> u64 {
        self.ledger.total()
    }

    pub fn flights(&self) -> &Flights<V> {
        &self.flights
    }

    pub fn stats(&self) -> crate::stats::Stats {
        self.counters.read()
    }

    #[inline(always)]
    pub fn count(&self, guard: &Guard, counter: Counter) {
        self.count_for(guard.thread(), counter);
    }

    /// For the thread of this id.
    #[inline(always)]
    pub fn count_for(&self, thread: usize, counter: Counter) {
        self.counters.add(thread, counter);
    }

    // ---- ends of lives ---------------------------------------------------------------------------

    /// What the winner of an unlink owes: the life ends, the residence is vacated, the slot retires. The
    /// charge is the caller's: to refund, or to hand to a newcomer.
    #[inline(always)]
    pub(super) fn end(self: &Arc<Self>, guard: &Guard, index: u32) -> Snapshot {
        // SAFETY: a linked index.
        let slot = unsafe { self.slab.slot(index) };
        let last = slot.state.expire();
        self.ledger.vacate(last.residence());
        if let Some(batch) = self.limbo.retire(&self.slab, guard, index) {
            self.defer_full(guard, batch);
        }
        last
    }

    /// Defers a full batch, and what another thread or a drain has left behind.
    #[cold]
    #[inline(never)]
    fn defer_full(self: &Arc<Self>, guard: &Guard, batch: Sealed) {
        self.defer(guard, batch);
        if let Some(held) = self.limbo.seal_held(&self.slab, guard.thread()) {
            self.defer(guard, held);
        }
        if let Some(gleaned) = self.limbo.glean(guard.thread()) {
            self.defer(guard, gleaned);
        }
    }

    /// Marks the batch ripe after a grace period, and those of its slots held that are read without a pin. The
    /// closure holds the core, moves links only, and fits crossbeam's inline storage. It may be the last to hold
    /// the core, but no user code goes with that: keys, values, clock, futures and wakers went with the last
    /// handle (`drop_contents`).
    pub(super) fn defer(self: &Arc<Self>, guard: &Guard, batch: Sealed) {
        if self.index.shielded().is_some() && !hazard::hold_what_is_read(&self.slab) {
            // The kernel took back what it granted when the cache was built. Somebody may read these slots for ever.
            return;
        }
        let core = self.clone();
        // SAFETY: the closure touches list heads and links of slots that are off every list; the core
        // that it holds keeps them alive. `K` and `V` are Send and 'static.
        unsafe { guard.defer(move || core.limbo.ripen(&core.slab, &batch)) };
        guard.flush();
    }

    /// Unlinks this very slot and ends its life; None if somebody else did.
    #[inline(always)]
    pub(super) fn unlink(
        self: &Arc<Self>,
        guard: &Guard,
        tag: Tag,
        index: u32,
    ) -> Option<Snapshot> {
        let won = self.index.unlink(guard, tag, index) || cfg!(alru_mutation = "loser_ends");
        won.then(|| self.end(guard, index))
    }

    /// Removes the entry; answers its slot if it was a live value, whose value stays readable under the
    /// guard, and whether there was an entry at all.
    pub fn remove<'g, Q>(
        self: &'g Arc<Self>,
        guard: &'g Guard,
        tag: Tag,
        key: &Q,
    ) -> (Option<&'g Slot<K, V>>, bool)
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        while let Some((index, slot)) = self.find(guard, tag, key) {
            if let Some(last) = self.unlink(guard, tag, index) {
                self.ledger.refund();
                // A thread that only removes drains what it removed, as one that inserts does.
                self.limbo.drain(&self.slab, guard.thread());
                let was_entry = self.is_entry(last);
                if !was_entry {
                    self.count(guard, Counter::Expirations);
                }
                self.detach_beside(tag);
                return ((was_entry && last.is_ready()).then_some(slot), was_entry);
            }
        }
        self.detach_beside(tag);
        (None, false)
    }

    /// Removes every entry that was there when the call began, loads under way included.
    pub fn clear(self: &Arc<Self>) {
        self.each_slot(&mut reclaim::pin(), |guard, index, slot| {
            let tag = slot.tag();
            if slot.state.load().is_live() && self.unlink(guard, tag, index).is_some() {
                self.ledger.refund();
            }
        });
        if self.aside.loads.is_any() {
            self.aside.loads.detach_all();
        }
    }

    /// Removes the entries for which `keep` does not hold, and the loads under way, whose values nobody knows yet.
    pub fn retain(self: &Arc<Self>, mut keep: impl FnMut(&K, &V) -> bool) {
        self.each_slot(&mut reclaim::pin(), |guard, index, slot| {
            let tag = slot.tag();
            // The cells of a draft are its owner's: only what is linked may be read.
            let is_linked = slot.state.load().is_live()
                && (self.index.find(guard, tag, |i| i == index).is_some()
                    || cfg!(alru_mutation = "judge_drafts"));
            let state = slot.state.load();
            if !is_linked || !state.is_live() {
                return;
            }
            let is_expired = self.clock.is_expired(state);
            let stays = state.is_ready() && !is_expired && {
                // SAFETY: it was linked under this pin, so the key is there.
                let key = unsafe { slot.key() };
                // SAFETY: READY was read under it.
                keep(key, unsafe { slot.value() })
            };
            if !stays && self.unlink(guard, tag, index).is_some() {
                self.ledger.refund();
                if is_expired {
                    self.count(guard, Counter::Expirations);
                }
            }
        });
        if self.aside.loads.is_any() {
            self.aside.loads.detach_all();
        }
    }

    /// Visits every slot that was ever handed out. Lets go of the pin now and then: a long walk must not hold
    /// up reclamation.
    pub(super) fn each_slot(
        &self,
        guard: &mut Guard,
        mut visit: impl FnMut(&Guard, u32, &Slot<K, V>),
    ) {
        for index in FIRST_INDEX..self.slab.high_water() {
            if index % 64 == 0 {
                guard.repin();
            }
            if let Some(slot) = self.slab.get(index) {
                visit(guard, index, slot);
            }
        }
    }

    // ---- writes ----------------------------------------------------------------------------------

    /// Publishes a draft: in place of the key's entry if `may_replace` holds for it, else as a newcomer.
    /// `Occupied` also if `beside` holds at an instant after the header was read that the commit relies on.
    pub(super) fn publish<'a>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        draft: Draft<'a, K, V>,
        may_replace: impl Fn(Snapshot) -> bool,
        beside: impl Fn() -> bool,
    ) -> Publish<'a, K, V>
    where
        K: Eq,
    {
        let mut charge: Option<Charge<'a>> = None;
        let mut spared = Some(tag);
        loop {
            // SAFETY: as in `find_slow`.
            let is_key = |i| unsafe { self.slab.slot(i).key() } == draft.key();
            let vacancy = match self.index.probe(guard, tag, is_key) {
                Probe::Vacant(vacancy) => vacancy,
                Probe::Found(old) => {
                    // SAFETY: a linked index.
                    let state = unsafe { self.slab.slot(old) }.state.load();
                    if !may_replace(state) || beside() {
                        return Publish::Occupied(draft);
                    }
                    match self.index.replace(guard, tag, old, draft.index, &beside) {
                        Commit::Done => {
                            // Linked now: before anything else, the draft is no longer ours to withdraw.
                            draft.publish();
                            // The old entry's charge goes over; one of our own is refunded on drop.
                            let last = self.end(guard, old);
                            if !self.is_entry(last) {
                                self.count(guard, Counter::Expirations);
                            }
                            return Publish::Done;
                        }
                        Commit::Full if !self.clear_group(guard, tag, Some(old)) => {
                            return Publish::Refused(draft);
                        }
                        _ => continue,
                    }
                }
            };
            if beside() {
                return Publish::Occupied(draft);
            }
            if charge.is_none() {
                // Looked up before anything is evicted for it: an update costs no victim.
                match self.charge(guard, spared) {
                    Charged::Done(done) => charge = Some(done),
                    // Many who begin one key's load at once may fill a small cache with drafts: the load that one
                    // of them has published must not go for another. Look again, once: it may be another key.
                    Charged::Own => {
                        spared = None;
                        continue;
                    }
                    Charged::NoRoom => return Publish::Refused(draft),
                }
            }
            match self.index.insert_at(guard, vacancy, tag, draft.index, is_key, &beside) {
                Commit::Done => {
                    draft.publish();
                    charge.into_iter().for_each(Charge::hand_over);
                    if self.hands.is_none() {
                        // Without room for a larger table the index fills its groups instead.
                        let _ = self.index.make_room(guard, self.ledger.total() as usize);
                    }
                    return Publish::Done;
                }
                Commit::Full if !self.clear_group(guard, tag, None) => {
                    return Publish::Refused(draft);
                }
                _ => continue,
            }
        }
    }

    /// Inserts or updates. False if the value found no place; then the key is gone all the same.
    pub fn insert(self: &Arc<Self>, tag: Tag, key: K, value: V) -> bool
    where
        K: Eq,
    {
        self.index.prefetch(tag);
        let mut guard = reclaim::pin();
        let draft = if self.capacity() == Some(0) { None } else { self.draft(&mut guard) };
        let refused = match draft {
            None => key,
            Some(mut draft) => {
                draft.set_key(key);
                draft.begin_ready(tag, value, self.clock.new_deadline());
                match self.publish(&guard, tag, draft, |_| true, || false) {
                    Publish::Done => {
                        self.detach_beside(tag);
                        self.count(&guard, Counter::Insertions);
                        return true;
                    }
                    Publish::Occupied(draft) | Publish::Refused(draft) => draft.into_key(),
                }
            }
        };
        // An insert evicted at once: nothing older is served after it, a load under way included.
        self.count(&guard, Counter::Refused);
        self.remove(&guard, tag, &refused);
        false
    }
}

impl<K, V> Core<K, V> {
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where async computes without a queue wait for a lease.
    pub fn crowd(&self) -> &Waiters {
        &self.aside.crowd
    }

    pub(super) fn residence(&self, tag: Tag) -> Residence {
        self.hands.as_ref().map_or(Residence::Main, |h| h.residence(tag, &self.ledger))
    }

    /// Drops every key and value. The last handle calls it: no operation runs, no guard is held, and no
    /// other will begin.
    ///
    /// # Safety
    /// As just said. Closures in crossbeam's queues may still move links.
    pub unsafe fn drop_contents(&self) {
        let mut panics = FirstPanic::default();
        // First what lives in flights whose callers were forgotten, not dropped.
        // SAFETY: the caller's promise.
        unsafe { self.flights.drop_contents(&mut panics) };
        // SAFETY: the caller's promise.
        unsafe { self.aside.drop_contents(self.flights.high_water(), &mut panics) };
        for index in FIRST_INDEX..self.slab.high_water() {
            let Some(slot) = self.slab.get(index) else { continue };
            let last = slot.state.load();
            if last.phase() == Phase::Empty {
                continue;
            }
            slot.state.withdraw();
            if last.has_value() {
                // SAFETY: exclusive, by the caller's promise; VALUE says that it is initialised.
                panics.catch(|| unsafe { slot.drop_value() });
            }
            // SAFETY: exclusive; every life has a key.
            panics.catch(|| unsafe { slot.drop_key() });
        }
        // SAFETY: the caller's promise.
        panics.catch(|| unsafe { self.clock.source.dismiss() });
        // This runs in a destructor: all of it must run, and a panic would come out of a drop.
        panics.swallow();
    }
}
