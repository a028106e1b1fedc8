//! Durations that are none, and a form that is no setting.
use std::time::Duration;

use alru::alru_cache;

#[alru_cache(ttl = "10")]
async fn without_unit(num: u32) -> u32 {
    num
}

#[alru_cache(ttl = "1h30m", jitter = "-1s")]
async fn compound(num: u32) -> u32 {
    num
}

#[alru_cache(ttl = Duration::from_secs(1), jitter)]
async fn without_value(num: u32) -> u32 {
    num
}

#[alru_cache(32)]
async fn without_name(num: u32) -> u32 {
    num
}

#[alru_cache(ttl = None, jitter = "1s")]
async fn jitter_of_nothing(num: u32) -> u32 {
    num
}

fn main() {
    drop((without_unit(1), compound(1), without_value(1), without_name(1), jitter_of_nothing(1)));
}
