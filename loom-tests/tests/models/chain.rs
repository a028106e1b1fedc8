//! Chains with a tagged head: what is pushed is taken once.

use alru::raw::chain::{Chain, Links};
use alru_loom_tests::check_deeper;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread;

/// A chain of elements 1 to 3, and its links.
struct Stack {
    chain: Chain,
    next: [AtomicU32; 4],
}

impl Links for Stack {
    fn next(&self, index: u32) -> u32 {
        self.next[index as usize].load(Relaxed)
    }
    fn set_next(&self, index: u32, next: u32) {
        self.next[index as usize].store(next, Relaxed);
    }
}

impl Stack {
    fn of(elements: &[u32]) -> Arc<Self> {
        let stack = Self { chain: Chain::new(), next: std::array::from_fn(|_| AtomicU32::new(0)) };
        stack.chain.push_all(&stack, elements);
        Arc::new(stack)
    }

    fn take(&self, most: usize) -> Vec<u32> {
        let mut taken = vec![0; most];
        let count = self.chain.take(self, &mut taken);
        taken.truncate(count);
        taken
    }

    fn push(&self, elements: &[u32]) {
        self.chain.push_all(self, elements);
    }
}

fn sorted(parts: [Vec<u32>; 3]) -> Vec<u32> {
    let mut all = parts.concat();
    all.sort_unstable();
    all
}

#[test]
fn what_two_threads_take_is_taken_once() {
    check_deeper(|| {
        let stack = Stack::of(&[1, 2, 3]);
        let other = stack.clone();
        let taker = thread::spawn(move || other.take(2));
        let mine = stack.take(2);
        let rest = stack.take(3);
        assert_eq!(sorted([taker.join().unwrap(), mine, rest]), [1, 2, 3]);
    });
}

/// Takes 1 and 2 and puts 1 back: the head is as it was, and 2 is not on the chain any more.
#[test]
fn a_chain_that_came_back_is_not_the_chain_that_was_walked() {
    check_deeper(|| {
        let stack = Stack::of(&[1, 2, 3]);
        let other = stack.clone();
        let taker = thread::spawn(move || other.take(1));
        let mut mine = stack.take(2);
        if mine.first() == Some(&1) {
            stack.push(&[1]);
            mine.remove(0);
        }
        let theirs = taker.join().unwrap();
        assert_eq!(sorted([theirs, mine, stack.take(3)]), [1, 2, 3]);
    });
}

#[test]
fn chains_pushed_by_two_threads_are_all_there() {
    check_deeper(|| {
        let stack = Stack::of(&[]);
        let (a, b) = (stack.clone(), stack.clone());
        let pusher = thread::spawn(move || a.push(&[1, 2]));
        let taker = thread::spawn(move || b.take(2));
        stack.push(&[3]);
        pusher.join().unwrap();
        let taken = taker.join().unwrap();
        assert_eq!(sorted([taken, stack.take(3), vec![]]), [1, 2, 3]);
    });
}
