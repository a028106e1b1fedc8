//! `Cache` on one thread, behaviour by behaviour.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alru::{Cache, CoarseTime, EvictionPolicy, ManualTime, PreciseTime, TimeSource};
use common::{Collide, Counted, Random, Tally, eventually};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn policies() -> [EvictionPolicy; 2] {
    [EvictionPolicy::default(), EvictionPolicy::clock()]
}

/// The keys of `0..keys` that are there.
fn present<S>(cache: &Cache<u64, u64, S>, keys: u64) -> Vec<u64>
where
    S: std::hash::BuildHasher + Send + Sync + 'static,
{
    (0..keys).filter(|key| cache.contains_key(key)).collect()
}

// ---- Building ---------------------------------------------------------------------------------

#[test]
fn a_jitter_without_a_ttl_is_an_error_that_names_both() {
    let error = Cache::<u64, u64>::builder()
        .max_capacity(8)
        .jitter(SECOND)
        .try_build()
        .expect_err("no TTL");
    let text = error.to_string();
    assert!(text.contains("jitter"), "{text}");
    assert!(text.contains("time_to_live"), "{text}");
}

#[test]
#[should_panic(expected = "time_to_live")]
fn build_panics_with_the_message_of_the_error() {
    let _cache: Cache<u64, u64> = Cache::builder().max_capacity(8).jitter(SECOND).build();
}

#[test]
fn a_capacity_beyond_all_memory_is_an_error_that_names_the_setting() {
    let error = Cache::<u64, u64>::builder()
        .max_capacity(u64::MAX)
        .try_build()
        .expect_err("nobody has that much memory");
    assert!(error.to_string().contains("max_capacity"), "{error}");
}

#[test]
fn a_cache_answers_its_name_and_its_capacity() {
    let named: Cache<u64, u64> = Cache::builder().name("pages").max_capacity(7).build();
    assert_eq!(named.name(), Some("pages"));
    assert_eq!(named.max_capacity(), Some(7));
    let unbounded: Cache<u64, u64> = Cache::builder().build();
    assert_eq!(unbounded.name(), None);
    assert_eq!(unbounded.max_capacity(), None);
    assert_eq!(Cache::<u64, u64>::new(9).max_capacity(), Some(9));
}

#[test]
fn a_cache_is_send_and_sync_and_its_handles_share_it() {
    fn thread_safe<T: Send + Sync + Clone + 'static>(_: &T) {}
    let cache: Cache<u64, u64> = Cache::new(8);
    thread_safe(&cache);
    cache.clone().insert(1, 2);
    assert_eq!(cache.get(&1), Some(2));
}

// ---- Reading and writing ----------------------------------------------------------------------

#[test]
fn what_was_inserted_is_found_and_nothing_else() {
    let cache: Cache<u64, u64> = Cache::new(8);
    assert_eq!(cache.get(&1), None);
    cache.insert(1, 10);
    assert_eq!(cache.get(&1), Some(10));
    assert_eq!(cache.peek(&1), Some(10));
    assert!(cache.contains_key(&1));
    assert_eq!(cache.get(&2), None);
    assert_eq!(cache.peek(&2), None);
    assert!(!cache.contains_key(&2));
}

#[test]
fn an_insert_replaces_the_value_and_takes_no_second_place() {
    let cache: Cache<u64, u64> = Cache::new(8);
    for value in 0..100 {
        cache.insert(1, value);
        assert_eq!(cache.get(&1), Some(value));
    }
    assert_eq!(cache.entry_count(), 1);
}

#[test]
fn remove_answers_the_value_once() {
    let cache: Cache<u64, u64> = Cache::new(8);
    cache.insert(1, 10);
    assert_eq!(cache.remove(&1), Some(10));
    assert_eq!(cache.remove(&1), None);
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn invalidate_says_whether_there_was_an_entry() {
    let cache: Cache<u64, u64> = Cache::new(8);
    cache.insert(1, 10);
    assert!(cache.invalidate(&1));
    assert!(!cache.invalidate(&1));
    assert_eq!(cache.get(&1), None);
}

#[test]
fn invalidate_all_leaves_nothing_and_the_cache_usable() {
    let cache: Cache<u64, u64> = Cache::new(1_000);
    for round in 0..10 {
        (0..500).for_each(|key| cache.insert(key, round));
        cache.invalidate_all();
        assert_eq!(present(&cache, 500), []);
        assert_eq!(cache.entry_count(), 0);
    }
    cache.insert(1, 10);
    assert_eq!(cache.get(&1), Some(10));
}

#[test]
fn keys_are_looked_up_by_their_borrowed_forms() {
    let cache: Cache<String, u64> = Cache::new(8);
    cache.insert("a".to_owned(), 1);
    assert_eq!(cache.get("a"), Some(1));
    assert_eq!(cache.peek("a"), Some(1));
    assert!(cache.contains_key("a"));
    assert_eq!(cache.pin().get("a"), Some(&1));
    assert_eq!(cache.remove("a"), Some(1));
    assert!(!cache.invalidate("a"));

    let bytes: Cache<Vec<u8>, u64> = Cache::new(8);
    bytes.insert(vec![1, 2], 3);
    assert_eq!(bytes.get(&[1_u8, 2][..]), Some(3));
}

#[test]
fn a_pin_reads_without_a_clone_and_keeps_what_it_read() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(8);
    cache.insert(1, Counted::new(10, &tally));
    let pin = cache.pin();
    let held = pin.get(&1).expect("just inserted");
    assert_eq!(tally.alive(), 1);
    assert!(pin.contains_key(&1) && !pin.contains_key(&2));

    cache.insert(1, Counted::new(11, &tally));
    cache.remove(&1);
    cache.invalidate_all();
    cache.run_pending_tasks();
    assert_eq!(held.inner, 10);
    assert!(pin.get(&1).is_none());

    drop(pin);
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == 0));
}

#[test]
fn colliding_keys_are_told_apart() {
    let cache: Cache<u64, u64, Collide> =
        Cache::builder().max_capacity(1_000).build_with_hasher(Collide);
    for key in 0..200 {
        cache.insert(key, key + 1);
        assert_eq!(cache.get(&key), Some(key + 1));
    }
    let left = present(&cache, 200);
    assert!(left.len() >= 7, "{} of 200 keys left", left.len());
    for key in left {
        assert_eq!(cache.get(&key), Some(key + 1));
        assert_eq!(cache.remove(&key), Some(key + 1));
        assert!(!cache.contains_key(&key));
    }
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn keys_and_values_of_any_shape_fit() {
    #[derive(Clone, Debug, PartialEq)]
    #[repr(align(128))]
    struct Wide([u64; 40]);

    let units: Cache<(), ()> = Cache::new(4);
    units.insert((), ());
    assert_eq!(units.get(&()), Some(()));
    units.invalidate(&());
    assert_eq!(units.get(&()), None);

    let wide: Cache<u8, Wide> = Cache::new(16);
    for key in 0..64 {
        wide.insert(key, Wide([u64::from(key); 40]));
        let pin = wide.pin();
        let value = pin.get(&key).expect("just inserted");
        assert_eq!(value.0[39], u64::from(key));
        assert_eq!(std::ptr::from_ref(value).addr() % 128, 0);
    }
}

// ---- Counting ---------------------------------------------------------------------------------

#[test]
fn stats_count_gets_and_inserts_but_no_peeks() {
    let cache: Cache<u64, u64> = Cache::new(8);
    cache.insert(1, 10);
    cache.insert(1, 11);
    cache.get(&1);
    cache.get(&1);
    cache.get(&2);
    cache.peek(&1);
    cache.peek(&2);
    assert!(cache.contains_key(&1) && !cache.contains_key(&2));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.insertions), (2, 1, 2));
    assert_eq!((stats.evictions, stats.expirations, stats.refused), (0, 0, 0));
    let text = stats.to_string();
    assert!(text.contains("hits 2") && text.contains("misses 1"), "{text}");
}

#[test]
fn every_insert_is_resident_removed_evicted_or_refused_in_the_stats() {
    for policy in policies() {
        let cache: Cache<u64, u64> =
            Cache::builder().max_capacity(64).eviction_policy(policy).build();
        (0..1_000).for_each(|key| cache.insert(key, key));
        let removed = (0..1_000).filter(|key| key % 7 == 0 && cache.invalidate(key)).count() as u64;
        let stats = cache.stats();
        assert_eq!(stats.insertions, cache.entry_count() + removed + stats.evictions, "{stats}");
        assert_eq!(stats.insertions + stats.refused, 1_000, "{stats}");
        assert_eq!(cache.entry_count(), present(&cache, 1_000).len() as u64);
    }
}

// ---- Capacity ---------------------------------------------------------------------------------

#[test]
fn as_many_keys_as_the_capacity_stay() {
    for policy in policies() {
        for capacity in [1, 2, 3, 7, 8, 64, 1_000, 10_000] {
            let cache: Cache<u64, u64> =
                Cache::builder().max_capacity(capacity).eviction_policy(policy).build();
            (0..capacity).for_each(|key| cache.insert(key, key));
            let kept = present(&cache, capacity).len() as u64;
            let least = if capacity <= 8 { capacity } else { capacity * 98 / 100 };
            assert!(kept >= least, "{kept} of {capacity} under {policy:?}");
        }
    }
}

#[test]
fn a_full_cache_stays_full_and_never_holds_more_than_its_capacity() {
    for policy in policies() {
        for capacity in [1, 2, 3, 7, 8, 64, 1_000] {
            let cache: Cache<u64, u64> =
                Cache::builder().max_capacity(capacity).eviction_policy(policy).build();
            for key in 0..capacity * 20 {
                cache.insert(key, key);
                assert!(cache.entry_count() <= capacity);
                assert_eq!(cache.peek(&key), Some(key), "the newest of {capacity}");
            }
            let kept = present(&cache, capacity * 20).len() as u64;
            assert!(kept <= capacity);
            assert!(kept >= capacity * 95 / 100, "{kept} of {capacity} under {policy:?}");
        }
    }
}

#[test]
fn a_cache_without_room_keeps_nothing() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(0);
    cache.insert(1, Counted::new(10, &tally));
    assert!(cache.get(&1).is_none());
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(cache.stats().refused, 1);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn an_update_of_a_full_cache_evicts_nobody() {
    for policy in policies() {
        let cache: Cache<u64, u64> =
            Cache::builder().max_capacity(8).eviction_policy(policy).build();
        (0..8).for_each(|key| cache.insert(key, key));
        (0..1_000).for_each(|value| cache.insert(value % 8, value));
        assert_eq!(present(&cache, 8).len(), 8);
        assert_eq!(cache.stats().evictions, 0);
    }
}

#[test]
fn an_unbounded_cache_evicts_nobody() {
    let cache: Cache<u64, u64> = Cache::builder().build();
    (0..20_000).for_each(|key| cache.insert(key, key));
    assert_eq!(present(&cache, 20_000).len(), 20_000);
    assert_eq!(cache.entry_count(), 20_000);
}

#[test]
fn plain_clock_spares_what_was_read() {
    let cache: Cache<u64, u64> =
        Cache::builder().max_capacity(256).eviction_policy(EvictionPolicy::clock()).build();
    (0..256).for_each(|key| cache.insert(key, key));
    // Newcomers have their bit set: one round of the hand clears all that are there.
    (1_000..1_064).for_each(|key| cache.insert(key, key));
    let read: Vec<_> = present(&cache, 256).into_iter().step_by(3).collect();
    assert!(read.len() >= 60);
    for key in &read {
        cache.get(key);
    }
    (2_000..2_064).for_each(|key| cache.insert(key, key));
    // A full bin takes its victim where it finds it: a few may go.
    let spared = read.iter().filter(|key| cache.contains_key(key)).count();
    assert!(spared * 100 >= read.len() * 95, "{spared} of {}", read.len());
}

#[test]
fn a_key_in_use_survives_a_scan() {
    for policy in policies() {
        let cache: Cache<u64, u64> =
            Cache::builder().max_capacity(100).eviction_policy(policy).build();
        let hot = 1_000_000;
        let mut misses = 0;
        for key in 0..10_000 {
            if cache.get(&hot).is_none() {
                misses += 1;
                cache.insert(hot, hot);
            }
            cache.insert(key, key);
        }
        assert!(misses <= 10, "{misses} misses of a key read 10,000 times under {policy:?}");
    }
}

#[test]
fn the_default_policy_keeps_what_is_read_again_and_again_through_a_scan_and_plain_clock_need_not() {
    // 50 keys read twice, then 1,000 keys read once, over and over: the ghost pays.
    let ratio = |policy| {
        let cache: Cache<u64, u64> =
            Cache::builder().max_capacity(100).eviction_policy(policy).build();
        let mut cold = 1_000_000;
        for _ in 0..50 {
            for key in (0..50).chain(0..50) {
                if cache.get(&key).is_none() {
                    cache.insert(key, key);
                }
            }
            for _ in 0..1_000 {
                cold += 1;
                cache.insert(cold, cold);
            }
        }
        cache.stats().hits as f64 / 5_000.0
    };
    let (default, clock) = (ratio(EvictionPolicy::default()), ratio(EvictionPolicy::clock()));
    assert!(default > 0.85, "{default} of the reads hit, plain CLOCK {clock}");
    assert!(default > clock);
}

// ---- Time -------------------------------------------------------------------------------------

struct Timed {
    time: ManualTime,
    cache: Cache<u64, u64>,
}

fn timed(ttl: Duration, jitter: Duration) -> Timed {
    let time = ManualTime::new();
    let cache = Cache::builder()
        .max_capacity(10_000)
        .time_to_live(ttl)
        .jitter(jitter)
        .time_source(time.clone())
        .build();
    Timed { time, cache }
}

#[test]
fn an_entry_lives_for_its_ttl_to_the_millisecond() {
    let Timed { time, cache } = timed(SECOND * 10, Duration::ZERO);
    time.advance(Duration::from_millis(123));
    cache.insert(1, 10);
    time.advance(SECOND * 10 - MS);
    assert_eq!(cache.get(&1), Some(10));
    time.advance(MS);
    assert_eq!(cache.get(&1), None);
}

#[test]
fn no_way_of_reading_finds_an_expired_entry() {
    let Timed { time, cache } = timed(SECOND, Duration::ZERO);
    cache.insert(1, 10);
    time.advance(SECOND);
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.peek(&1), None);
    assert!(!cache.contains_key(&1));
    assert!(cache.pin().get(&1).is_none());
    assert!(!cache.pin().contains_key(&1));
    assert_eq!(cache.remove(&1), None);
}

#[test]
fn a_hit_does_not_extend_a_life_and_an_insert_begins_a_new_one() {
    let Timed { time, cache } = timed(SECOND, Duration::ZERO);
    cache.insert(1, 10);
    cache.insert(2, 20);
    for _ in 0..9 {
        time.advance(MS * 100);
        assert_eq!(cache.get(&1), Some(10));
        cache.insert(2, 20);
    }
    time.advance(MS * 100);
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.get(&2), Some(20));
    time.advance(MS * 900);
    assert_eq!(cache.get(&2), None);
}

#[test]
fn a_zero_ttl_is_over_at_once_and_the_longest_never() {
    let Timed { cache, .. } = timed(Duration::ZERO, Duration::ZERO);
    cache.insert(1, 10);
    assert_eq!(cache.get(&1), None);

    let Timed { time, cache } = timed(Duration::MAX, Duration::MAX);
    cache.insert(1, 10);
    time.set(Duration::MAX);
    assert_eq!(cache.get(&1), Some(10));
    cache.insert(2, 20);
    assert_eq!(cache.get(&2), Some(20));
}

#[test]
fn jitter_spreads_the_ends_over_ttl_to_ttl_and_jitter() {
    let Timed { time, cache } = timed(SECOND * 10, SECOND * 2);
    const N: u64 = 1_000;
    (0..N).for_each(|key| cache.insert(key, key));
    let before = cache.stats();
    let alive = || present(&cache, N).len() as u64;
    let all = N - before.evictions - before.refused;
    time.set(SECOND * 10 - MS);
    assert_eq!(alive(), all);
    // Binomial with n = 1,000 and p = 1/2: 8 standard deviations either side.
    time.set(SECOND * 11);
    assert!((374..=626).contains(&alive()), "{} alive at half time", alive());
    time.set(SECOND * 12);
    assert_eq!(alive(), 0);
}

#[test]
fn each_life_of_a_key_draws_its_own_jitter() {
    let mut ends = HashSet::new();
    let Timed { time, cache } = timed(SECOND, SECOND);
    for _ in 0..64 {
        let start = time.now();
        cache.insert(1, 10);
        while cache.contains_key(&1) {
            time.advance(MS * 10);
        }
        ends.insert(time.now() - start);
    }
    assert!(ends.len() > 16, "{} different lives of 64", ends.len());
}

#[test]
fn a_clock_that_jumps_shows_no_wrong_value_and_panics_nowhere() {
    let time = ManualTime::new();
    time.set(SECOND * 1_000);
    let cache: Cache<u64, u64> =
        Cache::builder().max_capacity(100).time_to_live(SECOND).time_source(time.clone()).build();
    let mut random = Random(1);
    for value in 0..10_000 {
        let key = value % 10;
        time.set(MS * random.below(2_000_000) as u32);
        cache.insert(key, value);
        time.set(MS * random.below(2_000_000) as u32);
        let found = cache.get(&key);
        assert!(found.is_none() || found == Some(value));
    }
    time.set(Duration::ZERO);
    cache.run_pending_tasks();
    time.set(Duration::MAX);
    cache.run_pending_tasks();
    assert_eq!(cache.get(&1), None);
}

#[test]
fn expired_entries_make_room_before_live_ones_do() {
    let Timed { time, cache } = timed(SECOND, Duration::ZERO);
    (0..5_000).for_each(|key| cache.insert(key, key));
    time.advance(SECOND);
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
    let stats = cache.stats();
    assert_eq!(stats.expirations + stats.evictions, 5_000, "{stats}");
}

#[test]
fn the_clocks_of_the_crate_serve_a_long_life_and_end_a_zero_one() {
    fn check(source: impl TimeSource + Clone) {
        for (ttl, expected) in [(SECOND * 3_600, Some(10)), (Duration::ZERO, None)] {
            let cache: Cache<u64, u64> = Cache::builder()
                .max_capacity(8)
                .time_to_live(ttl)
                .time_source(source.clone())
                .build();
            cache.insert(1, 10);
            assert_eq!(cache.get(&1), expected);
        }
    }
    check(CoarseTime::new());
    check(PreciseTime::new());
    check(ManualTime::new());
}

#[test]
fn a_clock_that_lags_ends_a_life_to_the_millisecond_by_its_exact_reading() {
    /// Shows whole ticks of 10 ms, and of those the one before the last.
    struct Lagging(ManualTime);
    impl TimeSource for Lagging {
        fn now(&self) -> Duration {
            let ticks = self.0.now().as_millis() as u32 / 10;
            MS * 10 * ticks.saturating_sub(1)
        }

        fn now_exact(&self) -> Duration {
            self.0.now()
        }

        fn resolution(&self) -> Duration {
            MS * 20
        }
    }

    let time = ManualTime::new();
    let cache: Cache<u64, u64> = Cache::builder()
        .max_capacity(8)
        .time_to_live(SECOND)
        .time_source(Lagging(time.clone()))
        .build();
    for written in [3, 17, 20, 29] {
        time.set(MS * written);
        cache.insert(1, 10);
        for at in (written..written + 1_100).filter(|at| at % 100 == 0 || *at > written + 950) {
            time.set(MS * at);
            let expected = (at < written + 1_000).then_some(10);
            assert_eq!(cache.get(&1), expected, "{at} ms, written at {written}");
        }
    }
}

#[test]
fn a_cache_without_a_ttl_reads_no_clock_after_it_is_built() {
    struct Counting(Arc<AtomicU64>);
    impl TimeSource for Counting {
        fn now(&self) -> Duration {
            Duration::from_millis(self.0.fetch_add(1, Ordering::Relaxed))
        }
    }

    let readings = Arc::new(AtomicU64::new(0));
    let cache: Cache<u64, u64> =
        Cache::builder().max_capacity(8).time_source(Counting(readings.clone())).build();
    let built = readings.load(Ordering::Relaxed);
    for key in 0..100 {
        cache.insert(key, key);
        cache.get(&key);
        cache.remove(&(key / 2));
    }
    assert_eq!(readings.load(Ordering::Relaxed), built);
}

// ---- The end of keys and values ---------------------------------------------------------------

type CountedCache = Cache<u64, Counted<u64>>;

#[test]
fn the_last_handle_drops_everything_before_it_is_gone() {
    for capacity in [1, 8, 1_000] {
        let tally = Tally::default();
        let cache: CountedCache = Cache::new(capacity);
        let clone = cache.clone();
        for value in 0..5_000 {
            cache.insert(value % 1_500, Counted::new(value, &tally));
            if value % 3 == 0 {
                cache.remove(&(value % 700));
            }
        }
        drop(cache);
        assert!(tally.alive() > 0, "the other handle keeps the entries");
        drop(clone);
        assert_eq!(tally.alive(), 0);
    }
}

#[test]
fn values_dead_and_not_yet_dropped_stay_within_the_reserve() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::builder().max_capacity(100).reserve(500).build();
    for value in 0..100_000 {
        cache.insert(value, Counted::new(value, &tally));
        assert!(tally.alive() <= 601, "{} alive", tally.alive());
    }
}

#[test]
fn a_refused_insert_leaves_no_older_value_and_all_recovers_when_the_guard_goes() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::builder().max_capacity(10).reserve(20).build();
    cache.insert(1, Counted::new(0, &tally));
    let pin = cache.pin();
    let held = pin.get(&1).expect("just inserted");
    let mut refused = 0;
    for value in 1..1_000 {
        cache.insert(1, Counted::new(value, &tally));
        match cache.peek(&1) {
            Some(found) => assert_eq!(found.inner, value, "an older value"),
            None => refused += 1,
        }
    }
    assert!(refused > 0, "30 slots took 1,000 values under a guard");
    assert_eq!(cache.stats().refused, refused);
    assert!(tally.alive() <= 31, "{} alive", tally.alive());
    assert_eq!(held.inner, 0);
    drop(pin);

    assert!(eventually(
        || cache.run_pending_tasks(),
        || { tally.alive() as u64 == cache.entry_count() }
    ));
    cache.insert(1, Counted::new(1_000, &tally));
    assert_eq!(cache.peek(&1).map(|found| found.inner), Some(1_000));
}

#[test]
fn retain_asks_about_each_live_entry_once_and_removes_what_is_refused() {
    let time = ManualTime::new();
    let cache: Cache<u64, u64> = Cache::builder()
        .max_capacity(100)
        .time_to_live(Duration::from_secs(10))
        .time_source(time.clone())
        .build();
    cache.insert(0, 0);
    time.advance(Duration::from_secs(5));
    (1..=50).for_each(|key| cache.insert(key, 10 * key));
    time.advance(Duration::from_secs(5));
    let mut asked = Vec::new();
    cache.retain(|&key, &value| {
        assert_eq!(value, 10 * key);
        asked.push(key);
        key % 3 == 0
    });
    asked.sort_unstable();
    assert_eq!(asked, Vec::from_iter(1..=50), "0 has expired");
    assert_eq!((cache.entry_count(), cache.stats().expirations), (16, 1));
    assert!((1..=50).all(|key| cache.get(&key).is_some() == (key % 3 == 0)));
}

#[test]
fn a_closure_of_retain_that_panics_leaves_the_rest() {
    let cache: Cache<u64, u64> = Cache::new(100);
    (0..10).for_each(|key| cache.insert(key, key));
    let mut asked = 0;
    let retain = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        cache.retain(|_, _| {
            asked += 1;
            assert!(asked < 4, "the fourth");
            false
        });
    }));
    assert!(retain.is_err());
    assert_eq!(cache.entry_count(), 7);
    cache.retain(|_, _| false);
    assert_eq!(cache.entry_count(), 0);
}

/// What is not linked yet is its writer's, and may be taken back without a grace period.
#[test]
fn retain_reads_whole_entries_beside_writers_that_lose() {
    let cache: Cache<u64, Vec<u64>> = Cache::builder().max_capacity(8).reserve(64).build();
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for n in 0..20_000 {
                    match n % 3 {
                        0 => cache.insert(n % 16, vec![n % 16; 8]),
                        1 => drop(cache.entry(n % 16).or_insert(vec![n % 16; 8])),
                        _ => drop(cache.remove(&(n % 16))),
                    }
                }
            });
        }
        for turn in 0..2_000 {
            cache.retain(|key, value| {
                assert!(value.len() == 8 && value.iter().all(|v| v == key));
                turn % 2 == 0
            });
        }
    });
}
