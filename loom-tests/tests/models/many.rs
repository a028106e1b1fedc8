//! Bulk loads, over the public futures.

use alru::Cache;
use alru_loom_tests::{Bell, Value, check, check_shallower};
use loom::future::block_on;
use loom::thread;
use std::collections::HashMap;
use std::future::{Future, pending, poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};

/// Room for both keys and one more.
fn cache() -> Cache<u32, Value> {
    Cache::builder().max_capacity(3).reserve(4).build()
}

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(&Bell::new().1))
}

fn values(keys: Vec<u32>) -> Vec<(u32, Value)> {
    keys.into_iter().map(|key| (key, Value::new())).collect()
}

fn read(all: HashMap<u32, Value>, keys: usize) {
    assert_eq!(all.len(), keys);
    all.values().for_each(Value::read);
}

/// A bulk load that has been polled once. It counts the keys that it loads.
fn begun(
    cache: &Cache<u32, Value>,
    keys: [u32; 2],
    loaded: &Arc<AtomicUsize>,
) -> Pin<Box<impl Future<Output = HashMap<u32, Value>> + Send + use<>>> {
    let (cache, loaded) = (cache.clone(), loaded.clone());
    let mut is_first = true;
    let mut bulk = Box::pin(async move {
        let load = |missing: Vec<u32>| {
            loaded.fetch_add(missing.len(), SeqCst);
            // The first call has a turn to wait for: its key is under way, with a leader.
            let mut waits = std::mem::take(&mut is_first);
            let mut missing = Some(missing);
            poll_fn(move |cx| {
                if std::mem::take(&mut waits) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(values(missing.take().unwrap()))
            })
        };
        cache.get_many(keys, load).await
    });
    assert!(poll(&mut bulk).is_pending());
    bulk
}

#[test]
fn of_two_bulk_loads_that_wait_for_each_other_none_sleeps_and_each_key_is_loaded_once() {
    check(|| {
        let cache = cache();
        let loaded = Arc::new(AtomicUsize::new(0));
        let mut third = Box::pin(cache.get_with(3, pending()));
        assert!(poll(&mut third).is_pending());
        // The first leads 1, the second waits for it, and both wait for 3: if the second gets it, the first waits
        // for the second.
        let first = begun(&cache, [1, 3], &loaded);
        let second = begun(&cache, [3, 1], &loaded);
        let caller = thread::spawn(move || read(block_on(second), 2));
        drop(third);
        read(block_on(first), 2);
        caller.join().unwrap();
        assert_eq!(loaded.load(SeqCst), 2);
        assert_eq!((cache.entry_count(), cache.stats().loads), (2, 2));
        drop(cache);
        Value::all_gone();
    });
}

#[test]
fn a_caller_takes_over_what_a_dropped_bulk_load_had() {
    check_shallower(|| {
        let cache = cache();
        let mut bulk = Box::pin(cache.get_many([1, 2], |_| pending::<Vec<_>>()));
        assert!(poll(&mut bulk).is_pending());
        let other = cache.clone();
        let caller = thread::spawn(move || {
            read(block_on(other.get_many([2, 1], |missing| ready(values(missing)))), 2);
        });
        drop(bulk);
        caller.join().unwrap();
        assert_eq!(cache.entry_count(), 2);
        drop(cache);
        Value::all_gone();
    });
}

#[test]
fn a_key_left_out_is_loaded_by_who_waits_for_it() {
    check(|| {
        let cache = cache();
        let mut is_first = true;
        let mut bulk = Box::pin(cache.get_many([1], |_| {
            poll_fn(move |cx| {
                if std::mem::take(&mut is_first) {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Poll::Ready(Vec::new())
            })
        }));
        assert!(poll(&mut bulk).is_pending());
        let other = cache.clone();
        let caller =
            thread::spawn(move || block_on(other.get_with(1, async { Value::new() })).read());
        assert!(matches!(poll(&mut bulk), Poll::Ready(all) if all.is_empty()));
        drop(bulk);
        caller.join().unwrap();
        assert_eq!(cache.entry_count(), 1);
        drop(cache);
        Value::all_gone();
    });
}

/// A load of a key that is under way and ends at its next poll.
fn under_way(
    cache: &Cache<u32, Value>,
    key: u32,
) -> Pin<Box<impl Future<Output = Value> + Send + use<>>> {
    let cache = cache.clone();
    let mut is_first = true;
    let turns = poll_fn(move |_| {
        if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(Value::new()) }
    });
    let mut load = Box::pin(async move { cache.get_with(key, turns).await });
    assert!(poll(&mut load).is_pending());
    load
}

#[test]
fn the_end_of_a_load_is_heard_while_another_is_looked_at() {
    check(|| {
        let cache = cache();
        let (first, second) = (under_way(&cache, 1), under_way(&cache, 2));
        let mut bulk = Box::pin(cache.get_many([1, 2], |_| ready(Vec::new())));
        let (bell, waker) = Bell::new();
        let mut cx = Context::from_waker(&waker);
        assert!(bulk.as_mut().poll(&mut cx).is_pending());
        assert!(poll(first).is_ready());
        assert!(bell.rang());
        bell.reset();
        let ender = thread::spawn(move || assert!(poll(second).is_ready()));
        let polled = bulk.as_mut().poll(&mut cx);
        ender.join().unwrap();
        let all = match polled {
            Poll::Ready(all) => all,
            Poll::Pending => {
                assert!(bell.rang(), "asleep for ever");
                let Poll::Ready(all) = bulk.as_mut().poll(&mut cx) else {
                    panic!("both have ended")
                };
                all
            }
        };
        read(all, 2);
        drop(bulk);
        drop(cache);
        Value::all_gone();
    });
}
