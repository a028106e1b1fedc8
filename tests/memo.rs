//! `AlruCache`, beyond the lines of its contract (`lines_function_cache.rs`).

mod common;

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use alru::AlruCache;
use common::{Counted, Tally, poll_once};

#[test]
fn a_cached_recursion_over_other_keys_works() {
    let this: Arc<Mutex<Option<AlruCache<u64, u64>>>> = Arc::default();
    let fibonacci: AlruCache<u64, u64> = {
        let this = this.clone();
        AlruCache::builder_infallible(move |n: u64| {
            let this = this.clone();
            async move {
                if n < 2 {
                    return n;
                }
                let this = this.lock().expect("no panic").clone().expect("set below");
                this.call(n - 1).await.expect("no cycle")
                    + this.call(n - 2).await.expect("no cycle")
            }
        })
        .build()
    };
    *this.lock().expect("no panic") = Some(fibonacci.clone());
    let Poll::Ready(Ok(value)) = poll_once(pin!(fibonacci.call(60))) else {
        panic!("nothing waits here");
    };
    *this.lock().expect("no panic") = None;
    assert_eq!(value, 1_548_008_755_920);
    assert_eq!(fibonacci.cache_info().misses, 61);
}

#[test]
fn the_last_handle_drops_everything_and_a_close_keeps_a_handle() {
    let tally = Tally::default();
    let cache: AlruCache<u64, Counted<u64>> = {
        let tally = tally.clone();
        AlruCache::builder_infallible(move |key| std::future::ready(Counted::new(key, &tally)))
            .build()
    };
    for key in 0..300 {
        assert!(
            matches!(poll_once(pin!(cache.call(key))), Poll::Ready(Ok(value)) if value.inner == key)
        );
    }
    let close = cache.cache_close(true);
    drop(cache);
    assert!(tally.alive() > 0);
    drop(close);
    assert_eq!(tally.alive(), 0);
}
