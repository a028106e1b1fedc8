//! `Cache`, one thread, every operation in every order, loads left in flight among them.
//!
//! What holds whatever the input:
//! - a hit is the latest value written under its key, neither removed nor expired;
//! - what the model has and the cache has not was evicted or refused, and the stats say so;
//! - `get`, `peek`, `contains_key` and a pin agree; no more entries than the capacity;
//! - a load that ends stores its value only if nothing was written or removed under its key since
//!   it began, and who called after that never gets it;
//! - an error reaches the callers of its run and no others;
//! - one load a key, unless pending entries crowd the cache;
//! - every load that can go on is woken;
//! - keys and values are dropped once, all of them by the time the last handle is gone.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use alru::{Cache, EvictionPolicy, ManualTime};
use arbitrary::{Arbitrary, Unstructured};

use crate::counted::{Key, Tally, Value};
use crate::task::{Flag, Gate};

/// Loads in flight at one time, at most.
const MAX_CALLS: usize = 12;
/// Operations of one run, at most.
const MAX_OPS: usize = 400;

/// One run.
#[derive(Clone, Debug)]
pub struct Input {
    /// The cache.
    pub config: Config,
    /// What is done to it.
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
#[derive(Arbitrary, Clone, Debug)]
pub struct Config {
    /// Capacity, less one and modulo 64.
    pub capacity: u8,
    /// Keys in play, less one: modulo 8 below 128, modulo 128 above.
    pub keys: u8,
    /// Plain CLOCK instead of the default policy.
    pub plain_clock: bool,
    /// All keys hash alike.
    pub collide: bool,
    /// Slots for retired values; the default is so large that building it is most of a run.
    pub reserve: u8,
    /// TTL.
    pub ttl: Ttl,
    /// Jitter in milliseconds, if there is a TTL.
    pub jitter_ms: Option<u8>,
}

/// A TTL.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Ttl {
    /// Entries do not expire.
    None,
    /// Entries expire at once.
    Zero,
    /// Milliseconds.
    Millis(u8),
    /// The longest there is.
    Max,
}

/// An operation. Keys and indices are taken modulo what there is.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Op {
    Get {
        key: u8,
    },
    Peek {
        key: u8,
    },
    Contains {
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
    /// Reads `read` through a pin, does `then` while the pin is held, and looks at it again.
    Pin {
        read: u8,
        then: UnderPin,
    },
    /// Calls `get_with` or `try_get_with` and polls it once.
    Call {
        key: u8,
        api: Api,
        outcome: Outcome,
        ready: bool,
    },
    /// Polls a call, with a new waker if `rewake`.
    Poll {
        call: u8,
        rewake: bool,
    },
    /// Lets the loader of a call go on, and wakes who waits for it.
    Open {
        call: u8,
    },
    /// Drops a call where it stands.
    Cancel {
        call: u8,
    },
}

/// A write while a pin is held.
#[derive(Arbitrary, Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum UnderPin {
    Insert { key: u8 },
    Remove { key: u8 },
    InvalidateAll,
    Read { key: u8 },
}

/// How a value is asked for.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `get_with`.
    Get,
    /// `try_get_with` and one error type.
    Try,
    /// `try_get_with` and another.
    TryOther,
}

/// How a load ends; `get_with` has one way only.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Outcome {
    Ok,
    Err,
}

/// The error of one run of a loader; `OTHER` makes a second type of it.
#[derive(Debug)]
struct Failure<const OTHER: bool>(usize);

/// A fixed hash function, so that a run can be repeated.
#[derive(Clone, Default)]
struct Hash {
    collide: bool,
}

impl BuildHasher for Hash {
    type Hasher = Hash1;

    fn build_hasher(&self) -> Hash1 {
        Hash1 {
            collide: self.collide,
            inner: BuildHasherDefault::<DefaultHasher>::default().build_hasher(),
        }
    }
}

struct Hash1 {
    collide: bool,
    inner: DefaultHasher,
}

impl Hasher for Hash1 {
    fn write(&mut self, bytes: &[u8]) {
        self.inner.write(bytes);
    }

    fn finish(&self) -> u64 {
        if self.collide { 42 } else { self.inner.finish() }
    }
}

type TestCache = Cache<Key, Value, Hash>;

/// The past of one value, or of the load that is to give it. Its id is its place in the list.
struct Past {
    key: u8,
    outcome: Outcome,
    /// When it was inserted, or its loader first polled.
    born: Cell<Option<u64>>,
    /// When its loader ended.
    ended: Cell<Option<u64>>,
    gate: Gate,
}

/// A load that calls share: its place in the list is its id.
struct Flight {
    /// The call whose loader runs. None: the next one that is polled takes over.
    leader: Option<usize>,
    /// Calls that have not left.
    members: usize,
    /// It gave a value or an error.
    ended: bool,
}

/// What a look-up of a key may find.
#[derive(Clone, Copy, Default)]
struct Known {
    latest: Option<Latest>,
    /// The flight that is the entry.
    flight: Option<usize>,
    /// When the key was last written or removed by hand.
    cut: u64,
    /// A flight was pushed out and nobody can tell when, nor who is in which: any of the values
    /// since the last cut may be the latest. Ends with a cut, once all calls of then have left.
    vague: bool,
}

#[derive(Clone, Copy)]
struct Latest {
    id: usize,
    /// Alive before this instant, unless evicted.
    sure_until: Duration,
    /// Dead from this instant on.
    dead_from: Duration,
}

type Answer = Result<Value, usize>;

/// A call that has not answered yet.
struct Call {
    id: usize,
    key: u8,
    started: u64,
    /// The key's `cut` when the call began: nothing older may answer it.
    cut: u64,
    /// The model's guess, while the key is not vague.
    flight: Option<usize>,
    untracked: bool,
    future: Pin<Box<dyn Future<Output = Answer>>>,
    flag: Arc<Flag>,
}

struct World {
    cache: TestCache,
    time: ManualTime,
    tally: Tally,
    capacity: u64,
    keys: u8,
    life: Option<(Duration, Duration)>,
    known: [Known; 128],
    /// Counts the steps of the run.
    clock: Rc<Cell<u64>>,
    pasts: Rc<RefCell<Vec<Rc<Past>>>>,
    calls: Vec<Call>,
    flights: Vec<Flight>,
    /// Entries, loads in flight included, that were gone before their time.
    lost: u64,
}

/// Runs `input`; panics where the cache departs from the model. Answers the hits, so that no part
/// of the run can be optimized away.
pub fn run(input: &Input) -> u64 {
    let Some(mut world) = World::new(&input.config) else {
        return 0;
    };
    for (i, op) in input.ops.iter().enumerate() {
        world.step(op);
        world.check_counts();
        // All keys are looked at: not after each step.
        if i % 16 == 15 {
            world.check_entries();
        }
    }
    world.finish()
}

impl World {
    fn new(config: &Config) -> Option<Self> {
        let capacity = u64::from(config.capacity % 64) + 1;
        let time = ManualTime::new();
        let mut builder = Cache::builder().max_capacity(capacity).time_source(time.clone());
        if config.plain_clock {
            builder = builder.eviction_policy(EvictionPolicy::clock());
        }
        builder = builder.reserve(usize::from(config.reserve) * 4);
        let ttl = match config.ttl {
            Ttl::None => None,
            Ttl::Zero => Some(Duration::ZERO),
            Ttl::Millis(ms) => Some(Duration::from_millis(u64::from(ms))),
            Ttl::Max => Some(Duration::MAX),
        };
        let jitter = config.jitter_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        if let Some(ttl) = ttl {
            builder = builder.time_to_live(ttl);
        }
        if let Some(jitter) = jitter {
            builder = builder.jitter(jitter);
        }
        let hash = Hash { collide: config.collide };
        let cache = match builder.try_build_with_hasher(hash) {
            Ok(cache) => cache,
            Err(error) => {
                assert!(jitter.is_some() && ttl.is_none(), "{error}");
                return None;
            }
        };
        assert!(jitter.is_none() || ttl.is_some(), "jitter without a TTL");
        Some(Self {
            cache,
            time,
            tally: Tally::default(),
            capacity,
            keys: match config.keys {
                few @ 0..128 => few % 8 + 1,
                many => many % 128 + 1,
            },
            life: ttl.map(|ttl| (ttl, ttl.saturating_add(jitter.unwrap_or_default()))),
            known: [Known::default(); 128],
            clock: Rc::new(Cell::new(1)),
            pasts: Rc::default(),
            calls: Vec::new(),
            flights: Vec::new(),
            lost: 0,
        })
    }

    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    fn now(&self) -> Duration {
        alru::TimeSource::now(&self.time)
    }

    fn past(&self, id: usize) -> Rc<Past> {
        self.pasts.borrow()[id].clone()
    }

    fn new_past(&self, key: u8, outcome: Outcome, open: bool) -> usize {
        let mut pasts = self.pasts.borrow_mut();
        pasts.push(Rc::new(Past {
            key,
            outcome,
            born: Cell::new(None),
            ended: Cell::new(None),
            gate: Gate::new(open),
        }));
        pasts.len() - 1
    }

    fn step(&mut self, op: &Op) {
        let now = self.tick();
        match *op {
            Op::Get { key } => {
                let key = key % self.keys;
                let found = self.cache.get(&key).map(|value| value.id());
                self.saw(key, found);
            }
            Op::Peek { key } => {
                let key = key % self.keys;
                let found = self.cache.peek(&key).map(|value| value.id());
                self.saw(key, found);
            }
            Op::Contains { key } => {
                let key = key % self.keys;
                let contains = self.cache.contains_key(&key);
                let peek = self.cache.peek(&key).map(|value| value.id());
                let get = self.cache.get(&key).map(|value| value.id());
                assert_eq!(peek, get);
                // A load under way is an entry without a value.
                assert!(contains || peek.is_none(), "a value without an entry");
                assert!(!contains || peek.is_some() || self.pending(key), "an entry of nothing");
                self.saw(key, get);
            }
            Op::Insert { key } => {
                self.insert(key % self.keys);
            }
            Op::Remove { key } => self.remove(key % self.keys),
            Op::Invalidate { key } => {
                let key = key % self.keys;
                let was = self.cache.invalidate(&key);
                let before = *self.known(key);
                self.cut(key);
                if was {
                    let there = before.latest.is_some() || before.flight.is_some();
                    assert!(there || before.vague, "invalidated what was not there");
                } else if let Some(latest) = before.latest {
                    self.lost += u64::from(self.now() < latest.sure_until);
                } else {
                    self.lost += u64::from(before.flight.is_some());
                }
                assert!(!self.cache.contains_key(&key));
            }
            Op::InvalidateAll => {
                self.invalidate_all();
                for key in 0..self.keys {
                    assert!(!self.cache.contains_key(&key));
                }
            }
            Op::Advance { ms } => self.time.advance(Duration::from_millis(u64::from(ms))),
            Op::RunPendingTasks => self.cache.run_pending_tasks(),
            Op::Pin { read, then } => self.pin(read % self.keys, then),
            Op::Call { key, api, outcome, ready } => {
                self.call(key % self.keys, api, outcome, ready)
            }
            Op::Poll { call, rewake } => {
                if let Some(i) = self.index(call) {
                    if rewake {
                        self.calls[i].flag = Arc::default();
                    }
                    self.poll(i);
                }
            }
            Op::Open { call } => {
                if let Some(i) = self.index(call) {
                    self.past(self.calls[i].id).gate.open();
                }
            }
            Op::Cancel { call } => {
                if let Some(i) = self.index(call) {
                    let call = self.calls.swap_remove(i);
                    self.past(call.id).ended.set(Some(now));
                    self.leave(&call);
                    drop(call);
                }
            }
        }
    }

    fn index(&self, call: u8) -> Option<usize> {
        usize::from(call).checked_rem(self.calls.len())
    }

    fn known(&mut self, key: u8) -> &mut Known {
        &mut self.known[usize::from(key)]
    }

    /// `key` was written or removed: what came before is not an entry any more.
    fn cut(&mut self, key: u8) {
        let untracked = |call: &Call| call.key == key && call.untracked;
        *self.known(key) = Known {
            latest: None,
            flight: None,
            cut: self.clock.get(),
            vague: self.calls.iter().any(untracked),
        };
    }

    /// Whether a load of `key` may be in flight, and an entry.
    fn pending(&mut self, key: u8) -> bool {
        let known = self.known(key);
        known.flight.is_some() || known.vague
    }

    /// A look-up of `key` found `found`.
    fn saw(&mut self, key: u8, found: Option<usize>) {
        let now = self.now();
        let known = *self.known(key);
        match (found, known.latest) {
            (Some(id), _) if known.vague => {
                let past = self.past(id);
                assert_eq!(past.key, key, "a value of another key");
                assert!(past.born.get() >= Some(known.cut), "older than the last write");
            }
            (Some(id), Some(latest)) => {
                assert_eq!(id, latest.id, "not the latest value of {key}");
                assert!(now < latest.dead_from, "an expired value of {key}");
            }
            (Some(id), None) => panic!("value {id} of {key}, which has none"),
            (None, Some(latest)) => {
                // Once gone, gone.
                self.known(key).latest = None;
                self.lost += u64::from(now < latest.sure_until);
            }
            (None, None) => {}
        }
    }

    fn wrote(&mut self, key: u8, id: usize) {
        let now = self.now();
        let (ttl, longest) = self.life.unwrap_or((Duration::MAX, Duration::MAX));
        let latest = Latest {
            id,
            sure_until: now.saturating_add(ttl),
            dead_from: now.saturating_add(longest),
        };
        let known = self.known(key);
        if !known.vague {
            known.latest = Some(latest);
        }
    }

    fn insert(&mut self, key: u8) -> usize {
        let id = self.new_past(key, Outcome::Ok, true);
        let past = self.past(id);
        past.born.set(Some(self.clock.get()));
        past.ended.set(Some(self.clock.get()));
        self.cache.insert(Key::new(key, &self.tally), Value::new(id, &self.tally));
        self.cut(key);
        self.wrote(key, id);
        id
    }

    fn remove(&mut self, key: u8) {
        let found = self.cache.remove(&key).map(|value| value.id());
        self.saw(key, found);
        self.cut(key);
        assert!(!self.cache.contains_key(&key));
    }

    fn invalidate_all(&mut self) {
        self.cache.invalidate_all();
        (0..self.keys).for_each(|key| self.cut(key));
    }

    fn pin(&mut self, read: u8, then: UnderPin) {
        let cache = self.cache.clone();
        let pin = cache.pin();
        let held = pin.get(&read);
        let id = held.map(Value::id);
        assert_eq!(pin.contains_key(&read), self.cache.contains_key(&read));
        assert!(id.is_none() || pin.contains_key(&read));
        self.saw(read, id);
        self.tick();
        match then {
            UnderPin::Insert { key } => {
                self.insert(key % self.keys);
            }
            UnderPin::Remove { key } => self.remove(key % self.keys),
            UnderPin::InvalidateAll => self.invalidate_all(),
            UnderPin::Read { key } => {
                let key = key % self.keys;
                self.saw(key, pin.get(&key).map(Value::id));
            }
        }
        // The value is what it was, whatever became of its entry.
        assert_eq!(held.map(Value::id), id);
    }

    fn call(&mut self, key: u8, api: Api, outcome: Outcome, ready: bool) {
        if self.calls.len() == MAX_CALLS {
            return;
        }
        let outcome = match api {
            Api::Get => Outcome::Ok,
            Api::Try | Api::TryOther => outcome,
        };
        let id = self.new_past(key, outcome, ready);
        let (cache, tally) = (self.cache.clone(), self.tally.clone());
        let load = {
            let (past, clock) = (self.past(id), self.clock.clone());
            let tally = tally.clone();
            async move {
                past.born.set(Some(clock.get()));
                past.gate.pass().await;
                past.ended.set(Some(clock.get()));
                match outcome {
                    Outcome::Ok => Ok(Value::new(id, &tally)),
                    Outcome::Err => Err(id),
                }
            }
        };
        let key_of_call = Key::new(key, &tally);
        let future: Pin<Box<dyn Future<Output = Answer>>> = match api {
            Api::Get => Box::pin(async move {
                let load = async { load.await.expect("get_with has no errors") };
                Ok(cache.get_with(key_of_call, load).await)
            }),
            Api::Try => Box::pin(async move {
                let load = async { load.await.map_err(Failure::<false>) };
                cache.try_get_with(key_of_call, load).await.map_err(|e| e.0)
            }),
            Api::TryOther => Box::pin(async move {
                let load = async { load.await.map_err(Failure::<true>) };
                cache.try_get_with(key_of_call, load).await.map_err(|e| e.0)
            }),
        };
        let cut = self.known(key).cut;
        self.calls.push(Call {
            id,
            key,
            started: self.clock.get(),
            cut,
            flight: None,
            untracked: false,
            future,
            flag: Arc::default(),
        });
        self.poll(self.calls.len() - 1);
    }

    /// Polls the `i`th call and checks what it says.
    fn poll(&mut self, i: usize) {
        let now = self.tick();
        let call = &mut self.calls[i];
        let (id, key, started, cut) = (call.id, call.key, call.started, call.cut);
        call.flag.take();
        let waker = Waker::from(call.flag.clone());
        let answer = call.future.as_mut().poll(&mut Context::from_waker(&waker));
        let past = self.past(id);
        let led = past.born.get() == Some(now);
        if led || answer.is_pending() {
            self.place(i, led);
        }
        let Poll::Ready(answer) = answer else {
            return;
        };
        let call = self.calls.swap_remove(i);
        let own = past.born.get().is_some();
        past.ended.set(Some(now));
        let of = answer.as_ref().map_or_else(|of| *of, Value::id);
        let origin = self.past(of);
        assert_eq!(origin.key, key, "the result of another key");
        assert_eq!(own, of == id, "ran a loader for nothing");
        assert!(origin.born.get() >= Some(cut), "older than the last write before the call");
        assert_eq!(answer.is_err(), origin.outcome == Outcome::Err);
        let shared = origin.ended.get() > Some(started);
        if own {
            assert!(call.untracked || call.flight.is_some(), "led no flight");
            if let Some(flight) = call.flight {
                self.flights[flight].ended = true;
                if self.known(key).flight == Some(flight) {
                    self.known(key).flight = None;
                    if answer.is_ok() {
                        self.wrote(key, id);
                    }
                }
            }
        } else if answer.is_ok() && !shared {
            self.saw(key, Some(of));
        } else {
            assert!(shared, "an error was kept");
        }
        self.leave(&call);
        drop(call);
    }

    /// A call was polled and waits, or its loader began (`led`): finds the flight that it is in.
    fn place(&mut self, i: usize, led: bool) {
        let (id, key) = (self.calls[i].id, self.calls[i].key);
        let known = *self.known(key);
        if known.vague {
            self.calls[i].untracked = true;
            return;
        }
        let stays = self.calls[i].flight.filter(|&flight| !self.flights[flight].ended);
        let flight = stays.or(known.flight);
        if led && flight.is_some_and(|flight| self.flights[flight].leader.is_some()) {
            // That flight was pushed out some time ago, and who leads is in another.
            self.lost += 1;
            self.lose_track(key);
            return;
        }
        let flight = match flight {
            Some(flight) => flight,
            None => {
                assert!(led, "waits for nothing");
                // If there had been a value, it would not have led.
                self.saw(key, None);
                self.new_flight()
            }
        };
        if stays.is_none() {
            let stats = self.cache.stats();
            if led && known.flight.is_some() && stats.evictions + stats.refused > 0 {
                // It took over from one that left; or that flight was pushed out before.
                self.lose_track(key);
                return;
            }
            self.known(key).flight = Some(flight);
            if let Some(before) = self.calls[i].flight.replace(flight) {
                self.flights[before].members -= 1;
            }
            self.flights[flight].members += 1;
        }
        if led {
            self.flights[flight].leader = Some(id);
        }
    }

    fn lose_track(&mut self, key: u8) {
        for call in self.calls.iter_mut().filter(|call| call.key == key) {
            call.untracked = true;
            call.flight = None;
        }
        let known = self.known(key);
        known.flight = None;
        known.vague = true;
    }

    fn new_flight(&mut self) -> usize {
        self.flights.push(Flight { leader: None, members: 0, ended: false });
        self.flights.len() - 1
    }

    /// `call` is over, or dropped.
    fn leave(&mut self, call: &Call) {
        let Some(id) = call.flight else {
            return;
        };
        let flight = &mut self.flights[id];
        flight.members -= 1;
        if flight.leader == Some(call.id) {
            flight.leader = None;
        }
        if flight.members == 0 {
            flight.ended = true;
            let known = self.known(call.key);
            if known.flight == Some(id) {
                known.flight = None;
            }
        }
    }

    fn check_counts(&self) {
        let entries = self.cache.entry_count();
        assert!(entries <= self.capacity, "{entries} entries in {}", self.capacity);
        let stats = self.cache.stats();
        assert!(
            self.lost <= stats.evictions + stats.refused,
            "{} entries lost, {stats:?}",
            self.lost
        );
    }

    /// Each entry has one key, and can be reached by it.
    fn check_entries(&self) {
        let reachable = (0..self.keys).filter(|key| self.cache.contains_key(key)).count() as u64;
        let entries = self.cache.entry_count();
        assert!(reachable <= entries, "{reachable} reachable of {entries} entries");
        if self.life.is_none() {
            assert_eq!(reachable, entries, "an entry that nobody can reach");
        }
    }

    /// Lets all loads end, polling only who is woken; then drops everything.
    fn finish(mut self) -> u64 {
        for call in &self.calls {
            self.pasts.borrow()[call.id].gate.open();
        }
        while let Some(i) = self.calls.iter().position(|call| call.flag.take()) {
            self.poll(i);
        }
        assert_eq!(self.calls.len(), 0, "calls that nobody wakes");
        self.check_entries();
        for key in 0..self.keys {
            let found = self.cache.get(&key).map(|value| value.id());
            self.saw(key, found);
        }
        self.check_counts();
        let hits = self.cache.stats().hits;
        drop(self.cache);
        assert_eq!(self.tally.alive(), 0, "alive after the last handle");
        hits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed sample of what the fuzzer does at length.
    #[test]
    fn random_operations_agree_with_the_model() {
        let mut hits = 0;
        for seed in 0..1_000_u64 {
            let len = 64 + (seed as usize * 37) % 2_000;
            let bytes = crate::random_bytes(seed << 32, len);
            let input = Input::arbitrary(&mut Unstructured::new(&bytes)).expect("enough bytes");
            let outcome = std::panic::catch_unwind(|| run(&input));
            hits += outcome.unwrap_or_else(|_| panic!("seed {seed}: {input:?}"));
        }
        assert!(hits > 1_000, "{hits}: the runs miss nearly always");
    }
}
