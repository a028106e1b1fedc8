//! The sequential model: what a cache with single-flight loads does, in so many words.

use std::time::Duration;

use super::{Api, Config, KEYS, Verdict};

/// What is under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Empty,
    Value {
        id: usize,
        dead_from: Option<Duration>,
    },
    /// A load, by its flight.
    Pending(usize),
}

/// How a flight ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Value(usize),
    Failed(usize),
    Panicked(usize),
    /// Closed from outside, or left by all.
    Nothing,
}

/// A load that calls share.
#[derive(Debug)]
struct Flight {
    key: u8,
    /// The run that is polled for it: that of the call that leads, or the shared one.
    run: Option<usize>,
    /// Calls, and closes, that are in it.
    members: usize,
    end: Option<End>,
}

/// A run of a loader, or the future that would be one.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) begun: bool,
    pub(super) gone: bool,
    api: Api,
}

/// Where a call is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    /// In a flight; leads it if the flight's run is its own.
    In(usize),
    /// By itself, with a run of its own.
    Alone,
    /// A close that waits for these.
    Closer(Vec<usize>),
}

/// A call, or a close.
#[derive(Debug)]
pub(super) struct Caller {
    key: u8,
    api: Api,
    stage: Stage,
    counted: bool,
    /// Its own loader's.
    run: Option<usize>,
    /// It has been polled and waits.
    pub(super) registered: bool,
    /// Of a call that steals.
    pub(super) impatient: bool,
}

/// What a poll answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Pending,
    Value(usize),
    Failed(usize),
    /// The poll panics with the message of this run.
    Panic(usize),
    /// An error says that this run panicked.
    Told(usize),
    Closed,
    Finished,
}

impl Expected {
    pub(super) fn panics(&self) -> bool {
        matches!(self, Self::Panic(_))
    }
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) shared: bool,
    room: bool,
    ttl: Option<Duration>,
    pub(super) now: Duration,
    slots: [Slot; KEYS as usize],
    flights: Vec<Flight>,
    pub(super) runs: Vec<Run>,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) loads: u64,
    pub(super) failures: u64,
    pub(super) closed: bool,
}

impl Model {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            shared: config.shared,
            room: config.room,
            ttl: config.ttl_ms.map(|ms| Duration::from_millis(ms.into())),
            now: Duration::ZERO,
            slots: [Slot::Empty; KEYS as usize],
            flights: Vec::new(),
            runs: Vec::new(),
            hits: 0,
            misses: 0,
            loads: 0,
            failures: 0,
            closed: false,
        }
    }

    // What is there.

    fn slot(&mut self, key: u8) -> &mut Slot {
        &mut self.slots[usize::from(key)]
    }

    /// The value that a reader finds.
    pub(super) fn value(&self, key: u8) -> Option<usize> {
        match self.slots[usize::from(key)] {
            Slot::Value { id, .. } if !self.is_expired(key) => Some(id),
            _ => None,
        }
    }

    pub(super) fn is_expired(&self, key: u8) -> bool {
        let slot = self.slots[usize::from(key)];
        matches!(slot, Slot::Value { dead_from: Some(end), .. } if end <= self.now)
    }

    pub(super) fn contains(&self, key: u8) -> bool {
        matches!(self.slots[usize::from(key)], Slot::Pending(_)) || self.value(key).is_some()
    }

    /// Loads that have not ended.
    pub(super) fn open(&self) -> usize {
        self.flights.iter().filter(|flight| flight.end.is_none()).count()
    }

    // Reads and writes.

    pub(super) fn get(&mut self, key: u8) -> Option<usize> {
        let found = self.value(key);
        match found {
            Some(_) => self.hits += 1,
            None => self.misses += 1,
        }
        found
    }

    fn store(&mut self, key: u8, id: usize) {
        let dead_from = self.ttl.map(|ttl| self.now + ttl);
        *self.slot(key) = Slot::Value { id, dead_from };
    }

    pub(super) fn insert(&mut self, key: u8, id: usize) {
        if self.room {
            self.store(key, id);
        }
    }

    pub(super) fn invalidate(&mut self, key: u8) {
        *self.slot(key) = Slot::Empty;
    }

    pub(super) fn invalidate_all(&mut self) {
        self.slots.fill(Slot::Empty);
        if self.shared {
            (self.hits, self.misses) = (0, 0);
        }
    }

    // Calls.

    /// A call; `run`: its own loader's, that it brings along.
    pub(super) fn caller(&mut self, key: u8, api: Api, run: Option<usize>) -> Caller {
        if run.is_some() {
            self.new_run(api);
        }
        Caller {
            key,
            api,
            stage: Stage::Start,
            counted: false,
            run,
            registered: false,
            impatient: false,
        }
    }

    /// A close that waits: it is in all flights that are open now.
    pub(super) fn closer(&mut self) -> Caller {
        self.closed = true;
        let open = (0..self.flights.len()).filter(|f| self.flights[*f].end.is_none()).collect();
        for f in &open {
            let f: &usize = f;
            self.flights[*f].members += 1;
        }
        let mut caller = self.caller(0, Api::Try, None);
        caller.stage = Stage::Closer(open);
        caller
    }

    /// A close that does not wait.
    pub(super) fn close(&mut self) {
        self.closed = true;
        for f in 0..self.flights.len() {
            if self.flights[f].end.is_none() {
                self.end(f, End::Nothing);
            }
        }
    }

    fn new_run(&mut self, api: Api) -> usize {
        self.runs.push(Run { begun: false, gone: false, api });
        self.runs.len() - 1
    }

    pub(super) fn api_of(&self, run: usize) -> Api {
        self.runs[run].api
    }

    /// The run that a call waits for, leads, or polls alone.
    pub(super) fn run_of(&self, caller: &Caller) -> Option<usize> {
        match &caller.stage {
            Stage::In(f) => self.flights[*f].run,
            Stage::Start | Stage::Alone => caller.run,
            Stage::Closer(flights) => flights.first().and_then(|f| self.flights[*f].run),
        }
    }

    /// Whether a wake of `run` is to reach this call.
    pub(super) fn drives(&self, caller: &Caller, run: usize) -> bool {
        caller.registered
            && match &caller.stage {
                Stage::Start => false,
                Stage::Alone => caller.run == Some(run),
                Stage::In(f) => {
                    self.flights[*f].run == Some(run) && (self.shared || caller.run == Some(run))
                }
                Stage::Closer(flights) => flights.iter().any(|f| self.flights[*f].run == Some(run)),
            }
    }

    /// Whether a call that waits would not wait if it were polled now.
    pub(super) fn can_go_on(
        &self,
        caller: &Caller,
        verdict: impl Fn(usize) -> Verdict + Copy,
    ) -> bool {
        let ready = |run: Option<usize>| run.is_some_and(|run| verdict(run) != Verdict::Wait);
        let flight_is_ready = |f: usize| {
            let flight = &self.flights[f];
            let own = flight.run.is_some() && flight.run == caller.run;
            let free = flight.run.is_none();
            let drives = self.shared || own;
            let steals = caller.api == Api::Steal && caller.impatient && !own;
            flight.end.is_some() || free || drives && ready(flight.run) || steals
        };
        caller.registered
            && match &caller.stage {
                Stage::Start => false,
                Stage::Alone => ready(caller.run),
                Stage::In(f) => flight_is_ready(*f),
                Stage::Closer(flights) => flights.iter().any(|f| flight_is_ready(*f)),
            }
    }

    /// One poll of a call.
    pub(super) fn poll(
        &mut self,
        caller: &mut Caller,
        verdict: impl Fn(usize) -> Verdict + Copy,
    ) -> Expected {
        let expected = match &caller.stage {
            Stage::Closer(_) => self.poll_closer(caller, verdict),
            _ => self.poll_call(caller, verdict),
        };
        caller.registered = expected == Expected::Pending;
        if !caller.registered {
            self.over(caller);
        }
        expected
    }

    fn poll_call(
        &mut self,
        caller: &mut Caller,
        verdict: impl Fn(usize) -> Verdict + Copy,
    ) -> Expected {
        loop {
            match caller.stage {
                Stage::Start => {
                    if self.closed {
                        return Expected::Closed;
                    }
                    if let Some(id) = self.value(caller.key) {
                        self.count(caller, true);
                        return Expected::Value(id);
                    }
                    if !self.room && !self.shared {
                        self.count(caller, false);
                        caller.stage = Stage::Alone;
                        continue;
                    }
                    if let Slot::Pending(f) = *self.slot(caller.key) {
                        self.count(caller, true);
                        self.flights[f].members += 1;
                        caller.stage = Stage::In(f);
                        continue;
                    }
                    self.count(caller, false);
                    self.loads += 1;
                    let run = if self.shared { Some(self.new_run(caller.api)) } else { caller.run };
                    self.flights.push(Flight { key: caller.key, run, members: 1, end: None });
                    let f = self.flights.len() - 1;
                    // Without room the flight is nobody's but the caller's, and a closer's.
                    if self.room {
                        *self.slot(caller.key) = Slot::Pending(f);
                    }
                    caller.stage = Stage::In(f);
                }
                Stage::Alone => {
                    let run = caller.run.expect("has a loader of its own");
                    return match self.poll_run(run, verdict) {
                        None => Expected::Pending,
                        Some(End::Value(id)) => Expected::Value(id),
                        Some(End::Failed(run)) => Expected::Failed(run),
                        Some(_) => Expected::Panic(run),
                    };
                }
                Stage::In(f) if self.flights[f].end.is_some() => {
                    match self.flights[f].end {
                        Some(End::Value(id)) => return Expected::Value(id),
                        Some(End::Panicked(run)) if self.shared => return Expected::Told(run),
                        Some(End::Panicked(run)) => return Expected::Panic(run),
                        Some(End::Failed(run)) if self.shared || self.is_nameable(run, caller) => {
                            return Expected::Failed(run);
                        }
                        _ if self.shared => return Expected::Closed,
                        _ => {}
                    }
                    // Not for this caller: once more.
                    self.leave(f);
                    caller.stage = Stage::Start;
                }
                Stage::In(f) => {
                    if !self.shared {
                        if self.flights[f].run.is_none() {
                            self.flights[f].run = caller.run;
                        }
                        if self.flights[f].run != caller.run {
                            if caller.api != Api::Steal || !caller.impatient {
                                return Expected::Pending;
                            }
                            self.take_out(f);
                            self.leave(f);
                            caller.stage = Stage::Start;
                            continue;
                        }
                    }
                    return match self.poll_flight(f, verdict) {
                        None => Expected::Pending,
                        Some(End::Value(id)) => Expected::Value(id),
                        Some(End::Failed(run)) => Expected::Failed(run),
                        Some(End::Panicked(run)) => Expected::Panic(run),
                        Some(End::Nothing) => unreachable!("no run ends so"),
                    };
                }
                Stage::Closer(_) => unreachable!("not a call"),
            }
        }
    }

    /// Do the call's errors have the type of this run's?
    fn is_nameable(&self, run: usize, caller: &Caller) -> bool {
        self.runs[run].api == caller.api
    }

    fn poll_closer(
        &mut self,
        caller: &mut Caller,
        verdict: impl Fn(usize) -> Verdict + Copy,
    ) -> Expected {
        let Stage::Closer(flights) = &mut caller.stage else { unreachable!("a close") };
        let mut left = Vec::new();
        for f in std::mem::take(flights) {
            if self.flights[f].end.is_some() || self.poll_flight(f, verdict).is_some() {
                self.leave(f);
            } else {
                left.push(f);
            }
        }
        let expected = if left.is_empty() { Expected::Finished } else { Expected::Pending };
        caller.stage = Stage::Closer(left);
        expected
    }

    fn count(&mut self, caller: &mut Caller, hit: bool) {
        if !std::mem::replace(&mut caller.counted, true) {
            *if hit { &mut self.hits } else { &mut self.misses } += 1;
        }
    }

    fn poll_run(&mut self, run: usize, verdict: impl Fn(usize) -> Verdict) -> Option<End> {
        self.runs[run].begun = true;
        let end = match verdict(run) {
            Verdict::Wait | Verdict::Yield => return None,
            Verdict::Value => End::Value(run),
            Verdict::Fail => End::Failed(run),
            Verdict::Panic => End::Panicked(run),
        };
        self.runs[run].gone = true;
        Some(end)
    }

    /// One poll of the run of an open flight, which has one.
    fn poll_flight(&mut self, f: usize, verdict: impl Fn(usize) -> Verdict) -> Option<End> {
        let run = self.flights[f].run.expect("somebody leads, or all do");
        let end = self.poll_run(run, verdict)?;
        if let End::Value(id) = end {
            if self.slots[usize::from(self.flights[f].key)] == Slot::Pending(f) {
                self.store(self.flights[f].key, id);
            }
        } else {
            self.failures += 1;
        }
        self.end(f, end);
        Some(end)
    }

    fn end(&mut self, f: usize, end: End) {
        self.flights[f].end = Some(end);
        self.take_out(f);
        if let Some(run) = self.flights[f].run.filter(|_| self.shared) {
            self.runs[run].gone = true;
        }
    }

    /// The flight is no entry any more, if it was one.
    fn take_out(&mut self, f: usize) {
        let key = self.flights[f].key;
        if *self.slot(key) == Slot::Pending(f) {
            *self.slot(key) = Slot::Empty;
        }
    }

    fn leave(&mut self, f: usize) {
        self.flights[f].members -= 1;
        if self.flights[f].members == 0 && self.flights[f].end.is_none() {
            self.end(f, End::Nothing);
        }
    }

    /// A call has answered, or is dropped.
    fn over(&mut self, caller: &mut Caller) {
        match std::mem::replace(&mut caller.stage, Stage::Start) {
            Stage::In(f) => {
                if !self.shared && self.flights[f].run == caller.run {
                    self.flights[f].run = None;
                }
                self.leave(f);
            }
            Stage::Closer(flights) => flights.into_iter().for_each(|f| self.leave(f)),
            Stage::Start | Stage::Alone => {}
        }
        if let Some(run) = caller.run {
            self.runs[run].gone = true;
        }
    }

    pub(super) fn drop_call(&mut self, mut caller: Caller) {
        self.over(&mut caller);
    }
}
