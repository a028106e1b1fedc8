//! The macro as a function from tokens to tokens: where errors point, what they
//! say, and what the expansion is made of. That expansions compile and behave is
//! tested from the library's side, in `tests/macro_behaviour.rs`.

use crate::expand::expand;

/// The errors of one use: for each, the source text it points at and its words.
fn errors(args: &str, item: &str) -> Vec<(String, String)> {
    let (_, errors) = expand(args.parse().unwrap(), item.parse().unwrap());
    errors
        .into_iter()
        .flatten()
        .map(|error| (error.span().source_text().unwrap_or_default(), error.to_string()))
        .collect()
}

/// Asserts one error at `token` that says `words`.
#[track_caller]
fn one_error(args: &str, item: &str, token: &str, words: &str) {
    let errors = errors(args, item);
    let [(at, message)] = &errors[..] else {
        panic!("not one error for #[alru_cache({args})] {item}: {errors:?}");
    };
    assert_eq!(at, token, "place of: {message}");
    assert!(message.contains(words), "{message:?} does not say {words:?}");
}

#[track_caller]
fn expansion(args: &str, item: &str) -> String {
    let (expanded, errors) = expand(args.parse().unwrap(), item.parse().unwrap());
    assert!(errors.is_none(), "{errors:?}");
    let file = syn::parse2::<syn::File>(expanded).expect("an expansion is a list of items");
    tokens(&file)
}

fn tokens(syntax: &impl quote::ToTokens) -> String {
    syntax.to_token_stream().to_string()
}

/// Compares without white space: a token stream's own spacing says nothing.
#[track_caller]
fn assert_has(expansion: &str, part: &str) {
    let squeeze = |text: &str| text.split_whitespace().collect::<String>();
    let (expansion, part) = (squeeze(expansion), squeeze(part));
    assert!(expansion.contains(&part), "no\n{part}\nin\n{expansion}");
}

const GOOD: &str = "async fn get_pep(num: u32) -> Result<Pep, FetchError> { fetch(num).await }";

#[test]
fn arguments_that_are_wrong() {
    for (args, token, words) in [
        ("jitter = \"2s\"", "jitter", "add `ttl = "),
        ("ttl = None, jitter = \"2s\"", "jitter", "add `ttl = "),
        ("ttl = \"10\"", "\"10\"", "write \"10s\""),
        ("ttl = \"10sec\"", "\"10sec\"", "one of ns, us, ms, s, m, h, d"),
        ("ttl = \"\"", "\"\"", "empty"),
        ("ttl = \"-5s\"", "\"-5s\"", "negative"),
        ("ttl = \"soon\"", "\"soon\"", "number"),
        ("ttl = 10", "10", "write `ttl = \"10s\"`"),
        ("ttl = 1.5", "1.5", "write `ttl = \"1.5s\"`"),
        ("ttl = -5", "-5", "negative"),
        ("ttl = true", "true", "write `ttl = \"10s\"`"),
        ("ttl = \"1s\", jitter = \"x\"", "\"x\"", "number"),
        ("maxsize = -1", "-1", "negative"),
        ("maxsize = \"32\"", "\"32\"", "`maxsize = 32`"),
        ("maxsize = 1.5", "1.5", "`maxsize = 32`"),
        ("maxsize = 32u8", "32u8", "suffix"),
        ("maxsize = 99999999999999999999", "99999999999999999999", "too large"),
        ("maxsize = Some(32)", "Some(32)", "leave `Some` out"),
        ("max_size = 32", "max_size", "write `maxsize`"),
        ("time_to_live = \"1s\"", "time_to_live", "write `ttl`"),
        ("typed = true", "typed", "`maxsize`, `ttl`, `jitter` and `crate`"),
        ("key = num", "key", "not supported yet"),
        ("maxsize = 1, maxsize = 2", "maxsize", "given twice"),
        ("maxsize", "maxsize", "write `maxsize = 32`"),
        ("ttl(10)", "ttl", "write `ttl = \"10s\"`"),
        ("32", "32", "expected `name = value`"),
        ("maxsize = 32 ttl = \"1s\"", "ttl", "expected `,`"),
        ("crate = alru", "alru", "as text"),
        ("crate = \"a b\"", "\"a b\"", "not a path"),
    ] {
        one_error(args, GOOD, token, words);
    }
}

#[test]
fn functions_that_cannot_be_cached() {
    for (item, token, words) in [
        ("fn f(x: u32) -> u32 { x }", "fn", "write `async fn f`"),
        ("async unsafe fn f() {}", "unsafe", "safe async fn"),
        ("async extern \"C\" fn f() {}", "extern \"C\"", "take it away"),
        ("async fn f(&self, x: u32) {}", "&self", "methods are not supported yet"),
        ("async fn f(self: Arc<Self>) {}", "self: Arc<Self>", "methods are not supported yet"),
        ("async fn f(x: u32) -> Self { x }", "Self", "not supported yet"),
        ("async fn f<T: Hash>(x: T) {}", "<T: Hash>", "not supported yet"),
        ("async fn f<const N: usize>() {}", "<const N: usize>", "not supported yet"),
        ("async fn f<'a>(x: &'a str) {}", "<'a>", "`&str` is enough"),
        ("async fn f() where u8: Copy {}", "where", "take it away"),
        ("async fn f(x: impl Hash) {}", "impl Hash", "name the type"),
        ("async fn f(x: Option<impl Hash>) {}", "impl Hash", "name the type"),
        ("async fn f((a, b): (u8, u8)) {}", "(a, b)", "let (a, b) = pair;"),
        ("async fn f(Pair { a, b }: Pair) {}", "Pair { a, b }", "apart in the body"),
        ("async fn f(ref x: u8) {}", "ref x", "one name"),
        ("async fn f(#[cfg(unix)] x: u8) {}", "#[cfg(unix)]", "two functions"),
        ("async fn f(x: &mut u8) {}", "mut", "by value"),
        ("async fn f(x: &dyn Hash) {}", "dyn Hash", "trait object"),
        ("async fn f(x: Option<&str>) {}", "&str", "owned type"),
        ("async fn f(x: &&str) {}", "&str", "owned type"),
        ("async fn f(x: Cow<'_, str>) {}", "'_", "owned type"),
        ("async fn f(x: &str) -> &str { x }", "&str", "return the owned type"),
        ("async fn f(x: u8) -> Result<Cow<'_, str>, E> { x }", "'_", "return the owned type"),
        ("async fn f() -> impl Display { 1 }", "impl Display", "needs a name"),
        ("struct S;", "struct", "goes on an async function"),
        ("#[repr(u8)] pub(crate) enum E {}", "enum", "goes on an async function"),
        ("async fn f();", ";", "with a body"),
    ] {
        one_error("", item, token, words);
    }
}

#[test]
fn all_mistakes_at_once() {
    let errors = errors(
        "maxsize = -1, ttl = \"10\", color = 3",
        "fn f(&self, x: &mut u8, y: impl Hash) -> impl Display { 1 }",
    );
    let places: Vec<_> = errors.iter().map(|(at, _)| at.as_str()).collect();
    assert_eq!(
        places,
        ["-1", "\"10\"", "color", "fn", "&self", "mut", "impl Hash", "impl Display"]
    );
}

#[test]
fn a_function_with_wrong_arguments_is_expanded_all_the_same() {
    let (expanded, errors) = expand("ttl = 10".parse().unwrap(), GOOD.parse().unwrap());
    assert!(errors.is_some());
    assert_has(&expanded.to_string(), "enum get_pep {}");
}

#[test]
fn settings_reach_the_builder() {
    let text = expansion("maxsize = 32, ttl = \"10s\", jitter = \"2.5s\"", GOOD);
    assert_has(&text, ".maxsize({ let __alru_maxsize: usize = 32; __alru_maxsize })");
    assert_has(&text, ".ttl(::core::time::Duration::new(10u64, 0u32))");
    assert_has(&text, ".jitter(::core::time::Duration::new(2u64, 500000000u32))");

    let text = expansion("", GOOD);
    assert_has(&text, ".maxsize(128usize)");
    assert!(!text.contains(". ttl (") && !text.contains(". jitter ("));

    let text = expansion("maxsize = None, ttl = None, crate = \"crate::cache\",", GOOD);
    assert_has(&text, ".unbounded()");
    assert_has(&text, "crate::cache::AlruCache::builder(");
    assert!(!text.contains(":: alru ::"), "{text}");

    let text = expansion("maxsize = SIZE, ttl = Duration::from_secs(60)", GOOD);
    assert_has(&text, "{ let __alru_maxsize: usize = SIZE; __alru_maxsize }");
    assert_has(&text, "let __alru_duration: ::core::time::Duration = Duration::from_secs(60);");
}

#[test]
fn the_key_is_the_argument_or_a_tuple_of_them() {
    for (inputs, key, call) in [
        ("", "()", "call(())"),
        ("num: u32", "u32", "call(num)"),
        ("a: u32, b: Uuid", "(u32, Uuid)", "call((a, b))"),
        ("mut a: u32, _: u8", "(u32, u8)", "call((a, __alru_arg1))"),
        ("s: &'static str", "&'static str", "call(s)"),
        ("s: &str", "::std::string::String", "call(<str as ::std::borrow::ToOwned>::to_owned(s))"),
        ("s: &[u8]", "::std::vec::Vec<u8>", "call(<[u8] as ::std::borrow::ToOwned>::to_owned(s))"),
        (
            "s: &Path",
            "<Path as ::std::borrow::ToOwned>::Owned",
            "call(<Path as ::std::borrow::ToOwned>::to_owned(s))",
        ),
        ("f: fn(&str) -> bool", "fn(&str) -> bool", "call(f)"),
    ] {
        let text = expansion("", &format!("async fn f({inputs}) -> u64 {{ 0 }}"));
        assert_has(&text, &format!("&'static ::alru::AlruCache<{key}, u64,"));
        assert_has(&text, call);
    }
}

#[test]
fn the_body_gets_its_references_back() {
    let text = expansion("", "async fn f(mut s: &str, mut n: u8) -> u8 { s = \"\"; n }");
    assert_has(&text, "async fn f(s: &str, n: u8) -> u8");
    assert_has(&text, "async fn __alru_load(s: ::std::string::String, mut n: u8) -> u8");
    assert_has(&text, "let mut s: &str = ::core::borrow::Borrow::<str>::borrow(&s); s = \"\"; n");
}

#[test]
fn a_result_is_told_by_its_name() {
    for (output, written) in [
        ("Result<Pep, FetchError>", "::core::result::Result<Pep, ::alru::LoadError<FetchError>>"),
        ("std::result::Result<u8, E>", "::core::result::Result<u8, ::alru::LoadError<E>>"),
        (
            "io::Result<u8>",
            "::core::result::Result<
                <io::Result<u8> as ::alru::__private::Fallible>::Ok,
                ::alru::LoadError<<io::Result<u8> as ::alru::__private::Fallible>::Err>
            >",
        ),
        ("Option<u8>", "Option<u8>"),
        ("ResultSet<u8, u8>", "ResultSet<u8, u8>"),
        ("()", "()"),
    ] {
        let text = expansion("", &format!("async fn f() -> {output} {{ todo!() }}"));
        assert_has(&text, &format!("async fn f() -> {written} {{"));
        assert_has(&text, &format!("async fn __alru_load() -> {output} {{ todo!() }}"));
    }
}

#[test]
fn attributes_go_where_they_belong() {
    let text = expansion(
        "",
        "/// Doc.
        #[cfg(unix)] #[doc(hidden)] #[deprecated] #[allow(unused)] #[expect(dead_code)]
        pub(crate) async fn f() { g() }",
    );
    let all = "#[doc = \" Doc.\"] #[cfg(unix)] #[doc(hidden)] #[deprecated] #[allow(unused)] #[allow(dead_code)]";
    assert_has(&text, &format!("{all} pub(crate) async fn f() {{"));
    assert_has(&text, "#[cfg(unix)] #[doc(hidden)] #[allow(");
    assert_has(
        &expansion("", "async fn f() { #![allow(unused)] g() }"),
        "#[allow(unused)] async fn f() {",
    );
    assert_has(
        &text,
        "#[cfg(unix)] #[doc(hidden)] impl f { #[allow(unused)] #[expect(dead_code)] async fn __alru_load() { g() } }",
    );
}

#[test]
fn access_is_as_visible_as_the_function() {
    let names = [
        "cache",
        "cache_info",
        "cache_parameters",
        "cache_contains",
        "cache_invalidate",
        "cache_clear",
        "cache_close",
    ];
    for vis in ["", "pub", "pub(crate)", "pub(in crate::a)"] {
        let text = expansion("", &format!("{vis} async fn f() {{}}"));
        let file: syn::File = syn::parse_str(&text).unwrap();
        let wanted = tokens(&syn::parse_str::<syn::Visibility>(vis).unwrap());
        let mut seen = Vec::new();
        for item in file.items {
            match item {
                syn::Item::Enum(item) => {
                    assert_eq!(tokens(&item.vis), wanted);
                    assert!(item.variants.is_empty());
                }
                syn::Item::Impl(item) => {
                    for item in item.items {
                        let syn::ImplItem::Fn(item) = item else { panic!("not a function") };
                        if item.sig.ident == "__alru_load" {
                            assert_eq!(tokens(&item.vis), "");
                        } else {
                            assert_eq!(tokens(&item.vis), wanted, "{}", item.sig.ident);
                            seen.push(item.sig.ident.to_string());
                        }
                    }
                }
                _ => {}
            }
        }
        assert_eq!(seen, names);
    }
}
