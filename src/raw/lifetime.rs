//! How long entries live: the clock, the time to live and the jitter of a cache.

use super::state::Snapshot;
use crate::policy::{expiry, jitter};
use crate::sync;
use crate::sync::atomic::{AtomicBool, Ordering::AcqRel};
use crate::time::TimeSource;
use std::ptr::NonNull;
use std::time::Duration;

/// The user's clock. It goes with the last handle, though batches in limbo keep the core alive for longer: its
/// destructor is user code, which must not run where those batches end.
pub(super) struct Source {
    clock: NonNull<dyn TimeSource>,
    gone: AtomicBool,
}

// SAFETY: owns a `TimeSource`, which is Send and Sync.
unsafe impl Send for Source {}
// SAFETY: as above; gives shared references only.
unsafe impl Sync for Source {}

impl Source {
    pub(super) fn new(clock: Box<dyn TimeSource>) -> Self {
        Self { clock: NonNull::from(Box::leak(clock)), gone: AtomicBool::new(false) }
    }

    fn get(&self) -> &dyn TimeSource {
        // SAFETY: from a Box, which `dismiss` frees; nobody asks for the time after that.
        unsafe { self.clock.as_ref() }
    }

    /// Drops the clock.
    ///
    /// # Safety
    /// No operation of the cache runs, or ever will.
    pub(super) unsafe fn dismiss(&self) {
        if !self.gone.swap(true, AcqRel) {
            // SAFETY: from `Box::leak`, freed once, and not used again by the caller's promise.
            drop(unsafe { Box::from_raw(self.clock.as_ptr()) });
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // SAFETY: `&mut self`.
        unsafe { self.dismiss() };
    }
}

/// A life that begins: when it ends, and the tick that it begins at. Both 0 without a TTL.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Term {
    pub(super) deadline: u64,
    pub(super) tick: u64,
}

/// Time as the core sees it.
pub(super) struct Clock {
    pub(super) source: Source,
    pub(super) origin: Duration,
    pub(super) resolution: Duration,
    pub(super) ttl: Option<Duration>,
    pub(super) jitter: Duration,
}

impl Clock {
    /// Has the entry's deadline passed? Reads the clock only if there is one.
    #[inline(always)]
    pub(super) fn is_expired(&self, state: Snapshot) -> bool {
        let deadline = state.deadline();
        deadline != 0 && self.has_passed(deadline)
    }

    fn has_passed(&self, deadline: u64) -> bool {
        // The cheap reading may lag: it decides that an entry lives, and the exact one that it does not.
        let Self { source, origin, resolution, .. } = self;
        expiry::is_expired(deadline, source.get().now(), *origin, *resolution)
            && (resolution.is_zero()
                || expiry::is_expired(deadline, source.get().now_exact(), *origin, Duration::ZERO))
    }

    /// The life of an entry whose value is there now.
    #[inline]
    pub(super) fn new_term(&self) -> Term {
        self.ttl.map_or(Term::default(), |ttl| self.term_of(ttl))
    }

    #[cold]
    fn term_of(&self, ttl: Duration) -> Term {
        let extra = if self.jitter.is_zero() {
            Duration::ZERO
        } else {
            jitter::draw(self.jitter, sync::random_u64())
        };
        let now = self.source.get().now_exact();
        Term {
            deadline: expiry::deadline(now, self.origin, ttl.saturating_add(extra)),
            tick: expiry::tick(now, self.origin),
        }
    }

    /// The tick it is.
    pub(super) fn exact_tick(&self) -> u64 {
        expiry::tick(self.source.get().now_exact(), self.origin)
    }

    /// The tick it was a moment ago, cheaply.
    pub(super) fn coarse_tick(&self) -> u64 {
        expiry::tick(self.source.get().now(), self.origin)
    }

    /// May an entry end before one that was written earlier?
    pub(super) fn has_shorter_lives(&self) -> bool {
        !self.jitter.is_zero()
    }

    /// Ticks that an entry lives at least.
    pub(super) fn least_life(&self) -> u64 {
        self.ttl.map_or(u64::MAX, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
    }
}
