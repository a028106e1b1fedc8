//! Bugs that were there once, each named for what went wrong.

use alru::{AlruCache, Cache};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

/// A look-up validated a slot, a replacement then ended its life, and the look-up took the key for absent.
#[test]
fn a_key_that_is_replaced_all_the_time_is_never_absent() {
    let cache: Cache<u64, u64> = Cache::new(64);
    cache.insert(7, 0);
    let done = AtomicBool::new(false);
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(cache.get(&7).is_some());
                    assert!(cache.contains_key(&7));
                    assert!(cache.pin().get(&7).is_some());
                }
            });
        }
        for value in 0..100_000 {
            cache.insert(7, value);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(cache.stats().refused, 0);
}

/// A full group evicted from an unbounded index that had just grown and was nearly empty.
#[test]
fn an_unbounded_cache_of_a_few_thousand_entries_loses_none() {
    for round in 0..50u64 {
        let cache: Cache<u64, u64> = Cache::builder().build();
        (0..5_000).for_each(|i| cache.insert(round << 32 | i, i));
        assert_eq!(cache.entry_count(), 5_000);
        assert!((0..5_000).all(|i| cache.get(&(round << 32 | i)) == Some(i)));
    }
}

/// The waker of a load outlives the cache, and is woken then.
#[test]
fn a_waker_that_outlives_the_cache_wakes_nobody_and_breaks_nothing() {
    let kept: Arc<Mutex<Option<Waker>>> = Arc::default();
    let polls = Arc::new(AtomicU64::new(0));
    let cache: AlruCache<u32, u32, ()> = {
        let (kept, polls) = (kept.clone(), polls.clone());
        AlruCache::builder(move |_| {
            let (kept, polls) = (kept.clone(), polls.clone());
            std::future::poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                *kept.lock().unwrap() = Some(cx.waker().clone());
                Poll::<Result<u32, ()>>::Pending
            })
        })
        .build()
    };
    {
        let mut call = pin!(cache.call(1));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        assert_eq!(cache.cache_parameters().tasks, 1);
    }
    assert_eq!(cache.cache_parameters().tasks, 0, "the last waiter took the load with it");
    drop(cache);
    let waker = kept.lock().unwrap().take().expect("polled once");
    waker.wake();
    assert_eq!(polls.load(Ordering::Relaxed), 1);
}
