//! How a cache is set up.

use crate::cache::Cache;
use crate::raw::core::{Config, Core};
use crate::raw::hands::Policy;
use crate::raw::mem::Blank;
use crate::raw::slot::Slot;
use crate::time::{CoarseTime, TimeSource};
use crate::{DefaultHasher, raw};
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::time::Duration;

/// The most entries and reserve slots that one cache can have: slot indices have 32 bits.
const MAX_SLOTS: u64 = u32::MAX as u64 - 8;

/// The reserve of a cache that was not given one is its capacity, and at least this many slots. Measured with
/// 8 threads in a tight loop on 2 cores, one operation in twenty an insert: of the inserts, 50 % were refused with
/// 65,536 slots and 0.1 % with these.
const MIN_RESERVE: u64 = 262_144;

/// The least reserve that one can ask for: a newcomer needs a slot before its victim's is free again.
const LEAST_RESERVE: u64 = 16;

/// Address space that the least reserve may take: fewer slots for keys and values that are large in line.
const MIN_RESERVE_BYTES: usize = 1 << 30;

/// How long a blocking call waits for one load if it was not told otherwise.
const BLOCKING_PATIENCE: Duration = Duration::from_secs(1);

fn least_reserve<K, V>() -> u64 {
    if cfg!(alru_loom) {
        return 4;
    }
    MIN_RESERVE.min((MIN_RESERVE_BYTES / <Slot<K, V> as Blank>::STRIDE) as u64).max(1_024)
}

/// Which entry goes when the cache is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionPolicy(pub(crate) Policy);

impl EvictionPolicy {
    /// Two CLOCK hands with a probation bit and a ghost: newcomers prove themselves in a twentieth of the
    /// capacity before they displace others. Withstands scans; the default.
    ///
    /// The policy of S3-FIFO (Yang et al., *FIFO queues are all you need for cache eviction*, SOSP 2023),
    /// without its queues.
    #[must_use]
    pub const fn two_hand() -> Self {
        Self(Policy::TwoHand)
    }

    /// Plain CLOCK with one reference bit (Corbató 1968): approximates LRU, and scores like it.
    #[must_use]
    pub const fn clock() -> Self {
        Self(Policy::Plain)
    }
}

impl Default for EvictionPolicy {
    fn default() -> Self {
        Self::two_hand()
    }
}

/// A setting that makes no sense, with what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// `jitter` was set without a time to live.
    JitterWithoutTtl,
    /// Capacity and reserve together are more than a cache can address.
    TooManySlots {
        /// Entries asked for.
        capacity: u64,
        /// Reserve slots asked for.
        reserve: u64,
    },
    /// `reserve` was set for an unbounded cache.
    ReserveWithoutCapacity,
    /// `initial_capacity` is larger than `max_capacity`.
    InitialAboveMax {
        /// The initial capacity.
        initial: usize,
        /// The maximum capacity.
        max: u64,
    },
    /// The allocator did not provide the memory for the tables.
    OutOfMemory {
        /// Entries that the tables were for.
        entries: u64,
    },
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JitterWithoutTtl => f.write_str(
                "jitter is set without a time to live: set time_to_live (ttl) too, or leave jitter out",
            ),
            Self::TooManySlots { capacity, reserve } => write!(
                f,
                "max_capacity {capacity} with a reserve of {reserve} slots is more than the {MAX_SLOTS} that a cache can \
                 address: lower max_capacity or reserve, or leave max_capacity out for an unbounded cache"
            ),
            Self::ReserveWithoutCapacity => f.write_str(
                "reserve is set for an unbounded cache, which needs none: set max_capacity, or leave reserve out",
            ),
            Self::InitialAboveMax { initial, max } => write!(
                f,
                "initial_capacity {initial} is above max_capacity {max}: lower initial_capacity or raise max_capacity"
            ),
            Self::OutOfMemory { entries } => write!(
                f,
                "no memory for the tables of {entries} entries: lower max_capacity, initial_capacity or reserve"
            ),
        }
    }
}

impl std::error::Error for BuildError {}

/// Sets up a [`Cache`]. Every setting is optional.
///
/// ```
/// use alru::Cache;
/// use std::time::Duration;
///
/// let cache: Cache<String, u64> = Cache::builder()
///     .max_capacity(10_000)
///     .time_to_live(Duration::from_secs(10))
///     .jitter(Duration::from_secs(2))
///     .build();
/// cache.insert("one".to_owned(), 1);
/// assert_eq!(cache.get("one"), Some(1));
/// ```
#[must_use = "a builder does nothing before build"]
pub struct CacheBuilder<K, V> {
    max_capacity: Option<u64>,
    initial_capacity: Option<usize>,
    reserve: Option<usize>,
    ttl: Option<Duration>,
    jitter: Option<Duration>,
    policy: EvictionPolicy,
    time: Option<Box<dyn TimeSource>>,
    name: Option<String>,
    patience: Duration,
    _marker: PhantomData<fn(K) -> V>,
}

impl<K, V> fmt::Debug for CacheBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheBuilder")
            .field("name", &self.name)
            .field("max_capacity", &self.max_capacity)
            .field("initial_capacity", &self.initial_capacity)
            .field("reserve", &self.reserve)
            .field("time_to_live", &self.ttl)
            .field("jitter", &self.jitter)
            .field("eviction_policy", &self.policy)
            .field("blocking_patience", &self.patience)
            .finish_non_exhaustive()
    }
}

impl<K, V> Default for CacheBuilder<K, V> {
    fn default() -> Self {
        Self {
            max_capacity: None,
            initial_capacity: None,
            reserve: None,
            ttl: None,
            jitter: None,
            policy: EvictionPolicy::default(),
            time: None,
            name: None,
            patience: BLOCKING_PATIENCE,
            _marker: PhantomData,
        }
    }
}

impl<K, V> CacheBuilder<K, V> {
    /// The most entries that may be resident, loads under way included. Default: unbounded. 0 keeps
    /// nothing and shares nothing.
    ///
    /// A bounded cache reserves address space for its capacity and its [reserve](Self::reserve) at once;
    /// memory is committed as it is used.
    pub fn max_capacity(mut self, entries: u64) -> Self {
        self.max_capacity = Some(entries);
        self
    }

    /// Entries to make room for at the start, for an unbounded cache: spares it the growth up to there.
    /// Default: 64. A bounded cache has its full size from the start.
    pub fn initial_capacity(mut self, entries: usize) -> Self {
        self.initial_capacity = Some(entries);
        self
    }

    /// Slots beyond the capacity, for values that were removed while a reader may still look at them.
    /// Default: the capacity, and at least 262,144 (fewer if those took more than 1 GiB). Committed only when
    /// touched.
    ///
    /// When a thread stays pinned (a [`Pinned`](crate::Pinned) guard held for long, or a preempted reader),
    /// removed values pile up in the reserve. Once it is used up, inserts are refused
    /// ([`Stats::refused`](crate::Stats::refused)): so this bounds memory, and a small value risks refusals. At least 16.
    pub fn reserve(mut self, slots: usize) -> Self {
        self.reserve = Some(slots);
        self
    }

    /// How long an entry lives, from the insert or the end of its load; hits do not extend it. Default:
    /// for ever. Kept in whole milliseconds, rounded down; zero expires at once.
    pub fn time_to_live(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Lets each entry live longer by its own draw from `[0, jitter]`, uniform, so that entries loaded
    /// together do not expire together. Default: none. Needs a [time to live](Self::time_to_live).
    pub fn jitter(mut self, jitter: Duration) -> Self {
        self.jitter = Some(jitter);
        self
    }

    /// Which entry goes when the cache is full. Default: [`EvictionPolicy::two_hand`].
    pub fn eviction_policy(mut self, policy: EvictionPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The clock that lifetimes are measured on. Default: [`CoarseTime`](crate::CoarseTime).
    pub fn time_source(mut self, source: impl TimeSource) -> Self {
        self.time = Some(Box::new(source));
        self
    }

    /// A name for debugging output and metrics. Default: none.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How long a blocking call such as [`Cache::get_or_insert_with`] waits for one load that another caller
    /// leads, before it takes the load out of the cache and goes on without it. Default: one second.
    /// `Duration::MAX`: for ever. Measured by the clock on the wall, not by the [time
    /// source](Self::time_source).
    ///
    /// Longer than the loads take. It is there for the load that will never end: because a task of the blocked
    /// thread leads it, or one that nobody polls.
    pub fn blocking_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    fn config(&mut self) -> Result<Config, BuildError> {
        if self.jitter.is_some() && self.ttl.is_none() {
            return Err(BuildError::JitterWithoutTtl);
        }
        let reserve = match (self.max_capacity, self.reserve) {
            (None, Some(_)) => return Err(BuildError::ReserveWithoutCapacity),
            (None, None) => 0,
            (Some(_), Some(reserve)) => (reserve as u64).max(LEAST_RESERVE),
            // Headroom, not a promise: a huge cache gets what the index space leaves.
            (Some(capacity), None) => {
                let least = least_reserve::<K, V>();
                capacity.max(least).min(MAX_SLOTS.saturating_sub(capacity)).max(least)
            }
        };
        if let Some(max) = self.max_capacity {
            if max.saturating_add(reserve) > MAX_SLOTS {
                return Err(BuildError::TooManySlots { capacity: max, reserve });
            }
            if let Some(initial) = self.initial_capacity {
                if initial as u64 > max {
                    return Err(BuildError::InitialAboveMax { initial, max });
                }
            }
        }
        Ok(Config {
            capacity: self.max_capacity,
            reserve: reserve as usize,
            initial: self.initial_capacity.unwrap_or(0),
            policy: self.policy.0,
            ttl: self.ttl,
            jitter: self.jitter.unwrap_or_default(),
            time: self.time.take().unwrap_or_else(|| Box::new(CoarseTime::new())),
        })
    }
}

impl<K, V> CacheBuilder<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Builds the cache.
    ///
    /// # Panics
    /// With the message of the [`BuildError`] if a setting makes no sense.
    #[must_use]
    #[track_caller]
    pub fn build(self) -> Cache<K, V> {
        self.build_with_hasher(DefaultHasher::default())
    }

    /// Builds the cache, or says what is wrong with the settings.
    ///
    /// # Errors
    /// [`BuildError`] names the setting and the mend.
    pub fn try_build(self) -> Result<Cache<K, V>, BuildError> {
        self.try_build_with_hasher(DefaultHasher::default())
    }

    /// Builds the cache with a hasher of your choice. The upper bits of the hash are mixed once more, so
    /// an identity hasher will do for keys that are random already.
    ///
    /// # Panics
    /// As [`build`](Self::build).
    #[must_use]
    #[track_caller]
    pub fn build_with_hasher<S: BuildHasher>(self, hasher: S) -> Cache<K, V, S> {
        match self.try_build_with_hasher(hasher) {
            Ok(cache) => cache,
            Err(error) => panic!("{error}"),
        }
    }

    /// Builds the cache with a hasher of your choice, or says what is wrong with the settings.
    ///
    /// # Errors
    /// As [`try_build`](Self::try_build).
    pub fn try_build_with_hasher<S: BuildHasher>(
        mut self,
        hasher: S,
    ) -> Result<Cache<K, V, S>, BuildError> {
        let config = self.config()?;
        let entries = config.capacity.unwrap_or(config.initial as u64);
        let core = Core::new(config)
            .map_err(|raw::mem::OutOfMemory| BuildError::OutOfMemory { entries })?;
        Ok(Cache::from_core(core, hasher, self.name, self.patience))
    }
}
