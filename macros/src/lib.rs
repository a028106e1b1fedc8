//! The attribute macro of the crate `alru`. Use it from there: `alru::alru_cache`.

use proc_macro::TokenStream;

mod args;
mod duration;
mod expand;
mod signature;

#[cfg(doctest)]
mod rejected;
#[cfg(test)]
mod tests;

/// Puts a cache around an async function: many concurrent calls, one run.
///
/// ```
/// use alru::alru_cache;
///
/// #[derive(Clone)]
/// struct Pep {
///     title: String,
/// }
///
/// #[derive(Debug)]
/// struct FetchError;
///
/// #[alru_cache(maxsize = 32, ttl = "10s", jitter = "2s")]
/// async fn get_pep(num: u32) -> Result<Pep, FetchError> {
///     // a slow fetch
///     Ok(Pep { title: format!("PEP {num}") })
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), alru::LoadError<FetchError>> {
/// let pep = get_pep(8).await?; // a miss: runs the body
/// let (same, other) = tokio::join!(get_pep(8), get_pep(20)); // a hit and a miss
/// assert_eq!(pep.title, same?.title);
/// assert_eq!(other?.title, "PEP 20");
///
/// let info = get_pep::cache_info();
/// assert_eq!(info.to_string(), "CacheInfo(hits=1, misses=2, maxsize=32, currsize=2)");
/// assert!(get_pep::cache_contains(&8));
/// assert!(get_pep::cache_invalidate(&8));
/// get_pep::cache_close(true).await;
/// # Ok(())
/// # }
/// ```
///
/// # Settings
///
/// All are optional, in any order.
///
/// | setting | value | unit | default |
/// |---|---|---|---|
/// | `maxsize` | a number, `None` for no bound, or an expression of type `usize` | entries | 128 |
/// | `ttl` | text such as `"10s"`, `None`, or an expression of type `Duration` | in the text | `None`: entries live until they are evicted |
/// | `jitter` | like `ttl`; needs a `ttl` | in the text | `None` |
/// | `crate` | text: the path of the library, for renames and re-exports | | `"::alru"` |
///
/// * `maxsize = 0` keeps nothing and shares nothing: every call runs the body.
/// * `ttl` counts from the end of the load; hits do not extend it. Zero expires at once, and a load
///   under way is still shared.
/// * `jitter`: each entry lives longer by its own draw from `[0, jitter]`, so that entries that were
///   loaded together do not expire together.
/// * A duration as text is one number and one unit of `ns`, `us` (`µs`), `ms`, `s`, `m`, `h`, `d`:
///   `"250ms"`, `"1.5h"`. Mistakes are compile errors.
/// * Expressions are evaluated once, at the first use of the cache.
///
/// # Expansion
///
/// `async fn get_pep(num: u32) -> Result<Pep, FetchError>` becomes
///
/// * a function of the same name, visibility, attributes and arguments, which asks the cache: to the
///   caller only the error type is another, `async fn get_pep(num: u32) -> Result<Pep,
///   LoadError<FetchError>>`;
/// * an enum without variants of the same name and visibility, for the functions beside it;
/// * a hidden function with the body as it was written;
/// * one static `AlruCache<u32, Pep, FetchError>`, made at its first use and never dropped.
///
/// Functions and types have separate namespaces in Rust, so `get_pep(8)` is the function,
/// `get_pep::cache_info()` goes to the type, and `use client::get_pep` imports both. It works for free
/// functions in modules and in function bodies.
///
/// # Functions beside it
///
/// As visible as the function itself; each is the method of `AlruCache` of that name.
///
/// | function | what it does |
/// |---|---|
/// | `cache_info() -> CacheInfo` | `hits`, `misses`, `maxsize`, `currsize`; shown as `CacheInfo(hits=3, misses=5, maxsize=32, currsize=5)` |
/// | `cache_parameters() -> CacheParameters` | `maxsize`, `ttl`, `jitter`, `tasks` (unfinished loads), `closed` |
/// | `cache_contains(&key) -> bool` | whether there is an entry, finished or loading; touches no counter and no recency |
/// | `cache_invalidate(&key) -> bool` | removes an entry, true if there was one; a load under way goes on for its waiters, its result is not stored |
/// | `cache_clear()` | removes all entries, zeroes hits and misses; loads under way finish uncached |
/// | `cache_close(wait) -> impl Future` | closes the cache, at the call: every later call fails. `false`: loads under way are dropped, their waiters fail. `true`: the future completes when they have finished, and drives them |
/// | `cache() -> &'static AlruCache<..>` | the cache itself |
///
/// A miss is a call that finds no entry, counted at its start, even if it fails later. Every other call
/// is a hit, one that joins a load under way included.
///
/// # Keys
///
/// All arguments are the key, so each is `Clone + Eq + Hash + Send + Sync + 'static` or a reference to
/// something with such an owned form. For `cache_contains` and `cache_invalidate` the key is
///
/// | arguments | key |
/// |---|---|
/// | none | `()` |
/// | `num: u32` | `u32` |
/// | `a: u32, b: bool` | `(u32, bool)`, in this order |
/// | `name: &str` | `String`; asked for by a `&str` |
/// | `path: &Path`, `items: &[T]` | `PathBuf`, `Vec<T>`: the `ToOwned::Owned` |
/// | `name: &'static str` | `&'static str` |
///
/// A reference is copied into the key by each call, hits included. With several arguments the key is
/// asked for as an owned tuple.
///
/// ```
/// # use alru::alru_cache;
/// #[alru_cache]
/// async fn shout(text: &str) -> String {
///     text.to_uppercase()
/// }
///
/// #[alru_cache(maxsize = None)]
/// async fn repeat(text: &str, times: usize) -> String {
///     text.repeat(times)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// assert_eq!(shout("hey").await, "HEY");
/// assert!(shout::cache_contains("hey"));
/// assert_eq!(repeat("ab", 2).await, "abab");
/// assert!(repeat::cache_contains(&("ab".to_owned(), 2)));
/// # }
/// ```
///
/// # Results
///
/// A hit clones the result, so it is `Clone + Send + Sync + 'static`; put what is large into an `Arc`.
///
/// **A function that can fail**, which is one whose return type is *called* `Result`
/// (`Result<T, E>`, or an alias such as `io::Result<T>`): `T` is cached, errors never are. It returns
/// `Result<T, LoadError<E>>`, where `E` is `Send + Sync + 'static` and need not be `Clone`:
/// `LoadError::Failed(Arc<E>)` is the body's error, the same for all callers of that run. The next call
/// runs again.
///
/// **Any other function**: the return value is cached, and returned as it is. That goes for an `Option`,
/// and for an alias of `Result` under another name: its errors are cached too.
///
/// # Errors
///
/// Of a function that can fail: `LoadError::Failed`, if the body returned an error;
/// `LoadError::Panicked`, if the body panicked while another caller polled it; `LoadError::Closed`, after
/// `cache_close`; `LoadError::Recursive`, if the body waits for its own key.
///
/// # Panics
///
/// A panic of the body reaches the caller that polled it. The others get `LoadError::Panicked` or, from a
/// function that cannot fail, panic with its message. Nothing is cached, and the key is usable afterwards.
///
/// A function that cannot fail also panics where another would return `LoadError::Closed` or
/// `LoadError::Recursive`.
///
/// If an expression for a setting panics, so does the first use of the cache and every later one.
///
/// # Cancel safety
///
/// A call may be dropped at any point. The run lives in the cache and goes on as long as one of its
/// callers waits, driven by any of them. When the last one goes, the body's future is dropped at once, the
/// entry is removed, and the next call is a new miss. Hence the future must be `Send`, on a
/// single-threaded runtime too. With `maxsize = 0` each call has its own run and takes it along.
///
/// # Cost
///
/// A hit: the arguments' owned forms, a hash of them, a lookup and a clone of the result, without
/// yielding. A miss allocates for the run's future.
///
/// # Limitations
///
/// Not yet: methods, generic functions and `impl Trait` arguments, a key of one's own (`key = ..`).
/// `AlruCache::builder(..)` covers them by hand. Not at all: `&mut` arguments, borrows inside an argument's
/// type (`Option<&str>`) or in the result, patterns as arguments, `unsafe` and foreign functions. Each is
/// a compile error that names a way out.
///
/// The time source, eviction policy and name of the cache cannot be set here; build an `AlruCache` for
/// that, for example to test expiry with a `ManualTime`.
#[proc_macro_attribute]
pub fn alru_cache(args: TokenStream, item: TokenStream) -> TokenStream {
    let (mut expanded, errors) = expand::expand(args.into(), item.into());
    expanded.extend(errors.map(|errors| errors.into_compile_error()));
    expanded.into()
}
