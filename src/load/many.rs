//! Bulk loads: one call of a loader for all keys that are neither there nor on their way.
//!
//! ```text
//!   first poll: read all keys ── what is missing becomes items
//!   item:  Start ─ nobody loads ──→ Led ── its round's result ──→ Over
//!            │                       ↑ the lead is free
//!            └── somebody loads ──→ Joined ── result ──→ Over
//!                                    └── a result that is not for us: Start
//!   round: one call of the loader and its future, for all items that came to be led at one time
//! ```
//! Whoever holds the lead of a key has a round for it at once, and rounds and joined loads are polled side by
//! side, each when it was woken. So a lead is never sat on while waiting for somebody else, and two bulk loads
//! with keys in common, in whatever order, do not wait for each other in a circle.
//!
//! To others the lead of a key is that of any caller-driven load: dropped with the future, and up for grabs.

use super::bells::Bells;
use super::frames::{self, Bulk};
use super::shared::{Driver, Ended};
use super::{Listener, RECURSIVE, is_inside_load, note_wait, panic_message};
use crate::raw::bin::Tag;
use crate::raw::core::Core;
use crate::raw::flight::{Drive, FlightId, Outcome, Turn};
use crate::raw::graph::{Circle, Edge};
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};
use std::any::Any;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Waker};

/// Keys whose lines are asked for ahead of their look-ups.
const AHEAD: usize = 16;

/// Look-ups under one pin.
const A_PIN: usize = 64;

/// What a first look at many keys found.
pub(crate) struct Looked<K, A> {
    pub(crate) found: HashMap<K, A>,
    /// The others, each once, in the order of their first appearance.
    pub(crate) missing: Vec<(Tag, K)>,
    /// Where in `missing` a key is.
    pub(crate) place: HashMap<K, usize>,
}

/// Reads all keys, counting hits. `answer` makes of a value what is to be answered.
pub(crate) fn look_up<K, V, A>(
    core: &Core<K, V>,
    keys: Vec<(Tag, K)>,
    answer: impl Fn(V) -> A,
) -> Looked<K, A>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let mut looked = Looked {
        found: HashMap::with_capacity(keys.len()),
        missing: Vec::new(),
        place: HashMap::new(),
    };
    keys.iter().take(AHEAD).for_each(|(tag, _)| core.prefetch(*tag));
    let tags: Vec<Tag> = keys.iter().skip(AHEAD).map(|(tag, _)| *tag).collect();
    let mut guard = reclaim::pin();
    for (number, (tag, key)) in keys.into_iter().enumerate() {
        if let Some(ahead) = tags.get(number) {
            core.prefetch(*ahead);
        }
        if number % A_PIN == A_PIN - 1 {
            guard.repin();
        }
        if !looked.missing.is_empty() && looked.place.contains_key(&key) {
            continue;
        }
        let Entry::Vacant(vacant) = looked.found.entry(key) else { continue };
        match core.get(&guard, tag, vacant.key()) {
            Some(slot) => {
                core.touch(slot);
                core.count(&guard, Counter::Hits);
                // SAFETY: `get` read READY under this guard.
                vacant.insert(answer(unsafe { slot.value() }.clone()));
            }
            None => {
                let key = vacant.into_key();
                looked.place.insert(key.clone(), looked.missing.len());
                looked.missing.push((tag, key));
            }
        }
    }
    looked
}

enum Stage {
    Start,
    /// In the flight, waiting for its result or for the lead, on behalf of the load that this call is made in.
    Joined(FlightId, Listener, Edge),
    /// In the flight, with the lead, and with a round for it.
    Led(FlightId),
    /// No place in the cache: in a round, for this caller alone.
    Lone,
    Over,
}

/// A key that was not there at the first look.
struct Item<K> {
    tag: Tag,
    /// None once it is in the answer.
    key: Option<K>,
    is_counted: bool,
    /// The last round that it was in.
    round: usize,
    waker: Option<Waker>,
    stage: Stage,
}

impl<K> Item<K> {
    fn key(&self) -> &K {
        self.key.as_ref().expect("an item that is not over has its key")
    }
}

/// One call of the loader. It is woken as its first item, which does not wait for anything else.
struct Round<F> {
    number: usize,
    items: Vec<usize>,
    bulk: Bulk,
    /// From the load that this call is made in.
    edge: Edge,
    future: Pin<Box<F>>,
}

impl<F> Round<F> {
    fn note_wait(&mut self) -> Result<(), Circle> {
        // SAFETY: the poller that a frame belongs to sits in its flight; the bulk's place is its own.
        frames::innermost(|load| unsafe { self.edge.draw(load, self.bulk.place()) })
    }
}

/// How a led item ends without a value.
enum End {
    LeftOut,
    Failed(StdArc<dyn Any + Send + Sync>),
    Panicked(StdArc<str>),
}

/// One caller of `try_get_many`.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct BulkLoad<'a, K, V, L, F>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    core: &'a Arc<Core<K, V>>,
    /// As they were asked for; None once it has been polled.
    keys: Option<Vec<(Tag, K)>>,
    load: L,
    answer: HashMap<K, V>,
    items: Vec<Item<K>>,
    place: HashMap<K, usize>,
    /// Items that are not over.
    open: usize,
    /// There since the first look found something missing.
    bells: Option<StdArc<Bells>>,
    rounds: Vec<Round<F>>,
    rounds_begun: usize,
    /// Items to look after: woken, or new in their stage.
    todo: Vec<usize>,
    /// Items to begin with, or to begin with anew.
    starting: Vec<usize>,
    /// Items led, or alone, that have no round yet.
    gained: Vec<usize>,
    /// At the last poll.
    is_inside: bool,
    /// Cleared by a poll that returned to go on: a poll that panicked or finished is the last.
    is_over: bool,
}

// Nothing is pinned: rounds are boxed.
impl<K, V, L, F> Unpin for BulkLoad<'_, K, V, L, F>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
}

impl<'a, K, V, L, F> BulkLoad<'a, K, V, L, F>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, keys: Vec<(Tag, K)>, load: L) -> Self {
        Self {
            core,
            keys: Some(keys),
            load,
            answer: HashMap::new(),
            items: Vec::new(),
            place: HashMap::new(),
            open: 0,
            bells: None,
            rounds: Vec::new(),
            rounds_begun: 0,
            todo: Vec::new(),
            starting: Vec::new(),
            gained: Vec::new(),
            is_inside: false,
            is_over: false,
        }
    }

    /// Takes a seat back that a stage held. The caller has replaced the stage.
    fn seat(&self, id: FlightId) -> Seat<'a, K, V> {
        // SAFETY: parked when the stage was entered, and resumed by whoever takes the stage away.
        unsafe { self.core.resume_seat(id) }
    }

    /// Notes what this call waits for, if it is polled inside a load, or was: what is new notes for itself.
    fn note_waits(&mut self) -> Result<(), Circle> {
        let is_inside = is_inside_load();
        if std::mem::replace(&mut self.is_inside, is_inside) || is_inside {
            for item in &mut self.items {
                if let Stage::Joined(id, _, edge) = &mut item.stage {
                    note_wait(edge, self.core.flights().entered(*id))?;
                }
            }
            for round in &mut self.rounds {
                round.note_wait()?;
            }
        }
        Ok(())
    }

    fn is_led(&self, item: usize) -> bool {
        matches!(self.items[item].stage, Stage::Led(_) | Stage::Lone)
    }

    /// The first look at all keys.
    fn look(&mut self, keys: Vec<(Tag, K)>) {
        let looked = look_up(self.core, keys, |value| value);
        self.answer = looked.found;
        self.place = looked.place;
        self.open = looked.missing.len();
        self.starting = (0..self.open).collect();
        let item = |(tag, key)| Item {
            tag,
            key: Some(key),
            is_counted: false,
            round: 0,
            waker: None,
            stage: Stage::Start,
        };
        self.items = looked.missing.into_iter().map(item).collect();
        if self.open > 0 {
            self.bells = Some(Bells::new(self.open));
        }
    }

    /// The value of an item has come.
    fn answer(&mut self, item: usize, value: V) {
        self.open -= 1;
        let key = self.items[item].key.take().expect("answered once");
        self.answer.insert(key, value);
    }

    /// Finds out about the items that are at their start: a value, a load to join, or the lead.
    fn admit_all(&mut self) {
        let core = self.core;
        let mut guard = reclaim::pin();
        for (number, item) in std::mem::take(&mut self.starting).into_iter().enumerate() {
            if number % A_PIN == A_PIN - 1 {
                guard.repin();
            }
            let Item { tag, key, is_counted, .. } = &mut self.items[item];
            let key = key.clone().expect("an item at its start has its key");
            let is_new = !std::mem::replace(is_counted, true);
            let count = |guard: &reclaim::Guard, counter| {
                if is_new {
                    core.count(guard, counter);
                }
            };
            match core.admit(&mut guard, *tag, key, Drive::Caller) {
                Admission::Hit(slot) => {
                    core.touch(slot);
                    // SAFETY: `admit` read READY under this guard.
                    let value = unsafe { slot.value() }.clone();
                    count(&guard, Counter::Hits);
                    self.items[item].stage = Stage::Over;
                    self.answer(item, value);
                }
                Admission::Join(seat, _) => {
                    assert!(!frames::is_polling(&seat.entered().flight.place), "{RECURSIVE}");
                    count(&guard, Counter::Hits);
                    self.items[item].stage =
                        Stage::Joined(seat.park(), Listener::new(), Edge::default());
                    self.todo.push(item);
                }
                Admission::Lead(seat) => {
                    count(&guard, Counter::Misses);
                    self.items[item].stage = Stage::Led(seat.park());
                    self.gained.push(item);
                }
                Admission::Refused(_) => {
                    count(&guard, Counter::Misses);
                    self.items[item].stage = Stage::Lone;
                    self.gained.push(item);
                }
            }
        }
    }

    /// Calls the loader for the items that have come to be led.
    fn launch(&mut self)
    where
        L: FnMut(Vec<K>) -> F,
    {
        let mut items = std::mem::take(&mut self.gained);
        if items.is_empty() {
            return;
        }
        items.sort_unstable();
        let missing = items.iter().map(|&i| self.items[i].key().clone()).collect();
        let bulk = Bulk::new(items.iter().filter_map(|&i| match self.items[i].stage {
            Stage::Led(id) => Some(&self.core.flights().entered(id).flight.place),
            _ => None,
        }));
        let load = &mut self.load;
        match catch_unwind(AssertUnwindSafe(|| frames::within_bulk(&bulk, || load(missing)))) {
            Ok(future) => {
                self.rounds_begun += 1;
                let number = self.rounds_begun;
                items.iter().for_each(|&i| self.items[i].round = number);
                self.todo.push(items[0]);
                let (edge, future) = (Edge::default(), Box::pin(future));
                let mut round = Round { number, items, bulk, edge, future };
                let noted = round.note_wait();
                self.rounds.push(round);
                assert!(noted.is_ok(), "{RECURSIVE}");
            }
            Err(payload) => self.panicked(&items, payload),
        }
    }

    /// A joined item was woken, or is new.
    fn visit_joined<E: Send + Sync + 'static>(&mut self, item: usize) -> Result<(), StdArc<E>> {
        let Item { stage: Stage::Joined(id, listener, edge), waker, .. } = &mut self.items[item]
        else {
            unreachable!()
        };
        let id = *id;
        let entered = self.core.flights().entered(id);
        assert!(note_wait(edge, entered).is_ok(), "{RECURSIVE}");
        let bells = self.bells.as_ref().expect("there are items");
        listener.listen(entered, waker.get_or_insert_with(|| bells.waker(item)));
        let polled = if entered.flight.is_shared() {
            Driver::new(self.core, id).poll_in_turn()
        } else {
            match entered.flight.try_lead() {
                Turn::Theirs => Poll::Pending,
                Turn::Mine => {
                    edge.erase();
                    listener.leave(entered);
                    self.items[item].stage = Stage::Led(id);
                    self.gained.push(item);
                    return Ok(());
                }
                Turn::Closed => Poll::Ready(Ended::of(entered)),
            }
        };
        let Poll::Ready(ended) = polled else { return Ok(()) };
        let stage = std::mem::replace(&mut self.items[item].stage, Stage::Start);
        let Stage::Joined(_, mut listener, edge) = stage else { unreachable!() };
        drop(edge);
        listener.leave(entered);
        drop(self.seat(id));
        match ended {
            Ended::Value(value) => {
                self.items[item].stage = Stage::Over;
                self.answer(item, value);
                return Ok(());
            }
            Ended::Failed(error) => {
                if let Ok(error) = error.downcast::<E>() {
                    return Err(error);
                }
            }
            Ended::Panicked(message) => panic!("{message}"),
            Ended::Closed | Ended::Nothing => {}
            Ended::Abandoned | Ended::Recursive => unreachable!("not an answer of a driver"),
        }
        // Not for us: find out anew.
        self.starting.push(item);
        Ok(())
    }

    /// A round was woken, or is new.
    fn visit_round<R, E>(&mut self, at: usize) -> Result<(), StdArc<E>>
    where
        E: Send + Sync + 'static,
        F: Future<Output = Result<R, E>>,
        R: IntoIterator<Item = (K, V)>,
    {
        let Round { items, bulk, future, .. } = &mut self.rounds[at];
        let first = items[0];
        let bells = self.bells.as_ref().expect("there are items");
        let waker = self.items[first].waker.get_or_insert_with(|| bells.waker(first));
        let mut cx = Context::from_waker(waker);
        let polled = catch_unwind(AssertUnwindSafe(|| {
            frames::within_bulk(bulk, || future.as_mut().poll(&mut cx))
        }));
        if matches!(polled, Ok(Poll::Pending)) {
            return Ok(());
        }
        let Round { number, items, bulk, edge, future } = self.rounds.swap_remove(at);
        match polled {
            Ok(Poll::Ready(Ok(pairs))) => {
                let mut panics = FirstPanic::default();
                // The iterator is part of the load: it may ask for keys, and may panic. What it gave before stays.
                let mut taken = Vec::new();
                let ended = catch_unwind(AssertUnwindSafe(|| {
                    frames::within_bulk(&bulk, || taken.extend(pairs));
                }));
                drop((bulk, edge));
                // So are a key's Hash and Eq and a value's Clone.
                let settled = catch_unwind(AssertUnwindSafe(|| {
                    for (key, value) in taken {
                        if let Some(&item) = self.place.get(&key) {
                            if self.items[item].round == number && self.is_led(item) {
                                self.settle(item, value, &mut panics);
                            }
                        }
                    }
                }));
                let failed = match (ended, settled) {
                    (Ok(()), Ok(())) => None,
                    (Ok(()), Err(payload)) => Some(payload),
                    (Err(payload), second) => {
                        std::mem::forget(second);
                        Some(payload)
                    }
                };
                if let Some(payload) = failed {
                    panics.swallow();
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                    self.panicked(&items, payload);
                }
                items.iter().for_each(|&item| self.end(item, End::LeftOut, &mut panics));
                panics.catch(|| drop(future));
                // A waker's panic is this caller's; all others have been woken then.
                panics.resume();
                Ok(())
            }
            Ok(Poll::Ready(Err(error))) => {
                let error = StdArc::new(error);
                let mut panics = FirstPanic::default();
                for &item in &items {
                    self.end(item, End::Failed(error.clone()), &mut panics);
                }
                panics.catch(|| drop(future));
                panics.resume();
                Err(error)
            }
            Ok(Poll::Pending) => unreachable!("returned above"),
            Err(payload) => {
                let _ = catch_unwind(AssertUnwindSafe(|| drop(future)));
                self.panicked(&items, payload)
            }
        }
    }

    /// The value of a led item: into the cache, to the waiters, and into the answer. If its Clone panics the item
    /// is still led.
    fn settle(&mut self, item: usize, value: V, panics: &mut FirstPanic) {
        if let Stage::Led(id) = self.items[item].stage {
            let entered = self.core.flights().entered(id);
            super::settle(self.core, entered, &value);
            self.items[item].stage = Stage::Over;
            let seat = self.seat(id);
            panics.catch(|| entered.flight.wake_closed());
            panics.catch(|| drop(seat));
        }
        self.items[item].stage = Stage::Over;
        self.answer(item, value);
    }

    /// Ends an item, if it is still led, without a value.
    fn end(&mut self, item: usize, end: End, panics: &mut FirstPanic) {
        if !self.is_led(item) {
            return;
        }
        self.open -= 1;
        let Stage::Led(id) = std::mem::replace(&mut self.items[item].stage, Stage::Over) else {
            return;
        };
        let seat = self.seat(id);
        let entered = seat.entered();
        let outcome = match end {
            End::LeftOut => {
                // Without an outcome: those who wait find out anew.
                self.core.end_flight(id);
                entered.flight.abort();
                #[cfg(not(alru_mutation = "left_out_asleep"))]
                panics.catch(|| entered.flight.waiters.wake_all());
                return panics.catch(|| drop(seat));
            }
            End::Failed(error) => Outcome::Failed(error),
            End::Panicked(message) => Outcome::Panicked(message),
        };
        super::fail(self.core, entered, || outcome);
        panics.catch(|| entered.flight.wake_closed());
        panics.catch(|| drop(seat));
    }

    fn panicked(&mut self, items: &[usize], payload: Box<dyn Any + Send>) -> ! {
        let message = panic_message(&*payload);
        let mut panics = FirstPanic::default();
        for &item in items {
            self.end(item, End::Panicked(message.clone()), &mut panics);
        }
        // The first panic counts.
        panics.swallow();
        resume_unwind(payload)
    }

    /// Gives everything up: the futures first, so that they do not meet their successors, then leads and seats.
    fn abandon(&mut self) -> FirstPanic {
        let mut panics = FirstPanic::default();
        for round in std::mem::take(&mut self.rounds) {
            panics.catch(|| drop(round.future));
        }
        for item in 0..self.items.len() {
            let stage = std::mem::replace(&mut self.items[item].stage, Stage::Over);
            match stage {
                Stage::Led(id) => {
                    let seat = self.seat(id);
                    #[cfg(not(alru_mutation = "keep_leads"))]
                    panics.catch(|| seat.entered().flight.give_up_lead());
                    panics.catch(|| drop(seat));
                }
                Stage::Joined(id, mut listener, edge) => {
                    drop(edge);
                    let seat = self.seat(id);
                    listener.leave(seat.entered());
                    panics.catch(|| drop(seat));
                }
                Stage::Start | Stage::Lone | Stage::Over => {}
            }
        }
        panics
    }

    fn work<R, E>(&mut self, cx: &mut Context<'_>) -> Result<(), StdArc<E>>
    where
        E: Send + Sync + 'static,
        L: FnMut(Vec<K>) -> F,
        F: Future<Output = Result<R, E>>,
        R: IntoIterator<Item = (K, V)>,
    {
        if let Some(keys) = self.keys.take() {
            self.look(keys);
        }
        assert!(self.note_waits().is_ok(), "{RECURSIVE}");
        if let Some(bells) = &self.bells {
            // What rings during the poll is for the next one, so that a loader that wakes itself does not keep
            // us here.
            bells.collect(cx.waker(), &mut self.todo);
        }
        loop {
            while let Some(item) = self.todo.pop() {
                if matches!(self.items[item].stage, Stage::Joined(..)) {
                    self.visit_joined(item)?;
                } else if let Some(at) = self.rounds.iter().position(|r| r.items[0] == item) {
                    #[cfg(alru_mutation = "sit_on_leads")]
                    if self.items.iter().any(|i| matches!(i.stage, Stage::Joined(..))) {
                        continue;
                    }
                    self.visit_round(at)?;
                }
            }
            if self.starting.is_empty() && self.gained.is_empty() {
                return Ok(());
            }
            self.admit_all();
            self.launch();
        }
    }
}

impl<K, V, L, F, R, E> Future for BulkLoad<'_, K, V, L, F>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    L: FnMut(Vec<K>) -> F,
    F: Future<Output = Result<R, E>>,
    R: IntoIterator<Item = (K, V)>,
{
    type Output = Result<HashMap<K, V>, StdArc<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        assert!(!std::mem::replace(&mut this.is_over, true), "polled after completion");
        match catch_unwind(AssertUnwindSafe(|| this.work(cx))) {
            Ok(Ok(())) if this.open > 0 => {
                this.is_over = false;
                Poll::Pending
            }
            Ok(Ok(())) => Poll::Ready(Ok(std::mem::take(&mut this.answer))),
            Ok(Err(error)) => {
                this.abandon().resume();
                Poll::Ready(Err(error))
            }
            Err(payload) => {
                // At once: whoever keeps a future that panicked must not keep the leads. The first panic counts.
                this.abandon().swallow();
                resume_unwind(payload)
            }
        }
    }
}

impl<K, V, L, F> Drop for BulkLoad<'_, K, V, L, F>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn drop(&mut self) {
        self.abandon().resume_unless_panicking();
    }
}
