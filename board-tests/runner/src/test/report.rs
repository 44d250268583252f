//! Reports for machines: JSON, one object a line, and JUnit.

use std::{fs, path::Path, time::Duration};

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::json;

use super::outcome::{Kind, Outcome, Totals, Verdict};
use crate::error::Error;

/// One line for a test.
pub(super) fn json_line(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).unwrap_or_default()
}

/// The last line.
pub(super) fn json_totals(totals: Totals) -> String {
    json!({ "totals": totals }).to_string()
}

/// Writes a JUnit file: one suite for host tests, one for doc tests, one for each machine.
pub(super) fn write_junit(path: &Path, outcomes: &[Outcome]) -> Result<(), Error> {
    fs::write(path, junit(outcomes)).map_err(Error::file(path))
}

fn junit(outcomes: &[Outcome]) -> String {
    let mut suites: Vec<TestSuite> = Vec::new();
    for outcome in outcomes {
        let (suite, name) = place(outcome);
        let mut case = TestCase::new(name, status(outcome));
        case.set_classname(&suite).set_time(outcome.time);
        match suites.iter_mut().find(|known| known.name.as_str() == suite) {
            Some(known) => known.add_test_case(case),
            None => {
                let mut new = TestSuite::new(suite);
                new.add_test_case(case);
                suites.push(new);
                continue;
            }
        };
    }
    for suite in &mut suites {
        let time: Duration = suite.test_cases.iter().filter_map(|case| case.time).sum();
        suite.set_time(time);
    }
    let mut report = Report::new("portcullis");
    report.add_test_suites(suites);
    report.to_string().unwrap_or_default()
}

/// Suite and name: `q35/snoop` and `context_switch`.
fn place(outcome: &Outcome) -> (String, &str) {
    match outcome.kind {
        Kind::Host => ("host".to_owned(), &outcome.name),
        Kind::Doc => ("doc".to_owned(), &outcome.name),
        Kind::Board => {
            let (machine, scenario) = outcome.name.rsplit_once('/').unwrap_or(("board", &outcome.name));
            (machine.to_owned(), scenario)
        }
    }
}

fn status(outcome: &Outcome) -> TestCaseStatus {
    match &outcome.verdict {
        Verdict::Passed => TestCaseStatus::success(),
        Verdict::Ignored(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
        Verdict::Failed => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            let first = outcome.details.first().map_or("failed", String::as_str);
            status.set_message(first).set_description(outcome.details.join("\n"));
            status
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{disk::Compared, test::outcome::Figures};

    fn outcome(kind: Kind, name: &str, verdict: Verdict) -> Outcome {
        let details = vec!["left < right".to_owned()];
        Outcome {
            kind,
            name: name.to_owned(),
            verdict,
            time: Duration::from_millis(1500),
            details,
            figures: Figures::default(),
        }
    }

    #[test]
    fn junit_has_a_suite_for_each_machine() {
        let text = junit(&[
            outcome(Kind::Host, "hal::a", Verdict::Passed),
            outcome(Kind::Board, "q35/snoop/read_only_page", Verdict::Failed),
            outcome(Kind::Board, "q35/snoop/large_page", Verdict::Ignored("why".to_owned())),
        ]);
        assert!(text.contains(
            r#"<testsuite name="host" tests="1" disabled="0" errors="0" failures="0" time="1.500""#
        ));
        assert!(
            text.contains(r#"<testsuite name="q35/snoop" tests="2" disabled="1" errors="0" failures="1""#)
        );
        assert!(text.contains(r#"<testcase name="read_only_page" classname="q35/snoop" time="1.500""#));
        assert!(text.contains("left &lt; right"));
        assert!(text.contains(r#"<skipped message="why"/>"#));
    }

    #[test]
    fn json_says_verdict_and_reason() {
        let line = json_line(&outcome(Kind::Doc, "doc x", Verdict::Ignored("why".to_owned())));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["kind"], "doc");
        assert_eq!((&value["verdict"], &value["reason"]), (&json!("ignored"), &json!("why")));
        assert_eq!(value["seconds"], 1.5);
        assert!(value.get("checksums").is_none(), "only boards report figures");
        let mut board = outcome(Kind::Board, "q35/snoop/x", Verdict::Passed);
        board.figures.checksums.push(Compared {
            what: "disk".to_owned(),
            value: 7,
            bytes: 512,
            expected: Some(8),
            expected_bytes: Some(512),
        });
        let value: serde_json::Value = serde_json::from_str(&json_line(&board)).unwrap();
        assert_eq!(
            (&value["checksums"][0]["value"], &value["checksums"][0]["expected"]),
            (&json!(7), &json!(8))
        );
        let totals = Totals::of(&[outcome(Kind::Board, "x", Verdict::Failed)]);
        assert_eq!(json_totals(totals), r#"{"totals":{"failed":1,"ignored":0,"passed":0,"scenarios":1}}"#);
    }
}
