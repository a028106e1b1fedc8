//! What is dropped when, exactly. One test, alone in its process: all caches of a process share one
//! epoch, and a pin of another test's would hold up what this one counts.

mod common;

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;

use alru::Cache;
use common::{Counted, Tally};

type CountedCache = Cache<u64, Counted<u64>>;

#[test]
fn with_no_guard_held_one_call_of_run_pending_tasks_leaves_the_residents_alive_and_nothing_else() {
    churn_on_one_thread();
    an_idle_thread_that_used_the_cache();
    a_foreign_epoch_guard();
    a_guard_that_was_held_for_long();
    threads_that_are_gone();
    a_thread_local_that_uses_the_cache_as_its_thread_ends();
    more_threads_than_there_are_ids();
}

fn churn_on_one_thread() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::new(100);
    for value in 0..10_000 {
        cache.insert(value % 300, Counted::new(value, &tally));
    }
    cache.run_pending_tasks();
    assert_eq!(tally.alive() as u64, cache.entry_count());
    cache.invalidate_all();
    cache.run_pending_tasks();
    assert_eq!(tally.alive(), 0);
}

fn an_idle_thread_that_used_the_cache() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::new(100);
    let (used, wait_for_use) = channel();
    let (go, wait_to_go) = channel::<()>();
    let idle = {
        let (cache, tally) = (cache.clone(), tally.clone());
        thread::spawn(move || {
            for value in 0..3_000 {
                cache.insert(value % 200, Counted::new(value, &tally));
                drop(cache.get(&(value % 150)));
                cache.remove(&(value % 50));
            }
            drop(cache);
            used.send(()).expect("the test waits");
            // Alive, with whatever it has in its thread-locals.
            wait_to_go.recv().ok();
        })
    };
    wait_for_use.recv().expect("the thread lives");
    cache.invalidate_all();
    cache.run_pending_tasks();
    assert_eq!(tally.alive(), 0);
    drop(go);
    idle.join().expect("no panic");
}

fn a_foreign_epoch_guard() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::builder().max_capacity(100).reserve(1_000).build();
    let _foreign = crossbeam_epoch::pin();
    for value in 0..100_000 {
        cache.insert(value % 10, Counted::new(value, &tally));
    }
    assert_eq!(cache.stats().refused, 0);
    cache.run_pending_tasks();
    assert_eq!(tally.alive(), 10);
}

fn a_guard_that_was_held_for_long() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::builder().max_capacity(10).reserve(100).build();
    let pin = cache.pin();
    for value in 0..10_000 {
        cache.insert(value % 20, Counted::new(value, &tally));
        assert!(tally.alive() <= 111, "{} alive", tally.alive());
    }
    assert!(cache.stats().refused > 0);
    drop(pin);
    cache.run_pending_tasks();
    assert_eq!(tally.alive() as u64, cache.entry_count());
    // All slots are there again.
    let refused = cache.stats().refused;
    for value in 0..1_000 {
        cache.insert(value % 20, Counted::new(value, &tally));
    }
    assert_eq!(cache.stats().refused, refused);
}

fn threads_that_are_gone() {
    let tally = Tally::default();
    let cache: CountedCache = Cache::new(64);
    let threads: Vec<_> = (0..16)
        .map(|id| {
            let (cache, tally) = (cache.clone(), tally.clone());
            thread::spawn(move || {
                for value in 0..1_000 {
                    cache.insert((value * 7 + id) % 100, Counted::new(value, &tally));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
    cache.run_pending_tasks();
    assert_eq!(tally.alive() as u64, cache.entry_count());
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

fn a_thread_local_that_uses_the_cache_as_its_thread_ends() {
    struct AtTheEnd(CountedCache, Tally);
    impl Drop for AtTheEnd {
        fn drop(&mut self) {
            for value in 0..500 {
                self.0.insert(value % 100, Counted::new(value, &self.1));
                drop(self.0.get(&(value % 70)));
                self.0.remove(&(value % 30));
            }
        }
    }
    thread_local! {
        static LATE: std::cell::RefCell<Option<AtTheEnd>> = const { std::cell::RefCell::new(None) };
    }

    let tally = Tally::default();
    let cache: CountedCache = Cache::new(64);
    let thread = {
        let late = AtTheEnd(cache.clone(), tally.clone());
        thread::spawn(move || {
            // Registered before the cache's own thread-locals, so destroyed after them.
            LATE.set(Some(late));
            LATE.with_borrow(|late| {
                let late = late.as_ref().expect("just set");
                late.0.insert(1, Counted::new(1, &late.1));
            });
        })
    };
    thread.join().expect("no panic");
    cache.run_pending_tasks();
    assert_eq!(tally.alive() as u64, cache.entry_count());
    assert!(cache.entry_count() > 0);
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

/// Threads beyond the ids have no cell to name what they read, no trail and no magazine.
fn more_threads_than_there_are_ids() {
    const THREADS: u64 = 300;
    let tally = Tally::default();
    let cache: CountedCache = Cache::new(64);
    let all_are_here = Barrier::new(THREADS as usize);
    thread::scope(|s| {
        for id in 0..THREADS {
            let (cache, tally, all_are_here) = (&cache, &tally, &all_are_here);
            s.spawn(move || {
                // Each has an id now that can have one.
                drop(cache.get(&id));
                all_are_here.wait();
                for value in 0..200 {
                    cache.insert((value + id) % 100, Counted::new(value, tally));
                    // Counted: a clone of a dropped one panics.
                    drop(cache.get(&((value * 7 + id) % 100)));
                    cache.remove(&((value * 3 + id) % 100));
                }
            });
        }
    });
    cache.run_pending_tasks();
    assert_eq!(tally.alive() as u64, cache.entry_count());
    drop(cache);
    assert_eq!(tally.alive(), 0);
}
