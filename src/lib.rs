//! A lock-free in-process cache that memoizes async functions and shares in-flight loads.
//!
//! * [`#[alru_cache]`](macro@alru_cache) and [`AlruCache`]: an async function with a cache around it. Many
//!   concurrent calls, one execution; time to live with jitter; info, contains, invalidate, clear, close.
//! * [`Cache`]: the concurrent cache beneath, for direct use.
//!
//! # Usage
//!
//! ```
//! use alru::{Cache, ManualTime};
//! use std::time::Duration;
//!
//! let time = ManualTime::new();
//! let cache: Cache<String, u32> = Cache::builder()
//!     .max_capacity(1_000)
//!     .time_to_live(Duration::from_secs(10))
//!     .time_source(time.clone())
//!     .build();
//! cache.insert("answer".to_owned(), 42);
//! assert_eq!(cache.get("answer"), Some(42));
//! time.advance(Duration::from_secs(10));
//! assert_eq!(cache.get("answer"), None);
//! ```
//!
//! # Consistency
//!
//! Operations on one key are linearizable. A caller that starts after [`invalidate`](Cache::invalidate) or
//! [`insert`](Cache::insert) has returned never gets anything older, the result of a load that began before
//! included. The number of resident entries never exceeds the capacity.
//!
//! # Progress
//!
//! No operation takes a lock or waits for another thread, and the crate starts no thread and no task. (The
//! blocking calls, [`Cache::get_or_insert_with`] and its kin, park their thread while another caller loads the
//! key: that is what they are for.) What exactly is claimed, and by what evidence, is in `SAFETY.md`.
//!
//! # Async and cancel safety
//!
//! Every future of this crate may be dropped at any point. Loads work on any runtime, or on several at once.
//! A dropped caller never loses another caller's load: see [`Cache::get_with`] and [`AlruCache::call`] for
//! who runs what.
//!
//! # Costs
//!
//! A hit costs a hash and two cache lines, and an epoch pin in an unbounded cache or off Linux; [`Cache::pin`] reads
//! by reference, and pays for one pin for many reads. Removed values are dropped by later writes, a bounded number
//! each, or by [`run_pending_tasks`](Cache::run_pending_tasks): each thread that removes may leave as many undropped
//! as a quarter of the capacity, between 64 and 2,048, until it goes on or another thread takes them along.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `macros` | yes | `#[alru_cache]` |

#[doc(hidden)]
#[path = "private.rs"]
pub mod __private;
mod builder;
mod cache;
mod entry;
mod error;
mod guard;
mod load;
mod loading;
mod memo;
mod op;
#[cfg(alru_loom)]
#[doc(hidden)]
pub mod policy;
#[cfg(not(alru_loom))]
mod policy;
#[cfg(alru_loom)]
#[doc(hidden)]
pub mod raw;
#[cfg(not(alru_loom))]
mod raw;
mod stats;
mod sweeper;
#[cfg(alru_loom)]
#[doc(hidden)]
pub mod sync;
#[cfg(not(alru_loom))]
mod sync;
mod time;

#[cfg(feature = "macros")]
pub use alru_macros::alru_cache;
pub use builder::{BuildError, CacheBuilder, EvictionPolicy};
pub use cache::Cache;
pub use entry::Entry;
pub use error::{LoadError, TimedOut};
pub use guard::Pinned;
pub use load::get_with::{GetWith, TryGetWith};
pub use load::patience::{Forever, StealAfter};
pub use loading::{LoadingCache, LoadingCacheBuilder, LoadingGet};
pub use memo::{AlruCache, AlruCacheBuilder, CacheInfo, CacheParameters};
pub use op::{CompResult, Op};
pub use stats::Stats;
pub use time::{CoarseTime, ManualTime, PreciseTime, TimeSource};

/// The hasher of a cache that was not given one: foldhash, seeded once a process.
///
/// Fast, and hard to flood from outside because the seed is secret; not cryptographic. Choose another
/// with [`CacheBuilder::build_with_hasher`].
#[cfg(not(alru_loom))]
pub type DefaultHasher = foldhash::fast::RandomState;

/// A model must be deterministic.
#[cfg(alru_loom)]
pub type DefaultHasher = foldhash::fast::FixedState;

/// The README's examples compile and hold.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
