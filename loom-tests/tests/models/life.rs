//! One slot's life, over the real core: who ends it, who refunds, who drops.

use alru::raw::core::Core;
use alru::raw::flight::{Drive, FlightId};
use alru::raw::hands::{Hands, Policy};
use alru::raw::reclaim;
use alru::raw::seat::Admission;
use alru::raw::slab::Slab;
use alru::raw::state::{Completion, Residence};
use alru::raw::weight::Ledger;
use alru_loom_tests::{Key, Name, Value, check, check_deeper, check_shallower, core};
use loom::thread;
use std::sync::Arc;

const A: Key = (7, 1);

type Cache = Arc<Core<Name, Value>>;

/// Begins a load of A, and keeps its seat.
fn load(cache: &Cache) -> FlightId {
    match cache.admit(&mut reclaim::pin(), A.0, Name::new(A.1), Drive::Caller) {
        Admission::Lead(seat) => seat.park(),
        _ => unreachable!("the first to ask leads"),
    }
}

/// What one thread does to the slot of A; true if it put a new entry in.
type Act = fn(&Cache, FlightId) -> bool;

fn complete_a(cache: &Cache, id: FlightId) -> bool {
    let _ = cache.complete(cache.flights().entered(id), Value::new);
    false
}

fn invalidate_a(cache: &Cache, _: FlightId) -> bool {
    cache.remove(&reclaim::pin(), A.0, &A.1);
    false
}

fn replace_a(cache: &Cache, _: FlightId) -> bool {
    cache.insert(A.0, Name::new(A.1), Value::new())
}

/// Where loads are more than half of the entries the hand takes them too.
fn evict_a(cache: &Cache, _: FlightId) -> bool {
    cache.sweep();
    false
}

/// Begins a load of A; all `acts` at once; then the books must balance.
fn act_on_a_pending_slot<const N: usize>(acts: [Act; N]) {
    let retired = reclaim::deferred();
    let cache = core(2);
    let id = load(&cache);
    let [acts @ .., last] = &acts[..] else { unreachable!() };
    let acts: Vec<_> = acts
        .iter()
        .map(|&act| {
            let cache = cache.clone();
            thread::spawn(move || act(&cache, id))
        })
        .collect();
    let inserted = usize::from(last(&cache, id))
        + acts.into_iter().map(|t| usize::from(t.join().unwrap())).sum::<usize>();
    // SAFETY: parked by `load`.
    drop(unsafe { cache.resume_seat(id) });

    let resident = usize::from(cache.contains(&reclaim::pin(), A.0, &A.1));
    assert_eq!(cache.lives(), resident, "no life outside the index");
    assert_eq!(cache.len(), resident as u64, "charged: what is resident");
    let retired = reclaim::deferred() - retired;
    assert_eq!(retired, 1 + inserted - resident, "retired: each life that ended, once");
    // SAFETY: no other thread is left.
    unsafe { cache.drop_contents() };
    Value::all_gone();
}

#[test]
fn completer_invalidator_and_hand_end_a_life_once() {
    check_shallower(|| act_on_a_pending_slot([invalidate_a, evict_a, complete_a]));
}

#[test]
fn a_load_that_was_removed_is_not_stored() {
    check_deeper(|| {
        let cache = core(2);
        let id = load(&cache);
        let other = cache.clone();
        let remover = thread::spawn(move || {
            let guard = reclaim::pin();
            let (slot, was_there) = other.remove(&guard, A.0, &A.1);
            assert!(was_there);
            // SAFETY: `remove` answered a live value's slot, under this guard.
            slot.map(|slot| unsafe { slot.value() }.read()).is_some()
        });
        let stored = cache.complete(cache.flights().entered(id), Value::new) == Completion::Stored;
        assert_eq!(stored, remover.join().unwrap(), "stored: removed with its value");
        // SAFETY: parked by `load`.
        drop(unsafe { cache.resume_seat(id) });
        // SAFETY: no other thread is left.
        unsafe { cache.drop_contents() };
        Value::all_gone();
    });
}

#[test]
fn completer_and_replacer_end_a_life_once() {
    check_deeper(|| act_on_a_pending_slot([replace_a, complete_a]));
}

#[test]
fn replacer_and_invalidator_end_a_life_once() {
    check(|| act_on_a_pending_slot([invalidate_a, replace_a]));
}

#[test]
fn replacer_and_hand_end_a_life_once() {
    check_shallower(|| act_on_a_pending_slot([evict_a, replace_a]));
}

#[test]
fn two_replacers_end_a_life_once() {
    check(|| act_on_a_pending_slot([replace_a, replace_a]));
}

/// Hands, a slab with one slot that a thread owns, and a ledger with room for more in main.
fn sweepable() -> Arc<(Hands, Slab<u32, u32>, Ledger, u32)> {
    let slab = Slab::bounded(2).unwrap();
    let ledger = Ledger::new(Some(2));
    assert!(ledger.try_charge() && ledger.try_charge());
    let index = slab.fresh().unwrap();
    Arc::new((Hands::new(Policy::TwoHand, 2, 2, 1).unwrap(), slab, ledger, index))
}

fn sweep((hands, slab, ledger, _): &(Hands, Slab<u32, u32>, Ledger, u32)) -> Option<u32> {
    hands.next_victim(slab, ledger, 0, false, |_| false, |_| {}).map(|victim| victim.index)
}

/// As `Draft` does it. The hand takes the draft for an entry, and may promote it.
#[test]
fn a_withdrawn_draft_leaves_main_as_it_was() {
    check_deeper(|| {
        let all = sweepable();
        let (hands, slab, ledger, index) = &*all;
        let other = all.clone();
        // SAFETY: handed out.
        let slot = unsafe { slab.slot(*index) };
        slot.set_refs(1);
        let _ = slot.state.begin_ready(0, Residence::Probation);
        hands.show(*index);
        let hand = thread::spawn(move || sweep(&other));
        let last = slot.state.withdraw();
        ledger.vacate(last.residence());
        hand.join().unwrap();
        assert_eq!(ledger.main(), 0);
    });
}

/// A slot is reused without a grace period only if its draft was withdrawn; then a hand that is late may
/// hide the next life from the small hand.
#[test]
fn a_late_hand_hides_no_entry_for_long() {
    check_deeper(|| {
        let all = sweepable();
        let (hands, slab, _, index) = &*all;
        let other = all.clone();
        // SAFETY: handed out.
        let slot = unsafe { slab.slot(*index) };
        hands.show(*index);
        let _ = slot.state.begin_ready(0, Residence::Main);
        slot.set_refs(3);
        let hand = thread::spawn(move || sweep(&other));
        slot.state.withdraw();
        slot.set_refs(0);
        let _ = slot.state.begin_ready(0, Residence::Probation);
        hands.show(*index);
        hand.join().unwrap();
        assert!((0..3).any(|_| sweep(&all) == Some(*index)), "no hand finds it");
    });
}
