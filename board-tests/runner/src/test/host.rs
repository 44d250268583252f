//! Host tests and doc tests, built and run through cargo.

use std::{path::Path, time::Duration};

use super::{
    artifact::{Artifact, MESSAGES},
    libtest::{Reader, listed},
    outcome::{Kind, Outcome},
};
use crate::{
    child::{self, Limit},
    error::Error,
    progress::Screen,
    project::{self, Project},
};

/// Name that all doc tests begin with.
const DOC_PREFIX: &str = "doc ";

/// A program of which nothing is heard for so long hangs: no test, with what it builds, takes nearly as long.
const SILENCE: Duration = Duration::from_secs(300);

/// One test program.
pub(super) struct Program {
    /// What its tests' names begin with: `hal::`, or `hal/tests/gate::`.
    prefix: String,
    artifact: Artifact,
    names: Vec<String>,
    /// Whether a filter took some of its tests out.
    is_filtered: bool,
}

/// Builds all test programs and asks each for its tests.
pub(super) fn programs(project: &Project) -> Result<Vec<Program>, Error> {
    let what = "building the host tests";
    let screen = Screen::spinner(what);
    let mut command = project.cargo();
    command.args(MESSAGES);
    let lines = project::build(what, command, |line| {
        if !line.starts_with('{') {
            screen.now(&format!("{what}: {}", line.trim()));
        }
    })?;
    let mut programs = Vec::new();
    for line in &lines {
        if let Some(mut program) = Artifact::announced(line).and_then(|it| program(project.root(), it)) {
            let mut command = program.artifact.command();
            command.args(["--list", "--format", "terse"]);
            program.names = listed(&project::build("listing the host tests", command, |_| {})?);
            programs.push(program);
        }
    }
    Ok(programs)
}

/// The program with the name it has here, without its tests.
fn program(root: &Path, artifact: Artifact) -> Option<Program> {
    let package = artifact.folder.strip_prefix(root).ok()?.display();
    let prefix = match artifact.kind.as_str() {
        "test" => format!("{package}/tests/{}::", artifact.target),
        kind @ ("example" | "bench") => format!("{package}/{kind}s/{}::", artifact.target),
        _ => format!("{package}::"),
    };
    Some(Program { prefix, artifact, names: Vec::new(), is_filtered: false })
}

impl Program {
    /// Full names of its tests.
    pub(super) fn full_names(&self) -> impl Iterator<Item = String> {
        self.names.iter().map(|name| format!("{}{name}", self.prefix))
    }

    /// Keeps the tests whose full names match.
    pub(super) fn retain(&mut self, matches: impl Fn(&str) -> bool) {
        let (prefix, before) = (&self.prefix, self.names.len());
        self.names.retain(|name| matches(&format!("{prefix}{name}")));
        self.is_filtered = self.names.len() < before;
    }

    /// Runs what is left of its tests, one after the other, so that each has a time of its own.
    pub(super) fn run(&self, mut done: impl FnMut(&Outcome)) -> Result<Vec<Outcome>, Error> {
        if !self.is_filtered {
            return self.run_names(&[], &self.names, &mut done);
        }
        let mut outcomes = Vec::new();
        // Not every harness takes several exact names.
        for name in &self.names {
            let expected = std::slice::from_ref(name);
            outcomes.extend(self.run_names(&["--exact", name], expected, &mut done)?);
        }
        Ok(outcomes)
    }

    fn run_names(
        &self,
        arguments: &[&str],
        expected: &[String],
        mut done: impl FnMut(&Outcome),
    ) -> Result<Vec<Outcome>, Error> {
        let mut command = self.artifact.command();
        command.arg("--test-threads=1").args(arguments);
        let mut reader = Reader::new(Kind::Host, &self.prefix);
        let ran = child::run_within(command, Limit::Silence(SILENCE), |line| {
            if let Some(outcome) = reader.line(line) {
                done(outcome);
            }
        })?;
        Ok(reader.finish(expected, &ran.to_string()))
    }
}

/// Full names of all doc tests.
pub(super) fn doc_names(project: &Project) -> Result<Vec<String>, Error> {
    let mut command = project.cargo();
    command.args(["test", "--quiet", "--doc", "--", "--list", "--format", "terse"]);
    let screen = Screen::spinner("listing the doc tests");
    let lines = project::build("listing the doc tests", command, |_| {})?;
    drop(screen);
    Ok(listed(&lines).iter().map(|name| format!("{DOC_PREFIX}{name}")).collect())
}

/// Runs all doc tests and keeps the outcomes of those with these full names.
pub(super) fn run_docs(
    project: &Project,
    names: &[String],
    mut done: impl FnMut(&Outcome),
) -> Result<Vec<Outcome>, Error> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut command = project.cargo();
    command.args(["test", "--doc", "--no-fail-fast", "--", "--test-threads=1"]);
    let mut reader = Reader::new(Kind::Doc, DOC_PREFIX);
    let ran = child::run_within(command, Limit::Silence(SILENCE), |line| {
        if let Some(outcome) = reader.line(line).filter(|outcome| names.contains(&outcome.name)) {
            done(outcome);
        }
    })?;
    let own: Vec<_> =
        names.iter().filter_map(|name| name.strip_prefix(DOC_PREFIX)).map(str::to_owned).collect();
    let outcomes = reader.finish(&own, &ran.to_string());
    Ok(outcomes.into_iter().filter(|outcome| names.contains(&outcome.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::artifact::tests::message;

    fn hal(kind: &str) -> Program {
        program(Path::new("/r"), Artifact::announced(&message(kind, true)).unwrap()).unwrap()
    }

    #[test]
    fn programs_are_named_by_where_they_lie() {
        let prefix = |kind| hal(kind).prefix;
        assert_eq!(prefix("test"), "hal/tests/gate::");
        assert_eq!(prefix("lib"), "hal::");
        assert_eq!(prefix("example"), "hal/examples/gate::");
    }

    #[test]
    fn a_filter_looks_at_full_names() {
        let mut program = hal("test");
        program.names = ["h05_a", "h06_b"].map(String::from).into();
        program.retain(|name| name.contains("gate::h05"));
        assert_eq!(program.full_names().collect::<Vec<_>>(), ["hal/tests/gate::h05_a"]);
    }
}
