//! Loads that wait for each other: told at once, and nobody who does not go round in a circle is.

mod common;
#[path = "common/event.rs"]
mod event;

use std::collections::HashMap;
use std::future::{Future, pending, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::thread;
use std::time::Duration;

use alru::{AlruCache, Cache, LoadError, LoadingCache};
use common::{Flag, Random, poll_once};
use event::Event;

// ---- The function cache --------------------------------------------------------------------------

type Loader =
    dyn Fn(u32) -> Pin<Box<dyn Future<Output = Result<u32, String>> + Send>> + Send + Sync;

/// A function cache whose function calls it.
#[derive(Clone)]
struct Knot {
    cache: AlruCache<u32, u32, String>,
    loader: Arc<OnceLock<Box<Loader>>>,
}

impl Knot {
    fn new() -> Self {
        let loader: Arc<OnceLock<Box<Loader>>> = Arc::default();
        let function = loader.clone();
        let cache =
            AlruCache::builder(move |key| function.get().expect("tied")(key)).unbounded().build();
        Self { cache, loader }
    }

    /// `load` gets the cache and the key. The knot is never untied: it lives till the end of the process.
    fn tie<F>(&self, load: impl Fn(Knot, u32) -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<u32, String>> + Send + 'static,
    {
        let this = self.clone();
        let loader: Box<Loader> = Box::new(move |key| Box::pin(load(this.clone(), key)));
        assert!(self.loader.set(loader).is_ok());
    }

    /// The value of a key, for another load: a circle is named.
    async fn ask(&self, key: u32) -> Result<u32, String> {
        match self.cache.call(key).await {
            Ok(value) => Ok(value),
            Err(LoadError::Recursive) => Err(format!("round by {key}")),
            Err(LoadError::Failed(error)) => Err((*error).clone()),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// A call that may be kept.
    fn call(&self, key: u32) -> Pin<Box<dyn Future<Output = Result<u32, String>> + Send>> {
        let this = self.clone();
        Box::pin(async move { this.ask(key).await })
    }

    fn tasks(&self) -> usize {
        self.cache.cache_parameters().tasks
    }
}

/// An event a load: whoever asks for a load drives it, so what it does is let go one by one.
fn gates(n: u32) -> Vec<Event> {
    (0..n).map(|_| Event::default()).collect()
}

/// Each load waits for its event, then for the next load.
fn ring(go: &[Event]) -> Knot {
    let knot = Knot::new();
    let go = go.to_vec();
    knot.tie(move |knot, key| {
        let (gate, next) = (go[key as usize].wait(), (key + 1) % go.len() as u32);
        async move {
            gate.await;
            knot.ask(next).await
        }
    });
    knot
}

#[test]
fn two_loads_that_wait_for_each_other_are_told() {
    let go = gates(2);
    let knot = ring(&go);
    let (flag, mut a) = (Flag::new(), knot.call(0));
    let mut b = knot.call(1);
    assert!(flag.poll(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());
    go[0].raise();
    assert!(flag.poll(a.as_mut()).is_pending(), "0 waits for 1");
    flag.take();
    go[1].raise();
    // The call that closes the circle: 1 asks for 0.
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(Err("round by 0".to_owned())));
    assert!(flag.take(), "and 0 has the result of 1");
    assert_eq!(flag.poll(a.as_mut()), Poll::Ready(Err("round by 0".to_owned())));
    assert_eq!(knot.tasks(), 0);
}

#[test]
fn a_circle_of_any_length_is_told_by_the_call_that_closes_it() {
    for n in [1, 2, 3, 10, 100] {
        let go = gates(n);
        let knot = ring(&go);
        let mut calls: Vec<_> = (0..n).map(|key| knot.call(key)).collect();
        for call in &mut calls {
            assert!(poll_once(call.as_mut()).is_pending());
        }
        let (last, others) = calls.split_last_mut().expect("one at least");
        for (call, gate) in others.iter_mut().zip(&go) {
            gate.raise();
            assert!(poll_once(call.as_mut()).is_pending());
        }
        go.last().expect("one at least").raise();
        let told = Poll::Ready(Err("round by 0".to_owned()));
        assert_eq!(poll_once(last.as_mut()), told);
        // Each has the error of the one that it waited for.
        for call in others.iter_mut().rev() {
            assert_eq!(poll_once(call.as_mut()), told);
        }
        assert_eq!(knot.tasks(), 0);
    }
}

#[test]
fn who_takes_the_news_well_gives_the_others_their_values() {
    let go = gates(2);
    let knot = Knot::new();
    {
        let go = go.clone();
        knot.tie(move |knot, key| {
            let gate = go[key as usize].wait();
            async move {
                gate.await;
                match knot.ask(1 - key).await {
                    Err(told) if told.starts_with("round") => Ok(100 + key),
                    other => other,
                }
            }
        });
    }
    let (mut a, mut b) = (knot.call(0), knot.call(1));
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());
    go[0].raise();
    assert!(poll_once(a.as_mut()).is_pending());
    go[1].raise();
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(Ok(101)));
    assert_eq!(poll_once(a.as_mut()), Poll::Ready(Ok(101)));
    assert_eq!(poll_once(knot.call(0).as_mut()), Poll::Ready(Ok(101)), "cached");
}

#[test]
fn a_circle_over_two_caches_is_told() {
    let go = gates(2);
    let (left, right) = (Knot::new(), Knot::new());
    for (one, other, go) in [(&left, &right, &go[0]), (&right, &left, &go[1])] {
        let (go, other) = (go.clone(), other.clone());
        one.tie(move |_, key| {
            let (go, other) = (go.wait(), other.clone());
            async move {
                go.await;
                other.ask(key).await
            }
        });
    }
    let (mut a, mut b) = (left.call(7), right.call(7));
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());
    go[0].raise();
    assert!(poll_once(a.as_mut()).is_pending());
    go[1].raise();
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(Err("round by 7".to_owned())));
    assert_eq!(poll_once(a.as_mut()), Poll::Ready(Err("round by 7".to_owned())));
    assert_eq!((left.tasks(), right.tasks()), (0, 0));
}

#[test]
fn a_loader_that_asks_for_its_own_key_before_it_makes_its_future_is_told() {
    let knot = Knot::new();
    knot.tie(|knot, key| {
        // Polled here, in the call that makes the future.
        let asked = poll_once(knot.call(key).as_mut());
        async move {
            match asked {
                Poll::Ready(result) => result,
                Poll::Pending => panic!("it waits for itself"),
            }
        }
    });
    assert_eq!(poll_once(knot.call(1).as_mut()), Poll::Ready(Err("round by 1".to_owned())));
}

#[test]
fn closing_a_cache_from_inside_a_load_does_not_wait_for_that_load() {
    let knot = Knot::new();
    knot.tie(|knot, key| async move {
        knot.cache.cache_close(true).await;
        Ok(key)
    });
    assert_eq!(poll_once(knot.call(1).as_mut()), Poll::Ready(Ok(1)));
}

// ---- No false alarm ------------------------------------------------------------------------------

#[test]
fn loads_that_wait_for_the_same_load_go_round_in_no_circle() {
    let go = Event::default();
    let knot = Knot::new();
    {
        // 0 asks for 1 and 2, both ask for 3, which waits.
        let go = go.clone();
        knot.tie(move |knot, key| {
            let go = go.clone();
            async move {
                match key {
                    0 => Ok(knot.ask(1).await? + knot.ask(2).await?),
                    1 | 2 => Ok(knot.ask(3).await? + key),
                    _ => {
                        go.wait().await;
                        Ok(10)
                    }
                }
            }
        });
    }
    let mut calls: Vec<_> = [2, 0, 1, 3].map(|key| knot.call(key)).into();
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    go.raise();
    for call in &mut calls {
        let _ = poll_once(call.as_mut());
    }
    assert_eq!(smol::block_on(knot.call(0)), Ok(23));
}

#[test]
fn a_wait_that_was_given_up_closes_no_circle() {
    let (go, skip) = (gates(2), Event::default());
    let knot = Knot::new();
    {
        let (go, skip) = (go.clone(), skip.clone());
        knot.tie(move |knot, key| {
            let (gate, skip) = (go[key as usize].wait(), skip.clone());
            async move {
                gate.await;
                if key == 1 {
                    return knot.ask(0).await;
                }
                let mut other = pin!(knot.call(1));
                let mut skip = pin!(skip.wait());
                let first = poll_fn(|cx| match skip.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(None),
                    Poll::Pending => other.as_mut().poll(cx).map(Some),
                });
                match first.await {
                    Some(result) => result,
                    None => {
                        // Gives the wait up, and goes on waiting for something else.
                        other.set(Box::pin(pending()));
                        poll_fn(|cx| other.as_mut().poll(cx)).await
                    }
                }
            }
        });
    }
    let (mut a, mut b) = (knot.call(0), knot.call(1));
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());
    go[0].raise();
    assert!(poll_once(a.as_mut()).is_pending(), "0 waits for 1");
    skip.raise();
    assert!(poll_once(a.as_mut()).is_pending(), "and not any more");
    go[1].raise();
    assert!(poll_once(b.as_mut()).is_pending(), "1 may wait for 0");
}

#[test]
fn a_call_that_moves_out_of_its_load_is_a_wait_of_that_load_no_more() {
    type Call = Pin<Box<dyn Future<Output = Result<u32, String>> + Send>>;
    let (go, smuggled) = (Event::default(), Arc::<Mutex<Option<Call>>>::default());
    let knot = Knot::new();
    {
        let (go, smuggled) = (go.clone(), smuggled.clone());
        knot.tie(move |knot, key| {
            let (go, smuggled) = (go.clone(), smuggled.clone());
            async move {
                if key == 1 {
                    go.wait().await;
                    return knot.ask(0).await;
                }
                let mut call = knot.call(1);
                assert!(poll_once(call.as_mut()).is_pending());
                *smuggled.lock().expect("no panic") = Some(call);
                go.wait().await;
                poll_fn(|cx| {
                    cx.waker().wake_by_ref();
                    Poll::<()>::Pending
                })
                .await;
                Ok(0)
            }
        });
    }
    let (mut a, mut b) = (knot.call(0), knot.call(1));
    assert!(poll_once(b.as_mut()).is_pending());
    assert!(poll_once(a.as_mut()).is_pending());
    let mut call = smuggled.lock().expect("no panic").take().expect("made in 0");
    assert!(poll_once(call.as_mut()).is_pending(), "polled outside of 0");
    go.raise();
    assert!(poll_once(b.as_mut()).is_pending(), "1 waits for 0, which does not wait for 1");
}

#[test]
fn a_load_that_waits_for_one_of_two_counts_as_waiting_for_both() {
    // As documented: there might be no circle in the end, and one is told all the same.
    let go = Event::default();
    let knot = Knot::new();
    {
        let go = go.clone();
        knot.tie(move |knot, key| {
            let go = go.clone();
            async move {
                if key == 1 {
                    go.wait().await;
                    return knot.ask(0).await;
                }
                let (mut other, mut never) = (knot.call(1), pin!(pending::<()>()));
                poll_fn(|cx| {
                    let _ = never.as_mut().poll(cx);
                    other.as_mut().poll(cx)
                })
                .await
            }
        });
    }
    let (mut a, mut b) = (knot.call(0), knot.call(1));
    assert!(poll_once(a.as_mut()).is_pending());
    go.raise();
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(Err("round by 0".to_owned())));
}

// ---- Caller-driven loads -------------------------------------------------------------------------

type Loads = Cache<u64, u64>;

/// What a panic said.
fn message(ended: thread::Result<Poll<u64>>) -> String {
    let payload = ended.expect_err("it panics");
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).expect("a text")
}

/// One poll that may panic.
fn try_poll<F: Future<Output = u64>>(call: Pin<&mut F>) -> thread::Result<Poll<u64>> {
    catch_unwind(AssertUnwindSafe(|| poll_once(call)))
}

#[test]
fn two_loads_of_get_with_that_wait_for_each_other_panic_and_the_keys_are_usable() {
    let (cache, go) = (Loads::new(8), Event::default());
    let call = |key: u64| {
        let (cache, go) = (&cache, go.wait());
        let load = async move {
            go.await;
            cache.get_with(1 - key, async { unreachable!("it is under way") }).await
        };
        Box::pin(cache.get_with(key, load))
    };
    let (mut a, mut b) = (call(0), call(1));
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(poll_once(b.as_mut()).is_pending());
    go.raise();
    assert!(poll_once(a.as_mut()).is_pending());
    assert!(message(try_poll(b.as_mut())).contains("recursive load"));
    assert!(message(try_poll(a.as_mut())).contains("recursive load"));
    drop((a, b));
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(poll_once(pin!(cache.get_with(0, ready(5)))), Poll::Ready(5));
    assert_eq!(poll_once(pin!(cache.try_get_with(1, ready(Ok::<_, u8>(6))))), Poll::Ready(Ok(6)));
}

#[test]
fn a_load_that_is_led_inside_another_is_part_of_the_circle() {
    // 0 leads 1 inside itself, 1 waits for 2, and 2 waits for 0.
    let (cache, go) = (Loads::new(8), Event::default());
    let under_way = || async { unreachable!("it is under way") };
    let mut two = Box::pin(cache.get_with(2, async {
        go.wait().await;
        cache.get_with(0, under_way()).await
    }));
    assert!(poll_once(two.as_mut()).is_pending());
    let one = async { cache.get_with(2, under_way()).await };
    let mut zero = Box::pin(cache.get_with(0, async { cache.get_with(1, one).await }));
    assert!(poll_once(zero.as_mut()).is_pending());
    go.raise();
    assert!(message(try_poll(two.as_mut())).contains("recursive load"));
    assert!(message(try_poll(zero.as_mut())).contains("recursive load"));
}

#[test]
fn a_load_that_takes_the_lead_of_another_goes_on_waiting_for_it() {
    // 1 is led by a caller outside; 0 waits for it, takes the lead over, and is then asked for by what it runs.
    let (cache, go) = (Loads::new(8), Event::default());
    let mut outside = Box::pin(cache.get_with(1, pending()));
    assert!(poll_once(outside.as_mut()).is_pending());
    let own = async { cache.get_with(2, async { unreachable!("it is under way") }).await };
    let mut two = Box::pin(cache.get_with(2, async {
        go.wait().await;
        cache.get_with(0, async { unreachable!("it is under way") }).await
    }));
    assert!(poll_once(two.as_mut()).is_pending());
    let mut zero = Box::pin(cache.get_with(0, async { cache.get_with(1, own).await }));
    assert!(poll_once(zero.as_mut()).is_pending());
    drop(outside);
    assert!(poll_once(zero.as_mut()).is_pending(), "0 leads 1, which waits for 2");
    go.raise();
    assert!(message(try_poll(two.as_mut())).contains("recursive load"));
    assert!(message(try_poll(zero.as_mut())).contains("recursive load"));
}

#[test]
fn a_plain_waiter_is_in_no_circle() {
    let (cache, go) = (Loads::new(8), Event::default());
    let mut a = Box::pin(cache.get_with(0, async {
        go.wait().await;
        cache.get_with(1, ready(1)).await
    }));
    assert!(poll_once(a.as_mut()).is_pending());
    let mut waiter = Box::pin(cache.get_with(0, ready(7)));
    assert!(poll_once(waiter.as_mut()).is_pending());
    go.raise();
    assert_eq!(poll_once(a.as_mut()), Poll::Ready(1));
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(1));
}

#[test]
fn a_load_that_was_stolen_is_in_no_circle_with_the_newer_one() {
    let (cache, go) = (Loads::new(8), Event::default());
    // The old load of 0 waits for 1, and 1 for the new load of 0.
    let mut old =
        Box::pin(cache.get_with(0, async {
            cache.get_with(1, async { unreachable!("it is under way") }).await
        }));
    let mut one = Box::pin(cache.get_with(1, async {
        go.wait().await;
        cache.get_with(0, async { unreachable!("it is under way") }).await
    }));
    assert!(poll_once(one.as_mut()).is_pending());
    assert!(poll_once(old.as_mut()).is_pending());
    let new = async {
        go.wait().await;
        poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
        5
    };
    let mut thief = Box::pin(cache.get_with(0, new).steal_after(|| ready(())));
    assert!(poll_once(thief.as_mut()).is_pending());
    go.raise();
    assert!(poll_once(one.as_mut()).is_pending(), "1 waits for the new load");
    drop(thief);
    drop(one);
    drop(old);
    assert_eq!(cache.entry_count(), 0);
}

#[test]
fn two_threads_that_load_for_each_other_are_told() {
    for _ in 0..200 {
        let cache: Loads =
            Cache::builder().max_capacity(8).blocking_patience(Duration::MAX).build();
        let begun = std::sync::Barrier::new(2);
        let load = |key: u64| {
            catch_unwind(AssertUnwindSafe(|| {
                cache.get_or_insert_with(key, || {
                    begun.wait();
                    cache.get_or_insert_with(1 - key, || unreachable!("it is under way"))
                })
            }))
        };
        thread::scope(|s| {
            let other = s.spawn(|| load(0));
            let here = message(load(1).map(Poll::Ready));
            let there = message(other.join().expect("caught").map(Poll::Ready));
            assert!(here.contains("recursive load") && there.contains("recursive load"));
        });
        assert_eq!(cache.get_or_insert_with(0, || 3), 3);
        assert_eq!(cache.get_or_insert_with(1, || 4), 4);
    }
}

// ---- Many tasks on many threads ------------------------------------------------------------------

/// Lets other tasks run.
async fn pause() {
    let mut paused = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut paused, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Calls all keys from tasks of a runtime, some of them cancelled; answers what the calls ended with.
fn storm(knot: &Knot, keys: u32, seed: u64) -> Vec<Result<u32, String>> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("a runtime");
    runtime.block_on(async {
        let mut random = Random(seed);
        let tasks: Vec<_> = (0..3 * keys)
            .map(|_| {
                let key = random.below(u64::from(keys)) as u32;
                let patience = random.below(6);
                let knot = knot.clone();
                tokio::spawn(async move {
                    // Half of the callers give up after a few polls.
                    let mut polls = 0;
                    let mut call = knot.call(key);
                    poll_fn(|cx| {
                        polls += 1;
                        if patience < 3 && polls > patience {
                            return Poll::Ready(None);
                        }
                        call.as_mut().poll(cx).map(Some)
                    })
                    .await
                })
            })
            .collect();
        let mut ended = Vec::new();
        for task in tasks {
            ended.extend(task.await.expect("no panic"));
        }
        ended
    })
}

#[test]
fn loads_without_a_circle_are_never_told_of_one() {
    for seed in 0..30 {
        let knot = Knot::new();
        knot.tie(move |knot, key| async move {
            let mut random = Random(seed << 32 | u64::from(key));
            let mut sum = key;
            for _ in 0..random.below(4) {
                pause().await;
                // Smaller keys only.
                if key > 0 {
                    sum = sum.wrapping_add(knot.ask(random.below(u64::from(key)) as u32).await?);
                }
            }
            Ok(sum)
        });
        for result in storm(&knot, 24, seed) {
            assert!(result.is_ok(), "seed {seed}: {result:?}");
        }
        assert_eq!(knot.tasks(), 0);
    }
}

#[test]
fn loads_with_circles_all_end() {
    let mut told = 0;
    for seed in 0..30 {
        let knot = Knot::new();
        knot.tie(move |knot, key| async move {
            let mut random = Random(seed << 32 | u64::from(key));
            for _ in 0..random.below(4) {
                pause().await;
                knot.ask(random.below(12) as u32).await?;
            }
            Ok(key)
        });
        // A circle that nobody is told of would hang here.
        told += storm(&knot, 12, seed).iter().filter(|result| result.is_err()).count();
        assert_eq!(knot.tasks(), 0);
    }
    assert!(told > 0, "the keys go round in circles");
}

#[test]
fn a_load_asked_for_by_another_is_driven_by_any_waiter_and_keeps_its_waits() {
    // 0 asks for 1; 1 is driven by a caller outside; 1 asks for 2; 2 asks for 0.
    let go = gates(3);
    let knot = ring(&go);
    let mut calls: Vec<_> = [1, 0, 2].map(|key| knot.call(key)).into();
    let mut second = knot.call(1);
    for call in &mut calls {
        assert!(poll_once(call.as_mut()).is_pending());
    }
    drop(calls.remove(0));
    assert!(poll_once(second.as_mut()).is_pending());
    go[1].raise();
    assert!(poll_once(second.as_mut()).is_pending(), "1 waits for 2");
    go[0].raise();
    assert!(poll_once(calls[0].as_mut()).is_pending(), "0 waits for 1");
    go[2].raise();
    assert_eq!(poll_once(calls[1].as_mut()), Poll::Ready(Err("round by 0".to_owned())));
}

// ---- Bulk loads and computes ---------------------------------------------------------------------

/// Polls `future`, which finds that it would wait for itself.
fn is_told(future: impl Future) -> bool {
    let mut future = pin!(future);
    let polled = catch_unwind(AssertUnwindSafe(|| poll_once(future.as_mut()).is_pending()));
    polled.is_err_and(|panic| {
        let message = panic.downcast_ref::<String>().expect("a message");
        message.starts_with("recursive load")
    })
}

#[test]
fn a_bulk_load_in_a_circle_is_told_by_whichever_of_its_keys() {
    for key in [1, 2] {
        let cache: Cache<u32, u32> = Cache::new(100);
        // Keys 1 and 2 wait for 3 ...
        let mut bulk = pin!(cache.get_many([1, 2], |missing| {
            let cache = &cache;
            async move {
                let three = cache.get_with(3, pending()).await;
                missing.into_iter().map(move |key| (key, three)).collect::<Vec<_>>()
            }
        }));
        let go = Event::default();
        // ... and 3 for one of them.
        let gate = go.wait();
        let mut three = pin!(cache.get_with(3, async {
            gate.await;
            cache.get_with(key, ready(0)).await
        }));
        assert!(poll_once(three.as_mut()).is_pending());
        assert!(poll_once(bulk.as_mut()).is_pending());
        go.raise();
        assert!(is_told(three.as_mut()), "3 waits for {key}");
    }
}

#[test]
fn a_bulk_load_made_in_a_load_is_a_wait_of_that_load() {
    let cache: Cache<u32, u32> = Cache::new(100);
    let go = Event::default();
    // 1 waits for a bulk of 2 and 3 ...
    let mut one = pin!(cache.get_with(1, async {
        let all = cache.get_many([2, 3], |missing| {
            let (gate, cache) = (go.wait(), &cache);
            async move {
                gate.await;
                // ... which waits for 4 ...
                let four = cache.get_with(4, pending()).await;
                missing.into_iter().map(move |key| (key, four)).collect::<Vec<_>>()
            }
        });
        all.await[&2]
    }));
    // ... and 4 for 1.
    let asks = Event::default();
    let gate = asks.wait();
    let mut four = pin!(cache.get_with(4, async {
        gate.await;
        cache.get_with(1, ready(0)).await
    }));
    assert!(poll_once(four.as_mut()).is_pending());
    assert!(poll_once(one.as_mut()).is_pending());
    asks.raise();
    assert!(poll_once(four.as_mut()).is_pending(), "4 waits for 1, which waits for a gate");
    go.raise();
    assert!(is_told(one.as_mut()));
}

#[test]
fn bulk_loads_that_cross_are_no_circle() {
    let cache: Cache<u32, u32> = Cache::new(100);
    let outer = |n: u32, keys: [u32; 2]| {
        let cache = &cache;
        cache.get_with(n, async move {
            let load = |missing: Vec<u32>| async move {
                missing.into_iter().map(|key| (key, 10 * key)).collect::<Vec<_>>()
            };
            cache.get_many(keys, load).await.into_values().sum()
        })
    };
    let (mut a, mut b) = (pin!(outer(1, [5, 6])), pin!(outer(2, [6, 5])));
    assert_eq!(poll_once(a.as_mut()), Poll::Ready(110));
    assert_eq!(poll_once(b.as_mut()), Poll::Ready(110));
}

#[test]
fn an_async_compute_in_a_circle_is_told_whether_there_was_a_value_or_not() {
    for is_there in [false, true] {
        let cache: Cache<u32, u32> = Cache::new(100);
        if is_there {
            cache.insert(1, 1);
        }
        // The compute of 1 waits for 2 ...
        let mut one = pin!(cache.entry(1).and_upsert_with_async(|_| cache.get_with(2, pending())));
        let go = Event::default();
        let gate = go.wait();
        // ... and 2 for another compute of 1.
        let mut two = pin!(cache.get_with(2, async {
            gate.await;
            let again = cache.entry(1).and_upsert_with_async(|_| ready(0));
            again.await.into_value().expect("put")
        }));
        assert!(poll_once(two.as_mut()).is_pending());
        assert!(poll_once(one.as_mut()).is_pending());
        go.raise();
        assert!(is_told(two.as_mut()), "a value before: {is_there}");
    }
}

type Calls = Pin<Box<dyn Future<Output = HashMap<u32, Result<u32, LoadError<String>>>> + Send>>;

/// Calls of several keys, passed on.
#[derive(Clone, Default)]
struct Hands(Arc<Mutex<Option<Calls>>>);

impl Hands {
    fn put(&self, calls: Calls) {
        *self.0.lock().expect("no panic") = Some(calls);
    }

    fn take(&self) -> Option<Calls> {
        self.0.lock().expect("no panic").take()
    }
}

/// A cache of loads that call it. It lives till the end of the process.
fn calling<F>(
    load: impl Fn(&'static LoadingCache<u32, u32, String>, u32) -> F + Send + Sync + 'static,
) -> &'static LoadingCache<u32, u32, String>
where
    F: Future<Output = Result<u32, String>> + Send + 'static,
{
    let cache: &'static OnceLock<_> = Box::leak(Box::default());
    let loader = move |key| load(cache.get().expect("built"), key);
    cache.get_or_init(|| Cache::builder().max_capacity(8).loader(loader).build())
}

#[test]
fn calls_of_many_keys_that_move_out_of_a_load_are_waits_of_it_no_more() {
    let (go, hands) = (Event::default(), Hands::default());
    let (gate, made) = (go.clone(), hands.clone());
    let cache = calling(move |cache, key| {
        let (gate, made) = (gate.clone(), made.clone());
        async move {
            if key == 1 {
                gate.wait().await;
                return cache.get(0).await.map_err(|error| error.to_string());
            }
            let mut calls: Calls = Box::pin(cache.get_many([1]));
            assert!(poll_once(calls.as_mut()).is_pending());
            made.put(calls);
            pending().await
        }
    });
    let (mut one, mut zero) = (pin!(cache.get(1)), pin!(cache.get(0)));
    assert!(poll_once(one.as_mut()).is_pending());
    assert!(poll_once(zero.as_mut()).is_pending());
    let mut calls = hands.take().expect("made in 0");
    assert!(poll_once(calls.as_mut()).is_pending(), "polled outside of 0");
    go.raise();
    assert!(poll_once(one.as_mut()).is_pending(), "1 waits for 0, which does not wait for 1");
}

#[test]
fn calls_of_many_keys_that_move_into_a_load_are_waits_of_it_from_then_on() {
    let hands = Hands::default();
    let given = hands.clone();
    let cache = calling(move |cache, key| {
        let given = given.clone();
        async move {
            if key == 1 {
                return cache.get(0).await.map_err(|error| error.to_string());
            }
            // Wakes nobody: it is polled by hand.
            let take = poll_fn(|_| given.take().map_or(Poll::Pending, Poll::Ready));
            let told = take.await.await[&1].clone();
            Ok(u32::from(told == Err(LoadError::Recursive)))
        }
    });
    let mut many: Calls = Box::pin(cache.get_many([1]));
    assert!(poll_once(many.as_mut()).is_pending());
    let mut zero = pin!(cache.get(0));
    assert!(poll_once(zero.as_mut()).is_pending());
    hands.put(many);
    assert_eq!(poll_once(zero.as_mut()), Poll::Ready(Ok(1)), "told that it would wait for itself");
}
