//! Calls of a cache with a loader.

use super::Loading;
use crate::DefaultHasher;
use crate::error::LoadError;
use crate::load::bells::Bells;
use crate::load::is_inside_load;
use crate::load::many::look_up;
use crate::load::patience::{Forever, Patience, StealAfter};
use crate::load::shared::{self, Begun, Ended, SharedWaiter};
use crate::raw::bin::Tag;
use crate::raw::flight::Load;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Waker};

enum Stage<K, V>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Start(K),
    /// In a load of its own, or one that it joined, with the key in hand.
    Waiting(SharedWaiter<K, V>, Option<K>),
    Alone(Load<V>),
    Done,
}

/// One call.
pub(crate) struct Call<'a, K, V, E, S, P = Forever>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Patience,
{
    loading: &'a StdArc<Loading<K, V, E, S>>,
    stage: Stage<K, V>,
    /// Not counted yet, and not looked up.
    is_new: bool,
    /// With the loads of callers of the cache beneath.
    patience: P,
    /// Pinned with the struct; there while the call waits for such a load and has a limit.
    timer: Option<P::Timer>,
}

// Nothing else is pinned: loads are boxed, and the key moves.
impl<K, V, E, S, P> Unpin for Call<'_, K, V, E, S, P>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Patience,
    P::Timer: Unpin,
{
}

impl<'a, K, V, E, S> Call<'a, K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(loading: &'a StdArc<Loading<K, V, E, S>>, key: K) -> Self {
        let stage = Stage::Start(key);
        Self { loading, stage, is_new: true, patience: Forever, timer: None }
    }
}

impl<K, V, E, S, P> Future for Call<'_, K, V, E, S, P>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
    P: Patience,
{
    type Output = Result<V, LoadError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: nothing is moved out of `timer`; it is polled through a Pin and dropped in place.
        let this = unsafe { self.get_unchecked_mut() };
        if let Stage::Start(key) = &this.stage {
            // All that a hit costs.
            if this.loading.is_closed() {
                return Poll::Ready(Err(LoadError::Closed));
            }
            let cache = &this.loading.cache;
            let tag = cache.tag(key);
            if let Some(value) = cache.core().read::<false, _>(tag, key) {
                this.stage = Stage::Done;
                return Poll::Ready(Ok(value));
            }
            if let Some(answer) = this.start(tag) {
                return Poll::Ready(answer);
            }
        }
        this.poll_load(cx)
    }
}

impl<K, V, E, S, P> Call<'_, K, V, E, S, P>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
    P: Patience,
{
    /// Finds out about the key; an answer if that is all. At the start, and when a load that was joined was not
    /// for us.
    #[inline(never)]
    fn start(&mut self, tag: Tag) -> Option<Result<V, LoadError<E>>> {
        let Stage::Start(key) = std::mem::replace(&mut self.stage, Stage::Done) else {
            unreachable!("at its start")
        };
        let is_new = std::mem::replace(&mut self.is_new, false);
        let loading = &**self.loading;
        self.go_on(shared::begin(loading.cache.core(), tag, key, loading, is_new))
    }

    fn go_on(&mut self, begun: Begun<K, V>) -> Option<Result<V, LoadError<E>>> {
        self.stage = match begun {
            Begun::Hit(value) => return Some(Ok(value)),
            Begun::Recursive => return Some(Err(LoadError::Recursive)),
            Begun::Closed => return Some(Err(LoadError::Closed)),
            Begun::Leading(waiter) => Stage::Waiting(waiter, None),
            Begun::Joined(waiter, key) => Stage::Waiting(waiter, Some(key)),
            Begun::Alone(load) => Stage::Alone(load),
        };
        None
    }

    fn poll_load(&mut self, cx: &mut Context<'_>) -> Poll<Result<V, LoadError<E>>> {
        loop {
            let ended = match &mut self.stage {
                Stage::Waiting(waiter, _) => match waiter.poll(cx) {
                    Poll::Ready(ended) => ended,
                    // A load of the loader's is driven by whoever waits, and ended by the closer.
                    Poll::Pending if waiter.is_shared() => return Poll::Pending,
                    // This one is a caller's own; the waiter listens, so the closer wakes it if the state was read
                    // too early.
                    Poll::Pending if self.loading.is_cut_off() => Ended::Closed,
                    Poll::Pending => {
                        if self.timer.is_none() {
                            self.timer = self.patience.begin();
                        }
                        let Some(timer) = &mut self.timer else { return Poll::Pending };
                        // SAFETY: pinned with `self`, and dropped in place.
                        std::task::ready!(unsafe { Pin::new_unchecked(timer) }.poll(cx));
                        // That load and no newer one; and not if it has just ended.
                        waiter.take_out();
                        Ended::Nothing
                    }
                },
                Stage::Alone(_) if self.loading.is_cut_off() => Ended::Closed,
                Stage::Alone(load) => std::task::ready!(shared::poll_alone(load, cx)),
                Stage::Start(_) | Stage::Done => panic!("polled after completion"),
            };
            let mut stage = Some(std::mem::replace(&mut self.stage, Stage::Done));
            let mut stage_once = || stage.take().expect("taken once");
            self.timer = None;
            let answer = match ended {
                Ended::Value(value) => Some(Ok(value)),
                Ended::Panicked(message) => Some(Err(LoadError::Panicked(message))),
                Ended::Closed => Some(Err(LoadError::Closed)),
                Ended::Recursive => Some(Err(LoadError::Recursive)),
                Ended::Failed(error) => match error.downcast::<E>() {
                    Ok(error) => Some(Err(LoadError::Failed(error))),
                    Err(_) => self.anew(stage_once()),
                },
                Ended::Nothing => self.anew(stage_once()),
                Ended::Abandoned => {
                    let Stage::Waiting(waiter, Some(key)) = stage_once() else {
                        unreachable!("only a load that was joined is not the loader's")
                    };
                    self.go_on(shared::launch(waiter, &**self.loading, |_| key))
                }
            };
            // Before the return: a destructor that panicked after it would leak what is returned.
            drop(stage);
            if let Some(answer) = answer {
                return Poll::Ready(answer);
            }
        }
    }

    /// The load that was joined was not for us.
    fn anew(&mut self, stage: Stage<K, V>) -> Option<Result<V, LoadError<E>>> {
        let Stage::Waiting(waiter, Some(key)) = stage else {
            unreachable!("loads of one loader have a result, and fail with one type")
        };
        drop(waiter);
        if self.loading.is_closed() {
            return Some(Err(LoadError::Closed));
        }
        let tag = self.loading.cache.tag(&key);
        self.stage = Stage::Start(key);
        self.start(tag)
    }
}

/// One call of [`LoadingCache::get`](crate::LoadingCache::get).
///
/// `P` says how long it waits for a load of somebody else's, by default for ever.
#[must_use = "futures do nothing unless polled"]
pub struct LoadingGet<'a, K, V, E = Infallible, S = DefaultHasher, P = Forever>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Patience,
{
    call: Call<'a, K, V, E, S, P>,
}

impl<'a, K, V, E, S> LoadingGet<'a, K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(loading: &'a StdArc<Loading<K, V, E, S>>, key: K) -> Self {
        Self { call: Call::new(loading, key) }
    }
}

impl<'a, K, V, E, S, P> LoadingGet<'a, K, V, E, S, P>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Patience,
{
    /// Waits for a load that a caller of the [cache beneath](crate::LoadingCache::cache) leads only until `timer`
    /// completes, then goes on without it: the value that is there by then, a newer load, or one of the loader's.
    ///
    /// A load of the loader's needs none of this, as all its callers drive it, and `timer` is not asked for it. A
    /// [`get_with`](crate::Cache::get_with) that is kept alive and not polled again does: nobody else can poll its
    /// future. All else is as said at [`GetWith::steal_after`](crate::GetWith::steal_after).
    ///
    /// ```
    /// use alru::Cache;
    /// use std::{future::{Future, pending}, pin::pin, task::{Context, Waker}, time::Duration};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let doubles = Cache::builder().loader_infallible(|n: u32| async move { 2 * n }).build();
    /// // Polled once, kept, and not polled again.
    /// let mut stuck = pin!(doubles.cache().get_with(4, pending()));
    /// assert!(stuck.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    ///
    /// let sleep = || tokio::time::sleep(Duration::from_millis(10));
    /// assert_eq!(doubles.get(4).steal_after(sleep).await.unwrap(), 8);
    /// # });
    /// ```
    ///
    /// # Panics
    /// The future panics if `timer`, or the future that it makes, does.
    pub fn steal_after<M, T>(self, timer: M) -> LoadingGet<'a, K, V, E, S, StealAfter<M>>
    where
        M: FnMut() -> T,
        T: Future,
    {
        let Call { loading, stage, is_new, .. } = self.call;
        let patience = StealAfter::new(timer);
        LoadingGet { call: Call { loading, stage, is_new, patience, timer: None } }
    }
}

impl<K, V, E, S, P> Future for LoadingGet<'_, K, V, E, S, P>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
    P: Patience,
{
    type Output = Result<V, LoadError<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: structural: the field is pinned when the struct is, and never moved out.
        unsafe { self.map_unchecked_mut(|s| &mut s.call) }.poll(cx)
    }
}

impl<K, V, E, S, P> fmt::Debug for LoadingGet<'_, K, V, E, S, P>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    P: Patience,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.call.stage {
            Stage::Start(_) => "not begun",
            Stage::Waiting(..) => "waiting",
            Stage::Alone(_) => "alone",
            Stage::Done => "done",
        };
        f.debug_struct("LoadingGet").field("stage", &stage).finish_non_exhaustive()
    }
}

/// Many calls at once.
pub(super) struct Calls<'a, K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    loading: &'a StdArc<Loading<K, V, E, S>>,
    /// None once it has been polled.
    keys: Option<Vec<(Tag, K)>>,
    answer: HashMap<K, Result<V, LoadError<E>>>,
    /// None: answered.
    calls: Vec<Option<Asked<'a, K, V, E, S>>>,
    bells: Option<StdArc<Bells>>,
    woken: Vec<usize>,
    open: usize,
    /// Of a load, at the last poll.
    is_inside: bool,
}

struct Asked<'a, K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    key: K,
    waker: Waker,
    call: Call<'a, K, V, E, S>,
}

impl<K, V, E, S> Unpin for Calls<'_, K, V, E, S>
where
    K: Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
}

impl<'a, K, V, E, S> Calls<'a, K, V, E, S>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    pub(super) fn new(loading: &'a StdArc<Loading<K, V, E, S>>, keys: Vec<(Tag, K)>) -> Self {
        Self {
            loading,
            keys: Some(keys),
            answer: HashMap::new(),
            calls: Vec::new(),
            bells: None,
            woken: Vec::new(),
            open: 0,
            is_inside: false,
        }
    }

    fn look(&mut self, keys: Vec<(Tag, K)>) {
        if self.loading.is_closed() {
            let closed = |(_, key)| (key, Err(LoadError::Closed));
            self.answer = keys.into_iter().map(closed).collect();
            return;
        }
        let looked = look_up(self.loading.cache.core(), keys, Ok);
        self.answer = looked.found;
        self.open = looked.missing.len();
        if self.open == 0 {
            return;
        }
        let bells = Bells::new(self.open);
        let call = |(number, (_, key)): (usize, (Tag, K))| {
            let call = Call::new(self.loading, key.clone());
            Some(Asked { key, waker: bells.waker(number), call })
        };
        self.calls = looked.missing.into_iter().enumerate().map(call).collect();
        self.woken = (0..self.open).rev().collect();
        self.bells = Some(bells);
    }

    /// Notes on whose behalf the calls wait that are not polled this time. Those that would wait for themselves are
    /// polled, to be told.
    fn note_waits(&mut self) {
        let is_inside = is_inside_load();
        if std::mem::replace(&mut self.is_inside, is_inside) || is_inside {
            for (number, asked) in self.calls.iter_mut().enumerate() {
                if let Some(Asked { call: Call { stage: Stage::Waiting(load, _), .. }, .. }) = asked
                {
                    if load.note_wait().is_err() {
                        self.woken.push(number);
                    }
                }
            }
        }
    }
}

impl<K, V, E, S> Future for Calls<'_, K, V, E, S>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: BuildHasher + Send + Sync + 'static,
{
    type Output = HashMap<K, Result<V, LoadError<E>>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Some(keys) = this.keys.take() {
            this.look(keys);
        } else {
            assert!(this.open > 0, "polled after completion");
        }
        this.note_waits();
        if let Some(bells) = &this.bells {
            bells.collect(cx.waker(), &mut this.woken);
        }
        while let Some(number) = this.woken.pop() {
            let Some(asked) = &mut this.calls[number] else { continue };
            let mut cx = Context::from_waker(&asked.waker);
            if let Poll::Ready(answer) = Pin::new(&mut asked.call).poll(&mut cx) {
                if let Some(Asked { key, .. }) = this.calls[number].take() {
                    this.answer.insert(key, answer);
                    this.open -= 1;
                }
            }
        }
        if this.open > 0 { Poll::Pending } else { Poll::Ready(std::mem::take(&mut this.answer)) }
    }
}
