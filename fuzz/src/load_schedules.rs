//! Schedules of loads, one thread: calls that are polled, dropped, woken and moved in any order, loaders that end
//! in any way at any time, writes in between; against a sequential model that says exactly
//!
//! - what each poll answers: a value and whose, an error, a panic, or nothing yet;
//! - which loaders have begun, and which futures are alive;
//! - hits, misses, loads and failures;
//! - what is there under each key;
//! - who has to have been woken: a call that could go on, by taking the lead or with a result.
//!
//! There is room for all keys and slots for all operations, so nothing is evicted or refused: `cache_ops` is
//! about that.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, DefaultHasher, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alru::{AlruCache, Cache, LoadError, ManualTime, Pinned};
use arbitrary::{Arbitrary, Unstructured};

use crate::counted::{Tally, Value};
use crate::task::Flag;
use model::{Caller, Expected, Model};

mod model;

/// Keys in play.
const KEYS: u8 = 3;
/// Calls at one time, at most.
const MAX_CALLS: usize = 8;
/// Operations of one run, at most.
const MAX_OPS: usize = 300;

/// One run.
#[derive(Clone, Debug)]
pub struct Input {
    /// The cache.
    pub config: Config,
    /// What happens.
    pub ops: Vec<Op>,
}

impl<'a> Arbitrary<'a> for Input {
    /// The derived one flips a coin after each operation; this one goes on while there are bytes.
    fn arbitrary(bytes: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let config = bytes.arbitrary()?;
        let mut ops = Vec::new();
        while !bytes.is_empty() && ops.len() < MAX_OPS {
            ops.push(bytes.arbitrary()?);
        }
        Ok(Self { config, ops })
    }
}

/// How the cache is built.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Config {
    /// An `AlruCache`, whose loads are driven by all their callers; else a `Cache`.
    pub shared: bool,
    /// Room for entries; without it every call loads for itself.
    pub room: bool,
    /// All keys hash alike (a `Cache` only).
    pub collide: bool,
    /// TTL in milliseconds.
    pub ttl_ms: Option<u8>,
}

/// An operation. Keys and indices are taken modulo what there is.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    /// Begins a call, and polls it unless `lazy`. `verdict`: what its loader is to do, if it runs one.
    Call {
        key: u8,
        api: Api,
        verdict: Verdict,
        lazy: bool,
    },
    /// Polls a call, with a new waker if `moved`.
    Poll {
        call: u8,
        moved: bool,
    },
    /// Polls all calls that were woken, once.
    PollWoken,
    Drop {
        call: u8,
    },
    /// Lets the loader that a call waits for end.
    Let {
        call: u8,
        verdict: Verdict,
    },
    /// Wakes whoever polled the loader that a call waits for, for nothing.
    Wake {
        call: u8,
    },
    /// A call that steals has waited long enough.
    LosePatience {
        call: u8,
    },
    Get {
        key: u8,
    },
    Insert {
        key: u8,
    },
    Remove {
        key: u8,
    },
    Invalidate {
        key: u8,
    },
    InvalidateAll,
    Advance {
        ms: u8,
    },
    RunPendingTasks,
    Pin,
    Unpin,
    Close {
        wait: bool,
    },
}

/// How a value of a `Cache` is asked for.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `get_with`.
    Get,
    /// `get_with`, which takes the load out after some time.
    Steal,
    /// `try_get_with` and one error type.
    Try,
    /// `try_get_with` and another.
    TryOther,
}

/// What a loader does when it is polled next.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Verdict {
    Wait,
    /// It wakes itself in the middle of its next poll, and waits.
    Yield,
    Value,
    /// `get_with` cannot fail: a value.
    Fail,
    Panic,
}

/// One run of a loader, or the future that would be one.
struct Run {
    verdict: Mutex<Verdict>,
    waker: Mutex<Option<Waker>>,
    begun: AtomicBool,
    gone: AtomicBool,
}

/// The error of a run; `OTHER` makes a second type of it.
#[derive(Debug)]
struct Failure<const OTHER: bool>(usize);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    fn new(verdict: Verdict) -> Arc<Self> {
        Arc::new(Self {
            verdict: Mutex::new(verdict),
            waker: Mutex::default(),
            begun: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        })
    }

    fn verdict(&self) -> Verdict {
        *lock(&self.verdict)
    }

    fn wake(&self) {
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The loader itself; `id` is its value, its error and the message of its panic.
    fn load(
        self: Arc<Self>,
        id: usize,
        tally: Tally,
    ) -> impl Future<Output = Result<Value, usize>> + Send {
        struct Gone(Arc<Run>);
        impl Drop for Gone {
            fn drop(&mut self) {
                assert!(!self.0.gone.swap(true, Relaxed), "a loader dropped twice");
            }
        }
        let gone = Gone(self);
        async move {
            let run = &gone.0;
            run.begun.store(true, Relaxed);
            let verdict = poll_fn(|cx| match run.verdict() {
                Verdict::Wait => {
                    *lock(&run.waker) = Some(cx.waker().clone());
                    Poll::Pending
                }
                Verdict::Yield => {
                    *lock(&run.waker) = Some(cx.waker().clone());
                    *lock(&run.verdict) = Verdict::Wait;
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                verdict => Poll::Ready(verdict),
            });
            match verdict.await {
                Verdict::Value | Verdict::Wait | Verdict::Yield => Ok(Value::new(id, &tally)),
                Verdict::Fail => Err(id),
                // No hook: it is none of a fuzzer's business.
                Verdict::Panic => resume_unwind(Box::new(format!("run {id}"))),
            }
        }
    }
}

/// All runs, and what the next one is to do.
#[derive(Clone)]
struct Runs(Arc<Mutex<(Vec<Arc<Run>>, Verdict)>>);

impl Runs {
    fn begin(&self, tally: &Tally) -> impl Future<Output = Result<Value, usize>> + Send + use<> {
        let mut runs = lock(&self.0);
        let run = Run::new(runs.1);
        runs.0.push(run.clone());
        let id = runs.0.len() - 1;
        run.load(id, tally.clone())
    }

    fn set_next(&self, verdict: Verdict) {
        lock(&self.0).1 = verdict;
    }

    fn run(&self, id: usize) -> Arc<Run> {
        lock(&self.0).0[id].clone()
    }

    fn count(&self) -> usize {
        lock(&self.0).0.len()
    }

    /// What run `id` is to do, be it the one that begins next.
    fn verdict(&self, id: usize) -> Verdict {
        let runs = lock(&self.0);
        runs.0.get(id).map_or(runs.1, |run| run.verdict())
    }
}

/// What ends the wait of a call that steals.
#[derive(Default)]
struct Patience {
    lost: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Patience {
    fn lose(&self) {
        self.lost.store(true, Relaxed);
        let waker = lock(&self.waker).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn timer(self: &Arc<Self>) -> impl Future<Output = ()> + use<> {
        let patience = self.clone();
        poll_fn(move |cx| {
            if patience.lost.load(Relaxed) {
                return Poll::Ready(());
            }
            *lock(&patience.waker) = Some(cx.waker().clone());
            Poll::Pending
        })
    }
}

/// A fixed hash function, so that a run can be repeated.
#[derive(Clone, Copy)]
struct Hash(bool);

impl BuildHasher for Hash {
    type Hasher = HashOrNot;

    fn build_hasher(&self) -> HashOrNot {
        HashOrNot(self.0, DefaultHasher::new())
    }
}

struct HashOrNot(bool, DefaultHasher);

impl Hasher for HashOrNot {
    fn write(&mut self, bytes: &[u8]) {
        self.1.write(bytes);
    }

    fn finish(&self) -> u64 {
        if self.0 { 42 } else { self.1.finish() }
    }
}

type PlainCache = Cache<u8, Value, Hash>;
type SharedCache = AlruCache<u8, Value, Failure<false>>;

/// The cache under test.
enum Subject {
    Plain(PlainCache),
    Shared(SharedCache),
}

/// What a call answers.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Value(usize),
    Failed(usize),
    /// Told of the panic of a run, by an error or by a panic of its own.
    Told(String),
    Closed,
    /// All loads that a close waits for have ended.
    Finished,
}

/// A call that has not answered yet, or a close that waits.
struct Call<'c> {
    future: Pin<Box<dyn Future<Output = Answer> + 'c>>,
    flag: Arc<Flag>,
    patience: Arc<Patience>,
    model: Caller,
}

struct World<'c> {
    // Dropped in this order.
    calls: Vec<Call<'c>>,
    pins: Vec<Pinned<'c, u8, Value, Hash>>,
    subject: &'c Subject,
    runs: Runs,
    time: ManualTime,
    tally: Tally,
    model: Model,
    /// Values that were inserted; their ids follow those of all runs there can be.
    inserted: usize,
}

std::thread_local! {
    /// The model says that the poll under way panics.
    static PANIC_EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// A fuzzer ends the process in the hook of a panic, caught or not.
fn spare_expected_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !PANIC_EXPECTED.get() {
                hook(info);
            }
        }));
    });
}

/// Runs `input`; panics where the cache departs from the model. Answers the hits, so that no part of the run can
/// be optimized away.
pub fn run(input: &Input) -> u64 {
    spare_expected_panics();
    let (time, tally) = (ManualTime::new(), Tally::default());
    let runs = Runs(Arc::new(Mutex::new((Vec::new(), Verdict::Wait))));
    let subject = build(&input.config, &time, &tally, &runs);
    let model = Model::new(&input.config);
    let mut world = World {
        calls: Vec::new(),
        pins: Vec::new(),
        subject: &subject,
        runs: runs.clone(),
        time,
        tally: tally.clone(),
        model,
        inserted: MAX_OPS,
    };
    for op in &input.ops {
        world.step(op);
        world.check();
    }
    world.finish();
    let hits = world.model.hits;
    drop(world);
    drop(subject);
    assert_eq!(tally.alive(), 0, "alive after the last handle");
    for id in 0..runs.count() {
        assert!(runs.run(id).gone.load(Relaxed), "the future of run {id} is left");
    }
    hits
}

fn build(config: &Config, time: &ManualTime, tally: &Tally, runs: &Runs) -> Subject {
    let ttl = config.ttl_ms.map(|ms| Duration::from_millis(ms.into()));
    if config.shared {
        let (tally, runs) = (tally.clone(), runs.clone());
        let builder = AlruCache::builder(move |_| {
            let load = runs.begin(&tally);
            async move { load.await.map_err(Failure::<false>) }
        });
        // A bounded one commits more memory than all the rest of a run takes time.
        let builder = if config.room { builder.unbounded() } else { builder.maxsize(0) };
        let builder = builder.time_source(time.clone());
        Subject::Shared(match ttl {
            Some(ttl) => builder.ttl(ttl).build(),
            None => builder.build(),
        })
    } else {
        let builder = Cache::builder()
            .max_capacity(if config.room { 16 } else { 0 })
            .reserve(4 * MAX_OPS)
            .time_source(time.clone());
        let builder = match ttl {
            Some(ttl) => builder.time_to_live(ttl),
            None => builder,
        };
        Subject::Plain(builder.build_with_hasher(Hash(config.collide)))
    }
}

impl<'c> World<'c> {
    fn step(&mut self, op: &Op) {
        match *op {
            Op::Call { key, api, verdict, lazy } => self.call(key % KEYS, api, verdict, lazy),
            Op::Poll { call, moved } => {
                if let Some(i) = self.index(call) {
                    if moved {
                        self.calls[i].flag = Arc::default();
                    }
                    self.poll(i);
                }
            }
            Op::PollWoken => self.poll_woken(),
            Op::Drop { call } => {
                if let Some(i) = self.index(call) {
                    let call = self.calls.swap_remove(i);
                    self.model.drop_call(call.model);
                    drop(call.future);
                }
            }
            Op::Let { call, verdict } => {
                if let Some(id) = self.index(call).and_then(|i| self.run_of(i)) {
                    let run = self.runs.run(id);
                    *lock(&run.verdict) = self.possible(self.model.api_of(id), verdict);
                    run.wake();
                }
            }
            Op::Wake { call } => {
                if let Some(id) = self.index(call).and_then(|i| self.run_of(i)) {
                    let was_waiting = lock(&self.runs.run(id).waker).is_some();
                    self.runs.run(id).wake();
                    if was_waiting {
                        self.check_woken_by(id);
                    }
                }
            }
            Op::LosePatience { call } => {
                if let Some(i) = self.index(call) {
                    self.calls[i].model.impatient = true;
                    self.calls[i].patience.lose();
                }
            }
            Op::Get { key } => {
                if let Subject::Plain(cache) = self.subject {
                    let found = cache.get(&(key % KEYS)).map(|value| value.id());
                    assert_eq!(found, self.model.get(key % KEYS));
                }
            }
            Op::Insert { key } => {
                if let Subject::Plain(cache) = self.subject {
                    self.inserted += 1;
                    cache.insert(key % KEYS, Value::new(self.inserted, &self.tally));
                    self.model.insert(key % KEYS, self.inserted);
                }
            }
            Op::Remove { key } => {
                if let Subject::Plain(cache) = self.subject {
                    let removed = cache.remove(&(key % KEYS)).map(|value| value.id());
                    assert_eq!(removed, self.model.value(key % KEYS));
                    self.model.invalidate(key % KEYS);
                }
            }
            Op::Invalidate { key } => {
                let key = key % KEYS;
                let was = match self.subject {
                    Subject::Plain(cache) => cache.invalidate(&key),
                    Subject::Shared(cache) => cache.cache_invalidate(&key),
                };
                // Of what has expired, either answer will do.
                if !self.model.is_expired(key) {
                    assert_eq!(was, self.model.contains(key));
                }
                self.model.invalidate(key);
            }
            Op::InvalidateAll => {
                match self.subject {
                    Subject::Plain(cache) => cache.invalidate_all(),
                    Subject::Shared(cache) => cache.cache_clear(),
                }
                self.model.invalidate_all();
            }
            Op::Advance { ms } => {
                self.time.advance(Duration::from_millis(ms.into()));
                self.model.now += Duration::from_millis(ms.into());
            }
            Op::RunPendingTasks => {
                if let Subject::Plain(cache) = self.subject {
                    cache.run_pending_tasks();
                }
            }
            Op::Pin => {
                if let Subject::Plain(cache) = self.subject {
                    if self.pins.len() < 2 {
                        self.pins.push(cache.pin());
                    }
                }
            }
            Op::Unpin => drop(self.pins.pop()),
            Op::Close { wait } => self.close(wait),
        }
    }

    fn index(&self, call: u8) -> Option<usize> {
        usize::from(call).checked_rem(self.calls.len())
    }

    /// `get_with` cannot fail.
    fn possible(&self, api: Api, verdict: Verdict) -> Verdict {
        match (verdict, api) {
            (Verdict::Fail, Api::Get | Api::Steal) if !self.model.shared => Verdict::Value,
            (verdict, _) => verdict,
        }
    }

    /// The run that the `i`th call waits for, or leads.
    fn run_of(&self, i: usize) -> Option<usize> {
        self.model.run_of(&self.calls[i].model)
    }

    fn call(&mut self, key: u8, api: Api, verdict: Verdict, lazy: bool) {
        if self.calls.len() == MAX_CALLS {
            return;
        }
        let verdict = self.possible(api, verdict);
        let patience = Arc::<Patience>::default();
        let (future, model) = match self.subject {
            Subject::Plain(cache) => {
                self.runs.set_next(verdict);
                let load = self.runs.begin(&self.tally);
                let model = self.model.caller(key, api, Some(self.runs.count() - 1));
                (plain_call(cache, key, api, load, &patience), model)
            }
            Subject::Shared(cache) => {
                let call: Pin<Box<dyn Future<Output = Answer>>> = Box::pin(async move {
                    match cache.call(key).await {
                        Ok(value) => Answer::Value(value.id()),
                        Err(LoadError::Failed(error)) => Answer::Failed(error.0),
                        Err(LoadError::Panicked(message)) => Answer::Told(message.to_string()),
                        Err(LoadError::Closed) => Answer::Closed,
                        Err(LoadError::Recursive) => panic!("there is no recursion here"),
                    }
                });
                (call, self.model.caller(key, Api::Try, None))
            }
        };
        self.calls.push(Call { future, flag: Arc::default(), patience, model });
        if !lazy {
            self.runs.set_next(verdict);
            self.poll(self.calls.len() - 1);
        }
    }

    /// Polls the `i`th call and checks what it says, and who is awake afterwards.
    fn poll(&mut self, i: usize) {
        let yields = |id: &usize| self.runs.verdict(*id) == Verdict::Yield;
        // One that begins in this poll included.
        let yielding: Vec<usize> = (0..=self.runs.count()).filter(yields).collect();
        self.poll_call(i);
        for id in yielding.into_iter().filter(|id| *id < self.runs.count()) {
            if self.runs.verdict(id) == Verdict::Wait {
                self.check_woken_by(id);
            }
        }
    }

    fn poll_call(&mut self, i: usize) {
        let runs = &self.runs;
        let call = &mut self.calls[i];
        let expected = self.model.poll(&mut call.model, |run| runs.verdict(run));
        call.flag.take();
        let waker = Waker::from(call.flag.clone());
        PANIC_EXPECTED.set(expected.panics());
        let polled = catch_unwind(AssertUnwindSafe(|| {
            call.future.as_mut().poll(&mut Context::from_waker(&waker))
        }));
        PANIC_EXPECTED.set(false);
        let answer = match polled {
            Ok(Poll::Pending) => None,
            Ok(Poll::Ready(answer)) => Some(Ok(answer)),
            Err(panic) => match panic.downcast::<String>() {
                Ok(message) => Some(Err(*message)),
                Err(panic) => resume_unwind(panic),
            },
        };
        match (&expected, &answer) {
            (Expected::Pending, None) => return,
            (Expected::Value(id), Some(Ok(Answer::Value(of)))) if id == of => {}
            (Expected::Failed(run), Some(Ok(Answer::Failed(of)))) if run == of => {}
            (Expected::Panic(run), Some(Err(message))) if *message == format!("run {run}") => {}
            (Expected::Told(run), Some(Ok(Answer::Told(message))))
                if *message == format!("run {run}") => {}
            (Expected::Closed, Some(Ok(Answer::Closed))) => {}
            (Expected::Finished, Some(Ok(Answer::Finished))) => {}
            _ => panic!("a poll answers {answer:?}, the model {expected:?}"),
        }
        drop(self.calls.swap_remove(i).future);
    }

    /// Polls each call that was woken, once.
    fn poll_woken(&mut self) {
        let mut i = self.calls.len();
        while i > 0 {
            i -= 1;
            // What comes into a place that became free was polled already.
            if i < self.calls.len() && self.calls[i].flag.is_set() {
                self.poll(i);
            }
        }
    }

    fn close(&mut self, wait: bool) {
        let Subject::Shared(cache) = self.subject else { return };
        if !wait {
            assert!(
                pin!(cache.cache_close(false))
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_ready()
            );
            self.model.close();
            return;
        }
        if self.calls.len() < MAX_CALLS {
            let close = cache.cache_close(true);
            let model = self.model.closer();
            let future = Box::pin(async move {
                close.await;
                Answer::Finished
            });
            self.calls.push(Call { future, flag: Arc::default(), patience: Arc::default(), model });
        }
    }

    /// A wake of a run reaches everybody who waits for it and drives it.
    fn check_woken_by(&self, run: usize) {
        for call in &self.calls {
            if self.model.drives(&call.model, run) {
                assert!(call.flag.is_set(), "a wake of run {run} was lost");
            }
        }
    }

    fn check(&self) {
        let model = &self.model;
        for key in 0..KEYS {
            let contains = match self.subject {
                Subject::Plain(cache) => {
                    let found = cache.peek(&key).map(|value| value.id());
                    assert_eq!(found, model.value(key), "the value of key {key}");
                    cache.contains_key(&key)
                }
                Subject::Shared(cache) => cache.cache_contains(&key),
            };
            assert_eq!(contains, model.contains(key), "an entry of key {key}");
        }
        let counts = (model.hits, model.misses);
        match self.subject {
            Subject::Plain(cache) => {
                let stats = cache.stats();
                assert_eq!((stats.hits, stats.misses), counts, "hits and misses");
                assert_eq!((stats.loads, stats.load_failures), (model.loads, model.failures));
                assert_eq!(stats.evictions, 0);
            }
            Subject::Shared(cache) => {
                let (info, parameters) = (cache.cache_info(), cache.cache_parameters());
                assert_eq!((info.hits, info.misses), counts, "hits and misses");
                assert_eq!((parameters.tasks, parameters.closed), (model.open(), model.closed));
            }
        }
        assert_eq!(self.runs.count(), model.runs.len());
        for (id, expected) in model.runs.iter().enumerate() {
            let run = self.runs.run(id);
            let is = (run.begun.load(Relaxed), run.gone.load(Relaxed));
            assert_eq!(is, (expected.begun, expected.gone), "begun and gone of run {id}");
        }
        for call in &self.calls {
            if model.can_go_on(&call.model, |run| self.runs.verdict(run)) {
                assert!(call.flag.is_set(), "asleep, and could go on: {:?}", call.model);
            }
        }
    }

    /// Lets all loads end, polling only who is woken.
    fn finish(&mut self) {
        for i in 0..self.calls.len() {
            // A call that was never polled is nobody's to wake.
            if !self.calls[i].model.registered {
                Waker::from(self.calls[i].flag.clone()).wake();
            }
        }
        for id in 0..self.runs.count() {
            let run = self.runs.run(id);
            if matches!(run.verdict(), Verdict::Wait | Verdict::Yield) {
                *lock(&run.verdict) = Verdict::Value;
                run.wake();
            }
        }
        self.runs.set_next(Verdict::Value);
        while let Some(i) = self.calls.iter().position(|call| call.flag.is_set()) {
            self.poll(i);
            self.check();
        }
        assert_eq!(self.calls.len(), 0, "calls that nobody wakes");
    }
}

fn plain_call<'c>(
    cache: &'c PlainCache,
    key: u8,
    api: Api,
    load: impl Future<Output = Result<Value, usize>> + 'c,
    patience: &Arc<Patience>,
) -> Pin<Box<dyn Future<Output = Answer> + 'c>> {
    let patience = patience.clone();
    match api {
        Api::Get => Box::pin(async move {
            let load = async { load.await.expect("get_with has no errors") };
            Answer::Value(cache.get_with(key, load).await.id())
        }),
        Api::Steal => Box::pin(async move {
            let load = async { load.await.expect("get_with has no errors") };
            let call = cache.get_with(key, load).steal_after(move || patience.timer());
            Answer::Value(call.await.id())
        }),
        Api::Try => Box::pin(async move {
            let load = async { load.await.map_err(Failure::<false>) };
            match cache.try_get_with(key, load).await {
                Ok(value) => Answer::Value(value.id()),
                Err(error) => Answer::Failed(error.0),
            }
        }),
        Api::TryOther => Box::pin(async move {
            let load = async { load.await.map_err(Failure::<true>) };
            match cache.try_get_with(key, load).await {
                Ok(value) => Answer::Value(value.id()),
                Err(error) => Answer::Failed(error.0),
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed sample of what the fuzzer does at length.
    #[test]
    fn random_schedules_agree_with_the_model() {
        let mut hits = 0;
        for seed in 0..3_000_u64 {
            let bytes = crate::random_bytes(seed << 32, 32 + (seed as usize * 37) % 1_000);
            let input = Input::arbitrary(&mut Unstructured::new(&bytes)).expect("enough bytes");
            let outcome = catch_unwind(|| run(&input));
            hits += outcome.unwrap_or_else(|_| panic!("seed {seed}: {input:?}"));
        }
        assert!(hits > 1_000, "{hits}: the runs share nearly nothing");
    }
}
