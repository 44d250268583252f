//! `cargo boards audit`: code that runs in real mode is safe there, proved on the linked image.
//!
//! In real mode a fault is the end of the machine, and nobody waits for a loop. So all that an entry point can
//! reach is disassembled and followed, as it was linked: what the compiler and the linker added counts too. First
//! the audit shows that it finds what is planted in a small image, or it would prove nothing.

mod body;
mod decode;
mod elf;
mod finding;
mod graph;
mod lines;
mod loops;
mod planted;
mod registers;
mod report;
mod review;
mod rules;
mod stack;
mod target;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;

use crate::{
    error::Error,
    image::{self, Package},
    project::Project,
};
use elf::Image;
use finding::{Finding, Kind};
use graph::{Reachable, Subject};
use lines::Lines;
use registers::Disassembler;
use review::{Entry, Review};

const TARGET: &str = "powerpc64le-unknown-linux-gnu";

/// What is audited, and how it is told.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Options {
    /// Print one JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// Audit this file for the entry points of the list, instead of building their images
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Do not show first that planted defects are found: quick, for work on an image
    #[arg(long)]
    skip_planted: bool,
}

const HELP: &str = "\
board-tests/audit.toml lists the entry points, the most stack they may need, and the reviewed loops.
From each entry point must not be reachable:
  a panic, or a trap that can be taken; formatting, logging, allocation; a firmware call;
  a vector or floating-point instruction; an indirect call or jump table; recursion;
  a loop that is not on the list; more stack than allowed; bytes that are no known instruction.
Also an entry of the list that matches no loop is an error.
For a loop that is not on the list the entry is printed, but for what bounds the loop:
that is for a reviewer to find and to write.

Examples:
  cargo boards audit                 planted defects first, then the call tree of each entry point
  cargo boards audit --skip-planted  the images only
  cargo boards audit --json          for a program: an object a line, the last one with totals

Exit status: 0 all proved, 1 something was found, 2 the machine lacks something, 130 interrupted.";

/// What came of one entry point.
#[derive(Debug)]
struct Audited {
    entry: Entry,
    reachable: Reachable,
    findings: Vec<Finding>,
}

/// Audits; `true` when all that is planted is found, and nothing else.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let mut totals = report::Totals::default();
    if !options.skip_planted {
        for outcome in planted::run(project)? {
            let outcome = outcome?;
            totals.count(outcome.good);
            println!("{}", if options.json { outcome.json() } else { outcome.text() });
        }
    }
    let begun = Instant::now();
    let review = Review::load(project.root().join("board-tests/audit.toml"))?;
    let (audited, stale) = audit_all(project, &review, options.image.as_deref())?;
    for one in &audited {
        totals.count(one.findings.is_empty());
        println!("{}", if options.json { report::json(one, &review) } else { report::text(one, &review) });
    }
    if !stale.is_empty() {
        totals.count(false);
        println!("{}", if options.json { report::stale_json(&stale) } else { report::stale_text(&stale) });
    }
    println!("{}", if options.json { totals.json() } else { totals.text(begun.elapsed()) });
    Ok(totals.failed == 0)
}

/// Each entry point of the list in its own image, or in `file`; and what is stale in the list.
fn audit_all(
    project: &Project,
    review: &Review,
    file: Option<&Path>,
) -> Result<(Vec<Audited>, Vec<Finding>), Error> {
    let mut audited = Vec::new();
    let packages: BTreeSet<&str> = review.entry.iter().map(|entry| entry.package.as_str()).collect();
    for package in packages {
        let path = match file {
            Some(file) => file.to_owned(),
            None => image::build(project, &Package { name: package, target: TARGET, features: &[] })?,
        };
        let entries = review.entry.iter().filter(|entry| entry.package == package);
        audited.extend(audit(project, review, &path, entries)?);
    }
    let stale = stale(review, &audited);
    Ok((audited, stale))
}

/// Audits entry points of one image.
fn audit<'e>(
    project: &Project,
    review: &Review,
    path: &Path,
    entries: impl Iterator<Item = &'e Entry>,
) -> Result<Vec<Audited>, Error> {
    let image = Image::load(path)?;
    let lines = Lines::load(path, project.root())?;
    let disassembler = disassembler()?;
    let subject = Subject { image: &image, lines: &lines, disassembler: &disassembler, review };
    let missing =
        |entry: &Entry| Error::NoEntryPoint { symbol: entry.symbol.clone(), image: path.to_owned() };
    entries.map(|entry| audit_entry(&subject, entry).ok_or_else(|| missing(entry))).collect()
}

fn disassembler() -> Result<Disassembler, Error> {
    let broken = |error: capstone::Error| Error::Project(format!("the disassembler does not start: {error}"));
    Disassembler::new().map_err(broken)
}

/// Audits an entry point; `None` if the image has no such function.
fn audit_entry(subject: &Subject<'_>, entry: &Entry) -> Option<Audited> {
    let reachable = Reachable::from(subject, subject.image.named(&entry.symbol)?);
    let findings = reachable.findings(subject.review);
    Some(Audited { entry: entry.clone(), reachable, findings })
}

/// Reviewed loops that no entry point reaches any more.
fn stale(review: &Review, audited: &[Audited]) -> Vec<Finding> {
    let met: BTreeSet<usize> = audited.iter().flat_map(|one| one.reachable.reviewed()).collect();
    let unmet = review.loops.iter().enumerate().filter(|(place, _)| !met.contains(place));
    let finding = |(_, reviewed): (usize, &review::ReviewedLoop)| Finding {
        kind: Kind::Stale,
        what: format!("no reachable loop of `{}` is at {}", reviewed.symbol, reviewed.line),
        path: vec![review.path.display().to_string()],
        entry: Vec::new(),
    };
    unmet.map(finding).collect()
}

#[cfg(test)]
mod tests;
