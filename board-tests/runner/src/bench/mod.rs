//! `cargo boards bench`: what operations cost, against their limits.
//!
//! Instructions are counted under callgrind: the same on every machine, so they have fixed limits. Times are
//! measured by criterion, and only ratios of two times of one run have limits.

mod instructions;
mod ratios;

use std::path::PathBuf;

use clap::Args;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Deserialize;

use crate::{error::Error, project::Project};

/// What is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only count instructions: quick, and the same on every machine
    #[arg(long)]
    counts_only: bool,
}

/// `board-tests/bench-limits.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    #[serde(default)]
    count: Vec<instructions::Limit>,
    #[serde(default)]
    ratio: Vec<ratios::Limit>,
}

/// A row of the report.
#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    limit: String,
    goal: String,
    holds: bool,
}

/// Measures and compares; `true` when every limit holds.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let limits = load(project.root().join("board-tests/bench-limits.toml"))?;
    let mut rows = instructions::measure(project, &limits.count)?;
    if !options.counts_only {
        rows.extend(ratios::measure(project, &limits.ratio)?);
    }
    let failed = rows.iter().filter(|row| !row.holds).count();
    println!("{}", table(&rows));
    println!("{} passed, {failed} failed", rows.len() - failed);
    Ok(failed == 0)
}

fn load(path: PathBuf) -> Result<Limits, Error> {
    let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
    let limits: Limits =
        toml::from_str(&text).map_err(|why| Error::Content { path: path.clone(), why: why.to_string() })?;
    if limits.count.is_empty() {
        return Err(Error::Content {
            path,
            why: "no [[count]]: a bench without limits proves nothing".into(),
        });
    }
    Ok(limits)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_header(["operation", "measured", "limit", "goal", "verdict"]);
    for row in rows {
        let verdict = if row.holds { "holds" } else { "EXCEEDED" };
        table.add_row([row.what.as_str(), &row.measured, &row.limit, &row.goal, verdict]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_of_this_repository_are_sound() {
        let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../bench-limits.toml"));
        let limits = load(path).unwrap();
        assert!(limits.count.iter().all(|limit| limit.is_sound()));
    }

    #[test]
    fn what_exceeds_its_limit_stands_out() {
        let row = |holds| {
            let (what, measured, limit) = ("map".into(), "91.0".into(), "90".into());
            Row { what, measured, limit, goal: String::new(), holds }
        };
        assert!(table(&[row(false)]).to_string().contains("EXCEEDED"));
        assert!(!table(&[row(true)]).to_string().contains("EXCEEDED"));
    }
}
