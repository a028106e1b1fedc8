//! What the function looks like, and whether it can be cached.
//!
//! A load outlives the call that started it: it lives in the cache and serves
//! every caller of its key. Hence what is checked here: each argument has an
//! owned, nameable form that can be the key, and the result is owned too.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{
    Attribute, Error, FnArg, GenericArgument, Ident, ItemFn, Lifetime, Pat, PathArguments,
    ReturnType, Type, TypeReference,
};

/// A function that can be cached.
pub(crate) struct Signature {
    pub(crate) args: Vec<Arg>,
    pub(crate) output: Output,
}

/// One argument, in its three roles: as the caller writes it, in the key, and
/// as the body sees it.
pub(crate) struct Arg {
    /// Its name, or one made up for `_`.
    pub(crate) ident: Ident,
    /// The pattern that the body sees: the name with its `mut`, or `_`.
    pub(crate) pat: TokenStream,
    pub(crate) attrs: Vec<Attribute>,
    /// The type as written.
    pub(crate) ty: Type,
    /// `T` of a `&T`, which the key owns and the body borrows again.
    pub(crate) borrowed: Option<Type>,
}

pub(crate) enum Output {
    /// Cached whole.
    Infallible(TokenStream),
    /// `Ok` is cached, `Err` is handed to the callers of that run.
    /// `at`: where the type is written.
    Fallible { at: Span, ok: TokenStream, err: TokenStream },
}

impl Arg {
    /// The type of this argument in the key.
    pub(crate) fn owned_type(&self) -> TokenStream {
        match &self.borrowed {
            None => {
                let ty = &self.ty;
                quote!(#ty)
            }
            // Named in full where the name is known, for the reader of the docs.
            Some(Type::Path(path)) if path.path.is_ident("str") => {
                quote_spanned!(path.span()=> ::std::string::String)
            }
            Some(Type::Slice(slice)) => {
                let item = &slice.elem;
                quote_spanned!(slice.span()=> ::std::vec::Vec<#item>)
            }
            Some(ty) => quote_spanned!(ty.span()=> <#ty as ::std::borrow::ToOwned>::Owned),
        }
    }

    /// The owned value, from the argument as the caller passed it.
    pub(crate) fn to_owned(&self) -> TokenStream {
        let ident = &self.ident;
        match &self.borrowed {
            None => quote!(#ident),
            Some(ty) => {
                quote_spanned!(ty.span()=> <#ty as ::std::borrow::ToOwned>::to_owned(#ident))
            }
        }
    }

    /// The statement that gives the body its reference back.
    pub(crate) fn reborrow(&self) -> Option<TokenStream> {
        let Self { ident, pat, ty, .. } = self;
        let inner = self.borrowed.as_ref()?;
        Some(quote_spanned!(ty.span()=>
            let #pat: &#inner = ::core::borrow::Borrow::<#inner>::borrow(&#ident);
        ))
    }
}

impl Signature {
    pub(crate) fn read(item: &ItemFn, krate: &syn::Path) -> syn::Result<Self> {
        let sig = &item.sig;
        let mut errors = Errors::default();

        if sig.asyncness.is_none() {
            errors.push(
                sig.fn_token,
                format!("`#[alru_cache]` is for async functions: write `async fn {}`", sig.ident),
            );
        }
        if let Some(token) = &sig.unsafety {
            errors.push(
                token,
                "an `unsafe fn` cannot be cached, because its callers do not all run it: \
                 wrap it in a safe async fn and cache that",
            );
        }
        if let Some(abi) = &sig.abi {
            errors.push(abi, "a function with a foreign ABI cannot be cached: take it away");
        }
        if let Some(receiver) = sig.receiver() {
            errors.push(
                receiver,
                "methods are not supported yet: cache a free function that takes what it needs \
                 as arguments, or keep an `AlruCache::builder(..)` in a field",
            );
        }
        if sig.generics.lt_token.is_some() {
            let only_lifetimes = sig.generics.type_params().next().is_none()
                && sig.generics.const_params().next().is_none();
            errors.push(
                &sig.generics,
                if only_lifetimes {
                    "lifetime parameters are not supported: leave them out, `&str` is enough, and \
                     the cache keeps the owned form"
                } else {
                    "generic functions are not supported yet: cache one function for each type, or \
                     build an `AlruCache::builder(..)` in the generic code"
                },
            );
        } else if let Some(clause) = &sig.generics.where_clause {
            errors.push(clause.where_token, "a where clause is not supported: take it away");
        }

        let mut args = Vec::new();
        for (index, input) in sig.inputs.iter().enumerate() {
            if let FnArg::Typed(arg) = input {
                if let Some(arg) = errors.take(Arg::read(arg, index)) {
                    args.push(arg);
                }
            }
        }
        let output = errors.take(Output::read(&sig.output, krate));
        match (errors.0, output) {
            (None, Some(output)) => Ok(Self { args, output }),
            (Some(errors), _) => Err(errors),
            (None, None) => unreachable!("an output that was not read left an error"),
        }
    }
}

impl Arg {
    fn read(arg: &syn::PatType, index: usize) -> syn::Result<Self> {
        let mut errors = Errors::default();
        let (ident, pat) = match &*arg.pat {
            Pat::Ident(pat) if pat.by_ref.is_none() && pat.subpat.is_none() => {
                (pat.ident.clone(), quote!(#pat))
            }
            Pat::Wild(wild) => (format_ident!("__alru_arg{index}"), quote!(#wild)),
            pat => {
                errors.push(
                    pat,
                    "an argument needs a name here: take it under one name and take it apart in \
                     the body, `let (a, b) = pair;`",
                );
                (format_ident!("__alru_arg{index}"), quote!(_))
            }
        };
        for attr in &arg.attrs {
            if attr.path().is_ident("cfg") || attr.path().is_ident("cfg_attr") {
                errors.push(
                    attr,
                    "conditional arguments are not supported: make two functions with `#[cfg]`",
                );
            }
        }

        let borrowed = match ungrouped(&arg.ty) {
            Type::Reference(TypeReference { mutability: Some(token), .. }) => {
                errors.push(
                    token,
                    "`&mut` cannot be an argument of a cached function: a hit does not run the \
                     body, so nothing would be written; take it by value",
                );
                None
            }
            // Owned as it is: a `&'static str` is its own key.
            Type::Reference(reference) if is_static(reference.lifetime.as_ref()) => None,
            Type::Reference(reference) => Some((*reference.elem).clone()),
            _ => None,
        };
        if let Some(Type::TraitObject(object)) = &borrowed {
            errors.push(
                object,
                "a trait object cannot be a key: take a type that is `Hash`, `Eq` and `Clone`",
            );
        } else if errors.0.is_none() {
            let inner = borrowed.as_ref().unwrap_or(&arg.ty);
            Obstacles::find(inner, Place::Argument, &mut errors);
        }

        let arg = Self { ident, pat, attrs: arg.attrs.clone(), ty: (*arg.ty).clone(), borrowed };
        errors.or(arg)
    }
}

impl Output {
    fn read(output: &ReturnType, krate: &syn::Path) -> syn::Result<Self> {
        let ReturnType::Type(_, ty) = output else {
            return Ok(Self::Infallible(quote!(())));
        };
        let mut errors = Errors::default();
        Obstacles::find(ty, Place::Output, &mut errors);
        let at = ty.span();
        errors.or(match result_arguments(ty) {
            None => Self::Infallible(quote!(#ty)),
            Some(arguments) => match arguments[..] {
                [ok, err] => Self::Fallible { at, ok: quote!(#ok), err: quote!(#err) },
                // An alias such as `io::Result<T>`: ask the type.
                _ => {
                    let part = |name: &str| {
                        let name = Ident::new(name, Span::call_site());
                        quote_spanned!(at=> <#ty as #krate::__private::Fallible>::#name)
                    };
                    Self::Fallible { at, ok: part("Ok"), err: part("Err") }
                }
            },
        })
    }
}

/// The type arguments of a path whose last segment is `Result`.
fn result_arguments(ty: &Type) -> Option<Vec<&Type>> {
    let Type::Path(path) = ungrouped(ty) else {
        return None;
    };
    let last = path.path.segments.last().filter(|last| last.ident == "Result")?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else {
        return Some(vec![]);
    };
    let types = arguments.args.iter().filter_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    });
    Some(types.collect())
}

/// The type without parentheses, and without what a `$t:ty` of a `macro_rules!`
/// comes wrapped in.
fn ungrouped(ty: &Type) -> &Type {
    match ty {
        Type::Paren(inner) => ungrouped(&inner.elem),
        Type::Group(inner) => ungrouped(&inner.elem),
        ty => ty,
    }
}

fn is_static(lifetime: Option<&Lifetime>) -> bool {
    lifetime.is_some_and(|lifetime| lifetime.ident == "static")
}

#[derive(Clone, Copy)]
enum Place {
    Argument,
    Output,
}

/// Finds what cannot be in a cached type: borrows, `impl Trait`, `Self`.
struct Obstacles<'a> {
    place: Place,
    errors: &'a mut Errors,
}

impl Obstacles<'_> {
    fn find(ty: &Type, place: Place, errors: &mut Errors) {
        Obstacles { place, errors }.visit_type(ty);
    }

    fn borrow(&mut self, at: impl ToTokens) {
        self.errors.push(
            at,
            match self.place {
                Place::Argument => {
                    "a borrow inside an argument's type cannot be kept in the key: take the owned \
                     type, such as `String` for `&str`"
                }
                Place::Output => {
                    "a cached result cannot borrow: return the owned type, or an `Arc` to share \
                     it without copying"
                }
            },
        );
    }
}

impl<'ast> Visit<'ast> for Obstacles<'_> {
    fn visit_type_reference(&mut self, reference: &'ast TypeReference) {
        if is_static(reference.lifetime.as_ref()) {
            visit::visit_type(self, &reference.elem);
        } else {
            self.borrow(reference);
        }
    }

    fn visit_lifetime(&mut self, lifetime: &'ast Lifetime) {
        if !is_static(Some(lifetime)) {
            self.borrow(lifetime);
        }
    }

    fn visit_type_impl_trait(&mut self, ty: &'ast syn::TypeImplTrait) {
        self.errors.push(
            ty,
            match self.place {
                Place::Argument => {
                    "`impl Trait` makes the function generic, which is not supported yet: name \
                     the type"
                }
                Place::Output => {
                    "the cache keeps the result, so its type needs a name: write the type, or \
                     `Arc<dyn Trait + Send + Sync>`"
                }
            },
        );
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first().filter(|first| first.ident == "Self") {
            self.errors.push(
                first,
                "functions of an `impl` block are not supported yet: cache a free function and \
                 name the type here",
            );
        }
        visit::visit_path(self, path);
    }

    // The lifetimes in these are their own: `fn(&str) -> bool` borrows nothing.
    fn visit_type_bare_fn(&mut self, _: &'ast syn::TypeBareFn) {}
    fn visit_parenthesized_generic_arguments(
        &mut self,
        _: &'ast syn::ParenthesizedGenericArguments,
    ) {
    }
    fn visit_bound_lifetimes(&mut self, _: &'ast syn::BoundLifetimes) {}
}

/// Every mistake at once, so that one compile shows them all.
#[derive(Default)]
struct Errors(Option<Error>);

impl Errors {
    fn push(&mut self, at: impl ToTokens, message: impl std::fmt::Display) {
        self.add(Error::new_spanned(at, message));
    }

    fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }

    fn take<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    fn or<T>(self, value: T) -> syn::Result<T> {
        self.0.map_or(Ok(value), Err)
    }
}
