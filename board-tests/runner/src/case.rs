//! A case: one scenario on one machine, from boot to verdict.

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use portcullis_suite::{Event, Scenario};

use crate::{
    board::{Board, Files, Ignored, Variant},
    catalogue,
    child::ChildError,
    console::Said,
    disk::{self, Compared, Disk},
    error::Error,
    image::ReadyBoard,
    qemu::Boot,
    record::Record,
    test::outcome::{Figures, Measured},
    verdict,
    witness::{self, Findings},
};

/// One scenario on one machine.
pub(crate) struct Case<'b> {
    pub(crate) board: &'b Board,
    pub(crate) variant: &'b Variant,
    pub(crate) scenario: &'static Scenario,
    /// Why it is not run.
    pub(crate) ignored: Option<&'b str>,
}

impl Case<'_> {
    /// `board/variant/scenario`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}/{}", self.board.name, self.variant.name, self.scenario.name)
    }
}

/// All cases of these boards: what a machine has everything for, and what is listed as ignored on it.
pub(crate) fn all<'b>(boards: &'b [Board], ignored: &'b [Ignored]) -> Vec<Case<'b>> {
    let mut cases = Vec::new();
    for board in boards {
        for variant in &board.variants {
            for scenario in catalogue::scenarios() {
                let entry =
                    ignored.iter().find(|entry| entry.board == board.name && entry.scenario == scenario.name);
                let ignored = entry.map(|entry| entry.reason.as_str());
                if ignored.is_some() || variant.runs(scenario) {
                    cases.push(Case { board, variant, scenario, ignored });
                }
            }
        }
    }
    cases
}

/// What came of a case that was run.
pub(crate) struct Ended {
    pub(crate) record: Record,
    pub(crate) findings: Findings,
    /// What the board read, beside what it should have.
    pub(crate) checksums: Vec<Compared>,
    /// What was wrong; empty when the case passed.
    pub(crate) complaints: Vec<String>,
    pub(crate) time: Duration,
}

impl Ended {
    /// Whether nothing was wrong.
    pub(crate) fn passed(&self) -> bool {
        self.complaints.is_empty()
    }

    /// What the board read, counted and timed.
    pub(crate) fn figures(&self) -> Figures {
        let events = self.record.events().filter_map(|event| match event {
            Event::Measured { what, value, unit } => {
                Some(Measured { what: what.to_owned(), value, unit: unit.to_owned() })
            }
            _ => None,
        });
        Figures { checksums: self.checksums.clone(), measured: events.collect() }
    }

    /// What was wrong, and the last lines of the board.
    pub(crate) fn details(&self) -> Vec<String> {
        if self.passed() {
            return Vec::new();
        }
        let mut lines = self.complaints.clone();
        lines.push("last lines of the board:".to_owned());
        lines.extend(self.record.last_lines().map(|line| format!("  {line}")));
        lines
    }
}

/// Boots and judges; hands what the board says to `live`.
pub(crate) fn run(case: &Case<'_>, ready: &ReadyBoard, live: impl FnMut(&Said)) -> Result<Ended, Error> {
    let folder = tempfile::tempdir().map_err(Error::file(std::env::temp_dir()))?;
    let trace = folder.path().join("trace");
    let disk =
        case.board.disk_bytes.map(|bytes| Disk::make(&folder.path().join("disk"), bytes)).transpose()?;
    let boot = Boot {
        board: case.board,
        variant: case.variant,
        scenario: case.scenario.name,
        qemu: &ready.qemu,
        image: &ready.image,
        messages: &ready.messages,
        files: Files { trace: &trace, disk: disk.as_ref().map(Disk::path) },
    };
    let (record, end) = boot.run(live)?;
    let time = record.elapsed();
    let mut complaints = verdict::complaints(case.scenario.name, &record, end, case.board.exit);
    let checksums = disk::compare(&record, disk.as_ref());
    complaints.extend(verdict::checksum_complaints(case.scenario, &checksums));
    let findings = examine(case, &record, &trace, &mut complaints);
    Ok(Ended { record, findings, checksums, complaints, time })
}

fn examine(case: &Case<'_>, record: &Record, trace: &Path, complaints: &mut Vec<String>) -> Findings {
    match witness::examine(case.board.witness, record, trace) {
        Ok(findings) => {
            complaints.extend(findings.mismatches.iter().cloned());
            findings
        }
        Err(error) => {
            complaints.push(format!("QEMU left no trace to compare with: {error}"));
            Findings::default()
        }
    }
}

/// Runs `cases` on up to `jobs` machines at a time and hands each to `done` as it ends; the first error,
/// such as Ctrl-C, ends all.
pub(crate) fn run_all(
    cases: &[&Case<'_>],
    ready: &[ReadyBoard],
    jobs: usize,
    mut done: impl FnMut(&Case<'_>, Ended),
) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let (sender, ended) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let sender = sender.clone();
            let (next, failure) = (&next, &failure);
            scope.spawn(move || {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::SeqCst)) {
                    match run_one(case, ready) {
                        Ok(end) => drop(sender.send((*case, end))),
                        Err(error) => {
                            next.store(cases.len(), Ordering::SeqCst);
                            keep_first(failure, error);
                        }
                    }
                }
            });
        }
        drop(sender);
        while let Ok((case, end)) = ended.recv() {
            done(case, end);
        }
    });
    let failure = failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    failure.map_or(Ok(()), Err)
}

fn run_one(case: &Case<'_>, ready: &[ReadyBoard]) -> Result<Ended, Error> {
    let ready = ready.iter().find(|ready| ready.board.name == case.board.name);
    let ready = ready.ok_or_else(|| Error::NoQemu { program: case.board.qemu.clone() })?;
    run(case, ready, |_| {})
}

fn keep_first(failure: &Mutex<Option<Error>>, error: Error) {
    let mut first = failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let interrupted = matches!(error, Error::Child(ChildError::Interrupted));
    if first.is_none() || interrupted {
        *first = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board;

    #[test]
    fn ignored_scenarios_stay_in_the_plan_with_their_reason() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards");
        let boards = board::select(board::load_all(&folder).unwrap(), &["q35".to_owned()]).unwrap();
        let ignored = [Ignored {
            board: "q35".to_owned(),
            scenario: "context_switch".to_owned(),
            reason: "because".to_owned(),
        }];
        let cases = all(&boards, &ignored);
        let switch = cases.iter().find(|case| case.name() == "q35/snoop/context_switch").unwrap();
        assert_eq!(switch.ignored, Some("because"));
        assert!(cases.iter().any(|case| case.name() == "q35/39-bit/width_39" && case.ignored.is_none()));
        assert!(!cases.iter().any(|case| case.name() == "q35/snoop/width_39"));
    }
}
