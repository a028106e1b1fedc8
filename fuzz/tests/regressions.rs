//! Inputs that once crashed a target, under the name of what they found; and the seeds.

use std::path::Path;

use alru_fuzz::cache_ops::{self, Input};
use arbitrary::{Arbitrary, Unstructured};

#[test]
fn the_seeds_of_cache_ops_agree_with_the_model_and_hit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/cache_ops");
    let mut seeds = 0;
    for file in folder.read_dir().expect("the corpus is there") {
        let path = file.expect("a readable folder").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        if !name.starts_with("seed-") {
            continue;
        }
        let bytes = std::fs::read(&path).expect("a readable seed");
        let input = Input::arbitrary(&mut Unstructured::new(&bytes)).expect("a whole input");
        assert!(cache_ops::run(&input) > 0, "{name} never hits");
        seeds += 1;
    }
    assert!(seeds >= 6, "{seeds} seeds");
}
