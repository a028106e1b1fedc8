//! The one door to atomics, cells and thread-locals: std outside, loom's models under `cfg(alru_loom)`, and
//! shuttle's under `cfg(alru_shuttle)`, which goes with `alru_loom`: small constants, no reuse, no jitter.
//!
//! No other file names `std::sync::atomic`. That is what lets loom explore the real code, and what a
//! stall injector or a sanitizer build would hook.

#[cfg(not(alru_loom))]
mod imp {
    pub use super::plain::UnsafeCell;
    pub use atomic_waker::AtomicWaker;
    pub use std::sync::Arc;
    pub use std::thread_local;

    pub mod thread {
        pub use std::thread::{Thread, current};

        /// Until a token comes, or the time is over; or sooner.
        pub fn park(limit: Option<std::time::Duration>) {
            match limit {
                None => std::thread::park(),
                Some(limit) => std::thread::park_timeout(limit),
            }
        }
    }

    pub mod atomic {
        #[allow(unused_imports, reason = "for the asymmetric barrier, where there is one")]
        pub use std::sync::atomic::compiler_fence;
        pub use std::sync::atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }
}

#[cfg(all(alru_loom, not(alru_shuttle)))]
mod imp {
    pub use loom::cell::UnsafeCell;
    pub use loom::thread_local;
    /// std's, because methods take `self: &Arc<Self>`, which only std's may be. Its orderings are not part
    /// of a model: the last handle goes after the threads were joined.
    pub use std::sync::Arc;

    pub mod thread {
        pub use loom::thread::{Thread, current};

        /// A model has no clock: its threads wait for ever, or not at all.
        pub fn park(limit: Option<std::time::Duration>) {
            assert!(limit.is_none(), "a model that waits for a time");
            loom::thread::park();
        }
    }

    pub mod atomic {
        pub use loom::sync::atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }

    /// loom's waker cell behind atomic-waker's interface.
    pub struct AtomicWaker(loom::future::AtomicWaker);

    impl AtomicWaker {
        pub fn new() -> Self {
            Self(loom::future::AtomicWaker::new())
        }
        pub fn register(&self, waker: &std::task::Waker) {
            self.0.register_by_ref(waker);
        }
        pub fn wake(&self) {
            self.0.wake();
        }
        pub fn take(&self) -> Option<std::task::Waker> {
            self.0.take_waker()
        }
    }
}

#[cfg(alru_shuttle)]
mod imp {
    pub use super::plain::UnsafeCell;
    pub use shuttle::thread_local;
    /// std's, as under loom.
    pub use std::sync::Arc;

    pub mod thread {
        pub use shuttle::thread::{Thread, current};

        /// A model has no clock: its threads wait for ever, or not at all.
        pub fn park(limit: Option<std::time::Duration>) {
            assert!(limit.is_none(), "a model that waits for a time");
            shuttle::thread::park();
        }
    }

    pub mod atomic {
        pub use shuttle::sync::atomic::{
            AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
        };
    }

    /// atomic-waker's waker cell: each operation is one step, before which others may run.
    pub struct AtomicWaker {
        inner: atomic_waker::AtomicWaker,
        switch: atomic::AtomicBool,
    }

    impl AtomicWaker {
        pub fn new() -> Self {
            let switch = atomic::AtomicBool::new(false);
            Self { inner: atomic_waker::AtomicWaker::new(), switch }
        }
        pub fn register(&self, waker: &std::task::Waker) {
            self.switch.load(atomic::Ordering::Relaxed);
            self.inner.register(waker);
        }
        pub fn wake(&self) {
            self.switch.load(atomic::Ordering::Relaxed);
            self.inner.wake();
        }
        pub fn take(&self) -> Option<std::task::Waker> {
            self.switch.load(atomic::Ordering::Relaxed);
            self.inner.take()
        }
    }
}

/// What needs no model.
#[cfg(any(not(alru_loom), alru_shuttle))]
mod plain {
    /// `std::cell::UnsafeCell` behind loom's interface, so that a model sees every access.
    #[repr(transparent)]
    pub struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub const fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        #[inline(always)]
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}

pub use imp::*;

/// 64 random bits for jitter: a splitmix64 stream per thread, seeded once from the process's hash keys.
/// Not for secrets.
#[cfg(not(alru_loom))]
pub(crate) fn random_u64() -> u64 {
    use std::cell::Cell;
    use std::hash::{BuildHasher, RandomState};
    std::thread_local! {
        static STREAM: Cell<u64> = Cell::new(RandomState::new().hash_one(std::thread::current().id()));
    }
    STREAM
        .try_with(|s| {
            let x = s.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
            s.set(x);
            let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            x ^ (x >> 31)
        })
        .unwrap_or(0x5851_F42D_4C95_7F2D)
}

/// A model must be deterministic: no jitter.
#[cfg(alru_loom)]
pub(crate) fn random_u64() -> u64 {
    0
}

/// The panics of several calls of user code, of which the first is passed on. The payloads of the others are
/// leaked: their destructors are user code once more, and might panic in turn.
#[derive(Default)]
pub(crate) struct FirstPanic(Option<Box<dyn std::any::Any + Send>>);

impl FirstPanic {
    /// Runs `f`, whatever it does.
    pub(crate) fn catch(&mut self, f: impl FnOnce()) {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)) {
            match self.0 {
                None => self.0 = Some(panic),
                Some(_) => std::mem::forget(panic),
            }
        }
    }

    /// Goes on with the first panic, if there was one.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0 {
            std::panic::resume_unwind(panic);
        }
    }

    /// As `resume`, for destructors: a second panic of a thread that is unwinding would end the process.
    pub(crate) fn resume_unless_panicking(self) {
        if std::thread::panicking() {
            self.swallow();
        } else {
            self.resume();
        }
    }

    /// Swallows the first panic too.
    pub(crate) fn swallow(self) {
        std::mem::forget(self);
    }
}

/// A thread that parks until its waker wakes, whoever else may use its park token.
pub(crate) struct Parker {
    thread: thread::Thread,
    woken: atomic::AtomicBool,
}

impl Parker {
    /// For the calling thread, which alone may park.
    pub(crate) fn current() -> Self {
        Self { thread: thread::current(), woken: atomic::AtomicBool::new(false) }
    }

    /// Until a wake, or the time is over; or sooner.
    pub(crate) fn park(limit: Option<std::time::Duration>) {
        thread::park(limit);
    }

    /// Was there a wake since the last call? Before each park.
    pub(crate) fn take_wake(&self) -> bool {
        // Acquire: pairs with the release in `wake_by_ref`.
        self.woken.swap(false, atomic::Ordering::Acquire)
    }

    /// Gives the thread a token.
    pub(crate) fn unpark(&self) {
        self.thread.unpark();
    }
}

impl std::task::Wake for Parker {
    fn wake(self: std::sync::Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &std::sync::Arc<Self>) {
        // The mark before the token: who uses the token up finds the mark. Release: pairs with `take_wake`. A
        // read-modify-write, as all transitions.
        #[cfg(not(alru_mutation = "late_mark"))]
        self.woken.swap(true, atomic::Ordering::Release);
        self.unpark();
        #[cfg(alru_mutation = "late_mark")]
        self.woken.swap(true, atomic::Ordering::Release);
    }
}

/// Lets another thread run.
pub(crate) fn yield_now() {
    #[cfg(not(alru_loom))]
    std::thread::yield_now();
    #[cfg(all(alru_loom, not(alru_shuttle)))]
    loom::thread::yield_now();
    #[cfg(alru_shuttle)]
    shuttle::thread::yield_now();
}

/// The cores this process may use; 2 under loom, so that stripes stay few.
pub(crate) fn parallelism() -> usize {
    if cfg!(alru_loom) {
        return 2;
    }
    std::thread::available_parallelism().map_or(4, |n| n.get())
}
