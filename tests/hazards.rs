//! Plain look-ups protect the one value that they read, and nothing else.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use alru::Cache;
use common::{Bomb, Counted, Tally, eventually};

/// A counted value whose Clone does something first.
struct Nosy {
    value: Counted<u64>,
    on_clone: Arc<dyn Fn() + Send + Sync>,
}

impl Nosy {
    fn new(value: u64, tally: &Tally, on_clone: impl Fn() + Send + Sync + 'static) -> Self {
        Self { value: Counted::new(value, tally), on_clone: Arc::new(on_clone) }
    }
}

impl Clone for Nosy {
    fn clone(&self) -> Self {
        (self.on_clone)();
        // Counted: panics if it was dropped meanwhile.
        Self { value: self.value.clone(), on_clone: self.on_clone.clone() }
    }
}

/// Settled, whatever pins of other tests delay.
fn alive_is(cache: &Cache<u64, Nosy>, tally: &Tally, wanted: i64) -> bool {
    eventually(|| cache.run_pending_tasks(), || tally.alive() == wanted)
}

#[test]
fn a_value_outlives_its_removal_by_its_own_clone() {
    let tally = Tally::default();
    let cache: Cache<u64, Nosy> = Cache::new(100);
    let other = cache.clone();
    let alive = tally.clone();
    cache.insert(2, Nosy::new(2, &tally, || ()));
    cache.insert(
        1,
        Nosy::new(1, &tally, move || {
            // A look-up within the look-up must not give up what the outer one protects.
            drop(other.get(&2));
            drop(other.get(&3));
            assert!(other.invalidate(&1));
            (0..10).for_each(|_| other.run_pending_tasks());
            assert!(alive.alive() >= 2, "the value is being read");
        }),
    );
    assert_eq!(cache.get(&1).map(|v| v.value.inner), Some(1));
    assert!(alive_is(&cache, &tally, 1), "the other entry alone");
    // The value's own handle goes with it; nothing is held any more.
    assert!(cache.get(&1).is_none());
}

/// Runs `meanwhile` while a thread is stopped in the clone of key 1 of a cache of a hundred.
fn while_a_reader_is_stopped(meanwhile: impl FnOnce(&Cache<u64, Nosy>, &Tally)) {
    let tally = Tally::default();
    let cache: Cache<u64, Nosy> = Cache::new(100);
    let (arrive, arrived): (Sender<()>, Receiver<()>) = channel();
    let (go, wait) = channel::<()>();
    let wait = Mutex::new(wait);
    let stopper = move || {
        arrive.send(()).expect("the test waits");
        wait.lock().expect("one thread").recv().expect("the test lives");
    };
    cache.insert(1, Nosy::new(1, &tally, stopper));
    (2..=100).for_each(|key| cache.insert(key, Nosy::new(key, &tally, || ())));
    thread::scope(|s| {
        // Goes with a panic of this thread, and lets the reader go.
        let go = go;
        let reader = s.spawn(|| cache.get(&1).map(|v| v.value.inner));
        arrived.recv().expect("the reader reads");
        meanwhile(&cache, &tally);
        go.send(()).expect("the reader waits");
        assert_eq!(reader.join().expect("the reader is well"), Some(1));
    });
    assert!(alive_is(&cache, &tally, 0));
}

#[test]
fn what_a_stopped_reader_reads_lives_on() {
    while_a_reader_is_stopped(|cache, tally| {
        cache.invalidate_all();
        (0..10).for_each(|_| cache.run_pending_tasks());
        assert!(tally.alive() >= 1);
    });
}

/// Where there is no asymmetric barrier, readers are pinned and hold up all.
#[test]
#[cfg(all(target_os = "linux", not(any(alru_epoch_readers, miri))))]
fn a_reader_that_stops_holds_up_one_value() {
    while_a_reader_is_stopped(|cache, tally| {
        for round in 0..50 {
            for key in 1..=100 {
                cache.insert(key, Nosy::new(round, tally, || ()));
            }
        }
        cache.invalidate_all();
        assert!(alive_is(cache, tally, 1), "{} of 5,000 live on", tally.alive());
    });
}

#[test]
fn a_clone_that_panics_protects_nothing_any_more() {
    let (tally, bomb) = (Tally::default(), Bomb::default());
    let cache: Cache<u64, Nosy> = Cache::new(100);
    let clone = bomb.clone();
    cache.insert(1, Nosy::new(1, &tally, move || clone.go_off()));
    bomb.arm();
    assert!(catch_unwind(AssertUnwindSafe(|| cache.get(&1))).is_err());
    assert!(cache.invalidate(&1));
    assert!(alive_is(&cache, &tally, 0));
}

#[test]
fn threads_that_come_and_go_read_whole_values() {
    let tally = Tally::default();
    let cache: Cache<u64, Nosy> = Cache::new(64);
    thread::scope(|s| {
        s.spawn(|| {
            for value in 0..20_000 {
                cache.insert(value % 96, Nosy::new(value, &tally, || ()));
            }
        });
        for _ in 0..40 {
            let readers = [0, 1].map(|_| {
                s.spawn(|| {
                    for key in 0..2_000 {
                        // Counted: a clone of a dropped one panics.
                        drop(cache.get(&(key % 96)));
                    }
                })
            });
            for reader in readers {
                reader.join().expect("no value was dropped under a reader");
            }
        }
    });
    cache.invalidate_all();
    assert!(alive_is(&cache, &tally, 0));
}
