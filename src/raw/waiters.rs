//! The waiters of a flight: a list of nodes that only grows while the flight lives.
//!
//! A node belongs to one waiting future at a time. It holds the task's waker and a WOKEN mark: whoever
//! wakes sets the mark and wakes only where it was clear, and the waiter's own poll clears it. So a storm
//! of wakes reaches a task once a poll, and a waiter that is never polled holds nobody up.
//!
//! A node that its waiter gave up is adopted by a later one, so that a million cancelled callers on one
//! flight use no more nodes than ever waited at once.
//!
//! The handshake with whatever the waiter waits for: the waiter registers its waker and clears the mark,
//! `fence(SeqCst)`, then reads the flight's word; the other side changes the word, `fence(SeqCst)`, then
//! swaps the mark. One of the two sees the other.

use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*, fence};
use crate::sync::{AtomicWaker, FirstPanic};
use std::ptr::{NonNull, null_mut};
use std::task::Waker;

/// Nodes that a flight keeps for its next life.
const KEEP: usize = 4;

/// One waiter's place on the list.
pub struct Node {
    waker: AtomicWaker,
    /// No wake is owed: set by the waker, cleared by the waiter's poll.
    woken: AtomicBool,
    taken: AtomicBool,
    /// A waker's Clone panicked in `listen`: the cell can't be trusted, and nobody adopts the node.
    dead: AtomicBool,
    next: *mut Node,
}

impl Node {
    fn new(next: *mut Node) -> Self {
        Self {
            waker: AtomicWaker::new(),
            woken: AtomicBool::new(true),
            taken: AtomicBool::new(true),
            dead: AtomicBool::new(false),
            next,
        }
    }

    /// Before the waiter looks at the flight: from now on a change of the word wakes `waker`.
    pub fn listen(&self, waker: &Waker) {
        struct Unless<'a>(&'a AtomicBool);
        impl Drop for Unless<'_> {
            fn drop(&mut self) {
                // Relaxed: read by this waiter when it leaves, and by who trims, after the last has left.
                self.0.store(true, Relaxed);
            }
        }
        let panicked = Unless(&self.dead);
        self.waker.register(waker);
        std::mem::forget(panicked);
        // AcqRel: an RMW, so that it is ordered with the other side's swap of the mark.
        self.woken.swap(false, AcqRel);
        // Pairs with the fence in `Waiters::wake_all`.
        #[cfg(not(alru_mutation = "no_listen_fence"))]
        fence(SeqCst);
    }
}

/// The list.
pub struct Waiters {
    head: AtomicPtr<Node>,
    /// Nodes that nobody has taken; a hint that spares walks over full lists.
    spare: AtomicUsize,
}

impl Waiters {
    pub fn new() -> Self {
        Self { head: AtomicPtr::new(null_mut()), spare: AtomicUsize::new(0) }
    }

    /// A node of one's own: an abandoned one, or a new one.
    pub fn join(&self) -> NonNull<Node> {
        // Relaxed: a hint; the CAS on `taken` decides.
        if self.spare.load(Relaxed) > 0 {
            let mut node = self.head.load(Acquire);
            // SAFETY: nodes are freed by `&mut self` methods alone; Acquire on the head pairs with the
            // push, and `next` does not change after it.
            while let Some(n) = unsafe { node.as_ref() } {
                // Acquire pairs with the release in `leave`: the former waiter is done with the waker.
                if !n.taken.load(Relaxed)
                    && n.taken.compare_exchange(false, true, Acquire, Relaxed).is_ok()
                {
                    self.spare.fetch_sub(1, Relaxed);
                    return NonNull::from(n);
                }
                node = n.next;
            }
        }
        let mut head = self.head.load(Acquire);
        let node = Box::into_raw(Box::new(Node::new(head)));
        loop {
            // SAFETY: not yet published: ours alone.
            unsafe { (*node).next = head };
            // AcqRel: publishes the node.
            match self.head.compare_exchange_weak(head, node, AcqRel, Acquire) {
                // SAFETY: from a Box, not null.
                Ok(_) => return unsafe { NonNull::new_unchecked(node) },
                Err(now) => head = now,
            }
        }
    }

    /// Gives a node up for adoption. Drops its waker.
    ///
    /// # Safety
    /// `node` came from `join` of this list and is not used afterwards.
    pub unsafe fn leave(&self, node: NonNull<Node>) {
        // SAFETY: on the list, so alive while the list is.
        let node = unsafe { node.as_ref() };
        let waker = node.waker.take();
        if !node.dead.load(Relaxed) {
            // Release: pairs with the adopter's acquire.
            node.taken.store(false, Release);
            self.spare.fetch_add(1, Relaxed);
        }
        drop(waker);
    }

    /// Wakes every waiter that has not been woken since its last poll. After the change of the word that
    /// they are to see.
    ///
    /// # Panics
    /// With the first panic of a waker, after all have been woken.
    pub fn wake_all(&self) {
        // Pairs with the fence in `Node::listen`.
        #[cfg(not(alru_mutation = "no_wake_fence"))]
        fence(SeqCst);
        let mut panics = FirstPanic::default();
        let mut node = self.head.load(Acquire);
        // SAFETY: as in `join`.
        while let Some(n) = unsafe { node.as_ref() } {
            if !n.woken.swap(true, AcqRel) {
                panics.catch(|| n.waker.wake());
                #[cfg(alru_mutation = "wake_one")]
                break;
            }
            node = n.next;
        }
        panics.resume();
    }

    /// Frees all nodes but a few, for the flight's next life.
    ///
    /// # Safety
    /// Nobody else uses the list, and no node is taken.
    pub unsafe fn trim(&self) {
        let mut node = self.head.load(Acquire);
        let mut head: *mut Node = null_mut();
        let mut kept = 0;
        while !node.is_null() {
            // SAFETY: exclusive by the caller's promise, and from `Box::into_raw`.
            let mut owned = unsafe { Box::from_raw(node) };
            node = owned.next;
            if kept < KEEP && !owned.dead.load(Relaxed) {
                kept += 1;
                owned.next = head;
                head = Box::into_raw(owned);
            }
        }
        // Relaxed: published with the flight's next life.
        self.head.store(head, Relaxed);
        self.spare.store(kept, Relaxed);
    }
}

impl Waiters {
    /// Takes all wakers out and wakes them: for a flight whose waiters were forgotten, not dropped, or look after
    /// a load without a handle of the cache, and are to find out that it is gone.
    ///
    /// # Safety
    /// Nobody else uses the list, or ever will.
    pub unsafe fn silence(&self, panics: &mut FirstPanic) {
        let mut node = self.head.load(Acquire);
        // SAFETY: as in `join`.
        while let Some(n) = unsafe { node.as_ref() } {
            panics.catch(|| n.waker.wake());
            node = n.next;
        }
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        let mut node = self.head.load(Relaxed);
        while !node.is_null() {
            // SAFETY: `&mut self`: nobody uses the list; nodes come from `Box::into_raw`.
            let owned = unsafe { Box::from_raw(node) };
            node = owned.next;
        }
    }
}

// SAFETY: wakers may be woken and dropped on any thread; nodes are shared by atomics only.
unsafe impl Send for Waiters {}
// SAFETY: as above.
unsafe impl Sync for Waiters {}
