//! The timer wheel: what has expired is cleared away, in small steps, by writes, on request and by sweepers.
//! On manual time: steps are counted, not milliseconds.

mod common;

use alru::{Cache, ManualTime, TimeSource};
use common::{Counted, Flag, Random, Tally, eventually};
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3_600);

/// Slots that one write settles at most, and one step of a sweeper.
const SHARE: u64 = 16;
const STEP: u64 = 64;

fn timed<V>(capacity: Option<u64>, ttl: Duration) -> (ManualTime, Cache<u64, V>)
where
    V: Clone + Send + Sync + 'static,
{
    let time = ManualTime::new();
    let mut builder = Cache::builder().time_to_live(ttl).time_source(time.clone());
    if let Some(capacity) = capacity {
        builder = builder.max_capacity(capacity);
    }
    (time, builder.build())
}

/// A sweeper's timer that a test holds: what it was last set to.
#[derive(Clone, Default)]
struct Timer(Rc<RefCell<Option<Duration>>>);

impl Timer {
    /// A sleep that ends when the clock has gone that far.
    fn on(
        &self,
        time: &ManualTime,
    ) -> impl FnMut(Duration) -> Pin<Box<dyn Future<Output = ()>>> + use<> {
        let (set, time) = (self.0.clone(), time.clone());
        move |span| {
            *set.borrow_mut() = Some(span);
            let (time, end) = (time.clone(), time.now() + span);
            Box::pin(poll_fn(move |_| match time.now() >= end {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }))
        }
    }

    fn set_to(&self) -> Duration {
        self.0.borrow().expect("it sleeps")
    }
}

/// Polls a sweeper until it sleeps; answers how many steps it took.
fn run<F: Future<Output = ()>>(mut sweeper: Pin<&mut F>) -> usize {
    let flag = Flag::new();
    (1..)
        .find(|_| {
            assert!(flag.poll(sweeper.as_mut()).is_pending(), "the cache is there");
            !flag.take()
        })
        .unwrap()
}

#[test]
fn run_pending_tasks_clears_away_exactly_what_has_expired() {
    for seed in 0..20 {
        let mut random = Random(seed);
        let bits = random.below(20);
        let ttl = MS * (1 + random.below(1 << bits)) as u32;
        let bounded = (seed % 2 == 0).then_some(100_000);
        let (time, cache) = timed::<u64>(bounded, ttl);
        let mut ends = HashMap::new();
        for _ in 0..2_000 {
            let key = random.below(300);
            match random.below(10) {
                0..6 => {
                    cache.insert(key, key);
                    ends.insert(key, time.now() + ttl);
                }
                6 => {
                    cache.invalidate(&key);
                    ends.remove(&key);
                }
                7 | 8 => time.advance(MS * random.below(1 + ttl.as_millis() as u64 / 8) as u32),
                _ => {
                    cache.run_pending_tasks();
                    ends.retain(|_, end| *end > time.now());
                    assert_eq!(cache.entry_count(), ends.len() as u64, "seed {seed}");
                }
            }
        }
        ends.retain(|_, end| *end > time.now());
        for key in 0..300 {
            assert_eq!(cache.get(&key).is_some(), ends.contains_key(&key), "seed {seed}");
        }
    }
}

#[test]
fn entries_with_jitter_are_cleared_away_too() {
    let time = ManualTime::new();
    let cache: Cache<u64, u64> =
        Cache::builder().time_to_live(MS * 10).jitter(HOUR).time_source(time.clone()).build();
    for round in 0..20 {
        (0..100).for_each(|key| cache.insert(key, round));
        (0..100).filter(|key| key % 3 == 0).for_each(|key| assert!(cache.invalidate(&key)));
        time.advance(HOUR / 50);
        cache.run_pending_tasks();
        let live = (0..100).filter(|key| cache.get(key).is_some()).count() as u64;
        assert_eq!(cache.entry_count(), live);
    }
    assert!(cache.stats().expirations > 0);
}

#[test]
fn line21_a_million_inserts_and_invalidations_use_the_same_slots_over_and_over() {
    // `wheel_memory.rs` counts the bytes.
    let (time, cache) = timed::<u64>(Some(64), HOUR);
    for key in 0..1_000_000 {
        cache.insert(key, key);
        assert!(cache.invalidate(&key));
    }
    // Nothing is left on the wheel that is worth a step: what there is to sweep at the end are the slots.
    time.advance(HOUR * 2);
    let timer = Timer::default();
    let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
    let steps = run(sweeper.as_mut());
    assert!(steps < 5_000, "{steps} steps for what a million entries left");
    assert_eq!((cache.entry_count(), cache.stats().expirations), (0, 0));
}

#[test]
fn line22_an_idle_cache_with_a_sweeper_is_empty_within_a_tick() {
    let tally = Tally::default();
    let (time, cache) = timed(Some(20_000), MS * 100);
    let timer = Timer::default();
    let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
    run(sweeper.as_mut());
    (0..10_000).for_each(|key| cache.insert(key, Counted::new(key, &tally)));
    while time.now() < MS * 100 {
        assert_eq!(cache.entry_count(), 10_000, "nothing goes before its time");
        time.advance(timer.set_to());
        run(sweeper.as_mut());
    }
    assert!(time.now() <= MS * 116, "a tick is 16 ms: {:?}", time.now());
    assert_eq!((cache.entry_count(), cache.stats().expirations), (0, 10_000));
    // Other tests of this process may be pinned now; alone, the values are gone at this very point.
    let sweeper = RefCell::new(sweeper);
    let again = || {
        time.advance(timer.set_to());
        run(sweeper.borrow_mut().as_mut());
    };
    assert!(eventually(again, || tally.alive() == 0), "{} values are left", tally.alive());
}

#[test]
fn line23_of_500_000_entries_that_expire_at_once_no_step_takes_more_than_its_share() {
    let entries = 500_000;
    let (time, cache) = timed(Some(entries), HOUR);
    (0..entries).for_each(|key| cache.insert(key, key));
    let full = cache.entry_count();
    assert!(full >= entries * 98 / 100);
    time.advance(HOUR);

    // Writes do a share each. The first come to the coarse buckets, and file anew what they find.
    let mut count = full;
    for key in 0..20_000 {
        cache.insert(entries + key % 10, key);
        let now = cache.entry_count();
        assert!(count.saturating_sub(now) <= SHARE, "{count} to {now} by one insert");
        count = now;
    }
    assert!(count < full - 20_000 * SHARE / 2, "{count} are left");

    // A removal too.
    for _ in 0..100 {
        cache.insert(1, 1);
        let before = cache.entry_count();
        assert_eq!(cache.remove(&1), Some(1));
        assert!(before - cache.entry_count() <= SHARE + 1);
    }

    // A sweeper does the rest, in steps.
    let timer = Timer::default();
    let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
    let flag = Flag::new();
    count = cache.entry_count();
    loop {
        assert!(flag.poll(sweeper.as_mut()).is_pending());
        let now = cache.entry_count();
        assert!(count - now <= STEP, "{count} to {now} by one step");
        count = now;
        if !flag.take() {
            break;
        }
    }
    assert!(count <= 10, "{count} are left");
}

#[test]
fn a_write_after_a_silence_of_any_length_finds_what_has_expired() {
    for silence in [MS * 10, MS * 300, MS * 66_000, HOUR * 24, HOUR * 24 * 365] {
        let (time, cache) = timed(None, MS * 10);
        (0..1_000).for_each(|key| cache.insert(key, key));
        time.advance(silence);
        (0..200).for_each(|_| cache.insert(0, 0));
        assert_eq!(cache.entry_count(), 1, "after {silence:?}");
        assert_eq!(cache.stats().expirations, 1_000, "after {silence:?}");
    }
}

#[test]
fn a_long_life_is_swept_at_its_end_and_not_before() {
    for ttl in [MS, MS * 255, MS * 256, MS * 257, MS * 65_535, MS * 65_536, MS * 70_000, HOUR] {
        let (time, cache) = timed(None, ttl);
        let timer = Timer::default();
        let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
        time.advance(MS * 77);
        let end = time.now() + ttl;
        cache.insert(1, 1);
        run(sweeper.as_mut());
        let mut wakes = 0;
        while cache.entry_count() == 1 {
            assert!(time.now() < end + MS * 16, "{ttl:?}");
            time.advance(timer.set_to());
            run(sweeper.as_mut());
            wakes += 1;
        }
        assert!(time.now() >= end, "{ttl:?}");
        assert!(wakes as u128 <= ttl.as_millis() / 900 + 8, "{wakes} wakes for {ttl:?}");
    }
}

#[test]
fn lives_without_an_end_and_without_a_beginning() {
    let (time, cache) = timed(Some(100), Duration::MAX);
    (0..50).for_each(|key| cache.insert(key, key));
    time.set(Duration::MAX);
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 50);

    let (_, cache) = timed(Some(100), Duration::ZERO);
    (0..50).for_each(|key| {
        cache.insert(key, key);
        assert_eq!(cache.get(&key), None);
    });
    cache.run_pending_tasks();
    assert_eq!((cache.entry_count(), cache.stats().expirations), (0, 50));
}

#[test]
fn a_clock_that_goes_back_makes_nothing_stay_for_ever() {
    let (time, cache) = timed(None, MS * 50);
    time.set(HOUR * 5);
    (0..100).for_each(|key| cache.insert(key, key));
    cache.run_pending_tasks();
    time.set(MS);
    (100..200).for_each(|key| cache.insert(key, key));
    time.advance(MS * 50);
    cache.run_pending_tasks();
    assert!((100..200).all(|key| cache.get(&key).is_none()));
    assert_eq!(cache.entry_count(), 100, "those of the later hour");
    time.set(HOUR * 5 + MS * 50);
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn loads_are_swept_as_inserts_are() {
    let (time, cache) = timed(Some(1_000), MS * 20);
    for key in 0..100 {
        let mut load = pin!(cache.get_with(key, std::future::ready(key)));
        assert_eq!(common::poll_once(load.as_mut()), Poll::Ready(key));
    }
    time.advance(MS * 20);
    cache.run_pending_tasks();
    assert_eq!((cache.entry_count(), cache.stats().expirations), (0, 100));
}

#[test]
fn a_sweeper_ends_after_the_last_handle_and_keeps_nothing_alive() {
    let tally = Tally::default();
    let (time, cache) = timed(Some(100), HOUR);
    let timer = Timer::default();
    let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
    cache.insert(1, Counted::new(1, &tally));
    run(sweeper.as_mut());
    drop(cache.clone());
    time.advance(timer.set_to());
    run(sweeper.as_mut());
    assert!(timer.set_to() <= MS * 1_000, "it looks once a second");
    drop(cache);
    assert_eq!(tally.alive(), 0, "a sweeper that sleeps holds no handle");
    time.advance(timer.set_to());
    assert_eq!(common::poll_once(sweeper.as_mut()), Poll::Ready(()));
}

#[test]
fn a_sweeper_drops_what_was_removed_without_a_time_to_live() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(100);
    (0..10).for_each(|key| cache.insert(key, Counted::new(key, &tally)));
    cache.invalidate_all();
    let time = ManualTime::new();
    let timer = Timer::default();
    let sweeper = pin!(cache.sweeper(timer.on(&time)));
    let sweeper = RefCell::new(sweeper);
    let again = || {
        run(sweeper.borrow_mut().as_mut());
        time.advance(timer.set_to());
    };
    assert!(eventually(again, || tally.alive() == 0));
}

#[test]
fn a_thread_that_sweeps_ends_with_the_cache() {
    let (_, cache) = timed::<u64>(Some(100), HOUR);
    cache.insert(1, 1);
    let sweeper = std::thread::spawn(cache.blocking_sweeper());
    drop(cache);
    sweeper.join().unwrap();
}

#[test]
fn a_sweeper_goes_on_after_a_destructor_that_panics() {
    #[derive(Clone)]
    struct Fused(common::Bomb);
    impl Drop for Fused {
        fn drop(&mut self) {
            self.0.go_off();
        }
    }
    let (time, cache) = timed(Some(100), MS * 20);
    let bomb = common::Bomb::default();
    (0..40).for_each(|key| cache.insert(key, Fused(bomb.clone())));
    bomb.arm();
    time.advance(MS * 20);
    let timer = Timer::default();
    let again = || {
        // A future that panicked is over: the user spawns another.
        let mut sweeper = pin!(cache.sweeper(timer.on(&time)));
        let run = std::panic::AssertUnwindSafe(|| run(sweeper.as_mut()));
        let _ = std::panic::catch_unwind(run);
    };
    assert!(eventually(again, || bomb.went_off()));
    again();
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn under_writers_and_sweepers_no_value_is_served_after_its_end_and_each_is_dropped_once() {
    const TTL: u64 = 30;
    let tally = Tally::default();
    let (time, cache) = timed(Some(500), MS * TTL as u32);
    let millis = |time: &ManualTime| time.now().as_millis() as u64;
    // The clock stands still during an insert, so that the test knows what the cache read.
    let clock = RwLock::new(());
    let advance = |by| {
        let _alone = clock.write().unwrap();
        time.advance(by);
    };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|seed| {
                let (cache, time, tally) = (cache.clone(), &time, tally.clone());
                let (clock, advance) = (&clock, &advance);
                scope.spawn(move || {
                    let mut random = Random(seed);
                    for _ in 0..30_000 {
                        let key = random.below(1_000);
                        match random.below(8) {
                            0..3 => {
                                let _still = clock.read().unwrap();
                                cache.insert(key, Counted::new(millis(time), &tally));
                            }
                            3 => drop(cache.remove(&key)),
                            4 if random.below(4) == 0 => advance(MS),
                            5 if random.below(500) == 0 => advance(MS * 400),
                            _ => {
                                let before = millis(time);
                                if let Some(written) = cache.get(&key) {
                                    assert!(written.inner + TTL > before, "served too late");
                                }
                            }
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            let (cache, time, done) = (cache.clone(), time.clone(), &done);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let timer = Timer::default();
                    run(pin!(cache.sweeper(timer.on(&time))));
                }
            });
        }
        let results: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
        done.store(true, SeqCst);
        results.into_iter().for_each(|r| r.unwrap());
    });
    time.advance(MS * TTL as u32);
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == 0));
    assert_eq!(cache.entry_count(), 0);
}
