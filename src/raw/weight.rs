//! The ledger: how much is resident, and how much of it in main.
//!
//! An entry is charged before it is published and refunded by the one winner of its state's way to EXPIRED,
//! so the total is exact once nothing is in motion, and never above the capacity: a charge is a CAS that
//! does not go past it. At the capacity a newcomer takes over its victim's charge, and the total does not
//! move at all: no thread writes the shared word then.

use super::state::Residence;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use crossbeam_utils::CachePadded;

/// The capacity and what is charged against it.
pub struct Ledger {
    capacity: Option<u64>,
    total: CachePadded<AtomicU64>,
    /// Entries in main; wraps below zero for an instant when a refund overtakes its charge.
    main: CachePadded<AtomicUsize>,
}

impl Ledger {
    pub fn new(capacity: Option<u64>) -> Self {
        Self {
            capacity,
            total: CachePadded::new(AtomicU64::new(0)),
            main: CachePadded::new(AtomicUsize::new(0)),
        }
    }

    #[inline]
    pub fn capacity(&self) -> Option<u64> {
        self.capacity
    }

    /// What is resident. Relaxed: a statistic, exact once quiet.
    #[inline]
    pub fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// What is in main; never more than what is resident, however the two are read.
    #[inline]
    pub fn main(&self) -> u64 {
        let main = self.main.load(Relaxed) as isize;
        (main.max(0) as u64).min(self.total())
    }

    /// Charges one entry if there is room for it.
    #[must_use]
    #[inline]
    pub fn try_charge(&self) -> bool {
        // Relaxed throughout: the counter orders nothing; publication is the header's affair.
        let Some(capacity) = self.capacity else {
            self.total.fetch_add(1, Relaxed);
            return true;
        };
        let mut total = self.total.load(Relaxed);
        while total < capacity {
            #[cfg(alru_mutation = "racy_charge")]
            {
                self.total.fetch_add(1, Relaxed);
                return true;
            }
            #[cfg(not(alru_mutation = "racy_charge"))]
            match self.total.compare_exchange_weak(total, total + 1, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(now) => total = now,
            }
        }
        false
    }

    /// Gives an entry's charge back.
    #[inline]
    pub fn refund(&self) {
        let before = self.total.fetch_sub(1, Relaxed);
        debug_assert!(before > 0, "a refund without its charge");
    }

    /// An entry took up this residence.
    #[inline]
    pub fn settle(&self, residence: Residence) {
        if residence == Residence::Main {
            self.main.fetch_add(1, Relaxed);
        }
    }

    /// An entry gave up this residence.
    #[inline]
    pub fn vacate(&self, residence: Residence) {
        if residence == Residence::Main {
            self.main.fetch_sub(1, Relaxed);
        }
    }
}
