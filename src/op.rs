//! What a compute may do to an entry, and what it came to.

/// What a compute wants to become of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<V> {
    /// Insert this value, or replace the present one by it.
    Put(V),
    /// Remove the present value, if there is one.
    Remove,
    /// Leave all as it is.
    Nop,
}

/// What a compute came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a value may have found no place"]
pub enum CompResult<V> {
    /// There was no value; now there is this one.
    Inserted(V),
    /// There was a value; now there is this one.
    ReplacedWith(V),
    /// This value was removed.
    Removed(V),
    /// Nothing was done; this is the value.
    Unchanged(V),
    /// Nothing was done; there is no value.
    StillNone,
    /// This value was computed and found no place in the cache (see
    /// [`Stats::refused`](crate::Stats::refused)): as if it had been inserted and evicted at once. Nothing older
    /// is served after it.
    Bypassed(V),
}

impl<V> CompResult<V> {
    /// The key's value afterwards, in the cache or not; None if there is none.
    pub fn value(&self) -> Option<&V> {
        match self {
            Self::Inserted(v) | Self::ReplacedWith(v) | Self::Unchanged(v) | Self::Bypassed(v) => {
                Some(v)
            }
            Self::Removed(_) | Self::StillNone => None,
        }
    }

    /// As [`value`](Self::value), by value.
    pub fn into_value(self) -> Option<V> {
        match self {
            Self::Inserted(v) | Self::ReplacedWith(v) | Self::Unchanged(v) | Self::Bypassed(v) => {
                Some(v)
            }
            Self::Removed(_) | Self::StillNone => None,
        }
    }

    /// Was a value computed that found no place?
    #[must_use]
    pub fn is_bypassed(&self) -> bool {
        matches!(self, Self::Bypassed(_))
    }
}
