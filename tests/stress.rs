//! Many threads on one cache, under an accounting oracle: every value knows its key, its writer
//! and its place in that writer's order, and is counted from its making to its drop.

mod common;

use std::cell::Cell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, RwLock};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use alru::{Cache, EvictionPolicy};
use common::{Collide, Counted, Meeting, Random, Tally, eventually, poll_once};

/// Who wrote a value, and as which of his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    key: u64,
    writer: usize,
    number: u64,
}

type Value = Counted<Mark>;

/// Goes on after `n` polls, waking itself.
async fn after_polls(n: u64) {
    let mut left = n;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Polls `n` times, then drops the future.
fn poll_and_leave<T>(n: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..n {
        if let Poll::Ready(value) = poll_once(future.as_mut()) {
            return Some(value);
        }
    }
    None
}

struct Plan {
    threads: usize,
    capacity: u64,
    reserve: usize,
    policy: EvictionPolicy,
    /// Keys that all threads write.
    shared: u64,
    /// Keys of each thread alone.
    own: u64,
    rounds: u64,
    steps: u64,
}

/// One thread's view of what it may see.
struct Worker<'a, S> {
    id: usize,
    plan: &'a Plan,
    cache: Cache<u64, Value, S>,
    tally: Tally,
    random: Random,
    written: u64,
    /// The last thing this thread did to its own keys.
    own: HashMap<u64, Option<Mark>>,
    /// The newest value seen of each key and writer.
    newest: HashMap<(u64, usize), u64>,
}

impl<S: std::hash::BuildHasher + Send + Sync + 'static> Worker<'_, S> {
    fn value(&mut self, key: u64) -> Value {
        self.written += 1;
        let mark = Mark { key, writer: self.id, number: self.written };
        Counted::new(mark, &self.tally)
    }

    fn saw(&mut self, key: u64, found: Option<Mark>) {
        if let Some(mark) = found {
            assert_eq!(mark.key, key, "a value of another key");
            let newest = self.newest.entry((key, mark.writer)).or_default();
            assert!(*newest <= mark.number, "{mark:?} seen after number {newest}");
            *newest = mark.number;
        }
        if let Some(own) = self.own.get_mut(&key) {
            // Its last write or nothing; and once gone, gone.
            assert!(found.is_none() || found == *own, "{found:?} instead of {own:?}");
            *own = found;
        }
    }

    fn step(&mut self) {
        let own = self.random.below(3) == 0;
        let key = if own {
            1_000_000 * (1 + self.id as u64) + self.random.below(self.plan.own)
        } else {
            self.random.below(self.plan.shared)
        };
        if own {
            self.own.entry(key).or_default();
        }
        match self.random.below(1_000) {
            0 => {
                self.cache.invalidate_all();
                self.own.values_mut().for_each(|last| *last = None);
            }
            1..20 => self.cache.run_pending_tasks(),
            20..100 => {
                let found = self.cache.remove(&key).map(|value| value.inner);
                self.saw(key, found);
                self.forget(key);
            }
            100..180 => {
                self.cache.invalidate(&key);
                self.forget(key);
            }
            180..450 => {
                let value = self.value(key);
                let mark = value.inner;
                self.cache.insert(key, value);
                if own {
                    self.own.insert(key, Some(mark));
                }
            }
            450..600 => self.load(key, own),
            600..650 => {
                let cache = self.cache.clone();
                let (polls, value) = (self.random.below(3), self.value(key));
                let mark = value.inner;
                let load = async {
                    after_polls(2).await;
                    value
                };
                let found = poll_and_leave(polls + 1, cache.get_with(key, load));
                if let Some(found) = found {
                    self.loaded(key, own, mark, found.inner);
                }
            }
            650..750 => {
                let cache = self.cache.clone();
                let pin = cache.pin();
                let held = pin.get(&key);
                let mark = held.map(|value| value.inner);
                self.saw(key, mark);
                let other = self.random.below(self.plan.shared);
                let seen = pin.get(&other).map(|value| value.inner);
                self.saw(other, seen);
                assert_eq!(held.map(|value| value.inner), mark);
            }
            _ => {
                let found = self.cache.get(&key).map(|value| value.inner);
                self.saw(key, found);
            }
        }
    }

    fn forget(&mut self, key: u64) {
        if let Some(own) = self.own.get_mut(&key) {
            *own = None;
        }
    }

    fn load(&mut self, key: u64, own: bool) {
        let (polls, value) = (self.random.below(3), self.value(key));
        let mark = value.inner;
        let load = async {
            after_polls(polls).await;
            value
        };
        let found = smol::block_on(self.cache.get_with(key, load)).inner;
        self.loaded(key, own, mark, found);
    }

    /// A load of this thread's, which would have given `mark`, answered `found`.
    fn loaded(&mut self, key: u64, own: bool, mark: Mark, found: Mark) {
        if own && found == mark {
            self.own.insert(key, Some(mark));
        }
        self.saw(key, Some(found));
    }
}

/// Runs the plan; checks in each step what a thread may see, and while all threads rest, what
/// must be true of the whole.
fn stress<S>(plan: Plan, hasher: S)
where
    S: std::hash::BuildHasher + Send + Sync + 'static,
{
    let tally = Tally::default();
    let cache: Cache<u64, Value, S> = Cache::builder()
        .max_capacity(plan.capacity)
        .reserve(plan.reserve)
        .eviction_policy(plan.policy)
        .build_with_hasher(hasher);
    let rest = Meeting::new(plan.threads);
    let hand = plan.threads as u64;
    thread::scope(|scope| {
        for id in 0..plan.threads {
            let (plan, cache, tally, rest) = (&plan, cache.clone(), tally.clone(), rest.seat());
            scope.spawn(move || {
                let rest = rest;
                let mut worker = Worker {
                    id,
                    plan,
                    cache: cache.clone(),
                    tally: tally.clone(),
                    random: Random(id as u64 + 1),
                    written: 0,
                    own: HashMap::new(),
                    newest: HashMap::new(),
                };
                for _ in 0..plan.rounds {
                    for step in 0..plan.steps {
                        worker.step();
                        if step % 64 == 0 {
                            let entries = cache.entry_count();
                            assert!(entries <= plan.capacity + 2 * hand, "{entries} entries");
                            // Two values a thread in its hands: a new one, and one it found.
                            let most = plan.capacity + plan.reserve as u64 + 4 * hand;
                            assert!(tally.alive() as u64 <= most, "{} alive", tally.alive());
                        }
                    }
                    if rest.wait() {
                        at_rest(plan, &cache, &tally);
                    }
                    rest.wait();
                }
            });
        }
    });
    for key in keys(&plan) {
        cache.invalidate(&key);
    }
    assert_eq!(cache.entry_count(), 0);
    assert_resident_are_alive(&cache, &tally);
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

fn keys(plan: &Plan) -> impl Iterator<Item = u64> {
    let (threads, own) = (plan.threads as u64, plan.own);
    (0..plan.shared).chain((1..=threads).flat_map(move |id| {
        let first = 1_000_000 * id;
        first..first + own
    }))
}

fn at_rest<S>(plan: &Plan, cache: &Cache<u64, Value, S>, tally: &Tally)
where
    S: std::hash::BuildHasher + Send + Sync + 'static,
{
    let readable = keys(plan).filter(|key| cache.contains_key(key)).count() as u64;
    assert_eq!(readable, cache.entry_count(), "an entry twice, or out of reach");
    assert!(readable <= plan.capacity, "{readable} of {}", plan.capacity);
    assert_resident_are_alive(cache, tally);
}

/// Nothing but the entries is alive, once nobody is pinned.
fn assert_resident_are_alive<V, S>(cache: &Cache<u64, V, S>, tally: &Tally)
where
    V: Clone + Send + Sync + 'static,
    S: std::hash::BuildHasher + Send + Sync + 'static,
{
    let exact = || tally.alive() as u64 == cache.entry_count();
    assert!(
        eventually(|| cache.run_pending_tasks(), exact),
        "{} alive, {} resident",
        tally.alive(),
        cache.entry_count()
    );
}

/// Steps of all threads together, so that a debug build takes a second or two.
const STEPS: u64 = if cfg!(debug_assertions) { 300_000 } else { 2_000_000 };

fn plan(threads: usize, capacity: u64, shared: u64) -> Plan {
    Plan {
        threads,
        capacity,
        reserve: 4_096,
        policy: EvictionPolicy::default(),
        shared,
        own: 50,
        rounds: 10,
        steps: STEPS / 10 / threads as u64,
    }
}

#[test]
fn two_threads_in_a_roomy_cache() {
    stress(plan(2, 1_000, 300), alru::DefaultHasher::default());
}

#[test]
fn four_threads_in_a_cache_that_evicts_all_the_time() {
    stress(plan(4, 64, 1_000), alru::DefaultHasher::default());
}

#[test]
fn eight_threads_on_a_few_hot_keys() {
    stress(plan(8, 16, 8), alru::DefaultHasher::default());
}

#[test]
fn eight_threads_in_a_cache_of_two_entries() {
    let plan = Plan { own: 2, ..plan(8, 2, 6) };
    stress(plan, alru::DefaultHasher::default());
}

#[test]
fn four_threads_under_plain_clock() {
    let plan = Plan { policy: EvictionPolicy::clock(), ..plan(4, 100, 400) };
    stress(plan, alru::DefaultHasher::default());
}

#[test]
fn four_threads_whose_keys_all_collide() {
    stress(plan(4, 200, 20), Collide);
}

#[test]
fn eight_threads_with_next_to_no_reserve() {
    let plan = Plan { reserve: 8, ..plan(8, 100, 300) };
    stress(plan, alru::DefaultHasher::default());
}

#[test]
fn unique_keys_as_fast_as_they_come_stay_within_capacity_and_reserve() {
    const CAPACITY: u64 = 1_000;
    const RESERVE: u64 = 4_096;
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> =
        Cache::builder().max_capacity(CAPACITY).reserve(RESERVE as usize).build();
    let done = AtomicBool::new(false);
    let (most_entries, most_alive) = thread::scope(|scope| {
        let writers: Vec<_> = (0..4_u64)
            .map(|id| {
                let (cache, tally) = (cache.clone(), tally.clone());
                scope.spawn(move || {
                    for n in 0..STEPS / 8 {
                        let key = n * 4 + id;
                        cache.insert(key, Counted::new(key, &tally));
                    }
                })
            })
            .collect();
        let sampler = scope.spawn(|| {
            let (mut entries, mut alive) = (0, 0);
            while !done.load(SeqCst) {
                entries = entries.max(cache.entry_count());
                alive = alive.max(tally.alive() as u64);
                thread::yield_now();
            }
            (entries, alive)
        });
        writers.into_iter().for_each(|writer| writer.join().expect("no panic"));
        done.store(true, SeqCst);
        sampler.join().expect("no panic")
    });
    assert!(most_entries <= CAPACITY + 4, "{most_entries} entries");
    assert!(most_alive <= CAPACITY + RESERVE + 8, "{most_alive} alive");
    let entries = cache.entry_count();
    assert!((CAPACITY * 95 / 100..=CAPACITY).contains(&entries), "{entries} entries at rest");
    assert_resident_are_alive(&cache, &tally);
    let readable = (0..STEPS / 2).filter(|key| cache.contains_key(key)).count() as u64;
    assert_eq!(readable, entries);
}

#[test]
fn a_value_loaded_before_an_invalidation_is_never_seen_after_it() {
    // One key and the truth behind it. Who changes the truth and then invalidates never gets an
    // older one, whatever slow loads are under way.
    const KEY: u64 = 7;
    let cache: Cache<u64, u64> = Cache::new(8);
    let truth = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let read = |polls: u64| {
        smol::block_on(cache.get_with(KEY, async {
            let value = truth.load(SeqCst);
            after_polls(polls).await;
            value
        }))
    };
    thread::scope(|scope| {
        for id in 0..3 {
            let (read, done) = (&read, &done);
            scope.spawn(move || {
                let mut random = Random(id);
                while !done.load(SeqCst) {
                    read(random.below(4));
                }
            });
        }
        let mut random = Random(99);
        for n in 1..=STEPS / 20 {
            truth.store(n, SeqCst);
            match random.below(3) {
                0 => cache.insert(KEY, n),
                1 => cache.invalidate_all(),
                _ => {
                    cache.invalidate(&KEY);
                }
            }
            let value = read(random.below(2));
            if value != n {
                done.store(true, SeqCst);
                panic!("{value} after {n} was written");
            }
        }
        done.store(true, SeqCst);
    });
}

#[test]
fn one_loader_a_key_runs_at_a_time_and_once_in_all() {
    const KEYS: u64 = 64;
    let cache: Cache<u64, u64> = Cache::new(1_000);
    let running: Vec<AtomicUsize> = (0..KEYS).map(|_| AtomicUsize::new(0)).collect();
    let runs = AtomicU64::new(0);
    let start = Meeting::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let start = start.seat();
                for round in 0..50 {
                    start.wait();
                    for key in 0..KEYS {
                        let key = round * KEYS + key;
                        let load = async {
                            let running = &running[(key % KEYS) as usize];
                            assert_eq!(running.fetch_add(1, SeqCst), 0, "two at once");
                            runs.fetch_add(1, SeqCst);
                            after_polls(3).await;
                            running.fetch_sub(1, SeqCst);
                            key + 1
                        };
                        assert_eq!(smol::block_on(cache.get_with(key, load)), key + 1);
                    }
                    if start.wait() {
                        cache.invalidate_all();
                    }
                    start.wait();
                }
            });
        }
    });
    let stats = cache.stats();
    assert_eq!(runs.load(SeqCst), 50 * KEYS + stats.evictions + stats.refused, "{stats}");
}

#[test]
fn callers_that_come_and_go_leave_nobody_waiting() {
    // Loads that end only if somebody keeps polling, and callers most of whom leave.
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(16);
    thread::scope(|scope| {
        for id in 0..4 {
            let (cache, tally) = (cache.clone(), tally.clone());
            scope.spawn(move || {
                let mut random = Random(id);
                for _ in 0..STEPS / 40 {
                    let key = random.below(4);
                    let value = Counted::new(key, &tally);
                    let call = cache.get_with(key, async {
                        after_polls(2).await;
                        value
                    });
                    let found = if random.below(4) == 0 {
                        Some(smol::block_on(call))
                    } else {
                        poll_and_leave(1 + random.below(2), call)
                    };
                    assert!(found.is_none_or(|value| value.inner == key));
                    if random.below(3) == 0 {
                        cache.invalidate(&key);
                    }
                }
            });
        }
    });
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    assert_resident_are_alive(&cache, &tally);
}

thread_local! {
    static READS_ONLY: Cell<bool> = const { Cell::new(false) };
}

#[test]
fn a_reader_never_runs_a_destructor() {
    static DROPPED_BY_READERS: AtomicUsize = AtomicUsize::new(0);
    struct Heavy(u64);
    impl Clone for Heavy {
        fn clone(&self) -> Self {
            unreachable!("read through pins only")
        }
    }
    impl Drop for Heavy {
        fn drop(&mut self) {
            if READS_ONLY.get() {
                DROPPED_BY_READERS.fetch_add(1, SeqCst);
            }
        }
    }

    let cache: Cache<u64, Heavy> = Cache::new(100);
    let done = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for id in 0..2 {
            let (cache, done, reads) = (cache.clone(), &done, &reads);
            scope.spawn(move || {
                READS_ONLY.set(true);
                let mut random = Random(id);
                while !done.load(SeqCst) {
                    let key = random.below(300);
                    if let Some(value) = cache.pin().get(&key) {
                        assert_eq!(value.0, key);
                        reads.fetch_add(1, SeqCst);
                    }
                    assert!(!cache.contains_key(&(key + 1_000)));
                    thread::yield_now();
                }
                READS_ONLY.set(false);
            });
        }
        let mut random = Random(9);
        for _ in 0..STEPS / 6 {
            let key = random.below(300);
            cache.insert(key, Heavy(key));
        }
        while reads.load(SeqCst) < 100 {
            thread::yield_now();
        }
        done.store(true, SeqCst);
    });
    assert_eq!(DROPPED_BY_READERS.load(SeqCst), 0);
}

#[test]
fn handles_dropped_by_many_threads_at_once_end_the_cache_once() {
    for round in 0..200 {
        let tally = Tally::default();
        let cache: Cache<u64, Counted<u64>> = Cache::new(64);
        let start = Arc::new(Barrier::new(4));
        let threads: Vec<_> = (0..4)
            .map(|id| {
                let (cache, tally, start) = (cache.clone(), tally.clone(), start.clone());
                thread::spawn(move || {
                    start.wait();
                    for n in 0..100 {
                        let key = (id * 31 + n + round) % 90;
                        cache.insert(key, Counted::new(key, &tally));
                    }
                })
            })
            .collect();
        drop(cache);
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(tally.alive(), 0);
    }
}

#[test]
fn readers_of_expiring_entries_get_them_in_time_or_not_at_all() {
    let time = alru::ManualTime::new();
    let cache: Cache<u64, Duration> = Cache::builder()
        .max_capacity(100)
        .time_to_live(Duration::from_millis(50))
        .jitter(Duration::from_millis(20))
        .time_source(time.clone())
        .build();
    let done = AtomicBool::new(false);
    // The clock stands still while a value is made and inserted.
    let still = RwLock::new(());
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        for id in 0..3 {
            let (cache, done, time) = (cache.clone(), &done, time.clone());
            let (still, reads) = (&still, &reads);
            scope.spawn(move || {
                let mut random = Random(id);
                while !done.load(SeqCst) {
                    let key = random.below(150);
                    let before = alru::TimeSource::now(&time);
                    match cache.get(&key) {
                        Some(made) => assert!(before < made + Duration::from_millis(70)),
                        None => {
                            let _still = still.read();
                            cache.insert(key, alru::TimeSource::now(&time));
                        }
                    }
                    reads.fetch_add(1, SeqCst);
                }
            });
        }
        for step in 1..=300 {
            {
                let _still = still.write();
                time.advance(Duration::from_millis(1));
            }
            while reads.load(SeqCst) < step * 50 {
                thread::yield_now();
            }
        }
        done.store(true, SeqCst);
    });
    let stats = cache.stats();
    assert!(stats.hits > 0 && stats.insertions > 0, "{stats}");
    time.advance(Duration::from_secs(1));
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
}
