//! Durations as people write them: one number, one unit.
//!
//! Decimal arithmetic on integers, so that `"1.1s"` is 1,100,000,000 ns and not
//! the nearest `f64`.

use std::fmt;
use std::time::Duration;

const NANOS_PER_SEC: u128 = 1_000_000_000;

/// Unit and its length in nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS_PER_SEC),
    ("m", 60 * NANOS_PER_SEC),
    ("h", 3_600 * NANOS_PER_SEC),
    ("d", 86_400 * NANOS_PER_SEC),
];

/// Why a text is not a duration. Displayed as the compile error.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum DurationError {
    Empty,
    Negative,
    /// No digits where the number should be, or more than one dot.
    Number(String),
    NoUnit(String),
    Unit(String),
    /// `"1h30m"`: several numbers.
    Compound(String),
    /// Less than a nanosecond is left over.
    TooFine(String),
    /// More than `Duration::MAX`.
    TooLong(String),
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "empty duration: write a number and a unit, such as \"10s\""),
            Self::Negative => write!(f, "a duration cannot be negative: take the minus sign away"),
            Self::Number(text) => write!(
                f,
                "`{text}` does not start with a number: write a number and a unit, such as \"10s\" or \"1.5h\""
            ),
            Self::NoUnit(number) => write!(
                f,
                "`{number}` has no unit: write \"{number}s\" for seconds, \"{number}ms\" for milliseconds"
            ),
            Self::Unit(unit) => {
                write!(f, "unknown unit `{unit}`: use one of ns, us, ms, s, m, h, d")
            }
            Self::Compound(text) => {
                write!(
                    f,
                    "`{text}` has several numbers: write one number and one unit, \"90m\" for \"1h30m\""
                )
            }
            Self::TooFine(text) => {
                write!(f, "`{text}` is finer than a nanosecond: leave the last digits out")
            }
            Self::TooLong(text) => write!(
                f,
                "`{text}` is longer than a Duration can be: leave the setting out for \"never\""
            ),
        }
    }
}

/// Parses `"10s"`, `"250ms"`, `"1.5h"`. Spaces around the number and the unit
/// are ignored.
pub(crate) fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let unit_at =
        text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let (number, unit) = (number.trim(), unit.trim());

    let bad_number = || DurationError::Number(text.to_owned());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !whole.starts_with(|c: char| c.is_ascii_digit())
        || !fraction.starts_with(|c: char| c.is_ascii_digit())
        || fraction.contains('.')
    {
        return Err(bad_number());
    }
    if unit.is_empty() {
        return Err(DurationError::NoUnit(number.to_owned()));
    }
    if unit.contains(|c: char| c.is_ascii_digit()) {
        return Err(DurationError::Compound(text.to_owned()));
    }
    let &(_, unit_nanos) = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| DurationError::Unit(unit.to_owned()))?;

    let too_long = || DurationError::TooLong(text.to_owned());
    let whole: u128 = digits(whole).parse().map_err(|_| too_long())?;
    let mut nanos = whole.checked_mul(unit_nanos).ok_or_else(too_long)?;

    let fraction = digits(fraction);
    let fraction = fraction.trim_end_matches('0');
    // 20 decimal places of a day are far below a nanosecond; and 10^20 times a
    // day's nanoseconds fits.
    if fraction.len() > 20 {
        return Err(DurationError::TooFine(text.to_owned()));
    }
    let scale = 10u128.pow(fraction.len() as u32);
    let scaled = fraction.parse::<u128>().unwrap_or(0) * unit_nanos;
    if scaled % scale != 0 {
        return Err(DurationError::TooFine(text.to_owned()));
    }
    nanos = nanos.checked_add(scaled / scale).ok_or_else(too_long)?;

    let secs = u64::try_from(nanos / NANOS_PER_SEC).map_err(|_| too_long())?;
    Ok(Duration::new(secs, (nanos % NANOS_PER_SEC) as u32))
}

/// The digits of a number written as Rust writes it, `1_000`.
fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_and_one_unit() {
        for (text, nanos) in [
            ("10s", 10 * NANOS_PER_SEC),
            ("250ms", 250_000_000),
            ("1.5s", 1_500_000_000),
            ("2m", 120 * NANOS_PER_SEC),
            ("1h", 3_600 * NANOS_PER_SEC),
            ("1d", 86_400 * NANOS_PER_SEC),
            ("7us", 7_000),
            ("7µs", 7_000),
            ("7ns", 7),
            ("0s", 0),
            ("0.0s", 0),
            (" 1_000 ms ", NANOS_PER_SEC),
        ] {
            assert_eq!(parse(text).map(|d| d.as_nanos()), Ok(nanos), "{text:?}");
        }
    }

    #[test]
    fn decimals_are_exact() {
        // 1.1 as f64 times 1e9 is not an integer.
        assert_eq!(parse("1.1s"), Ok(Duration::from_nanos(1_100_000_000)));
        assert_eq!(parse("0.000000001s"), Ok(Duration::from_nanos(1)));
        assert_eq!(parse("1.50000000000000000000000000s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse("0.05m"), Ok(Duration::from_secs(3)));
        assert_eq!(parse("0.00000000005m"), Ok(Duration::from_nanos(3)));
    }

    #[test]
    fn the_longest_fits_and_one_more_does_not() {
        let longest = format!("{}.999999999s", u64::MAX);
        assert_eq!(parse(&longest), Ok(Duration::MAX));
        let longer = format!("{}s", u128::from(u64::MAX) + 1);
        assert_eq!(parse(&longer), Err(DurationError::TooLong(longer)));
        let absurd = format!("{}d", "9".repeat(60));
        assert_eq!(parse(&absurd), Err(DurationError::TooLong(absurd)));
        let overflow = format!("{}d", u128::MAX);
        assert_eq!(parse(&overflow), Err(DurationError::TooLong(overflow)));
    }

    #[test]
    fn finer_than_a_nanosecond_is_refused() {
        for text in ["0.5ns", "1.0000000001s", "0.000000000001m", "0.1234567891234567891234d"] {
            assert_eq!(parse(text), Err(DurationError::TooFine(text.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn each_mistake_has_its_name() {
        let owned = str::to_owned;
        for (text, error) in [
            ("", DurationError::Empty),
            ("  ", DurationError::Empty),
            ("-5s", DurationError::Negative),
            ("10", DurationError::NoUnit(owned("10"))),
            ("1.5", DurationError::NoUnit(owned("1.5"))),
            ("10sec", DurationError::Unit(owned("sec"))),
            ("10S", DurationError::Unit(owned("S"))),
            ("10s!", DurationError::Unit(owned("s!"))),
            ("1h30m", DurationError::Compound(owned("1h30m"))),
            ("soon", DurationError::Number(owned("soon"))),
            (".5s", DurationError::Number(owned(".5s"))),
            ("1.s", DurationError::Number(owned("1.s"))),
            ("1.2.3s", DurationError::Number(owned("1.2.3s"))),
            ("_1s", DurationError::Number(owned("_1s"))),
            ("+1s", DurationError::Number(owned("+1s"))),
            ("1e3s", DurationError::Compound(owned("1e3s"))),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }
}
