//! Loads of a loader beside loads by callers, over the public futures.

use alru::{Cache, LoadingCache};
use alru_loom_tests::{Bell, Value, check};
use loom::future::block_on;
use loom::thread;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll};

fn poll<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(&Bell::new().1))
}

/// A cache whose loader counts its runs and is ready at once.
fn loading() -> (LoadingCache<u32, Value>, Arc<AtomicUsize>) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = runs.clone();
    let loader = move |_| {
        counted.fetch_add(1, SeqCst);
        async { Value::new() }
    };
    (Cache::builder().max_capacity(2).reserve(4).loader_infallible(loader).build(), runs)
}

#[test]
fn the_loader_takes_a_load_over_whose_leader_is_dropped() {
    check(|| {
        let (loading, runs) = loading();
        let mut leader = Box::pin(loading.cache().get_with(1, pending()));
        assert!(poll(&mut leader).is_pending());
        let other = loading.clone();
        let caller = thread::spawn(move || block_on(other.get(1)).unwrap().read());
        drop(leader);
        caller.join().unwrap();
        assert_eq!((runs.load(SeqCst), loading.cache().entry_count(), loading.loads()), (1, 1, 0));
        drop(loading);
        Value::all_gone();
    });
}

#[test]
fn the_loader_leaves_a_load_alone_that_has_a_leader() {
    check(|| {
        let (loading, runs) = loading();
        let mut is_first = true;
        let mut leader = Box::pin(loading.cache().get_with(
            1,
            poll_fn(move |_| {
                if std::mem::take(&mut is_first) {
                    Poll::Pending
                } else {
                    Poll::Ready(Value::new())
                }
            }),
        ));
        assert!(poll(&mut leader).is_pending());
        let other = loading.clone();
        let caller = thread::spawn(move || block_on(other.get(1)).unwrap().read());
        let Poll::Ready(value) = poll(&mut leader) else { panic!("ready now") };
        value.read();
        caller.join().unwrap();
        assert_eq!(runs.load(SeqCst), 0);
        drop((leader, value));
        drop(loading);
        Value::all_gone();
    });
}

#[test]
fn of_a_caller_and_the_loader_one_takes_over_and_none_sleeps() {
    check(|| {
        let (loading, runs) = loading();
        let mut leader = Box::pin(loading.cache().get_with(1, pending()));
        assert!(poll(&mut leader).is_pending());
        let other = loading.clone();
        let mut getter = Box::pin(async move { other.get(1).await.unwrap() });
        assert!(poll(&mut getter).is_pending());
        let own = runs.clone();
        let mut caller = Box::pin(loading.cache().get_with(1, async {
            own.fetch_add(1, SeqCst);
            Value::new()
        }));
        assert!(poll(&mut caller).is_pending());
        drop(leader);
        let thread = thread::spawn(move || block_on(getter).read());
        block_on(&mut caller).read();
        thread.join().unwrap();
        assert_eq!(runs.load(SeqCst), 1);
        drop(caller);
        assert_eq!((loading.cache().entry_count(), loading.loads()), (1, 0));
        drop(loading);
        Value::all_gone();
    });
}
