//! The wheel's arithmetic: which bucket a deadline goes to, and which buckets are due.
//!
//! Two levels. A bucket of the first is one tick (a millisecond), one of the second as many ticks as the first
//! level reaches ahead, [`REACH`]. What lies further ahead than the second level reaches is filed in its last
//! bucket: nothing is filed beyond a **horizon**, 65 seconds. A sweep at a tick visits the buckets of both levels
//! that have begun by then, the second level first. What it finds there and is not due yet it files anew, from
//! that tick on, so a life of a day is visited once a horizon, and the last time in the bucket of its very tick.
//!
//! **Lateness.** What was filed for its deadline is found by the first sweep at that tick or later. What
//! was filed for a later one (a slot that was reused while it was filed) is found by the first sweep one
//! [`HORIZON`] after it was filed.
//!
//! Numbers of buckets go on for ever; a bucket and its successor a turn later share a list. A turn is twice the
//! reach, and a sweep goes on by stages of one reach: then what a stage files anew is never on a list that this
//! stage has yet to visit. A sweep that comes after more than a turn visits each list once, in two stages.
//! Finding something early does no harm.

use super::expiry::DEADLINE_MAX;
use std::ops::Range;

/// log2 of [`REACH`].
const BITS: u32 = if cfg!(alru_loom) { 1 } else { 8 };

/// How many buckets ahead a level is filed, the current one included.
const REACH: u64 = 1 << BITS;

/// Lists of a level: a turn.
pub const BUCKETS: usize = 2 * REACH as usize;

/// Levels of the wheel.
pub const LEVELS: usize = 2;

/// No tick that is further ahead than this many ticks has a bucket of its own.
#[cfg(test)]
const HORIZON: u64 = 1 << (BITS * LEVELS as u32);

/// A bucket of the wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub level: usize,
    pub number: u64,
}

/// Is an entry with this deadline filed at all? Not without one, nor for one that no clock reaches.
#[inline]
pub fn is_filed(deadline: u64) -> bool {
    !matches!(deadline, 0 | DEADLINE_MAX)
}

/// Has a deadline passed at this tick?
#[inline]
pub fn is_due(deadline: u64, tick: u64) -> bool {
    is_filed(deadline) && deadline <= tick
}

/// The bucket for a deadline, as seen from `tick`: due at once if the deadline has passed, else not before
/// the next tick, and never after the deadline.
#[inline]
pub fn place(deadline: u64, tick: u64) -> Place {
    if deadline.saturating_sub(tick) < REACH {
        return Place { level: 0, number: deadline.max(tick) };
    }
    let last = number(1, tick) + REACH - 1;
    Place { level: 1, number: number(1, deadline).min(last) }
}

/// As [`place`], for what a sweep at `tick` found not to be due, in the stage of `level` that ends before the
/// bucket `end`.
#[inline]
pub fn place_anew(deadline: u64, tick: u64, level: usize, end: u64) -> Place {
    let mut place = place(deadline.max(tick + 1), tick);
    if place.level == level {
        // Nearer, if the stage lags behind: the next one finds it again.
        place.number = place.number.min(end - 1 + REACH);
    }
    place
}

/// The bucket of a level that a tick lies in.
#[inline]
pub fn number(level: usize, tick: u64) -> u64 {
    tick >> (BITS * level as u32)
}

/// The tick at which a bucket is due.
#[inline]
pub fn begins(Place { level, number }: Place) -> u64 {
    number << (BITS * level as u32)
}

/// Where the list of a bucket is kept, within its level.
#[inline]
pub fn cell(number: u64) -> usize {
    number as usize % BUCKETS
}

/// The buckets of a level that a sweep at `tick` has to visit next, when all before `next` have been swept: one
/// stage. Empty when it is up to date, and after a clock that went back.
#[inline]
pub fn due(level: usize, next: u64, tick: u64) -> Range<u64> {
    let end = number(level, tick) + 1;
    let start = next.max(end.saturating_sub(BUCKETS as u64));
    start..end.min(start + REACH)
}

/// The buckets of a level that may hold what is not due at `tick`.
#[inline]
pub fn ahead(level: usize, tick: u64) -> Range<u64> {
    let first = number(level, tick) + 1;
    first..first + REACH
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;
    use std::collections::{BTreeSet, HashMap};

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        /// Log-uniform below 2^`bits`: short and long ones alike.
        fn span(&mut self, bits: u64) -> u64 {
            self.next() >> (64 - bits + self.next() % bits)
        }
    }

    /// A wheel of one thread, in terms of the arithmetic alone.
    struct Model {
        buckets: HashMap<(usize, usize), Vec<u32>>,
        next: [u64; LEVELS],
        visits: u64,
    }

    impl Model {
        fn new() -> Self {
            Self { buckets: HashMap::new(), next: [0; LEVELS], visits: 0 }
        }

        fn file(&mut self, item: u32, deadline: u64, tick: u64) {
            self.push(item, place(deadline, tick));
        }

        fn push(&mut self, item: u32, place: Place) {
            let next = &mut self.next[place.level];
            *next = place.number.min(*next);
            self.buckets.entry((place.level, cell(place.number))).or_default().push(item);
        }

        /// What is due at `tick` by `deadlines`; the rest is filed anew.
        fn sweep(&mut self, tick: u64, deadlines: &HashMap<u32, u64>) -> Vec<u32> {
            let mut swept = Vec::new();
            for level in (0..LEVELS).rev() {
                loop {
                    let stage = due(level, self.next[level], tick);
                    if stage.is_empty() {
                        break;
                    }
                    // One at a time, and what is filed anew meanwhile would be seen.
                    let list = stage
                        .clone()
                        .map(|n| (level, cell(n)))
                        .find(|l| self.buckets.contains_key(l));
                    let Some(list) = list else {
                        self.next[level] = stage.end;
                        continue;
                    };
                    let found = self.buckets.get_mut(&list).unwrap();
                    let item = found.pop().unwrap();
                    if found.is_empty() {
                        self.buckets.remove(&list);
                    }
                    self.visits += 1;
                    if is_due(deadlines[&item], tick) {
                        swept.push(item);
                    } else {
                        self.push(item, place_anew(deadlines[&item], tick, level, stage.end));
                    }
                }
            }
            swept.sort_unstable();
            swept
        }

        fn next_due(&self, tick: u64) -> Option<u64> {
            let begins = |level| {
                ahead(level, tick)
                    .find(|n| self.buckets.contains_key(&(level, cell(*n))))
                    .map(|number| super::begins(Place { level, number }))
            };
            (0..LEVELS).filter_map(begins).min()
        }
    }

    #[test]
    fn a_sweep_finds_what_a_sorted_list_says_and_nothing_else() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let mut wheel = Model::new();
            let mut list = BTreeSet::new();
            let mut deadlines = HashMap::new();
            let mut tick = 1 + random.span(30);
            for item in 0..400 {
                let deadline = (tick + random.span(25)).saturating_sub(random.next() % 2);
                deadlines.insert(item, deadline);
                list.insert((deadline, item));
                wheel.file(item, deadline, tick);
                if random.next() % 3 == 0 {
                    tick += random.span(20);
                    let later = list.split_off(&(tick + 1, 0));
                    let mut due: Vec<u32> = list.iter().map(|(_, item)| *item).collect();
                    due.sort_unstable();
                    assert_eq!(wheel.sweep(tick, &deadlines), due, "seed {seed}, tick {tick}");
                    list = later;
                }
            }
        }
    }

    #[test]
    fn what_was_filed_for_a_later_tick_is_found_within_a_horizon() {
        for seed in 0..50 {
            let mut random = Random(seed);
            let mut wheel = Model::new();
            let filed = 1 + random.span(30);
            let old = filed + random.span(40);
            wheel.file(7, old, filed);
            // Reused at once, for a shorter life.
            let deadline = filed + random.span(16).min(old - filed);
            let deadlines = HashMap::from([(7, deadline)]);
            let latest = deadline.max(filed + HORIZON);
            let mut tick = filed;
            loop {
                tick += 1 + random.span(10);
                if wheel.sweep(tick, &deadlines) == [7] {
                    break;
                }
                assert!(tick < latest, "seed {seed}: filed {filed}, deadline {deadline}, {tick}");
            }
        }
    }

    #[test]
    fn a_long_life_is_visited_once_a_horizon_and_twice_at_its_end() {
        let (mut wheel, deadline) = (Model::new(), 86_400_000);
        let deadlines = HashMap::from([(1, deadline)]);
        wheel.file(1, deadline, 1);
        let mut tick = 1;
        while wheel.sweep(tick, &deadlines).is_empty() {
            // As a sweeper that sleeps until there is something to look at.
            tick = wheel.next_due(tick).expect("it is filed");
        }
        assert_eq!(tick, deadline);
        assert!(wheel.visits <= deadline / (HORIZON - REACH) + 3, "{}", wheel.visits);
    }

    #[test]
    fn no_place_is_after_the_deadline_and_none_that_is_not_due_is_due() {
        let mut random = Random(9);
        for _ in 0..100_000 {
            let tick = 1 + random.span(40).min(DEADLINE_MAX - 2);
            let deadline = (1 + random.span(40)).min(DEADLINE_MAX - 1);
            let place = place(deadline, tick);
            let begins = begins(place);
            assert!(begins <= deadline.max(tick));
            assert!(begins - begins.min(tick) < HORIZON);
            let is_due = place.number <= number(place.level, tick);
            assert_eq!(is_due, super::is_due(deadline, tick));
        }
    }

    #[test]
    fn a_sweep_visits_each_list_once_however_late_it_comes() {
        for level in 0..LEVELS {
            for (mut next, tick) in
                [(0, 0), (5, 4), (0, 1 << 39), (1 << 39, 3), (77, 200), (0, 65_537)]
            {
                let mut visited = BTreeSet::new();
                loop {
                    let stage = due(level, next, tick);
                    if stage.is_empty() {
                        break;
                    }
                    assert!(stage.clone().all(|number| visited.insert(cell(number))));
                    // What may be filed anew has other lists than the stage.
                    for number in stage.end..stage.end + REACH {
                        assert!(stage.clone().all(|n| cell(n) != cell(number)));
                    }
                    next = stage.end;
                }
                let turns = number(level, tick) >= BUCKETS as u64 && visited.len() == BUCKETS;
                assert!(turns || next > number(level, tick));
            }
        }
    }

    #[test]
    fn what_has_no_end_is_not_filed() {
        assert!(
            !is_filed(0) && !is_filed(DEADLINE_MAX) && is_filed(1) && is_filed(DEADLINE_MAX - 1)
        );
        assert!(!is_due(0, 9) && !is_due(DEADLINE_MAX, u64::MAX) && is_due(9, 9) && !is_due(9, 8));
    }
}
