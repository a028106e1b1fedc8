//! What a shared load can fail with.

use std::fmt;
use std::sync::Arc;

/// A blocking call was told how long to wait for loads of other callers, and waited that long; see
/// [`Cache::get_or_insert_with_timeout`](crate::Cache::get_or_insert_with_timeout).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedOut;

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("timed out waiting for another caller's load")
    }
}

impl std::error::Error for TimedOut {}

/// Why a call of an [`AlruCache`](crate::AlruCache) or a [`LoadingCache`](crate::LoadingCache) has no value.
///
/// Every caller of one run gets the same error, but for `Recursive`, which is the caller's own. Errors are never
/// cached: the next call runs again.
#[derive(PartialEq, Eq)]
pub enum LoadError<E> {
    /// The function returned this error.
    Failed(Arc<E>),
    /// The function panicked, with this message, in another caller's poll. (The caller whose poll it was
    /// panics.)
    Panicked(Arc<str>),
    /// The cache is closed, or was closed during the load.
    Closed,
    /// The function waits for its own result: the load of this key asked for this key, or for one whose load
    /// waits for this one. What is recognised is said at [`Cache::get_with`](crate::Cache::get_with).
    Recursive,
}

impl<E> Clone for LoadError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(e) => Self::Failed(e.clone()),
            Self::Panicked(m) => Self::Panicked(m.clone()),
            Self::Closed => Self::Closed,
            Self::Recursive => Self::Recursive,
        }
    }
}

impl<E> LoadError<E> {
    /// The function's own error, if that is what it was.
    pub fn failed(&self) -> Option<&E> {
        match self {
            Self::Failed(e) => Some(e),
            _ => None,
        }
    }
}

impl<E: fmt::Debug> fmt::Debug for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) => f.debug_tuple("Failed").field(e).finish(),
            Self::Panicked(m) => f.debug_tuple("Panicked").field(m).finish(),
            Self::Closed => f.write_str("Closed"),
            Self::Recursive => f.write_str("Recursive"),
        }
    }
}

impl<E: fmt::Display> fmt::Display for LoadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(e) => write!(f, "the load failed: {e}"),
            Self::Panicked(m) => write!(f, "the load panicked: {m}"),
            Self::Closed => f.write_str("the cache is closed"),
            Self::Recursive => f.write_str("the load of a key waits for itself"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for LoadError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Failed(e) => Some(e.as_ref()),
            _ => None,
        }
    }
}
