//! Benchmarks of `alru`, and its comparison with peers.
//!
//! The program `compare` (`src/bin/compare.rs`) runs every cache side by side
//! in one process. Its parts:
//!
//! - [`adapters`]: each cache behind one small trait, and what each cannot do;
//! - [`workload`]: what is asked of them, and the streams of keys;
//! - [`measure`]: pinned threads, rounds in rotated order, medians and ratios;
//! - [`report`]: Markdown and CSV;
//! - [`bars`]: ratios to reach, read from a table and checked against a run.
//!
//! # What is measured
//!
//! Keys and values are `u64`. Keys come from arrays that each thread fills
//! before the clock starts; a bijection scrambles them, so no cache is handed
//! sequential keys. The unit of work is a block of [`workload::BLOCK`]
//! operations; an operation's time is that of the whole loop divided by its
//! operations, hence a throughput: independent look-ups may overlap in the
//! processor, as they may in a real program. Every value read is compared with
//! the one written, and only a right value counts as a hit.
//!
//! All caches get the same capacity in entries, the same allocator and, where
//! they allow a choice, the same hasher ([`adapters::Hasher`]). In a workload
//! made of hits, the capacity is twice the number of entries for everybody,
//! because some peers evict before they are full: the hit ratio printed beside
//! the time shows that the hits were hits.
//!
//! # How to read the tables
//!
//! - **ns**: wall time of one operation as one core sees it: the sum of the
//!   threads' times over the sum of their operations, times cores over threads
//!   where there are more threads than cores. The median over the rounds, with
//!   the smallest and the largest round. With perfect scaling the figure stays
//!   the same as threads are added.
//! - **cpu**: the same from the threads' CPU clocks. Well under the wall time:
//!   the threads were blocked, or other programs held the core.
//! - **ratio**: to the base of the table, computed round by round, then the
//!   median. Rounds of all subjects interleave, so that what disturbs the
//!   machine for longer than a round disturbs all of them.
//! - **hit %**: hits over look-ups in the measured rounds.
//! - **resident**: entries held after the last round.
//! - **refused**: inserts that the cache turned down, of all inserts.
//!
//! Trust a ratio only when its spread is smaller than its distance from 1. Run
//! again what is marked as disturbed: other programs held the cores meanwhile,
//! which makes contention look smaller than it is.

#![forbid(unsafe_code)]

pub mod adapters;
pub mod bars;
pub mod measure;
pub mod report;
pub mod workload;
