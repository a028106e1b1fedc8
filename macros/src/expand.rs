//! From `async fn get_pep` to the function, its cache, and the type `get_pep`
//! that gives access to the cache.
//!
//! ```text
//! async fn get_pep(num: u32) -> Result<Pep, LoadError<FetchError>>   // asks the cache
//! enum get_pep {}                                                    // never a value
//! impl get_pep { cache(), cache_info(), .. }
//! impl get_pep { async fn __alru_load(num: u32) -> Result<Pep, FetchError> { body } }
//! ```
//!
//! A function lives in the value namespace and an enum in the type namespace, so
//! they share the name. An enum and not a module, because the paths of the
//! signature then mean what they meant where they were written, in a function
//! body too, where a module could not see the items beside it.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{ToTokens as _, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::{AttrStyle, Attribute, Error, ItemFn};

use crate::args::{Args, MaxSize};
use crate::signature::{Output, Signature};

/// The whole attribute: the item expanded, and what is wrong with it.
///
/// Mistakes in the arguments leave the expansion in place, with defaults for
/// them; what cannot be expanded is given back as it was. So the message about
/// the mistake is not buried under others about a function that is not there.
pub(crate) fn expand(args: TokenStream, item: TokenStream) -> (TokenStream, Option<Error>) {
    let (args, mut errors) = Args::parse(args);
    let function =
        syn::parse2::<ItemFn>(item.clone()).map_err(|error| not_a_function(&item).unwrap_or(error));
    let expanded = function.and_then(|function| {
        let signature = Signature::read(&function, &args.krate)?;
        Ok(generate(&args, &signature, &function))
    });
    let expanded = expanded.unwrap_or_else(|error| {
        match &mut errors {
            Some(errors) => errors.combine(error),
            None => errors = Some(error),
        }
        item
    });
    (expanded, errors)
}

/// A message for items that are well-formed but no functions with a body, at the
/// `;` in its place, or at the keyword.
fn not_a_function(item: &TokenStream) -> Option<Error> {
    let mut tokens = item.clone().into_iter();
    let (at, message) = if syn::parse2::<syn::TraitItemFn>(item.clone()).is_ok() {
        let message = "`#[alru_cache]` needs a function with a body: put it on a free async fn";
        (tokens.last(), message)
    } else if syn::parse2::<syn::Item>(item.clone()).is_ok() {
        let keyword = tokens.find(|token| matches!(token, TokenTree::Ident(word) if word != "pub"));
        (keyword, "`#[alru_cache]` goes on an async function: put it on an `async fn`")
    } else {
        return None;
    };
    Some(Error::new(at.map_or_else(Span::call_site, |token| token.span()), message))
}

fn generate(args: &Args, signature: &Signature, function: &ItemFn) -> TokenStream {
    let attrs = Attrs::sort(&function.attrs);
    let outer = outer(signature, function, &args.krate, &attrs);
    let companion = companion(args, signature, function, &attrs);
    let load = load(signature, function, &attrs);
    quote!(#outer #companion #load)
}

/// The function itself: owned arguments into the key, the rest is the cache's.
fn outer(
    signature: &Signature,
    function: &ItemFn,
    krate: &syn::Path,
    attrs: &Attrs,
) -> TokenStream {
    let Attrs { outer: attrs, .. } = attrs;
    let ItemFn { vis, sig, .. } = function;
    let syn::Signature { asyncness, fn_token, ident, .. } = sig;

    let inputs = signature.args.iter().map(|arg| {
        let (ident, ty) = (&arg.ident, &arg.ty);
        quote!(#ident: #ty)
    });
    let owned: Vec<_> = signature.args.iter().map(|arg| arg.to_owned()).collect();
    let key = tuple(&owned);
    let (output, call) = match &signature.output {
        Output::Fallible { at, ok, err } => (
            quote_spanned!(*at=> -> ::core::result::Result<#ok, #krate::LoadError<#err>>),
            quote!(#ident::cache().call(#key).await),
        ),
        Output::Infallible(_) => (
            sig.output.to_token_stream(),
            quote!(#krate::__private::value_or_panic(#ident::cache().call(#key).await)),
        ),
    };
    quote! {
        #(#attrs)*
        #vis #asyncness #fn_token #ident(#(#inputs),*) #output {
            #call
        }
    }
}

/// The type of the same name, and the cache behind it.
fn companion(args: &Args, signature: &Signature, function: &ItemFn, attrs: &Attrs) -> TokenStream {
    let Args { maxsize, ttl, jitter, krate } = args;
    let Attrs { companion: attrs, .. } = attrs;
    let vis = &function.vis;
    let ident = &function.sig.ident;
    let private = quote!(#krate::__private);

    let key_types: Vec<_> = signature.args.iter().map(|arg| arg.owned_type()).collect();
    let key = tuple(&key_types);
    let names: Vec<_> = (0..key_types.len())
        .map(|index| format_ident!("__alru_arg{index}", span = Span::mixed_site()))
        .collect();
    let pattern = tuple(&names.iter().map(|name| quote!(#name)).collect::<Vec<_>>());
    let load = quote_spanned!(ident.span()=> #ident::__alru_load(#(#names),*));

    let (value, error, loader) = match &signature.output {
        Output::Fallible { ok, err, .. } => (ok.clone(), err.clone(), load),
        Output::Infallible(ty) => {
            let never = quote!(::core::convert::Infallible);
            let infallible = quote_spanned! {ident.span()=>
                async move { ::core::result::Result::Ok::<_, #never>(#load.await) }
            };
            (ty.clone(), never, infallible)
        }
    };
    // Asked for one by one at the token they come from, so that a missing `Clone`
    // is reported at the type that lacks it.
    let key_checks = key_types
        .iter()
        .zip(&signature.args)
        .map(|(owned, arg)| quote_spanned!(arg.ty.span()=> #private::assert_key::<#owned>();));
    let value_check = quote_spanned!(value.span()=> #private::assert_value::<#value>(););
    let error_check = quote_spanned!(error.span()=> #private::assert_error::<#error>(););

    let maxsize = match maxsize {
        MaxSize::Bounded(size) => quote!(.maxsize(#size)),
        MaxSize::Unbounded => quote!(.unbounded()),
    };
    let ttl = ttl.as_ref().map(|ttl| quote!(.ttl(#ttl)));
    let jitter = jitter.as_ref().map(|jitter| quote!(.jitter(#jitter)));
    // The loader's span is the function's name: a future that is not `Send` is
    // reported there.
    let builder = quote_spanned!(ident.span()=> #krate::AlruCache::builder);

    let allow = quote! {
        #[allow(
            dead_code,
            missing_copy_implementations,
            missing_debug_implementations,
            non_camel_case_types,
            private_bounds,
            private_interfaces,
            unreachable_pub,
            clippy::all,
            clippy::pedantic,
            clippy::nursery
        )]
    };
    let about = format!(
        "The cache of [`{ident}`](fn@{ident}): never a value, only a place for its functions."
    );
    quote! {
        #(#attrs)*
        #allow
        #[doc = #about]
        #vis enum #ident {}

        #(#attrs)*
        #allow
        impl #ident {
            /// The cache itself, which lives as long as the process.
            #vis fn cache() -> &'static #krate::AlruCache<#key, #value, #error> {
                const _: () = {
                    #(#key_checks)*
                    #value_check
                    #error_check
                };
                static __ALRU_CACHE: ::std::sync::LazyLock<#krate::AlruCache<#key, #value, #error>> =
                    ::std::sync::LazyLock::new(|| {
                        #builder(|#pattern: #key| #loader)
                            #maxsize
                            #ttl
                            #jitter
                            .build()
                    });
                &__ALRU_CACHE
            }

            /// Hits, misses, maxsize and current size.
            #vis fn cache_info() -> #krate::CacheInfo {
                #ident::cache().cache_info()
            }

            /// Settings, unfinished loads, and whether the cache is closed.
            #vis fn cache_parameters() -> #krate::CacheParameters {
                #ident::cache().cache_parameters()
            }

            /// Whether there is an entry, finished or loading. Touches no counter
            /// and no recency.
            #vis fn cache_contains<Q>(key: &Q) -> bool
            where
                Q: ?::core::marker::Sized + ::core::hash::Hash + ::core::cmp::Eq,
                #key: ::core::borrow::Borrow<Q>,
            {
                #ident::cache().cache_contains(key)
            }

            /// Removes an entry; `true` if there was one. A running load goes on
            /// for its waiters, and its result is not stored.
            #vis fn cache_invalidate<Q>(key: &Q) -> bool
            where
                Q: ?::core::marker::Sized + ::core::hash::Hash + ::core::cmp::Eq,
                #key: ::core::borrow::Borrow<Q>,
            {
                #ident::cache().cache_invalidate(key)
            }

            /// Removes all entries and zeroes hits and misses. Running loads
            /// finish uncached.
            #vis fn cache_clear() {
                #ident::cache().cache_clear()
            }

            /// Closes the cache: later calls fail. Running loads are finished
            /// first if `wait`, else dropped.
            #vis fn cache_close(
                wait: bool,
            ) -> impl ::core::future::Future<Output = ()> + ::core::marker::Send {
                #ident::cache().cache_close(wait)
            }
        }
    }
}

/// The body as it was written, on owned arguments. In an `impl` of its own, away
/// from the lints that are allowed on generated code.
fn load(signature: &Signature, function: &ItemFn, attrs: &Attrs) -> TokenStream {
    let Attrs { load: attrs, companion, .. } = attrs;
    let syn::Signature { asyncness, fn_token, ident, output, .. } = &function.sig;
    let inputs = signature.args.iter().map(|arg| {
        let (attrs, owned) = (&arg.attrs, arg.owned_type());
        let pat = match &arg.borrowed {
            Some(_) => {
                let ident = &arg.ident;
                quote!(#ident)
            }
            None => arg.pat.clone(),
        };
        quote!(#(#attrs)* #pat: #owned)
    });
    let reborrows = signature.args.iter().filter_map(|arg| arg.reborrow());
    let statements = &function.block.stmts;
    let brace = function.block.brace_token;
    let mut block = TokenStream::new();
    brace.surround(&mut block, |block| block.extend(quote!(#(#reborrows)* #(#statements)*)));
    quote! {
        #(#companion)*
        impl #ident {
            #(#attrs)*
            #asyncness #fn_token __alru_load(#(#inputs),*) #output #block
        }
    }
}

/// `()`, the item itself, or a tuple of several.
fn tuple(items: &[TokenStream]) -> TokenStream {
    match items {
        [item] => item.clone(),
        items => quote!((#(#items),*)),
    }
}

/// The function's attributes, by where they belong.
struct Attrs {
    /// The function: all of them.
    outer: Vec<TokenStream>,
    /// The body: lint levels, which speak of the code in it.
    load: Vec<Attribute>,
    /// The type of the same name: whether it is there, and shown.
    companion: Vec<Attribute>,
}

impl Attrs {
    fn sort(attrs: &[Attribute]) -> Self {
        let is =
            |attr: &Attribute, names: &[&str]| names.iter().any(|name| attr.path().is_ident(name));
        let hidden = |attr: &Attribute| {
            attr.path().is_ident("doc")
                && matches!(&attr.meta, syn::Meta::List(list) if list.tokens.to_string() == "hidden")
        };
        let outer = attrs.iter().map(|attr| match &attr.meta {
            // Expected once, where the body is.
            syn::Meta::List(list) if is(attr, &["expect"]) => {
                let lints = &list.tokens;
                quote!(#[allow(#lints)])
            }
            // An inner attribute, of the body, comes before the function too.
            meta => quote!(#[#meta]),
        });
        let only = |wanted: &dyn Fn(&Attribute) -> bool| {
            let wanted = attrs.iter().filter(|attr| wanted(attr)).cloned();
            wanted.map(|attr| Attribute { style: AttrStyle::Outer, ..attr }).collect()
        };
        Self {
            outer: outer.collect(),
            load: only(&|attr| is(attr, &["allow", "warn", "deny", "forbid", "expect"])),
            companion: only(&|attr| is(attr, &["cfg"]) || hidden(attr)),
        }
    }
}
