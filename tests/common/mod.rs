//! Shared by the integration tests: counted objects, hashers, polling by hand.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod runtimes;
pub mod sources;

use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// How many counted objects are alive.
#[derive(Clone, Default)]
pub struct Tally(Arc<AtomicI64>);

impl Tally {
    pub fn alive(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A counted object around `T`; its clones count too. A second drop panics.
pub struct Counted<T> {
    pub inner: T,
    tally: Tally,
    dropped: AtomicBool,
}

impl<T> Counted<T> {
    pub fn new(inner: T, tally: &Tally) -> Self {
        tally.0.fetch_add(1, Ordering::SeqCst);
        Self { inner, tally: tally.clone(), dropped: AtomicBool::new(false) }
    }
}

impl<T: Clone> Clone for Counted<T> {
    fn clone(&self) -> Self {
        assert!(!self.dropped.load(Ordering::SeqCst), "cloned after its drop");
        Self::new(self.inner.clone(), &self.tally)
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        assert!(!self.dropped.swap(true, Ordering::SeqCst), "dropped twice");
        self.tally.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A hash function under which all keys collide.
#[derive(Clone, Copy, Default)]
pub struct Collide;

impl BuildHasher for Collide {
    type Hasher = Same;

    fn build_hasher(&self) -> Same {
        Same
    }
}

pub struct Same;

impl Hasher for Same {
    fn write(&mut self, _: &[u8]) {}

    fn finish(&self) -> u64 {
        0x5EED
    }
}

/// Polls once, with a waker that does nothing.
pub fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// A waker that remembers that it was woken.
#[derive(Default)]
pub struct Flag(AtomicBool);

impl Flag {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn poll<F: Future + ?Sized>(self: &Arc<Self>, future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(&Waker::from(self.clone())))
    }

    /// As a wake does.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether it was woken since the last call.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Something that panics once, when it is armed.
#[derive(Clone, Default)]
pub struct Bomb(Arc<AtomicU8>);

impl Bomb {
    /// The next `go_off` panics.
    pub fn arm(&self) {
        self.0.store(1, Ordering::SeqCst);
    }

    pub fn go_off(&self) {
        if self.0.compare_exchange(1, 2, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            panic!("bomb");
        }
    }

    pub fn went_off(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 2
    }
}

/// Does `run` until `done`, with turns for others between: tests of one process share the epoch,
/// and a thread of another test that was preempted in a pin delays everybody's drops.
/// False if it never comes to that.
#[must_use]
pub fn eventually(run: impl Fn(), done: impl Fn() -> bool) -> bool {
    (0..50_000).any(|_| {
        run();
        if done() {
            return true;
        }
        std::thread::yield_now();
        false
    })
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }
}

/// A barrier that a panicking thread does not leave the others waiting at: they panic too.
pub struct Meeting {
    of: usize,
    state: Mutex<(usize, usize, bool)>,
    changed: Condvar,
}

/// A thread's part in a [`Meeting`].
pub struct Seat<'a>(&'a Meeting);

impl Meeting {
    pub fn new(of: usize) -> Self {
        Self { of, state: Mutex::new((0, 0, false)), changed: Condvar::new() }
    }

    pub fn seat(&self) -> Seat<'_> {
        Seat(self)
    }
}

impl Seat<'_> {
    /// Waits for all; true for one of them.
    pub fn wait(&self) -> bool {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        if state.0 == self.0.of {
            state.0 = 0;
            state.1 += 1;
            self.0.changed.notify_all();
            return !state.2;
        }
        let turn = state.1;
        while state.1 == turn && !state.2 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let broken = state.2;
        drop(state);
        assert!(!broken, "another thread panicked");
        false
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.2 = true;
            self.0.changed.notify_all();
        }
    }
}
