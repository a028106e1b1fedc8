//! How long entries live: the clock, the time to live and the jitter of a cache.

use super::state::Snapshot;
use crate::policy::{expiry, jitter};
use crate::sync;
use crate::time::TimeSource;
use std::time::Duration;

/// Time as the core sees it.
pub(super) struct Clock {
    pub(super) source: Box<dyn TimeSource>,
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
        expiry::is_expired(deadline, source.now(), *origin, *resolution)
            && (resolution.is_zero()
                || expiry::is_expired(deadline, source.now_exact(), *origin, Duration::ZERO))
    }

    /// The deadline of an entry whose value is there now; 0 without a TTL.
    #[inline]
    pub(super) fn new_deadline(&self) -> u64 {
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
