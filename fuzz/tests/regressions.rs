//! Inputs that once crashed a target, under the name of what they found; and the seeds.

use std::path::Path;

use alru_fuzz::cache_ops::{self, Api, Config, Input, Op, Outcome, Ttl};
use alru_fuzz::load_schedules;
use arbitrary::{Arbitrary, Unstructured};

#[test]
fn the_seeds_of_cache_ops_agree_with_the_model_and_hit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/cache_ops");
    let mut seeds = 0;
    for file in folder.read_dir().expect("the corpus is there") {
        let path = file.expect("a readable folder").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if !name.starts_with("seed-") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a readable seed");
        let input = Input::arbitrary(&mut Unstructured::new(&bytes)).expect("a whole input");
        assert!(cache_ops::run(&input) > 0, "{name} never hits");
        seeds += 1;
    }
    assert!(seeds >= 6, "{seeds} seeds");
}

#[test]
fn the_seeds_of_load_schedules_agree_with_the_model_and_hit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/load_schedules");
    let (mut seeds, mut hits) = (0, 0);
    for file in folder.read_dir().expect("the corpus is there") {
        let path = file.expect("a readable folder").path();
        if !path.file_name().expect("a name").to_string_lossy().starts_with("seed-") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a readable seed");
        let mut bytes = Unstructured::new(&bytes);
        let input = load_schedules::Input::arbitrary(&mut bytes).expect("a whole input");
        hits += load_schedules::run(&input);
        seeds += 1;
    }
    assert!(seeds >= 6 && hits >= 10, "{hits} hits of {seeds} seeds");
}

fn config(capacity: u8) -> Config {
    Config {
        capacity: capacity - 1,
        keys: 7,
        plain_clock: false,
        collide: false,
        reserve: 100,
        ttl: Ttl::None,
        jitter_ms: None,
    }
}

fn load(key: u8, api: Api, ready: bool) -> Op {
    Op::Call { key, api, outcome: Outcome::Ok, ready }
}

fn poll(call: u8) -> Op {
    Op::Poll { call, rewake: false }
}

/// A load that was pushed out goes on in a flight of its own, beside the new one of its key. (The
/// model took the two for one.)
#[test]
fn a_load_that_a_crowd_pushed_out_and_its_successor_both_end() {
    let ops = vec![
        load(2, Api::Get, false),
        load(2, Api::Get, true),
        load(0, Api::Get, false),
        load(1, Api::Get, false),
        load(1, Api::TryOther, false),
        Op::Cancel { call: 0 },
        load(2, Api::Get, false),
        load(2, Api::Try, false),
        poll(1),
        Op::InvalidateAll,
        poll(25),
    ];
    cache_ops::run(&Input { config: config(1), ops });
}

/// A loader that takes over a flight which was invalidated ends it; its value is not stored.
#[test]
fn who_takes_over_an_invalidated_load_stores_nothing() {
    let ops = vec![
        load(1, Api::Try, false),
        load(1, Api::TryOther, true),
        load(1, Api::TryOther, false),
        Op::InvalidateAll,
        Op::Cancel { call: 0 },
        Op::Contains { key: 1 },
    ];
    cache_ops::run(&Input { config: config(31), ops });
}

/// The model of schedules sees what it is for: a call that closes, one that is never polled again, a loader that
/// wakes itself in its first poll, and one that panics under a waiter.
#[test]
fn a_close_that_waits_drives_a_load_that_wakes_itself_and_panics_later() {
    use load_schedules::{Api, Config, Input, Op, Verdict};
    let call = |verdict, lazy| Op::Call { key: 1, api: Api::Try, verdict, lazy };
    let ops = vec![
        call(Verdict::Yield, false),
        call(Verdict::Wait, false),
        call(Verdict::Wait, true),
        Op::Close { wait: true },
        Op::Poll { call: 3, moved: true },
        Op::Wake { call: 0 },
        Op::Let { call: 0, verdict: Verdict::Panic },
        Op::Poll { call: 3, moved: false },
        Op::PollWoken,
    ];
    let config = Config { shared: true, room: true, collide: false, ttl_ms: None };
    assert_eq!(load_schedules::run(&Input { config, ops }), 1);
}

/// A thief takes the load out that it waits for, and not what came after it. (Of a library that takes out whatever
/// is there, the fuzzer does not find that within a minute.)
#[test]
fn a_thief_that_loses_patience_late_leaves_a_newer_value_alone() {
    use load_schedules::{Api, Config, Input, Op, Verdict};
    let call = |api| Op::Call { key: 1, api, verdict: Verdict::Wait, lazy: false };
    for collide in [false, true] {
        let ops = vec![
            call(Api::Get),
            call(Api::Steal),
            Op::Insert { key: 1 },
            Op::LosePatience { call: 1 },
            Op::PollWoken,
            Op::Get { key: 1 },
        ];
        let config = Config { shared: false, room: true, collide, ttl_ms: None };
        assert_eq!(load_schedules::run(&Input { config, ops }), 2);
    }
}
