//! Line 10 of the contract of loads, its second half: a million abandoned loads leave memory flat. Alone in its
//! process, because it counts all that is allocated.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::future::{Future, pending};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use alru::{AlruCache, Cache};
use common::poll_once;

/// The system's allocator, and how many bytes of it are in use.
struct Counting;

static IN_USE: AtomicI64 = AtomicI64::new(0);

// SAFETY: each call is passed on as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as i64, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as i64, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Rounds of callers that wait and leave; `rounds` of them, after some, leave no more bytes in use than there were.
fn stays_flat(rounds: u64, round: impl Fn(u64)) {
    // What is kept for reuse, and what waits for a grace period, is there after some.
    let warm = 100_000;
    (0..warm).for_each(&round);
    let before = IN_USE.load(SeqCst);
    (warm..warm + rounds).for_each(&round);
    let grown = IN_USE.load(SeqCst) - before;
    // A leak of one byte a round is more than that; a batch that is just being filled is less.
    assert!(grown < 64 * 1024, "{grown} bytes in {rounds} rounds");
}

/// One caller, or three of one load.
fn call_and_leave<F: Future>(round: u64, call: impl Fn() -> F) {
    let mut calls: Vec<_> = (0..1 + round % 2 * 2).map(|_| Box::pin(call())).collect();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    // In either order.
    if round % 4 < 2 {
        calls.reverse();
    }
}

#[test]
fn line10_a_million_loads_whose_callers_all_leave_leave_memory_flat() {
    // Half a million a kind of load, with those that go before the measure.
    let rounds = 400_000;
    let cache: Cache<u64, u64> = Cache::new(64);
    stays_flat(rounds, |n| call_and_leave(n, || cache.get_with(n % 100, pending())));
    assert_eq!(cache.entry_count(), 0);

    let memo: AlruCache<u64, u64> =
        AlruCache::builder_infallible(|_| pending()).maxsize(64).build();
    stays_flat(rounds, |n| call_and_leave(n, || memo.call(n % 100)));
    assert_eq!((memo.cache_info().currsize, memo.cache_parameters().tasks), (0, 0));
}
