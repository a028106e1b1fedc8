//! A type that only shares the name with `core::result::Result`.
use alru::alru_cache;

#[derive(Clone)]
struct Result<T>(T);

#[alru_cache]
async fn page(num: u32) -> Result<u32> {
    Result(num)
}

fn main() {}
