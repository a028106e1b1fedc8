//! The attribute macro of the crate `alru`. Use it from there: `alru::alru_cache`.

use proc_macro::TokenStream;

mod args;
mod duration;
mod expand;
mod signature;

#[cfg(test)]
mod tests;

/// Caches an async function.
#[proc_macro_attribute]
pub fn alru_cache(args: TokenStream, item: TokenStream) -> TokenStream {
    let (mut expanded, errors) = expand::expand(args.into(), item.into());
    expanded.extend(errors.map(|errors| errors.into_compile_error()));
    expanded.into()
}
