//! All mistakes of one use are reported together, each at its token.
use alru::alru_cache;

#[alru_cache(max_size = 32, ttl = 10, maxsize = -1, ttl = "10sec", key = num)]
async fn page(num: u32) -> u32 {
    num
}

fn main() {}
