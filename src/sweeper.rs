//! Sweepers: what an idle cache needs to give its memory back. The user runs them where he likes.

use crate::cache::{Cache, WeakCache};
use crate::raw::sweep::Tending;
use crate::sync::thread;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, Hash};
use std::task::Poll;
use std::time::Duration;

/// A sweeper's hold on its cache: none while it sleeps.
struct Sweep<K, V, S> {
    cache: WeakCache<K, V, S>,
    tending: Tending,
}

/// What a sweeper does next.
enum Next {
    /// Another step.
    Step,
    Sleep(Duration),
    /// The cache is gone.
    End,
}

impl<K, V, S> Sweep<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    fn of(cache: &Cache<K, V, S>) -> Self {
        Self { cache: cache.downgrade(), tending: Tending::default() }
    }

    fn step(&mut self) -> Next {
        let Some(cache) = self.cache.upgrade() else { return Next::End };
        cache.core().tend(&mut self.tending).map_or(Next::Step, Next::Sleep)
    }
}

/// Lets the executor's other tasks run.
async fn give_way() {
    let mut gave_way = false;
    poll_fn(move |context| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<K, V, S> Cache<K, V, S>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    S: BuildHasher,
{
    /// A future that clears expired entries away and drops what was removed, also while nobody uses the cache.
    /// Spawn it on an executor of your choice; `sleep` makes its timer, such as `tokio::time::sleep`.
    ///
    /// Without it every write clears some of what has expired (16 entries at most), and drops some of
    /// what was removed: a cache that is written to needs no sweeper, and one that is idle keeps its memory. An
    /// expired entry is never served either way.
    ///
    /// # How late
    /// With the sweeper polled in time, an entry is cleared away at most 16 ms after its end, plus what `sleep` is
    /// late. Its value is dropped then if nobody is reading; a [guard](crate::Pinned) that is held for longer
    /// keeps the values of that time until the sweeper wakes after its end. An entry in place of one with a
    /// later end, which was removed or evicted, may stay for up to 66 seconds after its own.
    ///
    /// # What it costs
    /// A poll does one small step, of 64 entries at most, and gives way to other tasks between steps. When there
    /// is nothing to do it sleeps until something may expire, for 16 ms at least and a second at most. Several
    /// sweepers of one cache share the work.
    ///
    /// # When it ends
    /// It does not keep the cache alive, and completes at its first wake after the last handle is gone: within a
    /// second. A last handle that is dropped during a step goes with that step.
    ///
    /// # Cancel safety
    /// Safe to drop at any point.
    ///
    /// # Panics
    /// If `sleep` does, or a destructor of what it drops. The cache stays usable.
    ///
    /// ```
    /// use alru::Cache;
    /// use std::time::Duration;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let cache: Cache<u32, String> =
    ///     Cache::builder().max_capacity(100).time_to_live(Duration::from_millis(20)).build();
    /// tokio::spawn(cache.sweeper(tokio::time::sleep));
    /// cache.insert(1, "one".to_owned());
    /// while cache.entry_count() > 0 {
    ///     tokio::time::sleep(Duration::from_millis(5)).await;
    /// }
    /// # });
    /// ```
    pub fn sweeper<M, T>(&self, mut sleep: M) -> impl Future<Output = ()> + use<K, V, S, M, T>
    where
        M: FnMut(Duration) -> T,
        T: Future,
    {
        let mut sweep = Sweep::of(self);
        async move {
            loop {
                match sweep.step() {
                    Next::Step => give_way().await,
                    Next::Sleep(time) => {
                        sleep(time).await;
                    }
                    Next::End => return,
                }
            }
        }
    }

    /// As [`sweeper`](Self::sweeper), for a thread of yours: blocks it until the cache is gone.
    ///
    /// ```
    /// # let cache: alru::Cache<u32, String> = alru::Cache::new(100);
    /// let sweeper = std::thread::spawn(cache.blocking_sweeper());
    /// drop(cache);
    /// sweeper.join().unwrap();
    /// ```
    ///
    /// # Panics
    /// As [`sweeper`](Self::sweeper).
    pub fn blocking_sweeper(&self) -> impl FnOnce() + Send + use<K, V, S>
    where
        S: Send + Sync + 'static,
    {
        let mut sweep = Sweep::of(self);
        move || {
            loop {
                match sweep.step() {
                    Next::Step => {}
                    // Woken sooner by a stray token, it sweeps sooner.
                    Next::Sleep(time) => thread::park(Some(time)),
                    Next::End => return,
                }
            }
        }
    }
}
