//! `steal_after`: the way out of a leader that is alive and never polled.

mod common;
#[path = "common/event.rs"]
mod event;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use alru::{Cache, Forever};
use common::{Counted, Flag, Tally, poll_once};
use event::Event;

type Loads = Cache<u64, u64>;

/// Timers of one test, in the order in which they were made; each goes off when it is told to.
#[derive(Default)]
struct Timers(RefCell<Vec<Event>>);

impl Timers {
    fn make(&self) -> impl Future<Output = ()> + use<> {
        let timer = Event::default();
        self.0.borrow_mut().push(timer.clone());
        timer.wait()
    }

    fn made(&self) -> usize {
        self.0.borrow().len()
    }

    fn go_off(&self, which: usize) {
        self.0.borrow()[which].raise();
    }
}

/// A leader of `key` that was polled once, and is kept.
fn stuck(cache: &Loads, key: u64) -> Pin<Box<impl Future<Output = u64> + '_>> {
    let mut leader = Box::pin(cache.get_with(key, pending()));
    assert!(poll_once(leader.as_mut()).is_pending());
    leader
}

#[test]
fn a_leader_that_is_never_polled_again_holds_up_nobody_who_steals() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let _leader = stuck(&cache, 1);
    let mut caller = Box::pin(cache.get_with(1, ready(2)).steal_after(|| timers.make()));
    let flag = Flag::new();
    assert!(flag.poll(caller.as_mut()).is_pending());
    assert_eq!(timers.made(), 1);
    timers.go_off(0);
    assert!(flag.take(), "woken by its timer");
    assert_eq!(flag.poll(caller.as_mut()), Poll::Ready(2));
    assert_eq!(cache.get(&1), Some(2));
    assert_eq!(timers.made(), 1);
}

#[test]
fn two_calls_of_one_key_in_one_task_end() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let task = async {
        let mut first = Box::pin(cache.get_with(1, pending()));
        assert!(poll_once(first.as_mut()).is_pending());
        let second =
            cache.try_get_with(1, ready(Ok::<_, u8>(2))).steal_after(|| timers.make()).await;
        drop(first);
        second
    };
    let (flag, mut task) = (Flag::new(), Box::pin(task));
    assert!(flag.poll(task.as_mut()).is_pending());
    timers.go_off(0);
    assert!(flag.take());
    assert_eq!(flag.poll(task.as_mut()), Poll::Ready(Ok(2)));
    assert_eq!(cache.get(&1), Some(2));
}

#[test]
fn of_twenty_that_lose_patience_with_one_leader_one_runs_its_own_load() {
    let (cache, timers, runs, done) =
        (Loads::new(8), Timers::default(), Cell::new(0), Event::default());
    let _leader = stuck(&cache, 1);
    let load = |value| {
        let (runs, done) = (&runs, done.wait());
        async move {
            runs.set(runs.get() + 1);
            done.await;
            value
        }
    };
    let mut callers: Vec<_> = (0..20)
        .map(|i| Box::pin(cache.get_with(1, load(i)).steal_after(|| timers.make())))
        .collect();
    for caller in &mut callers {
        assert!(poll_once(caller.as_mut()).is_pending());
    }
    (0..20).for_each(|i| timers.go_off(i));
    for caller in &mut callers {
        assert!(poll_once(caller.as_mut()).is_pending());
    }
    assert_eq!(runs.get(), 1);
    // All but the new leader wait for the new load, each with a timer of its own.
    assert_eq!(timers.made(), 20 + 19);
    done.raise();
    for caller in &mut callers {
        assert_eq!(poll_once(caller.as_mut()), Poll::Ready(0));
    }
    assert_eq!(runs.get(), 1);
    assert_eq!(cache.get(&1), Some(0));
}

#[test]
fn each_stuck_leader_costs_one_timer() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let mut caller = Box::pin(cache.get_with(1, ready(7)).steal_after(|| timers.make()));
    let mut leaders = vec![stuck(&cache, 1)];
    for i in 0..10 {
        assert!(poll_once(caller.as_mut()).is_pending());
        assert!(poll_once(caller.as_mut()).is_pending());
        assert_eq!(timers.made(), i + 1, "a new timer for a new load, and only then");
        // Another caller takes the load out and gets stuck in its turn.
        cache.invalidate(&1);
        leaders.push(stuck(&cache, 1));
        timers.go_off(i);
    }
    assert!(poll_once(caller.as_mut()).is_pending());
    timers.go_off(10);
    assert_eq!(poll_once(caller.as_mut()), Poll::Ready(7));
    assert_eq!(timers.made(), 11);
}

#[test]
fn the_old_leader_gets_its_own_result_and_touches_no_newer_entry() {
    for end in ["value", "error", "panic", "drop"] {
        let (cache, done) = (Loads::new(8), Event::default());
        let load = {
            let done = done.wait();
            async move {
                done.await;
                match end {
                    "value" => Ok(1),
                    "error" => Err("late"),
                    _ => panic!("late"),
                }
            }
        };
        let mut leader = Box::pin(cache.try_get_with(1, load));
        let mut faithful = Box::pin(cache.try_get_with(1, ready(Ok::<_, &str>(3))));
        assert!(poll_once(leader.as_mut()).is_pending());
        assert!(poll_once(faithful.as_mut()).is_pending());
        let thief = cache.get_with(1, ready(2)).steal_after(|| ready(()));
        assert_eq!(poll_once(Box::pin(thief).as_mut()), Poll::Ready(2));

        done.raise();
        let ended = match end {
            "drop" => {
                drop(leader);
                None
            }
            _ => Some(catch_unwind(AssertUnwindSafe(|| poll_once(leader.as_mut())))),
        };
        let followed = catch_unwind(AssertUnwindSafe(|| poll_once(faithful.as_mut())));
        match (end, ended) {
            ("value", Some(Ok(Poll::Ready(Ok(1))))) => {
                assert_eq!(followed.expect("no panic"), Poll::Ready(Ok(1)));
            }
            ("error", Some(Ok(Poll::Ready(Err(error))))) => {
                assert_eq!(*error, "late");
                assert_eq!(followed.expect("no panic"), Poll::Ready(Err(error)));
            }
            ("panic", Some(Err(_))) => assert!(followed.is_err(), "it panics along"),
            // The lead of the old load is free, and its result is not stored.
            ("drop", None) => assert_eq!(followed.expect("no panic"), Poll::Ready(Ok(3))),
            (end, ended) => panic!("{end}: {ended:?}"),
        }
        assert_eq!(cache.get(&1), Some(2), "{end}");
        assert_eq!(cache.entry_count(), 1);
    }
}

#[test]
fn a_thief_leaves_a_newer_load_and_a_newer_value_alone() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let _leader = stuck(&cache, 1);
    let mut a = Box::pin(cache.get_with(1, ready(8)).steal_after(|| timers.make()));
    let mut b = Box::pin(cache.get_with(1, ready(9)).steal_after(|| timers.make()));
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());

    cache.invalidate(&1);
    let newer = Event::default();
    let mut leader = Box::pin(cache.get_with(1, {
        let newer = newer.wait();
        async {
            newer.await;
            5
        }
    }));
    assert!(poll_once(leader.as_mut()).is_pending());
    timers.go_off(0);
    assert!(poll_once(a.as_mut()).is_pending(), "joins the newer load");
    newer.raise();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(5));
    timers.go_off(1);
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(5), "finds the newer value");
    assert_eq!(poll_once(a.as_mut()), Poll::Ready(5));
}

#[test]
fn a_load_that_ends_before_the_caller_is_polled_is_not_stolen() {
    let (cache, timers, done) = (Loads::new(8), Timers::default(), Event::default());
    let load = {
        let done = done.wait();
        async {
            done.await;
            1
        }
    };
    let mut leader = Box::pin(cache.get_with(1, load));
    assert!(poll_once(leader.as_mut()).is_pending());
    let own = async { unreachable!("there is a result") };
    let mut caller = Box::pin(cache.get_with(1, own).steal_after(|| timers.make()));
    assert!(poll_once(caller.as_mut()).is_pending());
    timers.go_off(0);
    done.raise();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(poll_once(caller.as_mut()), Poll::Ready(1));
}

#[test]
fn who_finds_the_value_or_leads_makes_no_timer() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let mut leads = Box::pin(cache.get_with(1, ready(1)).steal_after(|| timers.make()));
    assert_eq!(poll_once(leads.as_mut()), Poll::Ready(1));
    let mut hits = Box::pin(cache.get_with(1, ready(2)).steal_after(|| timers.make()));
    assert_eq!(poll_once(hits.as_mut()), Poll::Ready(1));
    assert_eq!(timers.made(), 0);
}

#[test]
fn a_timer_is_dropped_with_the_wait_that_it_was_for() {
    let tally = Tally::default();
    let cache = Loads::new(8);
    let timer = || {
        let held = Counted::new((), &tally);
        async move {
            pending::<()>().await;
            drop(held);
        }
    };
    let leader = stuck(&cache, 1);
    let mut ends = Box::pin(cache.get_with(1, ready(2)).steal_after(timer));
    let mut gone = Box::pin(cache.get_with(1, ready(3)).steal_after(timer));
    assert!(poll_once(ends.as_mut()).is_pending());
    assert!(poll_once(gone.as_mut()).is_pending());
    assert_eq!(tally.alive(), 2);
    drop(gone);
    assert_eq!(tally.alive(), 1);
    drop(leader);
    assert_eq!(poll_once(ends.as_mut()), Poll::Ready(2), "it leads now");
    assert_eq!(tally.alive(), 0);
}

#[test]
fn a_timer_that_panics_leaves_the_key_and_the_other_callers_as_they_were() {
    let (cache, done) = (Loads::new(8), Event::default());
    let load = {
        let done = done.wait();
        async {
            done.await;
            1
        }
    };
    let mut leader = Box::pin(cache.get_with(1, load));
    let mut waiter = Box::pin(cache.get_with(1, ready(2)));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(poll_once(waiter.as_mut()).is_pending());
    let make = || -> std::future::Ready<()> { panic!("no timer") };
    let mut unlucky = Box::pin(cache.get_with(1, ready(3)).steal_after(make));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(unlucky.as_mut()))).is_err());
    let timer = || async { panic!("no time") };
    let mut unhappy = Box::pin(cache.get_with(1, ready(4)).steal_after(timer));
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(unhappy.as_mut()))).is_err());
    drop(unlucky);
    done.raise();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(1));
    drop(unhappy);
    assert_eq!(cache.get(&1), Some(1));
}

#[test]
fn a_call_that_began_to_wait_may_be_given_a_timer() {
    let (cache, timers) = (Loads::new(8), Timers::default());
    let _leader = stuck(&cache, 1);
    let mut call = cache.get_with(1, ready(2));
    // `Ready` is Unpin, and so is the call.
    assert!(poll_once(Pin::new(&mut call)).is_pending());
    let mut call = pin!(call.steal_after(|| timers.make()));
    assert!(poll_once(call.as_mut()).is_pending());
    timers.go_off(0);
    assert_eq!(poll_once(call), Poll::Ready(2));
}

#[test]
fn patience_without_end_takes_no_room() {
    assert_eq!(size_of::<Forever>(), 0);
    let cache = Loads::new(8);
    let call = cache.get_with(1, ready(1));
    let size = size_of_val(&call);
    assert!(size < 256, "{size} bytes");
    println!("get_with for u64 -> u64: {size} bytes");
    let timed = cache.get_with(1, ready(1)).steal_after(|| ready(()));
    assert!(size_of_val(&timed) <= size + size_of::<usize>(), "{} bytes", size_of_val(&timed));
}

#[test]
fn a_call_shows_how_far_it_is() {
    let cache = Loads::new(8);
    let mut call = Box::pin(cache.get_with(1, pending()));
    assert_eq!(format!("{call:?}"), r#"GetWith { stage: "not begun", .. }"#);
    assert!(poll_once(call.as_mut()).is_pending());
    assert_eq!(format!("{call:?}"), r#"GetWith { stage: "leading", .. }"#);
    let mut other = Box::pin(cache.try_get_with(1, ready(Ok::<_, u8>(2))));
    assert!(poll_once(other.as_mut()).is_pending());
    assert_eq!(format!("{other:?}"), r#"TryGetWith { stage: "waiting", .. }"#);
}

// ---- On runtimes --------------------------------------------------------------------------------

/// Callers on many threads, and leaders that get stuck one after the other.
async fn many_steal(spawn: impl Fn(Pin<Box<dyn Future<Output = u64> + Send>>) -> Joined) {
    let cache = Loads::new(8);
    let leader = {
        let cache = cache.clone();
        let mut leader = Box::pin(async move { cache.get_with(1, pending()).await });
        assert!(poll_once(leader.as_mut()).is_pending());
        leader
    };
    let late = Event::default();
    let callers: Vec<_> = (0..50)
        .map(|i| {
            let (cache, late) = (cache.clone(), late.clone());
            spawn(Box::pin(
                async move { cache.get_with(1, ready(i)).steal_after(|| late.wait()).await },
            ))
        })
        .collect();
    late.raise();
    for caller in callers {
        assert!(caller.await < 50);
    }
    assert!(cache.get(&1).is_some_and(|value| value < 50));
    drop(leader);
}

type Joined = Pin<Box<dyn Future<Output = u64>>>;

fn on_tokio(call: Pin<Box<dyn Future<Output = u64> + Send>>) -> Joined {
    let task = tokio::spawn(call);
    Box::pin(async { task.await.expect("no panic") })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_steal_on_many_threads() {
    many_steal(on_tokio).await;
}

#[tokio::test(flavor = "current_thread")]
async fn many_steal_on_one_thread() {
    many_steal(on_tokio).await;
}

#[test]
fn many_steal_on_smol() {
    smol::block_on(many_steal(|call| Box::pin(smol::spawn(call))));
}

#[test]
fn calls_are_send_if_their_parts_are() {
    fn is_send<T: Send>(_: T) {}
    let cache: Cache<String, Arc<str>> = Cache::new(8);
    is_send(cache.get_with(String::new(), ready("".into())).steal_after(|| ready(())));
    is_send(cache.try_get_with(String::new(), ready(Ok::<_, u8>("".into()))));
    let cache = Cache::builder().loader_infallible(|_: String| ready(Arc::<str>::from(""))).build();
    is_send(cache.get(String::new()));
    is_send(cache.get(String::new()).steal_after(|| ready(())));
    is_send(cache.get_many([String::new()]));
}

// ---- Of a cache with a loader ---------------------------------------------------------------------

#[test]
fn a_get_whose_leader_is_a_caller_that_is_never_polled_again_steals() {
    let (runs, timers) = (Arc::<Event>::default(), Timers::default());
    let loader = {
        let run = runs.clone();
        move |key: u64| {
            let run = run.clone();
            async move {
                run.raise();
                Ok::<_, String>(10 * key)
            }
        }
    };
    let cache = Cache::builder().max_capacity(8).loader(loader).build();
    let leader = stuck(cache.cache(), 1);
    let mut call = Box::pin(cache.get(1).steal_after(|| timers.make()));
    let flag = Flag::new();
    assert!(flag.poll(call.as_mut()).is_pending());
    assert!(poll_once(pin!(runs.wait())).is_pending(), "the loader has not been asked");
    timers.go_off(0);
    assert!(flag.take(), "woken by its timer");
    assert_eq!(flag.poll(call.as_mut()), Poll::Ready(Ok(10)));
    drop(leader);
    assert_eq!((cache.get_if_present(&1), timers.made()), (Some(10), 1));
}

#[test]
fn a_get_makes_no_timer_for_a_load_of_the_loader_and_drops_one_with_its_wait() {
    let (done, tally) = (Event::default(), Tally::default());
    let gate = done.clone();
    let loader = move |key: u64| {
        let gate = gate.wait();
        async move {
            gate.await;
            10 * key
        }
    };
    let cache = Cache::builder().max_capacity(8).loader_infallible(loader).build();
    let timer = || {
        let held = Counted::new((), &tally);
        async move {
            pending::<()>().await;
            drop(held);
        }
    };
    let mut first = Box::pin(cache.get(2).steal_after(timer));
    let mut second = Box::pin(cache.get(2).steal_after(timer));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending());
    assert_eq!(tally.alive(), 0, "whoever waits drives it");

    let leader = stuck(cache.cache(), 1);
    let mut ends = Box::pin(cache.get(1).steal_after(timer));
    let mut gone = Box::pin(cache.get(1).steal_after(timer));
    assert!(poll_once(ends.as_mut()).is_pending());
    assert!(poll_once(gone.as_mut()).is_pending());
    assert_eq!(tally.alive(), 2);
    drop(gone);
    assert_eq!(tally.alive(), 1);
    drop(leader);
    assert!(poll_once(ends.as_mut()).is_pending(), "the loader has taken over");
    assert_eq!(tally.alive(), 0);
    done.raise();
    assert_eq!(poll_once(ends.as_mut()), Poll::Ready(Ok(10)));
    assert_eq!(poll_once(first.as_mut()), Poll::Ready(Ok(20)));
    assert_eq!(poll_once(second.as_mut()), Poll::Ready(Ok(20)));
}

#[test]
fn of_twenty_gets_that_lose_patience_with_one_leader_the_loader_runs_once() {
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = runs.clone();
    let loader = move |key: u64| {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        ready(10 * key)
    };
    let (cache, timers) =
        (Cache::builder().max_capacity(8).loader_infallible(loader).build(), Timers::default());
    let _leader = stuck(cache.cache(), 1);
    let mut calls: Vec<_> =
        (0..20).map(|_| Box::pin(cache.get(1).steal_after(|| timers.make()))).collect();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    (0..20).for_each(|which| timers.go_off(which));
    for call in &mut calls {
        assert_eq!(poll_once(call.as_mut()), Poll::Ready(Ok(10)));
    }
    assert_eq!(runs.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_call_that_joins_a_load_of_a_loader_drives_it_and_takes_it_out_when_its_patience_ends() {
    let (done, timers) = (Event::default(), Timers::default());
    let gate = done.clone();
    let loader = move |key: u64| {
        let gate = gate.wait();
        async move {
            gate.await;
            10 * key
        }
    };
    let cache = Cache::builder().max_capacity(8).loader_infallible(loader).build();
    let mut get = Box::pin(cache.get(1));
    assert!(poll_once(get.as_mut()).is_pending());
    let mut thief = Box::pin(cache.cache().get_with(1, ready(2)).steal_after(|| timers.make()));
    assert!(poll_once(thief.as_mut()).is_pending());
    timers.go_off(0);
    assert_eq!(poll_once(thief.as_mut()), Poll::Ready(2));
    done.raise();
    assert_eq!(poll_once(get.as_mut()), Poll::Ready(Ok(10)), "its own callers get its result");
    assert_eq!(cache.get_if_present(&1), Some(2), "which is not stored");
}
