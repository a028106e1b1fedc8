//! A bucket of the ghost: eight 16-bit fingerprints, the oldest overwritten.

/// Fingerprints a bucket remembers.
pub const LANES: usize = 8;
const LANE_BITS: u32 = 16;
const LANES_PER_WORD: u32 = u64::BITS / LANE_BITS;

/// Two words of four lanes, the youngest in the low lane of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket(pub [u64; 2]);

/// The fingerprint of a tag: its low bits, as the high ones choose the bucket. Never 0, which is an empty lane.
#[inline]
pub fn fingerprint(tag: u32) -> u16 {
    (tag as u16).max(1)
}

impl Bucket {
    /// Remembers a fingerprint, forgetting the oldest of eight.
    #[inline]
    pub fn push(self, fingerprint: u16) -> Self {
        let [young, old] = self.0;
        let carry = young >> (LANE_BITS * (LANES_PER_WORD - 1));
        Self([young << LANE_BITS | fingerprint as u64, old << LANE_BITS | carry])
    }

    /// Is the fingerprint remembered?
    #[inline]
    pub fn contains(self, fingerprint: u16) -> bool {
        let lane = |word: u64, i: u32| (word >> (i * LANE_BITS)) as u16;
        self.0.iter().any(|&w| (0..LANES_PER_WORD).any(|i| lane(w, i) == fingerprint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_are_remembered_and_no_more() {
        let mut b = Bucket::default();
        for f in 1..=20u16 {
            b = b.push(f);
            for old in 1..=20 {
                assert_eq!(b.contains(old), old <= f && old + LANES as u16 > f, "{old} after {f}");
            }
        }
    }
}
