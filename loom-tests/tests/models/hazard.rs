//! Look-ups without a pin, over the real core: what a hazard names is neither dropped nor reused.
//!
//! Grace periods are over at once here, so the hazard alone protects the reader, and a reader that finds its bin
//! changing, and would pin, gives up instead.

use alru::raw::barrier::Available;
use alru::raw::core::Core;
use alru::raw::reclaim::{self, AtOnce};
use alru_loom_tests::{Key, Name, Value, check, check_deeper, core};
use loom::thread;
use std::sync::Arc;

const A: Key = (7, 1);
/// In another bin.
const B: Key = (1 << 31, 2);

type Cache = Arc<Core<Name, Value>>;

fn insert(cache: &Cache, (tag, key): Key) {
    assert!(cache.insert(tag, Name::new(key), Value::new()));
}

/// Drops what it removes, unless it is being read.
fn remove(cache: &Cache, (tag, key): Key) {
    assert!(cache.remove(&reclaim::pin(), tag, &key).1);
}

/// Key and value of A are whole wherever they are found.
fn read_a(cache: &Cache) -> Option<bool> {
    Some(cache.read_shielded(A.0, &A.1)?.is_some())
}

/// The reader reads A while `write` runs; nothing is left in the end.
fn read_a_while(write: fn(&Cache)) {
    let (_available, _at_once) = (Available::new(), AtOnce::new());
    let cache = core(1);
    insert(&cache, A);
    let other = cache.clone();
    let reader = thread::spawn(move || read_a(&other));
    write(&cache);
    reader.join().unwrap();
    // What was held goes with a later batch.
    cache.run_pending();
    cache.run_pending();
    // SAFETY: no other thread is left.
    unsafe { cache.drop_contents() };
    drop(cache);
    Value::all_gone();
}

#[test]
fn what_a_reader_names_is_not_dropped_when_it_is_removed() {
    check_deeper(|| read_a_while(|cache| remove(cache, A)));
}

#[test]
fn a_slot_that_a_reader_names_is_not_reused() {
    check(|| {
        read_a_while(|cache| {
            remove(cache, A);
            insert(cache, B);
        });
    });
}

#[test]
fn what_a_reader_names_is_dropped_once_it_has_gone() {
    check(|| {
        let (_available, _at_once) = (Available::new(), AtOnce::new());
        let cache = core(1);
        insert(&cache, A);
        let other = cache.clone();
        let reader = thread::spawn(move || read_a(&other));
        remove(&cache, A);
        reader.join().unwrap();
        assert_eq!(read_a(&cache), Some(false));
        cache.run_pending();
        cache.run_pending();
        Value::all_gone();
    });
}

#[test]
fn what_a_reader_named_before_its_next_look_up_is_dropped_after_it_was_read() {
    check(|| {
        let (_available, _at_once) = (Available::in_two_steps(), AtOnce::new());
        let cache = core(2);
        insert(&cache, A);
        insert(&cache, B);
        let other = cache.clone();
        let reader = thread::spawn(move || {
            let _ = read_a(&other);
            let _ = other.read_shielded(B.0, &B.1);
        });
        remove(&cache, A);
        cache.run_pending();
        reader.join().unwrap();
    });
}
