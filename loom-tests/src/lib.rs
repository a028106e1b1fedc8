//! loom models over the crate's own code: `tests/`, one file a protocol.
//!
//! Each test makes one claim, with its name, and has at least one control in `controls.txt`: a mutation of the
//! crate that makes it fail. `floors.txt` has the executions that each search must take at least.
//! `ci/loom.sh` runs both; the models over the real crossbeam-epoch (`tests/reclaim.rs`) have lists and a
//! script of their own, `ci/loom-epoch.sh`.
#![cfg(alru_loom)]

use alru::PreciseTime;
use alru::raw::bin::Tag;
use alru::raw::core::{Config, Core};
use alru::raw::hands::Policy;
use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};
use std::time::Duration;

/// Searches all executions with at most `LOOM_MAX_PREEMPTIONS` preemptions, 2 if it is not set.
pub fn check(model: impl Fn() + Send + Sync + 'static) {
    check_at(0, model);
}

/// As [`check`], with one preemption more: for small models.
pub fn check_deeper(model: impl Fn() + Send + Sync + 'static) {
    check_at(1, model);
}

/// As [`check`], with one preemption less: for models of three busy threads.
pub fn check_shallower(model: impl Fn() + Send + Sync + 'static) {
    check_at(-1, model);
}

fn check_at(more: isize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.unwrap_or(2).checked_add_signed(more);
    builder.max_branches = 20_000;
    // Not each switch of threads, just the sum.
    builder.log = false;
    // Says how many executions there were, if LOOM_LOG asks for it: only `loom::model` would by itself.
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_env("LOOM_LOG"))
        .with_test_writer()
        .without_time()
        .finish();
    tracing::subscriber::with_default(subscriber, || builder.check(model));
}

/// A task's waker that counts its wakes. std atomics: a count is no part of a protocol.
#[derive(Default)]
pub struct Bell(AtomicUsize);

impl Bell {
    /// A bell and the waker that rings it.
    pub fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        let waker = Waker::from(bell.clone());
        (bell, waker)
    }

    /// Was there a wake?
    pub fn rang(&self) -> bool {
        self.0.load(SeqCst) > 0
    }

    /// From now on.
    pub fn reset(&self) {
        self.0.store(0, SeqCst);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

std::thread_local! {
    static ALIVE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A value that is counted, of which a read or drop that races with its making or its drop is seen.
#[derive(Debug)]
pub struct Value {
    number: loom::cell::UnsafeCell<u32>,
}

// SAFETY: written when it is made and when it is dropped, and loom checks that.
unsafe impl Sync for Value {}

impl Value {
    /// The number in each value.
    const NUMBER: u32 = 42;

    /// A new one.
    #[expect(clippy::new_without_default, reason = "nothing about it is a default")]
    pub fn new() -> Self {
        ALIVE.set(ALIVE.get() + 1);
        Self { number: loom::cell::UnsafeCell::new(Self::NUMBER) }
    }

    /// Looks at it.
    pub fn read(&self) {
        // SAFETY: loom checks that nobody writes.
        self.number.with(|n| assert_eq!(unsafe { *n }, Self::NUMBER, "read after drop"));
    }

    /// Was every value dropped once?
    pub fn all_gone() {
        assert_eq!(ALIVE.get(), 0, "values that were not dropped");
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        self.read();
        Self::new()
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: loom checks that nobody else looks.
        let number = self.number.with_mut(|n| std::mem::replace(unsafe { &mut *n }, 0));
        assert_eq!(number, Self::NUMBER, "dropped twice");
        ALIVE.set(ALIVE.get() - 1);
    }
}

/// A key that is counted as a value is, and read by each comparison.
#[derive(Debug)]
pub struct Name {
    id: u32,
    body: Value,
}

impl Name {
    /// The key of this number.
    pub fn new(id: u32) -> Self {
        Self { id, body: Value::new() }
    }
}

impl Borrow<u32> for Name {
    fn borrow(&self) -> &u32 {
        self.body.read();
        &self.id
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        Borrow::<u32>::borrow(self) == Borrow::<u32>::borrow(other)
    }
}

impl Eq for Name {}

/// A tag and the number of the key that has it.
pub type Key = (Tag, u32);

impl From<u32> for Name {
    fn from(id: u32) -> Self {
        Self::new(id)
    }
}

impl Clone for Name {
    fn clone(&self) -> Self {
        Self { id: self.id, body: self.body.clone() }
    }
}

/// The real core, with room for `capacity` values under the plain CLOCK.
pub fn core(capacity: u64) -> Arc<Core<Name, Value>> {
    core_of(capacity)
}

/// As [`core`], of any keys and values.
pub fn core_of<K, V>(capacity: u64) -> Arc<Core<K, V>>
where
    K: Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let config = Config {
        capacity: Some(capacity),
        // So small that each retired slot is a batch of its own.
        reserve: 4,
        initial: 0,
        policy: Policy::Plain,
        ttl: None,
        jitter: Duration::ZERO,
        time: Box::new(PreciseTime::new()),
    };
    Arc::new(Core::new(config).ok().unwrap())
}
