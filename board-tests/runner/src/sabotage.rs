//! `cargo boards sabotage`: deliberate breakages must turn their tests red.
//!
//! A test that stays green when what it tests is broken is worth nothing. Each breakage is a patch; it is
//! applied to a copy of the tree, never to the tree itself.

mod board;
mod programs;
mod seed;
mod tree;

use std::{collections::BTreeSet, slice, time::Instant};

use clap::Args;
use serde::Deserialize;

use crate::{
    error::Error,
    progress::{Screen, seconds, toned},
    project::Project,
    words::Tone,
};
use programs::Programs;
use tree::Tree;

/// Package, target and name of a test.
type Test<'b> = [&'b str; 3];

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
    /// `lib`, `bins`, the name of an integration test (see `Way::of` for how it is compiled), or `board` for
    /// scenarios on a machine.
    target: String,
    /// Names of the tests that must fail.
    turns_red: Vec<String>,
}

impl Breakage {
    /// The tests that must fail.
    fn tests(&self) -> impl Iterator<Item = Test<'_>> {
        self.turns_red.iter().map(|name| [&*self.package, &*self.target, name])
    }
}

/// Breaks one thing after the other; `true` when each turned its tests red.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let breakages = load(project, &options.filter)?;
    if options.list {
        breakages.iter().for_each(|breakage| println!("{}: {}", breakage.patch, breakage.what));
        return Ok(true);
    }
    let tree = Tree::copy(project)?;
    let known_green = unbroken(&tree, &breakages)?;
    let screen = Screen::steps(breakages.len());
    let mut failed = 0;
    for breakage in &breakages {
        let begun = Instant::now();
        screen.now(&breakage.what);
        let red = breakage.tests().filter(|test| !known_green.contains(test)).map(|[.., name]| name);
        let red = red.collect::<Vec<_>>();
        let problem = if red.is_empty() {
            broken(&tree, breakage, &screen)?
        } else {
            Some(format!("RED OR MISSING, even unbroken: {}", red.join(", ")))
        };
        let (tone, verdict) = match &problem {
            None => (Tone::Good, format!("turns red {}", breakage.turns_red.join(", "))),
            Some(problem) => (Tone::Bad, problem.clone()),
        };
        failed += usize::from(problem.is_some());
        let time = seconds(begun.elapsed());
        screen.line(&format!("{}: {} ({time})", breakage.what, toned(tone, &verdict)));
        screen.step();
    }
    drop(screen);
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

/// The targets that run on this machine.
fn host_targets(breakages: &[Breakage]) -> BTreeSet<&str> {
    let targets = breakages.iter().map(|breakage| breakage.target.as_str());
    targets.filter(|&target| target != board::TARGET).collect()
}

/// Builds all test programs without a breakage and returns the tests that are there and green; going back and
/// forth would build everything twice.
fn unbroken<'b>(tree: &Tree, breakages: &'b [Breakage]) -> Result<BTreeSet<Test<'b>>, Error> {
    let begun = Instant::now();
    let targets = host_targets(breakages);
    let screen = Screen::spinner("building the tests, unbroken");
    let programs = Programs::build(tree, &targets, |line| screen.now(&format!("unbroken: {line}")))?;
    drop(screen);
    println!("built the tests, unbroken ({})", seconds(begun.elapsed()));
    let begun = Instant::now();
    let tests = breakages.iter().flat_map(Breakage::tests).collect::<BTreeSet<_>>();
    let screen = Screen::steps(tests.len());
    let mut green = BTreeSet::new();
    for &test in &tests {
        let [.., name] = test;
        screen.now(name);
        if is_green(tree, &programs, test)? == Ok(true) {
            green.insert(test);
        }
        screen.step();
    }
    screen.line(&format!(
        "{} of {} tests are green, unbroken ({})",
        green.len(),
        tests.len(),
        seconds(begun.elapsed())
    ));
    Ok(green)
}

/// What is wrong with a breakage; `None` when it turns its tests red.
fn broken(tree: &Tree, breakage: &Breakage, screen: &Screen) -> Result<Option<String>, Error> {
    if let Err(why) = tree.patch(&breakage.patch, false)? {
        return Ok(Some(format!("THE PATCH DOES NOT APPLY: {why}")));
    }
    let problem = stays_green(tree, breakage, screen);
    if let Err(why) = tree.patch(&breakage.patch, true)? {
        return Ok(Some(format!("THE PATCH CANNOT BE TAKEN BACK: {why}")));
    }
    problem
}

/// The same, with the patch applied.
fn stays_green(tree: &Tree, breakage: &Breakage, screen: &Screen) -> Result<Option<String>, Error> {
    let targets = host_targets(slice::from_ref(breakage));
    let live = |line: &str| screen.now(&format!("{}: {line}", breakage.what));
    let programs = match Programs::build(tree, &targets, live) {
        Ok(programs) => programs,
        Err(Error::Build { output, .. }) => {
            return Ok(Some(format!("DOES NOT BUILD with it: {}", first_error(&output))));
        }
        Err(error) => return Err(error),
    };
    let mut green = Vec::new();
    for test in breakage.tests() {
        match is_green(tree, &programs, test)? {
            Ok(true) => green.push(test[2]),
            Ok(false) => {}
            Err(why) => return Ok(Some(format!("DOES NOT RUN with it: {why}"))),
        }
    }
    Ok((!green.is_empty()).then(|| format!("STAYS GREEN: {}", green.join(", "))))
}

/// Whether a test is there and green; the inner error says why it could not be run.
fn is_green(tree: &Tree, programs: &Programs, test: Test<'_>) -> Result<Result<bool, String>, Error> {
    let [package, target, name] = test;
    if target == board::TARGET {
        return board::is_green(tree, package, name);
    }
    match programs.of(package, target) {
        Some(program) => programs::is_green(tree, program, name).map(Ok),
        None => Ok(Err(format!("{target} of {package} is not built"))),
    }
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
