//! Loads that find no slot share all the same: beside the table.

mod common;

use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

use alru::{AlruCache, Cache};
use common::{Collide, Counted, Flag, Tally, eventually, poll_once};

type Loads = Cache<u64, u64>;

/// Lets inserts use up the slots of a cache, while a pin is held, and removes all entries.
fn use_up<K, V>(cache: &Cache<K, V>, key: impl Fn(u64) -> K, value: impl Fn() -> V)
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let refused = cache.stats().refused;
    let mut keys = 1000..;
    while cache.stats().refused == refused {
        cache.insert(key(keys.next().expect("enough")), value());
    }
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
}

/// A cache whose slots are all in limbo as long as the caller's pin is held, and no entry in it.
fn without_slots<K, V>(key: impl Fn(u64) -> K, value: impl Fn() -> V) -> Cache<K, V>
where
    K: std::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let cache = Cache::builder().max_capacity(4).reserve(16).build();
    use_up(&cache, key, value);
    cache
}

/// Calls `test` with a cache that has no slot, while the pin that keeps it so is held.
fn while_pinned(test: impl FnOnce(&Loads)) {
    let other = Loads::new(1);
    let _pin = other.pin();
    test(&without_slots(|k| k, || 0));
}

/// Lets the slots come back.
fn refill(cache: &Loads) {
    assert!(eventually(
        || cache.run_pending_tasks(),
        || {
            let refused = cache.stats().refused;
            cache.insert(999, 0);
            cache.stats().refused == refused
        }
    ));
    cache.invalidate(&999);
}

/// A loader that counts its run and ends when it is let.
fn gated(
    gate: &Arc<AtomicBool>,
    runs: &Arc<AtomicUsize>,
    value: u64,
) -> impl Future<Output = u64> + use<> {
    let (gate, runs) = (gate.clone(), runs.clone());
    let mut begun = false;
    poll_fn(move |_| {
        if !std::mem::replace(&mut begun, true) {
            runs.fetch_add(1, SeqCst);
        }
        if gate.load(SeqCst) { Poll::Ready(value) } else { Poll::Pending }
    })
}

#[test]
fn a_hundred_callers_without_a_slot_run_one_load() {
    while_pinned(|cache| {
        let (gate, runs) = (Arc::default(), Arc::default());
        let flag = Flag::new();
        let mut callers: Vec<Pin<Box<_>>> =
            (0..100).map(|i| Box::pin(cache.get_with(8, gated(&gate, &runs, i)))).collect();
        assert!(callers.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
        gate.store(true, SeqCst);
        assert!(callers.iter_mut().all(|c| flag.poll(c.as_mut()) == Poll::Ready(0)));
        assert_eq!(runs.load(SeqCst), 1);
        let stats = cache.stats();
        assert_eq!((stats.hits, stats.misses, stats.loads), (99, 1, 1));
        assert_eq!(cache.get(&8), None, "not stored");
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_tasks_without_a_slot_run_one_load() {
    let cache: Loads = Cache::builder().max_capacity(4).reserve(16).build();
    let stop = Arc::new(AtomicBool::new(false));
    let (pinned, is_pinned) = std::sync::mpsc::channel();
    let holder = {
        let (cache, stop) = (cache.clone(), stop.clone());
        std::thread::spawn(move || {
            let _pin = cache.pin();
            use_up(&cache, |k| k, || 0);
            pinned.send(()).expect("the test waits");
            while !stop.load(SeqCst) {
                std::thread::park();
            }
        })
    };
    is_pinned.recv().expect("pinned");
    let runs = Arc::<AtomicUsize>::default();
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, runs) = (cache.clone(), runs.clone());
            tokio::spawn(async move {
                let load = async {
                    runs.fetch_add(1, SeqCst);
                    // Until all have asked.
                    while cache.stats().hits + cache.stats().misses < 100 {
                        tokio::task::yield_now().await;
                    }
                    64
                };
                cache.get_with(8, load).await
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), 64);
    }
    assert_eq!(runs.load(SeqCst), 1);
    stop.store(true, SeqCst);
    holder.thread().unpark();
    holder.join().expect("no panic");
}

#[test]
fn a_function_cache_without_a_slot_runs_the_function_once() {
    let other = Loads::new(1);
    let _pin = other.pin();
    let (gate, runs) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let memo = {
        let (gate, runs) = (gate.clone(), runs.clone());
        AlruCache::builder_infallible(move |key: u64| gated(&gate, &runs, key)).maxsize(4).build()
    };
    // The reserve, 262,144 slots, and some.
    for i in 0..270_000 {
        assert!(poll_once(pin!(memo.call(i))).is_ready());
    }
    memo.cache_clear();
    gate.store(false, SeqCst);
    runs.store(0, SeqCst);
    let flag = Flag::new();
    let mut callers: Vec<_> = (0..100).map(|_| Box::pin(memo.call(8))).collect();
    assert!(callers.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
    assert_eq!(runs.load(SeqCst), 1);
    // The first is gone, the load is not.
    drop(callers.remove(0));
    assert_eq!(memo.cache_parameters().tasks, 1);
    gate.store(true, SeqCst);
    for caller in &mut callers {
        assert!(matches!(flag.poll(caller.as_mut()), Poll::Ready(Ok(8))));
    }
    drop(callers);
    assert_eq!(runs.load(SeqCst), 1);
    let info = memo.cache_info();
    assert_eq!((info.hits, info.misses, info.currsize), (99, 1, 0));
    assert_eq!(memo.cache_parameters().tasks, 0);
}

#[test]
fn closing_a_function_cache_ends_a_load_without_a_slot() {
    let other = Loads::new(1);
    let _pin = other.pin();
    let memo = AlruCache::builder_infallible(|key: u64| async move {
        if key == 8 { pending().await } else { key }
    });
    let memo = memo.maxsize(4).build();
    for i in 100..270_100 {
        assert!(poll_once(pin!(memo.call(i))).is_ready());
    }
    let mut call = pin!(memo.call(8));
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(!memo.cache_contains(&8), "it is no entry");
    assert!(poll_once(pin!(memo.cache_close(false))).is_ready());
    assert!(matches!(poll_once(call), Poll::Ready(Err(alru::LoadError::Closed))));
    assert_eq!(memo.cache_parameters().tasks, 0);
}

#[test]
fn a_waiter_without_a_slot_leads_when_the_leader_goes() {
    while_pinned(|cache| {
        let flag = Flag::new();
        let mut leader = Box::pin(cache.get_with(8, pending()));
        let mut waiter = pin!(cache.get_with(8, ready(2)));
        assert!(poll_once(leader.as_mut()).is_pending());
        assert!(flag.poll(waiter.as_mut()).is_pending());
        drop(leader);
        assert!(flag.take());
        assert_eq!(flag.poll(waiter), Poll::Ready(2));
    });
}

#[test]
fn all_callers_without_a_slot_leave_and_the_next_one_begins() {
    while_pinned(|cache| {
        for round in 0..1000 {
            let mut callers = [0; 3].map(|_| Box::pin(cache.get_with(8, pending())));
            assert!(callers.iter_mut().all(|c| poll_once(c.as_mut()).is_pending()), "{round}");
        }
        assert_eq!(poll_once(pin!(cache.get_with(8, ready(1)))), Poll::Ready(1));
        assert_eq!(cache.stats().loads, 1001);
    });
}

#[test]
fn errors_without_a_slot_are_shared_and_not_kept() {
    while_pinned(|cache| {
        let (flag, gate) = (Flag::new(), Arc::new(AtomicBool::new(false)));
        let fail = |gate: &Arc<AtomicBool>| {
            let gate = gate.clone();
            poll_fn(move |_| match gate.load(SeqCst) {
                true => Poll::Ready(Err::<u64, _>("no")),
                false => Poll::Pending,
            })
        };
        let mut calls = [0; 3].map(|_| Box::pin(cache.try_get_with(8, fail(&gate))));
        assert!(calls.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
        gate.store(true, SeqCst);
        for call in &mut calls {
            assert!(matches!(flag.poll(call.as_mut()), Poll::Ready(Err(e)) if *e == "no"));
        }
        assert_eq!(cache.stats().load_failures, 1);
        assert_eq!(poll_once(pin!(cache.get_with(8, ready(1)))), Poll::Ready(1));
    });
}

#[test]
fn a_panic_without_a_slot_reaches_all_callers_and_the_key_is_usable() {
    while_pinned(|cache| {
        let gate = Arc::new(AtomicBool::new(false));
        let shout = |gate: &Arc<AtomicBool>| {
            let gate = gate.clone();
            poll_fn(move |_| if gate.load(SeqCst) { panic!("ouch") } else { Poll::Pending })
        };
        let mut calls = [0; 2].map(|_| Box::pin(cache.get_with(8, shout(&gate))));
        assert!(calls.iter_mut().all(|c| poll_once(c.as_mut()).is_pending()));
        gate.store(true, SeqCst);
        for call in &mut calls {
            let said = catch_unwind(AssertUnwindSafe(|| poll_once(call.as_mut()))).unwrap_err();
            assert!(said.downcast_ref::<&str>().map_or_else(
                || said.downcast_ref::<String>().is_some_and(|s| s == "ouch"),
                |s| *s == "ouch"
            ));
        }
        drop(calls);
        assert_eq!(poll_once(pin!(cache.get_with(8, ready(1)))), Poll::Ready(1));
    });
}

#[test]
fn whoever_comes_after_a_write_gets_no_load_without_a_slot_from_before() {
    let writes: [fn(&Loads); 5] = [
        |cache| assert!(!cache.invalidate(&8), "it is no entry"),
        |cache| assert_eq!(cache.remove(&8), None),
        |cache| cache.insert(8, 80),
        |cache| cache.invalidate_all(),
        |cache| assert!(cache.entry(8).and_upsert_with(|_| 80).is_bypassed()),
    ];
    for write in writes {
        while_pinned(|cache| {
            let (flag, old, new) = (Flag::new(), Arc::default(), Arc::default());
            let runs = Arc::default();
            let mut before = pin!(cache.get_with(8, gated(&old, &runs, 1)));
            let mut joined = pin!(cache.get_with(8, gated(&old, &runs, 2)));
            assert!(flag.poll(before.as_mut()).is_pending());
            assert!(flag.poll(joined.as_mut()).is_pending());
            write(cache);
            let mut after = pin!(cache.get_with(8, gated(&new, &runs, 3)));
            assert!(flag.poll(after.as_mut()).is_pending());
            assert_eq!(runs.load(SeqCst), 2, "one more run");
            old.store(true, SeqCst);
            assert_eq!(flag.poll(before), Poll::Ready(1));
            assert_eq!(flag.poll(joined), Poll::Ready(1));
            // The end of the old one is not the end of the new one.
            let mut late = pin!(cache.get_with(8, gated(&new, &runs, 4)));
            assert!(flag.poll(late.as_mut()).is_pending());
            new.store(true, SeqCst);
            assert_eq!(flag.poll(after), Poll::Ready(3));
            assert_eq!(flag.poll(late), Poll::Ready(3));
            assert_eq!(runs.load(SeqCst), 2);
        });
    }
}

#[test]
fn a_load_without_a_slot_is_joined_when_there_are_slots_again() {
    let other = Loads::new(1);
    let pin = other.pin();
    let cache = without_slots(|k| k, || 0);
    let (flag, gate, runs) = (Flag::new(), Arc::default(), Arc::default());
    let mut first = pin!(cache.get_with(8, gated(&gate, &runs, 1)));
    assert!(flag.poll(first.as_mut()).is_pending());
    drop(pin);
    refill(&cache);
    let mut second = pin!(cache.get_with(8, gated(&gate, &runs, 2)));
    assert!(flag.poll(second.as_mut()).is_pending());
    gate.store(true, SeqCst);
    assert_eq!((flag.poll(first), flag.poll(second)), (Poll::Ready(1), Poll::Ready(1)));
    assert_eq!(runs.load(SeqCst), 1);
    // Now one that is stored.
    assert_eq!(poll_once(pin!(cache.get_with(8, ready(3)))), Poll::Ready(3));
    assert_eq!(cache.get(&8), Some(3));
}

#[test]
fn an_insert_during_a_load_without_a_slot_stays() {
    let other = Loads::new(1);
    let pin = other.pin();
    let cache = without_slots(|k| k, || 0);
    let (gate, runs) = (Arc::default(), Arc::default());
    let mut load = pin!(cache.get_with(8, gated(&gate, &runs, 1)));
    assert!(poll_once(load.as_mut()).is_pending());
    drop(pin);
    refill(&cache);
    cache.insert(8, 80);
    gate.store(true, SeqCst);
    assert_eq!(poll_once(load), Poll::Ready(1));
    assert_eq!(cache.get(&8), Some(80));
}

/// All keys have one tag here, and so one bin, which holds fifteen, and one berth.
#[test]
fn of_the_loads_that_a_full_bin_refuses_one_key_is_shared() {
    let cache: Cache<u64, u64, Collide> =
        Cache::builder().max_capacity(64).build_with_hasher(Collide);
    let flag = Flag::new();
    let mut in_bin: Vec<_> = (0..15).map(|k| Box::pin(cache.get_with(k, pending()))).collect();
    assert!(in_bin.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
    let (gate, runs) = (Arc::default(), Arc::default());
    let mut shared = [100, 100, 100].map(|k| Box::pin(cache.get_with(k, gated(&gate, &runs, k))));
    assert!(shared.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
    assert_eq!(runs.load(SeqCst), 1);
    let mut alone = [101, 101].map(|k| Box::pin(cache.get_with(k, gated(&gate, &runs, k))));
    assert!(alone.iter_mut().all(|c| flag.poll(c.as_mut()).is_pending()));
    assert_eq!(runs.load(SeqCst), 3, "another key has the berth");
    gate.store(true, SeqCst);
    assert!(shared.iter_mut().all(|c| flag.poll(c.as_mut()) == Poll::Ready(100)));
    assert!(alone.iter_mut().all(|c| flag.poll(c.as_mut()) == Poll::Ready(101)));
}

#[test]
fn keys_and_values_without_a_slot_are_dropped_once() {
    let (keys, values, tally) = (Tally::default(), Tally::default(), Tally::default());
    #[derive(Clone)]
    struct Key(u64, #[expect(dead_code, reason = "counted")] Arc<Counted<()>>);
    impl PartialEq for Key {
        fn eq(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }
    impl Eq for Key {}
    impl std::hash::Hash for Key {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.0.hash(state);
        }
    }
    let other = Loads::new(1);
    let pin = other.pin();
    let key = |k| Key(k, Arc::new(Counted::new((), &keys)));
    let cache = without_slots(key, || Counted::new(0, &tally));
    let before = keys.alive();
    let mut calls: Vec<_> = (0..10)
        .map(|i| Box::pin(cache.get_with(key(i % 3), async { Counted::new(7, &values) })))
        .collect();
    let mut stuck = Box::pin(cache.get_with(key(9), pending()));
    assert!(poll_once(stuck.as_mut()).is_pending());
    assert_eq!(keys.alive(), before + 11);
    for call in &mut calls {
        assert!(matches!(poll_once(call.as_mut()), Poll::Ready(v) if v.inner == 7));
    }
    drop(calls);
    assert_eq!((keys.alive(), values.alive()), (before + 1, 0));
    drop(stuck);
    assert_eq!(keys.alive(), before);
    // Forgotten, not dropped: the key goes with the cache.
    let mut forgotten = Box::pin(cache.get_with(key(9), pending()));
    assert!(poll_once(forgotten.as_mut()).is_pending());
    std::mem::forget(forgotten);
    drop(pin);
    drop(cache);
    assert_eq!((keys.alive(), tally.alive()), (0, 0));
}

/// Hashes small numbers to tags that differ in their lower bits: no two compete for a berth.
#[derive(Clone, Copy, Default)]
struct Apart;

impl std::hash::BuildHasher for Apart {
    type Hasher = ApartHasher;

    fn build_hasher(&self) -> ApartHasher {
        ApartHasher(0)
    }
}

struct ApartHasher(u64);

impl std::hash::Hasher for ApartHasher {
    fn write(&mut self, _: &[u8]) {
        unreachable!("numbers only")
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn finish(&self) -> u64 {
        // The cache multiplies by the inverse of this, and takes the upper half.
        let tag = self.0.wrapping_mul(0x9E37_79B1) & 0xFFFF_FFFF;
        (tag << 32).wrapping_mul(0xF1DE_83E1_9937_733D)
    }
}

/// Threads load few keys while slots come and go: every load of a key at any one time is one of its kind.
#[test]
fn threads_whose_slots_come_and_go_never_run_two_loads_of_a_key() {
    const ROUNDS: usize = if cfg!(miri) { 10 } else { 3_000 };
    let builder = Cache::builder().max_capacity(64).reserve(16);
    let cache: Cache<u64, u64, Apart> = builder.build_with_hasher(Apart);
    let running: [AtomicUsize; 4] = Default::default();
    let meeting = common::Meeting::new(5);
    std::thread::scope(|s| {
        for thread in 0..4_u64 {
            let (cache, running, meeting) = (&cache, &running, &meeting);
            s.spawn(move || {
                let seat = meeting.seat();
                seat.wait();
                for round in 0..ROUNDS {
                    let key = (round as u64 + thread) % 4;
                    let load = async {
                        let now = running[key as usize].fetch_add(1, SeqCst);
                        assert_eq!(now, 0, "two loads of {key} at once");
                        std::thread::yield_now();
                        running[key as usize].fetch_sub(1, SeqCst);
                        key
                    };
                    assert_eq!(smol::block_on(cache.get_with(key, load)), key);
                }
            });
        }
        // Others' churn under a pin uses the slots up, and lets them come back. It evicts, which ends no load
        // early, but does not touch the keys: an invalidated load and its successor may run at once.
        let seat = meeting.seat();
        seat.wait();
        for round in 0..ROUNDS / 10 {
            let _pin = cache.pin();
            for i in 0..100 {
                cache.insert(100 + (round as u64 * 100 + i) % 1000, i);
            }
        }
    });
    assert!(cache.stats().refused > 0);
}
