//! Jitter: how much longer than its TTL an entry lives.
//!
//! Entries that were written together would expire together and be loaded again together; a draw
//! from `[0, jitter]` for each of them spreads the reloads. Pure arithmetic: the caller brings the
//! random bits.

use std::time::Duration;

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// A duration from `[0, jitter]`, uniform in whole nanoseconds if `random` is uniform.
///
/// Multiply-shift: `random / 2^64` is a fraction of the `jitter + 1` possible answers. Against an
/// exactly uniform draw an answer is off by less than `2^-64` of probability, which no user can
/// see; in exchange there is no division and no loop.
#[inline]
pub(crate) fn draw(jitter: Duration, random: u64) -> Duration {
    // At most 2^64 seconds in nanoseconds, about 2^94: neither the `+ 1` nor the sum below can
    // overflow.
    let answers = jitter.as_nanos() + 1;
    let random = u128::from(random);
    // `answers` has up to 94 bits, so the product is taken in halves:
    // floor(r * (hi * 2^64 + lo) / 2^64) = r * hi + floor(r * lo / 2^64).
    let hi = answers >> 64;
    let lo = answers & u128::from(u64::MAX);
    from_nanos(random * hi + ((random * lo) >> 64))
}

#[inline]
fn from_nanos(nanos: u128) -> Duration {
    match u64::try_from(nanos) {
        Ok(nanos) => Duration::from_nanos(nanos),
        // Over 584 years. `nanos` is below that of some `Duration`, so the seconds fit.
        Err(_) => Duration::new(
            u64::try_from(nanos / NANOS_PER_SEC).unwrap_or(u64::MAX),
            (nanos % NANOS_PER_SEC) as u32,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: a full-period generator of one word.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }
    }

    const EXTREMES: [Duration; 10] = [
        Duration::ZERO,
        Duration::from_nanos(1),
        Duration::from_nanos(2),
        Duration::from_millis(1),
        Duration::from_secs(2),
        Duration::from_nanos(u64::MAX - 1),
        Duration::from_nanos(u64::MAX),
        Duration::new(u64::MAX / 1_000_000_000, 999_999_999),
        Duration::new(u64::MAX, 0),
        Duration::MAX,
    ];

    #[test]
    fn no_jitter_is_always_zero() {
        for random in [0, 1, u64::MAX / 2, u64::MAX] {
            assert_eq!(draw(Duration::ZERO, random), Duration::ZERO);
        }
    }

    #[test]
    fn the_smallest_random_word_gives_zero_at_any_jitter() {
        for jitter in EXTREMES {
            assert_eq!(draw(jitter, 0), Duration::ZERO, "{jitter:?}");
        }
    }

    #[test]
    fn the_largest_random_word_gives_the_whole_jitter_while_every_nanosecond_has_a_word() {
        for jitter in EXTREMES {
            if jitter <= Duration::from_nanos(u64::MAX) {
                assert_eq!(draw(jitter, u64::MAX), jitter);
            } else {
                // More nanoseconds than words: the last word falls short of the end by one step
                // of at most 2^30 ns.
                let drawn = draw(jitter, u64::MAX);
                assert!(drawn <= jitter);
                assert!(jitter - drawn <= Duration::from_nanos(1 << 30), "{drawn:?}");
            }
        }
    }

    #[test]
    fn a_draw_never_exceeds_the_jitter_and_grows_with_the_random_word() {
        let mut random = Random(1);
        for jitter in EXTREMES {
            let mut words: Vec<u64> = (0..1_000).map(|_| random.next()).collect();
            words.sort_unstable();
            let mut last = Duration::ZERO;
            for word in words {
                let drawn = draw(jitter, word);
                assert!(drawn <= jitter && drawn >= last, "{jitter:?} {word:#x}");
                last = drawn;
            }
        }
    }

    #[test]
    fn the_halves_agree_with_the_plain_product_where_that_fits() {
        let mut random = Random(2);
        for _ in 0..10_000 {
            let jitter = Duration::from_nanos(random.next() >> (random.next() % 64));
            let word = random.next();
            let plain = (u128::from(word) * (jitter.as_nanos() + 1)) >> 64;
            assert_eq!(draw(jitter, word).as_nanos(), plain);
        }
    }

    /// Chi-square over 100 cells: 99 degrees of freedom, 148.2 is the 0.1 % point. The seeds are
    /// fixed, so the answer is too.
    fn chi_square(jitter: Duration, cell: impl Fn(Duration) -> usize, seed: u64) -> f64 {
        const DRAWS: u32 = 100_000;
        let mut random = Random(seed);
        let mut counts = [0_u32; 100];
        for _ in 0..DRAWS {
            counts[cell(draw(jitter, random.next()))] += 1;
        }
        let expected = f64::from(DRAWS) / 100.0;
        counts.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn draws_are_uniform_in_nanoseconds() {
        // 100 answers, 0 to 99 ns, each a cell of its own: both ends count.
        let chi = chi_square(Duration::from_nanos(99), |d| d.as_nanos() as usize, 3);
        assert!(chi < 148.2, "{chi}");
    }

    #[test]
    fn draws_are_uniform_over_seconds() {
        let jitter = Duration::from_secs(2);
        let chi =
            chi_square(jitter, |d| (d.as_nanos() * 100 / (jitter.as_nanos() + 1)) as usize, 4);
        assert!(chi < 148.2, "{chi}");
    }

    #[test]
    fn draws_are_uniform_over_the_longest_jitter() {
        let chi = chi_square(
            Duration::MAX,
            |d| (d.as_nanos() * 100 / (Duration::MAX.as_nanos() + 1)) as usize,
            5,
        );
        assert!(chi < 148.2, "{chi}");
    }
}
