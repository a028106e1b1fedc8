//! Bars: ratios to reach, from a table of comma-separated values.
//!
//! Each line names a workload, a number of threads, a subject, the base that it
//! is held against, the largest ratio of their times and, where the hit ratio
//! counts too, by how many points it may fall below the base's:
//!
//! ```text
//! workload,threads,subject,base,max_ratio,max_points_below
//! read-through,2,alru,quick_cache,0.6,0.3
//! ```
//!
//! Empty lines and lines that start with `#` say nothing.

use std::fmt;

use crate::measure::Table;

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    workload: String,
    threads: usize,
    subject: String,
    base: String,
    max_ratio: f64,
    max_points_below: Option<f64>,
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, threads, subject, base, max_ratio, .. } = self;
        write!(f, "{workload}, {threads} T: {subject} ≤ {max_ratio} × {base}")?;
        match self.max_points_below {
            Some(points) => write!(f, ", hit ratio at most {points} points below"),
            None => Ok(()),
        }
    }
}

/// What a run says about a bar.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Reached; how.
    Reached(String),
    /// Fallen short; how.
    Short(String),
    /// The run has no such row.
    NotRun,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Reached(how) => write!(f, "reached: {how}"),
            Verdict::Short(how) => write!(f, "**short**: {how}"),
            Verdict::NotRun => f.write_str("not run"),
        }
    }
}

/// Reads a table of bars.
///
/// # Errors
/// A message for the user that names the line.
pub fn parse(text: &str) -> Result<Vec<Bar>, String> {
    let mut bars = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line.starts_with("workload,") {
            continue;
        }
        bars.push(parse_line(line).map_err(|what| format!("line {}: {what}: `{line}`", i + 1))?);
    }
    Ok(bars)
}

fn parse_line(line: &str) -> Result<Bar, &'static str> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let &[workload, threads, subject, base, max_ratio, max_points_below] = fields.as_slice() else {
        return Err("want 6 fields");
    };
    let number = |text: &str| text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    Ok(Bar {
        workload: workload.to_owned(),
        threads: threads.parse().map_err(|_| "threads is not a number")?,
        subject: subject.to_owned(),
        base: base.to_owned(),
        max_ratio: number(max_ratio).ok_or("max_ratio is not a number")?,
        max_points_below: match max_points_below {
            "" => None,
            points => Some(number(points).ok_or("max_points_below is not a number")?),
        },
    })
}

impl Bar {
    /// Holds the bar against a run.
    pub fn judge(&self, tables: &[Table]) -> Verdict {
        self.find(tables).unwrap_or(Verdict::NotRun)
    }

    fn find(&self, tables: &[Table]) -> Option<Verdict> {
        let table = tables
            .iter()
            .find(|t| t.workload.name == self.workload && t.threads == self.threads)?;
        let (own, base) = (table.row(&self.subject)?, table.row(&self.base)?);
        let ratio = own.ratio(base)?;
        let mut how = format!("{:.2} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max);
        let mut reached = ratio.median <= self.max_ratio;
        if let Some(allowed) = self.max_points_below {
            let below = 100.0 * (base.hit_ratio()? - own.hit_ratio()?);
            reached &= below <= allowed;
            how += &format!(", hit ratio {:+.2} points", -below);
        }
        Some(if reached { Verdict::Reached(how) } else { Verdict::Short(how) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::PEERS;
    use crate::measure::{Row, Sample};
    use crate::workload::Workload;

    fn table() -> Table {
        let row = |i: usize, wall, hits| Row {
            peer: PEERS[i],
            samples: vec![Sample { wall, look_ups: 1_000, hits, ..Sample::default() }],
            resident: None,
            refusals: None,
        };
        Table {
            workload: Workload::parse("hits-1k", 1, 1).unwrap(),
            threads: 1,
            rows: vec![row(0, 10.0, 900), row(1, 8.0, 895)],
            others: None,
        }
    }

    #[test]
    fn bars_are_judged_by_ratio_and_by_hit_ratio() {
        let (base, own) = (PEERS[0].name, PEERS[1].name);
        for (line, reached) in [
            ("hits-1k,1,OWN,BASE,0.8,", true),
            ("hits-1k,1,OWN,BASE,0.79,", false),
            ("hits-1k,1,OWN,BASE,0.8,0.6", true),
            ("hits-1k,1,OWN,BASE,0.8,0.4", false),
        ] {
            let line = line.replace("OWN", own).replace("BASE", base);
            let verdict = parse(&line).unwrap()[0].judge(&[table()]);
            assert_eq!(matches!(verdict, Verdict::Reached(_)), reached, "{line}: {verdict}");
            assert_ne!(verdict, Verdict::NotRun);
        }
        let absent = parse("hits-1k,2,x,y,1,\nhits-1k,1,x,y,1,\nno,1,x,y,1,").unwrap();
        assert!(absent.iter().all(|bar| bar.judge(&[table()]) == Verdict::NotRun));
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_line() {
        for nonsense in
            ["a", "a,b,c,d,e,f", "a,1,b,c,NaN,", "a,1,b,c,1,x", "a,1,b,c,-1,", ",,,,,,,"]
        {
            let error = parse(&format!("# head\n{nonsense}")).unwrap_err();
            assert!(error.starts_with("line 2: "), "{error}");
        }
    }

    #[test]
    fn committed_bars_name_workloads_that_exist() {
        let bars = parse(include_str!("../bars.csv")).unwrap();
        assert!(!bars.is_empty());
        for bar in bars {
            Workload::parse(&bar.workload, 1_000, 8).unwrap();
        }
    }
}
