//! Line 21 of the contract: a million inserts and invalidations leave memory flat, with a long time to live too.
//! Alone in its process, because it counts all that is allocated.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Duration;

use alru::{Cache, ManualTime};

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

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size() as i64, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size() as i64, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A million keys in and out; unbounded, so that each slot, and each link of the wheel, that was in use is memory
/// of its own. The clock goes on meanwhile.
fn churn(cache: &Cache<u64, Box<[u8; 100]>>, time: &ManualTime) {
    let mut most = 0;
    let mut before = 0;
    for key in 0..1_100_000_u64 {
        cache.insert(key, Box::new([7; 100]));
        assert!(cache.invalidate(&key));
        if key % 16 == 0 {
            time.advance(Duration::from_millis(1));
        }
        if key == 100_000 {
            // What is kept for reuse, and what waits for a grace period, is there after some.
            before = IN_USE.load(SeqCst);
        }
        if key > 100_000 {
            most = most.max(IN_USE.load(SeqCst) - before);
        }
    }
    // A leak of one byte a round is more than that; batches in limbo are less.
    assert!(most < 768 * 1024, "{most} bytes in a million rounds");
}

#[test]
fn line21_a_million_inserts_and_invalidations_leave_memory_flat() {
    let time = ManualTime::new();
    churn(&Cache::builder().time_source(time.clone()).build(), &time);
    let hour = Cache::builder().time_to_live(Duration::from_secs(3_600));
    churn(&hour.time_source(time.clone()).build(), &time);
    // Shorter than the churn takes: what was invalidated is on the wheel when its time comes.
    let second = Cache::builder().time_to_live(Duration::from_secs(1));
    churn(&second.time_source(time.clone()).build(), &time);
}
