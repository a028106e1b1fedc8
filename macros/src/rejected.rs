//! Uses that rustc rejects, in words of its own that change with its version. A
//! `compile_fail` example passes whatever the mistake is, so each has a twin that
//! compiles and differs in one place.

/// A hit is a clone of the value.
/// ```
/// #[derive(Clone)]
/// struct Page(String);
///
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Result<Page, String> {
///     Ok(Page(num.to_string()))
/// }
/// ```
/// ```compile_fail,E0277
/// struct Page(String);
///
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Result<Page, String> {
///     Ok(Page(num.to_string()))
/// }
/// ```
struct ValueNotClone;

/// Waiters on other threads get the value.
/// ```
/// #[alru::alru_cache]
/// async fn page(num: u32) -> std::sync::Arc<u32> {
///     num.into()
/// }
/// ```
/// ```compile_fail,E0277
/// #[alru::alru_cache]
/// async fn page(num: u32) -> std::rc::Rc<u32> {
///     num.into()
/// }
/// ```
struct ValueNotSend;

/// All waiters share the error.
/// ```
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Result<u32, std::sync::Arc<str>> {
///     Ok(num)
/// }
/// ```
/// ```compile_fail,E0277
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Result<u32, std::rc::Rc<str>> {
///     Ok(num)
/// }
/// ```
struct ErrorNotSend;

/// Arguments are the key.
/// ```
/// #[alru::alru_cache]
/// async fn area(name: String, width: u64) -> u64 {
///     let _ = name;
///     width as u64
/// }
/// ```
/// ```compile_fail,E0277
/// #[alru::alru_cache]
/// async fn area(name: String, width: f64) -> u64 {
///     let _ = name;
///     width as u64
/// }
/// ```
struct KeyNotHash;

/// A load may be driven by any caller's thread.
/// ```
/// #[alru::alru_cache]
/// async fn page(num: u32) -> u32 {
///     let shared = std::sync::Arc::new(num);
///     std::future::ready(()).await;
///     *shared
/// }
/// ```
/// ```compile_fail
/// #[alru::alru_cache]
/// async fn page(num: u32) -> u32 {
///     let shared = std::rc::Rc::new(num);
///     std::future::ready(()).await;
///     *shared
/// }
/// ```
struct FutureNotSend;

/// A result is told by its name, which must not deceive.
/// ```
/// #[derive(Clone)]
/// struct Outcome<T>(T);
///
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Outcome<u32> {
///     Outcome(num)
/// }
/// ```
/// ```compile_fail,E0277
/// #[derive(Clone)]
/// struct Result<T>(T);
///
/// #[alru::alru_cache]
/// async fn page(num: u32) -> Result<u32> {
///     Result(num)
/// }
/// ```
struct NotAResult;

/// A size is a `usize`, a lifetime a `Duration`.
/// ```
/// const SIZE: usize = 32;
///
/// #[alru::alru_cache(maxsize = SIZE, ttl = std::time::Duration::from_secs(10))]
/// async fn page(num: u32) -> u32 {
///     num
/// }
/// ```
/// ```compile_fail,E0308
/// const SIZE: u32 = 32;
///
/// #[alru::alru_cache(maxsize = SIZE, ttl = std::time::Duration::from_secs(10))]
/// async fn page(num: u32) -> u32 {
///     num
/// }
/// ```
/// ```compile_fail,E0308
/// const SIZE: usize = 32;
///
/// #[alru::alru_cache(maxsize = SIZE, ttl = 10 + 5)]
/// async fn page(num: u32) -> u32 {
///     num
/// }
/// ```
struct SettingOfAnotherType;

/// Access is as visible as the function.
/// ```
/// mod client {
///     #[alru::alru_cache]
///     pub async fn page(num: u32) -> u32 {
///         num
///     }
/// }
/// client::page::cache_clear();
/// ```
/// ```compile_fail,E0603
/// mod client {
///     #[alru::alru_cache]
///     async fn page(num: u32) -> u32 {
///         num
///     }
/// }
/// client::page::cache_clear();
/// ```
struct NotVisible;
