//! Which loads this thread is polling right now, innermost last: how a load that asks for its own key is
//! recognised at once instead of waiting for itself for ever.
//!
//! It sees what happens within one poll. A load that hands the question to another task and waits for that
//! task is not recognised.

use super::LoadName;
use crate::raw::flight::FlightId;
use std::cell::Cell;

/// Loads that are being polled, on the poller's stack: one, or those of a bulk.
struct Frame {
    cache: *const (),
    flights: *const [FlightId],
    outer: *const Frame,
}

#[cfg(not(alru_loom))]
std::thread_local! {
    static INNERMOST: Cell<*const Frame> = const { Cell::new(std::ptr::null()) };
}
#[cfg(alru_loom)]
crate::sync::thread_local! {
    static INNERMOST: Cell<*const Frame> = Cell::new(std::ptr::null());
}

/// Runs `poll` as a poll of the load `name`.
pub(super) fn within<R>(name: LoadName, poll: impl FnOnce() -> R) -> R {
    within_all(name.0, &[name.1], poll)
}

/// Runs `poll` as a poll of several loads of one cache.
pub(super) fn within_all<R>(cache: *const (), flights: &[FlightId], poll: impl FnOnce() -> R) -> R {
    struct Restore(*const Frame);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = INNERMOST.try_with(|i| i.set(self.0));
        }
    }
    let outer = INNERMOST.try_with(Cell::get).unwrap_or(std::ptr::null());
    let frame = Frame { cache, flights, outer };
    let _restore = Restore(outer);
    let _ = INNERMOST.try_with(|i| i.set(&frame));
    poll()
}

/// Is this thread inside a poll of the load `name`?
pub(super) fn is_polling(name: LoadName) -> bool {
    let mut frame = INNERMOST.try_with(Cell::get).unwrap_or(std::ptr::null());
    // SAFETY: frames live on this thread's stack below us: `within` takes each off before it returns.
    while let Some(f) = unsafe { frame.as_ref() } {
        // SAFETY: `within_all` borrows the flights for as long as its frame is there.
        if f.cache == name.0 && unsafe { &*f.flights }.contains(&name.1) {
            return true;
        }
        frame = f.outer;
    }
    false
}
