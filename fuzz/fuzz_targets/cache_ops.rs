//! `Cache` against a plain model: see `alru_fuzz::cache_ops`.
#![no_main]

use alru_fuzz::cache_ops::{self, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: Input| {
    std::hint::black_box(cache_ops::run(&input));
});
