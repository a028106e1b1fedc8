//! Where the time comes from.
//!
//! A cache asks its [`TimeSource`] only for entries that have a deadline: a cache without a TTL
//! never reads a clock.

use std::time::{Duration, Instant};

use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

/// A clock for expiry: how long it has been since an instant of the source's own choosing.
///
/// | source | shows | one reading |
/// |---|---|---|
/// | [`CoarseTime`], the default | the time two kernel ticks ago at most (8 ms as a rule) | 6 to 8 ns |
/// | [`PreciseTime`] | nanoseconds | 25 to 31 ns |
/// | [`ManualTime`] | what it is told | about 1 ns |
///
/// The costs were measured on one 2-core virtual machine under Linux; they hold for the order of
/// magnitude.
///
/// # Never late
///
/// An entry's deadline is [`now_exact`](Self::now_exact) at the end of its load plus its life, in
/// whole milliseconds, rounded down. A read that finds [`now`](Self::now) +
/// [`resolution`](Self::resolution), the latest that it can truly be, before the deadline serves
/// the entry; else it asks for the exact time, and that decides. So an entry is never served at or
/// after its deadline, expires early by less than 1 ms, and costs an exact reading only when its
/// end is near.
///
/// # Contract
///
/// All readings of one source count from the same instant. They should not go back; if they do,
/// nothing breaks and nothing panics, but entries live longer by as much as the clock jumped.
/// Calls come from any thread, on the path of every read of an entry with a deadline, so they
/// should be cheap. A panic passes through to the caller of the cache.
pub trait TimeSource: Send + Sync + 'static {
    /// The time, cheaply: at most [`resolution`](Self::resolution) behind the truth, never ahead
    /// of it. Read for each look-up of an entry with a deadline.
    fn now(&self) -> Duration;

    /// The time, exactly. Read once for each entry that is given a deadline, and for look-ups of
    /// entries whose end is near.
    ///
    /// The default is [`now`](Self::now), right for a source whose resolution is zero. One that
    /// lags has to bring its own: else entries may be served for up to one resolution too long.
    fn now_exact(&self) -> Duration {
        self.now()
    }

    /// How far [`now`](Self::now) may be behind the truth. Constant for one source; the default
    /// is zero.
    fn resolution(&self) -> Duration {
        Duration::ZERO
    }
}

/// The kernel's coarse monotonic clock, the default of a cache: cheap, and behind by up to two
/// ticks of the kernel. A tick is 1 to 10 ms, 4 ms as a rule.
///
/// On 64-bit Linux. Elsewhere it is the same as [`PreciseTime`].
///
/// [`resolution`](TimeSource::resolution) answers four ticks: two for a timer interrupt that comes
/// late. Where one can be held up for longer, say on a badly overcommitted virtual machine, and a
/// deadline must be kept even then, use [`PreciseTime`].
#[derive(Clone, Copy, Debug)]
pub struct CoarseTime(coarse::Clock);

impl CoarseTime {
    /// Asks the kernel for the resolution, once.
    #[must_use]
    pub fn new() -> Self {
        Self(coarse::Clock::new())
    }
}

impl Default for CoarseTime {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeSource for CoarseTime {
    #[inline]
    fn now(&self) -> Duration {
        self.0.now()
    }

    #[inline]
    fn now_exact(&self) -> Duration {
        self.0.now_exact()
    }

    #[inline]
    fn resolution(&self) -> Duration {
        self.0.resolution()
    }
}

/// [`Instant`], nanoseconds exact: about four times the cost of [`CoarseTime`].
///
/// Counts from its own creation, so the readings of two of them differ; clones agree.
#[derive(Clone, Copy, Debug)]
pub struct PreciseTime {
    start: Instant,
}

impl PreciseTime {
    /// A clock that shows zero now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for PreciseTime {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeSource for PreciseTime {
    #[inline]
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is told otherwise, for tests of expiry without waiting.
///
/// Starts at zero. Clones share the time, so a test keeps one and gives the cache another.
/// Whole nanoseconds; stops at `u64::MAX` of them, about 584 years.
///
/// ```
/// use alru::{Cache, ManualTime};
/// use std::time::Duration;
///
/// let time = ManualTime::new();
/// let cache: Cache<&str, u32> = Cache::builder()
///     .max_capacity(100)
///     .time_to_live(Duration::from_secs(10))
///     .time_source(time.clone())
///     .build();
///
/// cache.insert("answer", 42);
/// time.advance(Duration::from_millis(9_999));
/// assert_eq!(cache.get("answer"), Some(42));
/// time.advance(Duration::from_millis(1));
/// assert_eq!(cache.get("answer"), None);
/// ```
#[derive(Clone, Debug)]
pub struct ManualTime {
    nanos: Arc<AtomicU64>,
}

// Relaxed throughout: the clock is one word and orders nothing else. A reading that happens after
// a change sees it by coherence alone.
impl ManualTime {
    /// A clock that shows zero.
    #[must_use]
    pub fn new() -> Self {
        Self { nanos: Arc::new(AtomicU64::new(0)) }
    }

    /// Moves the time forward; stops at the end of the range. Concurrent calls add up.
    pub fn advance(&self, by: Duration) {
        let by = saturating_nanos(by);
        let mut now = self.nanos.load(Ordering::Relaxed);
        while let Err(newer) = self.nanos.compare_exchange_weak(
            now,
            now.saturating_add(by),
            Ordering::Relaxed,
            Ordering::Relaxed,
        ) {
            now = newer;
        }
    }

    /// Sets the time, also back, as a clock that jumps. What the cache makes of a jump back is
    /// under the [contract of `TimeSource`](TimeSource#contract).
    pub fn set(&self, now: Duration) {
        self.nanos.store(saturating_nanos(now), Ordering::Relaxed);
    }
}

impl Default for ManualTime {
    fn default() -> Self {
        Self::new()
    }
}

impl TimeSource for ManualTime {
    #[inline]
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed))
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// Not under Miri, which knows no `clock_getres`.
#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod coarse {
    use std::ffi::{c_int, c_long};
    use std::time::Duration;

    const CLOCK_MONOTONIC: c_int = 1;
    const CLOCK_MONOTONIC_COARSE: c_int = 6;

    /// `struct timespec` of every 64-bit Linux ABI: `time_t` and `long` have 64 bits there.
    #[repr(C)]
    struct Timespec {
        tv_sec: i64,
        tv_nsec: c_long,
    }

    // Two functions do not earn a dependency on `libc`, which std links anyway.
    unsafe extern "C" {
        fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int;
        fn clock_getres(clock: c_int, resolution: *mut Timespec) -> c_int;
    }

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Clock {
        /// The coarse clock, or the exact one where the kernel has no coarse one.
        id: c_int,
        resolution: Duration,
    }

    impl Clock {
        pub(super) fn new() -> Self {
            match resolution_of(CLOCK_MONOTONIC_COARSE) {
                // `clock_getres` says one tick, which is too little. At a tick the kernel moves the
                // clock by whole ticks and keeps what is left of the last one, so just before the
                // next tick it is behind by one tick and that rest. (Measured at 4 ms a tick: 2.1
                // to 6.1 ms behind.) Two more for interrupts that are late: all it costs is exact
                // readings that much earlier before the end of a life.
                Some(tick) => {
                    Self { id: CLOCK_MONOTONIC_COARSE, resolution: tick.saturating_mul(4) }
                }
                None => Self { id: CLOCK_MONOTONIC, resolution: Duration::ZERO },
            }
        }

        #[inline]
        pub(super) fn now(&self) -> Duration {
            read(self.id)
        }

        /// The coarse clock is this one as of the last timer interrupt: same origin, never ahead.
        #[inline]
        pub(super) fn now_exact(&self) -> Duration {
            read(CLOCK_MONOTONIC)
        }

        #[inline]
        pub(super) fn resolution(&self) -> Duration {
            self.resolution
        }
    }

    #[inline]
    fn read(clock: c_int) -> Duration {
        let mut time = Timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is valid for writes of a `timespec`, whose layout `Timespec` has on the
        // targets of this module; the call keeps no pointer and touches no other memory.
        let answer = unsafe { clock_gettime(clock, &mut time) };
        // A clock that stopped would serve stale values for ever.
        assert_eq!(answer, 0, "the kernel refuses to read clock {clock}");
        duration(&time)
    }

    fn resolution_of(clock: c_int) -> Option<Duration> {
        let mut time = Timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: as in `read`.
        let answer = unsafe { clock_getres(clock, &mut time) };
        (answer == 0).then(|| duration(&time))
    }

    /// Monotonic clocks count from boot: neither field is negative, and `tv_nsec` is below one
    /// second, so it fits.
    #[inline]
    fn duration(time: &Timespec) -> Duration {
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
mod coarse {
    use std::time::Duration;

    use super::{PreciseTime, TimeSource};

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Clock(PreciseTime);

    impl Clock {
        pub(super) fn new() -> Self {
            Self(PreciseTime::new())
        }

        #[inline]
        pub(super) fn now(&self) -> Duration {
            self.0.now()
        }

        #[inline]
        pub(super) fn now_exact(&self) -> Duration {
            self.0.now()
        }

        #[inline]
        pub(super) fn resolution(&self) -> Duration {
            Duration::ZERO
        }
    }
}

// `ManualTime` is built on the facade's atomics, which exist only inside a model under loom.
#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn goes_forward(time: &impl TimeSource) {
        let (mut coarse, mut exact) = (time.now(), time.now_exact());
        for _ in 0..10_000 {
            let next = (time.now(), time.now_exact());
            assert!(next.0 >= coarse && next.1 >= exact);
            (coarse, exact) = next;
        }
    }

    #[test]
    fn no_clock_goes_back() {
        goes_forward(&CoarseTime::new());
        goes_forward(&PreciseTime::new());
        goes_forward(&ManualTime::new());
    }

    #[test]
    fn the_cheap_reading_is_never_ahead_of_the_exact_one_that_follows() {
        let time = CoarseTime::new();
        for _ in 0..10_000 {
            let shown = time.now();
            assert!(shown <= time.now_exact());
        }
    }

    #[test]
    fn the_coarse_clock_moves_on() {
        let time = CoarseTime::new();
        let start = time.now();
        // Ends when the clock ticks; a clock that stands still hangs, and the harness says so.
        while time.now() == start {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn the_coarse_resolution_is_a_few_kernel_ticks_or_zero() {
        assert!(CoarseTime::new().resolution() <= Duration::from_millis(40));
        if cfg!(all(target_os = "linux", target_pointer_width = "64", not(miri))) {
            assert!(CoarseTime::new().resolution() >= Duration::from_micros(100));
        }
    }

    #[test]
    fn clones_of_a_precise_clock_agree() {
        let time = PreciseTime::new();
        let clone = time;
        let (before, between, after) = (time.now(), clone.now(), time.now());
        assert!(before <= between && between <= after);
    }

    #[test]
    fn manual_time_moves_only_when_told_and_clones_share_it() {
        let time = ManualTime::new();
        let clone = time.clone();
        assert_eq!(time.now(), Duration::ZERO);
        time.advance(SECOND);
        clone.advance(SECOND);
        assert_eq!((time.now(), clone.now()), (SECOND * 2, SECOND * 2));
        assert_eq!(time.now_exact(), time.now());
        assert_eq!(time.resolution(), Duration::ZERO);
    }

    #[test]
    fn manual_time_can_be_set_back() {
        let time = ManualTime::new();
        time.set(SECOND * 5);
        time.set(SECOND);
        assert_eq!(time.now(), SECOND);
    }

    #[test]
    fn manual_time_stops_at_the_end_of_its_range() {
        let time = ManualTime::new();
        let end = Duration::from_nanos(u64::MAX);
        time.set(Duration::MAX);
        assert_eq!(time.now(), end);
        time.advance(Duration::MAX);
        assert_eq!(time.now(), end);
    }

    #[test]
    fn concurrent_advances_add_up() {
        let time = ManualTime::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        time.advance(Duration::from_nanos(1));
                    }
                });
            }
        });
        assert_eq!(time.now(), Duration::from_nanos(4_000));
    }
}
