//! Inputs that once crashed a target, under the name of what they found; and the seeds.

use std::path::Path;

use alru_fuzz::cache_ops::{self, Api, Config, Input, Op, Outcome, Ttl};
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
