//! Schedules of loads against a plain model: see `alru_fuzz::load_schedules`.
#![no_main]

use alru_fuzz::load_schedules::{self, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: Input| {
    std::hint::black_box(load_schedules::run(&input));
});
