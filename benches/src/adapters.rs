//! Each cache behind one small trait.
//!
//! A [`Subject`] does one operation; [`Instance`] runs a block of them and is
//! what the measuring loop calls, so that one dynamic call is spread over
//! [`BLOCK`] operations and everything inside it is monomorphized.

pub mod gate;
mod ours;
mod peers;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use crate::workload::{BLOCK, Op, value_of};
use gate::Gate;

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

    /// The value of `key`, from `init` if it is not there, which is `Gate::load(key)`: a cache that has its loader
    /// built in, or wants one that is `'static`, may as well make it itself.
    fn get_with(&self, key: u64, init: impl Future<Output = u64>) -> impl Future<Output = u64> {
        let _ = (key, init);
        async { unreachable!("{} has no asynchronous load", Self::NAME) }
    }

    /// Runs a block of loads; within the runtime that the cache cannot do without.
    fn block_on<T>(&self, loads: impl Future<Output = T>) -> T {
        pollster::block_on(loads)
    }
    /// A turn for the tasks that the cache has spawned.
    fn turn(&self) -> impl Future<Output = ()> {
        async {}
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
            Op::Waiters(callers) => {
                self.block_on(share(self, keys, salt, callers));
                0
            }
            // Every future here is ready when first polled, unless the cache
            // itself waits: one `block_on` a block costs next to nothing.
            Op::LoadHit | Op::LoadMiss => self.block_on(async {
                let loads = Gate::loads();
                let mut right = 0;
                for &key in keys {
                    let key = if op == Op::LoadMiss { key ^ salt } else { key };
                    let value = self.get_with(key, Gate::load(key));
                    right += u64::from(value.await == value_of(key));
                }
                right - (Gate::loads() - loads)
            }),
        }
    }

    fn fill(&self, op: Op, keys: &[u64]) {
        if matches!(op, Op::LoadHit | Op::LoadMiss | Op::Waiters(_)) {
            self.block_on(async {
                for &key in keys {
                    self.get_with(key, Gate::load(key)).await;
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

/// One load a key, each shared by so many callers, which are polled by hand: first the one that came first.
async fn share<S: Subject>(subject: &S, keys: &[u64; BLOCK], salt: u64, callers: usize) {
    /// Polls all that have not answered; how many are left.
    fn poll_all<F: Future<Output = u64>>(
        calls: &mut [(Pin<Box<Option<F>>>, Waker)],
        value: u64,
    ) -> usize {
        let mut left = 0;
        for (place, waker) in calls {
            let Some(call) = place.as_mut().as_pin_mut() else { continue };
            match call.poll(&mut Context::from_waker(waker)) {
                Poll::Ready(answer) => {
                    assert_eq!(answer, value, "{}: a wrong value", std::any::type_name::<F>());
                    place.set(None);
                }
                Poll::Pending => left += 1,
            }
        }
        left
    }
    // Each call has a place and a waker of its own, as a task has; made once a block.
    let mut calls: Vec<_> =
        (0..callers).map(|_| (Box::pin(None), Waker::from(Arc::new(Task)))).collect();
    for key in keys.iter().map(|key| key ^ salt) {
        Gate::shut();
        for (place, _) in &mut calls {
            place.set(Some(subject.get_with(key, Gate::load(key))));
        }
        let begun = poll_all(&mut calls, value_of(key));
        assert_eq!(begun, callers, "{}: does not wait", S::NAME);
        subject.turn().await;
        Gate::open();
        let mut turns = 0;
        while poll_all(&mut calls, value_of(key)) > 0 {
            turns += 1;
            assert!(turns < 1_000, "{}: a caller hangs", S::NAME);
            subject.turn().await;
        }
    }
}

/// A task that is polled whether it is woken or not.
struct Task;

impl Wake for Task {
    fn wake(self: Arc<Self>) {}
    fn wake_by_ref(self: &Arc<Self>) {}
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

impl Peer {
    /// Whether it takes part in workloads of `op`.
    pub fn takes_part_in(&self, op: Op) -> bool {
        self.ops.iter().any(|own| own.is_like(op))
    }
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
    peer::<ours::AlruMemo>(),
    peer::<peers::QuickCache>(),
    peer::<peers::Moka>(),
    peer::<peers::MokaFuture>(),
    peer::<peers::Foyer>(),
    peer::<peers::OnceCells>(),
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
    &[Op::Get, Op::ReadThrough, Op::Insert, Op::Mix, Op::LoadHit, Op::LoadMiss, Op::Waiters(1)];
/// Asynchronous loads alone.
const LOADS: &[Op] = &[Op::LoadHit, Op::LoadMiss, Op::Waiters(1)];

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
                    Op::LoadHit | Op::LoadMiss | Op::Waiters(_) => Op::LoadHit,
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
    fn callers_of_one_load_share_it() {
        let keys: [u64; BLOCK] = std::array::from_fn(|i| key(i as u64));
        for peer in PEERS.iter().filter(|peer| peer.takes_part_in(Op::Waiters(1))) {
            for callers in [1, 10, 100] {
                let cache = (peer.build)(4_096);
                let before = Gate::loads();
                cache.run(Op::Waiters(callers), &keys, 0);
                assert_eq!(Gate::loads() - before, BLOCK as u64, "{peer:?}, {callers}");
                assert_eq!(cache.run(Op::LoadHit, &keys, 0), BLOCK as u64, "{peer:?}");
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
