//! Expiry: deadlines as small integers.
//!
//! A slot keeps its deadline in 40 bits: whole milliseconds since the cache's origin, rounded
//! down, plus one. That reaches 34.8 years past the origin. Two values mean something else:
//! `0` is "no deadline", [`DEADLINE_MAX`] "a deadline too far for the field", which the clock
//! never reaches.
//!
//! **Never late.** A clock shows `now` with the true time somewhere in `[now, now + resolution]`.
//! An entry counts as expired as soon as the end of that interval is in the millisecond of its
//! deadline or past it. So it is never served at or after its deadline, and expires early by at
//! most `resolution` + 1 ms.
//!
//! Pure arithmetic, total: no input panics, whatever the clock does.

use std::time::Duration;

/// Width of a deadline.
pub(crate) const DEADLINE_BITS: u32 = 40;

/// The deadline that no clock reaches.
pub(crate) const DEADLINE_MAX: u64 = (1 << DEADLINE_BITS) - 1;

/// The last instant that a deadline can name, and the one at which the clock stops.
const LAST_TICK: u64 = DEADLINE_MAX - 1;

/// A tick that every reading of the clock has reached.
const FIRST_TICK: u64 = 1;

/// Milliseconds from `origin` to `at`, rounded down, plus one; [`FIRST_TICK`] before `origin`.
/// Not saturated: at most about `2^41`.
#[inline]
fn unbounded_tick(at: Duration, origin: Duration) -> u64 {
    /// Seconds past all deadlines, few enough to be counted in milliseconds.
    const FAR: u64 = 1 << (DEADLINE_BITS - 9);
    const _: () = assert!(FAR * 1_000 > DEADLINE_MAX);

    let since = at.saturating_sub(origin);
    since.as_secs().min(FAR) * 1_000 + u64::from(since.subsec_millis()) + FIRST_TICK
}

/// `now` as a tick: whole milliseconds since `origin` plus one, so never 0 and never "no
/// deadline". A clock that jumped back before `origin` gives 1; one past the field stops at
/// `DEADLINE_MAX - 1`.
#[inline]
pub(crate) fn tick(now: Duration, origin: Duration) -> u64 {
    unbounded_tick(now, origin).min(LAST_TICK)
}

/// The deadline of an entry that lives for `life` from `now_exact`.
///
/// A zero life is over at every reading of the clock, also one that lags behind `now_exact` by
/// more than its resolution. A life that ends past the field gives [`DEADLINE_MAX`].
#[inline]
pub(crate) fn deadline(now_exact: Duration, origin: Duration, life: Duration) -> u64 {
    if life.is_zero() {
        return FIRST_TICK;
    }
    match now_exact.checked_add(life) {
        Some(end) => match unbounded_tick(end, origin) {
            tick @ FIRST_TICK..=LAST_TICK => tick,
            _ => DEADLINE_MAX,
        },
        None => DEADLINE_MAX,
    }
}

/// Whether `deadline` has passed, or may have, on a clock that shows `now` and is up to
/// `resolution` behind.
#[inline]
pub(crate) fn is_expired(
    deadline: u64,
    now: Duration,
    origin: Duration,
    resolution: Duration,
) -> bool {
    // One comparison for both special values: 0 wraps round to the largest.
    if deadline.wrapping_sub(FIRST_TICK) >= LAST_TICK {
        return false;
    }
    tick(now.saturating_add(resolution), origin) >= deadline
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const NS: Duration = Duration::from_nanos(1);
    const EXTREMES: [Duration; 12] = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_nanos(999_999),
        Duration::from_millis(1),
        Duration::from_millis(999),
        Duration::from_secs(1),
        Duration::from_millis(DEADLINE_MAX - 2),
        Duration::from_millis(DEADLINE_MAX - 1),
        Duration::from_millis(DEADLINE_MAX),
        Duration::from_secs(1 << 31),
        Duration::new(u64::MAX, 0),
        Duration::MAX,
    ];

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        /// Log-uniform below 2^`bits` nanoseconds: short and long ones alike.
        fn span(&mut self, bits: u64) -> Duration {
            Duration::from_nanos(self.next() >> (64 - bits + self.next() % bits))
        }
    }

    #[test]
    fn ticks_are_whole_milliseconds_counted_from_one() {
        let origin = Duration::from_micros(12_345_678);
        assert_eq!(tick(origin, origin), 1);
        assert_eq!(tick(origin + MS - NS, origin), 1);
        assert_eq!(tick(origin + MS, origin), 2);
        assert_eq!(tick(origin + Duration::from_secs(10), origin), 10_001);
    }

    #[test]
    fn a_clock_before_the_origin_shows_the_first_tick() {
        assert_eq!(tick(Duration::ZERO, Duration::from_secs(1)), 1);
        assert_eq!(tick(Duration::ZERO, Duration::MAX), 1);
    }

    #[test]
    fn a_clock_past_the_field_stops_below_the_special_value() {
        let last = Duration::from_millis(DEADLINE_MAX - 2);
        assert_eq!(tick(last - MS, Duration::ZERO), DEADLINE_MAX - 2);
        for now in [last, last + MS, last + MS * 2, Duration::MAX] {
            assert_eq!(tick(now, Duration::ZERO), DEADLINE_MAX - 1);
        }
    }

    #[test]
    fn the_field_is_never_left_and_never_zero() {
        for now in EXTREMES {
            for origin in EXTREMES {
                assert!((1..DEADLINE_MAX).contains(&tick(now, origin)));
                for life in EXTREMES {
                    assert!((1..=DEADLINE_MAX).contains(&deadline(now, origin, life)));
                }
            }
        }
    }

    #[test]
    fn no_deadline_and_a_deadline_past_the_field_never_expire() {
        for now in EXTREMES {
            for origin in EXTREMES {
                for resolution in EXTREMES {
                    assert!(!is_expired(0, now, origin, resolution));
                    assert!(!is_expired(DEADLINE_MAX, now, origin, resolution));
                }
            }
        }
    }

    #[test]
    fn the_longest_life_never_expires() {
        for now in EXTREMES {
            for origin in EXTREMES {
                // Before the origin by almost all of a `Duration` the end may be in reach.
                if now >= origin {
                    assert_eq!(deadline(now, origin, Duration::MAX), DEADLINE_MAX);
                }
            }
        }
    }

    #[test]
    fn a_zero_life_has_expired_at_once_even_if_the_clock_jumps_back() {
        for written in EXTREMES {
            for origin in EXTREMES {
                let deadline = deadline(written, origin, Duration::ZERO);
                for read in EXTREMES {
                    assert!(is_expired(deadline, read, origin, Duration::ZERO));
                }
            }
        }
    }

    #[test]
    fn the_last_deadline_of_the_field_still_expires() {
        let life = Duration::from_millis(DEADLINE_MAX - 2);
        let deadline = deadline(Duration::ZERO, Duration::ZERO, life);
        assert_eq!(deadline, DEADLINE_MAX - 1);
        assert!(!is_expired(deadline, life - MS, Duration::ZERO, Duration::ZERO));
        assert!(is_expired(deadline, life, Duration::ZERO, Duration::ZERO));
        assert!(is_expired(deadline, Duration::MAX, Duration::ZERO, Duration::ZERO));
    }

    /// The two sides of the rule, at random instants around random deadlines, on a clock that
    /// lags behind the true time by anything up to its resolution.
    #[test]
    fn never_late_and_early_by_at_most_the_resolution_and_one_millisecond() {
        let mut random = Random(1);
        let (mut served, mut expired) = (0, 0);
        for _ in 0..200_000 {
            let origin = random.span(58);
            let written = origin + random.span(58);
            let life = random.span(58) + NS;
            let resolution = random.span(25);
            let end = written + life;
            let deadline = deadline(written, origin, life);

            // Near the end, up to 67 ms either side of it.
            let near = Duration::from_nanos(random.next() >> 38);
            let truth = if random.next() % 2 == 0 {
                end + near
            } else {
                end.saturating_sub(near).max(written)
            };
            let lag = Duration::from_nanos(random.next() % (resolution.as_nanos() as u64 + 1));
            let shown = truth.saturating_sub(lag);

            if is_expired(deadline, shown, origin, resolution) {
                expired += 1;
                assert!(truth + resolution + MS > end, "early by {:?}", end - truth);
            } else {
                served += 1;
                assert!(truth < end, "late by {:?}", truth - end);
            }
        }
        assert!(served > 20_000 && expired > 20_000, "{served} {expired}");
    }

    #[test]
    fn an_exact_clock_in_whole_milliseconds_expires_on_the_dot() {
        let mut random = Random(2);
        for _ in 0..10_000 {
            let origin = MS * (random.next() >> 40) as u32;
            let written = origin + MS * (random.next() >> 40) as u32;
            let life = MS * (1 + (random.next() >> 40) as u32);
            let deadline = deadline(written, origin, life);
            let before = written + life - NS;
            assert!(!is_expired(deadline, before, origin, Duration::ZERO));
            assert!(is_expired(deadline, written + life, origin, Duration::ZERO));
        }
    }

    #[test]
    fn once_expired_stays_expired_while_the_clock_goes_forward() {
        let mut random = Random(3);
        for _ in 0..10_000 {
            let (origin, resolution) = (random.span(50), random.span(25));
            let mut now = origin + random.span(50);
            let deadline = deadline(now, origin, random.span(50));
            let mut expired = false;
            for _ in 0..20 {
                let next = is_expired(deadline, now, origin, resolution);
                assert!(next || !expired);
                expired = next;
                now += random.span(48);
            }
        }
    }
}
