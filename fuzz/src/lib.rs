//! What the fuzz targets run: a configuration and a list of operations, against a plain model.
//!
//! It lives in a library so that crash inputs stay as tests (`tests/regressions.rs`) and a fixed
//! run of random operations is part of an ordinary `cargo test -p alru-fuzz`.

pub mod cache_ops;
mod counted;
mod task;
