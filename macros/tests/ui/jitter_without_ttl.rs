//! F2: jitter without a time to live.
use alru::alru_cache;

#[alru_cache(maxsize = 32, jitter = "2s")]
async fn page(num: u32) -> u32 {
    num
}

fn main() {
    // The mistake leaves the function and its access in place: one error, not three.
    drop(page(1));
    page::cache_clear();
}
