//! The lock-free core. All `unsafe` of the crate lives here and in the futures that drive flights.
//!
//! | part | files |
//! |---|---|
//! | index | `bin`, `table`, `grow` |
//! | slots | `state`, `slot`, `slab`, `limbo`, `trail`, `magazine` |
//! | eviction | `hands`, `ghost`, `weight` |
//! | loads | `flight`, `waiters`, `aside`, `graph` |
//! | ground | `reclaim`, `hazard`, `barrier`, `mem`, `chunks`, `chain` |
//! | time | `lifetime` |
//! | all of it | `core`, with `read`, `draft`, `room`, `seat`, `beside` and `compute` |
#![allow(missing_docs)] // internal: public for the loom models alone
#![cfg_attr(alru_loom, allow(private_interfaces))]

pub mod aside;
pub mod barrier;
pub mod beside;
pub mod bin;
pub mod chain;
pub mod chunks;
pub mod compute;
pub mod core;
pub mod draft;
pub mod flight;
pub mod ghost;
pub mod graph;
pub mod grow;
pub mod hands;
pub mod hazard;
pub mod lifetime;
pub mod limbo;
pub mod magazine;
pub mod mem;
pub mod read;
pub mod reclaim;
pub mod room;
pub mod seat;
pub mod slab;
pub mod slot;
pub mod state;
pub mod table;
pub mod trail;
pub mod waiters;
pub mod weight;
