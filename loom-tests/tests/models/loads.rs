//! Loads shared by callers, over the public futures.

use alru::{AlruCache, Cache, LoadError};
use alru_loom_tests::{Bell, Value, check, check_shallower};
use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, Ordering::AcqRel};
use loom::thread;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// Room for two: in a cache of one, callers of one key may evict each other.
fn cache() -> Cache<u32, Value> {
    Cache::builder().max_capacity(2).reserve(4).build()
}

/// One poll.
fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(&Bell::new().1))
}

#[test]
fn two_callers_share_one_load() {
    check(|| {
        let cache = cache();
        let runs = Arc::new(AtomicUsize::new(0));
        let call = |cache: &Cache<u32, Value>, runs: &AtomicUsize| {
            block_on(cache.get_with(1, async {
                runs.fetch_add(1, SeqCst);
                Value::new()
            }))
            .read();
        };
        let (other, others_runs) = (cache.clone(), runs.clone());
        let caller = thread::spawn(move || call(&other, &others_runs));
        call(&cache, &runs);
        caller.join().unwrap();
        assert_eq!(runs.load(SeqCst), 1);
        assert_eq!((cache.stats().loads, cache.entry_count()), (1, 1));
        drop(cache);
        Value::all_gone();
    });
}

#[test]
fn a_waiter_leads_when_the_leader_is_dropped() {
    check(|| {
        let cache = cache();
        let mut leader = Box::pin(cache.get_with(1, pending()));
        assert!(poll(&mut leader).is_pending());
        let other = cache.clone();
        let waiter = thread::spawn(move || {
            block_on(other.get_with(1, async { Value::new() })).read();
        });
        drop(leader);
        waiter.join().unwrap();
        assert_eq!(cache.entry_count(), 1);
        drop(cache);
        Value::all_gone();
    });
}

/// An event and the future that waits for it.
#[derive(Default)]
struct Event {
    raised: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Event {
    async fn wait(self: Arc<Self>) -> Value {
        poll_fn(|cx| {
            *self.waker.lock().unwrap() = Some(cx.waker().clone());
            // Read-modify-writes see the newest: the event itself loses nothing.
            if self.raised.fetch_or(false, AcqRel) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        Value::new()
    }

    fn raise(&self) {
        self.raised.fetch_or(true, AcqRel);
        let waker = self.waker.lock().unwrap().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn memo<Fut>(load: impl Fn() -> Fut + Send + Sync + 'static) -> AlruCache<u32, Value>
where
    Fut: Future<Output = Value> + Send + 'static,
{
    AlruCache::builder_infallible(move |_| load()).maxsize(2).build()
}

#[test]
fn an_event_that_a_shared_load_waits_for_is_not_lost() {
    check_shallower(|| {
        let event = Arc::new(Event::default());
        let waited = event.clone();
        let memo = memo(move || waited.clone().wait());
        let mut first = Box::pin(memo.call(1));
        assert!(poll(&mut first).is_pending());
        let other = memo.clone();
        let raiser = thread::spawn(move || event.raise());
        let caller = thread::spawn(move || block_on(other.call(1)).unwrap().read());
        block_on(&mut first).unwrap().read();
        drop(first);
        caller.join().unwrap();
        raiser.join().unwrap();
        let info = memo.cache_info();
        assert_eq!((info.hits, info.misses), (1, 1));
        drop(memo);
        Value::all_gone();
    });
}

#[test]
fn a_load_that_nobody_waits_for_is_dropped() {
    check(|| {
        let memo = memo(|| {
            let held = Value::new();
            poll_fn(move |_| {
                held.read();
                Poll::Pending
            })
        });
        let mut first = Box::pin(memo.call(1));
        assert!(poll(&mut first).is_pending());
        let other = memo.clone();
        let caller = thread::spawn(move || assert!(poll(other.call(1)).is_pending()));
        drop(first);
        caller.join().unwrap();
        Value::all_gone();
        assert_eq!((memo.cache_parameters().tasks, memo.cache_info().currsize), (0, 0));
    });
}

#[test]
fn closing_ends_a_load_that_begins_meanwhile() {
    check(|| {
        let memo = memo(pending);
        let other = memo.clone();
        let caller = thread::spawn(move || {
            let ended: Result<_, LoadError<Infallible>> = block_on(other.call(1));
            assert!(matches!(ended, Err(LoadError::Closed)));
        });
        let _ = memo.cache_close(false);
        caller.join().unwrap();
        assert_eq!((memo.cache_parameters().tasks, memo.cache_info().currsize), (0, 0));
    });
}
