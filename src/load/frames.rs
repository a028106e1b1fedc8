//! Which loads this thread is polling right now, innermost last: how a load that asks for its own key is
//! recognised at once instead of waiting for itself for ever, and on whose behalf a call waits.

use crate::raw::graph::Place;
use std::cell::Cell;

/// A load that is being polled, on the poller's stack. Its flight's place in the graph of waits names it: the
/// poller sits in the flight, so nobody else has that address meanwhile.
struct Frame {
    place: *const Place,
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

fn current() -> *const Frame {
    INNERMOST.try_with(Cell::get).unwrap_or(std::ptr::null())
}

/// Runs `poll` as a poll of the load at `place`, whose flight the caller sits in.
pub(super) fn within<R>(place: &Place, poll: impl FnOnce() -> R) -> R {
    struct Restore(*const Frame);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = INNERMOST.try_with(|i| i.set(self.0));
        }
    }
    let frame = Frame { place, outer: current() };
    let _restore = Restore(frame.outer);
    let _ = INNERMOST.try_with(|i| i.set(&frame));
    poll()
}

/// Is this thread inside a poll of the load at `place`?
pub(super) fn is_polling(place: &Place) -> bool {
    let mut frame = current();
    // SAFETY: frames live on this thread's stack below us: `within` takes each off before it returns.
    while let Some(f) = unsafe { frame.as_ref() } {
        if std::ptr::eq(f.place, place) {
            return true;
        }
        frame = f.outer;
    }
    false
}

/// Gives `f` the load that this thread is polling, the innermost one if it is in several.
pub(super) fn innermost<R>(f: impl FnOnce(Option<&Place>) -> R) -> R {
    // SAFETY: the frame as in `is_polling`; the place belongs to a flight that the poller sits in.
    f(unsafe { current().as_ref().map(|f| &*f.place) })
}
