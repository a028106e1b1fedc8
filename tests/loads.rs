//! `get_with` and `try_get_with`, beyond the lines of their contract (`lines_loads.rs`).

mod common;

use std::future::{Future, pending, poll_fn, ready};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use alru::{Cache, ManualTime};
use common::sources::{Source, load_around};
use common::{Counted, Flag, Tally, poll_once};

const SECOND: Duration = Duration::from_secs(1);

type Loads = Cache<u64, u64>;

// ---- One run ----------------------------------------------------------------------------------

/// One of a hundred callers of a cold key. The loader ends once all of them have begun.
async fn one_of_a_hundred(cache: Loads, begun: Arc<AtomicUsize>, runs: Arc<AtomicUsize>) {
    begun.fetch_add(1, SeqCst);
    let load = async {
        runs.fetch_add(1, SeqCst);
        poll_fn(|cx| {
            if begun.load(SeqCst) == 100 {
                return Poll::Ready(());
            }
            // A turn for the others, on any runtime.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        64
    };
    assert_eq!(cache.get_with(8, load).await, 64);
}

/// All of them, each a task.
async fn a_hundred_run_the_loader_once<T: Future>(
    spawn: impl Fn(std::pin::Pin<Box<dyn Future<Output = ()> + Send>>) -> T,
) {
    let (cache, begun, runs) = (Loads::new(100), Arc::default(), Arc::<AtomicUsize>::default());
    let callers: Vec<_> = (0..100)
        .map(|_| spawn(Box::pin(one_of_a_hundred(cache.clone(), Arc::clone(&begun), runs.clone()))))
        .collect();
    for caller in callers {
        caller.await;
    }
    assert_eq!(runs.load(SeqCst), 1);
    assert_eq!(cache.get(&8), Some(64));
    assert_eq!(cache.stats().loads, 1);
}

async fn a_hundred_on_tokio() {
    a_hundred_run_the_loader_once(|caller| {
        let task = tokio::spawn(caller);
        async { task.await.expect("no panic") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_callers_on_many_threads_run_the_loader_once() {
    a_hundred_on_tokio().await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_hundred_callers_on_one_thread_run_the_loader_once() {
    a_hundred_on_tokio().await;
}

#[test]
fn a_hundred_callers_on_smol_run_the_loader_once() {
    smol::block_on(a_hundred_run_the_loader_once(smol::spawn));
}

#[test]
fn a_hit_answers_at_the_first_poll_and_runs_no_loader() {
    let cache = Loads::new(8);
    cache.insert(1, 10);
    let call = pin!(cache.get_with(1, async { unreachable!("there is a value") }));
    assert_eq!(poll_once(call), Poll::Ready(10));
}

#[test]
fn a_loader_that_is_ready_answers_at_the_first_poll_and_is_stored() {
    let cache = Loads::new(8);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(10)))), Poll::Ready(10));
    assert_eq!(cache.get(&1), Some(10));
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.load_failures, stats.insertions), (1, 0, 1));
}

#[test]
fn loads_of_different_keys_do_not_wait_for_each_other() {
    let cache = Loads::new(8);
    let mut stuck = pin!(cache.get_with(1, pending()));
    assert!(poll_once(stuck.as_mut()).is_pending());
    assert_eq!(poll_once(pin!(cache.get_with(2, ready(20)))), Poll::Ready(20));
}

#[test]
fn a_pending_entry_is_no_value_yet() {
    let cache = Loads::new(8);
    let mut call = pin!(cache.get_with(1, pending()));
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.peek(&1), None);
    assert!(cache.pin().get(&1).is_none());
    assert_eq!(cache.remove(&1), None);
}

#[test]
fn a_call_that_is_never_polled_does_nothing() {
    let cache = Loads::new(8);
    let source = Source::default();
    drop(cache.get_with(1, source.load(1)));
    assert_eq!((source.begun(), cache.entry_count(), cache.stats().loads), (0, 0, 0));
}

// ---- Waking -----------------------------------------------------------------------------------

#[test]
fn every_waiter_is_woken_by_the_end_of_the_load() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    assert!(poll_once(leader.as_mut()).is_pending());
    let mut waiters: Vec<_> = (2..22)
        .map(|value| (Flag::new(), Box::pin(cache.get_with(1, source.load(value)))))
        .collect();
    for (flag, waiter) in &mut waiters {
        assert!(flag.poll(waiter.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    for (flag, waiter) in &mut waiters {
        assert!(flag.take(), "not woken");
        assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
    }
    assert_eq!(source.begun(), 1);
}

// ---- Writes during a load ---------------------------------------------------------------------

#[test]
fn an_evicted_load_runs_on_for_its_callers() {
    let cache = Loads::new(2);
    load_around(&cache, || (10..1_000).for_each(|key| cache.insert(key, key)));
    assert!(cache.entry_count() <= 2);
}

// ---- Time -------------------------------------------------------------------------------------

#[test]
fn the_ttl_of_a_loaded_value_counts_from_the_end_of_the_load() {
    let time = ManualTime::new();
    let cache: Loads =
        Cache::builder().max_capacity(8).time_to_live(SECOND).time_source(time.clone()).build();
    let source = Source::default();
    let mut call = pin!(cache.get_with(1, source.load(1)));
    assert!(poll_once(call.as_mut()).is_pending());
    time.advance(SECOND * 10);
    source.open();
    assert_eq!(poll_once(call.as_mut()), Poll::Ready(1));
    time.advance(Duration::from_millis(999));
    assert_eq!(cache.get(&1), Some(1));
    time.advance(Duration::from_millis(1));
    assert_eq!(cache.get(&1), None);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(2)))), Poll::Ready(2));
}

#[test]
fn a_load_is_shared_under_a_ttl_of_zero_too() {
    let cache: Loads = Cache::builder()
        .max_capacity(8)
        .time_to_live(Duration::ZERO)
        .time_source(ManualTime::new())
        .build();
    load_around(&cache, || {});
    assert_eq!(cache.get(&1), None);
}

// ---- The end ----------------------------------------------------------------------------------

#[test]
fn a_call_keeps_working_when_the_other_handles_are_gone() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(8);
    let source = Source::default();
    let mut call = {
        let (cache, load) = (cache.clone(), source.load(Counted::new(1, &tally)));
        Box::pin(async move { cache.get_with(1, load).await.inner })
    };
    assert!(poll_once(call.as_mut()).is_pending());
    drop(cache);
    source.open();
    assert_eq!(poll_once(call.as_mut()), Poll::Ready(1));
    drop(call);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn a_value_that_was_loaded_and_not_collected_is_dropped_with_its_callers() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(Counted::new(1, &tally))));
    let mut waiter = Box::pin(cache.get_with(1, source.load(Counted::new(2, &tally))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(waiter.as_mut()).is_pending());
    cache.invalidate(&1);
    source.open();
    assert!(poll_once(leader.as_mut()).is_ready());
    drop(leader);
    drop(waiter);
    cache.run_pending_tasks();
    assert_eq!(tally.alive(), 0);
}
