//! `cargo boards sabotage`: deliberate breakages must turn their tests red.
//!
//! A test that stays green when what it tests is broken is worth nothing. Each breakage is a patch; it is
//! applied to a copy of the tree, never to the tree itself.

mod board;
mod tree;

use std::{
    collections::BTreeSet,
    process::Command,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Deserialize;

use crate::{
    child::{self, Limit},
    error::Error,
    progress::{Screen, seconds, toned},
    project::{self, Project},
    test::{
        libtest::Reader,
        outcome::{Kind, Verdict},
    },
    words::Tone,
};
use tree::Tree;

/// How long one test may run, without building; a hang is as red as a failure.
const DEADLINE: Duration = Duration::from_secs(30);

/// What is broken.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only breakages whose patch or description contains TEXT
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Show the breakages, and break nothing
    #[arg(long)]
    list: bool,
}

/// `board-tests/sabotage/index.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    breakage: Vec<Breakage>,
}

/// One deliberate breakage.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Breakage {
    /// File of the patch, beside the index.
    patch: String,
    /// What it breaks, in words.
    what: String,
    /// Package whose tests notice; for `board`, the name of the board.
    package: String,
    /// `lib`, `bins`, the name of an integration test, or `board` for scenarios on a machine. One that begins with
    /// `loom_` runs under the model checker.
    target: String,
    /// Names of the tests that must fail.
    turns_red: Vec<String>,
}

/// Breaks one thing after the other; `true` when each turned its tests red.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let breakages = load(project, &options.filter)?;
    if options.list {
        breakages.iter().for_each(|breakage| println!("{}: {}", breakage.patch, breakage.what));
        return Ok(true);
    }
    let tree = Tree::copy(project)?;
    // All without a breakage first: going back and forth would build everything twice.
    let mut known_green = BTreeSet::new();
    let mut problems = Vec::new();
    for breakage in &breakages {
        problems.push(unbroken(&tree, breakage, &mut known_green)?);
    }
    let mut failed = 0;
    for (breakage, problem) in breakages.iter().zip(problems) {
        let begun = Instant::now();
        let problem = if problem.is_some() { problem } else { broken(&tree, breakage)? };
        let (tone, verdict) = match &problem {
            None => (Tone::Good, format!("turns red {}", breakage.turns_red.join(", "))),
            Some(problem) => (Tone::Bad, problem.clone()),
        };
        failed += usize::from(problem.is_some());
        println!("{}: {} ({})", breakage.what, toned(tone, &verdict), seconds(begun.elapsed()));
    }
    println!("{} passed, {failed} failed", breakages.len() - failed);
    Ok(failed == 0)
}

fn load(project: &Project, filter: &str) -> Result<Vec<Breakage>, Error> {
    let path = project.root().join("board-tests/sabotage/index.toml");
    let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
    let index: Index =
        toml::from_str(&text).map_err(|why| Error::Content { path: path.clone(), why: why.to_string() })?;
    if let Some(idle) = index.breakage.iter().find(|breakage| breakage.turns_red.is_empty()) {
        let why = format!("{} turns no test red", idle.patch);
        return Err(Error::Content { path, why });
    }
    let wanted = |breakage: &Breakage| breakage.patch.contains(filter) || breakage.what.contains(filter);
    let breakages: Vec<_> = index.breakage.into_iter().filter(wanted).collect();
    if breakages.is_empty() {
        return Err(Error::NothingMatches { filter: filter.to_owned() });
    }
    Ok(breakages)
}

/// What is wrong with the tests as they are; `None` when all are there and green. Breakages share tests:
/// those that were seen green are not run again.
fn unbroken<'b>(
    tree: &Tree,
    breakage: &'b Breakage,
    known_green: &mut BTreeSet<[&'b str; 3]>,
) -> Result<Option<String>, Error> {
    let key = |name: &'b String| [breakage.package.as_str(), &breakage.target, name];
    if breakage.turns_red.iter().all(|name| known_green.contains(&key(name))) {
        return Ok(None);
    }
    Ok(match test(tree, breakage, "unbroken")? {
        Tests::DoNotBuild(why) => Some(format!("DOES NOT BUILD, even unbroken: {why}")),
        Tests::Ran { red, .. } if red.is_empty() => {
            known_green.extend(breakage.turns_red.iter().map(key));
            None
        }
        Tests::Ran { red, .. } => Some(format!("RED OR MISSING, even unbroken: {}", red.join(", "))),
    })
}

/// What is wrong with a breakage; `None` when it turns its tests red.
fn broken(tree: &Tree, breakage: &Breakage) -> Result<Option<String>, Error> {
    if let Err(why) = tree.patch(&breakage.patch, false)? {
        return Ok(Some(format!("THE PATCH DOES NOT APPLY: {why}")));
    }
    let tests = test(tree, breakage, "broken");
    if let Err(why) = tree.patch(&breakage.patch, true)? {
        return Ok(Some(format!("THE PATCH CANNOT BE TAKEN BACK: {why}")));
    }
    Ok(match tests? {
        Tests::DoNotBuild(why) => Some(format!("DOES NOT BUILD with it: {why}")),
        Tests::Ran { green, .. } if green.is_empty() => None,
        Tests::Ran { green, .. } => Some(format!("STAYS GREEN: {}", green.join(", "))),
    })
}

/// What came of the tests of a breakage.
enum Tests {
    DoNotBuild(String),
    Ran { green: Vec<String>, red: Vec<String> },
}

fn test(tree: &Tree, breakage: &Breakage, state: &str) -> Result<Tests, Error> {
    if breakage.target == "board" {
        let _screen = Screen::spinner(&format!("{}, {state}: building and testing", breakage.what));
        return board::test(tree, breakage);
    }
    let screen = Screen::spinner(&format!("{}, {state}: building", breakage.what));
    let what = format!("building {} of {}", breakage.target, breakage.package);
    match project::build(&what, cargo_test(tree, breakage, &["--no-run"]), |line| screen.now(line.trim())) {
        Ok(_) => {}
        Err(Error::Build { output, .. }) => return Ok(Tests::DoNotBuild(first_error(&output))),
        Err(error) => return Err(error),
    }
    screen.now(&format!("{}, {state}: testing", breakage.what));
    let (mut green, mut red) = (Vec::new(), Vec::new());
    for name in &breakage.turns_red {
        if is_green(tree, breakage, name)? { &mut green } else { &mut red }.push(name.clone());
    }
    Ok(Tests::Ran { green, red })
}

/// Runs one test; not every harness takes several exact names.
fn is_green(tree: &Tree, breakage: &Breakage, name: &str) -> Result<bool, Error> {
    let command = cargo_test(tree, breakage, &["--", "--test-threads=1", "--exact", name]);
    let mut reader = Reader::new(Kind::Host, "");
    let ran = child::run_within(command, Limit::Whole(DEADLINE), |line| {
        reader.line(line);
    })?;
    let outcomes = reader.finish(&[name.to_owned()], &ran.to_string());
    Ok(outcomes.iter().all(|outcome| outcome.verdict != Verdict::Failed))
}

fn cargo_test(tree: &Tree, breakage: &Breakage, more: &[&str]) -> Command {
    let is_modelled = breakage.target.starts_with("loom_");
    let mut command = if is_modelled { tree.cargo_for_models() } else { tree.cargo() };
    command.args(["test", "--package", &breakage.package]);
    match breakage.target.as_str() {
        "lib" => command.arg("--lib"),
        "bins" => command.arg("--bins"),
        name => command.args(["--test", name]),
    };
    command.args(more);
    command
}

fn first_error(output: &str) -> String {
    output.lines().find(|line| line.starts_with("error")).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_breakages_of_this_repository_have_their_patches() {
        let project = Project::find().unwrap();
        for breakage in load(&project, "").unwrap() {
            let patch = project.root().join("board-tests/sabotage").join(&breakage.patch);
            assert!(patch.is_file(), "{} is missing", breakage.patch);
        }
        let nothing = load(&project, "no breakage is called like this");
        assert!(matches!(nothing, Err(Error::NothingMatches { .. })));
    }

    #[test]
    fn the_error_of_a_build_is_its_first() {
        assert_eq!(first_error("warning: x\nerror[E1]: y\nerror: z"), "error[E1]: y");
    }
}
