//! Grace periods: the only file that names crossbeam_epoch.
//!
//! One collector, private to the crate: a pin that another crate holds on the default collector never
//! delays what is retired here. Each thread registers once; where thread-locals are gone (a destructor of
//! another thread-local calls the cache) a temporary registration takes its place.
//!
//! Deferred closures only move slot indices or free plain memory. A reader may run them, because a pin
//! now and then collects; it never runs a user's destructor that way.
//!
//! Under loom there are two tiers. With `crossbeam_loom` the collector is the real one, one per model.
//! Without it, closures are dropped unrun: nothing is reused within an execution, which keeps models of
//! the algorithms small.

/// A thread id for choosing stripes and counter cells: small, and never shared by two live threads.
/// `NONE` where there are too many threads.
pub const THREADS: usize = 256;

#[cfg(any(not(alru_loom), crossbeam_loom))]
mod imp {
    use crossbeam_epoch::{Collector, LocalHandle};

    /// A pinned thread: nothing that is retired from now on is reused until the guard is dropped.
    pub struct Guard {
        inner: crossbeam_epoch::Guard,
        thread: usize,
    }

    struct Local {
        handle: LocalHandle,
        thread: super::ids::ThreadId,
    }

    impl Drop for Local {
        fn drop(&mut self) {
            crate::raw::hazard::leave();
        }
    }

    #[cfg(not(alru_loom))]
    fn collector() -> &'static Collector {
        static COLLECTOR: std::sync::OnceLock<Collector> = std::sync::OnceLock::new();
        COLLECTOR.get_or_init(Collector::new)
    }

    #[cfg(alru_loom)]
    fn collector() -> &'static Collector {
        loom::lazy_static! {
            static ref COLLECTOR: Collector = Collector::new();
        }
        &COLLECTOR
    }

    crate::sync::thread_local! {
        static LOCAL: Local = Local {
            handle: collector().register(),
            thread: super::ids::ThreadId::acquire(),
        };
    }

    /// Pins the thread.
    #[inline]
    pub fn pin() -> Guard {
        LOCAL
            .try_with(|l| Guard { inner: l.handle.pin(), thread: l.thread.get() })
            .unwrap_or_else(|_| pin_without_local())
    }

    /// Does this thread hold a guard?
    pub fn is_pinned() -> bool {
        LOCAL.try_with(|l| l.handle.is_pinned()).unwrap_or(false)
    }

    /// This thread's id, without a pin; None where there is none.
    #[cold]
    pub fn thread_id() -> Option<usize> {
        LOCAL.try_with(|l| l.thread.get()).ok()
    }

    #[cold]
    fn pin_without_local() -> Guard {
        Guard { inner: collector().register().pin(), thread: super::THREADS }
    }

    impl Guard {
        /// This thread's id, or `THREADS` if it has none of its own. No other live thread has it as long as
        /// the guard is younger than the thread's registration: every write pins for itself, and magazines
        /// and trails rely on that.
        #[inline(always)]
        pub fn thread(&self) -> usize {
            self.thread
        }

        /// Runs `f` once every thread that is pinned now has unpinned.
        ///
        /// # Safety
        /// `f` may run on any thread, and must be sound to run then.
        pub unsafe fn defer(&self, f: impl FnOnce() + Send + 'static) {
            #[cfg(alru_mutation = "no_grace")]
            f();
            #[cfg(not(alru_mutation = "no_grace"))]
            // SAFETY: the caller's promise.
            unsafe {
                self.inner.defer_unchecked(f)
            };
        }

        /// Hands this thread's deferred closures to everybody and tries to end a grace period.
        pub fn flush(&self) {
            self.inner.flush();
        }

        /// Lets go of the pin for an instant if this is the thread's only guard. `&mut`: nothing that was
        /// read under the guard is alive.
        pub fn repin(&mut self) {
            self.inner.repin();
        }
    }
}

#[cfg(all(alru_loom, not(crossbeam_loom)))]
mod imp {
    use std::cell::Cell;
    use std::marker::PhantomData;

    // All threads of a model run on one thread.
    std::thread_local! {
        static DEFERRED: Cell<usize> = const { Cell::new(0) };
        static AT_ONCE: Cell<bool> = const { Cell::new(false) };
    }

    /// Runs closures at once while it lives: for models whose readers are never pinned.
    pub struct AtOnce {
        _private: (),
    }

    impl AtOnce {
        #[expect(clippy::new_without_default, reason = "nothing about it is a default")]
        pub fn new() -> Self {
            AT_ONCE.set(true);
            Self { _private: () }
        }
    }

    impl Drop for AtOnce {
        fn drop(&mut self) {
            AT_ONCE.set(false);
        }
    }

    // Of an execution, and no part of it: a std atomic.
    loom::lazy_static! {
        static ref THREADS_SO_FAR: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    }

    crate::sync::thread_local! {
        static ID: usize = THREADS_SO_FAR.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }

    pub fn thread_id() -> Option<usize> {
        ID.try_with(|id| *id).ok()
    }

    pub fn most_threads() -> usize {
        THREADS_SO_FAR.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// How many closures this model or those before it on this thread deferred.
    pub fn deferred() -> usize {
        DEFERRED.get()
    }

    /// A stand-in: nothing is reclaimed within an execution.
    pub struct Guard {
        _private: PhantomData<*const ()>,
    }

    pub fn pin() -> Guard {
        Guard { _private: PhantomData }
    }

    pub fn is_pinned() -> bool {
        false
    }

    impl Guard {
        pub fn thread(&self) -> usize {
            super::THREADS
        }
        /// # Safety
        /// As for the real one; the closure is dropped unrun, as a rule.
        pub unsafe fn defer(&self, f: impl FnOnce() + Send + 'static) {
            DEFERRED.set(DEFERRED.get() + 1);
            if AT_ONCE.get() {
                f();
            }
        }
        pub fn flush(&self) {}
        pub fn repin(&mut self) {}
    }
}

#[cfg(any(not(alru_loom), crossbeam_loom))]
pub use ids::most_threads;
#[cfg(all(alru_loom, not(crossbeam_loom)))]
pub use imp::{AtOnce, deferred, most_threads};
pub use imp::{Guard, is_pinned, pin, thread_id};

/// Ids of live threads, the lowest free one first.
#[cfg(any(not(alru_loom), crossbeam_loom))]
mod ids {
    use super::THREADS;
    // Plain std atomics also under loom: an id only spreads threads over stripes.
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

    /// One more than the largest id that a thread ever had.
    static MOST: AtomicUsize = AtomicUsize::new(0);

    /// As many ids as were ever in use at once. Relaxed: who asks has made sure, by a barrier, that it sees what a
    /// thread wrote before it used its id (`hazard.rs`).
    pub fn most_threads() -> usize {
        MOST.load(Relaxed)
    }

    static TAKEN: [AtomicU64; THREADS / 64] = [const { AtomicU64::new(0) }; THREADS / 64];

    pub struct ThreadId(usize);

    impl ThreadId {
        pub fn acquire() -> Self {
            for (i, word) in TAKEN.iter().enumerate() {
                let mut seen = word.load(Relaxed);
                while seen != u64::MAX {
                    let bit = seen.trailing_ones() as usize;
                    // Acquire: pairs with the release in `drop`; what the former owner wrote to its
                    // counter cells without read-modify-writes is visible to the new one.
                    match word.compare_exchange(seen, seen | 1 << bit, Acquire, Relaxed) {
                        Ok(_) => {
                            let id = i * 64 + bit;
                            MOST.fetch_max(id + 1, Relaxed);
                            return Self(id);
                        }
                        Err(now) => seen = now,
                    }
                }
            }
            Self(THREADS)
        }

        #[inline(always)]
        pub fn get(&self) -> usize {
            self.0
        }
    }

    impl Drop for ThreadId {
        fn drop(&mut self) {
            if self.0 < THREADS {
                // Release: pairs with the acquire of the next owner.
                TAKEN[self.0 / 64].fetch_and(!(1 << (self.0 % 64)), Release);
            }
        }
    }
}
