//! The futures of loads: who polls what, and what happens when one is dropped.

pub(crate) mod caller;
pub(crate) mod compute;
mod frames;
pub(crate) mod shared;

use crate::raw::flight::{Entered, FlightId};
use crate::raw::waiters::Node;
use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
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

/// What a panic said.
fn panic_message(payload: &(dyn Any + Send)) -> Arc<str> {
    let message = payload
        .downcast_ref::<&'static str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    message.unwrap_or("a load panicked").into()
}

/// Two caches may have flights of the same id.
type LoadName = (*const (), FlightId);
