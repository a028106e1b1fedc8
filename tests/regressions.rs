//! Bugs that were there once, each named for what went wrong.

use alru::{AlruCache, Cache, TimeSource};
use std::cell::RefCell;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::thread;
use std::time::Duration;

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

/// A clock that panics once, when it is told to.
struct Clock(Arc<AtomicBool>);

impl TimeSource for Clock {
    fn now(&self) -> Duration {
        assert!(!self.0.swap(false, Ordering::Relaxed), "the clock");
        Duration::from_secs(1)
    }

    fn now_exact(&self) -> Duration {
        Duration::from_secs(1)
    }
}

/// The draft was linked already when the clock's panic withdrew it: the next look-up read a freed key.
#[test]
fn a_clock_that_panics_as_an_entry_is_replaced_leaves_the_new_one() {
    let panics = Arc::new(AtomicBool::new(false));
    let cache: Cache<String, String> = Cache::builder()
        .max_capacity(100)
        .time_to_live(Duration::from_secs(60))
        .time_source(Clock(panics.clone()))
        .build();
    cache.insert("key".to_owned(), "old".to_owned());
    panics.store(true, Ordering::Relaxed);
    let insert = || cache.insert("key".to_owned(), "new".to_owned());
    assert!(catch_unwind(AssertUnwindSafe(insert)).is_err());
    assert_eq!(cache.get("key").as_deref(), Some("new"));
    assert_eq!(cache.entry_count(), 1);
}

thread_local! {
    /// Runs in the next comparison of two keys.
    static IN_EQ: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

/// A key whose comparison calls back. All hash alike.
#[derive(Clone)]
struct Nosy(u32);

impl Hash for Nosy {
    fn hash<H: Hasher>(&self, state: &mut H) {
        0.hash(state);
    }
}

impl PartialEq for Nosy {
    fn eq(&self, other: &Self) -> bool {
        let hook = IN_EQ.take();
        if let Some(hook) = hook {
            hook();
        }
        self.0 == other.0
    }
}

impl Eq for Nosy {}

/// A closer entered a flight whose slot lost the race for its key, and waited for it for ever.
#[test]
fn a_close_that_waits_does_not_wait_for_a_flight_that_came_to_nothing() {
    type Closing = Option<Pin<Box<dyn Future<Output = ()> + Send>>>;
    let mut cx = Context::from_waker(Waker::noop());
    // At each comparison that the call makes, another caller takes its key and a closer comes.
    for comparison in 0..4 {
        let cache: AlruCache<Nosy, u32> =
            AlruCache::builder_infallible(|key: Nosy| async move { key.0 }).build();
        assert!(pin!(cache.call(Nosy(1))).as_mut().poll(&mut cx).is_ready());
        let closing: Arc<Mutex<Closing>> = Arc::default();
        let hook = {
            let (cache, closing) = (cache.clone(), closing.clone());
            move || {
                let mut cx = Context::from_waker(Waker::noop());
                let _ = pin!(cache.call(Nosy(2))).as_mut().poll(&mut cx);
                *closing.lock().unwrap() = Some(Box::pin(cache.cache_close(true)));
            }
        };
        IN_EQ.set(Some(after(comparison, hook)));
        let _ = pin!(cache.call(Nosy(2))).as_mut().poll(&mut cx);
        IN_EQ.set(None);
        let Some(mut closing) = closing.lock().unwrap().take() else { continue };
        assert!(closing.as_mut().poll(&mut cx).is_ready(), "comparison {comparison}");
        assert_eq!(cache.cache_parameters().tasks, 0);
    }
}

/// Lets `n` comparisons pass, then runs `hook`.
fn after(n: u32, hook: impl FnOnce() + 'static) -> Box<dyn FnOnce()> {
    Box::new(move || match n {
        0 => hook(),
        _ => IN_EQ.set(Some(after(n - 1, hook))),
    })
}

/// What one thread removed waited for that thread to insert.
#[test]
fn a_thread_that_only_removes_keeps_no_values_alive() {
    struct Live(Arc<AtomicU64>);
    impl Drop for Live {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let live = Arc::new(AtomicU64::new(0));
    let cache: Cache<u64, Arc<Live>> = Cache::builder().build();
    let (send, receive) = channel();
    let mut most = 0;
    thread::scope(|s| {
        let cache = &cache;
        s.spawn(move || {
            while let Ok((key, done)) = receive.recv() {
                assert!(cache.invalidate(&key));
                let done: Sender<()> = done;
                done.send(()).unwrap();
            }
        });
        for key in 0..50_000 {
            live.fetch_add(1, Ordering::Relaxed);
            cache.insert(key, Arc::new(Live(live.clone())));
            let (done, wait) = channel();
            send.send((key, done)).unwrap();
            wait.recv().unwrap();
            most = most.max(live.load(Ordering::Relaxed));
        }
        drop(send);
    });
    assert!(most < 20_000, "{most} of 50,000 values alive at once, and one resident");
}

/// A waker whose Clone panics left its node's cell locked, and whoever adopted the node was never woken.
#[test]
fn a_waker_that_panics_in_clone_costs_nobody_else_a_wake_up() {
    static ARMED: AtomicBool = AtomicBool::new(false);
    fn clone(data: *const ()) -> RawWaker {
        assert!(!ARMED.swap(false, Ordering::Relaxed), "the waker's Clone");
        RawWaker::new(data, &TOUCHY)
    }
    static TOUCHY: RawWakerVTable = RawWakerVTable::new(clone, |_| (), |_| (), |_| ());
    struct Count(AtomicU64);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let cache: Cache<u32, u32> = Cache::new(8);
    let open = AtomicBool::new(false);
    let gate = || {
        std::future::poll_fn(|_| match open.load(Ordering::Relaxed) {
            true => Poll::Ready(7),
            false => Poll::Pending,
        })
    };
    let mut cx = Context::from_waker(Waker::noop());
    let mut leader = pin!(cache.get_with(1, gate()));
    assert!(leader.as_mut().poll(&mut cx).is_pending());
    {
        // SAFETY: the functions of the table ignore the data pointer.
        let touchy = unsafe { Waker::from_raw(RawWaker::new(std::ptr::null(), &TOUCHY)) };
        let mut waiter = pin!(cache.get_with(1, gate()));
        ARMED.store(true, Ordering::Relaxed);
        let poll = || waiter.as_mut().poll(&mut Context::from_waker(&touchy)).is_ready();
        assert!(catch_unwind(AssertUnwindSafe(poll)).is_err());
    }
    let woken = Arc::new(Count(AtomicU64::new(0)));
    let waker = Waker::from(woken.clone());
    let mut waiter = pin!(cache.get_with(1, gate()));
    assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    open.store(true, Ordering::Relaxed);
    assert_eq!(leader.as_mut().poll(&mut cx), Poll::Ready(7));
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
}

/// Equal hashes doubled an unbounded index until it was nearly empty, in one insert.
#[test]
fn many_equal_hashes_in_an_unbounded_cache_are_an_eviction_not_a_growth() {
    let cache: Cache<Nosy, u32> = Cache::builder().build();
    (0..100).for_each(|n| cache.insert(Nosy(n), n));
    assert_eq!(cache.entry_count(), 15, "what one bin and its overflow hold");
    assert_eq!(cache.get(&Nosy(99)), Some(99));
    assert_eq!(cache.stats().evictions, 85);
}
