//! The measuring loop: pinned threads, rounds in rotated order, medians.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::adapters::{Instance, Peer, Refusals};
use crate::workload::{BLOCK, Op, Stream, Workload, key};

/// How a workload is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Rounds of each subject.
    pub rounds: usize,
    /// Length of a round; a tenth of it more goes before, unmeasured.
    pub length: Duration,
    /// Cores to pin threads to, in turn.
    pub cores: Vec<usize>,
}

/// Operations a millisecond that a round of a workload with a fixed number of
/// operations is made for.
const OPS_PER_MILLI: usize = 5_000;

/// One subject in one round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Wall time of an operation, in nanoseconds, as one core sees it.
    pub wall: f64,
    /// Processor time of an operation, in nanoseconds.
    pub cpu: Option<f64>,
    /// Operations, all threads together.
    pub ops: u64,
    /// Look-ups, all threads together.
    pub look_ups: u64,
    /// Hits among them.
    pub hits: u64,
}

/// One subject in one workload with one number of threads.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who.
    pub peer: Peer,
    /// One a round.
    pub samples: Vec<Sample>,
    /// Entries held at the end.
    pub resident: Option<u64>,
    /// Inserts turned down, over all rounds.
    pub refusals: Option<Refusals>,
}

/// One workload with one number of threads.
#[derive(Clone, Debug)]
pub struct Table {
    /// What was run.
    pub workload: Workload,
    /// How many threads.
    pub threads: usize,
    /// Who took part.
    pub rows: Vec<Row>,
    /// Cores that other programs, and the machine's other guests, kept busy
    /// meanwhile; `None` if the platform does not tell or the run was too short
    /// to say.
    pub others: Option<f64>,
}

/// The median of some figures, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The median; the mean of the middle two of an even number.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these figures; `None` if there are none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let (&min, &max) = (figures.first()?, figures.last()?);
        let median = (figures[(figures.len() - 1) / 2] + figures[figures.len() / 2]) / 2.0;
        Some(Self { median, min, max })
    }
}

impl Row {
    /// Wall time of an operation, in nanoseconds.
    pub fn wall(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|s| s.wall))
    }

    /// Processor time of an operation, in nanoseconds.
    pub fn cpu(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(|s| s.cpu))
    }

    /// Ratio of the wall time to that of `base`, round by round.
    pub fn ratio(&self, base: &Row) -> Option<Spread> {
        let pairs = self.samples.iter().zip(&base.samples);
        Spread::of(pairs.map(|(own, base)| own.wall / base.wall))
    }

    /// The same of the processor time.
    pub fn cpu_ratio(&self, base: &Row) -> Option<Spread> {
        let pairs = self.samples.iter().zip(&base.samples);
        Spread::of(pairs.filter_map(|(own, base)| Some(own.cpu? / base.cpu?)))
    }

    /// Hits over look-ups, 0 to 1; `None` if nothing was looked up.
    pub fn hit_ratio(&self) -> Option<f64> {
        let look_ups: u64 = self.samples.iter().map(|s| s.look_ups).sum();
        let hits: u64 = self.samples.iter().map(|s| s.hits).sum();
        (look_ups > 0).then(|| hits as f64 / look_ups as f64)
    }
}

impl Table {
    /// The row of the subject of that name.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.peer.name == name)
    }
}

/// A cache and how far it has got in the streams.
struct Runner {
    instance: Box<dyn Instance>,
    /// Blocks done by each thread; all threads go on from their own.
    done: Vec<usize>,
}

/// Runs one workload with every peer that takes part in it.
pub fn run(workload: &Workload, threads: usize, peers: &[Peer], plan: &Plan) -> Table {
    let peers: Vec<Peer> =
        peers.iter().copied().filter(|peer| peer.takes_part_in(workload.op)).collect();
    let ops_a_round = plan.length.as_millis() as usize * OPS_PER_MILLI;
    let warm_up = workload.warm_up.div_ceil(threads);
    let wanted = warm_up + plan.rounds * ops_a_round;
    let streams: Vec<Stream> = (0..threads).map(|t| workload.stream(t, wanted)).collect();
    let residents = workload.residents();

    let build = |peer: &Peer| {
        let mut runner =
            Runner { instance: (peer.build)(workload.capacity), done: vec![0; threads] };
        runner.instance.fill(workload.op, &residents);
        if workload.warm_up > 0 {
            round(&mut runner, workload.op, &streams, plan, Length::Ops(warm_up));
        }
        runner
    };
    let length = if workload.counts_operations() {
        Length::Ops(ops_a_round)
    } else {
        Length::Time(plan.length)
    };

    let watch = Watch::start(&plan.cores);
    let mut runners: Vec<Option<Runner>> = peers.iter().map(|_| None).collect();
    let mut rows: Vec<Row> = peers
        .iter()
        .map(|&peer| Row {
            peer,
            samples: Vec::with_capacity(plan.rounds),
            resident: None,
            refusals: None,
        })
        .collect();
    for turn in 0..plan.rounds {
        for place in 0..peers.len() {
            let who = (turn + place) % peers.len();
            if workload.fresh_each_round() {
                // The old one goes first, or two would be in memory at once.
                runners[who] = None;
            }
            let runner = runners[who].get_or_insert_with(|| build(&peers[who]));
            rows[who].samples.push(round(runner, workload.op, &streams, plan, length));
        }
    }
    let others = watch.and_then(|watch| watch.others());
    for (row, runner) in rows.iter_mut().zip(&runners) {
        if let Some(Runner { instance, .. }) = runner {
            instance.settle();
            row.resident = instance.resident();
            row.refusals = instance.refusals();
        }
    }
    Table { workload: workload.clone(), threads, rows, others }
}

/// How long a round lasts.
#[derive(Clone, Copy)]
enum Length {
    /// So long, for all threads together.
    Time(Duration),
    /// So many operations in each thread.
    Ops(usize),
}

/// What one thread did.
struct Share {
    blocks: usize,
    hits: u64,
    wall: Duration,
    cpu: Option<Duration>,
}

/// One round of one cache.
fn round(runner: &mut Runner, op: Op, streams: &[Stream], plan: &Plan, length: Length) -> Sample {
    let instance = &*runner.instance;
    let start = Barrier::new(streams.len() + 1);
    // Relaxed suffices for both flags: they carry nothing but themselves.
    let (go, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let limit = match length {
        Length::Time(_) => usize::MAX,
        Length::Ops(ops) => {
            // A lead-in would move the threads on in their streams.
            go.store(true, Ordering::Relaxed);
            ops.div_ceil(BLOCK)
        }
    };

    let shares: Vec<Share> = std::thread::scope(|scope| {
        let threads: Vec<_> = streams
            .iter()
            .zip(&mut runner.done)
            .enumerate()
            .map(|(i, (stream, done))| {
                let (start, go, stop) = (&start, &go, &stop);
                scope.spawn(move || {
                    pin_to(plan.cores.get(i % plan.cores.len().max(1)).copied());
                    let mut advance = || {
                        let salt = salt(op, *done / stream.len());
                        let block = &stream[*done % stream.len()];
                        *done += 1;
                        instance.run(op, black_box(block), salt)
                    };
                    // Lead-in: brings code, branch predictor, processor caches
                    // and the thread's own state in.
                    while !go.load(Ordering::Relaxed) {
                        black_box(advance());
                    }
                    start.wait();
                    let (cpu, wall) = (thread_time(), Instant::now());
                    let (mut blocks, mut hits) = (0, 0);
                    while blocks < limit && !stop.load(Ordering::Relaxed) {
                        hits += advance();
                        blocks += 1;
                    }
                    let wall = wall.elapsed();
                    let cpu = cpu.and_then(|then| thread_time()?.checked_sub(then));
                    Share { blocks, hits, wall, cpu }
                })
            })
            .collect();
        if let Length::Time(length) = length {
            std::thread::sleep(length / 10);
            go.store(true, Ordering::Relaxed);
            start.wait();
            std::thread::sleep(length);
            stop.store(true, Ordering::Relaxed);
        } else {
            start.wait();
        }
        // A panic in a cache ends the run: there is nothing to compare then.
        threads.into_iter().map(|t| t.join().expect("a cache panicked")).collect()
    });

    let blocks: usize = shares.iter().map(|s| s.blocks).sum();
    let ops = (blocks * BLOCK * op.per_key()) as u64;
    let wall: Duration = shares.iter().map(|s| s.wall).sum();
    let cpu: Option<Duration> = shares.iter().map(|s| s.cpu).sum();
    // With more threads than cores, a thread waits for its core most of the
    // time; what is left is its share of one.
    let cores = plan.cores.len().max(1);
    let share = (cores as f64 / streams.len() as f64).min(1.0);
    let per_op = |time: Duration| time.as_nanos() as f64 / ops.max(1) as f64;
    Sample {
        wall: per_op(wall) * share,
        cpu: cpu.map(per_op),
        ops,
        look_ups: blocks as u64 * op.look_ups(),
        hits: shares.iter().map(|s| s.hits).sum(),
    }
}

/// Turns the keys of a stream into others for every pass over it.
fn salt(op: Op, pass: usize) -> u64 {
    if op.wants_fresh_keys() && pass > 0 { key(u64::MAX - pass as u64) } else { 0 }
}

/// The cores this process may run on, empty where the platform does not tell.
pub fn cores() -> Vec<usize> {
    #[cfg(target_os = "linux")]
    if let Ok(set) = rustix::thread::sched_getaffinity(None) {
        return (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect();
    }
    Vec::new()
}

/// Pins the calling thread; where that is not possible it runs unpinned.
fn pin_to(core: Option<usize>) {
    #[cfg(target_os = "linux")]
    if let Some(core) = core {
        let mut set = rustix::thread::CpuSet::new();
        set.set(core);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = core;
}

/// Processor time of the calling thread so far.
fn thread_time() -> Option<Duration> {
    #[cfg(unix)]
    return clock(rustix::time::ClockId::ThreadCPUTime);
    #[cfg(not(unix))]
    None
}

/// Processor time of this process so far.
fn process_time() -> Option<Duration> {
    #[cfg(unix)]
    return clock(rustix::time::ClockId::ProcessCPUTime);
    #[cfg(not(unix))]
    None
}

#[cfg(unix)]
fn clock(id: rustix::time::ClockId) -> Option<Duration> {
    Duration::try_from(rustix::time::clock_gettime(id)).ok()
}

/// Tells how much of the cores went to others.
struct Watch<'a> {
    cores: &'a [usize],
    start: Instant,
    busy: Duration,
    own: Duration,
}

impl<'a> Watch<'a> {
    fn start(cores: &'a [usize]) -> Option<Self> {
        Some(Self { cores, start: Instant::now(), busy: busy_time(cores)?, own: process_time()? })
    }

    fn others(&self) -> Option<f64> {
        let wall = self.start.elapsed();
        let busy = busy_time(self.cores)?.checked_sub(self.busy)?;
        let own = process_time()?.checked_sub(self.own)?;
        // The kernel counts in ticks of 10 ms.
        let long_enough = wall > Duration::from_millis(500);
        long_enough.then(|| busy.saturating_sub(own).as_secs_f64() / wall.as_secs_f64())
    }
}

/// Time that these cores were busy or taken by the hypervisor since boot.
fn busy_time(cores: &[usize]) -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let mut ticks = 0;
    for line in stat.lines() {
        let mut fields = line.split_whitespace();
        let name = fields.next().and_then(|name| name.strip_prefix("cpu"));
        let Some(core) = name.and_then(|core| core.parse().ok()) else {
            continue;
        };
        if cores.contains(&core) {
            // user nice system idle iowait irq softirq steal
            let idle = |i: &usize| *i == 3 || *i == 4;
            let fields = fields.enumerate().take(8).filter(|(i, _)| !idle(i));
            ticks += fields.filter_map(|(_, n)| n.parse::<u64>().ok()).sum::<u64>();
        }
    }
    // `USER_HZ` is 100 on every Linux that this runs on.
    (ticks > 0).then(|| Duration::from_millis(10 * ticks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::PEERS;

    #[test]
    fn spread_is_median_min_and_max() {
        let spread = |figures: &[f64]| Spread::of(figures.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
    }

    #[test]
    fn ratio_is_taken_round_by_round() {
        let row = |walls: &[f64]| Row {
            peer: PEERS[0],
            samples: walls.iter().map(|&wall| Sample { wall, ..Sample::default() }).collect(),
            resident: None,
            refusals: None,
        };
        // The machine is ten times slower in the second round for both.
        let (own, base) = (row(&[1.0, 20.0, 3.0]), row(&[2.0, 40.0, 3.0]));
        assert_eq!(own.ratio(&base), Some(Spread { median: 0.5, min: 0.5, max: 1.0 }));
    }

    /// Every default workload end to end: hits are hits, misses are misses.
    #[test]
    fn workloads_do_what_they_say() {
        let plan = Plan { rounds: 2, length: Duration::from_millis(2), cores: cores() };
        for name in
            "hits-1k,zipf-hits-1k,hot,read-through,evict,crowd,mix,load-hit,load-miss".split(',')
        {
            let workload = Workload::parse(name, 4_096, 3).unwrap();
            let table = run(&workload, workload.threads.unwrap_or(2), PEERS, &plan);
            assert!(!table.rows.is_empty(), "{name}");
            for row in &table.rows {
                let who = row.peer.name;
                assert_eq!(row.samples.len(), 2, "{name} {who}");
                assert!(row.samples.iter().all(|s| s.ops > 0 && s.wall > 0.0), "{name} {who}");
                match (workload.op, row.hit_ratio()) {
                    (Op::Insert | Op::LoadMiss, ratio) => assert_eq!(ratio, None, "{name} {who}"),
                    (Op::ReadThrough, Some(ratio)) => {
                        assert!((0.2..0.9).contains(&ratio), "{name} {who}: {ratio}");
                    }
                    // A refused update takes the older value away too.
                    (Op::Mix, _) if row.refusals.is_some_and(|r| r.refused > 0) => {}
                    (_, ratio) => assert_eq!(ratio, Some(1.0), "{name} {who}"),
                }
            }
        }
    }
}
