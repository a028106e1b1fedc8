//! What `#[alru_cache]` expands to uses this. Not part of the API: it may change in any release.

use crate::LoadError;
use std::convert::Infallible;
use std::hash::Hash;

/// The two types of a `Result`, also behind a one-argument alias such as `io::Result<T>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is called `Result` but is not `core::result::Result`",
    note = "`#[alru_cache]` keeps what `Ok` holds: return `Result<T, E>` or an alias of it"
)]
pub trait Fallible {
    /// The value.
    type Ok;
    /// The error.
    type Err;
}

impl<T, E> Fallible for Result<T, E> {
    type Ok = T;
    type Err = E;
}

/// The result of a function that cannot fail.
///
/// # Panics
/// If there is none: the cache is closed, the function panicked in another caller, or it waits for itself.
#[track_caller]
pub fn value_or_panic<T>(result: Result<T, LoadError<Infallible>>) -> T {
    match result {
        Ok(value) => value,
        // With the function's own words, as its poller panicked.
        Err(LoadError::Panicked(message)) => panic!("{message}"),
        Err(error) => panic!("{error}"),
    }
}

/// Reports an argument that cannot be part of a key at its own token.
pub const fn assert_key<K: Clone + Eq + Hash + Send + Sync + 'static>() {}

/// Reports a result that cannot be cached at its own token.
pub const fn assert_value<V: Clone + Send + Sync + 'static>() {}

/// Reports an error that cannot be shared at its own token.
pub const fn assert_error<E: Send + Sync + 'static>() {}
