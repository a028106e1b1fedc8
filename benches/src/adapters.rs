//! Each cache behind one small trait.
//!
//! A [`Subject`] does one operation; [`Instance`] runs a block of them and is
//! what the measuring loop calls, so that one dynamic call is spread over
//! [`BLOCK`] operations and everything inside it is monomorphized.

mod ours;
mod peers;

use std::cell::Cell;
use std::fmt;
use std::future::Future;

use crate::workload::{BLOCK, Op, value_of};

/// The hasher of every subject that lets its user choose one.
pub type Hasher = foldhash::fast::RandomState;

/// Inserts that a cache turned down, of all inserts.
#[derive(Clone, Copy, Debug)]
pub struct Refusals {
    /// Inserts turned down.
    pub refused: u64,
    /// All inserts, those turned down included.
    pub inserts: u64,
}

/// A cache from `u64` to `u64`.
pub trait Subject: Sync + Sized {
    /// Its name on the command line and in the tables.
    const NAME: &'static str;
    /// The package that it comes from.
    const PACKAGE: &'static str;
    /// What a reader of the tables must know about it.
    const NOTE: &'static str;
    /// The operations it takes part in.
    const OPS: &'static [Op];

    /// An empty cache for `capacity` entries.
    fn with_capacity(capacity: usize) -> Self;
    /// The value of `key`, as a user of the cache would read it.
    fn get(&self, key: u64) -> Option<u64>;
    /// Adds an entry or replaces its value.
    fn insert(&self, key: u64, value: u64);

    /// How many of `keys` are there with the right value.
    #[inline]
    fn hits(&self, keys: &[u64; BLOCK]) -> u64 {
        keys.iter().map(|&key| u64::from(self.get(key) == Some(value_of(key)))).sum()
    }

    /// The value of `key`, from `init` if it is not there.
    fn get_with(&self, key: u64, init: impl Future<Output = u64>) -> impl Future<Output = u64> {
        let _ = (key, init);
        async { unreachable!("{} has no asynchronous load", Self::NAME) }
    }

    /// Finishes what the cache put off, as far as it offers that.
    fn settle(&self) {}
    /// Entries held now; `None` where the cache does not tell.
    fn resident(&self) -> Option<u64>;
    /// Inserts turned down since the start; `None` where that cannot be.
    fn refusals(&self) -> Option<Refusals> {
        None
    }
}

/// A built cache, its type forgotten.
pub trait Instance: Sync {
    /// Runs one block of `op` and says how many look-ups were hits. `salt`
    /// turns the keys of an [`Op::Insert`] or [`Op::LoadMiss`] into others that
    /// were not used before.
    fn run(&self, op: Op, keys: &[u64; BLOCK], salt: u64) -> u64;
    /// Adds the keys, as preparation.
    fn fill(&self, op: Op, keys: &[u64]);
    /// See [`Subject::settle`].
    fn settle(&self);
    /// See [`Subject::resident`].
    fn resident(&self) -> Option<u64>;
    /// See [`Subject::refusals`].
    fn refusals(&self) -> Option<Refusals>;
}

impl<S: Subject> Instance for S {
    fn run(&self, op: Op, keys: &[u64; BLOCK], salt: u64) -> u64 {
        match op {
            Op::Get => self.hits(keys),
            Op::ReadThrough => {
                let mut hits = 0;
                for &key in keys {
                    match self.get(key) {
                        Some(value) => hits += u64::from(value == value_of(key)),
                        None => self.insert(key, value_of(key)),
                    }
                }
                hits
            }
            Op::Insert => {
                for &key in keys {
                    self.insert(key ^ salt, value_of(key ^ salt));
                }
                0
            }
            Op::Mix => {
                let mut hits = 0;
                for (i, &key) in keys.iter().enumerate() {
                    if Op::mix_inserts(i) {
                        self.insert(key, value_of(key));
                    } else {
                        hits += u64::from(self.get(key) == Some(value_of(key)));
                    }
                }
                hits
            }
            // Every future here is ready when first polled, unless the cache
            // itself waits: one `block_on` a block costs next to nothing.
            Op::LoadHit | Op::LoadMiss => pollster::block_on(async {
                let loads = Cell::new(0);
                let mut right = 0;
                for &key in keys {
                    let key = if op == Op::LoadMiss { key ^ salt } else { key };
                    let value = self.get_with(key, async {
                        loads.set(loads.get() + 1);
                        value_of(key)
                    });
                    right += u64::from(value.await == value_of(key));
                }
                right - loads.get()
            }),
        }
    }

    fn fill(&self, op: Op, keys: &[u64]) {
        if matches!(op, Op::LoadHit | Op::LoadMiss) {
            pollster::block_on(async {
                for &key in keys {
                    self.get_with(key, async { value_of(key) }).await;
                }
            });
        } else {
            for &key in keys {
                self.insert(key, value_of(key));
            }
        }
        self.settle();
    }

    fn settle(&self) {
        Subject::settle(self);
    }

    fn resident(&self) -> Option<u64> {
        Subject::resident(self)
    }

    fn refusals(&self) -> Option<Refusals> {
        Subject::refusals(self)
    }
}

/// An entry of the list of subjects.
#[derive(Clone, Copy)]
pub struct Peer {
    /// See [`Subject::NAME`].
    pub name: &'static str,
    /// See [`Subject::PACKAGE`].
    pub package: &'static str,
    /// See [`Subject::NOTE`].
    pub note: &'static str,
    /// See [`Subject::OPS`].
    pub ops: &'static [Op],
    /// Builds one for so many entries.
    pub build: fn(usize) -> Box<dyn Instance>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const fn peer<S: Subject + 'static>() -> Peer {
    Peer {
        name: S::NAME,
        package: S::PACKAGE,
        note: S::NOTE,
        ops: S::OPS,
        build: |capacity| Box::new(S::with_capacity(capacity)),
    }
}

/// Every subject, in the order of the tables.
pub const PEERS: &[Peer] = &[
    peer::<ours::Alru>(),
    peer::<ours::AlruClock>(),
    peer::<ours::AlruGuard>(),
    peer::<peers::QuickCache>(),
    peer::<peers::Moka>(),
    peer::<peers::MokaFuture>(),
    peer::<peers::MiniMoka>(),
    peer::<peers::Scc>(),
    peer::<peers::SccRead>(),
    peer::<peers::TinyUfo>(),
    peer::<peers::MutexLru>(),
    peer::<peers::Papaya>(),
    peer::<peers::PapayaGuard>(),
];

/// What a cache with a synchronous interface does.
const SYNC: &[Op] = &[Op::Get, Op::ReadThrough, Op::Insert, Op::Mix];
/// The same, and asynchronous loads.
const SYNC_AND_LOADS: &[Op] =
    &[Op::Get, Op::ReadThrough, Op::Insert, Op::Mix, Op::LoadHit, Op::LoadMiss];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{blocks, key};

    /// A subject that loses entries or mixes values up would look quick.
    #[test]
    fn every_subject_finds_what_it_was_given() {
        let keys: Vec<u64> = (0..1_024).map(key).collect();
        for peer in PEERS {
            for &op in peer.ops {
                let cache = (peer.build)(4_096);
                let look_up = match op {
                    Op::LoadHit | Op::LoadMiss => Op::LoadHit,
                    _ => Op::Get,
                };
                cache.fill(op, &keys);
                let hits: u64 = blocks(keys.iter().copied())
                    .iter()
                    .map(|block| cache.run(look_up, block, 0))
                    .sum();
                assert_eq!(hits, 1_024, "{peer:?} {op:?}");
                if let Some(resident) = cache.resident() {
                    assert_eq!(resident, 1_024, "{peer:?} {op:?}");
                }
            }
        }
    }

    #[test]
    fn caches_stay_near_their_capacity_and_miss_what_was_never_added() {
        let keys: Vec<u64> = (0..8_192).map(key).collect();
        for peer in PEERS.iter().filter(|p| p.ops.contains(&Op::Insert)) {
            let cache = (peer.build)(1_024);
            for block in &blocks(keys.iter().copied()) {
                cache.run(Op::Insert, block, 0);
            }
            cache.settle();
            if let Some(resident) = cache.resident() {
                assert!((1..=1_100).contains(&resident), "{peer:?}: {resident}");
            }
            let fresh = std::array::from_fn(|i| key(1 << 40 | i as u64));
            assert_eq!(cache.run(Op::Get, &fresh, 0), 0, "{peer:?}");
        }
    }
}
