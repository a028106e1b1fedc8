//! Keys and values that know how many of them are alive.

use std::borrow::Borrow;
use std::cell::Cell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// How many objects are alive.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<AtomicI64>);

impl Tally {
    pub(crate) fn alive(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

const ALIVE: u32 = 0xA11E_A11E;
const DEAD: u32 = 0xDEAD_DEAD;

/// One counted object. On the heap, so that the address sanitizer sees a use after the drop, and
/// marked, so that a second drop is seen without it.
struct Token {
    tally: Tally,
    mark: Box<Cell<u32>>,
}

// SAFETY: the mark is written by `drop` alone, which has the only reference.
unsafe impl Sync for Token {}

impl Token {
    fn new(tally: &Tally) -> Self {
        tally.0.fetch_add(1, Ordering::Relaxed);
        Self { tally: tally.clone(), mark: Box::new(Cell::new(ALIVE)) }
    }

    fn check(&self) {
        assert_eq!(self.mark.get(), ALIVE, "used after its drop");
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.check();
        self.mark.set(DEAD);
        self.tally.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A key, looked up by its `u8`.
pub(crate) struct Key {
    id: u8,
    token: Token,
}

impl Key {
    pub(crate) fn new(id: u8, tally: &Tally) -> Self {
        Self { id, token: Token::new(tally) }
    }
}

impl Borrow<u8> for Key {
    fn borrow(&self) -> &u8 {
        self.token.check();
        &self.id
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.token.check();
        self.id.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.token.check();
        other.token.check();
        self.id == other.id
    }
}

impl Eq for Key {}

/// A value with an id of its own; clones have the id, and are counted.
pub(crate) struct Value {
    id: usize,
    token: Token,
}

impl Value {
    pub(crate) fn new(id: usize, tally: &Tally) -> Self {
        Self { id, token: Token::new(tally) }
    }

    pub(crate) fn id(&self) -> usize {
        self.token.check();
        self.id
    }
}

impl Clone for Value {
    fn clone(&self) -> Self {
        self.token.check();
        Self::new(self.id, &self.token.tally)
    }
}
