//! The report: Markdown to read, CSV to compute with.

use std::fmt::Write as _;
use std::time::SystemTime;

use crate::adapters::Peer;
use crate::bars::Bar;
use crate::measure::{Plan, Row, Spread, Table};

/// The machine and the moment, taken before the run.
#[derive(Clone, Debug)]
pub struct Machine {
    cpu: String,
    load_before: Option<String>,
    date: String,
}

impl Machine {
    /// This machine, now.
    pub fn probe() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|info| {
            let line = info.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        });
        Self {
            cpu: cpu.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            load_before: load_average(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        }
    }
}

/// The load average of the last minute.
fn load_average() -> Option<String> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    Some(load.split_whitespace().next()?.to_owned())
}

/// The version of a package in the lock file of the workspace.
fn version(package: &str) -> &'static str {
    const LOCK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock"));
    let name = format!("name = \"{package}\"");
    let mut lines = LOCK.lines().skip_while(|line| *line != name);
    let version = lines.nth(1).and_then(|line| line.strip_prefix("version = \""));
    version.and_then(|v| v.strip_suffix('"')).unwrap_or("?")
}

/// The whole report as Markdown.
pub fn markdown(
    machine: &Machine,
    plan: &Plan,
    peers: &[Peer],
    base: &str,
    tables: &[Table],
    bars: &[Bar],
) -> String {
    let mut out = String::new();
    head(&mut out, machine, plan, peers, base);
    overview(&mut out, peers, base, tables);
    for table in tables {
        details(&mut out, base, table);
    }
    if !bars.is_empty() {
        out += "## Bars\n\n";
        for bar in bars {
            line(&mut out, format_args!("- {bar}: {}", bar.judge(tables)));
        }
        out.push('\n');
    }
    out
}

fn head(out: &mut String, machine: &Machine, plan: &Plan, peers: &[Peer], base: &str) {
    let Machine { cpu, load_before, date } = machine;
    let load = |load: Option<&String>| load.map_or("?", String::as_str).to_owned();
    line(out, "# Side by side\n");
    line(out, format_args!("- Machine: {cpu}, {} cores for this process", plan.cores.len()));
    line(out, format_args!("- Built by: {}", env!("ALRU_BENCHES_RUSTC")));
    line(
        out,
        format_args!(
            "- Date: {date}; load average {} before, {} after",
            load(load_before.as_ref()),
            load(load_average().as_ref()),
        ),
    );
    line(
        out,
        format_args!(
            "- {} rounds of {} ms a subject, in rotated order in one process; `u64` keys and \
             values; threads pinned; hasher `foldhash::fast` where the cache lets one choose; \
             the system's allocator",
            plan.rounds,
            plan.length.as_millis(),
        ),
    );
    line(
        out,
        format_args!(
            "- Times in ns an operation, as one core sees it: median (least–most) of the rounds. \
             Ratios to {base}, round by round, then the median\n",
        ),
    );
    for Peer { name, package, note, .. } in peers {
        line(out, format_args!("- **{name}** ({package} {}): {note}", version(package)));
    }
    out.push('\n');
}

/// One line a workload and number of threads, one column a subject.
fn overview(out: &mut String, peers: &[Peer], base: &str, tables: &[Table]) {
    let took_part = |peer: &&Peer| tables.iter().any(|table| table.row(peer.name).is_some());
    let names: Vec<&str> = peers.iter().filter(took_part).map(|peer| peer.name).collect();
    if names.is_empty() {
        return;
    }
    line(out, format_args!("## Overview: ns an operation (ratio to {base})\n"));
    line(out, format_args!("| workload | T | {} |", names.join(" | ")));
    line(out, format_args!("|---|--:|{}", "--:|".repeat(names.len())));
    for table in tables {
        let base = table.row(base);
        let cells = names.iter().map(|name| {
            let row = table.row(name)?;
            let ratio = base.and_then(|base| row.ratio(base));
            let ratio = ratio.map_or(String::new(), |r| format!(" ({})", figure(r.median)));
            Some(figure(row.wall()?.median) + &ratio)
        });
        let cells: Vec<String> = cells.map(|cell| cell.unwrap_or_else(|| "–".into())).collect();
        line(
            out,
            format_args!("| {} | {} | {} |", table.workload.name, table.threads, cells.join(" | ")),
        );
    }
    out.push('\n');
}

fn details(out: &mut String, base: &str, table: &Table) {
    let Table { workload, threads, rows, others } = table;
    let plural = if *threads == 1 { "" } else { "s" };
    line(out, format_args!("## {}, {threads} thread{plural}\n", workload.name));
    line(out, format_args!("{}.\n", workload.about));
    if let Some(others) = others.filter(|others| *others > 0.05) {
        line(out, format_args!("**Disturbed**: others kept {others:.2} cores busy meanwhile.\n"));
    }
    let refusals = rows.iter().any(|row| row.refusals.is_some_and(|r| r.refused > 0));
    let mut head = "| subject | ns | cpu | ratio | cpu ratio | hit % | resident |".to_owned();
    let mut rule = "|---|--:|--:|--:|--:|--:|--:|".to_owned();
    if refusals {
        head += " refused |";
        rule += "--:|";
    }
    line(out, head);
    line(out, rule);
    let base = table.row(base);
    for row in rows {
        let cells = [
            spread(row.wall()),
            row.cpu().map_or("–".into(), |s| figure(s.median)),
            spread(base.and_then(|base| row.ratio(base))),
            base.and_then(|base| row.cpu_ratio(base)).map_or("–".into(), |s| figure(s.median)),
            row.hit_ratio().map_or("–".into(), |ratio| format!("{:.2}", 100.0 * ratio)),
            row.resident.map_or("–".into(), |n| n.to_string()),
        ];
        let mut text = format!("| {} | {} |", row.peer.name, cells.join(" | "));
        if refusals {
            let share = refused_share(row).map_or("–".into(), |s| format!("{:.3} %", 100.0 * s));
            let _ = write!(text, " {share} |");
        }
        line(out, text);
    }
    out.push('\n');
}

/// One line a workload, number of threads and subject.
pub fn csv(base: &str, tables: &[Table]) -> String {
    let mut out =
        "workload,threads,subject,capacity,rounds,ops,ns,ns_min,ns_max,cpu_ns,base,ratio,\
                   ratio_min,ratio_max,cpu_ratio,hit_ratio,resident,refused_share\n"
            .to_owned();
    for table in tables {
        let base_row = table.row(base);
        for row in &table.rows {
            let number = |n: Option<f64>| n.map_or(String::new(), |n| format!("{n:.4}"));
            let three = |s: Option<Spread>| {
                [s.map(|s| s.median), s.map(|s| s.min), s.map(|s| s.max)].map(number).join(",")
            };
            let cells = [
                table.workload.name.clone(),
                table.threads.to_string(),
                row.peer.name.to_owned(),
                table.workload.capacity.to_string(),
                row.samples.len().to_string(),
                row.samples.iter().map(|s| s.ops).sum::<u64>().to_string(),
                three(row.wall()),
                number(row.cpu().map(|s| s.median)),
                base.to_owned(),
                three(base_row.and_then(|base| row.ratio(base))),
                number(base_row.and_then(|base| row.cpu_ratio(base)).map(|s| s.median)),
                number(row.hit_ratio()),
                row.resident.map_or(String::new(), |n| n.to_string()),
                refused_share(row).map_or(String::new(), |share| format!("{share:.6}")),
            ];
            line(&mut out, cells.join(","));
        }
    }
    out
}

fn refused_share(row: &Row) -> Option<f64> {
    let refusals = row.refusals?;
    (refusals.inserts > 0).then(|| refusals.refused as f64 / refusals.inserts as f64)
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or("–".into(), |Spread { median, min, max }| {
        format!("{} ({}–{})", figure(median), figure(min), figure(max))
    })
}

/// About three digits.
fn figure(number: f64) -> String {
    let digits = if number < 10.0 { 2 } else { usize::from(number < 100.0) };
    format!("{number:.digits$}")
}

fn line(out: &mut String, text: impl std::fmt::Display) {
    let _ = writeln!(out, "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::PEERS;

    #[test]
    fn every_peer_has_a_version_in_the_lock_file() {
        for peer in PEERS {
            assert_ne!(version(peer.package), "?", "{peer:?}");
        }
    }

    #[test]
    fn figures_have_about_three_digits() {
        assert_eq!([0.123, 9.87, 12.34, 123.4].map(figure), ["0.12", "9.87", "12.3", "123"]);
    }
}
