//! `get_many` and `try_get_many`: one call for all missing keys, each key still loaded once.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::{Future, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use alru::Cache;
use common::{Bomb, Counted, Flag, Tally, poll_once};

type Bulk = Cache<u64, u64>;
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Something to wait for, that wakes who waits.
#[derive(Clone, Default)]
struct Gate(Arc<(AtomicUsize, Mutex<Vec<Waker>>)>);

impl Gate {
    async fn pass(self) {
        poll_fn(|cx| {
            if self.0.0.load(SeqCst) > 0 {
                return Poll::Ready(());
            }
            self.0.1.lock().expect("no panic inside").push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn open(&self) {
        self.0.0.store(1, SeqCst);
        let wakers = std::mem::take(&mut *self.0.1.lock().expect("no panic inside"));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Calls of a loader: what was missing, one after the other.
#[derive(Clone, Default)]
struct Calls(Rc<RefCell<Vec<Vec<u64>>>>);

impl Calls {
    fn note(&self, missing: &[u64]) {
        self.0.borrow_mut().push(missing.to_vec());
    }

    fn all(&self) -> Vec<Vec<u64>> {
        self.0.borrow().clone()
    }
}

fn tenfold(keys: Vec<u64>) -> Vec<(u64, u64)> {
    keys.into_iter().map(|key| (key, 10 * key)).collect()
}

fn tenfold_map(keys: impl IntoIterator<Item = u64>) -> HashMap<u64, u64> {
    tenfold(keys.into_iter().collect()).into_iter().collect()
}

/// A bulk load of tenfold values that notes its calls and ends once the gate is open.
fn behind<'a>(
    cache: &'a Bulk,
    keys: &[u64],
    gate: &Gate,
    calls: &Calls,
) -> Boxed<'a, HashMap<u64, u64>> {
    let (gate, calls) = (gate.clone(), calls.clone());
    Box::pin(cache.get_many(keys.to_vec(), move |missing| {
        calls.note(&missing);
        let gate = gate.clone();
        async move {
            gate.pass().await;
            tenfold(missing)
        }
    }))
}

fn done<T>(answer: Poll<T>) -> T {
    match answer {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("pending"),
    }
}

// ---- One call ---------------------------------------------------------------------------------

#[test]
fn if_all_values_are_there_it_answers_at_the_first_poll_and_calls_nobody() {
    let cache = Bulk::new(1000);
    (0..200).for_each(|key| cache.insert(key, 10 * key));
    let calls = Calls::default();
    let all = cache.get_many(0..200, |missing| {
        calls.note(&missing);
        ready(tenfold(missing))
    });
    let all = done(poll_once(pin!(all)));
    assert!(calls.all().is_empty());
    assert_eq!(all, tenfold_map(0..200));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (200, 0, 0));
}

#[test]
fn no_keys_are_no_call() {
    let cache = Bulk::new(10);
    let none = cache.get_many([], |missing| ready(tenfold(missing)));
    assert!(done(poll_once(pin!(none))).is_empty());
}

#[test]
fn what_is_missing_is_asked_for_once_in_the_order_of_its_first_appearance() {
    let cache = Bulk::new(100);
    cache.insert(5, 50);
    let calls = Calls::default();
    let all = cache.get_many([7, 5, 3, 7, 9, 3, 5, 1], |missing| {
        calls.note(&missing);
        ready(tenfold(missing))
    });
    assert_eq!(done(poll_once(pin!(all))), tenfold_map([1, 3, 5, 7, 9]));
    assert_eq!(calls.all(), [[7, 3, 9, 1]]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (1, 4, 4), "each key once");
    assert_eq!(cache.get(&9), Some(90));
}

#[test]
fn a_call_that_is_never_polled_does_nothing() {
    let cache = Bulk::new(10);
    drop(cache.get_many([1, 2], |missing| ready(tenfold(missing))));
    assert_eq!((cache.entry_count(), cache.stats().misses), (0, 0));
}

#[test]
fn the_loader_may_borrow_and_need_not_be_send() {
    let cache: Cache<String, usize> = Cache::new(10);
    let (prefix, calls) = (String::from("n"), Rc::new(Cell::new(0)));
    let local: &str = &prefix;
    let keys = ["a", "bb"].map(String::from);
    let all = cache.get_many(keys, |missing| {
        let calls = &calls;
        async move {
            calls.set(calls.get() + 1);
            missing.into_iter().map(move |k| (k.clone(), local.len() + k.len()))
        }
    });
    let all = done(poll_once(pin!(all)));
    assert_eq!((all["a"], all["bb"], calls.get()), (2, 3, 1));
}

#[test]
fn a_loader_that_wakes_itself_does_not_keep_the_poll() {
    let cache = Bulk::new(10);
    let mut turns = 3;
    let mut all = Box::pin(cache.get_many([1, 2], |missing| {
        poll_fn(move |cx| {
            if turns == 0 {
                return Poll::Ready(tenfold(missing.clone()));
            }
            turns -= 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }));
    let flag = Flag::new();
    for _ in 0..3 {
        assert!(flag.poll(all.as_mut()).is_pending());
        assert!(flag.take(), "the wake is passed on");
    }
    assert_eq!(done(flag.poll(all.as_mut())), tenfold_map([1, 2]));
}

// ---- Shared -----------------------------------------------------------------------------------

#[test]
fn keys_that_others_load_are_joined_and_not_asked_for() {
    let cache = Bulk::new(10);
    let (theirs, ours, calls) = (Gate::default(), Gate::default(), Calls::default());
    let mut single = Box::pin(cache.get_with(2, {
        let theirs = theirs.clone();
        async move {
            theirs.pass().await;
            222
        }
    }));
    assert!(poll_once(single.as_mut()).is_pending());
    let (mut all, flag) = (behind(&cache, &[1, 2, 3], &ours, &calls), Flag::new());
    assert!(flag.poll(all.as_mut()).is_pending());
    assert_eq!(calls.all(), [[1, 3]]);

    theirs.open();
    assert_eq!(done(poll_once(single.as_mut())), 222);
    assert!(flag.take(), "told of the end of the load that it joined");
    assert!(flag.poll(all.as_mut()).is_pending());
    ours.open();
    assert!(flag.take(), "told of its own load's");
    let all = done(flag.poll(all.as_mut()));
    assert_eq!((all[&1], all[&2], all[&3]), (10, 222, 30));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.loads), (1, 3, 3), "a join is a hit");
}

#[test]
fn its_keys_are_shared_with_every_other_way_to_load() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = behind(&cache, &[1, 2, 3], &gate, &calls);
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut one = Box::pin(cache.get_with(1, async { unreachable!("on its way") }));
    let mut two = Box::pin(cache.try_get_with(2, async { Err::<u64, _>("on its way") }));
    let mut more = behind(&cache, &[3, 2], &gate, &calls);
    let flags = [Flag::new(), Flag::new(), Flag::new()];
    assert!(flags[0].poll(one.as_mut()).is_pending());
    assert!(flags[1].poll(two.as_mut()).is_pending());
    assert!(flags[2].poll(more.as_mut()).is_pending());
    gate.open();
    assert_eq!(done(poll_once(bulk.as_mut())), tenfold_map([1, 2, 3]));
    assert!(flags.iter().all(|flag| flag.take()));
    assert_eq!(done(poll_once(one.as_mut())), 10);
    assert_eq!(done(poll_once(two.as_mut())), Ok(20));
    assert_eq!(done(poll_once(more.as_mut())), tenfold_map([2, 3]));
    assert_eq!((calls.all().len(), cache.stats().loads), (1, 3));
}

#[test]
fn crossing_bulk_loads_finish_and_load_each_key_once() {
    let cache = Bulk::new(100);
    let gates = [Gate::default(), Gate::default()];
    let calls = Calls::default();
    let flags = [Flag::new(), Flag::new()];
    // Each has keys of the other, in crossing orders: what the first leads, the second waits for, and the other
    // way round because a get_with that is dropped frees a key that both waited for.
    let mut single = Box::pin(cache.get_with(9, std::future::pending()));
    assert!(poll_once(single.as_mut()).is_pending());
    let mut bulks = [
        behind(&cache, &[1, 2, 9], &gates[0], &calls),
        behind(&cache, &[9, 2, 3], &gates[1], &calls),
    ];
    assert!(flags[0].poll(bulks[0].as_mut()).is_pending());
    assert!(flags[1].poll(bulks[1].as_mut()).is_pending());
    drop(single);
    assert!(flags[0].take() && flags[1].take(), "the lead of 9 is free");
    // The second takes it, and waits for the first's 2; the first waits for the second's 9.
    assert!(flags[1].poll(bulks[1].as_mut()).is_pending());
    assert!(flags[0].poll(bulks[0].as_mut()).is_pending());
    assert_eq!(calls.all(), [vec![1, 2], vec![3], vec![9]]);
    gates[1].open();
    assert!(flags[1].take());
    assert!(flags[1].poll(bulks[1].as_mut()).is_pending(), "2 is the first's");
    gates[0].open();
    assert_eq!(done(flags[0].poll(bulks[0].as_mut())), tenfold_map([1, 2, 9]));
    assert!(flags[1].take());
    assert_eq!(done(flags[1].poll(bulks[1].as_mut())), tenfold_map([2, 3, 9]));
    assert_eq!(cache.stats().loads, 4);
}

#[test]
fn a_waiter_that_is_not_polled_again_holds_nobody_up() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = behind(&cache, &[1, 2], &gate, &calls);
    let mut idle = behind(&cache, &[2, 1], &gate, &calls);
    let (mut keen, flag) = (behind(&cache, &[2], &gate, &calls), Flag::new());
    assert!(poll_once(bulk.as_mut()).is_pending());
    assert!(poll_once(idle.as_mut()).is_pending());
    assert!(flag.poll(keen.as_mut()).is_pending());
    gate.open();
    assert_eq!(done(poll_once(bulk.as_mut())).len(), 2);
    assert!(flag.take());
    assert_eq!(done(flag.poll(keen.as_mut())), tenfold_map([2]));
    assert_eq!(done(poll_once(idle.as_mut())), tenfold_map([1, 2]));
}

#[test]
fn the_last_waker_is_the_one_that_is_woken() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = behind(&cache, &[1, 2], &gate, &calls);
    let (old, new) = (Flag::new(), Flag::new());
    assert!(old.poll(bulk.as_mut()).is_pending());
    assert!(new.poll(bulk.as_mut()).is_pending());
    gate.open();
    assert!(new.take() && !old.take());
    assert_eq!(done(new.poll(bulk.as_mut())).len(), 2);
}

/// One of a hundred callers, each of ten keys that overlap with its neighbours'. No load ends before all callers
/// have begun, so that they meet.
async fn one_of_a_hundred(
    cache: Bulk,
    caller: u64,
    begun: Arc<AtomicUsize>,
    runs: Arc<Vec<AtomicUsize>>,
) {
    begun.fetch_add(1, SeqCst);
    let mut keys: Vec<u64> = (caller..caller + 10).collect();
    if caller % 2 == 0 {
        keys.reverse();
    }
    let all = cache.get_many(keys, |missing| {
        let (begun, runs) = (begun.clone(), runs.clone());
        async move {
            for &key in &missing {
                runs[key as usize].fetch_add(1, SeqCst);
            }
            poll_fn(|cx| {
                if begun.load(SeqCst) == 100 {
                    return Poll::Ready(());
                }
                // A turn for the others, on any runtime.
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            tenfold(missing)
        }
    });
    assert_eq!(all.await, tenfold_map(caller..caller + 10));
}

async fn a_hundred<T: Future>(spawn: impl Fn(Pin<Box<dyn Future<Output = ()> + Send>>) -> T) {
    let (cache, begun) = (Bulk::new(1000), Arc::<AtomicUsize>::default());
    let runs: Arc<Vec<_>> = Arc::new((0..109).map(|_| AtomicUsize::new(0)).collect());
    let callers: Vec<_> = (0..100)
        .map(|n| spawn(Box::pin(one_of_a_hundred(cache.clone(), n, begun.clone(), runs.clone()))))
        .collect();
    for caller in callers {
        caller.await;
    }
    assert!(runs.iter().all(|runs| runs.load(SeqCst) == 1));
    let stats = cache.stats();
    assert_eq!((stats.loads, stats.misses, stats.hits), (109, 109, 1000 - 109));
}

async fn a_hundred_on_tokio() {
    a_hundred(|caller| {
        // Now, not when it is awaited.
        let task = tokio::spawn(caller);
        async { task.await.expect("no panic") }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_hundred_callers_of_overlapping_keys_on_many_threads_load_each_key_once() {
    a_hundred_on_tokio().await;
}

#[tokio::test]
async fn a_hundred_callers_of_overlapping_keys_on_one_thread_load_each_key_once() {
    a_hundred_on_tokio().await;
}

#[test]
fn a_hundred_callers_of_overlapping_keys_on_smol_load_each_key_once() {
    smol::block_on(a_hundred(smol::spawn));
}

#[test]
fn a_loader_of_the_cache_is_joined_and_driven() {
    let gate = Gate::default();
    let loads = Cache::builder()
        .loader_infallible({
            let gate = gate.clone();
            move |key: u64| {
                let gate = gate.clone();
                async move {
                    gate.pass().await;
                    key + 1000
                }
            }
        })
        .build();
    let mut idle = Box::pin(loads.get(2));
    assert!(poll_once(idle.as_mut()).is_pending());
    let cache = loads.cache();
    let mut bulk = Box::pin(cache.get_many([1, 2], |missing| ready(tenfold(missing))));
    let flag = Flag::new();
    assert!(flag.poll(bulk.as_mut()).is_pending());
    assert_eq!(cache.get(&1), Some(10));
    gate.open();
    assert!(flag.take());
    let all = done(flag.poll(bulk.as_mut()));
    assert_eq!((all[&1], all[&2]), (10, 1002));
}

// ---- What is left out, and what is too much ------------------------------------------------------

#[test]
fn a_key_that_was_left_out_is_absent_and_loaded_by_those_who_wait_for_it() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = Box::pin(cache.get_many([1, 2, 3], |missing| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            tenfold(missing).into_iter().filter(|(key, _)| *key != 2)
        }
    }));
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut single = Box::pin(cache.get_with(2, ready(222)));
    let mut other = behind(&cache, &[3, 2, 1], &gate, &calls);
    let flags = [Flag::new(), Flag::new()];
    assert!(flags[0].poll(single.as_mut()).is_pending());
    assert!(flags[1].poll(other.as_mut()).is_pending());
    gate.open();
    let all = done(poll_once(bulk.as_mut()));
    assert_eq!(all, tenfold_map([1, 3]));
    assert_eq!(cache.stats().load_failures, 0);
    assert!(!cache.contains_key(&2));

    assert!(flags[0].take() && flags[1].take());
    assert_eq!(done(flags[1].poll(other.as_mut())), tenfold_map([1, 2, 3]));
    assert_eq!(calls.all(), [[2]]);
    assert_eq!(done(flags[0].poll(single.as_mut())), 20);
}

#[test]
fn pairs_that_were_not_asked_for_are_ignored_and_the_first_of_a_key_counts() {
    let cache = Bulk::new(10);
    cache.insert(1, 10);
    let pairs = [(2, 20), (1, 11), (3, 30), (2, 22)];
    let all = done(poll_once(pin!(cache.get_many([1, 2], |_| ready(pairs)))));
    assert_eq!(all, tenfold_map([1, 2]));
    assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some(10), Some(20), None));
}

#[test]
fn a_key_invalidated_during_the_load_is_answered_and_not_stored() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = behind(&cache, &[1, 2, 3], &gate, &calls);
    assert!(poll_once(bulk.as_mut()).is_pending());
    assert!(cache.invalidate(&2));
    cache.insert(3, 333);
    gate.open();
    assert_eq!(done(poll_once(bulk.as_mut())), tenfold_map([1, 2, 3]));
    assert_eq!((cache.get(&1), cache.get(&2), cache.get(&3)), (Some(10), None, Some(333)));
}

#[test]
fn a_cache_without_room_loads_all_keys_for_every_caller() {
    let cache = Bulk::new(0);
    let calls = Calls::default();
    for _ in 0..2 {
        let all = cache.get_many([1, 2, 1], |missing| {
            calls.note(&missing);
            ready(tenfold(missing))
        });
        assert_eq!(done(poll_once(pin!(all))), tenfold_map([1, 2]));
    }
    assert_eq!(calls.all(), [[1, 2], [1, 2]]);
    assert_eq!(cache.stats().misses, 4);
}

#[test]
fn more_keys_than_there_is_room_for_are_all_answered() {
    let cache = Bulk::new(8);
    let all = cache.get_many(0..1000, |missing| ready(tenfold(missing)));
    assert_eq!(done(poll_once(pin!(all))), tenfold_map(0..1000));
    assert!(cache.entry_count() <= 8);
}

// ---- Errors and panics --------------------------------------------------------------------------

#[test]
fn one_error_reaches_all_who_wait_for_a_key_of_the_call_and_is_not_kept() {
    let cache = Bulk::new(10);
    let gate = Gate::default();
    let calls = Cell::new(0);
    let failing = |keys: &[u64]| {
        let (gate, calls) = (gate.clone(), &calls);
        cache.try_get_many(keys.to_vec(), move |_| {
            calls.set(calls.get() + 1);
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Err::<Vec<(u64, u64)>, _>(String::from("no"))
            }
        })
    };
    let mut bulk = Box::pin(failing(&[1, 2, 3]));
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut single = Box::pin(cache.try_get_with(1, ready(Err::<u64, _>(String::from("mine")))));
    let mut other = Box::pin(failing(&[2, 3]));
    assert!(poll_once(single.as_mut()).is_pending());
    assert!(poll_once(other.as_mut()).is_pending());
    gate.open();
    let error = done(poll_once(bulk.as_mut())).expect_err("failed");
    let errors = [
        done(poll_once(single.as_mut())).expect_err("shares"),
        done(poll_once(other.as_mut())).expect_err("shares"),
    ];
    assert!(errors.iter().all(|e| Arc::ptr_eq(e, &error)));
    assert_eq!((calls.get(), cache.entry_count(), cache.stats().load_failures), (1, 0, 3));

    let again = cache.try_get_many([1, 2], |missing| ready(Ok::<_, String>(tenfold(missing))));
    assert_eq!(done(poll_once(pin!(again))), Ok(tenfold_map([1, 2])));
}

#[test]
fn an_error_gives_up_what_else_the_caller_was_loading() {
    let cache = Bulk::new(10);
    let gate = Gate::default();
    let mut single = Box::pin(cache.try_get_with(1, {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Err::<u64, _>("one")
        }
    }));
    assert!(poll_once(single.as_mut()).is_pending());
    let tally = Tally::default();
    let mut bulk = Box::pin(cache.try_get_many([1, 2], |_| {
        let held = Counted::new((), &tally);
        async move {
            let _held = held;
            std::future::pending::<Result<Vec<(u64, u64)>, &'static str>>().await
        }
    }));
    assert!(poll_once(bulk.as_mut()).is_pending());
    let (mut patient, flag) = (Box::pin(cache.get_with(2, ready(20))), Flag::new());
    assert!(flag.poll(patient.as_mut()).is_pending());
    gate.open();
    assert_eq!(*done(poll_once(single.as_mut())).expect_err("failed"), "one");
    assert_eq!(*done(poll_once(bulk.as_mut())).expect_err("shares"), "one");
    assert_eq!(tally.alive(), 0, "dropped at once");
    assert!(flag.take());
    assert_eq!(done(flag.poll(patient.as_mut())), 20);
}

#[test]
fn an_error_that_the_caller_cannot_name_is_another_call_for_all_such_keys() {
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut failing = Box::pin(cache.try_get_many([1, 2, 3], |_| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            Err::<Vec<(u64, u64)>, _>("no")
        }
    }));
    assert!(poll_once(failing.as_mut()).is_pending());
    let open = Gate::default();
    open.open();
    let mut other = behind(&cache, &[4, 3, 1], &open, &calls);
    assert!(poll_once(other.as_mut()).is_pending());
    gate.open();
    assert!(done(poll_once(failing.as_mut())).is_err());
    assert_eq!(done(poll_once(other.as_mut())), tenfold_map([1, 3, 4]));
    assert_eq!(calls.all(), [vec![4], vec![3, 1]]);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (2, 4), "a key counts once, however often it is begun");
}

/// What a panic said.
fn message(panic: Box<dyn std::any::Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).expect("a message")
}

/// A bulk load of 1, 2 and 3 that panics by `load` once the gate is open; two waiters hear of it.
fn panics<R, F>(load: impl Fn(Vec<u64>) -> R + Clone, stored: &[u64])
where
    R: Future<Output = F>,
    F: IntoIterator<Item = (u64, u64)>,
{
    let cache = Bulk::new(10);
    let gate = Gate::default();
    let mut bulk = Box::pin(cache.get_many([1, 2, 3], |missing| {
        let (gate, load) = (gate.clone(), load.clone());
        async move {
            gate.pass().await;
            load(missing).await
        }
    }));
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut single = Box::pin(cache.get_with(3, ready(3)));
    let mut other = Box::pin(cache.get_many([3], |missing| ready(tenfold(missing))));
    assert!(poll_once(single.as_mut()).is_pending());
    assert!(poll_once(other.as_mut()).is_pending());
    gate.open();
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("panics");
    assert_eq!(message(panic), "bulk panic");
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(single.as_mut()))).expect_err("shares");
    assert_eq!(message(panic), "bulk panic");
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(other.as_mut()))).expect_err("shares");
    assert_eq!(message(panic), "bulk panic");
    let is_stored = |key: &u64| cache.contains_key(key);
    assert_eq!((1..=3).filter(is_stored).collect::<Vec<_>>(), stored);
    // The keys are usable, while the future that panicked is still there.
    let all = cache.get_many([1, 2, 3], |missing| ready(tenfold(missing)));
    assert_eq!(done(poll_once(pin!(all))), tenfold_map([1, 2, 3]));
}

#[test]
fn a_panic_reaches_who_polled_and_its_message_all_who_wait() {
    panics(|_| async { panic!("bulk panic") as Vec<(u64, u64)> }, &[]);
}

#[test]
fn a_panic_of_the_pairs_is_the_loads_and_what_came_before_it_stays() {
    let pairs = |missing: Vec<u64>| {
        ready(missing.into_iter().map(|key| {
            assert!(key < 2, "bulk panic");
            (key, 10 * key)
        }))
    };
    panics(pairs, &[1]);
}

#[test]
fn a_panic_of_the_loader_itself_frees_the_keys() {
    let cache = Bulk::new(10);
    let mut bulk = Box::pin(
        cache.get_many([1, 2], |_| -> std::future::Ready<Vec<(u64, u64)>> { panic!("bulk panic") }),
    );
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("panics");
    assert_eq!(message(panic), "bulk panic");
    let mut single = Box::pin(cache.get_with(1, ready(1)));
    assert_eq!(done(poll_once(single.as_mut())), 1);
    assert_eq!(cache.stats().load_failures, 2);
}

#[test]
fn a_panic_of_another_load_that_was_joined_gives_up_ours() {
    let cache = Bulk::new(10);
    let gate = Gate::default();
    let mut single = Box::pin(cache.get_with(1, {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            panic!("single panic")
        }
    }));
    assert!(poll_once(single.as_mut()).is_pending());
    let calls = Calls::default();
    let mut bulk = behind(&cache, &[1, 2], &Gate::default(), &calls);
    assert!(poll_once(bulk.as_mut()).is_pending());
    gate.open();
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(single.as_mut()))).is_err());
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("shares");
    assert_eq!(message(panic), "single panic");
    // The future that panicked is kept, and its lead of 2 is not.
    assert_eq!(done(poll_once(pin!(cache.get_with(2, ready(2))))), 2);
}

/// A value whose Clone may panic.
struct Fragile(Bomb);

impl Clone for Fragile {
    fn clone(&self) -> Self {
        self.0.go_off();
        Self(self.0.clone())
    }
}

#[test]
fn a_panic_of_a_values_clone_is_the_loads() {
    let cache: Cache<u64, Fragile> = Cache::new(10);
    let (gate, bomb) = (Gate::default(), Bomb::default());
    let fragile = |missing: Vec<u64>| {
        let pairs: Vec<_> = missing.into_iter().map(|key| (key, Fragile(bomb.clone()))).collect();
        pairs
    };
    let mut bulk = Box::pin(cache.get_many([1, 2], |missing| {
        let (gate, pairs) = (gate.clone(), fragile(missing));
        async move {
            gate.pass().await;
            pairs
        }
    }));
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut waiter = Box::pin(cache.get_with(2, async { unreachable!("on its way") }));
    assert!(poll_once(waiter.as_mut()).is_pending());
    gate.open();
    bomb.arm();
    assert!(catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).is_err());
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| poll_once(waiter.as_mut()))) else {
        panic!("shares")
    };
    assert_eq!(message(panic), "bomb");
    let all = cache.get_many([1, 2], |missing| ready(fragile(missing)));
    assert_eq!(done(poll_once(pin!(all))).len(), 2);
}

#[test]
fn a_waker_that_panics_keeps_nobody_else_from_being_woken() {
    struct Loud;
    impl std::task::Wake for Loud {
        fn wake(self: Arc<Self>) {
            panic!("waker");
        }
    }
    let cache = Bulk::new(10);
    let (gate, calls) = (Gate::default(), Calls::default());
    let mut bulk = behind(&cache, &[1, 2], &gate, &calls);
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut loud = Box::pin(cache.get_with(1, ready(1)));
    let waker = Waker::from(Arc::new(Loud));
    assert!(loud.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let flags = [Flag::new(), Flag::new()];
    let mut one = Box::pin(cache.get_with(1, ready(1)));
    let mut two = Box::pin(cache.get_with(2, ready(2)));
    assert!(flags[0].poll(one.as_mut()).is_pending());
    assert!(flags[1].poll(two.as_mut()).is_pending());
    gate.open();
    let panic =
        catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("the waker's");
    assert_eq!(message(panic), "waker");
    assert!(flags.iter().all(|flag| flag.take()));
    assert_eq!((done(poll_once(one.as_mut())), done(poll_once(two.as_mut()))), (10, 20));
    assert_eq!((cache.get(&1), cache.get(&2)), (Some(10), Some(20)));
}

// ---- Cancellation -------------------------------------------------------------------------------

#[test]
fn when_the_caller_is_dropped_patient_waiters_load_by_their_own_means() {
    let cache = Bulk::new(10);
    let (never, open, calls) = (Gate::default(), Gate::default(), Calls::default());
    open.open();
    let mut bulk = behind(&cache, &[1, 2, 3, 4], &never, &calls);
    assert!(poll_once(bulk.as_mut()).is_pending());
    let mut single = Box::pin(cache.get_with(2, ready(222)));
    let mut other = behind(&cache, &[4, 3, 1], &open, &calls);
    let flags = [Flag::new(), Flag::new()];
    assert!(flags[0].poll(single.as_mut()).is_pending());
    assert!(flags[1].poll(other.as_mut()).is_pending());
    drop(bulk);
    assert!(flags[0].take() && flags[1].take());
    assert_eq!(done(flags[0].poll(single.as_mut())), 222);
    assert_eq!(done(flags[1].poll(other.as_mut())), tenfold_map([1, 3, 4]));
    assert_eq!(calls.all(), [vec![1, 2, 3, 4], vec![4, 3, 1]], "all of them together");
    assert_eq!(cache.entry_count(), 4);
}

#[test]
fn a_key_that_another_caller_gave_up_is_loaded_at_once_beside_the_first_call() {
    let cache = Bulk::new(10);
    let mut single = Box::pin(cache.get_with(1, std::future::pending()));
    assert!(poll_once(single.as_mut()).is_pending());
    let (slow, calls) = (Gate::default(), Calls::default());
    let (mut bulk, flag) = (
        Box::pin(cache.get_many([1, 2], |missing| {
            calls.note(&missing);
            let (slow, is_slow) = (slow.clone(), missing == [2]);
            async move {
                if is_slow {
                    slow.pass().await;
                }
                tenfold(missing)
            }
        })),
        Flag::new(),
    );
    assert!(flag.poll(bulk.as_mut()).is_pending());
    drop(single);
    assert!(flag.take());
    assert!(flag.poll(bulk.as_mut()).is_pending());
    assert_eq!(calls.all(), [[2], [1]]);
    assert_eq!(cache.get(&1), Some(10), "it did not wait for the first call");
    slow.open();
    assert!(flag.take());
    assert_eq!(done(flag.poll(bulk.as_mut())), tenfold_map([1, 2]));
}

#[test]
fn a_thousand_callers_dropped_in_a_row_leave_the_patient_waiter_its_values() {
    let cache = Bulk::new(10);
    let (never, open, calls) = (Gate::default(), Gate::default(), Calls::default());
    open.open();
    let mut leader = behind(&cache, &[1, 2], &never, &calls);
    assert!(poll_once(leader.as_mut()).is_pending());
    let (mut patient, flag) = (behind(&cache, &[2, 1], &open, &calls), Flag::new());
    assert!(flag.poll(patient.as_mut()).is_pending());
    for _ in 0..1000 {
        let mut next = behind(&cache, &[1, 2], &never, &calls);
        assert!(poll_once(next.as_mut()).is_pending());
        drop(std::mem::replace(&mut leader, next));
        // It takes the leads before the patient one gets to it.
        assert!(poll_once(leader.as_mut()).is_pending());
    }
    assert_eq!(calls.all().len(), 1001);
    drop(leader);
    assert!(flag.take());
    assert_eq!(done(flag.poll(patient.as_mut())), tenfold_map([1, 2]));
}

#[test]
fn abandoned_bulk_loads_leave_nothing_behind() {
    let tally = Tally::default();
    let cache: Cache<u64, Counted<u64>> = Cache::new(100);
    for round in 0..1000_u64 {
        let keys = round..round + 5;
        let mut bulk = Box::pin(cache.get_many(keys.clone(), |_| {
            let held = Counted::new(0, &tally);
            async move {
                let _held = held;
                std::future::pending::<Vec<(u64, Counted<u64>)>>().await
            }
        }));
        assert!(poll_once(bulk.as_mut()).is_pending());
        let mut waiter = Box::pin(cache.get_many(keys, |_| ready(Vec::new())));
        assert!(poll_once(waiter.as_mut()).is_pending());
        if round % 2 == 0 {
            drop(bulk);
            drop(waiter);
        } else {
            drop(waiter);
            drop(bulk);
        }
        assert_eq!((cache.entry_count(), tally.alive()), (0, 0));
    }
}

#[test]
fn every_value_is_dropped_once() {
    let tally = Tally::default();
    {
        let cache: Cache<u64, Counted<u64>> = Cache::new(20);
        for round in 0..100_u64 {
            let keys = round * 3..round * 3 + 8;
            let load = |missing: Vec<u64>| {
                // One is left out, one is too much, one comes twice.
                let mut pairs: Vec<_> =
                    missing.iter().skip(1).map(|&key| (key, Counted::new(key, &tally))).collect();
                pairs.push((1_000_000, Counted::new(0, &tally)));
                pairs.extend(missing.last().map(|&key| (key, Counted::new(key, &tally))));
                ready(pairs)
            };
            let all = done(poll_once(pin!(cache.get_many(keys, load))));
            assert!(all.iter().all(|(key, value)| value.inner == *key));
        }
        assert!(tally.alive() >= 8);
    }
    assert_eq!(tally.alive(), 0);
}

// ---- Recursion ----------------------------------------------------------------------------------

#[test]
fn a_bulk_load_that_asks_for_one_of_its_own_keys_is_told_at_once() {
    let cache = Bulk::new(10);
    let mut bulk = Box::pin(cache.get_many([1, 2, 3], |missing| async {
        cache.get_with(2, ready(2)).await;
        tenfold(missing)
    }));
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("recursive");
    assert!(message(panic).contains("recursive load"));
    let mut bulk = Box::pin(cache.get_with(4, async {
        cache.get_many([5, 4], |missing| ready(tenfold(missing))).await[&4]
    }));
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("recursive");
    assert!(message(panic).contains("recursive load"));
    // Other keys are no recursion, and nothing is left behind.
    let nested = cache.get_many([1, 2], |missing| async {
        let more = cache.get_many([4, 5], |missing| ready(tenfold(missing))).await;
        assert_eq!(more.len(), 2);
        tenfold(missing)
    });
    assert_eq!(done(poll_once(pin!(nested))), tenfold_map([1, 2]));
}

#[test]
fn pairs_that_ask_for_a_key_of_their_own_load_are_told_at_once() {
    let cache = Bulk::new(10);
    let bulk = cache.get_many([1, 2], |missing| {
        let asks = |_| cache.get_or_insert_with_timeout(2, std::time::Duration::ZERO, || 0);
        ready(missing.into_iter().map(move |key| (key, asks(key).unwrap_or(0))))
    });
    let mut bulk = Box::pin(bulk);
    let panic = catch_unwind(AssertUnwindSafe(|| poll_once(bulk.as_mut()))).expect_err("panics");
    assert!(message(panic).contains("recursive load"));
    assert_eq!(done(poll_once(pin!(cache.get_with(2, ready(3))))), 3);
}
