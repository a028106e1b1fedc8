//! Which loads this thread is polling right now, innermost last: how a load that asks for its own key is
//! recognised at once instead of waiting for itself for ever, and on whose behalf a call waits.

use crate::raw::graph::{Edge, Place};
use std::cell::{Cell, RefCell};

/// A load that is being polled, on the poller's stack. Its place in the graph of waits names it: the poller sits in
/// the flight, so nobody else has that address meanwhile.
struct Frame {
    place: *const Place,
    /// Null for a load of one key.
    bulk: *const Bulk,
    outer: *const Frame,
}

/// A load of several keys at once, in the graph of waits: a vertex of its own, which each of their flights comes to
/// wait for when the load waits for something.
pub(super) struct Bulk {
    place: Place,
    /// The flights' places. Their memory lives as long as the cache.
    members: Vec<*const Place>,
    /// From each member to `place`.
    edges: RefCell<Vec<Edge>>,
}

// SAFETY: places are shared by atomics, and edges may go to another thread. The pointers are followed in polls of
// the future that this belongs to, while it sits in the flights and borrows the cache.
unsafe impl Send for Bulk {}
// SAFETY: used in such polls alone, which borrow the future for themselves.
unsafe impl Sync for Bulk {}

impl Bulk {
    /// Of the flights at these places, in which the caller sits as long as it polls the load.
    pub(super) fn new<'a>(members: impl Iterator<Item = &'a Place>) -> Self {
        Self {
            place: Place::new(),
            members: members.map(std::ptr::from_ref).collect(),
            edges: RefCell::default(),
        }
    }

    /// What waits for one of the keys waits for the load.
    fn stand_for_members(&self) {
        let mut edges = self.edges.borrow_mut();
        if edges.is_empty() {
            edges.extend(self.members.iter().map(|&member| {
                let mut edge = Edge::default();
                // SAFETY: the caller sits in the member's flight, and this place is its own. No circle: the load
                // did not wait for anything so far.
                let _ = unsafe { edge.draw(Some(&*member), &self.place) };
                edge
            }));
        }
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }
}

#[cfg(not(alru_loom))]
std::thread_local! {
    static INNERMOST: Cell<*const Frame> = const { Cell::new(std::ptr::null()) };
}
#[cfg(alru_loom)]
crate::sync::thread_local! {
    static INNERMOST: Cell<*const Frame> = Cell::new(std::ptr::null());
}

fn current() -> *const Frame {
    INNERMOST.try_with(Cell::get).unwrap_or(std::ptr::null())
}

/// Runs `poll` as a poll of the load at `place`, whose flight the caller sits in.
pub(super) fn within<R>(place: &Place, poll: impl FnOnce() -> R) -> R {
    push(place, std::ptr::null(), poll)
}

/// Runs `poll` as a poll of a bulk load, in whose flights the caller sits.
pub(super) fn within_bulk<R>(bulk: &Bulk, poll: impl FnOnce() -> R) -> R {
    push(&bulk.place, bulk, poll)
}

fn push<R>(place: *const Place, bulk: *const Bulk, poll: impl FnOnce() -> R) -> R {
    struct Restore(*const Frame);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = INNERMOST.try_with(|i| i.set(self.0));
        }
    }
    let frame = Frame { place, bulk, outer: current() };
    let _restore = Restore(frame.outer);
    let _ = INNERMOST.try_with(|i| i.set(&frame));
    poll()
}

/// Is this thread inside a poll of the load at `place`?
pub(super) fn is_polling(place: &Place) -> bool {
    let mut frame = current();
    // SAFETY: frames live on this thread's stack below us: `push` takes each off before it returns.
    while let Some(f) = unsafe { frame.as_ref() } {
        // SAFETY: the bulk is borrowed for as long as its frame is there.
        let bulk = unsafe { f.bulk.as_ref() };
        let is_member = bulk.is_some_and(|b| b.members.contains(&std::ptr::from_ref(place)));
        if std::ptr::eq(f.place, place) || is_member {
            return true;
        }
        frame = f.outer;
    }
    false
}

/// Gives `f` the load that this thread is polling, the innermost one if it is in several.
pub(super) fn innermost<R>(f: impl FnOnce(Option<&Place>) -> R) -> R {
    // SAFETY: as in `is_polling`.
    let Some(frame) = (unsafe { current().as_ref() }) else { return f(None) };
    // SAFETY: as there.
    if let Some(bulk) = unsafe { frame.bulk.as_ref() } {
        bulk.stand_for_members();
    }
    // SAFETY: the place belongs to a flight that the poller sits in, or to its bulk.
    f(Some(unsafe { &*frame.place }))
}
