//! The index: tables of bins, the current one behind a root pointer.
//!
//! `bin(tag) = (tag * nbins) >> 32` keeps the order of the tags, so that bin j of n splits into the bins 2j
//! and 2j + 1 of 2n. Growth is in `grow.rs`; here a look-up that meets a frozen bin goes to the next table.

use super::bin::{Bin, Commit, GROUP, Glance, Line, POSITIONS, Probe, Scan, Tag, Vacancy, Word};
use super::mem::{self, OutOfMemory, ZeroedArray};
use super::reclaim::Guard;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering::*};
use std::ptr::NonNull;

/// Entries a bin holds on average when a table is full: 7 / 2. At 4.2 an entry takes 19 bytes of index for 23
/// here, but 6 % of the entries lie in overflow lines for 3 %, and read-through was 1 to 3 % slower.
const LOAD_NUMERATOR: usize = 7;
const LOAD_DENOMINATOR: usize = 2;

/// One array of bins.
pub(super) struct Table {
    bins: ZeroedArray<Line>,
    /// One line a group.
    overflow: ZeroedArray<Line>,
    pub(super) groups: usize,
    /// The table of twice the size that this one is moving to.
    pub(super) next: AtomicPtr<Table>,
    /// The next group that a helper takes on.
    pub(super) helped: AtomicUsize,
    /// All groups below this one have moved.
    pub(super) moved: AtomicUsize,
}

impl Table {
    pub(super) fn new(groups: usize) -> Result<Box<Self>, OutOfMemory> {
        // The bin number is a 32-bit product, so there can't be more bins than tags.
        if groups == 0 || groups > (1 << 32) / GROUP {
            return Err(OutOfMemory);
        }
        Ok(Box::new(Self {
            bins: ZeroedArray::new(groups.checked_mul(GROUP).ok_or(OutOfMemory)?)?,
            overflow: ZeroedArray::new(groups)?,
            groups,
            next: AtomicPtr::new(std::ptr::null_mut()),
            helped: AtomicUsize::new(0),
            moved: AtomicUsize::new(0),
        }))
    }

    /// The entries at which this table is full.
    pub(super) fn entries(&self) -> usize {
        self.groups * GROUP * LOAD_NUMERATOR / LOAD_DENOMINATOR
    }

    #[inline(always)]
    pub(super) fn number(&self, tag: Tag) -> usize {
        ((tag as u64 * self.bins.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn line(&self, number: usize) -> &Line {
        debug_assert!(number < self.groups * GROUP);
        // SAFETY: as in `bin`.
        unsafe { self.bins.get_unchecked(number) }
    }

    #[inline(always)]
    pub(super) fn bin(&self, number: usize) -> Bin<'_> {
        debug_assert!(number < self.groups * GROUP);
        // SAFETY: `number < groups * GROUP` (a tag times the bins, shifted down by the tag's width, is
        // below the bins; growth passes numbers of this table), so both lines lie in their arrays.
        unsafe {
            Bin::new(self.bins.get_unchecked(number), self.overflow.get_unchecked(number / GROUP))
        }
    }
}

/// The concurrent index from tags to slot indices. Keys are compared by the caller.
pub struct Index {
    /// The oldest table whose groups have not all moved.
    pub(super) root: AtomicPtr<Table>,
    /// Where the root's bins lie and how many they are: for prefetching before a thread is pinned, so never
    /// dereferenced. The two may be of different tables for an instant.
    hint: (AtomicPtr<Line>, AtomicUsize),
    /// The bins of an index that never grows.
    steady: Option<NonNull<Line>>,
    /// The same, if readers have shields: so that one look at the pointer tells.
    shielded: Option<NonNull<Line>>,
}

/// The bins of an index that never grows: readers of any kind may look at them.
#[derive(Clone, Copy)]
pub struct Steady<'a> {
    bins: NonNull<Line>,
    index: &'a Index,
}

impl Steady<'_> {
    /// As [`Index::glance`], without a pin. The slot that `protect` is told becomes the candidate if the header, which
    /// is loaded after that, is the same still. A word that is not a member may be told too: of a slot that was handed
    /// out once.
    #[inline(always)]
    pub fn glance(self, tag: Tag, protect: impl FnOnce(u32)) -> Glance {
        // Relaxed: the first table's bins, written before the index was shared.
        let number = (tag as u64 * self.index.hint.1.load(Relaxed) as u64) >> 32;
        // SAFETY: a steady index keeps its first table, whose bins these are; a tag times the bins, shifted down by
        // the tag's width, is below the bins.
        unsafe { self.bins.add(number as usize).as_ref() }.glance::<false>(tag, protect)
    }
}

// SAFETY: tables hold atomics only; the pointer owns the chain of tables and is changed by CAS.
unsafe impl Send for Index {}
// SAFETY: as above; all shared access is by atomics, and tables are freed through the epoch.
unsafe impl Sync for Index {}

impl Index {
    /// An index sized for `entries`.
    pub fn new(entries: usize) -> Result<Self, OutOfMemory> {
        let bins = entries.saturating_mul(LOAD_DENOMINATOR).div_ceil(LOAD_NUMERATOR);
        Self::with_groups(bins.div_ceil(GROUP).max(1))
    }

    /// An index of exactly `groups` groups.
    pub fn with_groups(groups: usize) -> Result<Self, OutOfMemory> {
        let table = Table::new(groups)?;
        let hint = (AtomicPtr::new(table.bins.base()), AtomicUsize::new(table.bins.len()));
        Ok(Self { root: AtomicPtr::new(Box::into_raw(table)), hint, steady: None, shielded: None })
    }

    /// The same index, which will never grow. May it be read without a pin, behind a shield?
    pub fn into_steady(mut self, has_shields: bool) -> Self {
        self.steady = NonNull::new(self.hint.0.load(Relaxed));
        self.shielded = self.steady.filter(|_| has_shields);
        self
    }

    pub(super) fn is_steady(&self) -> bool {
        self.steady.is_some()
    }

    /// The root is `table` now.
    pub(super) fn move_hint(&self, table: &Table) {
        self.hint.0.store(table.bins.base(), Relaxed);
        self.hint.1.store(table.bins.len(), Relaxed);
    }

    /// Asks for the line of `tag`'s bin ahead of its use. Needs no pin: a pin is a full barrier, behind which
    /// a cache miss would begin only then.
    #[inline(always)]
    pub fn prefetch(&self, tag: Tag) {
        if cfg!(alru_loom) {
            return; // Two more switch points for nothing.
        }
        let number = (tag as u64 * self.hint.1.load(Relaxed) as u64) >> 32;
        mem::prefetch(self.hint.0.load(Relaxed).wrapping_add(number as usize));
    }

    #[inline(always)]
    pub(super) fn root<'g>(&self, _guard: &'g Guard) -> &'g Table {
        // SAFETY: the root is never null; it is replaced by growth alone, which retires the old table
        // through the epoch, and the caller is pinned for 'g. Acquire pairs with the release of the CAS
        // that published the table.
        unsafe { &*self.root.load(Acquire) }
    }

    /// One candidate for a look-up, in one line; see [`Glance`].
    #[inline(always)]
    pub fn glance(&self, guard: &Guard, tag: Tag) -> Glance {
        let table = self.root(guard);
        table.line(table.number(tag)).glance::<true>(tag, |_| {})
    }

    /// The bins of a steady index.
    #[inline(always)]
    pub fn steady(&self) -> Option<Steady<'_>> {
        self.steady.map(|bins| Steady { bins, index: self })
    }

    /// The same, if they may be read without a pin, behind a shield.
    #[inline(always)]
    pub fn shielded(&self) -> Option<Steady<'_>> {
        self.shielded.map(|bins| Steady { bins, index: self })
    }

    /// The slot of the key with this tag for which `is_key` holds. Linearises at a header load: the last
    /// one for a hit, the validated first one for a miss.
    pub fn find(
        &self,
        guard: &Guard,
        tag: Tag,
        mut is_key: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        loop {
            let bin = self.locate(guard, tag);
            let mut header = bin.header();
            while !header.is_frozen() {
                match bin.scan(header, tag, &mut is_key) {
                    Scan::Found(index) => return Some(index),
                    Scan::Absent if bin.still(header) => return None,
                    Scan::Absent => header = bin.header(),
                    Scan::Moved(now) => header = now,
                }
            }
        }
    }

    /// The bin of `tag` in the root, which decides as a rule: it may be frozen.
    #[inline(always)]
    fn first_bin<'g>(&self, guard: &'g Guard, tag: Tag) -> Bin<'g> {
        let table = self.root(guard);
        table.bin(table.number(tag))
    }

    /// The bin that decides about `tag`: the first on the way from the root that is not frozen.
    #[inline]
    pub(super) fn locate<'g>(&self, guard: &'g Guard, tag: Tag) -> Bin<'g> {
        let mut table = self.root(guard);
        loop {
            let number = table.number(tag);
            let bin = table.bin(number);
            if !bin.header().is_frozen() {
                return bin;
            }
            table = table.advance(guard, number / GROUP);
        }
    }

    #[inline]
    fn change(
        &self,
        guard: &Guard,
        tag: Tag,
        mut attempt: impl FnMut(Bin<'_>) -> Commit,
    ) -> Commit {
        loop {
            match attempt(self.locate(guard, tag)) {
                Commit::Frozen => continue,
                done => return done,
            }
        }
    }

    /// Looks for the key before a write: its slot, or where it may go. `Found` linearises as in
    /// [`Index::find`].
    #[inline]
    pub fn probe<'g>(
        &self,
        guard: &'g Guard,
        tag: Tag,
        mut is_key: impl FnMut(u32) -> bool,
    ) -> Probe<'g> {
        let mut bin = self.first_bin(guard, tag);
        loop {
            if let Some(probe) = bin.probe(tag, &mut is_key) {
                return probe;
            }
            bin = self.locate(guard, tag);
        }
    }

    /// Makes slot `index` a member unless the key is there, which was just looked for in vain: `Done`, `Exists`
    /// or `Full`. Also `Exists` if `beside` holds at an
    /// instant after the header was read that the insert relies on; the caller asked after it got `vacancy`.
    #[inline]
    pub fn insert_at(
        &self,
        guard: &Guard,
        vacancy: Vacancy<'_>,
        tag: Tag,
        index: u32,
        is_key: impl FnMut(u32) -> bool,
        beside: impl Fn() -> bool,
    ) -> Commit {
        if vacancy.fill(Word::new(tag, index)) {
            return Commit::Done;
        }
        self.insert_slow(guard, tag, index, is_key, beside)
    }

    #[cold]
    #[inline(never)]
    fn insert_slow(
        &self,
        guard: &Guard,
        tag: Tag,
        index: u32,
        mut is_key: impl FnMut(u32) -> bool,
        beside: impl Fn() -> bool,
    ) -> Commit {
        let word = Word::new(tag, index);
        self.change(guard, tag, |bin| bin.insert(word, &mut is_key, &beside))
    }

    /// Makes every commit on `tag`'s bin fail that relies on a header read before this.
    pub fn renew(&self, guard: &Guard, tag: Tag) {
        while !self.locate(guard, tag).renew() {}
    }

    /// Ends the membership of slot `index`; true for the one winner, who owns its retirement.
    #[inline]
    #[must_use = "the winner owns the slot's retirement"]
    pub fn unlink(&self, guard: &Guard, tag: Tag, index: u32) -> bool {
        let word = Word::new(tag, index);
        self.first_bin(guard, tag).try_unlink(word) || self.unlink_slow(guard, word)
    }

    #[cold]
    #[inline(never)]
    fn unlink_slow(&self, guard: &Guard, word: Word) -> bool {
        matches!(self.change(guard, word.tag(), |bin| bin.unlink(word)), Commit::Done)
    }

    /// Swaps slot `old` for `new` under one key: `Done`, `Gone` or `Full`. `Exists` if `beside` holds, as in
    /// [`Index::insert_at`].
    #[inline]
    pub fn replace(
        &self,
        guard: &Guard,
        tag: Tag,
        old: u32,
        new: u32,
        beside: impl Fn() -> bool,
    ) -> Commit {
        let (old, new) = (Word::new(tag, old), Word::new(tag, new));
        self.change(guard, tag, |bin| bin.replace(old, new, &beside))
    }

    /// The slots that share the bin of `tag`, at one instant.
    pub fn neighbours(&self, guard: &Guard, tag: Tag) -> [Option<Word>; POSITIONS] {
        self.locate(guard, tag).members().0
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        let mut table = self.root.load(Relaxed);
        while !table.is_null() {
            // SAFETY: `&mut self`: nobody reads any more; the chain from the root is ours alone, and
            // tables before the root were retired when the root moved past them.
            let owned = unsafe { Box::from_raw(table) };
            table = owned.next.load(Relaxed);
        }
    }
}
