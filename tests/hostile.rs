//! User code that panics or calls back into the cache, wherever the cache runs it: each may, once or
//! always, and leaves the cache usable, its counts right, and every value dropped once.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::{Future, pending, ready};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use alru::Cache;
use common::{Bomb, Counted, Flag, Tally, eventually, poll_once};

/// Runs `f`; answers what it panicked with, if it did.
fn panics<T>(f: impl FnOnce() -> T) -> Option<&'static str> {
    let panic = catch_unwind(AssertUnwindSafe(f)).err()?;
    Some(panic.downcast_ref::<&str>().expect("a plain message"))
}

/// Works as a cache of at least 8 should, and keeps no more than is resident.
fn assert_usable<K, V>(cache: &Cache<K, V>, key: impl Fn(u64) -> K, value: impl Fn(u64) -> V)
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    cache.invalidate_all();
    assert_eq!(cache.entry_count(), 0);
    for n in 1_000..1_008 {
        cache.insert(key(n), value(n));
        assert!(cache.get(&key(n)).is_some());
    }
    assert_eq!(cache.entry_count(), 8);
    for n in 1_000..1_008 {
        assert!(cache.remove(&key(n)).is_some());
        assert!(!cache.contains_key(&key(n)));
        assert!(poll_once(pin!(cache.get_with(key(n), ready(value(n))))).is_ready());
        assert!(cache.invalidate(&key(n)));
    }
    assert_eq!(cache.entry_count(), 0);
}

// ---- Keys -------------------------------------------------------------------------------------

#[derive(Clone)]
struct TouchyKey {
    id: u64,
    hash: Bomb,
    eq: Bomb,
}

impl TouchyKey {
    fn new(id: u64) -> Self {
        Self { id, hash: Bomb::default(), eq: Bomb::default() }
    }
}

impl Hash for TouchyKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.hash.go_off();
        self.id.hash(state);
    }
}

impl PartialEq for TouchyKey {
    fn eq(&self, other: &Self) -> bool {
        self.eq.go_off();
        other.eq.go_off();
        self.id == other.id
    }
}

impl Eq for TouchyKey {}

type Operation = fn(&Cache<TouchyKey, Counted<u64>>, TouchyKey, &Tally);

/// Every operation that takes a key, on key 1, which is there.
fn operations() -> Vec<(&'static str, Operation)> {
    vec![
        ("get", |cache, key, _| drop(cache.get(&key))),
        ("peek", |cache, key, _| drop(cache.peek(&key))),
        ("contains_key", |cache, key, _| assert!(cache.contains_key(&key))),
        ("insert", |cache, key, tally| cache.insert(key, Counted::new(2, tally))),
        ("remove", |cache, key, _| drop(cache.remove(&key))),
        ("invalidate", |cache, key, _| assert!(cache.invalidate(&key))),
        ("pin", |cache, key, _| assert!(cache.pin().get(&key).is_some())),
        ("get_with", |cache, key, tally| {
            drop(poll_once(pin!(cache.get_with(key, ready(Counted::new(2, tally))))));
        }),
    ]
}

#[test]
fn a_hash_that_panics_passes_through_every_operation_and_changes_nothing() {
    let tally = Tally::default();
    let cache = Cache::new(8);
    for (name, operation) in operations() {
        cache.insert(TouchyKey::new(1), Counted::new(1, &tally));
        let key = TouchyKey::new(1);
        key.hash.arm();
        assert_eq!(panics(|| operation(&cache, key, &tally)), Some("bomb"), "{name}");
        assert_eq!(cache.peek(&TouchyKey::new(1)).map(|v| v.inner), Some(1), "{name}");
        assert_eq!(cache.entry_count(), 1, "{name}");
    }
    assert_usable(&cache, TouchyKey::new, |n| Counted::new(n, &tally));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn an_eq_that_panics_passes_through_every_operation_and_leaves_the_value_or_nothing() {
    let tally = Tally::default();
    let cache = Cache::new(8);
    for (name, operation) in operations() {
        cache.insert(TouchyKey::new(1), Counted::new(1, &tally));
        let key = TouchyKey::new(1);
        key.eq.arm();
        assert_eq!(panics(|| operation(&cache, key, &tally)), Some("bomb"), "{name}");
        let found = cache.peek(&TouchyKey::new(1)).map(|v| v.inner);
        assert!(found.is_none() || found == Some(1), "{found:?} after {name}");
        assert_eq!(cache.entry_count(), u64::from(found.is_some()), "{name}");
    }
    assert_usable(&cache, TouchyKey::new, |n| Counted::new(n, &tally));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn an_eq_that_panics_in_the_middle_of_a_full_cache_loses_no_slot() {
    let tally = Tally::default();
    let cache = Cache::new(8);
    for round in 0..1_000 {
        let key = TouchyKey::new(round % 20);
        key.eq.arm();
        let value = Counted::new(round, &tally);
        let _ = panics(|| cache.insert(key, value));
        // The key may be in by now, still armed.
        let value = Counted::new(round, &tally);
        let _ = panics(|| cache.insert(TouchyKey::new(round % 20), value));
        assert!(cache.entry_count() <= 8);
    }
    assert_usable(&cache, TouchyKey::new, |n| Counted::new(n, &tally));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

// ---- Clones and drops -------------------------------------------------------------------------

struct TouchyValue {
    counted: Counted<u64>,
    clone: Bomb,
    drop: Bomb,
}

impl TouchyValue {
    fn new(id: u64, tally: &Tally) -> Self {
        Self { counted: Counted::new(id, tally), clone: Bomb::default(), drop: Bomb::default() }
    }
}

impl Clone for TouchyValue {
    fn clone(&self) -> Self {
        self.clone.go_off();
        Self { counted: self.counted.clone(), clone: Bomb::default(), drop: Bomb::default() }
    }
}

impl Drop for TouchyValue {
    fn drop(&mut self) {
        self.drop.go_off();
    }
}

#[test]
fn a_clone_that_panics_passes_through_every_read_and_leaves_the_value() {
    let tally = Tally::default();
    let cache: Cache<u64, TouchyValue> = Cache::new(8);
    let reads: [fn(&Cache<u64, TouchyValue>); 3] = [
        |cache| drop(cache.get(&1)),
        |cache| drop(cache.peek(&1)),
        |cache| drop(poll_once(pin!(cache.get_with(1, pending())))),
    ];
    for read in reads {
        let value = TouchyValue::new(1, &tally);
        value.clone.arm();
        cache.insert(1, value);
        assert_eq!(panics(|| read(&cache)), Some("bomb"));
        assert_eq!(cache.get(&1).map(|v| v.counted.inner), Some(1));
    }
    assert_usable(&cache, |n| n, |n| TouchyValue::new(n, &tally));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn a_clone_that_panics_as_a_load_is_stored_leaves_the_key_usable_and_nobody_waiting() {
    let tally = Tally::default();
    let cache: Cache<u64, TouchyValue> = Cache::new(8);
    let value = TouchyValue::new(1, &tally);
    value.clone.arm();
    let gate = Flag::new();
    let mut leader = Box::pin(cache.get_with(1, async {
        std::future::poll_fn(|_| if gate.take() { Poll::Ready(()) } else { Poll::Pending }).await;
        value
    }));
    let (flag, mut waiter) =
        (Flag::new(), Box::pin(cache.get_with(1, ready(TouchyValue::new(2, &tally)))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    Waker::from(gate.clone()).wake();
    // Whoever clones it meets the panic; afterwards the other ends too.
    let _ = panics(|| poll_once(leader.as_mut()));
    drop(leader);
    assert!(flag.take(), "not woken");
    let ended = catch_unwind(AssertUnwindSafe(|| flag.poll(waiter.as_mut()).is_ready()));
    assert!(!matches!(ended, Ok(false)), "the waiter hangs");
    drop(waiter);
    assert_usable(&cache, |n| n, |n| TouchyValue::new(n, &tally));
    drop(cache);
    assert_eq!(tally.alive(), 0);
}

#[test]
fn a_destructor_that_panics_passes_through_one_write_and_all_others_run() {
    let tally = Tally::default();
    let cache: Cache<u64, TouchyValue> = Cache::new(8);
    let bombs: Vec<_> = (0..10)
        .map(|_| {
            let value = TouchyValue::new(1, &tally);
            let bomb = value.drop.clone();
            bomb.arm();
            cache.insert(1, value);
            cache.insert(1, TouchyValue::new(2, &tally));
            bomb
        })
        .collect();
    // Each panic comes out of some write or another; none is lost, none comes twice.
    let caught = Cell::new(0);
    let rounds = |bombs: &[Bomb]| bombs.iter().all(Bomb::went_off);
    assert!(eventually(
        || caught.set(caught.get() + usize::from(panics(|| cache.run_pending_tasks()).is_some())),
        || rounds(&bombs)
    ));
    assert!((1..=10).contains(&caught.get()), "{} panics", caught.get());
    assert_usable(&cache, |n| n, |n| TouchyValue::new(n, &tally));
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == 0));
}

#[test]
fn a_destructor_that_panics_with_the_last_handle_does_not_keep_the_others_from_running() {
    let tally = Tally::default();
    let cache: Cache<u64, TouchyValue> = Cache::new(64);
    let mut bombs = Vec::new();
    for key in 0..32 {
        let value = TouchyValue::new(key, &tally);
        if key % 5 == 0 {
            value.drop.arm();
            bombs.push(value.drop.clone());
        }
        cache.insert(key, value);
    }
    let _ = catch_unwind(AssertUnwindSafe(|| drop(cache)));
    assert!(bombs.iter().all(Bomb::went_off));
    assert_eq!(tally.alive(), 0);
}

thread_local! {
    /// The cache that clones and destructors of this thread call back into.
    static BACK: RefCell<Option<Cache<u64, Returner>>> = const { RefCell::new(None) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

/// Its clone and its destructor use the cache that it is in.
struct Returner {
    counted: Counted<u64>,
    tally: Tally,
    /// How many more its destructor makes, one after the other.
    heirs: u64,
}

impl Returner {
    fn new(key: u64, heirs: u64, tally: &Tally) -> Self {
        Self { counted: Counted::new(key, tally), tally: tally.clone(), heirs }
    }

    fn cache(&self) -> Option<Cache<u64, Returner>> {
        CALLS.set(CALLS.get() + 1);
        BACK.with_borrow(Clone::clone)
    }
}

impl Clone for Returner {
    fn clone(&self) -> Self {
        if let Some(cache) = self.cache() {
            let key = self.counted.inner;
            assert!(cache.entry_count() <= 16 + 3);
            assert!(cache.pin().get(&(key + 1)).is_none_or(|next| next.counted.inner == key + 1));
            cache.invalidate(&((key + 7) % 40));
        }
        Self::new(self.counted.inner, 0, &self.tally)
    }
}

impl Drop for Returner {
    fn drop(&mut self) {
        if let (1.., Some(cache)) = (self.heirs, self.cache()) {
            let key = (self.counted.inner * 7 + 1) % 40;
            cache.insert(key, Self::new(key, self.heirs - 1, &self.tally));
            drop(cache.peek(&((key + 1) % 40)));
            drop(cache.remove(&((key + 3) % 40)));
            drop(poll_once(pin!(cache.get_with((key + 5) % 40, pending()))));
            if key == 0 {
                cache.run_pending_tasks();
            }
        }
    }
}

#[test]
fn clones_and_destructors_that_call_back_into_the_cache_find_it_working() {
    let tally = Tally::default();
    let cache: Cache<u64, Returner> = Cache::new(16);
    BACK.set(Some(cache.clone()));
    for n in 0..3_000 {
        cache.insert(n % 40, Returner::new(n % 40, n % 5, &tally));
        drop(cache.get(&(n % 37)));
        if n % 50 == 0 {
            cache.run_pending_tasks();
        }
    }
    assert!(CALLS.get() > 3_000, "{} calls", CALLS.get());
    assert!(cache.entry_count() <= 16);
    BACK.set(None);
    cache.invalidate_all();
    assert!(eventually(|| cache.run_pending_tasks(), || tally.alive() == 0));
}

#[test]
fn many_threads_with_destructors_that_call_back_end() {
    struct Chain {
        depth: u64,
        cache: Arc<std::sync::OnceLock<Cache<u64, Chain>>>,
        _counted: Counted<u64>,
        tally: Tally,
    }
    impl Clone for Chain {
        fn clone(&self) -> Self {
            unreachable!("never read")
        }
    }
    impl Drop for Chain {
        fn drop(&mut self) {
            // Each puts a shorter one in its place.
            if let (1.., Some(cache)) = (self.depth, self.cache.get()) {
                cache.insert(self.depth, chain(self.depth - 1, &self.cache, &self.tally));
            }
        }
    }
    fn chain(
        depth: u64,
        cache: &Arc<std::sync::OnceLock<Cache<u64, Chain>>>,
        tally: &Tally,
    ) -> Chain {
        Chain {
            depth,
            cache: cache.clone(),
            _counted: Counted::new(depth, tally),
            tally: tally.clone(),
        }
    }

    let tally = Tally::default();
    let cell = Arc::new(std::sync::OnceLock::new());
    let cache: Cache<u64, Chain> = Cache::new(8);
    assert!(cell.set(cache.clone()).is_ok());
    std::thread::scope(|scope| {
        for id in 0..4 {
            let (cell, tally) = (&cell, &tally);
            scope.spawn(move || {
                let cache = cell.get().expect("set above");
                for n in 0..5_000 {
                    cache.insert((id + n) % 30, chain(n % 6, cell, tally));
                }
            });
        }
    });
    // The values hold the cell and the cell the cache: what is left is resident or none.
    assert!(cache.entry_count() <= 8);
    let empty = || {
        cache.invalidate_all();
        cache.run_pending_tasks();
    };
    assert!(eventually(empty, || tally.alive() == 0));
}

// ---- Loaders and wakers -----------------------------------------------------------------------

#[test]
fn a_loader_may_use_the_cache_for_other_keys_and_write_its_own() {
    let cache: Cache<u64, u64> = Cache::new(8);
    let call = cache.get_with(1, async {
        assert_eq!(cache.get(&1), None);
        cache.insert(2, 20);
        let three = cache.get_with(3, async { cache.get_with(4, ready(40)).await + 1 }).await;
        cache.insert(1, 100);
        assert_eq!(cache.get(&1), Some(100));
        three + 1
    });
    assert_eq!(poll_once(pin!(call)), Poll::Ready(42));
    assert_eq!(cache.get(&1), Some(100), "the newer value stays");
    assert_eq!((cache.get(&2), cache.get(&3), cache.get(&4)), (Some(20), Some(41), Some(40)));
}

#[test]
fn a_loader_that_asks_for_its_own_key_panics_instead_of_waiting_for_itself() {
    let cache: Cache<u64, u64> = Cache::new(8);
    let call = cache.get_with(1, async { cache.get_with(1, ready(2)).await });
    let ended = catch_unwind(AssertUnwindSafe(|| poll_once(pin!(call))));
    assert!(!matches!(ended, Ok(Poll::Pending)), "waits for itself");
    assert!(ended.is_err());
    assert_eq!(poll_once(pin!(cache.get_with(1, ready(3)))), Poll::Ready(3));
}

#[test]
fn a_loader_that_panics_in_try_get_with_leaves_the_key_usable() {
    let cache: Cache<u64, u64> = Cache::new(8);
    for _ in 0..100 {
        let call = cache.try_get_with(1, async { panic!("no") as Result<u64, ()> });
        assert_eq!(panics(|| poll_once(pin!(call))), Some("no"));
        assert_eq!(cache.entry_count(), 0);
    }
    assert_eq!(cache.stats().load_failures, 100);
    assert_eq!(poll_once(pin!(cache.try_get_with(1, ready(Ok::<_, ()>(2))))), Poll::Ready(Ok(2)));
}

#[test]
fn a_loader_whose_destructor_panics_leaves_the_key_usable() {
    struct Explosive(Bomb);
    impl Drop for Explosive {
        fn drop(&mut self) {
            self.0.go_off();
        }
    }
    let cache: Cache<u64, u64> = Cache::new(8);
    let bomb = Bomb::default();
    bomb.arm();
    let explosive = Explosive(bomb.clone());
    let mut leader = Box::pin(cache.get_with(1, async {
        pending::<()>().await;
        drop(explosive);
        1
    }));
    let (flag, mut waiter) = (Flag::new(), Box::pin(cache.get_with(1, ready(2))));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(flag.poll(waiter.as_mut()).is_pending());
    flag.take();
    assert_eq!(panics(|| drop(leader)), Some("bomb"));
    assert!(flag.take(), "not woken");
    assert_eq!(flag.poll(waiter.as_mut()), Poll::Ready(2));
}

struct TouchyWaker {
    woken: AtomicUsize,
    bomb: Bomb,
}

impl Wake for TouchyWaker {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, SeqCst);
        self.bomb.go_off();
    }
}

#[test]
fn a_waker_that_panics_keeps_neither_the_value_nor_the_others_from_their_end() {
    let cache: Cache<u64, u64> = Cache::new(8);
    let gate = Flag::new();
    let mut leader = Box::pin(cache.get_with(1, async {
        std::future::poll_fn(|_| if gate.take() { Poll::Ready(()) } else { Poll::Pending }).await;
        1
    }));
    assert!(poll_once(leader.as_mut()).is_pending());
    let wakers: Vec<_> = (0..5)
        .map(|n| {
            let bomb = Bomb::default();
            if n == 2 {
                bomb.arm();
            }
            Arc::new(TouchyWaker { woken: AtomicUsize::new(0), bomb })
        })
        .collect();
    let mut waiters: Vec<Pin<Box<dyn Future<Output = u64>>>> = wakers
        .iter()
        .map(|waker| {
            let mut waiter: Pin<Box<dyn Future<Output = u64>>> =
                Box::pin(cache.get_with(1, ready(2)));
            let waker = Waker::from(waker.clone());
            assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            waiter
        })
        .collect();
    Waker::from(gate.clone()).wake();
    let _ = panics(|| poll_once(leader.as_mut()));
    drop(leader);
    let woken: Vec<_> = wakers.iter().map(|waker| waker.woken.load(SeqCst)).collect();
    assert!(woken.iter().all(|n| *n > 0), "woken: {woken:?}");
    let ends: HashSet<_> = waiters
        .iter_mut()
        .map(|waiter| match poll_once(waiter.as_mut()) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("a waiter hangs"),
        })
        .collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!(cache.get(&1), ends.into_iter().next());
}

#[test]
fn a_waker_may_use_the_cache() {
    struct CallsBack(Cache<u64, u64>);
    impl Wake for CallsBack {
        fn wake(self: Arc<Self>) {
            self.0.insert(5, 50);
            assert_eq!(self.0.get(&1), Some(1));
            self.0.invalidate(&1);
        }
    }
    let cache: Cache<u64, u64> = Cache::new(8);
    let gate = Flag::new();
    let mut leader = Box::pin(cache.get_with(1, async {
        std::future::poll_fn(|_| if gate.take() { Poll::Ready(()) } else { Poll::Pending }).await;
        1
    }));
    let mut waiter = Box::pin(cache.get_with(1, ready(2)));
    let waker = Waker::from(Arc::new(CallsBack(cache.clone())));
    assert!(poll_once(leader.as_mut()).is_pending());
    assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    Waker::from(gate.clone()).wake();
    assert_eq!(poll_once(leader.as_mut()), Poll::Ready(1));
    assert_eq!(poll_once(waiter.as_mut()), Poll::Ready(1));
    assert_eq!((cache.get(&1), cache.get(&5)), (None, Some(50)));
}
