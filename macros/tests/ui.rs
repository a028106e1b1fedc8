//! What a user sees when a use of `#[alru_cache]` is wrong, errors of rustc
//! included. The place and words of the macro's own errors are unit-tested in
//! `src/tests.rs`.

#[test]
fn compile_errors() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
