//! `cargo boards test`: host tests, doc tests and every board scenario, each with its name, time and verdict.

pub(crate) mod artifact;
mod host;
pub(crate) mod libtest;
pub(crate) mod outcome;
mod report;

use std::{path::PathBuf, time::Instant};

use clap::Args;

use crate::{
    board::{self, Board},
    case::{self, Case, Ended},
    error::Error,
    image::{self, ReadyBoard},
    install,
    progress::{Screen, heading, seconds},
    project::Project,
};
use outcome::{Kind, Outcome, Totals, Verdict};

/// What is tested, and how it is told.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tests whose full name contains TEXT; may be given several times
    #[arg(long, short, value_name = "TEXT")]
    filter: Vec<String>,
    /// Only the scenarios of this board, such as q35 or powernv9, without host tests; may be given several times
    #[arg(long, short, value_name = "NAME")]
    board: Vec<String>,
    /// Show the names of what would run, and run nothing
    #[arg(long)]
    list: bool,
    /// Print one JSON object a line instead of text
    #[arg(long)]
    json: bool,
    /// Also write a JUnit report
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Boards that run at the same time [default: one for each CPU, at most 4]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Folder with the qemu-system-* programs to use, instead of PATH
    #[arg(long, value_name = "DIR")]
    qemu: Option<PathBuf>,
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|text| name.contains(text.as_str()))
    }

    fn jobs(&self) -> usize {
        self.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(4)))
    }
}

/// Runs or lists; `true` when all is well.
pub(crate) fn run(project: &Project, options: &Options) -> Result<bool, Error> {
    let boards = board::load_all(&project.boards())?;
    let ignored = board::load_ignored(&project.boards(), &boards)?;
    let boards = board::select(boards, &options.board)?;
    let all = case::all(&boards, &ignored);
    let cases: Vec<_> = all.iter().filter(|case| options.wants(&case.name())).collect();
    let needed = needed(&boards, &cases);
    // Whatever the machine lacks is said before anything is built.
    if !options.list {
        ensure(options, &needed)?;
    }
    let host = Host::plan(project, options)?;
    if cases.is_empty() && host.is_empty() {
        return Err(Error::NothingMatches { filter: options.filter.join(" ") });
    }
    if options.list {
        host.names().chain(cases.iter().map(|case| case.name())).for_each(|name| println!("{name}"));
        return Ok(true);
    }
    let ready = needed
        .into_iter()
        .map(|board| image::prepare(project, board, options.qemu.as_deref()))
        .collect::<Result<Vec<_>, _>>()?;
    let session = Session { options, screen: Screen::steps(host.names().count() + cases.len()) };
    let begun = Instant::now();
    let mut outcomes = session.host(project, &host)?;
    outcomes.extend(session.boards(&cases, &ready)?);
    session.conclude(&outcomes, &cases, begun)
}

/// The host's part of a run.
struct Host {
    programs: Vec<host::Program>,
    docs: Vec<String>,
}

impl Host {
    fn plan(project: &Project, options: &Options) -> Result<Self, Error> {
        if !options.board.is_empty() {
            return Ok(Self { programs: Vec::new(), docs: Vec::new() });
        }
        let mut programs = host::programs(project)?;
        programs.iter_mut().for_each(|program| program.retain(|name| options.wants(name)));
        let docs = host::doc_names(project)?.into_iter().filter(|name| options.wants(name)).collect();
        Ok(Self { programs, docs })
    }

    fn names(&self) -> impl Iterator<Item = String> {
        self.programs.iter().flat_map(host::Program::full_names).chain(self.docs.iter().cloned())
    }

    fn is_empty(&self) -> bool {
        self.names().next().is_none()
    }
}

/// The boards that something is to run on.
fn needed(boards: &[Board], cases: &[&Case<'_>]) -> Vec<Board> {
    let runs =
        |board: &&Board| cases.iter().any(|case| case.ignored.is_none() && case.board.name == board.name);
    boards.iter().filter(runs).cloned().collect()
}

fn ensure(options: &Options, boards: &[Board]) -> Result<(), Error> {
    let own_qemu = options.qemu.is_some();
    // Lines for people do not belong between those for machines.
    if options.json { install::check(boards, own_qemu) } else { install::ensure(boards, own_qemu) }
}

/// A run that goes on.
struct Session<'o> {
    options: &'o Options,
    screen: Screen,
}

impl Session<'_> {
    fn tell(&self, outcome: &Outcome) {
        let text = if self.options.json { report::json_line(outcome) } else { outcome.describe() };
        self.screen.line(&text);
        self.screen.step();
    }

    fn part(&self, title: &str) {
        self.screen.now(title);
        if !self.options.json {
            self.screen.line(&heading(title));
        }
    }

    fn host(&self, project: &Project, host: &Host) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::new();
        if host.names().next().is_some() {
            self.part("host tests");
        }
        for program in &host.programs {
            outcomes.extend(self.told(|done| program.run(done))?);
        }
        if !host.docs.is_empty() {
            self.part("doc tests");
        }
        outcomes.extend(self.told(|done| host::run_docs(project, &host.docs, done))?);
        Ok(outcomes)
    }

    /// Tells of good outcomes as they come, and of failures when their output is complete.
    fn told(
        &self,
        run: impl FnOnce(&mut dyn FnMut(&Outcome)) -> Result<Vec<Outcome>, Error>,
    ) -> Result<Vec<Outcome>, Error> {
        let mut live = |outcome: &Outcome| {
            if outcome.verdict != Verdict::Failed {
                self.tell(outcome);
            }
        };
        let outcomes = run(&mut live)?;
        outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Failed).for_each(|o| self.tell(o));
        Ok(outcomes)
    }

    fn boards(&self, cases: &[&Case<'_>], ready: &[ReadyBoard]) -> Result<Vec<Outcome>, Error> {
        if !cases.is_empty() {
            self.part("board scenarios");
        }
        let mut outcomes = Vec::new();
        let (ignored, runnable): (Vec<&Case<'_>>, Vec<&Case<'_>>) =
            cases.iter().partition(|case| case.ignored.is_some());
        for case in ignored {
            let verdict = Verdict::Ignored(case.ignored.unwrap_or_default().to_owned());
            outcomes.push(board_outcome(case, verdict, None));
        }
        outcomes.iter().for_each(|outcome| self.tell(outcome));
        case::run_all(&runnable, ready, self.options.jobs(), |case, ended| {
            let verdict = if ended.passed() { Verdict::Passed } else { Verdict::Failed };
            let outcome = board_outcome(case, verdict, Some(&ended));
            self.tell(&outcome);
            outcomes.push(outcome);
        })?;
        Ok(outcomes)
    }

    fn conclude(self, outcomes: &[Outcome], cases: &[&Case<'_>], begun: Instant) -> Result<bool, Error> {
        if let Some(path) = &self.options.junit {
            report::write_junit(path, outcomes)?;
        }
        let totals = Totals::of(outcomes);
        // A filter may choose host tests alone; a run that was to have scenarios must run some.
        let no_scenario = totals.scenarios == 0 && (self.options.filter.is_empty() || !cases.is_empty());
        if self.options.json {
            self.screen.line(&report::json_totals(totals));
        } else {
            let plural = if totals.scenarios == 1 { "" } else { "s" };
            let (scenarios, time) = (totals.scenarios, seconds(begun.elapsed()));
            self.screen.line(&format!("\n{scenarios} board scenario{plural} run, {time}"));
            let Totals { passed, failed, ignored, .. } = totals;
            self.screen.line(&format!("{passed} passed, {failed} failed, {ignored} skipped"));
        }
        if no_scenario {
            eprintln!("error: no board scenario was executed: a run without one proves nothing");
        }
        Ok(totals.failed == 0 && !no_scenario)
    }
}

fn board_outcome(case: &Case<'_>, verdict: Verdict, ended: Option<&Ended>) -> Outcome {
    Outcome {
        kind: Kind::Board,
        name: case.name(),
        verdict,
        time: ended.map(|ended| ended.time).unwrap_or_default(),
        details: ended.map(Ended::details).unwrap_or_default(),
        figures: ended.map(Ended::figures).unwrap_or_default(),
    }
}
