//! Panics at awkward places of a load: nothing is wedged, and nothing aborts.

mod common;

use std::future::{pending, poll_fn, ready};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use alru::{AlruCache, Cache};
use common::{Bomb, Flag, poll_once};

type Loads = Cache<u64, u64>;

/// A waker whose destructor, also that of its clones, sets the first bomb off, and whose wake the second.
fn brittle(at_drop: &Bomb, at_wake: &Bomb) -> Waker {
    type Bombs = (Bomb, Bomb);
    unsafe fn clone(data: *const ()) -> RawWaker {
        // SAFETY: from `Arc::into_raw`, and counted.
        unsafe { Arc::increment_strong_count(data.cast::<Bombs>()) };
        RawWaker::new(data, &TABLE)
    }
    unsafe fn wake(data: *const ()) {
        // SAFETY: as above; a wake by value gives its count back.
        let bombs = unsafe { Arc::from_raw(data.cast::<Bombs>()) };
        bombs.1.go_off();
    }
    unsafe fn wake_by_ref(data: *const ()) {
        // SAFETY: as above, the count stays.
        let bombs = ManuallyDrop::new(unsafe { Arc::from_raw(data.cast::<Bombs>()) });
        bombs.1.go_off();
    }
    unsafe fn drop(data: *const ()) {
        // SAFETY: as above.
        let bombs = unsafe { Arc::from_raw(data.cast::<Bombs>()) };
        bombs.0.go_off();
    }
    static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop);
    let data: *const Bombs = Arc::into_raw(Arc::new((at_drop.clone(), at_wake.clone())));
    // SAFETY: the table's functions expect a counted `Bombs`, and are safe to call on any thread.
    unsafe { Waker::from_raw(RawWaker::new(data.cast(), &TABLE)) }
}

fn panics<R>(f: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(f)).is_err()
}

#[test]
fn a_waker_that_panics_when_dropped_as_its_call_takes_the_lead_does_not_keep_the_lead() {
    let cache = Loads::new(8);
    let mut leader = Box::pin(cache.get_with(1, pending()));
    let mut unlucky = Box::pin(cache.get_with(1, ready(2)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(3))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(unlucky.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    drop(leader);
    assert!(flag.take());

    let bomb = Bomb::default();
    let waker = brittle(&bomb, &Bomb::default());
    bomb.arm();
    assert!(panics(|| unlucky.as_mut().poll(&mut Context::from_waker(&waker))));
    assert!(bomb.went_off(), "at its clone in the flight");
    // Polled again or dropped: it goes on, or gives the lead up.
    drop(unlucky);
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(3));
    assert_eq!(cache.get(&1), Some(3));
}

#[test]
fn a_waker_that_panics_when_dropped_as_its_call_collects_the_result_leaves_the_flight() {
    let cache = Loads::new(8);
    let mut leader = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    let mut unlucky = Box::pin(cache.get_with(1, ready(2)));
    assert!(poll_once(unlucky.as_mut()).is_pending());
    drop(leader);
    let mut leader = Box::pin(cache.get_with(1, ready(4)));
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(4));

    let bomb = Bomb::default();
    let waker = brittle(&bomb, &Bomb::default());
    bomb.arm();
    assert!(panics(|| unlucky.as_mut().poll(&mut Context::from_waker(&waker))));
    assert!(bomb.went_off());
    drop(unlucky);
    assert_eq!(cache.get(&1), Some(4));
    assert!(cache.invalidate(&1));
    assert_eq!(poll_once(Box::pin(cache.get_with(1, ready(5))).as_mut()), Poll::Ready(5));
}

/// A future's part that panics when it is dropped.
struct Grenade(Bomb);

impl Drop for Grenade {
    fn drop(&mut self) {
        self.0.go_off();
    }
}

#[test]
fn a_load_and_a_waker_that_both_panic_as_the_leader_is_dropped_leave_the_lead_to_the_next() {
    let cache = Loads::new(8);
    let bombs: [Bomb; 2] = Default::default();
    let held = Grenade(bombs[0].clone());
    let mut leader = Box::pin(cache.get_with(1, async move {
        pending::<()>().await;
        drop(held);
        1
    }));
    assert!(poll_once(leader.as_mut()).is_pending());
    let mut waiter = Box::pin(cache.get_with(1, ready(2)));
    let waker = brittle(&Bomb::default(), &bombs[1]);
    assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    bombs.iter().for_each(Bomb::arm);
    assert!(panics(|| drop(leader)), "the first panic is passed on");
    assert!(bombs.iter().all(Bomb::went_off));
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(2));
}

#[test]
fn a_shared_load_and_a_waker_that_both_panic_as_the_last_caller_goes_leave_the_key_usable() {
    let bombs: [Bomb; 2] = Default::default();
    let cache: AlruCache<u64, u64> = {
        let bomb = bombs[0].clone();
        AlruCache::builder_infallible(move |key| {
            let held = Grenade(bomb.clone());
            poll_fn(move |_| if held.0.went_off() { Poll::Ready(key) } else { Poll::Pending })
        })
        .build()
    };
    let mut call = Box::pin(cache.call(1));
    let waker = brittle(&bombs[1], &Bomb::default());
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    bombs.iter().for_each(Bomb::arm);
    assert!(panics(|| drop(call)));
    assert!(bombs.iter().all(Bomb::went_off));
    assert_eq!((cache.cache_parameters().tasks, cache.cache_info().currsize), (0, 0));
    assert_eq!(poll_once(Box::pin(cache.call(1)).as_mut()).map(Result::ok), Poll::Ready(Some(1)));
}
