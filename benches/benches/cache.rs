//! alru alone, one thread, an operation at a time: to see whether a change made
//! it slower. For how it stands beside other caches, run `compare`.
//!
//! ```text
//! cargo bench -p alru-benches
//! ```

#![expect(missing_docs, reason = "`criterion_group!` writes a function without docs")]

use alru::Cache;
use alru_benches::workload::{Workload, key, value_of};
use criterion::{Criterion, criterion_group, criterion_main};

const CAPACITY: usize = 10_000;

fn full() -> Cache<u64, u64> {
    let cache = Cache::new(CAPACITY as u64);
    for key in (0..CAPACITY as u64).map(key) {
        cache.insert(key, value_of(key));
    }
    cache
}

/// Keys of a workload, over and over.
fn keys(workload: &str) -> impl Iterator<Item = u64> + Clone {
    let workload = Workload::parse(workload, CAPACITY, 1).expect("a workload of that name");
    let keys: &'static [u64] = Box::leak(workload.stream(0, 1 << 20)).as_flattened();
    keys.iter().copied().cycle()
}

/// Keys that no cache has seen.
fn fresh() -> impl Iterator<Item = u64> {
    (1_u64 << 40..).map(key)
}

fn hit(c: &mut Criterion) {
    let (cache, mut keys) = (full(), keys("hits-1k"));
    c.bench_function("hit", |b| b.iter(|| cache.get(&keys.next().unwrap_or(0))));
    c.bench_function("hit, guard held over 64", |b| {
        b.iter(|| {
            let cache = cache.pin();
            let right = |key: &u64| cache.get(key) == Some(&value_of(*key));
            keys.by_ref().take(64).filter(right).count()
        });
    });
}

fn miss(c: &mut Criterion) {
    let (cache, mut keys) = (full(), fresh());
    c.bench_function("miss", |b| b.iter(|| cache.get(&keys.next().unwrap_or(0))));
}

fn insert_evict(c: &mut Criterion) {
    let (cache, mut keys) = (full(), fresh());
    c.bench_function("insert and evict", |b| {
        b.iter(|| cache.insert(keys.next().unwrap_or(0), 1));
    });
}

fn read_through(c: &mut Criterion) {
    let (cache, mut keys) = (full(), keys("read-through"));
    c.bench_function("read-through, Zipf 0.9 over 10 times the capacity", |b| {
        b.iter(|| {
            let key = keys.next().unwrap_or(0);
            cache.get(&key).unwrap_or_else(|| {
                cache.insert(key, value_of(key));
                value_of(key)
            })
        });
    });
}

fn get_with(c: &mut Criterion) {
    let (cache, mut hits, mut misses) = (full(), keys("hits-1k"), fresh());
    // `block_on` takes part in the time, and is the same for both.
    let load = |key: u64| pollster::block_on(cache.get_with(key, async { value_of(key) }));
    c.bench_function("get_with, hit", |b| b.iter(|| load(hits.next().unwrap_or(0))));
    c.bench_function("get_with, miss", |b| b.iter(|| load(misses.next().unwrap_or(0))));
}

criterion_group!(benches, hit, miss, insert_evict, read_through, get_with);
criterion_main!(benches);
