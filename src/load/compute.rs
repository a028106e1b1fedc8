//! Async computes: what becomes of a key's entry is decided by a future, one at a time.
//!
//! ```text
//!   Start → Queue → Look ── a value: leased ──────────────→ Run ── put, remove, nothing ─→ Done
//!                    ↑ ├─── a load under way: Await ─→ Look  │
//!                    │ ├─── nothing: a load of the key ────→ Run
//!                    │ └─── leased by one without a queue: Crowd ─→ Look
//!                    └────────── somebody else's write came in between ──┘
//! ```
//! The queue of a key is a flight beside the table (`raw/aside.rs`); who holds its LEAD has the turn, from the look
//! to the change. As with loads the turn is never assigned: who gives it up wakes all, and whoever is polled first
//! takes it. If another key's queue is on the berth there is none, and the lease alone keeps computes apart.

use super::shared::{self, SharedWaiter};
use super::{Listener, RECURSIVE, frames, note_wait};
use crate::op::{CompResult, Op};
use crate::raw::aside::BESIDE;
use crate::raw::bin::Tag;
use crate::raw::compute::{Held, Lease, Settled};
use crate::raw::core::Core;
use crate::raw::flight::{Drive, Flight, FlightId, Outcome, Turn};
use crate::raw::graph::Edge;
use crate::raw::reclaim;
use crate::raw::seat::{Admission, Seat};
use crate::raw::state::Completion;
use crate::raw::waiters::Node;
use crate::stats::Counter;
use crate::sync::{Arc, FirstPanic};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// A seat in a caller-driven flight, and its LEAD or a place among its waiters. Dropped in that order, so that who
/// takes the lead next finds all as it should be.
struct Sitting<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    leads: bool,
    listener: Listener,
    /// From the load that this compute is made in, or from its queue.
    edge: Edge,
    seat: Seat<'a, K, V>,
}

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Sitting<'a, K, V> {
    fn new(seat: Seat<'a, K, V>, leads: bool) -> Self {
        Self { leads, listener: Listener::new(), edge: Edge::default(), seat }
    }

    fn id(&self) -> FlightId {
        self.seat.entered().id
    }

    fn flight(&self) -> &'a Flight<V> {
        self.seat.entered().flight
    }

    /// Notes that what this thread is polling waits for this flight, or for who leads it.
    fn note_wait(&mut self) {
        assert!(note_wait(&mut self.edge, self.seat.entered()).is_ok(), "{RECURSIVE}");
    }

    /// Takes the lead if it is free, else waits for it or for the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Turn {
        self.note_wait();
        let entered = self.seat.entered();
        self.listener.listen(entered, cx.waker());
        let turn = entered.flight.try_lead();
        if turn == Turn::Mine {
            self.leads = true;
            self.listener.leave(entered);
        }
        turn
    }

    /// Ends the flight without a result: its waiters start over. By who leads.
    fn abort(mut self) {
        self.leads = false;
        self.flight().abort();
        self.flight().waiters.wake_all();
    }
}

impl<K: Send + Sync + 'static, V: Send + Sync + 'static> Drop for Sitting<'_, K, V> {
    fn drop(&mut self) {
        self.edge.erase();
        let mut panics = FirstPanic::default();
        if self.leads {
            panics.catch(|| self.flight().give_up_lead());
        }
        let entered = self.seat.entered();
        panics.catch(|| self.listener.leave(entered));
        // The waker's panic has harmed nobody else.
        panics.resume_unless_panicking();
    }
}

/// A place in the crowd: woken whenever a lease is given back.
struct Crowded<'a, K, V> {
    core: &'a Core<K, V>,
    node: NonNull<Node>,
}

// SAFETY: a node is shared by atomics only, and used by one future at a time, wherever that is.
unsafe impl<K: Send + Sync, V: Send + Sync> Send for Crowded<'_, K, V> {}
// SAFETY: no method takes `&self` but to poll, which the node allows.
unsafe impl<K: Send + Sync, V: Send + Sync> Sync for Crowded<'_, K, V> {}

impl<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> Crowded<'a, K, V> {
    fn new(core: &'a Core<K, V>) -> Self {
        Self { core, node: core.crowd().join() }
    }

    fn listen(&self, cx: &Context<'_>) {
        // SAFETY: on the list of the core, which is borrowed.
        unsafe { self.node.as_ref() }.listen(cx.waker());
    }
}

impl<K, V> Drop for Crowded<'_, K, V> {
    fn drop(&mut self) {
        // SAFETY: joined on this list, and not used again.
        unsafe { self.core.crowd().leave(self.node) };
    }
}

/// What a run counts on.
enum Basis<'a, K: Send + Sync + 'static, V: Send + Sync + 'static> {
    /// The slot of the value that it was given.
    Value(Lease<'a, K, V>),
    /// There was no value, and the run is the key's load.
    Load(Sitting<'a, K, V>),
    /// There was no value, and no place for a load.
    Nothing,
}

enum Stage<'a, K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Start,
    Queue,
    Look,
    Await(Sitting<'a, K, V>),
    AwaitShared(SharedWaiter<K, V>),
    Crowd(Crowded<'a, K, V>),
    Run(Basis<'a, K, V>),
    Done,
}

/// Runs `poll` as a poll of the queue, if there is one: what waits for the queue waits for what it polls.
fn in_queue<K, V, R>(queue: &Option<Sitting<'_, K, V>>, poll: impl FnOnce() -> R) -> R
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    match queue {
        Some(queue) => frames::within(&queue.flight().place, poll),
        None => poll(),
    }
}

/// Runs `poll` as part of a run.
fn within<K, V, R>(
    queue: &Option<Sitting<'_, K, V>>,
    basis: &mut Basis<'_, K, V>,
    poll: impl FnOnce() -> R,
) -> R
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    in_queue(queue, || match basis {
        Basis::Load(load) => {
            load.note_wait();
            frames::within(&load.flight().place, poll)
        }
        Basis::Value(_) | Basis::Nothing => poll(),
    })
}

/// What a run came to.
enum Ended<V, E> {
    With(Result<CompResult<V>, E>),
    Again,
}

/// One async compute.
#[must_use = "futures do nothing unless polled"]
pub(crate) struct ComputeLoad<'a, K, V, D, F>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    // Dropped in this order: the future first, so that it does not meet its successor.
    /// Pinned with the struct.
    future: Option<F>,
    stage: Stage<'a, K, V>,
    queue: Option<Sitting<'a, K, V>>,
    core: &'a Arc<Core<K, V>>,
    tag: Tag,
    /// None once it is over.
    what: Option<(K, D)>,
}

impl<'a, K, V, D, F, E> ComputeLoad<'a, K, V, D, F>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    D: FnMut(Option<V>) -> F,
    F: Future<Output = Result<Op<V>, E>>,
{
    pub(crate) fn new(core: &'a Arc<Core<K, V>>, tag: Tag, key: K, decide: D) -> Self {
        Self {
            future: None,
            stage: Stage::Start,
            queue: None,
            core,
            tag,
            what: Some((key, decide)),
        }
    }

    fn key(&self) -> &K {
        &self.what.as_ref().expect("not over").0
    }

    #[track_caller]
    fn refuse_recursion(flight: &Flight<V>) {
        assert!(
            !frames::is_polling(&flight.place),
            "recursive compute: the future of a key's load or compute computes the same key"
        );
    }

    /// Gives all up that is held, the future first, whatever panics.
    fn clear(&mut self) {
        let mut panics = FirstPanic::default();
        panics.catch(|| self.future = None);
        panics.catch(|| self.stage = Stage::Done);
        panics.catch(|| self.queue = None);
        panics.swallow();
    }

    /// Begins a run.
    fn run(&mut self, mut basis: Basis<'a, K, V>) {
        let present = match &basis {
            Basis::Value(lease) => Some(lease.value().clone()),
            Basis::Load(_) | Basis::Nothing => None,
        };
        let (_, decide) = self.what.as_mut().expect("not over");
        self.future = Some(within(&self.queue, &mut basis, || decide(present)));
        self.stage = Stage::Run(basis);
    }

    /// What there is of the key. True: the stage is another now; false: wait.
    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        let core = self.core;
        match core.lease(self.tag, self.key()) {
            Held::Value(lease) => {
                self.run(Basis::Value(lease));
                return true;
            }
            Held::Leased => {
                if let Stage::Crowd(_) = &self.stage {
                    return false;
                }
                let crowded = Crowded::new(core);
                crowded.listen(cx);
                self.stage = Stage::Crowd(crowded);
                // Once more, now that the end of the lease is heard.
                return true;
            }
            Held::Nothing => {}
        }
        let key = self.key().clone();
        let mut guard = reclaim::pin();
        let admission = core.admit(&mut guard, self.tag, key, Drive::Caller);
        match admission {
            // A value has come.
            Admission::Hit(_) => self.stage = Stage::Look,
            Admission::Join(seat, key) => {
                drop(guard);
                drop(key);
                Self::refuse_recursion(seat.entered().flight);
                self.stage = Stage::Await(Sitting::new(seat, false));
            }
            Admission::Lead(seat) => {
                drop(guard);
                self.run(Basis::Load(Sitting::new(seat, true)));
            }
            Admission::Refused(key) => {
                drop(guard);
                drop(key);
                self.run(Basis::Nothing);
            }
        }
        true
    }

    /// Lets the decision take effect, if it was made from what is still there.
    fn settle(&self, basis: Basis<'a, K, V>, decided: Result<Op<V>, E>) -> Ended<V, E> {
        let op = match decided {
            Ok(op) => op,
            Err(error) => {
                if let Basis::Load(load) = basis {
                    self.core.count(&reclaim::pin(), Counter::LoadFailures);
                    self.core.end_flight(load.id());
                    load.abort();
                }
                return Ended::With(Err(error));
            }
        };
        let result = match (basis, op) {
            (Basis::Value(lease), Op::Nop) => Some(CompResult::Unchanged(lease.value().clone())),
            (Basis::Value(lease), Op::Remove) => {
                let old = lease.value().clone();
                self.core.remove_leased(self.tag, &lease).then_some(CompResult::Removed(old))
            }
            (Basis::Value(lease), Op::Put(value)) => {
                let (key, copy) = (self.key().clone(), value.clone());
                match self.core.put_leased(self.tag, key, &lease, value) {
                    Settled::Stored => Some(CompResult::ReplacedWith(copy)),
                    Settled::Bypassed(value) => Some(CompResult::Bypassed(value)),
                    Settled::Moved => None,
                }
            }
            (Basis::Load(load), Op::Put(value)) => self.put_loaded(load, value),
            (Basis::Load(load), op) => {
                let is_beside = load.flight().slot().0 == BESIDE;
                let was_there = self.core.end_flight(load.id());
                load.abort();
                // Nothing was there, and nothing is to be there; but a removal must not pass over a write.
                let is_done = matches!(op, Op::Nop) || was_there || is_beside && !self.is_entry();
                is_done.then_some(CompResult::StillNone)
            }
            (Basis::Nothing, Op::Nop) => Some(CompResult::StillNone),
            (Basis::Nothing, _) if self.is_entry() => None,
            (Basis::Nothing, Op::Remove) => Some(CompResult::StillNone),
            (Basis::Nothing, Op::Put(value)) => Some(CompResult::Bypassed(value)),
        };
        result.map_or(Ended::Again, |result| Ended::With(Ok(result)))
    }

    fn is_entry(&self) -> bool {
        self.core.contains(&reclaim::pin(), self.tag, self.key())
    }

    /// A value for a key that had none: into the cache, and to those who waited for the load.
    fn put_loaded(&self, load: Sitting<'a, K, V>, value: V) -> Option<CompResult<V>> {
        let entered = load.seat.entered();
        let is_stored = self.core.complete(entered, || value.clone()) == Completion::Stored;
        let is_beside = entered.flight.slot().0 == BESIDE;
        // Beside the table nothing is stored; and if the load was detached, by an insert or a removal, it has to be
        // computed anew.
        if !is_stored && (!is_beside || !self.core.is_attached(load.id()) || self.is_entry()) {
            load.abort();
            return None;
        }
        self.core.end_flight(load.id());
        super::close(entered, || Outcome::Value(value.clone()));
        entered.flight.wake_closed();
        Some(if is_stored { CompResult::Inserted(value) } else { CompResult::Bypassed(value) })
    }

    fn poll_stages(&mut self, cx: &mut Context<'_>) -> Poll<Result<CompResult<V>, E>> {
        if let Some(queue) = &mut self.queue {
            queue.note_wait();
        }
        loop {
            match &mut self.stage {
                Stage::Start => {
                    self.stage = match self.core.queue_up(self.tag, self.key()) {
                        Some((seat, is_first)) => {
                            Self::refuse_recursion(seat.entered().flight);
                            self.queue.insert(Sitting::new(seat, is_first)).note_wait();
                            if is_first { Stage::Look } else { Stage::Queue }
                        }
                        None => Stage::Look,
                    };
                }
                Stage::Queue => match self.queue.as_mut().expect("queued").poll(cx) {
                    Turn::Mine => self.stage = Stage::Look,
                    Turn::Theirs => return Poll::Pending,
                    Turn::Closed => {
                        self.queue = None;
                        self.stage = Stage::Start;
                    }
                },
                Stage::Look => {
                    self.look(cx);
                }
                Stage::Crowd(crowded) => {
                    crowded.listen(cx);
                    if !self.look(cx) {
                        return Poll::Pending;
                    }
                }
                // The loader's future, which lives in the flight: whoever waits for it drives it.
                Stage::Await(load) if load.flight().is_shared() => {
                    let id = load.id();
                    // Sat down once more before the place is given up. It fails if the load is over.
                    let seat = self.core.flights().enter(id).map(|entered| {
                        // SAFETY: entered, and the seat leaves once.
                        unsafe { self.core.resume_seat(entered.id) }
                    });
                    self.stage = match seat {
                        Some(seat) => Stage::AwaitShared(SharedWaiter::new(self.core, seat)),
                        None => Stage::Look,
                    };
                }
                Stage::Await(load) => match in_queue(&self.queue, || load.poll(cx)) {
                    Turn::Theirs => return Poll::Pending,
                    turn => {
                        let Stage::Await(load) = std::mem::replace(&mut self.stage, Stage::Look)
                        else {
                            unreachable!()
                        };
                        // Its leader went: the run takes the load over, unless it is nobody's by now.
                        if turn == Turn::Mine && self.core.is_attached(load.id()) {
                            self.run(Basis::Load(load));
                        }
                    }
                },
                Stage::AwaitShared(load) => match in_queue(&self.queue, || load.poll(cx)) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(shared::Ended::Recursive) => panic!("{RECURSIVE}"),
                    Poll::Ready(_) => self.stage = Stage::Look,
                },
                Stage::Run(basis) => {
                    let future = self.future.as_mut().expect("there is one to run");
                    // SAFETY: `future` is pinned with `self`, and dropped in place.
                    let future = unsafe { Pin::new_unchecked(future) };
                    let polled = within(&self.queue, basis, || future.poll(cx));
                    let Poll::Ready(decided) = polled else { return Poll::Pending };
                    self.future = None;
                    let Stage::Run(basis) = std::mem::replace(&mut self.stage, Stage::Look) else {
                        unreachable!()
                    };
                    if let Ended::With(result) = self.settle(basis, decided) {
                        self.stage = Stage::Done;
                        self.queue = None;
                        // Before the return: a destructor that panicked after it would leak what is returned.
                        self.what = None;
                        return Poll::Ready(result);
                    }
                }
                Stage::Done => panic!("polled after completion"),
            }
        }
    }
}

impl<K, V, D, F, E> Future for ComputeLoad<'_, K, V, D, F>
where
    K: Clone + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    D: FnMut(Option<V>) -> F,
    F: Future<Output = Result<Op<V>, E>>,
{
    type Output = Result<CompResult<V>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out of `future`; it is polled through a Pin and dropped in place.
        let this = unsafe { self.get_unchecked_mut() };
        match catch_unwind(AssertUnwindSafe(|| this.poll_stages(cx))) {
            Ok(polled) => polled,
            Err(payload) => {
                this.clear();
                resume_unwind(payload)
            }
        }
    }
}
