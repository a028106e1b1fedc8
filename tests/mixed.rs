//! All kinds of callers of a few keys at once, in random order: polled, moved on by wakes alone at the end, dropped,
//! and told of errors and panics. Nobody waits in vain.

mod common;

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Poll, Waker};

use alru::{Cache, LoadingCache};
use common::{Counted, Flag, Random, Tally};

type Value = Counted<u64>;
type Loads = LoadingCache<u64, Value, String>;

#[derive(Clone, Copy)]
enum Verdict {
    Value,
    Fail,
    Panic,
}

/// What a load or a timer waits for.
#[derive(Clone, Default)]
struct Gate(Arc<Mutex<(Option<Verdict>, Vec<Waker>)>>);

impl Gate {
    fn open(&self, verdict: Verdict) {
        let wakers = {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.0.get_or_insert(verdict);
            std::mem::take(&mut state.1)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    async fn pass(self) -> Verdict {
        poll_fn(|cx| {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(verdict) = state.0 {
                return Poll::Ready(verdict);
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// The gates of all loads; once `is_over`, there are no more.
#[derive(Clone, Default)]
struct Gates {
    gates: Arc<Mutex<Vec<Gate>>>,
    is_over: Arc<AtomicBool>,
    tally: Tally,
}

impl Gates {
    /// The work of a load.
    async fn work(self, key: u64) -> Result<Value, String> {
        let gate = Gate::default();
        if self.is_over.load(SeqCst) {
            gate.open(Verdict::Value);
        }
        self.gates.lock().expect("no panic inside").push(gate.clone());
        match gate.pass().await {
            Verdict::Value => Ok(Counted::new(key, &self.tally)),
            Verdict::Fail => Err(String::from("no value")),
            Verdict::Panic => panic!("no value at all"),
        }
    }

    /// The same for who cannot fail.
    async fn value(self, key: u64) -> Value {
        self.work(key).await.unwrap_or_else(|error| panic!("{error}"))
    }

    fn len(&self) -> usize {
        self.gates.lock().expect("no panic inside").len()
    }

    fn open(&self, which: usize, verdict: Verdict) {
        let gate = self.gates.lock().expect("no panic inside")[which].clone();
        gate.open(verdict);
    }
}

type Call<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

const KEYS: u64 = 4;
const KINDS: u64 = 10;

/// A call of some kind. Values are those of their keys.
fn call<'a>(kind: u64, key: u64, cache: &'a Loads, gates: &Gates) -> Call<'a> {
    let (gates, beneath) = (gates.clone(), cache.cache());
    let is_of = move |value: &Value| assert_eq!(value.inner, key);
    let are_of = |values: HashMap<u64, Value>| {
        values.into_iter().for_each(|(key, value)| assert_eq!(value.inner, key));
    };
    let bulk = move |gates: Gates| {
        move |missing: Vec<u64>| {
            let gates = gates.clone();
            async move {
                // One key is left out, if there are several.
                let (last, others) = missing.split_last().expect("never empty");
                let mut pairs = Vec::new();
                for &key in others {
                    pairs.push((key, gates.clone().work(key).await?));
                }
                if others.is_empty() {
                    pairs.push((*last, gates.work(*last).await?));
                }
                Ok::<_, String>(pairs)
            }
        }
    };
    match kind {
        0 => Box::pin(async move { drop(cache.get(key).await.map(|v| is_of(&v))) }),
        1 => Box::pin(async move {
            let timer = || gates.clone().value(key);
            drop(cache.get(key).steal_after(timer).await.map(|v| is_of(&v)));
        }),
        2 => Box::pin(async move { is_of(&beneath.get_with(key, gates.value(key)).await) }),
        3 => Box::pin(async move {
            let timer = || gates.clone().value(key);
            is_of(&beneath.get_with(key, gates.clone().value(key)).steal_after(timer).await);
        }),
        4 => Box::pin(async move {
            drop(beneath.try_get_with(key, gates.work(key)).await.map(|v| is_of(&v)));
        }),
        5 => Box::pin(async move {
            let load = async { gates.work(key).await.map_err(|error| error.len()) };
            drop(beneath.try_get_with(key, load).await.map(|v| is_of(&v)));
        }),
        6 => Box::pin(async move {
            let keys = [key, (key + 1) % KEYS, (key + 2) % KEYS];
            drop(beneath.try_get_many(keys, bulk(gates)).await.map(are_of));
        }),
        7 => Box::pin(async move {
            for (key, value) in cache.get_many([key, (key + 1) % KEYS]).await {
                drop(value.map(|value| assert_eq!(value.inner, key)));
            }
        }),
        8 => Box::pin(async move {
            let upsert = beneath.entry(key).and_upsert_with_async(|_| gates.clone().value(key));
            upsert.await.into_value().iter().for_each(is_of);
        }),
        _ => Box::pin(cache.close(true)),
    }
}

struct Caller<'a> {
    flag: Arc<Flag>,
    call: Option<Call<'a>>,
}

impl Caller<'_> {
    /// One poll. A call that ended or panicked is dropped.
    fn poll(&mut self) {
        let Some(call) = &mut self.call else { return };
        let polled = catch_unwind(AssertUnwindSafe(|| self.flag.poll(call.as_mut())));
        if !matches!(polled, Ok(Poll::Pending)) {
            self.call = None;
        }
    }
}

fn schedule(seed: u64, capacity: u64) {
    let (mut random, gates) = (Random(seed), Gates::default());
    let cache: &OnceLock<Loads> = Box::leak(Box::default());
    let loads = gates.clone();
    let builder = Cache::builder().max_capacity(capacity).reserve(64).loader(move |key: u64| {
        let gates = loads.clone();
        async move {
            // Some ask for others, downwards: there are no circles.
            if key % 2 == 1 && !gates.is_over.load(SeqCst) {
                let cache = cache.get().expect("built");
                cache.get(key - 1).await.map_err(|error| error.to_string())?;
            }
            gates.work(key).await
        }
    });
    let cache = cache.get_or_init(|| builder.build());
    let closes = random.below(4) == 0;
    let mut callers: Vec<Caller<'_>> = Vec::new();
    for _ in 0..150 {
        let (one, key) = (random.below(callers.len().max(1) as u64) as usize, random.below(KEYS));
        match random.below(12) {
            0..=3 if callers.len() < 16 => {
                let kind = random.below(if closes { KINDS } else { KINDS - 1 });
                let call = catch_unwind(AssertUnwindSafe(|| call(kind, key, cache, &gates)));
                let flag = Flag::new();
                flag.raise();
                callers.push(Caller { flag, call: call.ok() });
            }
            4..=7 if !callers.is_empty() => callers[one].poll(),
            8 if !callers.is_empty() => drop(callers.swap_remove(one)),
            9 if gates.len() > 0 => {
                let which = random.below(gates.len() as u64) as usize;
                let verdicts = [Verdict::Value, Verdict::Value, Verdict::Fail, Verdict::Panic];
                gates.open(which, verdicts[random.below(4) as usize]);
            }
            10 => drop(cache.cache().invalidate(&key)),
            11 if random.below(4) == 0 => {
                cache.cache().insert(key, Counted::new(key, &gates.tally));
            }
            _ => {}
        }
    }
    // From now on all loads end, and only who was woken is polled.
    gates.is_over.store(true, SeqCst);
    (0..gates.len()).for_each(|which| gates.open(which, Verdict::Value));
    for _ in 0..1_000 {
        let woken: Vec<usize> = (0..callers.len()).filter(|&c| callers[c].flag.take()).collect();
        if woken.is_empty() {
            break;
        }
        woken.into_iter().for_each(|c| callers[c].poll());
    }
    let asleep = callers.iter().filter(|c| c.call.is_some()).count();
    assert_eq!(asleep, 0, "seed {seed}, capacity {capacity}: {asleep} callers sleep on");
    assert_eq!(cache.loads(), 0, "seed {seed}, capacity {capacity}");
    let stats = cache.cache().stats();
    assert!(stats.load_failures <= stats.loads, "seed {seed}, capacity {capacity}: {stats}");
    cache.cache().invalidate_all();
    let gone = common::eventually(
        || cache.cache().run_pending_tasks(),
        || gates.tally.alive() == 0 && cache.cache().entry_count() == 0,
    );
    assert!(gone, "seed {seed}, capacity {capacity}: {} values live on", gates.tally.alive());
}

#[test]
fn all_kinds_of_callers_in_any_order_leave_nobody_waiting_and_nothing_behind() {
    let seeds = if cfg!(miri) { 2 } else { 300 };
    for seed in 0..seeds {
        for capacity in [16, 2, 1, 0] {
            schedule(seed, capacity);
        }
    }
}
