//! Reading what Rust's test harness prints.

use std::time::{Duration, Instant};

use super::outcome::{Figures, Kind, Outcome, Verdict};

/// Names from `--list --format terse`.
pub(crate) fn listed(lines: &[String]) -> Vec<String> {
    lines.iter().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Follows the output of a test program that runs one test at a time: a test's time is the time since the
/// line before.
pub(crate) struct Reader {
    kind: Kind,
    prefix: String,
    last: Instant,
    outcomes: Vec<Outcome>,
    /// Index of the outcome whose output is being shown.
    section: Option<usize>,
}

impl Reader {
    /// A reader of a program whose tests are called `prefix` plus their own name.
    pub(crate) fn new(kind: Kind, prefix: &str) -> Self {
        let last = Instant::now();
        Self { kind, prefix: prefix.to_owned(), last, outcomes: Vec::new(), section: None }
    }

    /// Takes a line; the outcome, if it has one without more to come.
    pub(crate) fn line(&mut self, line: &str) -> Option<&Outcome> {
        if line.starts_with("running ") {
            // What came before was building.
            self.last = Instant::now();
            return None;
        }
        if let Some((name, verdict)) = verdict_line(line) {
            let time = self.last.elapsed();
            self.last = Instant::now();
            self.outcomes.push(self.outcome(name, verdict, time));
            return self.outcomes.last();
        }
        self.output(line);
        None
    }

    fn outcome(&self, name: &str, verdict: Verdict, time: Duration) -> Outcome {
        Outcome {
            kind: self.kind,
            name: format!("{}{name}", self.prefix),
            verdict,
            time,
            details: Vec::new(),
            figures: Figures::default(),
        }
    }

    fn output(&mut self, line: &str) {
        // The standard harness writes `---- NAME stdout ----`, others leave out the stream.
        let header = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" ----"));
        let header = header.map(|name| name.strip_suffix(" stdout").unwrap_or(name));
        if let Some(name) = header {
            let name = format!("{}{name}", self.prefix);
            self.section = self.outcomes.iter().position(|outcome| outcome.name == name);
        } else if line == "failures:" || line.starts_with("test result:") {
            self.section = None;
        } else if let Some(outcome) = self.section.and_then(|at| self.outcomes.get_mut(at)) {
            outcome.details.push(line.to_owned());
        }
    }

    /// All outcomes; a test of `expected` of which nothing was heard has failed with its program.
    pub(crate) fn finish(mut self, expected: &[String], status: &str) -> Vec<Outcome> {
        for name in expected {
            let full = format!("{}{name}", self.prefix);
            if !self.outcomes.iter().any(|outcome| outcome.name == full) {
                let mut outcome = self.outcome(name, Verdict::Failed, self.last.elapsed());
                outcome.details.push(format!("no result: the test program ended with {status}"));
                self.outcomes.push(outcome);
            }
        }
        self.outcomes
    }
}

/// `test NAME ... VERDICT`; a test's own output may stand before the verdict.
fn verdict_line(line: &str) -> Option<(&str, Verdict)> {
    let (mut name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    for end in [" - should panic", " - compile fail", " - compile"] {
        // Some harnesses align what follows the names.
        name = name.trim_end().strip_suffix(end).unwrap_or(name.trim_end());
    }
    if let Some((_, reason)) = result.split_once("ignored") {
        let reason = reason.trim_start_matches([',', ' ']);
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        return Some((name, Verdict::Ignored(reason.to_owned())));
    }
    match result {
        result if result.ends_with("FAILED") => Some((name, Verdict::Failed)),
        result if result.ends_with("ok") => Some((name, Verdict::Passed)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test wait::h04_ends     ... ok
test wait::panics - should panic ... ok
test wait::slow ... ignored, takes a day
test wait::wrong ... FAILED

failures:

---- wait::wrong stdout ----
thread 'wait::wrong' panicked at hal/tests/wait.rs:3:5:
left != right

failures:
    wait::wrong

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out
";

    fn read(text: &str, expected: &[&str]) -> Vec<Outcome> {
        let mut reader = Reader::new(Kind::Host, "hal/");
        for line in text.lines() {
            reader.line(line);
        }
        let expected: Vec<_> = expected.iter().map(|name| (*name).to_owned()).collect();
        reader.finish(&expected, "exit status: 101")
    }

    #[test]
    fn verdicts_reasons_and_output_are_read() {
        let outcomes = read(OUTPUT, &["wait::wrong"]);
        let names: Vec<_> = outcomes.iter().map(|outcome| outcome.name.as_str()).collect();
        assert_eq!(names, ["hal/wait::h04_ends", "hal/wait::panics", "hal/wait::slow", "hal/wait::wrong"]);
        let verdicts: Vec<_> = outcomes.iter().map(|outcome| outcome.verdict.clone()).collect();
        let ignored = Verdict::Ignored("takes a day".to_owned());
        assert_eq!(verdicts, [Verdict::Passed, Verdict::Passed, ignored, Verdict::Failed]);
        assert!(outcomes[3].details.contains(&"left != right".to_owned()));
        assert!(outcomes[0].details.is_empty());
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        let outcomes = read("running 2 tests\ntest a ... ok\ntest b ... ", &["a", "b"]);
        assert_eq!(outcomes[1].verdict, Verdict::Failed);
        assert!(outcomes[1].details[0].contains("101"));
    }

    #[test]
    fn lists_are_read() {
        let lines = ["a::b: test", "c: benchmark", "src/lib.rs - x (line 3): test"].map(str::to_owned);
        assert_eq!(listed(&lines), ["a::b", "src/lib.rs - x (line 3)"]);
    }
}
