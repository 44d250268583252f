//! Times by criterion, and the ratios between them.

use std::path::Path;

use serde::Deserialize;

use super::Row;
use crate::{
    child,
    error::Error,
    progress::{Screen, heading},
    project::Project,
};

/// A limit on the ratio of two times of one run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    /// Package with both benchmarks.
    package: String,
    /// A benchmark, as criterion names its folder: `map/sequential`.
    bench: String,
    /// The benchmark that it is compared with.
    to: String,
    /// How many times as long it may take.
    at_most: f64,
    /// Where it is meant to be, when that is less.
    goal: Option<f64>,
}

/// What criterion leaves behind for a benchmark.
#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
}

/// Runs the benchmarks of all packages that have limits, and compares.
pub(super) fn measure(project: &Project, limits: &[Limit]) -> Result<Vec<Row>, Error> {
    let mut packages: Vec<_> = limits.iter().map(|limit| limit.package.as_str()).collect();
    packages.sort_unstable();
    packages.dedup();
    for package in packages {
        println!("{}", heading(&format!("benchmarks of {package}")));
        let screen = Screen::spinner(package);
        let mut command = project.cargo();
        command.args(["bench", "--package", package, "--benches"]);
        let status = child::run(command, |line| screen.line(line))?;
        if !status.success() {
            let what = format!("cargo bench --package {package}");
            return Err(Error::Build { what, output: "its output is above".to_owned() });
        }
    }
    let folder = project.target().join("criterion");
    limits
        .iter()
        .map(|limit| Ok(limit.row(time(&folder, &limit.bench)?, time(&folder, &limit.to)?)))
        .collect()
}

impl Limit {
    fn row(&self, time: f64, reference: f64) -> Row {
        let ratio = time / reference;
        Row {
            what: format!("{} {} to {}", self.package, self.bench, self.to),
            measured: format!("{ratio:.2} times as long"),
            limit: format!("{}", self.at_most),
            goal: self.goal.map(|goal| goal.to_string()).unwrap_or_default(),
            holds: ratio <= self.at_most,
        }
    }
}

/// Median of a benchmark, in nanoseconds.
fn time(criterion: &Path, bench: &str) -> Result<f64, Error> {
    let path = criterion.join(bench).join("new/estimates.json");
    let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
    let estimates: Estimates =
        serde_json::from_str(&text).map_err(|why| Error::Content { path, why: why.to_string() })?;
    Ok(estimates.median.point_estimate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criterion_is_read_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("map/sequential/new");
        std::fs::create_dir_all(&new).unwrap();
        std::fs::write(new.join("estimates.json"), r#"{"median":{"point_estimate":4.5,"x":1}}"#).unwrap();
        assert_eq!(time(folder.path(), "map/sequential").unwrap(), 4.5);
        assert!(time(folder.path(), "map/other").is_err());
        let limit =
            Limit { package: "p".into(), bench: "map".into(), to: "store".into(), at_most: 3.0, goal: None };
        assert!(limit.row(4.5, 1.5).holds);
        assert!(!limit.row(4.6, 1.5).holds);
        assert!(!limit.row(f64::NAN, 1.5).holds);
    }
}
