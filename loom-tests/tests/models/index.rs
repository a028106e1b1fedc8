//! The index: bins that are published by their header, and growth.

use alru::raw::bin::{Commit, Glance, OWN, Probe, Tag};
use alru::raw::reclaim;
use alru::raw::table::Index;
use alru_loom_tests::{check, check_deeper, check_shallower};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// All keys of these models share one bin, and all but `OTHER` one tag.
const TAG: Tag = 7;
const OTHER: Tag = 8;

fn index() -> Arc<Index> {
    Arc::new(Index::with_groups(1).unwrap())
}

/// Slot `i` joins as the key that `is_key` describes. As `Core::publish`: looks, then fills the vacancy.
fn insert(index: &Index, tag: Tag, i: u32, is_key: impl Fn(u32) -> bool) -> Commit {
    let guard = reclaim::pin();
    match index.probe(&guard, tag, &is_key) {
        Probe::Found(_) => Commit::Exists,
        Probe::Vacant(vacancy) => index.insert_at(&guard, vacancy, tag, i, &is_key, || false),
    }
}

fn unlink(index: &Index, tag: Tag, i: u32) -> bool {
    index.unlink(&reclaim::pin(), tag, i)
}

/// As `Core::find`: a glance, and a proper look if that was not enough.
fn find(index: &Index, tag: Tag, mut is_key: impl FnMut(u32) -> bool) -> Option<u32> {
    let guard = reclaim::pin();
    match index.glance(&guard, tag) {
        Glance::Candidate(i) if is_key(i) => return Some(i),
        Glance::Absent => return None,
        Glance::Candidate(_) | Glance::Unsure => {}
    }
    index.find(&guard, tag, is_key)
}

/// The slots under `tag`, once all is quiet.
fn members(index: &Index, tag: Tag) -> Vec<u32> {
    let words = index.neighbours(&reclaim::pin(), tag);
    words.iter().flatten().filter(|w| w.tag() == tag).map(|w| w.index()).collect()
}

fn grow(index: &Index) {
    index.make_room(&reclaim::pin(), usize::MAX).unwrap();
}

#[test]
fn of_two_inserters_of_a_key_one_wins() {
    check_deeper(|| {
        let index = index();
        let other = index.clone();
        let insert = |index: &Index, i| insert(index, TAG, i, |_| true);
        let racer = thread::spawn(move || insert(&other, 2));
        let ended = [insert(&index, 3), racer.join().unwrap()];
        assert_eq!(ended.iter().filter(|c| matches!(c, Commit::Done)).count(), 1);
        assert_eq!(ended.iter().filter(|c| matches!(c, Commit::Exists)).count(), 1);
        assert_eq!(members(&index, TAG).len(), 1);
    });
}

#[test]
fn a_key_stays_unique_while_a_removal_opens_a_hole() {
    check_deeper(|| {
        let index = index();
        assert!(matches!(insert(&index, OTHER, 2, |_| false), Commit::Done));
        let other = index.clone();
        let remover = thread::spawn(move || {
            assert!(unlink(&other, OTHER, 2));
            insert(&other, TAG, 3, |_| true)
        });
        let ended = [insert(&index, TAG, 4, |_| true), remover.join().unwrap()];
        assert_eq!(ended.iter().filter(|c| matches!(c, Commit::Done)).count(), 1);
        assert_eq!(members(&index, TAG).len(), 1);
    });
}

#[test]
fn a_replaced_key_is_never_absent() {
    check(|| {
        let index = index();
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let reader = || {
            let index = index.clone();
            thread::spawn(move || assert!(find(&index, TAG, |_| true).is_some()))
        };
        let readers = [reader(), reader()];
        assert!(matches!(index.replace(&reclaim::pin(), TAG, 2, 3, || false), Commit::Done));
        readers.into_iter().for_each(|r| r.join().unwrap());
        assert_eq!(members(&index, TAG), [3]);
    });
}

#[test]
fn of_two_unlinkers_and_a_replacer_one_wins() {
    check(|| {
        let index = index();
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let unlinker = || {
            let index = index.clone();
            thread::spawn(move || unlink(&index, TAG, 2))
        };
        let unlinkers = [unlinker(), unlinker()];
        let replaced = matches!(index.replace(&reclaim::pin(), TAG, 2, 3, || false), Commit::Done);
        let unlinked = unlinkers.into_iter().map(|u| u.join().unwrap());
        assert_eq!(unlinked.filter(|won| *won).count() + usize::from(replaced), 1);
        assert_eq!(members(&index, TAG).len(), usize::from(replaced));
    });
}

/// A slot whose insert lost is recycled at once, without a grace period: whoever looks at its key must have
/// seen it as a member.
fn a_slot_is_recycled_while(read: fn(&Index, &dyn Fn(u32) -> bool)) {
    let index = index();
    for i in [2, 3, 4] {
        assert!(matches!(insert(&index, TAG, i, |_| false), Commit::Done));
    }
    let keys: Arc<[UnsafeCell<u32>; 7]> = Arc::new(std::array::from_fn(|_| UnsafeCell::new(0)));
    let (i, k) = (index.clone(), keys.clone());
    let reader = thread::spawn(move || {
        // SAFETY: loom checks that nobody writes.
        read(&i, &|i| k[i as usize].with(|key| unsafe { *key == 9 }));
    });
    assert!(unlink(&index, TAG, 2) && unlink(&index, TAG, 3));
    // Claims the word of slot 3 for slot 6, and loses to slot 5, which joins under its scan in that of slot 2.
    let lost = insert(&index, TAG, 6, |i| {
        if i == 4 {
            let _ = insert(&index, TAG, 5, |i| i == 5);
        }
        i == 5
    });
    assert!(matches!(lost, Commit::Exists));
    // SAFETY: loom checks that nobody reads.
    keys[6].with_mut(|key| unsafe { *key = 1 });
    reader.join().unwrap();
    assert_eq!(members(&index, TAG), [5, 4]);
}

#[test]
fn a_glance_validates_before_it_dereferences() {
    check_deeper(|| {
        a_slot_is_recycled_while(|index, is_key| {
            if let Glance::Candidate(i) = index.glance(&reclaim::pin(), TAG) {
                assert!(!is_key(i));
            }
        });
    });
}

#[test]
fn a_scan_validates_before_it_dereferences() {
    check(|| {
        a_slot_is_recycled_while(|index, is_key| {
            assert!(index.find(&reclaim::pin(), TAG, is_key).is_none());
        });
    });
}

/// Fills the bin of `tag` with slots from `first` on, one word short of its overflow line.
fn fill(index: &Index, tag: Tag, first: u32) {
    for i in 0..OWN as u32 {
        assert!(matches!(insert(index, tag + i, first + i, |_| false), Commit::Done));
    }
}

#[test]
fn two_bins_share_an_overflow_line_and_mix_nothing_up() {
    check_deeper(|| {
        let index = index();
        let (near, far) = (TAG, TAG + (1 << 30));
        fill(&index, near, 2);
        fill(&index, far, 12);
        let other = index.clone();
        let inserter = thread::spawn(move || insert(&other, far, 22, |_| false));
        assert!(matches!(insert(&index, near, 23, |_| false), Commit::Done));
        assert!(matches!(inserter.join().unwrap(), Commit::Done));
        assert_eq!((members(&index, near), members(&index, far)), (vec![2, 23], vec![12, 22]));
    });
}

#[test]
fn a_spilled_key_is_never_absent_during_growth() {
    check_shallower(|| {
        let index = index();
        fill(&index, OTHER, 3);
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let other = index.clone();
        let helper = thread::spawn(move || grow(&other));
        grow(&index);
        assert_eq!(find(&index, TAG, |_| true), Some(2));
        assert!(unlink(&index, TAG, 2));
        helper.join().unwrap();
        assert!(members(&index, TAG).is_empty());
    });
}

#[test]
fn a_key_inserted_twice_during_growth_is_unique() {
    check(|| {
        let index = index();
        let other = index.clone();
        let racer = thread::spawn(move || insert(&other, TAG, 2, |_| true));
        grow(&index);
        let ended = [insert(&index, TAG, 3, |_| true), racer.join().unwrap()];
        assert_eq!(ended.iter().filter(|c| matches!(c, Commit::Done)).count(), 1);
        assert_eq!(members(&index, TAG).len(), 1);
    });
}

#[test]
fn what_is_unlinked_during_growth_stays_away() {
    check_deeper(|| {
        let index = index();
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let other = index.clone();
        let grower = thread::spawn(move || grow(&other));
        assert!(unlink(&index, TAG, 2));
        assert!(find(&index, TAG, |_| true).is_none());
        grower.join().unwrap();
        assert!(members(&index, TAG).is_empty());
    });
}

#[test]
fn a_key_replaced_during_growth_is_never_absent() {
    check_shallower(|| {
        let index = index();
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let (i, j) = (index.clone(), index.clone());
        let grower = thread::spawn(move || grow(&i));
        let reader = thread::spawn(move || assert!(find(&j, TAG, |_| true).is_some()));
        assert!(matches!(index.replace(&reclaim::pin(), TAG, 2, 3, || false), Commit::Done));
        grower.join().unwrap();
        reader.join().unwrap();
        assert_eq!(members(&index, TAG), [3]);
    });
}

/// Between the freeze and a late helper's copies others may have unlinked the member and reused its word.
#[test]
fn a_late_helper_changes_nothing() {
    check(|| {
        let index = index();
        assert!(matches!(insert(&index, TAG, 2, |_| false), Commit::Done));
        let other = index.clone();
        let helper = thread::spawn(move || grow(&other));
        grow(&index);
        assert!(unlink(&index, TAG, 2));
        assert!(matches!(insert(&index, OTHER, 3, |_| false), Commit::Done));
        helper.join().unwrap();
        assert_eq!(members(&index, OTHER), [3]);
        assert!(members(&index, TAG).is_empty());
    });
}
