//! All models but those of reclamation, in one binary: a control is one build and one link.
#![cfg(all(alru_loom, not(crossbeam_loom)))]

mod aside;
mod chain;
mod compute;
mod eviction;
mod flight;
mod hazard;
mod index;
mod life;
mod loading;
mod loads;
mod many;
mod trail;
mod waits;
mod wheel;
