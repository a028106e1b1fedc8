//! The futures of loads: who polls what, and what happens when one is dropped.

pub(crate) mod bells;
pub(crate) mod blocking;
pub(crate) mod caller;
pub(crate) mod compute;
mod frames;
pub(crate) mod get_with;
pub(crate) mod many;
pub(crate) mod patience;
pub(crate) mod shared;

use crate::raw::core::Core;
use crate::raw::flight::{Entered, Outcome};
use crate::raw::graph::{Circle, Edge};
use crate::raw::reclaim;
use crate::raw::waiters::Node;
use crate::stats::Counter;
use crate::sync::Arc;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc as StdArc;
use std::task::Waker;

/// A waiter's node, joined on its first poll that has to wait.
struct Listener {
    node: Option<NonNull<Node>>,
}

// SAFETY: a node is shared by atomics only, and used by one future at a time, wherever that is.
unsafe impl Send for Listener {}
// SAFETY: no method takes `&self`.
unsafe impl Sync for Listener {}

impl Listener {
    fn new() -> Self {
        Self { node: None }
    }

    /// From now on a change of the flight wakes `waker`. The caller looks at the flight afterwards.
    fn listen<V>(&mut self, entered: Entered<'_, V>, waker: &Waker) {
        let node = *self.node.get_or_insert_with(|| entered.flight.waiters.join());
        // SAFETY: on the flight's list, so alive while the caller is in the flight.
        unsafe { node.as_ref() }.listen(waker);
    }

    /// Before the caller leaves the flight.
    fn leave<V>(&mut self, entered: Entered<'_, V>) {
        if let Some(node) = self.node.take() {
            // SAFETY: joined on this list, and not used again.
            unsafe { entered.flight.waiters.leave(node) };
        }
    }
}

/// What a call panics with that would wait for itself and has no error to say so.
const RECURSIVE: &str = "recursive load: a load waits for its own result, directly or by way of the loads that it asks for";

/// What a panic said.
fn panic_message(payload: &(dyn Any + Send)) -> StdArc<str> {
    let message = payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    message.unwrap_or("a load panicked").into()
}

/// The value of a load, by who leads it: into the cache, and to the waiters; [`Flight::wake_closed`] is owed then.
///
/// [`Flight::wake_closed`]: crate::raw::flight::Flight::wake_closed
fn settle<K, V>(core: &Arc<Core<K, V>>, entered: Entered<'_, V>, value: &V)
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let _ = core.complete(entered, || value.clone());
    close(entered, || Outcome::Value(value.clone()));
}

/// The failure of a load, by who leads it: out of the cache, and to the waiters; to be woken as after `settle`.
fn fail<K, V>(core: &Arc<Core<K, V>>, entered: Entered<'_, V>, outcome: impl FnOnce() -> Outcome<V>)
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    core.count(&reclaim::pin(), Counter::LoadFailures);
    // Out of the cache first: who comes after the error starts a load of its own.
    core.end_flight(entered.id);
    close(entered, outcome);
}

/// Closes a flight that is open, by who leads it. `outcome` is made if there is anybody to see it.
fn close<V>(entered: Entered<'_, V>, outcome: impl FnOnce() -> Outcome<V>) {
    if !entered.flight.close_alone() {
        let outcome = outcome();
        // SAFETY: the caller holds the lead and closes once.
        unsafe { entered.flight.close_with(outcome) };
    }
}

/// Notes that this call waits for the flight, or leads it, on behalf of the load that this thread is polling, if
/// it is. At each poll: the call may be polled inside a load at one time, and outside at another.
///
/// # Errors
/// [`Circle`] if that load would wait for itself.
fn note_wait<V>(edge: &mut Edge, entered: Entered<'_, V>) -> Result<(), Circle> {
    // SAFETY: the poller that a frame belongs to sits in its flight, and the caller in the other.
    frames::innermost(|load| unsafe { edge.draw(load, &entered.flight.place) })
}

/// Is this thread polling a load?
pub(crate) fn is_inside_load() -> bool {
    frames::innermost(|load| load.is_some())
}
