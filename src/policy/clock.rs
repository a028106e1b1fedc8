//! What a CLOCK hand does with the entry under it.
//!
//! Two hands with a probation bit: the policy of S3-FIFO (Yang et al., SOSP 2023) without queues. The small
//! hand sweeps probation, the main hand the rest. Plain CLOCK (Corbató, 1968) is the main hand alone with a
//! one-bit counter.

/// Saturation of the reference counter under the two-hand policy: two bits.
pub const TWO_HAND_MAX: u8 = 3;
/// Saturation under plain CLOCK: the reference bit.
pub const PLAIN_MAX: u8 = 1;

/// What to do with a ready entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not referenced since the last visit, or out of time.
    Evict,
    /// Another round: take one reference away.
    Decrement,
    /// Referenced while in probation: move to main.
    Promote,
    /// A newcomer that no hand has met: one more round.
    Age,
}

/// The hand over main, and over everything under plain CLOCK.
pub fn main_hand(refs: u8, expired: bool) -> Verdict {
    if expired || refs == 0 { Verdict::Evict } else { Verdict::Decrement }
}

/// The hand over probation.
pub fn small_hand(refs: u8, fresh: bool, expired: bool) -> Verdict {
    if expired {
        Verdict::Evict
    } else if refs > 0 {
        Verdict::Promote
    } else if fresh {
        Verdict::Age
    } else {
        Verdict::Evict
    }
}

/// The share of a capacity that probation may hold: a tenth, at least one entry from capacity 8 on. Below
/// that the cache is main alone.
pub fn probation_target(capacity: u64) -> u64 {
    if capacity < 8 { 0 } else { (capacity / 10).max(1) }
}

/// How many evicted keys the ghost remembers: half the capacity scored best on the reference traces.
pub fn ghost_entries(capacity: u64) -> u64 {
    capacity / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expired_entries_go_first() {
        assert_eq!(main_hand(3, true), Verdict::Evict);
        assert_eq!(small_hand(3, true, true), Verdict::Evict);
    }

    #[test]
    fn a_newcomer_survives_one_visit_and_a_referenced_one_is_promoted() {
        assert_eq!(small_hand(0, true, false), Verdict::Age);
        assert_eq!(small_hand(0, false, false), Verdict::Evict);
        assert_eq!(small_hand(1, true, false), Verdict::Promote);
    }

    #[test]
    fn probation_never_takes_a_small_cache() {
        assert_eq!([1, 7, 8, 19, 1000].map(probation_target), [0, 0, 1, 1, 100]);
    }
}
