//! Reclamation over the real crossbeam-epoch: what a pinned thread found is not dropped or reused.
//!
//! Two threads: three take minutes. Whoever retires flushes twice after its guard is gone, in `run_pending`:
//! without that not even a reader that forgot to pin is found out.
#![cfg(all(alru_loom, crossbeam_loom))]

use alru::raw::core::Core;
use alru::raw::reclaim;
use alru_loom_tests::{Key, Name, Value, check, check_shallower, core};
use loom::thread;
use std::borrow::Borrow;
use std::sync::Arc;

const A: Key = (7, 1);
/// In another bin.
const B: Key = (1 << 31, 2);

type Cache = Arc<Core<Name, Value>>;

fn insert(cache: &Cache, (tag, key): Key) {
    assert!(cache.insert(tag, Name::new(key), Value::new()));
}

fn remove(cache: &Cache, (tag, key): Key) {
    assert!(cache.remove(&reclaim::pin(), tag, &key).1);
}

/// Reads key and value of A, if it is there, some time after it was found.
fn read_a(cache: &Cache) {
    let guard = reclaim::pin();
    let Some(slot) = cache.get(&guard, A.0, &A.1).map(std::ptr::from_ref) else { return };
    if cfg!(alru_mutation = "forgetful_reader") {
        drop(guard);
    }
    // SAFETY: `get` read READY under a guard that lives on, but in the control.
    let (key, value) = unsafe { ((*slot).key(), (*slot).value()) };
    assert_eq!(Borrow::<u32>::borrow(key), &A.1);
    value.read();
}

/// Nothing is left once nobody is pinned. Each call ends a grace period or begins one.
fn settle(cache: &Cache) {
    (0..3).for_each(|_| cache.run_pending());
    // SAFETY: no other thread is left.
    unsafe { cache.drop_contents() };
    Value::all_gone();
}

/// The reader reads while `write` runs. (One preemption, of the reader, is enough for the worst.)
fn read_a_while(write: fn(&Cache)) {
    let cache = core(1);
    insert(&cache, A);
    let other = cache.clone();
    let writer = thread::spawn(move || write(&other));
    read_a(&cache);
    writer.join().unwrap();
    settle(&cache);
}

#[test]
fn a_removed_value_lives_while_a_reader_is_pinned() {
    check_shallower(|| {
        read_a_while(|cache| {
            remove(cache, A);
            cache.run_pending();
        });
    });
}

#[test]
fn a_slot_is_not_reused_while_a_reader_is_pinned() {
    check(|| {
        read_a_while(|cache| {
            remove(cache, A);
            cache.run_pending();
            insert(cache, B);
        });
    });
}

/// One of them also takes what the other has left on its trail. (One preemption, of the other.)
#[test]
fn what_two_threads_retire_is_dropped_once() {
    check_shallower(|| {
        let cache = core(2);
        insert(&cache, A);
        insert(&cache, B);
        let other = cache.clone();
        let gleaner = thread::spawn(move || {
            remove(&other, B);
            other.run_pending();
        });
        remove(&cache, A);
        gleaner.join().unwrap();
        settle(&cache);
    });
}
