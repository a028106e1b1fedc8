//! Trails: one thread pushes, anybody takes.

use alru::raw::trail::{Taken, Trail};
use alru_loom_tests::check_deeper;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread;

/// Slots that the trail holds.
const SIZE: usize = 2;

/// A trail and the links of its slots, which are numbers in order.
struct Links(Trail, [AtomicU32; 2 + SIZE * 2]);

impl Links {
    fn push(&self, index: u32) -> bool {
        self.0.push(index, |before| self.1[index as usize].store(before, Relaxed))
    }

    fn take(&self) -> Vec<u32> {
        let Some(Taken { first, last }) = self.0.take() else { return vec![] };
        let mut slots = vec![first];
        while slots.last() != Some(&last) {
            slots.push(self.1[*slots.last().unwrap() as usize].load(Relaxed));
        }
        slots
    }
}

#[test]
fn every_slot_on_a_trail_is_taken_once() {
    check_deeper(|| {
        let links = std::array::from_fn(|_| AtomicU32::new(0));
        let trail = Arc::new(Links(Trail::new(SIZE).ok().unwrap(), links));
        let takers = [(); 2].map(|()| {
            let trail = trail.clone();
            thread::spawn(move || trail.take())
        });
        let mut taken = vec![];
        for index in 1..=SIZE as u32 + 1 {
            if trail.push(index) {
                taken.extend(trail.take());
            }
        }
        taken.extend(takers.into_iter().flat_map(|t| t.join().unwrap()));
        taken.extend(trail.take());
        taken.sort_unstable();
        assert_eq!(taken, Vec::from_iter(1..=SIZE as u32 + 1));
    });
}
