//! One bin: seven slot words and the header that publishes them, in one cache line.
//!
//! ```text
//!  word 0    header: INIT | valid bitmap, 7 own + 8 overflow | FROZEN | version 47
//!  word i    0 = never written, 1 = VACANT, else slot index32 << 32 | tag32, indices from 2
//! ```
//! Four bins form a group and share one overflow line of eight words; an overflow word belongs to the bin
//! whose header shows it valid.
//!
//! **Membership changes by one CAS on the header, and by nothing else.** A word is claimed by CAS first,
//! which no reader can see, and becomes a member when the header shows its bit. The version moves with
//! every change, so a header CAS that succeeds saw no change since the scan that it relies on: that is why
//! keys are unique and why a word under a valid bit holds still while the header does.
//!
//! Orderings. A claim is an AcqRel CAS and a header commit another; a reader loads words with Acquire
//! between its two header loads. So a reader that sees a recycled word also sees the header change that
//! made it claimable, and its second header load differs from the first: it validates before it
//! dereferences. No ABA on a word: a slot index freed during a pin is not reused within it.

use super::mem::Blank;
use crate::sync::atomic::{AtomicU64, Ordering, Ordering::*};

/// Words in a bin's own line that hold slots.
pub const OWN: usize = 7;
/// Words in a group's overflow line.
pub const OVERFLOW: usize = 8;
/// Positions that a bin can use: its own words, then its group's overflow words.
pub const POSITIONS: usize = OWN + OVERFLOW;
/// Bins in a group.
pub const GROUP: usize = 4;

const INIT: u64 = 1;
/// So that bit i of the header is about word i of the line.
const VALID_SHIFT: u32 = 1;
const OWN_VALID: u64 = ((1 << OWN) - 1) << VALID_SHIFT;
const OVERFLOW_VALID: u64 = ((1 << OVERFLOW) - 1) << (VALID_SHIFT + OWN as u32);
const FROZEN: u64 = 1 << (VALID_SHIFT + POSITIONS as u32);
/// One step of the version.
const VERSION: u64 = FROZEN << 1;

/// The ordering of claims and commits: see the module.
const PUBLISH: Ordering = if cfg!(alru_mutation = "relaxed_publish") { Relaxed } else { AcqRel };

/// A word that held a slot and may be claimed again.
const VACANT: u64 = 1;
/// The smallest slot index: words 0 and 1 mean no slot.
pub const FIRST_INDEX: u32 = 2;

/// The hash bits that a slot word carries and that choose the bin.
pub type Tag = u32;

/// A slot word: tag and slot index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(u64);

impl Word {
    pub fn new(tag: Tag, index: u32) -> Self {
        debug_assert!(index >= FIRST_INDEX);
        Self((index as u64) << 32 | tag as u64)
    }
    #[inline(always)]
    pub fn tag(self) -> Tag {
        self.0 as Tag
    }
    #[inline(always)]
    pub fn index(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A header as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header(u64);

impl Header {
    #[inline(always)]
    pub fn is_frozen(self) -> bool {
        self.0 & FROZEN != 0
    }
    pub fn is_open(self) -> bool {
        self.0 & INIT != 0
    }
    #[inline(always)]
    fn valid(self) -> u32 {
        ((self.0 & (OWN_VALID | OVERFLOW_VALID)) >> VALID_SHIFT) as u32
    }
    fn with(self, position: usize) -> Self {
        debug_assert!(self.valid() & (1 << position) == 0);
        Self(self.0 | 1 << (VALID_SHIFT as usize + position))
    }
    fn without(self, position: usize) -> Self {
        debug_assert!(self.valid() & (1 << position) != 0);
        Self(self.0 & !(1 << (VALID_SHIFT as usize + position)))
    }
    /// Every commit opens the bin (a no-op but in a first table's untouched bins) and moves the version.
    fn next(self) -> Self {
        #[cfg(not(alru_mutation = "no_version"))]
        return Self((self.0 | INIT).wrapping_add(VERSION));
        #[cfg(alru_mutation = "no_version")]
        return Self(self.0 | INIT);
    }
}

/// One line of eight words: a bin, or a group's overflow.
#[repr(align(64))]
pub struct Line([AtomicU64; 8]);

// SAFETY: zero is a valid value for each atomic, and `blank` gives just that.
unsafe impl Blank for Line {
    fn blank() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Line {
    /// Bit i: word i carries `tag`. Of bit 0, the header's, and those past the words nothing is said.
    #[cfg(any(not(target_arch = "x86_64"), alru_loom, miri))]
    #[inline(always)]
    fn tags_equal(&self, tag: Tag) -> u32 {
        let mut equal = 0;
        for i in 1..=OWN {
            equal |= u32::from(Word(self.0[i].load(Acquire)).tag() == tag) << i;
        }
        equal
    }

    /// The same with SSE2, which every x86-64 has: 14 instructions for 34.
    ///
    /// The loads are made by inline assembly, because the line changes under them: they stand for eight
    /// atomic loads. Each 8-byte half of an aligned 16-byte load is single-copy atomic on every x86-64 that
    /// there is (and the whole by the manuals where there is AVX); loads are not reordered with later
    /// loads, which is Acquire; and the block is a barrier to the compiler.
    #[cfg(all(target_arch = "x86_64", not(alru_loom), not(miri)))]
    #[inline(always)]
    fn tags_equal(&self, tag: Tag) -> u32 {
        use std::arch::x86_64::{
            __m128i, _mm_castps_si128, _mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_epi8,
            _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32, _mm_shuffle_ps,
        };
        let (w01, w23, w45, w67): (__m128i, __m128i, __m128i, __m128i);
        // SAFETY: `self` is 64 bytes, 64-aligned, and initialised; the block only reads it.
        unsafe {
            std::arch::asm!(
                "movdqa {a}, [{line}]",
                "movdqa {b}, [{line} + 16]",
                "movdqa {c}, [{line} + 32]",
                "movdqa {d}, [{line} + 48]",
                line = in(reg) self,
                a = out(xmm_reg) w01,
                b = out(xmm_reg) w23,
                c = out(xmm_reg) w45,
                d = out(xmm_reg) w67,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: SSE2 is part of x86-64. The shuffle picks the lower half of each word.
        unsafe {
            let tags = _mm_set1_epi32(tag as i32);
            let lower = |x, y| {
                _mm_castps_si128(_mm_shuffle_ps::<0b10_00_10_00>(
                    _mm_castsi128_ps(x),
                    _mm_castsi128_ps(y),
                ))
            };
            let low = _mm_cmpeq_epi32(lower(w01, w23), tags);
            let high = _mm_cmpeq_epi32(lower(w45, w67), tags);
            let words = _mm_packs_epi32(low, high);
            _mm_movemask_epi8(_mm_packs_epi16(words, words)) as u32
        }
    }

    /// Acquire: pairs with the AcqRel of the commit that is seen; every word under a valid bit, and the
    /// slot it names, were written before that.
    #[inline(always)]
    fn header(&self) -> Header {
        Header(self.0[0].load(Acquire))
    }

    /// Has the header held still? The word loads before this are Acquire, so it cannot move above them.
    #[inline(always)]
    fn still(&self, header: Header) -> bool {
        self.0[0].load(Acquire) == header.0 || cfg!(alru_mutation = "no_validation")
    }

    /// The words that are valid under `header` and carry `tag`, by their number in the line. No
    /// branches.
    #[inline(always)]
    fn matching_words(&self, header: Header, tag: Tag) -> u32 {
        self.tags_equal(tag) & (header.0 & OWN_VALID) as u32
    }

    /// The first step of a look-up: one candidate, without a look into the overflow line. `protect` is told the
    /// candidate's slot before the header is validated; any index that was ever handed out. `GROWS`: the bin may be
    /// frozen.
    #[inline(always)]
    pub fn glance<const GROWS: bool>(&self, tag: Tag, protect: impl FnOnce(u32)) -> Glance {
        let header = self.header();
        let hits = self.matching_words(header, tag);
        if hits != 0 {
            // Read again rather than kept: the header is validated after this load too.
            let word = Word(self.0[hits.trailing_zeros() as usize].load(Acquire));
            protect(word.index());
            if !(GROWS && header.is_frozen()) && self.still(header) {
                return Glance::Candidate(word.index());
            }
        } else if header.0 & (OVERFLOW_VALID | FROZEN) == 0 && self.still(header) {
            return Glance::Absent;
        }
        Glance::Unsure
    }
}

/// What a scan under one header found.
pub enum Scan {
    /// The slot of the key; it was a member when the header was validated.
    Found(u32),
    /// The key was not a member under the header that the scan began with. Not validated: a commit on
    /// that header is the validation, and a reader calls [`Bin::still`].
    Absent,
    /// The header moved.
    Moved(Header),
}

/// What a glance at a bin showed.
pub enum Glance {
    /// This slot was a member and has the tag; if it has another key, look again.
    Candidate(u32),
    /// The tag was not a member.
    Absent,
    /// The bin is moving, changing, or has overflow words: look properly.
    Unsure,
}

/// What an attempt to change membership met.
pub enum Commit {
    Done,
    /// The key is there already.
    Exists,
    /// The slot to unlink or replace is not a member.
    Gone,
    /// Neither the bin nor its overflow line has a free word.
    Full,
    /// The bin moved to the next table.
    Frozen,
}

/// A bin and the overflow line of its group.
#[derive(Clone, Copy)]
pub struct Bin<'a> {
    line: &'a Line,
    overflow: &'a Line,
}

/// A bin that did not have a key, and the header under which it did not.
///
/// Not validated: an insert that commits on this very header is the validation.
#[must_use]
pub struct Vacancy<'a> {
    bin: Bin<'a>,
    header: Header,
}

impl Vacancy<'_> {
    /// Makes `word` a member in the key's place; false if anything is in the way: the bin changed or is full.
    #[inline]
    pub fn fill(self, word: Word) -> bool {
        self.bin.try_insert(self.header, word)
    }
}

/// What a look at a key's bin before a write showed.
pub enum Probe<'a> {
    /// The slot of the key; it was a member.
    Found(u32),
    Vacant(Vacancy<'a>),
}

/// A claimed word that no header shows yet; given back when dropped.
struct Claim<'a> {
    bin: Bin<'a>,
    position: usize,
}

impl Claim<'_> {
    /// A header shows the word now.
    fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Release: nothing was published through the word, but its next claimer's readers must not see
        // it before this. In a frozen bin it is garbage that nobody copies.
        self.bin.word(self.position).store(VACANT, Release);
    }
}

impl<'a> Bin<'a> {
    #[inline(always)]
    pub fn new(line: &'a Line, overflow: &'a Line) -> Self {
        Self { line, overflow }
    }

    #[inline(always)]
    fn header_word(&self) -> &'a AtomicU64 {
        &self.line.0[0]
    }

    #[inline]
    fn word(&self, position: usize) -> &'a AtomicU64 {
        if position < OWN { &self.line.0[1 + position] } else { &self.overflow.0[position - OWN] }
    }

    #[inline(always)]
    pub fn header(&self) -> Header {
        self.line.header()
    }

    #[inline(always)]
    pub fn still(&self, header: Header) -> bool {
        self.line.still(header)
    }

    #[inline]
    fn commit(&self, from: Header, to: Header) -> Result<(), Header> {
        #[cfg(alru_mutation = "blind_commit")]
        {
            self.header_word().fetch_or(INIT | (to.0 & !from.0), AcqRel);
            self.header_word().fetch_and(!(from.0 & !to.0), AcqRel);
            return Ok(());
        }
        #[cfg(not(alru_mutation = "blind_commit"))]
        self.header_word()
            .compare_exchange(from.0, to.next().0, PUBLISH, Acquire)
            .map(|_| ())
            .map_err(Header)
    }

    /// The same by position.
    #[inline(always)]
    fn matches(&self, header: Header, tag: Tag) -> u32 {
        self.line.matching_words(header, tag) >> VALID_SHIFT
    }

    /// Looks for `tag` under `header`; `is_key` compares the keys of a validated member.
    #[inline(always)]
    pub fn scan(&self, header: Header, tag: Tag, mut is_key: impl FnMut(u32) -> bool) -> Scan {
        let mut hits = self.matches(header, tag);
        while hits != 0 {
            // Read again rather than kept: the header is validated after this load too.
            let word = Word(self.line.0[1 + hits.trailing_zeros() as usize].load(Acquire));
            if !self.still(header) {
                return Scan::Moved(self.header());
            }
            if is_key(word.index()) {
                return Scan::Found(word.index());
            }
            hits &= hits - 1;
        }
        if header.valid() >> OWN != 0 {
            return self.scan_overflow(header, tag, &mut is_key);
        }
        Scan::Absent
    }

    #[cold]
    fn scan_overflow(
        &self,
        header: Header,
        tag: Tag,
        is_key: &mut impl FnMut(u32) -> bool,
    ) -> Scan {
        let mut shown = header.valid() >> OWN;
        while shown != 0 {
            let word = Word(self.overflow.0[shown.trailing_zeros() as usize].load(Acquire));
            shown &= shown - 1;
            if word.tag() != tag {
                continue;
            }
            if !self.still(header) {
                return Scan::Moved(self.header());
            }
            if is_key(word.index()) {
                return Scan::Found(word.index());
            }
        }
        Scan::Absent
    }

    /// A look before a write; None if the bin is frozen.
    #[inline]
    pub fn probe(self, tag: Tag, mut is_key: impl FnMut(u32) -> bool) -> Option<Probe<'a>> {
        let mut header = self.header();
        while !header.is_frozen() {
            match self.scan(header, tag, &mut is_key) {
                Scan::Found(index) => return Some(Probe::Found(index)),
                Scan::Absent => return Some(Probe::Vacant(Vacancy { bin: self, header })),
                Scan::Moved(now) => header = now,
            }
        }
        None
    }

    /// Claims a free word for `word`. Invisible until a header shows its bit.
    #[inline]
    fn claim(&self, header: Header, word: Word) -> Option<Claim<'a>> {
        self.claim_among(!header.valid() & ((1 << POSITIONS) - 1), word)
    }

    #[inline(always)]
    fn claim_among(&self, mut free: u32, word: Word) -> Option<Claim<'a>> {
        while free != 0 {
            let position = free.trailing_zeros() as usize;
            free &= free - 1;
            let cell = self.word(position);
            let seen = cell.load(Acquire);
            // AcqRel: acquires the header change that made the word free, releases it to readers.
            #[cfg(alru_mutation = "blind_claim")]
            if seen <= VACANT {
                cell.store(word.0, Release);
                return Some(Claim { bin: *self, position });
            }
            #[cfg(not(alru_mutation = "blind_claim"))]
            if seen <= VACANT && cell.compare_exchange(seen, word.0, PUBLISH, Acquire).is_ok() {
                return Some(Claim { bin: *self, position });
            }
        }
        None
    }

    /// Makes `word` a member unless the key is there. Linearises at the header CAS, or at the header load
    /// that validated the key's presence. Also `Exists` if `beside` holds at an instant after the header was
    /// read that the commit relies on.
    #[inline]
    pub fn insert(
        &self,
        word: Word,
        mut is_key: impl FnMut(u32) -> bool,
        beside: impl Fn() -> bool,
    ) -> Commit {
        let mut header = self.header();
        let mut claimed = None;
        loop {
            if header.is_frozen() {
                return Commit::Frozen;
            }
            match self.scan(header, word.tag(), &mut is_key) {
                Scan::Moved(now) => header = now,
                Scan::Found(_) => return Commit::Exists,
                Scan::Absent if beside() => return Commit::Exists,
                Scan::Absent => {
                    let Some(claim) = claimed.take().or_else(|| self.claim(header, word)) else {
                        let now = self.header();
                        if now == header {
                            return Commit::Full;
                        }
                        header = now;
                        continue;
                    };
                    match self.commit(header, header.with(claim.position)) {
                        Ok(()) => {
                            claim.publish();
                            return Commit::Done;
                        }
                        Err(now) => {
                            header = now;
                            claimed = Some(claim);
                        }
                    }
                }
            }
        }
    }

    /// One attempt at [`Bin::insert`], at the first free word of the bin's own line: false if anything is in
    /// the way. `header` is that of a scan which did not find the key.
    #[inline]
    fn try_insert(&self, header: Header, word: Word) -> bool {
        let free = !header.valid() & ((1 << OWN) - 1);
        let Some(claim) = self.claim_among(free & free.wrapping_neg(), word) else { return false };
        let done = self.commit(header, header.with(claim.position)).is_ok();
        if done {
            claim.publish();
        }
        done
    }

    /// Moves the version and nothing else: commits that rely on an older header fail. False if the bin is frozen.
    pub fn renew(&self) -> bool {
        let mut header = self.header();
        while !header.is_frozen() {
            match self.commit(header, header) {
                Ok(()) => return true,
                Err(now) => header = now,
            }
        }
        false
    }

    /// The position of exactly this word under `header`; holds while the header does.
    #[inline]
    fn position_of(&self, header: Header, word: Word) -> Option<usize> {
        let mut likely = self.matches(header, word.tag()) | (header.valid() >> OWN << OWN);
        while likely != 0 {
            let position = likely.trailing_zeros() as usize;
            if self.word(position).load(Acquire) == word.0 {
                return Some(position);
            }
            likely &= likely - 1;
        }
        None
    }

    /// One attempt at [`Bin::unlink`] for a word in the bin's own line: false if anything is in the way.
    #[inline]
    pub fn try_unlink(&self, word: Word) -> bool {
        let header = self.header();
        let hits = self.matches(header, word.tag());
        if hits == 0 || (header.is_frozen() && cfg!(not(alru_mutation = "ignore_frozen"))) {
            return false;
        }
        let position = hits.trailing_zeros() as usize;
        let cell = &self.line.0[1 + position];
        let done =
            cell.load(Acquire) == word.0 && self.commit(header, header.without(position)).is_ok();
        if done {
            // Release: as in `unlink`.
            cell.store(VACANT, Release);
        }
        done
    }

    /// Ends the membership of `word`: `Done` for the one caller whose CAS cleared its bit, who owns the
    /// slot's retirement.
    #[inline]
    pub fn unlink(&self, word: Word) -> Commit {
        let mut header = self.header();
        loop {
            if header.is_frozen() && cfg!(not(alru_mutation = "ignore_frozen")) {
                return Commit::Frozen;
            }
            let Some(position) = self.position_of(header, word) else {
                let now = self.header();
                if now == header {
                    return Commit::Gone;
                }
                header = now;
                continue;
            };
            match self.commit(header, header.without(position)) {
                Ok(()) => {
                    // Release: whoever claims the word again has the header change before it.
                    self.word(position).store(VACANT, Release);
                    return Commit::Done;
                }
                Err(now) => header = now,
            }
        }
    }

    /// Swaps `old` for `new` in one header CAS, so that the key is never absent. `Done`: the caller owns
    /// the retirement of `old`. `Exists` if `beside` holds, as in [`Bin::insert`].
    #[inline]
    pub fn replace(&self, old: Word, new: Word, beside: impl Fn() -> bool) -> Commit {
        let mut header = self.header();
        let mut claimed = None;
        loop {
            if header.is_frozen() {
                return Commit::Frozen;
            }
            let Some(position) = self.position_of(header, old) else {
                let now = self.header();
                if now == header {
                    return Commit::Gone;
                }
                header = now;
                continue;
            };
            if beside() {
                return Commit::Exists;
            }
            let Some(claim) = claimed.take().or_else(|| self.claim(header, new)) else {
                let now = self.header();
                if now == header {
                    return Commit::Full;
                }
                header = now;
                continue;
            };
            match self.commit(header, header.without(position).with(claim.position)) {
                Ok(()) => {
                    claim.publish();
                    self.word(position).store(VACANT, Release);
                    return Commit::Done;
                }
                Err(now) => {
                    header = now;
                    claimed = Some(claim);
                }
            }
        }
    }

    /// The members at one instant: words and how many, under a validated header.
    pub fn members(&self) -> ([Option<Word>; POSITIONS], Header) {
        loop {
            let header = self.header();
            let members = self.valid_words(header);
            if self.still(header) {
                return (members, header);
            }
        }
    }

    /// The words under the valid bits of `header`, by position; exact while the header holds.
    fn valid_words(&self, header: Header) -> [Option<Word>; POSITIONS] {
        std::array::from_fn(|p| {
            (header.valid() & (1 << p) != 0).then(|| Word(self.word(p).load(Acquire)))
        })
    }

    /// Freezes the bin: no membership changes here any more. Returns its members, which are final.
    pub fn freeze(&self) -> [Option<Word>; POSITIONS] {
        // AcqRel: acquires every commit before it; a commit after it fails on the changed header.
        let header = Header(self.header_word().fetch_or(INIT | FROZEN, AcqRel));
        self.valid_words(header)
    }

    /// Copies a frozen word to its place in this not yet open bin. Every helper computes the same word
    /// for the same position; whoever comes late finds the position written and leaves it.
    pub fn adopt(&self, position: usize, word: Word) {
        #[cfg(alru_mutation = "late_adopt")]
        self.word(position).store(word.0, Release);
        #[cfg(not(alru_mutation = "late_adopt"))]
        let _ = self.word(position).compare_exchange(0, word.0, AcqRel, Acquire);
    }

    /// Opens the bin with its adopted members; a late helper finds it open.
    pub fn open(&self, members: usize, own: usize, overflow_from: usize) {
        let overflow = members - own;
        let own_bits = (1u64 << own) - 1;
        let overflow_bits = ((1u64 << overflow) - 1) << (OWN + overflow_from);
        let header = INIT | (own_bits | overflow_bits) << VALID_SHIFT;
        let _ = self.header_word().compare_exchange(0, header + VERSION, AcqRel, Acquire);
    }
}

#[cfg(all(test, not(alru_loom)))]
mod tests {
    use super::*;

    fn lines() -> (Line, Line) {
        (Line::blank(), Line::blank())
    }

    #[test]
    fn header_fields_do_not_overlap() {
        assert_eq!(OWN_VALID & OVERFLOW_VALID, 0);
        assert_eq!((OWN_VALID | OVERFLOW_VALID) & (INIT | FROZEN), 0);
        assert_eq!((INIT | FROZEN | OWN_VALID | OVERFLOW_VALID) + 1, VERSION);
    }

    #[test]
    fn fifteen_members_fit_and_the_sixteenth_is_told_so() {
        let (a, o) = lines();
        let bin = Bin::new(&a, &o);
        for i in 0..POSITIONS as u32 {
            assert!(matches!(
                bin.insert(Word::new(9, i + 2), |x| x == i + 2, || false),
                Commit::Done
            ));
        }
        assert!(matches!(bin.insert(Word::new(9, 99), |_| false, || false), Commit::Full));
        assert!(matches!(bin.insert(Word::new(9, 99), |x| x == 16, || false), Commit::Exists));
        assert!(matches!(bin.replace(Word::new(9, 4), Word::new(9, 99), || false), Commit::Full));
        assert!(matches!(bin.unlink(Word::new(9, 4)), Commit::Done));
        assert!(matches!(bin.unlink(Word::new(9, 4)), Commit::Gone));
        assert!(matches!(bin.replace(Word::new(9, 5), Word::new(9, 99), || false), Commit::Done));
        assert_eq!(bin.members().0.iter().flatten().count(), POSITIONS - 1);
    }

    #[test]
    fn a_commit_on_a_header_from_before_a_renewal_fails() {
        let (a, o) = lines();
        let bin = Bin::new(&a, &o);
        let Some(Probe::Vacant(vacancy)) = bin.probe(1, |_| false) else { panic!("it is empty") };
        assert!(bin.renew() && !vacancy.fill(Word::new(1, 2)));
        assert!(matches!(bin.insert(Word::new(1, 2), |_| false, || true), Commit::Exists));
        assert!(matches!(bin.insert(Word::new(1, 2), |_| false, || false), Commit::Done));
        assert!(bin.renew() && matches!(bin.unlink(Word::new(1, 2)), Commit::Done));
    }

    #[test]
    fn a_panicking_key_comparison_gives_the_claim_back() {
        let (a, o) = lines();
        let bin = Bin::new(&a, &o);
        assert!(matches!(bin.insert(Word::new(1, 2), |_| false, || false), Commit::Done));
        let shouted =
            std::panic::catch_unwind(|| bin.insert(Word::new(1, 3), |_| panic!("eq"), || false));
        assert!(shouted.is_err());
        assert!(matches!(bin.insert(Word::new(1, 3), |_| false, || false), Commit::Done));
        assert_eq!(bin.members().0.iter().flatten().count(), 2);
    }
}
