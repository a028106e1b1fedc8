//! What the fuzz targets run: a configuration and a list of operations, against a plain model.
//!
//! It lives in a library so that crash inputs stay as tests (`tests/regressions.rs`) and a fixed
//! run of random operations is part of an ordinary `cargo test -p alru-fuzz`.

pub mod cache_ops;
mod counted;
pub mod load_schedules;
mod task;

/// Bytes for a test, always the same of one seed.
#[cfg(test)]
fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend((z ^ (z >> 31)).to_le_bytes());
    }
    bytes
}
