//! Eviction and replacement against readers, over the real core.

use alru::raw::core::Core;
use alru::raw::reclaim;
use alru_loom_tests::{Key, Name, Value, check, check_deeper, core};
use loom::thread;
use std::sync::Arc;

const A: Key = (7, 1);
/// In another bin.
const B: Key = (1 << 31, 2);

type Cache = Arc<Core<Name, Value>>;

fn insert(cache: &Cache, (tag, key): Key) -> bool {
    cache.insert(tag, Name::new(key), Value::new())
}

/// Reads the value if it is there.
fn read(cache: &Cache, (tag, key): Key) -> bool {
    // SAFETY: `get` read READY under this guard.
    let read = cache.get(&reclaim::pin(), tag, &key).map(|slot| unsafe { slot.value() }.read());
    read.is_some()
}

fn resident(cache: &Cache) -> u64 {
    let guard = reclaim::pin();
    [A, B].iter().filter(|(tag, key)| cache.contains(&guard, *tag, key)).count() as u64
}

fn end(cache: &Cache) {
    assert_eq!(cache.len(), resident(cache));
    // SAFETY: no other thread is left.
    unsafe { cache.drop_contents() };
    Value::all_gone();
}

#[test]
fn a_reader_finds_key_and_value_whole_while_the_hand_takes_them() {
    check_deeper(|| {
        let cache = core(1);
        assert!(insert(&cache, A));
        let other = cache.clone();
        let reader = thread::spawn(move || (read(&other, B), read(&other, A)));
        assert!(insert(&cache, B), "A makes room");
        let (found_b, found_a) = reader.join().unwrap();
        assert!(!(found_b && found_a), "there was room for one");
        assert!(read(&cache, B) && !read(&cache, A));
        end(&cache);
    });
}

#[test]
fn an_entry_that_is_replaced_is_never_missed() {
    check_deeper(|| {
        let cache = core(1);
        assert!(insert(&cache, A));
        let other = cache.clone();
        let reader = thread::spawn(move || assert!(read(&other, A)));
        assert!(insert(&cache, A));
        reader.join().unwrap();
        end(&cache);
    });
}

#[test]
fn the_capacity_is_never_exceeded() {
    check(|| {
        let cache = core(1);
        let other = cache.clone();
        let inserter = thread::spawn(move || {
            insert(&other, A);
            assert!(other.len() <= 1);
        });
        insert(&cache, B);
        assert!(cache.len() <= 1);
        inserter.join().unwrap();
        assert!(resident(&cache) <= 1);
        end(&cache);
    });
}
