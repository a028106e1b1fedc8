//! Arguments are the key: the error is at the argument that cannot be one.
use alru::alru_cache;

#[alru_cache]
async fn area(name: String, width: f64) -> u64 {
    let _ = name;
    width as u64
}

fn main() {}
