//! What a user sees when a use of `#[alru_cache]` is wrong: the macro's own
//! messages, and that no others come with them. The texts of rustc, such as about
//! a missing `Clone`, change from version to version; that those uses do not
//! compile is tested by the doc examples of `alru_cache`.

#[test]
fn compile_errors() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
