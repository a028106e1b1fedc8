//! What the caches are asked to do: operations, populations, streams of keys.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{Distribution as _, Zipf};

/// Operations in a block, the unit that the measuring loop hands to a cache.
pub const BLOCK: usize = 64;

/// A stream of keys, in blocks.
pub type Stream = Box<[[u64; BLOCK]]>;

/// One kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Look a key up.
    Get,
    /// Look a key up and insert it if it is not there.
    ReadThrough,
    /// Insert a key that was not used before.
    Insert,
    /// Nine look-ups to one insert.
    Mix,
    /// `get_with` with a future that is ready at once, the key being there.
    LoadHit,
    /// The same with a key that was not used before.
    LoadMiss,
    /// So many calls of one load of a key that was not used before: all begin and are polled, the load ends, all
    /// are polled again. An operation is one call.
    Waiters(usize),
}

impl Op {
    /// Whether the `i`-th operation of a block of [`Op::Mix`] is an insert.
    #[inline]
    pub fn mix_inserts(i: usize) -> bool {
        i % 10 == 9
    }

    /// Look-ups in a block.
    pub fn look_ups(self) -> u64 {
        match self {
            Op::Insert | Op::LoadMiss | Op::Waiters(_) => 0,
            Op::Mix => (0..BLOCK).filter(|&i| !Op::mix_inserts(i)).count() as u64,
            _ => BLOCK as u64,
        }
    }

    /// Whether each operation wants a key that was not used before.
    pub fn wants_fresh_keys(self) -> bool {
        matches!(self, Op::Insert | Op::LoadMiss | Op::Waiters(_))
    }

    /// Operations for each key of a block.
    pub fn per_key(self) -> usize {
        if let Op::Waiters(n) = self { n } else { 1 }
    }

    /// Whether a cache that takes part in one of them takes part in the other.
    pub fn is_like(self, other: Op) -> bool {
        std::mem::discriminant(&self) == std::mem::discriminant(&other)
    }
}

/// Where the keys of a stream come from.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// All equally often, from the first `n`.
    Uniform(u64),
    /// By Zipf's law with this exponent, from the first `n`.
    Zipf(u64, f64),
    /// Each once; the measuring loop salts them when the stream is used up.
    Distinct,
}

/// A workload: an operation, the entries it starts with and its keys.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Its name on the command line.
    pub name: String,
    /// What it does, for the report.
    pub about: String,
    /// The operation.
    pub op: Op,
    /// Capacity of every cache, in entries.
    pub capacity: usize,
    /// Entries added before the start.
    pub population: usize,
    /// Threads, where the workload is about a number of them.
    pub threads: Option<usize>,
    /// Operations that bring a cache to its steady state, all threads together.
    pub warm_up: usize,
    keys: Keys,
}

/// The names that [`Workload::parse`] knows, as help text.
pub const NAMES: &str = "hits-N (N entries: 1k, 100k, 4m ...), zipf-hits-N, hot, read-through, \
     evict, crowd, mix, load-hit, load-miss, waiters-N (N callers of one load: 1, 10, 100 ...)";

/// The workloads of a run that names none.
pub const DEFAULT: &str = "hits-1k,hits-100k,hits-1m,hot,read-through,evict,crowd,mix,load-hit,load-miss,waiters-1,\
     waiters-10,waiters-100";

impl Workload {
    /// The workload called `name`; `capacity` is that of the workloads that
    /// evict, `crowd` the number of threads of `crowd`.
    ///
    /// # Errors
    /// A message for the user when there is none of that name.
    pub fn parse(name: &str, capacity: usize, crowd: usize) -> Result<Self, String> {
        let universe = 10 * capacity as u64;
        let hits = |about: String, op, n: usize, keys| Self {
            name: name.to_owned(),
            about: format!("{about}; capacity {} for all", 2 * n),
            op,
            capacity: 2 * n,
            population: n,
            threads: None,
            warm_up: 0,
            keys,
        };
        let evicting = |about: String, op, threads, warm_up, keys| Self {
            name: name.to_owned(),
            about,
            op,
            capacity,
            population: capacity,
            threads,
            warm_up,
            keys,
        };
        let insert = |threads: Option<usize>| {
            let many = threads.map_or(String::new(), |n| format!(" from {n} threads"));
            let about =
                format!("Insert keys never seen before{many} into a full cache of {capacity}");
            evicting(about, Op::Insert, threads, capacity, Keys::Distinct)
        };

        let workload = match name {
            "hot" => hits(
                "Get one hot key among 1,000 entries".to_owned(),
                Op::Get,
                1_000,
                Keys::Uniform(1),
            ),
            "read-through" => evicting(
                format!(
                    "Get, and insert on a miss: Zipf 0.9 over {universe} keys, capacity {capacity}"
                ),
                Op::ReadThrough,
                None,
                universe as usize,
                Keys::Zipf(universe, 0.9),
            ),
            "evict" => insert(None),
            "crowd" => insert(Some(crowd)),
            "mix" => hits(
                format!("Nine gets to one insert of a resident key, uniform over {capacity}"),
                Op::Mix,
                capacity,
                Keys::Uniform(capacity as u64),
            ),
            "load-hit" => hits(
                "`get_with` of resident keys, uniform over 1,000".to_owned(),
                Op::LoadHit,
                1_000,
                Keys::Uniform(1_000),
            ),
            "load-miss" => evicting(
                format!(
                    "`get_with` of keys never seen before, a future ready at once, \
                     into a full cache of {capacity}"
                ),
                Op::LoadMiss,
                None,
                capacity,
                Keys::Distinct,
            ),
            _ if name.starts_with("waiters-") => {
                let number = name.strip_prefix("waiters-").and_then(parse_count);
                let callers = number
                    .filter(|n| *n <= 10_000)
                    .ok_or_else(|| format!("`{name}`: want waiters-N with N from 1 to 10000"))?;
                let plural = if callers == 1 { "" } else { "s" };
                let about = format!(
                    "One load shared by {callers} caller{plural}, of a key never seen before, into a \
                     full cache of {capacity}: all calls begin and are polled by hand, the load ends, \
                     all are polled again; per call"
                );
                // One thread: with two, a peer's caller may wait for what the other thread is doing inside the
                // cache, and polling by hand can't tell that from a call that hangs.
                evicting(about, Op::Waiters(callers), Some(1), 0, Keys::Distinct)
            }
            _ => {
                let unknown = || format!("no workload `{name}`; there are: {NAMES}");
                let (number, zipf) = match name.strip_prefix("zipf-hits-") {
                    Some(number) => (number, true),
                    None => (name.strip_prefix("hits-").ok_or_else(unknown)?, false),
                };
                let n = parse_count(number).ok_or_else(unknown)?;
                let (law, keys) = if zipf {
                    ("Zipf 0.99", Keys::Zipf(n as u64, 0.99))
                } else {
                    ("uniform", Keys::Uniform(n as u64))
                };
                hits(format!("Get resident keys, {law} over {n} entries"), Op::Get, n, keys)
            }
        };
        Ok(workload)
    }

    /// Whether a fresh cache for every round costs little: it then takes part
    /// with as many memory layouts as there are rounds.
    pub fn fresh_each_round(&self) -> bool {
        self.warm_up == 0 && self.population <= 200_000
    }

    /// Whether rounds are a number of operations, so that every cache sees the
    /// same keys and hit ratios can be compared, and not a length of time.
    pub fn counts_operations(&self) -> bool {
        self.op == Op::ReadThrough
    }

    /// The keys of the entries that are there at the start.
    pub fn residents(&self) -> Vec<u64> {
        (0..self.population as u64).map(key).collect()
    }

    /// The stream of thread `thread`: about `wanted` keys where the workload
    /// counts its operations, else enough that repeating them goes unnoticed.
    pub fn stream(&self, thread: usize, wanted: usize) -> Stream {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(0x5eed_0000 + thread as u64);
        match self.keys {
            Keys::Uniform(n) => {
                let len = (2 * n as usize).clamp(1 << 16, 1 << 23);
                blocks((0..len).map(|_| key(rng.random_range(0..n))))
            }
            Keys::Zipf(n, exponent) => {
                let len = wanted.clamp(1 << 16, 1 << 23);
                // The parameters are ours and valid: n > 0, exponent >= 0.
                let zipf = Zipf::new(n as f64, exponent).expect("valid Zipf parameters");
                blocks((0..len).map(|_| key(zipf.sample(&mut rng) as u64 - 1)))
            }
            Keys::Distinct => {
                // Past all populations, and each thread apart from the others.
                let first = (thread as u64 + 1) << 40;
                blocks((first..first + (1 << 20)).map(key))
            }
        }
    }
}

/// The key of the entry with this number: a bijection, so that keys are
/// distinct without being sequential.
#[inline]
pub fn key(number: u64) -> u64 {
    // The finalizer of SplitMix64; number + odd constant keeps 0 from being 0.
    let x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The value that belongs to a key.
#[inline]
pub fn value_of(key: u64) -> u64 {
    !key
}

/// Puts keys in blocks; those of an unfinished last block are dropped.
pub fn blocks(keys: impl Iterator<Item = u64>) -> Stream {
    let mut keys = keys;
    let mut blocks = Vec::with_capacity(keys.size_hint().0 / BLOCK);
    loop {
        let mut block = [0; BLOCK];
        for slot in &mut block {
            match keys.next() {
                Some(key) => *slot = key,
                None => return blocks.into_boxed_slice(),
            }
        }
        blocks.push(block);
    }
}

/// A count with an optional `k` or `m`.
fn parse_count(text: &str) -> Option<usize> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1_000),
        None => match text.strip_suffix(['m', 'M']) {
            Some(digits) => (digits, 1_000_000),
            None => (text, 1),
        },
    };
    let count = digits.parse::<usize>().ok()?.checked_mul(unit)?;
    (1..=1 << 30).contains(&count).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashMap, HashSet};

    #[test]
    fn default_workloads_exist_and_their_streams_suit_them() {
        for name in DEFAULT.split(',') {
            let workload = Workload::parse(name, 1_000, 4).unwrap();
            let stream = workload.stream(0, 1 << 16);
            assert!(stream.len() >= (1 << 16) / BLOCK, "{name}");
            let residents: HashSet<u64> = workload.residents().into_iter().collect();
            assert_eq!(residents.len(), workload.population, "{name}");
            let inside = stream.as_flattened().iter().filter(|k| residents.contains(k)).count();
            if workload.op.wants_fresh_keys() {
                assert_eq!(inside, 0, "{name}");
            } else if !workload.counts_operations() {
                assert_eq!(inside, stream.len() * BLOCK, "{name}");
            }
        }
    }

    #[test]
    fn threads_insert_distinct_keys() {
        let workload = Workload::parse("evict", 1_000, 4).unwrap();
        let mut seen = HashSet::new();
        for thread in 0..2 {
            for &key in workload.stream(thread, 0).as_flattened() {
                assert!(seen.insert(key));
            }
        }
    }

    /// Frequencies of the first ranks against the law itself.
    #[test]
    fn zipf_stream_follows_the_law() {
        let workload = Workload::parse("read-through", 1_000, 4).unwrap();
        let stream = workload.stream(0, 1 << 20);
        let mut counts = HashMap::new();
        for &key in stream.as_flattened() {
            *counts.entry(key).or_insert(0_u64) += 1;
        }
        let total = (stream.len() * BLOCK) as f64;
        let norm: f64 = (1..=10_000).map(|rank| f64::from(rank).powf(-0.9)).sum();
        for rank in [1_u32, 2, 10, 100] {
            let expected = total * f64::from(rank).powf(-0.9) / norm;
            let found = counts[&key(u64::from(rank) - 1)] as f64;
            // Five standard deviations; the seed is fixed.
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{rank}: {found} {expected}");
        }
    }

    #[test]
    fn counts_take_units_and_refuse_nonsense() {
        assert_eq!(parse_count("1k"), Some(1_000));
        assert_eq!(parse_count("4M"), Some(4_000_000));
        assert_eq!(parse_count("64"), Some(64));
        for nonsense in ["", "k", "0", "-1", "1g", "99999999999999999999", "18446744073709551615k"]
        {
            assert_eq!(parse_count(nonsense), None, "{nonsense}");
        }
    }
}
