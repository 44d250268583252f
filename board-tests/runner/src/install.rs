//! `cargo boards install`: what is missing, and how to get it. Nothing is installed silently.

use std::{fmt, process::Command};

use clap::Args;

use crate::{
    board::Board,
    child,
    error::Error,
    progress::{Screen, heading},
    qemu,
};

/// How it is installed.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Run the commands; without it they are only shown
    #[arg(long, short)]
    yes: bool,
}

/// Rust components that the checks need beyond demo and tests.
const COMPONENTS: &[&str] = &["clippy", "rustfmt"];
/// Programs that they need, and the Debian packages that hold them.
const PROGRAMS: &[(&str, &str)] = &[("valgrind", "valgrind"), ("git", "git")];

/// What things are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Building and booting images; with a QEMU of the user's own, or not.
    Boot { own_qemu: bool },
    /// That, and all checks.
    Everything,
}

/// A command that installs something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    words: Vec<String>,
}

impl Step {
    fn new(words: &[&str], more: &[String]) -> Self {
        Self { words: words.iter().map(|word| (*word).to_owned()).chain(more.iter().cloned()).collect() }
    }

    fn command(&self) -> Command {
        let (program, arguments) =
            self.words.split_first().map_or(("true", &[][..]), |(p, a)| (p.as_str(), a));
        let mut command = Command::new(program);
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.words.join(" "))
    }
}

/// What this account may do to Debian packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// It is root.
    Root,
    /// `sudo` asks for no password.
    Sudo,
    /// Only a person with a password can.
    None,
}

/// What is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Missing {
    targets: Vec<String>,
    components: Vec<String>,
    packages: Vec<String>,
}

impl Missing {
    fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.components.is_empty() && self.packages.is_empty()
    }

    /// The commands that install it.
    fn steps(&self, right: Right) -> Vec<Step> {
        let mut steps = Vec::new();
        if !self.targets.is_empty() {
            steps.push(Step::new(&["rustup", "target", "add"], &self.targets));
        }
        if !self.components.is_empty() {
            steps.push(Step::new(&["rustup", "component", "add"], &self.components));
        }
        if !self.packages.is_empty() {
            let apt: &[&str] = if right == Right::Root { &["apt-get"] } else { &["sudo", "apt-get"] };
            steps.push(Step::new(&[apt, &["update"]].concat(), &[]));
            let install = ["install", "--yes", "--no-install-recommends"];
            steps.push(Step::new(&[apt, &install].concat(), &self.packages));
        }
        steps
    }
}

/// Looks for what all checks need, and with `--yes` installs what is missing.
pub(crate) fn run(boards: &[Board], options: &Options) -> Result<bool, Error> {
    let missing = look(boards, Purpose::Everything)?;
    if missing.is_empty() {
        println!("everything is installed: Rust targets and components, QEMU, valgrind");
        return Ok(true);
    }
    if !options.yes {
        let commands = missing.steps(right()).iter().map(Step::to_string).collect();
        return Err(Error::NotInstalled { commands });
    }
    install(&missing).map(|()| true)
}

/// Installs, visibly, what booting these boards needs. With `own_qemu` the user brings QEMU.
pub(crate) fn ensure(boards: &[Board], own_qemu: bool) -> Result<(), Error> {
    let missing = look(boards, Purpose::Boot { own_qemu })?;
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

fn install(missing: &Missing) -> Result<(), Error> {
    let right = right();
    let steps = missing.steps(right);
    if !missing.packages.is_empty() && right == Right::None {
        return Err(Error::MayNotInstall { by_hand: steps.iter().map(Step::to_string).collect() });
    }
    for step in &steps {
        println!("{}", heading(&format!("running: {step}")));
        let screen = Screen::spinner(&step.to_string());
        let status = child::run(step.command(), |line| screen.line(&format!("  {line}")))?;
        drop(screen);
        if !status.success() {
            return Err(Error::InstallFailed { command: step.to_string(), status: status.to_string() });
        }
    }
    Ok(())
}

fn look(boards: &[Board], purpose: Purpose) -> Result<Missing, Error> {
    let targets = rustup(&["target", "list", "--installed"])?;
    let components = rustup(&["component", "list", "--installed"])?;
    let is_there = |program: &str| qemu::find(program, None).is_some();
    Ok(missing(boards, purpose, &targets, &components, is_there))
}

/// Without rustup Rust came from elsewhere: then a build says what it lacks.
fn rustup(arguments: &[&str]) -> Result<Option<Vec<String>>, Error> {
    if qemu::find("rustup", None).is_none() {
        return Ok(None);
    }
    let mut command = Command::new("rustup");
    command.args(arguments);
    let mut lines = Vec::new();
    let status = child::run(command, |line| lines.push(line.trim().to_owned()))?;
    Ok(status.success().then_some(lines))
}

fn missing(
    boards: &[Board],
    purpose: Purpose,
    targets: &Option<Vec<String>>,
    components: &Option<Vec<String>>,
    is_there: impl Fn(&str) -> bool,
) -> Missing {
    let mut missing = Missing::default();
    for board in boards {
        let known = targets.as_ref().is_none_or(|targets| targets.contains(&board.target));
        if !known && !missing.targets.contains(&board.target) {
            missing.targets.push(board.target.clone());
        }
        if purpose != (Purpose::Boot { own_qemu: true }) && !is_there(&board.qemu) {
            missing.packages.extend(board.apt.iter().cloned());
        }
    }
    if purpose == Purpose::Everything {
        missing.components = missing_components(components);
        let programs = PROGRAMS.iter().filter(|(program, _)| !is_there(program));
        missing.packages.extend(programs.map(|(_, package)| (*package).to_owned()));
    }
    missing.packages.sort();
    missing.packages.dedup();
    missing
}

fn missing_components(installed: &Option<Vec<String>>) -> Vec<String> {
    let Some(installed) = installed else { return Vec::new() };
    // Installed components may be listed with the host's name behind theirs.
    let is_there =
        |name: &str| installed.iter().any(|line| line == name || line.starts_with(&format!("{name}-")));
    COMPONENTS.iter().filter(|name| !is_there(name)).map(|name| (*name).to_owned()).collect()
}

fn right() -> Right {
    if rustix::process::geteuid().is_root() {
        return Right::Root;
    }
    let mut command = Command::new("sudo");
    command.args(["--non-interactive", "true"]);
    match child::run(command, |_| {}) {
        Ok(status) if status.success() => Right::Sudo,
        _ => Right::None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::board;

    fn boards() -> Vec<Board> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards");
        board::select(board::load_all(&folder).unwrap(), &["q35".to_owned()]).unwrap()
    }

    fn names(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        let components = names(&["clippy-x86_64-unknown-linux-gnu", "rustfmt"]);
        let found =
            missing(&boards(), Purpose::Everything, &names(&["x86_64-unknown-none"]), &components, |_| true);
        assert!(found.is_empty(), "{found:?}");
        assert!(missing(&boards(), Purpose::Everything, &None, &None, |_| true).is_empty(), "without rustup");
    }

    #[test]
    fn a_bare_machine_gets_the_exact_commands() {
        let found = missing(&boards(), Purpose::Everything, &names(&[]), &names(&["rustc"]), |_| false);
        let steps: Vec<_> = found.steps(Right::None).iter().map(Step::to_string).collect();
        assert_eq!(
            steps,
            [
                "rustup target add x86_64-unknown-none",
                "rustup component add clippy rustfmt",
                "sudo apt-get update",
                "sudo apt-get install --yes --no-install-recommends git qemu-system-x86 valgrind",
            ]
        );
        assert!(found.steps(Right::Root)[2].to_string().starts_with("apt-get"));
        let boot = missing(&boards(), Purpose::Boot { own_qemu: true }, &None, &names(&[]), |_| false);
        assert!(boot.is_empty(), "{boot:?}");
        let boot = missing(&boards(), Purpose::Boot { own_qemu: false }, &None, &None, |_| false);
        assert_eq!(boot.packages, ["qemu-system-x86"]);
    }
}
