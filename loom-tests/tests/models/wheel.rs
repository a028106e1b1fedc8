//! The timer wheel: a slot is on one list at most, what has a deadline is on one, and none is passed by.

use alru::policy::wheel::place;
use alru::raw::slab::Slab;
use alru::raw::state::{Filing, Residence};
use alru::raw::wheel::{TAKE, Wheel};
use alru_loom_tests::{check, check_deeper};
use loom::thread;
use std::sync::Arc;

/// A wheel and three slots.
struct Slots {
    wheel: Wheel,
    slab: Slab<u32, u32>,
}

impl Slots {
    fn new() -> Arc<Self> {
        let slab = Slab::bounded(3).unwrap();
        (0..3).for_each(|_| assert!(slab.fresh().is_some()));
        Arc::new(Self { wheel: Wheel::new(slab.first_slots(), false, 1).unwrap(), slab })
    }

    /// Begins a life at a tick, as an insert does.
    fn begin(&self, index: u32, deadline: u64, tick: u64) {
        // SAFETY: handed out.
        let slot = unsafe { self.slab.slot(index) };
        if slot.state.begin_ready(deadline, Residence::Main) == Filing::Push {
            self.wheel.push(0, index, place(deadline, tick));
        }
    }

    /// Ends a life before its time, as an eviction does and the drainer after it.
    fn end(&self, index: u32) {
        // SAFETY: handed out.
        let slot = unsafe { self.slab.slot(index) };
        slot.state.expire();
        slot.state.drained();
    }

    /// Sweeps at a tick; answers what it ended. `is_linked` as the index would have it.
    fn sweep(&self, tick: u64, is_linked: bool) -> Vec<u32> {
        let mut ended = Vec::new();
        let mut taken = [0; TAKE];
        while let Some((count, stage)) = self.wheel.take(tick, &mut taken) {
            for &index in &taken[..count] {
                // SAFETY: handed out.
                let slot = unsafe { self.slab.slot(index) };
                self.wheel.settle(0, index, slot, stage, |_| {
                    if is_linked {
                        slot.state.expire();
                        ended.push(index);
                    }
                    is_linked
                });
            }
        }
        ended
    }

    /// While nobody else runs: filed is what is on a list, once, and that is all that has a deadline.
    fn check(&self) {
        let listed = self.wheel.listed();
        for index in 2..5 {
            // SAFETY: handed out.
            let state = unsafe { self.slab.slot(index) }.state.load();
            let times = listed.iter().filter(|i| **i == index).count();
            assert_eq!(times, usize::from(state.is_filed()), "on a list if filed: {index}");
            assert!(state.deadline() == 0 || state.is_filed(), "a deadline that no sweep finds");
        }
    }
}

/// What one thread files while another sweeps is found by the next sweep, though the first may have passed it.
#[test]
fn what_is_filed_during_a_sweep_is_found_by_the_next() {
    check_deeper(|| {
        let slots = Slots::new();
        let other = slots.clone();
        let sweeper = thread::spawn(move || other.sweep(2, true));
        slots.begin(2, 2, 1);
        let mut ended = sweeper.join().unwrap();
        slots.check();
        ended.extend(slots.sweep(2, true));
        assert_eq!(ended, [2], "once, and on time");
        slots.check();
    });
}

/// A life ends early, and the next one in its slot finds it filed, or files it.
#[test]
fn a_slot_that_is_reused_while_it_is_filed_is_on_one_list() {
    check_deeper(|| {
        let slots = Slots::new();
        slots.begin(2, 2, 1);
        let other = slots.clone();
        // Linked is neither life: one has ended, or the other is a draft.
        let sweeper = thread::spawn(move || other.sweep(3, false));
        slots.end(2);
        slots.begin(2, 9, 3);
        assert!(sweeper.join().unwrap().is_empty());
        slots.check();
        assert!(slots.sweep(8, true).is_empty());
        slots.check();
        assert_eq!(slots.sweep(9, true), [2]);
        slots.check();
    });
}

/// A sweep comes while the owner withdraws a draft and begins another.
#[test]
fn a_draft_that_is_begun_anew_keeps_its_deadline_in_sight() {
    check(|| {
        let slots = Slots::new();
        slots.begin(2, 1, 1);
        let other = slots.clone();
        let sweeper = thread::spawn(move || other.sweep(2, false));
        // SAFETY: handed out.
        unsafe { slots.slab.slot(2) }.state.withdraw();
        slots.begin(2, 3, 2);
        sweeper.join().unwrap();
        slots.check();
        assert_eq!(slots.sweep(3, true), [2]);
        slots.check();
    });
}

#[test]
fn two_sweeps_end_each_life_once() {
    check(|| {
        let slots = Slots::new();
        (2..5).for_each(|index| slots.begin(index, 2, 1));
        let other = slots.clone();
        let sweeper = thread::spawn(move || other.sweep(2, true));
        let mut ended = slots.sweep(2, true);
        ended.extend(sweeper.join().unwrap());
        ended.sort_unstable();
        assert_eq!(ended, [2, 3, 4]);
        slots.check();
        assert!(slots.sweep(3, true).is_empty());
    });
}

/// What is not due yet goes from list to list while somebody else sweeps, and stays on one.
#[test]
fn two_sweeps_file_anew_what_is_not_due() {
    check_deeper(|| {
        let slots = Slots::new();
        slots.begin(2, 9, 1);
        let other = slots.clone();
        let sweeper = thread::spawn(move || other.sweep(4, true));
        let mine = slots.sweep(5, true);
        assert!(mine.is_empty() && sweeper.join().unwrap().is_empty());
        slots.check();
        assert_eq!(slots.sweep(9, true), [2]);
        slots.check();
    });
}
