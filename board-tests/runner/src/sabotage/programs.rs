//! Test programs of the copy: built together, and run without cargo.

use std::{collections::BTreeSet, time::Duration};

use super::tree::{Tree, Way};
use crate::{
    child::{self, Limit},
    error::Error,
    project,
    test::{
        artifact::{Artifact, MESSAGES},
        libtest::Reader,
        outcome::{Kind, Verdict},
    },
};

/// How long one test may run; a hang is as red as a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// Test programs that were just built.
#[derive(Default)]
pub(super) struct Programs {
    built: Vec<Artifact>,
}

impl Programs {
    /// Builds the targets of these names in all packages that have one. Always of all packages: with some of
    /// them only, other features of dependencies were on, and those built again.
    pub(super) fn build(
        tree: &Tree,
        targets: &BTreeSet<&str>,
        mut live: impl FnMut(&str),
    ) -> Result<Self, Error> {
        let mut built = Vec::new();
        for way in [Way::Quick, Way::Optimised, Way::Modelled] {
            let targets = targets.iter().copied().filter(|target| Way::of(target) == way).collect::<Vec<_>>();
            if targets.is_empty() {
                continue;
            }
            let mut command = tree.cargo(way);
            command.args(MESSAGES);
            for target in &targets {
                match *target {
                    "lib" => command.arg("--lib"),
                    "bins" => command.arg("--bins"),
                    name => command.args(["--test", name]),
                };
            }
            let lines = project::build(&format!("building {}", targets.join(", ")), command, |line| {
                if !line.starts_with('{') {
                    live(line.trim());
                }
            })?;
            built.extend(lines.iter().filter_map(|line| Artifact::announced(line)));
        }
        Ok(Self { built })
    }

    /// The program of this target.
    pub(super) fn of(&self, package: &str, target: &str) -> Option<&Artifact> {
        self.built.iter().find(|artifact| is_of(artifact, package, target))
    }
}

/// Whether this test of the program is there and green. It runs alone: a test that hangs or ends the program must
/// not take others with it.
pub(super) fn is_green(tree: &Tree, program: &Artifact, name: &str) -> Result<bool, Error> {
    let mut command = tree.program(program);
    command.args(["--test-threads=1", "--exact", name]);
    let mut reader = Reader::new(Kind::Host, "");
    let ran = child::run_within(command, Limit::Whole(DEADLINE), |line| {
        reader.line(line);
    })?;
    let outcomes = reader.finish(&[name.to_owned()], &ran.to_string());
    Ok(outcomes.iter().all(|outcome| outcome.verdict != Verdict::Failed))
}

fn is_of(artifact: &Artifact, package: &str, target: &str) -> bool {
    artifact.package == package
        && match artifact.kind.as_str() {
            "test" => artifact.target == target,
            "bin" => target == "bins",
            kind => kind == target,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::artifact::tests::message;

    #[test]
    fn a_program_is_found_by_its_package_and_target() {
        let is_of = |kind, package, target| {
            is_of(&Artifact::announced(&message(kind, true)).unwrap(), package, target)
        };
        assert!(is_of("test", "portcullis-hal", "gate"));
        assert!(is_of("lib", "portcullis-hal", "lib"));
        assert!(is_of("bin", "portcullis-hal", "bins"));
        assert!(!is_of("test", "portcullis-hal", "lib"));
        assert!(!is_of("test", "portcullis-vtd", "gate"));
    }
}
