//! A lock-free in-process cache that memoizes async functions and shares in-flight loads.
#![warn(missing_docs)]

mod builder;
mod cache;
mod error;
mod guard;
mod load;
mod memo;
mod policy;
#[cfg(alru_loom)]
#[doc(hidden)]
pub mod raw;
#[cfg(not(alru_loom))]
mod raw;
mod stats;
#[cfg(alru_loom)]
#[doc(hidden)]
pub mod sync;
#[cfg(not(alru_loom))]
mod sync;
mod time;

pub use builder::{BuildError, CacheBuilder, EvictionPolicy};
pub use cache::Cache;
pub use error::LoadError;
pub use guard::Pinned;
pub use memo::{AlruCache, AlruCacheBuilder, CacheInfo, CacheParameters};
pub use stats::Stats;
pub use time::{CoarseTime, ManualTime, PreciseTime, TimeSource};

/// The hasher of a cache that was not given one: foldhash, seeded once a process.
///
/// Fast, and hard to flood from outside because the seed is secret; not cryptographic. Choose another
/// with [`CacheBuilder::build_with_hasher`].
pub type DefaultHasher = foldhash::fast::RandomState;
