//! The pure, sequential parts of the policies: arithmetic and decisions, no atomics, no threads.

pub mod clock;
pub mod expiry;
pub mod ghost;
pub mod jitter;
