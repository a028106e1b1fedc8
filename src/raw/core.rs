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

use super::bin::{Commit, FIRST_INDEX, Glance, Probe, Tag};
use super::flight::{Drive, Entered, FlightId, Flights, Left};
use super::hands::{Hands, Policy};
use super::limbo::{DRAIN, Limbo, Sealed};
use super::mem::OutOfMemory;
use super::reclaim::{self, Guard};
use super::slab::Slab;
use super::slot::Slot;
use super::state::{Completion, Phase, Residence, Snapshot};
use super::table::Index;
use super::weight::Ledger;
use crate::policy::{expiry, jitter};
use crate::stats::{Counter, Counters};
use crate::sync::{self, Arc};
use crate::time::TimeSource;
use std::borrow::Borrow;
use std::time::Duration;

/// Victims that one charge tries to take before it gives up.
const EVICTION_TRIES: usize = if cfg!(alru_loom) { 2 } else { 16 };

/// Steps of the epoch that one call tries to bring about; a grace period takes three.
const FLUSHES: usize = if cfg!(alru_loom) { 2 } else { 8 };

/// Times that `run_pending` gives way to threads that hold up a grace period.
const GRACE_ROUNDS: usize = if cfg!(alru_loom) { 1 } else { 100 };

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

/// Time as the core sees it.
struct Clock {
    source: Box<dyn TimeSource>,
    origin: Duration,
    resolution: Duration,
    ttl: Option<Duration>,
    jitter: Duration,
}

impl Clock {
    /// Has the entry's deadline passed? Reads the clock only if there is one.
    #[inline(always)]
    fn is_expired(&self, state: Snapshot) -> bool {
        let deadline = state.deadline();
        deadline != 0 && self.has_passed(deadline)
    }

    fn has_passed(&self, deadline: u64) -> bool {
        // The cheap reading may lag: it decides that an entry lives, and the exact one that it does not.
        let Self { source, origin, resolution, .. } = self;
        expiry::is_expired(deadline, source.now(), *origin, *resolution)
            && (resolution.is_zero()
                || expiry::is_expired(deadline, source.now_exact(), *origin, Duration::ZERO))
    }

    /// The deadline of an entry whose value is there now; 0 without a TTL.
    #[inline]
    fn new_deadline(&self) -> u64 {
        self.ttl.map_or(0, |ttl| self.deadline_after(ttl))
    }

    #[cold]
    fn deadline_after(&self, ttl: Duration) -> u64 {
        let extra = if self.jitter.is_zero() {
            Duration::ZERO
        } else {
            jitter::draw(self.jitter, sync::random_u64())
        };
        expiry::deadline(self.source.now_exact(), self.origin, ttl.saturating_add(extra))
    }
}

/// The lock-free cache behind every handle.
pub struct Core<K, V> {
    index: Index,
    slab: Slab<K, V>,
    limbo: Limbo,
    /// None for an unbounded cache.
    hands: Option<Hands>,
    ledger: Ledger,
    flights: Flights<V>,
    clock: Clock,
    counters: Counters,
    max_refs: u8,
    /// Fresh slots that are handed out before other stripes' free ones are looked for.
    fresh_first: u32,
}

/// What became of an attempt to publish a draft.
enum Publish<'a, K, V> {
    Done,
    /// A live entry that may not be replaced has the key.
    Occupied(Draft<'a, K, V>),
    /// There is no place for it.
    Refused(Draft<'a, K, V>),
}

/// What a load is to do.
pub enum Admission<'a, 'g, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    /// The value is there.
    Hit(&'g Slot<K, V>),
    /// A load is under way; the caller has a seat in it, and its key back.
    Join(Seat<'a, K, V>, K),
    /// The caller's load is the one; it has a seat and the turn.
    Lead(Seat<'a, K, V>),
    /// No place for an entry: load for oneself. The key comes back.
    Refused(K),
}

/// A charged entry that is not published yet; refunded when dropped.
struct Charge<'a>(&'a Ledger);

impl Charge<'_> {
    /// The charge goes over to a published entry.
    fn hand_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.0.refund();
    }
}

/// A slot of one's own, with a key and perhaps a value, not yet published; withdrawn when dropped.
struct Draft<'a, K, V> {
    core: &'a Core<K, V>,
    index: u32,
    stripe: usize,
    has_key: bool,
}

impl<K, V> Draft<'_, K, V> {
    fn slot(&self) -> &Slot<K, V> {
        // SAFETY: allocated from the slab.
        unsafe { self.core.slab.slot(self.index) }
    }

    fn set_key(&mut self, key: K) {
        debug_assert!(!self.has_key);
        // SAFETY: the slot is ours, EMPTY, without a key.
        unsafe { self.slot().write_key(key) };
        self.has_key = true;
    }

    fn key(&self) -> &K {
        debug_assert!(self.has_key);
        // SAFETY: written by `set_key`, and only this draft can take it out again.
        unsafe { self.slot().key() }
    }

    fn begin_pending(&self, tag: Tag, flight: FlightId) {
        let residence = self.core.residence(tag);
        self.begin(tag, residence, |s| s.state.begin_pending(flight.field(), residence));
    }

    fn begin_ready(&self, tag: Tag, value: V, deadline: u64) {
        let residence = self.core.residence(tag);
        // SAFETY: the slot is ours, EMPTY, without a value.
        unsafe { self.slot().write_value(value) };
        self.begin(tag, residence, |s| s.state.begin_ready(deadline, residence));
    }

    fn begin(&self, tag: Tag, residence: Residence, begin: impl FnOnce(&Slot<K, V>)) {
        let slot = self.slot();
        slot.set_tag(tag);
        slot.set_refs(self.core.hands.as_ref().map_or(0, Hands::first_refs));
        begin(slot);
        self.core.ledger.settle(residence);
        if residence == Residence::Probation {
            if let Some(hands) = &self.core.hands {
                hands.show(self.index);
            }
        }
    }

    /// The slot is linked now, and belongs to the index.
    fn publish(self) {
        std::mem::forget(self);
    }

    /// Takes the key out of a draft that came to nothing.
    fn into_key(mut self) -> K {
        debug_assert!(self.has_key);
        self.has_key = false;
        // SAFETY: ours, and `has_key` is false now, so nobody uses it again.
        unsafe { self.slot().take_key() }
    }
}

impl<K, V> Drop for Draft<'_, K, V> {
    fn drop(&mut self) {
        let slot = self.slot();
        // A hand may have promoted what it took for an entry: the last word says where it was.
        let last = slot.state.withdraw();
        if last.is_live() {
            self.core.ledger.vacate(last.residence());
        }
        // SAFETY: never published, so ours; VALUE says that the value is initialised.
        let value = last.has_value().then(|| unsafe { slot.take_value() });
        // SAFETY: as above.
        let key = self.has_key.then(|| unsafe { slot.take_key() });
        self.core.limbo.free(&self.core.slab, self.stripe, self.index);
        // User destructors last, with nothing held.
        drop(value);
        drop(key);
    }
}

/// A seat in a flight. Leaves when dropped, and ends the flight if it is the last.
pub struct Seat<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    core: &'a Arc<Core<K, V>>,
    id: FlightId,
}

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Seat<'a, K, V> {
    /// The flight.
    pub fn entered(&self) -> Entered<'a, V> {
        self.core.flights.entered(self.id)
    }

    /// The id, for a future that keeps the seat across polls; `Core::resume_seat` undoes it.
    pub fn park(self) -> FlightId {
        let id = self.id;
        std::mem::forget(self);
        id
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Seat<'_, K, V> {
    fn drop(&mut self) {
        let entered = self.entered();
        let left = self.core.flights.leave(entered);
        if left == Left::LastOpen {
            self.core.end_flight(self.id);
        }
        if left != Left::Others {
            // SAFETY: this seat was the last, and leaves once.
            drop(unsafe { self.core.flights.recycle(entered) });
        }
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Core<K, V> {
    pub fn new(config: Config) -> Result<Self, OutOfMemory> {
        let threads = sync::parallelism();
        let stripes = threads.next_power_of_two().min(64);
        let owners = (threads * 4).min(reclaim::THREADS);
        let (slab, index, hands, fresh_first) = match config.capacity {
            Some(capacity) => {
                let entries = usize::try_from(capacity).map_err(|_| OutOfMemory)?;
                let slots = entries.checked_add(config.reserve).ok_or(OutOfMemory)?;
                let hands = Hands::new(config.policy, capacity, slots, stripes)?;
                let slack = (stripes * 128).min(config.reserve);
                let fresh_first = (entries + slack).min(u32::MAX as usize) as u32;
                (Slab::bounded(slots)?, Index::new(entries)?, Some(hands), fresh_first)
            }
            None => {
                let initial = config.initial.max(if cfg!(alru_loom) { 4 } else { 64 });
                (Slab::unbounded(initial)?, Index::new(initial)?, None, u32::MAX)
            }
        };
        let source = config.time;
        Ok(Self {
            index,
            slab,
            limbo: Limbo::new(stripes, owners, config.reserve),
            max_refs: if hands.is_some() { Hands::max_refs(config.policy) } else { 0 },
            hands,
            ledger: Ledger::new(config.capacity),
            flights: Flights::new(),
            clock: Clock {
                origin: source.now_exact(),
                resolution: source.resolution(),
                source,
                ttl: config.ttl,
                jitter: config.jitter,
            },
            counters: Counters::new(owners),
            fresh_first,
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
        self.counters.add(guard.thread(), counter);
    }

    // ---- reads -----------------------------------------------------------------------------------

    #[inline(always)]
    fn find<'g, Q>(&'g self, guard: &'g Guard, tag: Tag, key: &Q) -> Option<(u32, &'g Slot<K, V>)>
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
    pub fn get<'g, Q>(&'g self, guard: &'g Guard, tag: Tag, key: &Q) -> Option<&'g Slot<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        loop {
            let (_, slot) = self.find(guard, tag, key)?;
            let state = slot.state.load();
            if state.is_ready() {
                return (!self.clock.is_expired(state)).then_some(slot);
            }
            if state.is_live() {
                return None;
            }
            // The life ended after the look-up validated it. If that was a replacement the key is there,
            // in another slot; every such round is somebody's progress.
        }
    }

    /// A whole look-up: pins, counts a hit and gives the entry its reference, clones the value out. `missed`
    /// is told of a miss, under the same pin.
    #[inline(always)]
    pub fn read<Q>(&self, tag: Tag, key: &Q, missed: impl FnOnce(&Guard)) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
        V: Clone,
    {
        self.index.prefetch(tag);
        let guard = reclaim::pin();
        let Some(slot) = self.get(&guard, tag, key) else {
            missed(&guard);
            return None;
        };
        self.touch(slot);
        self.count(&guard, Counter::Hits);
        // SAFETY: `get` read READY under this guard.
        Some(unsafe { slot.value() }.clone())
    }

    /// A hit on the slot, for the hands.
    #[inline(always)]
    pub fn touch(&self, slot: &Slot<K, V>) {
        slot.touch(self.max_refs);
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

    fn is_entry(&self, state: Snapshot) -> bool {
        state.is_live() && !self.clock.is_expired(state)
    }

    // ---- ends of lives ---------------------------------------------------------------------------

    /// What the winner of an unlink owes: the life ends, the residence is vacated, the slot retires. The
    /// charge is the caller's: to refund, or to hand to a newcomer.
    #[inline(always)]
    fn end(self: &Arc<Self>, guard: &Guard, index: u32) -> Snapshot {
        // SAFETY: a linked index.
        let slot = unsafe { self.slab.slot(index) };
        let last = slot.state.expire();
        self.ledger.vacate(last.residence());
        if let Some(batch) = self.limbo.retire(&self.slab, guard, index) {
            self.defer_full(guard, batch);
        }
        last
    }

    /// Defers a full batch, and what another thread has left behind.
    #[cold]
    #[inline(never)]
    fn defer_full(self: &Arc<Self>, guard: &Guard, batch: Sealed) {
        self.defer(guard, batch);
        if let Some(gleaned) = self.limbo.glean(guard.thread()) {
            self.defer(guard, gleaned);
        }
    }

    /// Marks the batch ripe after a grace period. The closure holds the core, moves links only, and fits
    /// crossbeam's inline storage.
    fn defer(self: &Arc<Self>, guard: &Guard, batch: Sealed) {
        let core = self.clone();
        // SAFETY: the closure touches list heads and links of slots that are off every list; the core
        // that it holds keeps them alive. `K` and `V` are Send and 'static.
        unsafe { guard.defer(move || core.limbo.ripen(&core.slab, &batch)) };
        guard.flush();
    }

    /// Unlinks this very slot and ends its life; None if somebody else did.
    #[inline(always)]
    fn unlink(self: &Arc<Self>, guard: &Guard, tag: Tag, index: u32) -> Option<Snapshot> {
        self.index.unlink(guard, tag, index).then(|| self.end(guard, index))
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
                let was_entry = self.is_entry(last);
                if !was_entry {
                    self.count(guard, Counter::Expirations);
                }
                return ((was_entry && last.is_ready()).then_some(slot), was_entry);
            }
        }
        (None, false)
    }

    /// Removes every entry that was there when the call began, loads under way included.
    pub fn clear(self: &Arc<Self>) {
        let mut guard = reclaim::pin();
        for index in FIRST_INDEX..self.slab.high_water() {
            if index % 64 == 0 {
                // A long sweep must not hold up reclamation.
                guard.repin();
            }
            let Some(slot) = self.slab.get(index) else { continue };
            let tag = slot.tag();
            if slot.state.load().is_live() && self.unlink(&guard, tag, index).is_some() {
                self.ledger.refund();
            }
        }
    }

    /// Takes a flight without a result out of the cache, if its slot is still pending on it.
    pub fn end_flight(self: &Arc<Self>, id: FlightId) {
        let (index, tag) = self.flights.entered(id).flight.slot();
        if index < FIRST_INDEX {
            return;
        }
        let guard = reclaim::pin();
        // SAFETY: set from a slot that was handed out.
        let slot = unsafe { self.slab.slot(index) };
        // The id is not reused before the caller recycles the flight, so PENDING with it is its own slot,
        // and stays that slot while this thread is pinned.
        if slot.state.load().flight() == Some(id.field())
            && self.unlink(&guard, tag, index).is_some()
        {
            self.ledger.refund();
        }
    }

    // ---- room ------------------------------------------------------------------------------------

    /// Charges a newcomer, in place of a victim if there is no room.
    fn charge<'a>(self: &'a Arc<Self>, guard: &Guard) -> Option<Charge<'a>> {
        for _ in 0..EVICTION_TRIES {
            if self.ledger.try_charge() || self.evict(guard) {
                return Some(Charge(&self.ledger));
            }
        }
        None
    }

    /// Evicts one entry, whose charge is the caller's now.
    fn evict(self: &Arc<Self>, guard: &Guard) -> bool {
        let Some(hands) = &self.hands else { return false };
        let crowded = self.flights.active() as u64 * 2 > self.ledger.total();
        for _ in 0..EVICTION_TRIES {
            let Some(victim) = hands.next_victim(
                &self.slab,
                &self.ledger,
                guard.thread(),
                crowded,
                |s| self.clock.is_expired(s),
                |tag| self.index.prefetch(tag),
            ) else {
                return false;
            };
            if self.unlink(guard, victim.tag, victim.index).is_some() {
                if victim.from_probation && !victim.expired {
                    hands.remember(victim.tag);
                }
                let counter =
                    if victim.expired { Counter::Expirations } else { Counter::Evictions };
                self.count(guard, counter);
                return true;
            }
        }
        false
    }

    /// The hand alone, for models: evicts an entry if there is one.
    #[cfg(alru_loom)]
    pub fn sweep(self: &Arc<Self>) {
        if self.evict(&reclaim::pin()) {
            self.ledger.refund();
        }
    }

    /// Makes room in the full group of `tag`: a dead entry goes, else the coldest ready one, never `keep`;
    /// an unbounded index grows. False if all there are loads.
    fn clear_group(self: &Arc<Self>, guard: &Guard, tag: Tag, keep: Option<u32>) -> bool {
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

    /// A slot of one's own. What the thread has at hand and the stripe's drained slots first, then fresh ones while there are few, then
    /// whatever is free or ripe anywhere, then the reserve. None if all of it is in limbo.
    fn draft(self: &Arc<Self>, guard: &mut Guard) -> Option<Draft<'_, K, V>> {
        let own = guard.thread();
        let limbo = &self.limbo;
        let draft = |index| Draft { core: &**self, index, stripe: own, has_key: false };
        if let Some(index) = limbo.draw(&self.slab, guard) {
            return Some(draft(index));
        }
        if self.slab.high_water() < self.fresh_first {
            if let Some(index) = self.slab.fresh() {
                return Some(draft(index));
            }
        }
        if let Some(index) = self.scavenge(own).or_else(|| self.slab.fresh()) {
            return Some(draft(index));
        }
        self.force_grace(guard);
        self.scavenge(own).map(draft)
    }

    /// A free slot from any stripe.
    fn scavenge(&self, own: usize) -> Option<u32> {
        (0..self.limbo.stripes()).find_map(|i| {
            self.limbo.drain(&self.slab, own + i);
            self.limbo.allocate(&self.slab, own + i)
        })
    }

    /// Seals all open batches and tries to end their grace period.
    fn force_grace(self: &Arc<Self>, guard: &mut Guard) {
        for stripe in 0..self.limbo.stripes() {
            if let Some(batch) = self.limbo.seal_open(&self.slab, stripe) {
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
        for index in FIRST_INDEX..self.slab.high_water() {
            if index % 64 == 0 {
                guard.repin();
            }
            let Some(slot) = self.slab.get(index) else { continue };
            let tag = slot.tag();
            let state = slot.state.load();
            if state.is_ready()
                && self.clock.is_expired(state)
                && self.unlink(&guard, tag, index).is_some()
            {
                self.ledger.refund();
                self.count(&guard, Counter::Expirations);
            }
        }
        // No more than there can be in limbo now: a destructor that inserts makes new work for ever.
        let mut batches = self.slab.high_water() as usize / DRAIN + self.limbo.stripes();
        // A pinned thread that was preempted delays the grace period by a time slice; give way to it some
        // times, and leave it at that if a guard is held for longer, or by this very thread.
        for _ in 0..if own_guard { 1 } else { GRACE_ROUNDS } {
            self.force_grace(&mut guard);
            for stripe in 0..self.limbo.stripes() {
                while batches > 0 && self.limbo.drain(&self.slab, stripe) {
                    batches -= 1;
                }
            }
            if batches == 0 || self.limbo.is_settled() {
                break;
            }
            sync::yield_now();
        }
    }

    // ---- writes ----------------------------------------------------------------------------------

    /// Publishes a draft: in place of the key's entry if `may_replace` holds for it, else as a newcomer.
    fn publish<'a>(
        self: &'a Arc<Self>,
        guard: &Guard,
        tag: Tag,
        draft: Draft<'a, K, V>,
        may_replace: impl Fn(Snapshot) -> bool,
    ) -> Publish<'a, K, V>
    where
        K: Eq,
    {
        let mut charge: Option<Charge<'a>> = None;
        loop {
            // SAFETY: as in `find_slow`.
            let is_key = |i| unsafe { self.slab.slot(i).key() } == draft.key();
            let vacancy = match self.index.probe(guard, tag, is_key) {
                Probe::Vacant(vacancy) => vacancy,
                Probe::Found(old) => {
                    // SAFETY: a linked index.
                    let state = unsafe { self.slab.slot(old) }.state.load();
                    if !may_replace(state) {
                        return Publish::Occupied(draft);
                    }
                    match self.index.replace(guard, tag, old, draft.index) {
                        Commit::Done => {
                            // The old entry's charge goes over; one of our own is refunded on drop.
                            let last = self.end(guard, old);
                            if !self.is_entry(last) {
                                self.count(guard, Counter::Expirations);
                            }
                            draft.publish();
                            return Publish::Done;
                        }
                        Commit::Full if !self.clear_group(guard, tag, Some(old)) => {
                            return Publish::Refused(draft);
                        }
                        _ => continue,
                    }
                }
            };
            if charge.is_none() {
                // Looked up before anything is evicted for it: an update costs no victim.
                charge = self.charge(guard);
                if charge.is_none() {
                    return Publish::Refused(draft);
                }
            }
            match self.index.insert_at(guard, vacancy, tag, draft.index, is_key) {
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
                match self.publish(&guard, tag, draft, |_| true) {
                    Publish::Done => {
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

    // ---- loads -----------------------------------------------------------------------------------

    /// Finds the value, a seat in the load under way, or the lead of a new load. Never waits.
    pub fn admit<'a, 'g>(
        self: &'a Arc<Self>,
        guard: &'g mut Guard,
        tag: Tag,
        key: K,
        drive: Drive,
    ) -> Admission<'a, 'g, K, V>
    where
        K: Eq,
        'a: 'g,
    {
        if self.capacity() == Some(0) {
            return Admission::Refused(key);
        }
        let mut key = key;
        loop {
            if let Some((index, slot)) = self.find(&*guard, tag, &key) {
                let state = slot.state.load();
                if state.is_ready() && !self.clock.is_expired(state) {
                    let slot: *const Slot<K, V> = slot;
                    // SAFETY: the same borrow once more: a conditional return of a reborrow is beyond the
                    // borrow checker. The guard stays pinned for 'g, as nobody has it but the caller.
                    return Admission::Hit(unsafe { &*slot });
                }
                if let Some(field) = state.flight() {
                    let id = FlightId::from_field(field);
                    let seat = self.flights.enter(id).map(|_| Seat { core: self, id });
                    if slot.state.load().flight() == Some(field) {
                        match seat {
                            Some(seat) => return Admission::Join(seat, key),
                            // Closed, and yet pending: READY comes before CLOSED, so it ended without
                            // a result. Whoever ends it may be asleep; do it for him.
                            None => {
                                if self.unlink(guard, tag, index).is_some() {
                                    self.ledger.refund();
                                }
                            }
                        }
                    }
                    continue;
                }
            }
            let Some(mut draft) = self.draft(guard) else {
                self.count(guard, Counter::Refused);
                return Admission::Refused(key);
            };
            let Ok(entered) = self.flights.begin(drive) else {
                self.count(guard, Counter::Refused);
                return Admission::Refused(key);
            };
            entered.flight.set_slot(draft.index, tag);
            let seat = Seat { core: self, id: entered.id };
            draft.set_key(key);
            draft.begin_pending(tag, entered.id);
            match self.publish(guard, tag, draft, |s| !self.is_entry(s)) {
                Publish::Done => {
                    self.count(guard, Counter::Loads);
                    return Admission::Lead(seat);
                }
                Publish::Occupied(draft) => key = draft.into_key(),
                Publish::Refused(draft) => {
                    self.count(guard, Counter::Refused);
                    return Admission::Refused(draft.into_key());
                }
            }
        }
    }

    /// The seat that was parked with this id.
    ///
    /// # Safety
    /// `id` came from [`Seat::park`] of a seat of this core, and is resumed once.
    pub unsafe fn resume_seat<'a>(self: &'a Arc<Self>, id: FlightId) -> Seat<'a, K, V> {
        Seat { core: self, id }
    }

    /// Stores a load's result in the slot that it began with, if that is still pending on it. `copy` makes
    /// the cache's own copy of the value: user code, run at most once, while nothing is half done.
    ///
    /// The caller holds the flight's turn.
    pub fn complete(
        self: &Arc<Self>,
        entered: Entered<'_, V>,
        copy: impl FnOnce() -> V,
    ) -> Completion {
        let (index, _) = entered.flight.slot();
        let field = entered.id.field();
        let guard = reclaim::pin();
        // SAFETY: set from a slot that was handed out.
        let slot = unsafe { self.slab.slot(index) };
        if slot.state.load().flight() != Some(field) {
            return Completion::Detached;
        }
        let value = copy();
        let deadline = self.clock.new_deadline();
        // SAFETY: PENDING with this flight was read under this pin: the slot's life is the flight's, and
        // the slot is not recycled before the unpin. Only the holder of the turn writes the value cell,
        // and it has not yet: its life had no value.
        unsafe { slot.write_value(value) };
        let completion = slot.state.complete(field, deadline);
        match completion {
            Completion::Stored => self.count(&guard, Counter::Insertions),
            Completion::Detached => {
                // SAFETY: the life ended without VALUE, so the drainer leaves the cell alone, and the
                // slot is not reused under this pin: the value is still ours.
                let value = unsafe { slot.take_value() };
                drop(guard);
                drop(value);
            }
        }
        completion
    }

    /// The key of a flight's slot that the caller published under this guard.
    pub fn key_of<'g>(&'g self, _guard: &'g Guard, entered: Entered<'_, V>) -> &'g K {
        let (index, _) = entered.flight.slot();
        // SAFETY: set from a slot that was handed out; it was linked under this guard, so the key stays.
        unsafe { self.slab.slot(index).key() }
    }
}

impl<K, V> Core<K, V> {
    fn residence(&self, tag: Tag) -> Residence {
        self.hands.as_ref().map_or(Residence::Main, |h| h.residence(tag, &self.ledger))
    }

    /// Drops every key and value. The last handle calls it: no operation runs, no guard is held, and no
    /// other will begin.
    ///
    /// # Safety
    /// As just said. Closures in crossbeam's queues may still move links.
    pub unsafe fn drop_contents(&self) {
        for index in FIRST_INDEX..self.slab.high_water() {
            let Some(slot) = self.slab.get(index) else { continue };
            let last = slot.state.load();
            if last.phase() == Phase::Empty {
                continue;
            }
            slot.state.withdraw();
            // A destructor that panics must not keep the others from running.
            let contents = Contents { slot, has_value: last.has_value() };
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(contents)));
        }
    }
}

/// Drops a slot's value and key, the key also if the value's destructor panics.
struct Contents<'a, K, V> {
    slot: &'a Slot<K, V>,
    has_value: bool,
}

impl<K, V> Drop for Contents<'_, K, V> {
    fn drop(&mut self) {
        struct Key<'a, K, V>(&'a Slot<K, V>);
        impl<K, V> Drop for Key<'_, K, V> {
            fn drop(&mut self) {
                // SAFETY: exclusive, as `drop_contents` demands; every life has a key.
                unsafe { self.0.drop_key() };
            }
        }
        let _key = Key(self.slot);
        if self.has_value {
            // SAFETY: exclusive, and VALUE said that it is initialised.
            unsafe { self.slot.drop_value() };
        }
    }
}
