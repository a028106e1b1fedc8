//! A stack of indices with a tagged head: pushes of whole chains, takes of several at once.

use super::mem::Blank;
use crate::sync::atomic::{AtomicU64, Ordering::*};

/// Where the links of a chain are kept.
pub trait Links {
    /// The element after `index`; 0 ends the chain. Any value for an element that is on no chain any more.
    fn next(&self, index: u32) -> u32;
    fn set_next(&self, index: u32, next: u32);
}

/// The head: `tag32 | index32`, 0 in the index half when empty. Every change moves the tag, so the chain
/// that was just walked is the chain that a CAS takes. (An operation that sleeps through exactly 2^32
/// changes could be fooled; nothing shorter can.)
pub struct Chain(AtomicU64);

// SAFETY: zero is an empty chain.
unsafe impl Blank for Chain {
    fn blank() -> Self {
        Self::new()
    }
}

impl Chain {
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        // Relaxed: a hint; taking decides.
        self.0.load(Relaxed) as u32 == 0
    }

    /// The first element, for models while nobody else runs.
    #[cfg(alru_loom)]
    pub fn first(&self) -> u32 {
        self.0.load(Acquire) as u32
    }

    fn retagged(head: u64, index: u32) -> u64 {
        #[cfg(not(alru_mutation = "no_chain_tag"))]
        return ((head >> 32).wrapping_add(1) << 32) | index as u64;
        #[cfg(alru_mutation = "no_chain_tag")]
        return (head >> 32 << 32) | index as u64;
    }

    /// Puts the chain `first ..= last`, linked already, in front.
    pub fn push(&self, links: &impl Links, first: u32, last: u32) {
        let mut head = self.0.load(Acquire);
        loop {
            links.set_next(last, head as u32);
            // AcqRel: releases the links, and all that the pusher did to the elements, to who takes them.
            match self.0.compare_exchange_weak(head, Self::retagged(head, first), AcqRel, Acquire) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Links `elements` and puts them in front.
    pub fn push_all(&self, links: &impl Links, elements: &[u32]) {
        for pair in elements.windows(2) {
            links.set_next(pair[0], pair[1]);
        }
        if let [first, .., last] | [first @ last] = *elements {
            self.push(links, first, last);
        }
    }

    /// Takes up to `out.len()` elements by one CAS; answers how many.
    pub fn take(&self, links: &impl Links, out: &mut [u32]) -> usize {
        let mut head = self.0.load(Acquire);
        loop {
            let mut next = head as u32;
            let mut taken = 0;
            while next != 0 && taken < out.len() {
                out[taken] = next;
                taken += 1;
                // Somebody else may take the element meanwhile; then the link is stale and the CAS fails.
                next = links.next(next);
            }
            if taken == 0 {
                return 0;
            }
            let rest = Self::retagged(head, next);
            #[cfg(not(alru_mutation = "blind_take"))]
            let done = self.0.compare_exchange_weak(head, rest, AcqRel, Acquire);
            #[cfg(alru_mutation = "blind_take")]
            let done = Ok::<_, u64>(self.0.swap(rest, AcqRel));
            match done {
                Ok(_) => return taken,
                Err(now) => head = now,
            }
        }
    }
}
