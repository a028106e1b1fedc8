//! Runs alru and its peers side by side; see the crate's documentation for what
//! is measured and how to read the tables.
//!
//! ```text
//! cargo run --release -p alru-benches --bin compare
//! cargo run --release -p alru-benches --bin compare -- --quick
//! cargo run --release -p alru-benches --bin compare -- \
//!     --workloads hits-1k,read-through --threads 1,2,4 --out target/compare
//! cargo run --release -p alru-benches --bin compare -- --bars benches/bars.csv
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alru_benches::adapters::{PEERS, Peer};
use alru_benches::workload::{self, Workload};
use alru_benches::{bars, measure, report};
use clap::Parser;

/// Runs alru and its peers side by side and prints a report in Markdown.
#[derive(Debug, Parser)]
#[command(after_help = after_help())]
struct Options {
    /// Workloads to run
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = workload::DEFAULT)]
    workloads: Vec<String>,

    /// Subjects to run; all that there are if not given
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    subjects: Vec<String>,

    /// Numbers of threads, for the workloads that set none themselves
    #[arg(long, value_name = "COUNTS", value_delimiter = ',', default_value = "1,2",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,

    /// Threads of the workload `crowd`
    #[arg(long, value_name = "COUNT", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    crowd: u16,

    /// Entries that fit in the caches of the workloads that evict
    #[arg(long, value_name = "ENTRIES", default_value_t = 100_000,
          value_parser = clap::value_parser!(u32).range(64..=100_000_000))]
    capacity: u32,

    /// Rounds of each subject, 7 if not given
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// Length of a round in milliseconds, 100 if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=600_000))]
    millis: Option<u32>,

    /// A smoke run of some seconds: 1 round of 5 ms, small caches
    #[arg(long)]
    quick: bool,

    /// The subject that ratios are taken to
    #[arg(long, value_name = "NAME", default_value = "quick_cache")]
    base: String,

    /// Writes compare.md and compare.csv into this directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Checks the ratios in this table and says which fall short
    #[arg(long, value_name = "FILE")]
    bars: Option<PathBuf>,
}

fn after_help() -> String {
    let subjects: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
    format!("Workloads: {}\n\nSubjects: {}", workload::NAMES, subjects.join(", "))
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("compare: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(options: Options) -> Result<(), String> {
    let capacity = if options.quick { 4_096 } else { options.capacity as usize };
    let workloads = options
        .workloads
        .iter()
        // A million entries are no smoke run.
        .filter(|name| !options.quick || *name != "hits-1m")
        .map(|name| Workload::parse(name, capacity, options.crowd.into()))
        .collect::<Result<Vec<_>, _>>()?;
    let peers = choose(&options.subjects)?;
    let bars = match &options.bars {
        Some(path) => read_bars(path)?,
        None => Vec::new(),
    };
    let (rounds, millis) = if options.quick { (1, 5) } else { (7, 100) };
    let plan = measure::Plan {
        rounds: options.rounds.map_or(rounds, usize::from),
        length: Duration::from_millis(options.millis.unwrap_or(millis).into()),
        cores: measure::cores(),
    };
    if let Some(dir) = &options.out {
        fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }

    let machine = report::Machine::probe();
    let mut tables = Vec::new();
    for workload in &workloads {
        let counts: Vec<usize> = match workload.threads {
            Some(own) => vec![own],
            None => options.threads.iter().copied().map(usize::from).collect(),
        };
        for threads in counts {
            let start = Instant::now();
            eprint!("{}, {threads} T ...", workload.name);
            tables.push(measure::run(workload, threads, &peers, &plan));
            eprintln!(" {:.1} s", start.elapsed().as_secs_f32());
        }
    }

    let markdown = report::markdown(&machine, &plan, &peers, &options.base, &tables, &bars);
    // A closed pipe is the reader's choice; `print!` would panic.
    let _ = io::stdout().write_all(markdown.as_bytes());
    if let Some(dir) = &options.out {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        write("compare.md", &markdown)?;
        write("compare.csv", &report::csv(&options.base, &tables))?;
    }
    Ok(())
}

fn choose(names: &[String]) -> Result<Vec<Peer>, String> {
    let find = |name: &String| {
        PEERS
            .iter()
            .find(|peer| peer.name == name)
            .copied()
            .ok_or_else(|| format!("no subject `{name}`; see --help"))
    };
    if names.is_empty() {
        return Ok(PEERS.to_vec());
    }
    names.iter().map(find).collect()
}

fn read_bars(path: &PathBuf) -> Result<Vec<bars::Bar>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    bars::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}
