//! The pure, sequential parts of the policies: arithmetic and decisions, no atomics, no threads.
#![allow(missing_docs)] // internal: public for the loom models alone

pub mod clock;
pub mod expiry;
pub mod ghost;
pub mod jitter;
pub mod wheel;
