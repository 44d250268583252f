//! What came of a test of any kind.

use std::time::Duration;

use console::style;
use serde::Serialize;

use crate::{disk::Compared, progress::seconds};

/// Where a test runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// On this machine, against the hardware models.
    Host,
    /// The same, from an example in the documentation.
    Doc,
    /// On a board in QEMU.
    Board,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "verdict", content = "reason")]
pub(crate) enum Verdict {
    Passed,
    Failed,
    /// Not run, for this reason.
    Ignored(String),
}

/// A test that is over.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) verdict: Verdict,
    #[serde(rename = "seconds", serialize_with = "as_seconds")]
    pub(crate) time: Duration,
    /// What was wrong, line by line.
    pub(crate) details: Vec<String>,
    #[serde(flatten)]
    pub(crate) figures: Figures,
}

/// What a board reported beside events; nothing for tests of other kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    /// What it read, beside what it should have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) checksums: Vec<Compared>,
    /// What it counted or timed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) measured: Vec<Measured>,
}

/// Something counted or timed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Measured {
    pub(crate) what: String,
    pub(crate) value: u64,
    pub(crate) unit: String,
}

fn as_seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

impl Outcome {
    /// One line, followed by the details.
    pub(crate) fn describe(&self) -> String {
        let Self { name, .. } = self;
        let time = seconds(self.time);
        match &self.verdict {
            Verdict::Passed => format!("test {name} ... {} ({time})", style("ok").green()),
            Verdict::Ignored(reason) => {
                format!("test {name} ... {}", style(format!("ignored: {reason}")).yellow())
            }
            Verdict::Failed => {
                let verdict = style("FAILED").red().bold();
                let details = self.details.iter().map(|line| format!("\n    {line}")).collect::<String>();
                format!("test {name} ... {verdict} ({time}){details}")
            }
        }
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) ignored: usize,
    /// Board scenarios that were really run.
    pub(crate) scenarios: usize,
}

impl Totals {
    /// Counts `outcomes`.
    pub(crate) fn of(outcomes: &[Outcome]) -> Self {
        let mut totals = Self::default();
        for outcome in outcomes {
            match outcome.verdict {
                Verdict::Passed => totals.passed += 1,
                Verdict::Failed => totals.failed += 1,
                Verdict::Ignored(_) => totals.ignored += 1,
            }
            let ran = !matches!(outcome.verdict, Verdict::Ignored(_));
            totals.scenarios += usize::from(ran && outcome.kind == Kind::Board);
        }
        totals
    }
}
