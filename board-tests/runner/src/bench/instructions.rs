//! Instructions an operation, by callgrind.

use std::{path::Path, process::Command, thread};

use serde::Deserialize;

use super::Row;
use crate::{
    child,
    error::Error,
    progress::Screen,
    project::{self, Project},
    qemu,
};

/// A limit on the instructions of an operation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    /// Package with an example `count` that performs an operation a number of times.
    package: String,
    /// The operation.
    operation: String,
    /// Two numbers of times: the difference leaves the set-up out.
    #[serde(default = "default_times")]
    times: [u64; 2],
    /// Units of work in one operation, as pages: the limit is for one of them.
    #[serde(default = "one")]
    units: u64,
    /// Instructions that are allowed for one unit.
    at_most: f64,
    /// Where it is meant to be, when that is less.
    goal: Option<f64>,
}

const fn default_times() -> [u64; 2] {
    [1_000, 11_000]
}

const fn one() -> u64 {
    1
}

impl Limit {
    /// Whether it can be measured at all.
    #[cfg(test)]
    pub(super) fn is_sound(&self) -> bool {
        self.times[0] < self.times[1] && self.units > 0 && self.at_most > 0.0
    }

    /// The row for instruction counts of both runs.
    fn row(&self, counts: [u64; 2]) -> Row {
        let ([few, many], [first, second]) = (self.times, counts);
        let work = (many.saturating_sub(few) * self.units) as f64;
        // A run that got cheaper with more work measured nothing.
        let each = second.checked_sub(first).map_or(f64::INFINITY, |more| more as f64 / work);
        let unit = if self.units == 1 { "" } else { " a page" };
        Row {
            what: format!("{} {}", self.package, self.operation),
            measured: format!("{each:.1} instructions{unit}"),
            limit: format!("{}", self.at_most),
            goal: self.goal.map(|goal| goal.to_string()).unwrap_or_default(),
            holds: each > 0.0 && each <= self.at_most,
        }
    }
}

/// Measures all operations, package by package.
pub(super) fn measure(project: &Project, limits: &[Limit]) -> Result<Vec<Row>, Error> {
    if qemu::find("valgrind", None).is_none() {
        return Err(Error::NoTool("valgrind"));
    }
    let mut packages: Vec<_> = limits.iter().map(|limit| limit.package.as_str()).collect();
    packages.dedup();
    let screen = Screen::steps(limits.len());
    let mut rows = Vec::new();
    for package in packages {
        screen.now(&format!("building the operations of {package}"));
        let example = example_of(package);
        let mut command = project.cargo();
        command.args(["build", "--release", "--package", package, "--example", &example]);
        project::build(&format!("building the operations of {package}"), command, |_| {})?;
        let program = project.target().join("release/examples").join(&example);
        for limit in limits.iter().filter(|limit| limit.package == package) {
            screen.now(&format!("counting {package} {}", limit.operation));
            rows.push(limit.row(counts(&program, limit)?));
            screen.step();
        }
    }
    Ok(rows)
}

/// The example that carries out the operations of `package`: `count_vtd` of `portcullis-vtd`.
fn example_of(package: &str) -> String {
    format!("count_{}", package.trim_start_matches("portcullis-").replace('-', "_"))
}

/// Both counts of an operation, at the same time: they do not depend on what else the machine does.
fn counts(program: &Path, limit: &Limit) -> Result<[u64; 2], Error> {
    let [few, many] = limit.times;
    thread::scope(|scope| {
        let few = scope.spawn(move || count(program, &limit.operation, few));
        let many = count(program, &limit.operation, many);
        let few = few.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok([few?, many?])
    })
}

fn count(program: &Path, operation: &str, times: u64) -> Result<u64, Error> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(program).args([operation, &times.to_string()]);
    let mut lines = Vec::new();
    let status = child::run(command, |line| lines.push(line.to_owned()))?;
    collected(&lines)
        .filter(|_| status.success())
        .ok_or_else(|| Error::Build { what: format!("counting {operation}"), output: lines.join("\n") })
}

/// From `==12== Collected : 345`.
fn collected(lines: &[String]) -> Option<u64> {
    lines.iter().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(times: [u64; 2], units: u64) -> Limit {
        Limit { package: "p".into(), operation: "map".into(), times, units, at_most: 90.0, goal: None }
    }

    #[test]
    fn the_set_up_is_left_out() {
        let row = limit([100, 200], 1).row([1_000_000, 1_009_000]);
        assert_eq!((row.measured.as_str(), row.holds), ("90.0 instructions", true));
        assert!(!limit([100, 200], 1).row([1_000_000, 1_009_001]).holds);
        assert_eq!(limit([1, 2], 512).row([0, 1024]).measured, "2.0 instructions a page");
    }

    #[test]
    fn work_that_costs_nothing_was_not_measured() {
        assert!(!limit([100, 200], 1).row([1000, 1000]).holds);
        assert!(!limit([100, 200], 1).row([1000, 900]).holds);
    }

    #[test]
    fn callgrind_is_read() {
        let lines = ["==7== Events    : Ir", "==7== Collected : 31337"].map(str::to_owned);
        assert_eq!(collected(&lines), Some(31337));
        assert_eq!(collected(&[]), None);
    }
}
