//! The lock-free core. All `unsafe` of the crate lives here and in the futures that drive flights.
//!
//! | part | files |
//! |---|---|
//! | index | `bin`, `table`, `grow` |
//! | slots | `state`, `slot`, `slab`, `limbo`, `trail`, `magazine` |
//! | eviction | `hands`, `ghost`, `weight` |
//! | loads | `flight`, `waiters`, `graph` |
//! | ground | `reclaim`, `mem`, `chunks`, `chain` |
//! | time | `lifetime` |
//! | all of it | `core`, with `draft`, `room` and `seat` |
#![allow(missing_docs)] // internal: public for the loom models alone
#![cfg_attr(alru_loom, allow(private_interfaces))]

pub mod bin;
pub mod chain;
pub mod chunks;
pub mod core;
pub mod draft;
pub mod flight;
pub mod ghost;
pub mod graph;
pub mod grow;
pub mod hands;
pub mod lifetime;
pub mod limbo;
pub mod magazine;
pub mod mem;
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
