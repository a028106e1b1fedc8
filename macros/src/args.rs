//! The arguments of the attribute: `maxsize = 32, ttl = "10s", jitter = "2s"`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::ext::IdentExt as _;
use syn::parse::{ParseStream, Parser as _};
use syn::spanned::Spanned as _;
use syn::{Error, Expr, ExprLit, ExprUnary, Ident, Lit, Path, Token, UnOp};

use crate::duration;

const DEFAULT_MAXSIZE: usize = 128;

/// What the attribute asks for. Settings are ready to be spliced in: checked
/// literals, or expressions pinned to their type.
pub(crate) struct Args {
    pub(crate) maxsize: MaxSize,
    pub(crate) ttl: Option<TokenStream>,
    pub(crate) jitter: Option<TokenStream>,
    /// Path of the library, `::alru` unless `crate = "path"` says otherwise.
    pub(crate) krate: Path,
}

pub(crate) enum MaxSize {
    Bounded(TokenStream),
    Unbounded,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            maxsize: MaxSize::Bounded(quote!(#DEFAULT_MAXSIZE)),
            ttl: None,
            jitter: None,
            krate: syn::parse_quote!(::alru),
        }
    }
}

impl Args {
    /// Reads all arguments and reports every mistake, not the first only. The
    /// `Args` are usable in spite of an error: a setting in error is left at its
    /// default, so that the mistake does not set off a cascade elsewhere.
    pub(crate) fn parse(tokens: TokenStream) -> (Self, Option<Error>) {
        let mut reader = Reader::default();
        let parsed = (|input: ParseStream<'_>| reader.read(input)).parse2(tokens);
        if let Err(error) = parsed {
            reader.report(error);
        }
        reader.finish()
    }
}

#[derive(Default)]
struct Reader {
    args: Args,
    seen: Vec<Ident>,
    error: Option<Error>,
}

impl Reader {
    fn report(&mut self, error: Error) {
        match &mut self.error {
            Some(errors) => errors.combine(error),
            None => self.error = Some(error),
        }
    }

    /// `Err` is a mistake of form, after which there is no reading on.
    fn read(&mut self, input: ParseStream<'_>) -> syn::Result<()> {
        while !input.is_empty() {
            if !input.peek(Ident::peek_any) {
                return Err(input.error(
                    "expected `name = value`, for example `maxsize = 32` or `ttl = \"10s\"`",
                ));
            }
            let name = input.call(Ident::parse_any)?;
            if !input.peek(Token![=]) {
                let message =
                    format!("`{name}` needs a value: write `{name} = {}`", example(&name));
                return Err(Error::new(name.span(), message));
            }
            input.parse::<Token![=]>()?;
            let value: Expr = input.parse()?;
            if let Err(error) = self.set(&name, value) {
                self.report(error);
            }
            self.seen.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &Ident, value: Expr) -> syn::Result<()> {
        if self.seen.contains(name) {
            let message = format!("`{name}` is given twice: leave one out");
            return Err(Error::new(name.span(), message));
        }
        match name.to_string().as_str() {
            "maxsize" => self.args.maxsize = maxsize(value)?,
            "ttl" => self.args.ttl = lifetime(name, value)?,
            "jitter" => self.args.jitter = lifetime(name, value)?,
            "crate" => self.args.krate = path(&value)?,
            other => return Err(Error::new(name.span(), unknown(other))),
        }
        Ok(())
    }

    /// The rules between arguments.
    fn finish(mut self) -> (Args, Option<Error>) {
        // A `ttl` that was given but is wrong has its own error.
        let ttl_absent = !self.seen.iter().any(|name| name == "ttl");
        let ttl_none = !ttl_absent && self.args.ttl.is_none() && self.error.is_none();
        if self.args.jitter.is_some() && (ttl_absent || ttl_none) {
            let jitter = self.seen.iter().find(|name| *name == "jitter");
            self.report(Error::new(
                jitter.map_or_else(Span::call_site, Ident::span),
                "`jitter` without `ttl`: jitter lengthens a time to live, so add `ttl = \"10s\"` or leave `jitter` out",
            ));
            self.args.jitter = None;
        }
        (self.args, self.error)
    }
}

fn example(name: &Ident) -> &'static str {
    match name.to_string().as_str() {
        "maxsize" => "32",
        "ttl" => "\"10s\"",
        "jitter" => "\"2s\"",
        "crate" => "\"::alru\"",
        _ => "..",
    }
}

fn unknown(name: &str) -> String {
    let mend = match name {
        "max_size" | "size" | "capacity" | "max_capacity" => "write `maxsize`",
        "time_to_live" | "expire" | "expires" => "write `ttl`",
        "key" => "a key of your own is not supported yet: all arguments are the key",
        _ => "the arguments are `maxsize`, `ttl`, `jitter` and `crate`",
    };
    format!("unknown argument `{name}`: {mend}")
}

/// A number, `None`, or an expression of type `usize`.
fn maxsize(value: Expr) -> syn::Result<MaxSize> {
    const FORMS: &str =
        "write a number of entries, `maxsize = 32`, or `maxsize = None` for no bound";
    match &value {
        Expr::Lit(ExprLit { lit: Lit::Int(number), .. }) => {
            // Parsed for its message only; rustc checks the width of the target.
            number.base10_parse::<u64>().map_err(|error| {
                Error::new(number.span(), format!("`{number}` is no size ({error}): {FORMS}"))
            })?;
            if !matches!(number.suffix(), "" | "usize") {
                return Err(Error::new(
                    number.span(),
                    "`maxsize` is a usize: take the suffix away",
                ));
            }
        }
        Expr::Lit(_) => return Err(Error::new_spanned(&value, format!("not a size: {FORMS}"))),
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), .. }) => {
            return Err(Error::new_spanned(&value, format!("a size cannot be negative: {FORMS}")));
        }
        Expr::Call(call) if is_path(&call.func, "Some") => {
            return Err(Error::new_spanned(&value, format!("leave `Some` out: {FORMS}")));
        }
        value if is_path(value, "None") => return Ok(MaxSize::Unbounded),
        _ => {}
    }
    let span = value.span();
    Ok(MaxSize::Bounded(
        quote_spanned!(span=> { let __alru_maxsize: usize = #value; __alru_maxsize }),
    ))
}

/// A duration as text, `None`, or an expression of type `Duration`.
fn lifetime(name: &Ident, value: Expr) -> syn::Result<Option<TokenStream>> {
    let negated = match &value {
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => matches!(**expr, Expr::Lit(_)),
        _ => false,
    };
    match &value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => {
            let parsed = duration::parse(&text.value())
                .map_err(|error| Error::new(text.span(), error.to_string()))?;
            let (secs, nanos) = (parsed.as_secs(), parsed.subsec_nanos());
            Ok(Some(quote!(::core::time::Duration::new(#secs, #nanos))))
        }
        Expr::Lit(ExprLit { lit: Lit::Int(_) | Lit::Float(_), .. }) => {
            let number = quote!(#value);
            Err(Error::new_spanned(
                &value,
                format!("a duration needs its unit: write `{name} = \"{number}s\"` for seconds"),
            ))
        }
        Expr::Lit(_) => Err(Error::new_spanned(
            &value,
            format!("not a duration: write `{name} = {}`", example(name)),
        )),
        _ if negated => Err(Error::new_spanned(
            &value,
            format!("a duration cannot be negative: write `{name} = {}`", example(name)),
        )),
        value if is_path(value, "None") => Ok(None),
        _ => {
            let span = value.span();
            Ok(Some(quote_spanned!(span=> {
                let __alru_duration: ::core::time::Duration = #value;
                __alru_duration
            })))
        }
    }
}

/// `"path"`, as other attributes take `crate`.
fn path(value: &Expr) -> syn::Result<Path> {
    let message = "write the path of the library as text, `crate = \"::alru\"`";
    match value {
        Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) => text
            .parse_with(Path::parse_mod_style)
            .map_err(|_| Error::new(text.span(), format!("not a path: {message}"))),
        _ => Err(Error::new_spanned(value, message)),
    }
}

/// Whether an expression is this one name, or a path that ends in it.
fn is_path(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == name),
        _ => false,
    }
}
