//! Flights: loads on their way, one a pending slot.
//!
//! ```text
//!  word   count 24 | CLOSED | LEAD | POLLING | NOTIFIED | OUTCOME | ABORTED | SHARED | QUEUE | spare | generation 16
//! ```
//! * Everybody who has business with a flight **enters** it first (count + 1), and leaves it. A count that
//!   reached zero is CLOSED for ever: whoever comes later starts anew. The one whose leaving makes the count
//!   zero recycles the flight, so its index is not reused while a leader or waiter lives.
//! * **LEAD** is for caller-driven flights: who holds it polls its own future. It is never assigned. Who
//!   gives it up clears it and wakes all; whichever waiter is polled first takes it.
//! * **POLLING** is for shared-driven flights: exclusive use of the one future that lives in the flight. A
//!   wake during a poll sets NOTIFIED, and the poller wakes all again when it releases.
//! * **SHARED** says which of the two a flight is. It is set for life, at the start, or by a waiter with a
//!   loader at hand that finds the lead of a caller-driven flight free (`try_share`): LEAD and SHARED are
//!   never set together, so the two kinds of turn exclude each other.
//! * **QUEUE**, for life: the flight is the queue of a key's computes, and no load.
//! * The holder of LEAD or POLLING may write the outcome, sets CLOSED and OUTCOME together, and wakes all.
//!   `abort` sets CLOSED and ABORTED without it.
//! * The future is dropped by whoever makes the word CLOSED and not POLLING: the closer if nobody polls,
//!   else the poller on its release.
//!
//! Identity: a slot in PENDING carries the flight's id, generation and index. Who found it there enters,
//! then re-reads the slot's state word: still PENDING with that id, so this flight is that slot's.

use super::chain::{Chain, Links};
use super::chunks::Chunks;
use super::graph::Place;
use super::mem::{Blank, OutOfMemory};
use super::waiters::Waiters;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use crate::sync::{FirstPanic, UnsafeCell};
use crossbeam_utils::CachePadded;
use std::any::Any;
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Waker};

const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const CLOSED: u64 = 1 << COUNT_BITS;
const LEAD: u64 = CLOSED << 1;
const POLLING: u64 = LEAD << 1;
const NOTIFIED: u64 = POLLING << 1;
const OUTCOME: u64 = NOTIFIED << 1;
const ABORTED: u64 = OUTCOME << 1;
const SHARED: u64 = ABORTED << 1;
const QUEUE: u64 = SHARED << 1;
const GENERATION_SHIFT: u32 = 48;
const GENERATION: u64 = !0 << GENERATION_SHIFT;

/// Bits of an id that are the index; the rest of the state word's field is the generation.
pub(super) const INDEX_BITS: u32 = 24;
const _: () = assert!(INDEX_BITS + (64 - GENERATION_SHIFT) == super::state::FIELD_BITS);

/// Flights in the first chunk.
pub(super) const FIRST_CHUNK: usize = if cfg!(alru_loom) { 2 } else { 16 };

/// How a load ended, for all its waiters.
pub enum Outcome<V> {
    Value(V),
    /// The loader's error; who cannot name its type runs its own load.
    Failed(StdArc<dyn Any + Send + Sync>),
    /// The loader panicked with this message.
    Panicked(StdArc<str>),
}

/// A loader's future.
pub type Load<V> = Pin<Box<dyn Future<Output = Outcome<V>> + Send>>;

/// A future that lives in a flight, and the waker that it is polled with.
pub struct Resident<V> {
    pub load: Load<V>,
    pub waker: Waker,
}

/// Names a flight: `generation 16 | index 24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlightId(u64);

impl FlightId {
    /// From a state word's field.
    pub fn from_field(field: u64) -> Self {
        Self(field)
    }
    pub fn field(self) -> u64 {
        self.0
    }
    pub(super) fn index(self) -> u32 {
        (self.0 & ((1 << INDEX_BITS) - 1)) as u32
    }
    fn generation(self) -> u64 {
        self.0 >> INDEX_BITS
    }
}

/// Who drives a flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drive {
    /// The holder of LEAD polls a future of its own.
    Caller,
    /// Whoever holds POLLING polls the flight's future.
    Shared,
    /// As `Caller`, but the flight is no load: who holds LEAD has the turn to compute a key.
    Queue,
}

/// What a waiter that may lead found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// It is this caller's turn now: it holds LEAD or POLLING.
    Mine,
    /// Somebody else's; a wake is owed.
    Theirs,
    Closed,
}

/// What the release of POLLING found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Released {
    Idle,
    /// A wake came during the poll: wake all.
    Notified,
    /// Closed during the poll: the future is the caller's to drop.
    Closed,
}

/// What leaving meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Left {
    /// Others are there: nothing is owed.
    Others,
    /// The last one, of a flight without a result: end the slot, then recycle.
    LastOpen,
    /// The last one, of a closed flight: recycle.
    LastClosed,
}

/// One flight. Its memory is type-stable: it lives as long as the cache, through many lives.
pub struct Flight<V> {
    word: AtomicU64,
    pub waiters: Waiters,
    /// In the graph of waits.
    pub place: Place,
    /// The slot that is pending on this flight, and its tag: written before the flight is published.
    slot: AtomicU32,
    tag: AtomicU32,
    next: AtomicU32,
    outcome: UnsafeCell<MaybeUninit<Outcome<V>>>,
    future: UnsafeCell<Option<Resident<V>>>,
}

// SAFETY: the cells are exclusive to the holder of LEAD or POLLING, or to the one that recycles; the outcome
// is shared by reference after CLOSED. Values cross threads both ways.
unsafe impl<V: Send + Sync> Sync for Flight<V> {}
// SAFETY: as above.
unsafe impl<V: Send> Send for Flight<V> {}

// SAFETY: not `IS_ZEROS`: each element is written.
unsafe impl<V> Blank for Flight<V> {
    const IS_ZEROS: bool = false;
    fn blank() -> Self {
        Self {
            word: AtomicU64::new(CLOSED),
            waiters: Waiters::new(),
            place: Place::new(),
            slot: AtomicU32::new(0),
            tag: AtomicU32::new(0),
            next: AtomicU32::new(0),
            outcome: UnsafeCell::new(MaybeUninit::uninit()),
            future: UnsafeCell::new(None),
        }
    }
}

impl<V> Flight<V> {
    fn update(&self, mut next: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        let mut word = self.word.load(Acquire);
        loop {
            let Some(new) = next(word) else { return Err(word) };
            match self.word.compare_exchange_weak(word, new, AcqRel, Acquire) {
                Ok(_) => return Ok(word),
                Err(now) => word = now,
            }
        }
    }

    fn begin(&self, drive: Drive) -> u64 {
        let generation = (self.word.load(Relaxed) & GENERATION).wrapping_add(1 << GENERATION_SHIFT);
        let turn = match drive {
            Drive::Caller => LEAD,
            Drive::Shared => POLLING | SHARED,
            Drive::Queue => LEAD | QUEUE,
        };
        // Release: the flight is this thread's alone until then (CLOSED with count zero: nobody enters).
        self.word.store(generation | turn | 1, Release);
        generation >> GENERATION_SHIFT
    }

    /// Names the slot. Before the slot is published.
    pub fn set_slot(&self, slot: u32, tag: u32) {
        // Relaxed: published by the header CAS that publishes the slot, and read by who entered.
        self.slot.store(slot, Relaxed);
        self.tag.store(tag, Relaxed);
    }

    /// The slot and its tag.
    pub fn slot(&self) -> (u32, u32) {
        (self.slot.load(Relaxed), self.tag.load(Relaxed))
    }

    /// Count + 1, unless closed or of another generation.
    fn enter(&self, generation: u64) -> bool {
        self.update(|w| {
            let is_it =
                w >> GENERATION_SHIFT == generation || cfg!(alru_mutation = "no_generation");
            (w & CLOSED == 0 && is_it && w & COUNT < COUNT).then(|| w + 1)
        })
        .is_ok()
    }

    /// Is the future in the flight? Once it is, it stays so for this life.
    pub fn is_shared(&self) -> bool {
        self.word.load(Acquire) & SHARED != 0
    }

    /// Takes the lead of a caller-driven flight if it is free. Of a shared-driven one it never is.
    pub fn try_lead(&self) -> Turn {
        let unless = if cfg!(alru_mutation = "lead_shared") { LEAD } else { LEAD | SHARED };
        self.turn(unless, 0, LEAD, 0)
    }

    /// Takes the poll of a shared-driven flight if nobody has it. Of a caller-driven one it is never free.
    pub fn try_poll(&self) -> Turn {
        self.turn(POLLING, SHARED, POLLING, NOTIFIED)
    }

    /// Makes a caller-driven flight whose lead is free a shared-driven one. The caller holds POLLING then, and
    /// puts a future in place.
    pub fn try_share(&self) -> Turn {
        let unless = if cfg!(alru_mutation = "share_led") { SHARED } else { LEAD | SHARED };
        self.turn(unless, 0, SHARED | POLLING, NOTIFIED)
    }

    fn turn(&self, unless: u64, needs: u64, sets: u64, clears: u64) -> Turn {
        let is_free = |w: u64| w & (CLOSED | unless) == 0 && w & needs == needs;
        match self.update(|w| is_free(w).then_some((w | sets) & !clears)) {
            Ok(_) => Turn::Mine,
            Err(w) if w & CLOSED != 0 => Turn::Closed,
            Err(_) => Turn::Theirs,
        }
    }

    /// The poller is done with the future for now.
    pub fn release_poll(&self) -> Released {
        let before = self.word.fetch_and(!POLLING, AcqRel);
        if before & CLOSED != 0 {
            Released::Closed
        } else if before & NOTIFIED != 0 && cfg!(not(alru_mutation = "forget_notified")) {
            Released::Notified
        } else {
            Released::Idle
        }
    }

    /// The future wants to be polled: true if the waiters are to be woken by the caller (else the poller
    /// does it on its release, or they have been woken already).
    pub fn notify(&self) -> bool {
        self.word.fetch_or(NOTIFIED, AcqRel) & (POLLING | NOTIFIED | CLOSED) == 0
    }

    /// The holder of LEAD lets it go without a result; whoever is polled next takes it.
    pub fn give_up_lead(&self) {
        let before = self.word.fetch_and(!LEAD, AcqRel);
        debug_assert!(before & LEAD != 0);
        if before & CLOSED == 0 {
            self.waiters.wake_all();
        }
    }

    /// Closes without an outcome if the caller is alone in the flight; spares a clone of the value.
    #[must_use]
    pub fn close_alone(&self) -> bool {
        let closed =
            self.update(|w| (w & COUNT == 1 && w & CLOSED == 0).then_some(w | CLOSED)).is_ok();
        if closed {
            self.place.close();
        }
        closed
    }

    /// Writes the outcome and closes. The caller calls [`Flight::wake_closed`] when nothing of its own can be
    /// lost to a waker that panics.
    ///
    /// # Safety
    /// The caller holds LEAD or POLLING, and no outcome was written in this life.
    pub unsafe fn close_with(&self, outcome: Outcome<V>) {
        // SAFETY: exclusive to the holder of the turn until OUTCOME is set.
        self.outcome.with_mut(|o| unsafe { (*o).write(outcome) });
        // AcqRel: releases the outcome to who reads CLOSED with Acquire.
        self.word.fetch_or(CLOSED | OUTCOME, AcqRel);
        self.place.close();
    }

    /// Wakes the waiters of a flight that was closed with an outcome; without one there are none.
    ///
    /// # Panics
    /// As [`Waiters::wake_all`].
    pub fn wake_closed(&self) {
        if self.word.load(Acquire) & OUTCOME != 0 {
            self.waiters.wake_all();
        }
    }

    /// Closes from outside, without an outcome. True if the future is the caller's to drop now. The caller wakes
    /// all afterwards.
    pub fn abort(&self) -> bool {
        match self.update(|w| (w & CLOSED == 0).then_some(w | CLOSED | ABORTED)) {
            Ok(before) => {
                self.place.close();
                before & POLLING == 0 || cfg!(alru_mutation = "abort_polled")
            }
            Err(_) => false,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.word.load(Acquire) & CLOSED != 0
    }

    /// The outcome of a closed flight; None if it was aborted, or closed by a caller that was alone.
    ///
    /// # Safety
    /// The caller has entered and not left.
    pub unsafe fn outcome(&self) -> Option<&Outcome<V>> {
        let word = self.word.load(Acquire);
        debug_assert!(word & CLOSED != 0);
        // SAFETY: OUTCOME: written before it was set, and not touched until the last one has left.
        (word & OUTCOME != 0 && word & ABORTED == 0)
            .then(|| self.outcome.with(|o| unsafe { (*o).assume_init_ref() }))
    }

    /// Count − 1. The last one closes.
    fn leave(&self) -> Left {
        let before = self
            .update(|w| {
                debug_assert!(w & COUNT > 0);
                let left = w - 1;
                let is_over = left & COUNT == 0 && cfg!(not(alru_mutation = "leave_open"));
                Some(if is_over { left | CLOSED } else { left })
            })
            .unwrap_or_default();
        match before & COUNT {
            1 if before & CLOSED == 0 => Left::LastOpen,
            1 => Left::LastClosed,
            _ => Left::Others,
        }
    }

    /// Puts the future in.
    ///
    /// # Safety
    /// The caller holds POLLING.
    pub unsafe fn set_future(&self, future: Resident<V>) {
        // SAFETY: exclusive to the holder of POLLING.
        self.future.with_mut(|f| unsafe { *f = Some(future) });
    }

    /// Takes the future out, to drop it.
    ///
    /// # Safety
    /// The caller holds POLLING, or made the word CLOSED while nobody held it, or is the last to leave.
    pub unsafe fn take_future(&self) -> Option<Resident<V>> {
        // SAFETY: exclusive by the caller's promise.
        self.future.with_mut(|f| unsafe { (*f).take() })
    }

    /// Polls the future.
    ///
    /// # Safety
    /// The caller holds POLLING.
    pub unsafe fn poll_future(&self) -> Poll<Outcome<V>> {
        // SAFETY: exclusive to the holder of POLLING.
        self.future.with_mut(|f| match unsafe { &mut *f } {
            Some(r) => r.load.as_mut().poll(&mut Context::from_waker(&r.waker)),
            None => unreachable!("an open shared-driven flight has its future"),
        })
    }
}

/// All flights of a cache.
pub struct Flights<V> {
    cells: Chunks<Flight<V>>,
    /// Indices handed out; index 0 is not used, it ends chains.
    fresh: CachePadded<AtomicU32>,
    free: CachePadded<Chain>,
    active: CachePadded<AtomicUsize>,
}

impl<V> Links for Chunks<Flight<V>> {
    fn next(&self, index: u32) -> u32 {
        // Relaxed: the head carries the ordering.
        self.get(index as usize).map_or(0, |f| f.next.load(Relaxed))
    }
    fn set_next(&self, index: u32, next: u32) {
        if let Some(f) = self.get(index as usize) {
            f.next.store(next, Relaxed);
        }
    }
}

/// An entered flight: proof that its memory is this life's. Does not leave by itself, because leaving has
/// duties: see [`Flights::leave`].
pub struct Entered<'a, V> {
    pub id: FlightId,
    pub flight: &'a Flight<V>,
}

impl<V> Clone for Entered<'_, V> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<V> Copy for Entered<'_, V> {}

/// What a recycled flight held, to be dropped by the caller when nothing else is held.
#[must_use]
pub struct Remains<V> {
    _outcome: Option<Outcome<V>>,
    _future: Option<Resident<V>>,
}

impl<V> Flights<V> {
    pub fn new() -> Self {
        Self {
            cells: Chunks::new(FIRST_CHUNK, INDEX_BITS as usize),
            fresh: CachePadded::new(AtomicU32::new(1)),
            free: CachePadded::new(Chain::new()),
            active: CachePadded::new(AtomicUsize::new(0)),
        }
    }

    /// Loads that have not ended. Looks at every flight there ever was at once.
    pub fn open(&self) -> usize {
        let flights = (1..self.fresh.load(Acquire)).filter_map(|i| self.cells.get(i as usize));
        flights.filter(|f| f.word.load(Acquire) & (CLOSED | QUEUE) == 0).count()
    }

    /// One more than the largest index that was handed out.
    pub fn high_water(&self) -> u32 {
        self.fresh.load(Acquire)
    }

    /// Flights that are in use: loads that have not ended, or whose callers have not all collected. A hint.
    pub fn active(&self) -> usize {
        // Relaxed: a statistic and a hint.
        self.active.load(Relaxed)
    }

    fn cell(&self, id: FlightId) -> &Flight<V> {
        self.cells.get(id.index() as usize).expect("a flight id of this cache")
    }

    /// A flight of one's own, entered, with the turn held.
    pub fn begin(&self, drive: Drive) -> Result<Entered<'_, V>, OutOfMemory> {
        let mut one = [0];
        let index = if self.free.take(&self.cells, &mut one) == 1 {
            one[0]
        } else {
            let index = self.fresh.fetch_add(1, Relaxed);
            if index >> INDEX_BITS != 0 {
                self.fresh.fetch_sub(1, Relaxed);
                return Err(OutOfMemory);
            }
            self.cells.ensure(index as usize)?;
            index
        };
        let flight = self.cells.get(index as usize).ok_or(OutOfMemory)?;
        let generation = flight.begin(drive);
        self.active.fetch_add(1, Relaxed);
        Ok(Entered { id: FlightId(generation << INDEX_BITS | index as u64), flight })
    }

    /// Enters the flight that a pending slot names; None if it is closed or over. The caller re-reads the
    /// slot's state afterwards.
    pub fn enter(&self, id: FlightId) -> Option<Entered<'_, V>> {
        let flight = self.cells.get(id.index() as usize)?;
        flight.enter(id.generation()).then_some(Entered { id, flight })
    }

    /// Is this life of the flight still open? A hint for who has not entered.
    pub fn is_open(&self, id: FlightId) -> bool {
        self.cells.get(id.index() as usize).is_some_and(|f| {
            let word = f.word.load(Acquire);
            word >> GENERATION_SHIFT == id.generation() && word & CLOSED == 0
        })
    }

    /// A flight that the caller has entered, by its id.
    pub fn entered(&self, id: FlightId) -> Entered<'_, V> {
        Entered { id, flight: self.cell(id) }
    }

    /// Drops what lives in flights that were never left: their callers' futures were forgotten.
    ///
    /// # Safety
    /// No operation of the cache runs, or ever will.
    pub unsafe fn drop_contents(&self, panics: &mut FirstPanic) {
        for index in 1..self.fresh.load(Acquire) {
            let Some(flight) = self.cells.get(index as usize) else { continue };
            // SAFETY: nobody else uses the flight, or ever will.
            panics.catch(|| drop(unsafe { flight.take_future() }));
            let word = flight.word.swap(CLOSED, AcqRel);
            if word & OUTCOME != 0 {
                // SAFETY: as above; OUTCOME, which is gone now, said that it is initialised.
                panics.catch(|| flight.outcome.with_mut(|o| unsafe { (*o).assume_init_drop() }));
            }
            // SAFETY: as above.
            unsafe { flight.waiters.silence(panics) };
        }
    }

    /// Enters each open flight that is a load in turn.
    pub fn enter_each(&self) -> impl Iterator<Item = Entered<'_, V>> {
        (1..self.fresh.load(Acquire)).filter_map(|index| {
            let flight = self.cells.get(index as usize)?;
            let word = flight.word.load(Acquire);
            let generation = word >> GENERATION_SHIFT;
            if word & QUEUE != 0 {
                return None;
            }
            self.enter(FlightId(generation << INDEX_BITS | index as u64))
        })
    }

    /// Leaves. `LastOpen`: the caller ends the flight's slot; `LastOpen` and `LastClosed`: the caller then
    /// calls [`Flights::recycle`].
    pub fn leave(&self, entered: Entered<'_, V>) -> Left {
        entered.flight.leave()
    }

    /// Frees the flight for its next life; the caller was the last to leave.
    ///
    /// # Safety
    /// `leave` answered `LastOpen` or `LastClosed` to the caller, which calls this once.
    pub unsafe fn recycle(&self, entered: Entered<'_, V>) -> Remains<V> {
        let flight = entered.flight;
        let word = flight.word.load(Acquire);
        debug_assert!(word & CLOSED != 0 && word & COUNT == 0);
        let outcome = (word & OUTCOME != 0).then(|| {
            // SAFETY: written in this life; count zero and CLOSED: nobody else reads it or ever will.
            flight.outcome.with_mut(|o| unsafe { (*o).assume_init_read() })
        });
        // SAFETY: as above, the last to leave.
        let future = unsafe { flight.take_future() };
        // SAFETY: as above; every waiter gave its node up before it left.
        unsafe { flight.waiters.trim() };
        // SAFETY: as above.
        unsafe { flight.place.clear() };
        flight.word.store((word & GENERATION) | CLOSED, Release);
        self.active.fetch_sub(1, Relaxed);
        self.free.push(&self.cells, entered.id.index(), entered.id.index());
        Remains { _outcome: outcome, _future: future }
    }
}
