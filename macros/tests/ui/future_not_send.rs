//! A load may be driven by any caller's thread: the error is at the body.
use std::rc::Rc;

use alru::alru_cache;

#[alru_cache]
async fn page(num: u32) -> u32 {
    let shared = Rc::new(num);
    std::future::ready(()).await;
    *shared
}

fn main() {}
