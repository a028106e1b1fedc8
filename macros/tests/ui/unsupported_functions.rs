//! What cannot be cached (yet) says so and names a way.
use std::hash::Hash;

use alru::alru_cache;

#[alru_cache]
fn not_async(num: u32) -> u32 {
    num
}

#[alru_cache]
async fn generic<T: Hash>(_value: T) -> u32 {
    0
}

#[alru_cache]
async fn impl_trait(_value: impl Hash) -> u32 {
    0
}

#[alru_cache]
async fn destructured((a, b): (u32, u32)) -> u32 {
    a + b
}

#[alru_cache]
async fn mutable(value: &mut u32) -> u32 {
    *value
}

#[alru_cache]
async fn borrows(name: &str) -> &str {
    name
}

#[alru_cache]
async fn inner_borrow(name: Option<&str>) -> usize {
    name.map_or(0, str::len)
}

#[alru_cache]
async fn unnamed() -> impl Iterator<Item = u32> {
    0..3
}

struct Client;

impl Client {
    #[alru_cache]
    async fn method(&self, num: u32) -> u32 {
        num
    }
}

trait Fetch {
    #[alru_cache]
    async fn fetch(num: u32) -> u32;
}

#[alru_cache]
struct NotAFunction;

fn main() {
    let _ = (Client, NotAFunction);
}
