//! The proof of the proof: each defect that is planted in a small image is found, and taken for what it is.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Audited, TARGET,
    finding::{Finding, Kind},
    review::{Review, ReviewedLoop},
};
use crate::{
    error::Error,
    image::{self, Package},
    progress::{seconds, toned},
    project::Project,
    words::Tone,
};

const PACKAGE: &str = "portcullis-audit-check";

/// What is planted, the feature of the image that plants it, and what it must be taken for.
const PLANTINGS: [(&str, Option<&str>, Option<Kind>); 11] = [
    ("nothing", None, None),
    ("stale review", None, Some(Kind::Stale)),
    ("panic", Some("planted-panic"), Some(Kind::Panic)),
    ("dyn call", Some("planted-dyn-call"), Some(Kind::Indirect)),
    ("jump table", Some("planted-jump-table"), Some(Kind::Indirect)),
    ("float", Some("planted-float"), Some(Kind::Vector)),
    ("recursion", Some("planted-recursion"), Some(Kind::Recursion)),
    ("deep frame", Some("planted-deep-frame"), Some(Kind::Stack)),
    ("unlisted loop", Some("planted-loop"), Some(Kind::Loop)),
    ("firmware call", Some("planted-firmware-call"), Some(Kind::Firmware)),
    ("formatting", Some("planted-formatting"), Some(Kind::Formatting)),
];

/// What came of one planting.
pub(super) struct Outcome {
    what: &'static str,
    pub(super) good: bool,
    verdict: String,
    time: Duration,
    findings: Vec<Finding>,
}

impl Outcome {
    pub(super) fn text(&self) -> String {
        let tone = if self.good { Tone::Good } else { Tone::Bad };
        let mut text = format!("{PACKAGE}: {} ({})", toned(tone, &self.verdict), seconds(self.time));
        if !self.good {
            self.findings.iter().for_each(|finding| text += &super::report::finding(finding));
        }
        text
    }

    pub(super) fn json(&self) -> String {
        let verdict = if self.good { "passed" } else { "failed" };
        json!({
            "kind": "planted",
            "name": self.what,
            "verdict": verdict,
            "seconds": self.time.as_secs_f64(),
            "details": self.verdict,
            "findings": self.findings,
        })
        .to_string()
    }
}

/// Plants one defect after the other, while the outcomes are taken.
pub(super) fn run(project: &Project) -> Result<impl Iterator<Item = Result<Outcome, Error>>, Error> {
    let review = Review::load(project.root().join("board-tests/audit-check/audit.toml"))?;
    Ok(PLANTINGS.iter().map(move |(what, feature, expected)| {
        let begun = Instant::now();
        let findings = plant(project, review.clone(), *feature, *expected)?;
        let kinds = findings.iter().map(|finding| finding.kind).collect();
        let (good, verdict) = judge(what, *expected, &kinds);
        Ok(Outcome { what, good, verdict, time: begun.elapsed(), findings })
    }))
}

fn plant(
    project: &Project,
    mut review: Review,
    feature: Option<&str>,
    expected: Option<Kind>,
) -> Result<Vec<Finding>, Error> {
    if expected == Some(Kind::Stale) {
        let text = |text: &str| text.to_owned();
        review.loops.push(ReviewedLoop {
            symbol: text("gone"),
            line: text("gone.rs:1"),
            bound: text("none"),
        });
    }
    let features: Vec<&str> = feature.into_iter().collect();
    let path = image::build(project, &Package { name: PACKAGE, target: TARGET, features: &features })?;
    let audited = super::audit(project, &review, &path, review.entry.iter())?;
    let stale = super::stale(&review, &audited);
    Ok(audited.into_iter().flat_map(|Audited { findings, .. }| findings).chain(stale).collect())
}

fn judge(what: &str, expected: Option<Kind>, found: &BTreeSet<Kind>) -> (bool, String) {
    match (expected, found.first()) {
        (None, None) => (true, "the clean entry is accepted".to_owned()),
        (None, Some(_)) => (false, "THE CLEAN ENTRY IS REFUSED".to_owned()),
        (Some(_), None) => (false, format!("A PLANTED {what} WAS NOT FOUND: the audit proves nothing")),
        (Some(kind), Some(first)) if found.len() == 1 && *first == kind => {
            (true, format!("a planted {what} is found"))
        }
        (Some(kind), Some(_)) => {
            (false, format!("A PLANTED {what} IS NOT FOUND FOR THIS REASON ALONE: {}", kind.words()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planting_must_be_found_for_its_own_reason_alone() {
        let good = |expected, found: &[Kind]| judge("x", expected, &found.iter().copied().collect()).0;
        assert!(good(None, &[]) && good(Some(Kind::Loop), &[Kind::Loop]));
        assert!(!good(None, &[Kind::Loop]) && !good(Some(Kind::Loop), &[]));
        assert!(!good(Some(Kind::Loop), &[Kind::Panic]));
        assert!(!good(Some(Kind::Loop), &[Kind::Loop, Kind::Panic]));
    }
}
