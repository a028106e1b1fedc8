//! Growth of the index: everybody helps, nobody waits.
//!
//! A table grows by a CAS of a zeroed table of twice the size into `next`. A group moves in three steps
//! that any number of helpers may run at once: freeze its four headers, so that its members are final;
//! copy each member by `CAS(0 → word)` to a place that follows from the frozen words alone; open the eight
//! child bins by `CAS(0 → header)`. All helpers compute the same words for the same places. A place that
//! was written never becomes 0 again, and a header that was opened neither, so a late helper changes
//! nothing. All four bins are copied before the first child opens, because the children of a group share
//! overflow lines.
//!
//! It always fits: a child has at most the members of its parent, at most one child of a parent has more
//! than its own seven words can hold, and then by no more than the parent had in overflow.
//!
//! Progress: who needs a group that has not moved moves it himself. `moved` is a count that anybody can
//! advance past a group whose children are open, so a helper that stops does not keep the old table alive.

use super::bin::{GROUP, OWN, POSITIONS, Tag};
use super::mem::OutOfMemory;
use super::reclaim::Guard;
use super::table::{Index, Table};
use crate::sync::atomic::Ordering::*;

/// A table with less than one in so many of its entries is not grown for one full group: what fills a group
/// there are equal tags, and those would double it for ever. Small tables have full groups early, so this is
/// far below what a growth leaves behind.
const SPARSE: usize = 32;

/// Doublings that a full group may be parted by.
const DOUBLINGS: u32 = 3;

/// Groups that a write moves on its way while the index grows.
const HELP: usize = 2;

impl Table {
    /// The next table, with the children of `group` open.
    pub(super) fn advance<'g>(&self, _guard: &'g Guard, group: usize) -> &'g Table {
        // SAFETY: a bin is frozen only after `next` was set (both in `move_group`'s callers, Acquire here
        // pairs with the CAS in `start`), and it is freed after this table is; the caller is pinned.
        let next: &'g Table = unsafe { &*self.next.load(Acquire) };
        self.move_group(group, next);
        next
    }

    fn has_moved(group: usize, next: &Table) -> bool {
        // The last child opens last, but another helper may have opened it: any order will do, as all
        // words were copied before the first opened. So look at all.
        (0..2 * GROUP).all(|c| next.bin(group * 2 * GROUP + c).header().is_open())
    }

    pub(super) fn move_group(&self, group: usize, next: &Table) {
        if Self::has_moved(group, next) {
            return;
        }
        let frozen: [_; GROUP] = std::array::from_fn(|b| self.bin(group * GROUP + b).freeze());
        let first_child = group * 2 * GROUP;
        let mut own = [0usize; 2 * GROUP];
        let mut spilled = [0usize; 2 * GROUP];
        let mut overflow_from = [usize::MAX; 2 * GROUP];
        let mut overflow_used = [0usize; 2];
        #[cfg(alru_mutation = "open_early")]
        let mut late = Vec::new();
        for words in &frozen {
            for word in words.iter().flatten() {
                let child = next.number(word.tag()) - first_child;
                let position = if own[child] < OWN {
                    own[child] += 1;
                    own[child] - 1
                } else {
                    let used = &mut overflow_used[child / GROUP];
                    if spilled[child] == 0 {
                        overflow_from[child] = *used;
                    }
                    spilled[child] += 1;
                    *used += 1;
                    OWN + *used - 1
                };
                debug_assert!(position < POSITIONS);
                #[cfg(alru_mutation = "open_early")]
                late.push((first_child + child, position, *word));
                #[cfg(not(alru_mutation = "open_early"))]
                next.bin(first_child + child).adopt(position, *word);
            }
        }
        for child in 0..2 * GROUP {
            let from = if spilled[child] == 0 { 0 } else { overflow_from[child] };
            next.bin(first_child + child).open(own[child] + spilled[child], own[child], from);
        }
        #[cfg(alru_mutation = "open_early")]
        for (child, position, word) in late {
            next.bin(child).adopt(position, word);
        }
    }
}

impl Index {
    /// Starts growing if the root table holds `entries` or more and is not growing; helps if it is.
    pub fn make_room(&self, guard: &Guard, entries: usize) -> Result<(), OutOfMemory> {
        let table = self.root(guard);
        if !table.next.load(Acquire).is_null() {
            self.help(guard, table);
        } else if entries >= table.entries() {
            self.start(guard, table)?;
        }
        Ok(())
    }

    /// Grows although the table is not full, because the group of `tag` is. False while the table is nearly
    /// empty: then the group is full of equal tags, which growth would not part.
    pub fn grow_for_group(&self, guard: &Guard, tag: Tag, entries: usize) -> bool {
        loop {
            let table = self.root(guard);
            if entries < table.entries() / SPARSE {
                return false;
            }
            if table.next.load(Acquire).is_null() && self.start(guard, table).is_err() {
                return false;
            }
            if !self.would_part(guard, table, tag) {
                return false;
            }
            let number = table.number(tag);
            if !table.bin(number).header().is_frozen() {
                // Moving this one group is enough: the children have room.
                table.advance(guard, number / GROUP);
                return true;
            }
            // The full group is a child already: the child can grow once the root has moved on. Bounded by
            // the groups that are left, and met only if a group fills up within one growth.
            while std::ptr::eq(self.root(guard), table) {
                self.help(guard, table);
            }
        }
    }

    /// Would a few doublings part the members of `tag`'s bin? Not if their tags agree in more bits than that
    /// adds to the choice of a bin: many equal tags are a weak hash, which no growth mends.
    fn would_part(&self, guard: &Guard, table: &Table, tag: Tag) -> bool {
        let bits = (table.groups * GROUP).ilog2() + DOUBLINGS;
        let members = self.neighbours(guard, tag);
        members.iter().flatten().any(|w| (w.tag() ^ tag).leading_zeros() < bits)
    }

    fn start(&self, guard: &Guard, table: &Table) -> Result<(), OutOfMemory> {
        assert!(!self.is_steady(), "who reads a steady index without a pin counts on its table");
        let next = Box::into_raw(Table::new(table.groups * 2)?);
        // AcqRel: publishes the zeroed table to whoever loads `next` with Acquire.
        let set = table.next.compare_exchange(std::ptr::null_mut(), next, AcqRel, Acquire);
        if set.is_err() {
            // SAFETY: never published: it is ours alone.
            drop(unsafe { Box::from_raw(next) });
        }
        self.help(guard, table);
        Ok(())
    }

    /// Moves a few groups, and the root when all have moved.
    #[cold]
    fn help(&self, guard: &Guard, table: &Table) {
        // SAFETY: not null, as the callers checked or `start` just made sure; freed after `table`.
        let next = unsafe { &*table.next.load(Acquire) };
        for _ in 0..HELP {
            // Relaxed: a hint that spreads helpers over groups; whoever moves a group reads its headers.
            let group = table.helped.fetch_add(1, Relaxed);
            if group < table.groups {
                table.move_group(group, next);
            }
        }
        let mut moved = table.moved.load(Acquire);
        for _ in 0..2 * HELP {
            if moved >= table.groups {
                break;
            }
            table.move_group(moved, next);
            // AcqRel: the count carries "these groups have moved" to whoever swings the root.
            match table.moved.compare_exchange(moved, moved + 1, AcqRel, Acquire) {
                Ok(_) => moved += 1,
                Err(now) => moved = now,
            }
        }
        if moved >= table.groups {
            self.swing(guard, table, next);
        }
    }

    fn swing(&self, guard: &Guard, table: &Table, next: &Table) {
        let old = std::ptr::from_ref(table).cast_mut();
        let new = std::ptr::from_ref(next).cast_mut();
        // AcqRel: releases the moved groups to whoever loads the root with Acquire.
        if self.root.compare_exchange(old, new, AcqRel, Acquire).is_ok() {
            self.move_hint(next);
            let old = old.expose_provenance();
            // SAFETY: the one winner of the CAS retires the table; nobody reaches it from the root any
            // more, and pinned readers that hold it delay the closure. It holds only plain memory.
            unsafe {
                guard.defer(move || {
                    drop(Box::from_raw(std::ptr::with_exposed_provenance_mut::<Table>(old)));
                });
            }
            guard.flush();
        }
    }
}
