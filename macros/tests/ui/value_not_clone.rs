//! A hit is a clone of the value: the error is at the type that lacks `Clone`.
use alru::alru_cache;

struct Page(String);

#[alru_cache]
async fn page(num: u32) -> Result<Page, String> {
    Ok(Page(num.to_string()))
}

fn main() {}
