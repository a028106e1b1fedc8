//! `get_with` and `try_get_with`: one load for all callers, under every kind of trouble.

mod common;

use std::cell::Cell;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use alru::{Cache, ManualTime};
use common::{Counted, Flag, Tally, poll_once};

const SECOND: Duration = Duration::from_secs(1);

type Loads = Cache<u64, u64>;

/// Loaders that count their runs and ends, and end when they are let.
#[derive(Clone, Default)]
struct Source(Arc<Counts>);

#[derive(Default)]
struct Counts {
    begun: AtomicUsize,
    gone: AtomicUsize,
    open: AtomicUsize,
}

impl Source {
    /// A loader of `result`.
    fn load<T>(&self, result: T) -> impl Future<Output = T> + use<T> {
        struct Gone(Source);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.0.gone.fetch_add(1, SeqCst);
            }
        }
        let source = self.clone();
        async move {
            source.0.begun.fetch_add(1, SeqCst);
            let gone = Gone(source);
            poll_fn(|_| match gone.0.0.open.load(SeqCst) {
                0 => Poll::Pending,
                _ => Poll::Ready(()),
            })
            .await;
            result
        }
    }

    /// Lets the loaders end at their next poll.
    fn open(&self) {
        self.0.open.store(1, SeqCst);
    }

    /// Loaders polled for the first time.
    fn begun(&self) -> usize {
        self.0.begun.load(SeqCst)
    }

    /// Loaders that were begun and ended or were dropped.
    fn gone(&self) -> usize {
        self.0.gone.load(SeqCst)
    }
}

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
fn a_load_is_shared_across_runtimes_and_outlives_the_one_that_began_it() {
    let cache = Loads::new(8);
    let source = Source::default();

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let (begun, begun_here) = tokio::sync::oneshot::channel();
    let leader = {
        let (cache, load) = (cache.clone(), source.load(1));
        async move {
            let load = async {
                begun.send(()).expect("the test waits");
                load.await
            };
            cache.get_with(1, load).await
        }
    };
    runtime.spawn(leader);
    begun_here.blocking_recv().expect("the leader began");

    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
    assert!(flag.poll(waiter.as_mut()).is_pending(), "it joined");
    drop(runtime);
    assert!(flag.take(), "woken by the end of the runtime");
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(2));
    assert_eq!(source.gone(), 1);
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
fn the_loader_may_borrow_and_need_not_be_send() {
    let cache: Cache<u64, usize> = Cache::new(8);
    let text = String::from("borrowed");
    let borrowed: &str = &text;
    let seen = Rc::new(Cell::new(0));
    let load = {
        let seen = seen.clone();
        async move {
            seen.set(seen.get() + 1);
            borrowed.len()
        }
    };
    assert_eq!(poll_once(pin!(cache.get_with(1, load))), Poll::Ready(8));
    assert_eq!(seen.get(), 1);
}

#[test]
fn the_future_of_a_small_load_is_small() {
    let cache = Loads::new(8);
    let infallible = cache.get_with(1, ready(1));
    assert!(size_of_val(&infallible) < 256, "{} bytes", size_of_val(&infallible));
    let fallible = cache.try_get_with(1, ready(Ok::<_, ()>(1)));
    assert!(size_of_val(&fallible) < 256, "{} bytes", size_of_val(&fallible));
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

#[test]
fn a_waiter_that_is_not_polled_again_holds_nobody_up() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut idle = Box::pin(cache.get_with(1, source.load(2)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(idle.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert!(flag.take());
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
}

#[test]
fn a_waiter_whose_waker_changes_is_woken_by_the_last_one() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut waiter = Box::pin(cache.get_with(1, source.load(2)));
    assert!(poll_once(leader.as_mut()).is_pending());
    let flags: Vec<_> = (0..5).map(|_| Flag::new()).collect();
    for flag in &flags {
        assert!(flag.poll(waiter.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert!(flags[4].take());
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(1));
}

// ---- Cancellation -----------------------------------------------------------------------------

#[test]
fn when_the_leader_is_dropped_a_waiter_leads_with_its_own_loader() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();

    drop(leader);
    assert!(flag.take(), "not woken");
    assert_eq!((source.begun(), source.gone()), (1, 1));
    assert!(flag.poll(waiter.as_mut()).is_pending());
    assert_eq!(source.begun(), 2);
    source.open();
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(2));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn a_successor_that_is_never_polled_holds_up_neither_waiters_nor_newcomers() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut idle = Box::pin(cache.get_with(1, source.load(2)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(idle.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();

    drop(leader);
    assert!(flag.take(), "not woken");
    let newcomer = pin!(cache.get_with(1, source.load(4)));
    assert_eq!(poll_once(newcomer), Poll::Ready(4));
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(4));
    assert_eq!(poll_once(idle.as_mut()), Poll::Ready(4));
}

#[test]
fn a_thousand_leaders_dropped_in_a_row_leave_the_patient_waiter_its_value() {
    let cache = Loads::new(8);
    let stuck = Source::default();
    let (flag, mut patient) = (Flag::new(), Box::pin(cache.get_with(1, ready(7))));
    let mut leader = Box::pin(cache.get_with(1, stuck.load(0)));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(patient.as_mut()).is_pending());
    for value in 1..1_000 {
        // A new caller joins, the leader goes, and the new caller leads before the patient one
        // is polled.
        let mut next = Box::pin(cache.get_with(1, stuck.load(value)));
        assert!(poll_once(next.as_mut()).is_pending());
        drop(std::mem::replace(&mut leader, next));
        assert!(poll_once(leader.as_mut()).is_pending());
        assert_eq!(stuck.begun() as u64, value + 1);
        assert!(flag.poll(patient.as_mut()).is_pending());
    }
    flag.take();
    drop(leader);
    assert!(flag.take(), "not woken");
    assert_eq!(flag.poll(patient.as_mut()), Poll::Ready(7));
}

#[test]
fn when_all_callers_leave_the_load_is_dropped_and_the_key_is_free_again() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut leader = Box::pin(cache.get_with(1, source.load(1)));
    let mut waiter = Box::pin(cache.get_with(1, source.load(2)));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(waiter.as_mut()).is_pending());
    drop(waiter);
    drop(leader);
    assert_eq!((source.begun(), source.gone()), (1, 1));
    assert_eq!(cache.entry_count(), 0);
    assert!(!cache.contains_key(&1));
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
}

#[test]
fn abandoned_loads_leave_nothing_behind() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(8);
    for key in 0..20_000 {
        let held = Counted::new(key, &tally);
        let mut call = Box::pin(cache.get_with(key % 100, async {
            pending::<()>().await;
            held
        }));
        assert!(poll_once(call.as_mut()).is_pending());
        drop(call);
        assert_eq!(tally.alive(), 0);
    }
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.evictions, stats.refused), (20_000, 0, 0), "{stats}");
}

// ---- Errors and panics ------------------------------------------------------------------------

#[test]
fn an_error_reaches_every_caller_of_its_run_and_is_not_kept() {
    let cache = Loads::new(8);
    let source = Source::default();
    let fail = || Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("broken"))));
    let mut callers: Vec<_> = (0..20).map(|_| (Flag::new(), fail())).collect();
    for (flag, caller) in &mut callers {
        assert!(flag.poll(caller.as_mut()).is_pending());
        flag.take();
    }
    source.open();
    let (_, mut leader) = callers.remove(0);
    let Poll::Ready(Err(error)) = poll_once(leader.as_mut()) else {
        panic!("the loader fails");
    };
    for (flag, mut caller) in callers {
        assert!(flag.take(), "not woken");
        match flag.poll(caller.as_mut()) {
            Poll::Ready(Err(other)) => assert!(Arc::ptr_eq(&error, &other)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(source.begun(), 1);
    assert_eq!(cache.stats().load_failures, 1);

    assert_eq!(cache.entry_count(), 0);
    let retry = pin!(cache.try_get_with(1, ready(Ok::<_, &str>(2))));
    assert_eq!(poll_once(retry), Poll::Ready(Ok(2)));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn callers_with_another_error_type_share_the_run_and_its_value() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut first = pin!(cache.try_get_with(1, source.load(Ok::<u64, &str>(1))));
    let mut second = pin!(cache.try_get_with(1, source.load(Ok::<u64, u8>(2))));
    let mut third = pin!(cache.get_with(1, source.load(3)));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    assert!(poll_once(third.as_mut()).is_pending());
    source.open();
    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Ok(1)));
    assert_eq!(poll_once(second.as_mut()), Poll::Ready(Ok(1)));
    assert_eq!(poll_once(third.as_mut()), Poll::Ready(1));
    assert_eq!(source.begun(), 1);
}

#[test]
fn who_cannot_take_the_error_of_a_run_runs_its_own_loader_afterwards() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut first = pin!(cache.try_get_with(1, source.load(Err::<u64, _>("broken"))));
    let (flag, mut other) =
        (Flag::new(), Box::pin(cache.try_get_with(1, source.load(Err::<u64, u8>(9)))));
    let (infallible_flag, mut infallible) =
        (Flag::new(), Box::pin(cache.get_with(1, source.load(3))));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(flag.poll(other.as_mut()).is_pending());
    assert!(infallible_flag.poll(infallible.as_mut()).is_pending());
    assert_eq!(source.begun(), 1);
    source.open();
    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Err(Arc::new("broken"))));
    assert!(flag.take() && infallible_flag.take(), "not woken");
    assert_eq!(flag.poll(other.as_mut()), Poll::Ready(Err(Arc::new(9))));
    assert_eq!(infallible_flag.poll(infallible.as_mut()), Poll::Ready(3));
    assert_eq!(source.begun(), 3);
}

#[test]
fn a_panic_reaches_the_caller_that_polled_and_the_key_is_usable_afterwards() {
    let cache = Loads::new(8);
    let source = Source::default();
    let load = async {
        source.load(()).await;
        panic!("the loader panics")
    };
    let mut leader = Box::pin(cache.get_with(1, load));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    source.open();
    let panicked = catch_unwind(AssertUnwindSafe(|| poll_once(leader.as_mut())));
    let payload = panicked.expect_err("the panic passes through");
    assert_eq!(payload.downcast_ref(), Some(&"the loader panics"));
    drop(leader);

    // The waiter ends, one way or the other.
    assert!(flag.take(), "not woken");
    let ended = catch_unwind(AssertUnwindSafe(|| flag.poll(waiter.as_mut())));
    assert!(!matches!(ended, Ok(Poll::Pending)), "the waiter hangs");
    drop(waiter);
    cache.invalidate(&1);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
    assert_eq!(cache.get(&1), Some(3));
    assert_eq!(cache.stats().load_failures, 1);
}

// ---- Writes during a load ---------------------------------------------------------------------

/// Starts a load, does `write`, lets the load end: its callers get its value, whatever the write
/// was.
fn load_around(cache: &Loads, write: impl FnOnce()) {
    let source = Source::default();
    let mut leader = pin!(cache.get_with(1, source.load(1)));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, source.load(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    write();
    source.open();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(1));
    assert_eq!(source.begun(), 1);
}

#[test]
fn the_result_of_an_invalidated_load_is_not_stored() {
    let cache = Loads::new(8);
    load_around(&cache, || assert!(cache.invalidate(&1)));
    assert_eq!(cache.get(&1), None);
    load_around(&cache, || assert_eq!(cache.remove(&1), None));
    assert_eq!(cache.get(&1), None);
    load_around(&cache, || cache.invalidate_all());
    assert_eq!(cache.get(&1), None);
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn a_caller_after_an_invalidation_gets_a_load_that_began_after_it() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut old = pin!(cache.get_with(1, source.load(1)));
    assert!(poll_once(old.as_mut()).is_pending());
    cache.invalidate(&1);
    let mut new = pin!(cache.get_with(1, source.load(2)));
    assert!(poll_once(new.as_mut()).is_pending());
    assert_eq!(source.begun(), 2);
    source.open();

    // The old one ends first, and touches its own entry only.
    assert_eq!(poll_once(old.as_mut()), Poll::Ready(1));
    assert_eq!(cache.get(&1), None);
    assert_eq!(poll_once(new.as_mut()), Poll::Ready(2));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn the_end_of_an_old_load_leaves_a_newer_value_alone() {
    let cache = Loads::new(8);
    let source = Source::default();
    let mut old = Box::pin(cache.try_get_with(1, source.load(Err::<u64, _>("late"))));
    assert!(poll_once(old.as_mut()).is_pending());
    cache.invalidate(&1);
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(2)))), Poll::Ready(2));
    source.open();
    assert!(matches!(poll_once(old.as_mut()), Poll::Ready(Err(_))));
    assert_eq!(cache.get(&1), Some(2));

    let mut dropped = Box::pin(cache.get_with(3, pending()));
    assert!(poll_once(dropped.as_mut()).is_pending());
    cache.insert(3, 30);
    drop(dropped);
    assert_eq!(cache.get(&3), Some(30));
}

#[test]
fn a_value_inserted_during_a_load_stays() {
    let cache = Loads::new(8);
    load_around(&cache, || cache.insert(1, 100));
    assert_eq!(cache.get(&1), Some(100));
}

#[test]
fn an_evicted_load_runs_on_for_its_callers() {
    let cache = Loads::new(2);
    load_around(&cache, || (10..1_000).for_each(|key| cache.insert(key, key)));
    assert!(cache.entry_count() <= 2);
}

#[test]
fn loads_share_a_full_cache_with_what_is_in_it() {
    // More loads than there is room for: all of them end, with their own values.
    let cache = Loads::new(4);
    let source = Source::default();
    let mut calls: Vec<_> =
        (0..100).map(|key| Box::pin(cache.get_with(key, source.load(key + 1)))).collect();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    assert!(cache.entry_count() <= 4);
    source.open();
    for (key, call) in calls.iter_mut().enumerate() {
        assert_eq!(poll_once(call.as_mut()), Poll::Ready(key as u64 + 1));
    }
    assert!(cache.entry_count() <= 4);
}

#[test]
fn a_cache_without_room_loads_for_every_caller() {
    let cache = Loads::new(0);
    for value in 0..3 {
        let call = pin!(cache.get_with(1, ready(value)));
        assert_eq!(poll_once(call), Poll::Ready(value));
    }
    assert_eq!(cache.get(&1), None);
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
