//! The asymmetric barrier: a store-then-load handshake whose frequent side pays nothing for it.
//!
//! Two threads each store and then load what the other stored. With a full fence between store and load on both
//! sides, at least one of the loads sees the other's store. Here the frequent side has [`light`], which
//! constrains the compiler only, and the rare side has [`heavy`], which has the kernel run a full fence on every
//! processor that is running a thread of this process (Linux `membarrier`, private and expedited; a thread
//! that is not running has been through one when it was switched out).
//!
//! Chosen at run time: [`is_available`] says whether the kernel knows the call. Where it is not there at compile
//! time either (other systems, Miri, `cfg(alru_epoch_readers)`) it answers false and the code behind it is
//! compiled out. Under loom both sides are fences, which is what they stand for.
//!
//! `heavy` waits for the processors to answer an interrupt, not for threads: a thread that is stopped, or not
//! running, holds nobody up. It takes 0.4 µs with one thread running and about 10 µs with two on the virtual
//! machine it was measured on.

#[cfg(alru_loom)]
mod imp {
    use crate::sync::atomic::{AtomicBool, Ordering::*, fence};
    use std::cell::Cell;

    loom::lazy_static! {
        static ref SWITCH: AtomicBool = AtomicBool::new(false);
    }

    // All threads of a model run on one thread.
    std::thread_local! {
        static AVAILABLE: Cell<bool> = const { Cell::new(false) };
        static IN_TWO_STEPS: Cell<bool> = const { Cell::new(false) };
    }

    /// It is available while this lives: in models of hazards. Others stay small.
    pub struct Available {
        _private: (),
    }

    impl Available {
        #[expect(clippy::new_without_default, reason = "nothing about it is a default")]
        pub fn new() -> Self {
            AVAILABLE.set(true);
            Self { _private: () }
        }

        /// Also searches what happens between a store and the light barrier behind it. loom switches threads at
        /// accesses that bear on each other, and a fence is none.
        pub fn in_two_steps() -> Self {
            IN_TWO_STEPS.set(true);
            Self::new()
        }
    }

    impl Drop for Available {
        fn drop(&mut self) {
            AVAILABLE.set(false);
            IN_TWO_STEPS.set(false);
        }
    }

    pub fn is_available() -> bool {
        AVAILABLE.get()
    }

    pub fn light() {
        if IN_TWO_STEPS.get() {
            SWITCH.store(true, Relaxed);
        }
        #[cfg(not(alru_mutation = "no_light_fence"))]
        fence(SeqCst);
    }

    pub fn heavy() -> bool {
        #[cfg(not(alru_mutation = "no_heavy_fence"))]
        fence(SeqCst);
        if IN_TWO_STEPS.get() {
            SWITCH.load(Relaxed);
        }
        true
    }
}

#[cfg(all(
    not(any(alru_loom, alru_epoch_readers, miri)),
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64"
))]
mod imp {
    use crate::sync::atomic::{Ordering::SeqCst, compiler_fence};
    use std::ffi::{c_int, c_long, c_uint};
    use std::sync::OnceLock;

    const MEMBARRIER: c_long = if cfg!(target_arch = "x86_64") { 324 } else { 283 };
    const PRIVATE_EXPEDITED: c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: c_int = 1 << 4;

    // One function does not earn a dependency on `libc`, which std links anyway.
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }

    fn membarrier(command: c_int) -> bool {
        let no_flags: c_uint = 0;
        // SAFETY: the call takes a command, flags and a processor that is ignored without a flag; it touches no
        // memory of ours, and refuses what it does not know.
        unsafe { syscall(MEMBARRIER, command, no_flags, 0 as c_int) == 0 }
    }

    /// Registers the process, the first time.
    pub fn is_available() -> bool {
        static REGISTERED: OnceLock<bool> = OnceLock::new();
        // Registering is not enough: a filter may let that through and not the barrier.
        *REGISTERED
            .get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED))
    }

    /// The frequent side, between its store and its load. Pairs with [`heavy`].
    #[inline(always)]
    pub fn light() {
        compiler_fence(SeqCst);
    }

    /// The rare side, between its store and its loads. Pairs with [`light`]. False if the kernel refuses, which
    /// it does not once [`is_available`] has answered true; then nothing may be concluded from the loads.
    #[must_use]
    pub fn heavy() -> bool {
        membarrier(PRIVATE_EXPEDITED)
            || (membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED))
    }
}

#[cfg(not(any(
    alru_loom,
    all(
        not(any(alru_epoch_readers, miri)),
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        target_pointer_width = "64"
    )
)))]
mod imp {
    #[inline(always)]
    pub fn is_available() -> bool {
        false
    }

    #[inline(always)]
    pub fn light() {}

    pub fn heavy() -> bool {
        false
    }
}

#[cfg(alru_loom)]
pub use imp::Available;
pub use imp::{heavy, is_available, light};
