//! Child processes that never outlive the runner.
//!
//! Each is the leader of a process group of its own, which is killed when the [`Child`] is dropped, at a
//! deadline and on Ctrl-C. Should the runner itself be killed, the kernel kills the leader.

use std::{
    fmt,
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process_group, set_parent_process_death_signal};
use thiserror::Error;

use crate::interrupt;

/// How often a wait looks for Ctrl-C.
const GLANCE: Duration = Duration::from_millis(50);

/// Pieces of output that wait to be read; a program that writes faster waits, as with any pipe.
const PIECES_IN_FLIGHT: usize = 64;

/// A running program with its output.
pub(crate) struct Child {
    inner: std::process::Child,
    output: Receiver<Output>,
}

/// A piece of output.
pub(crate) enum Output {
    /// From standard output.
    Out(Vec<u8>),
    /// From standard error.
    Err(Vec<u8>),
}

/// What came next.
pub(crate) enum Next {
    /// Output.
    Output(Output),
    /// The program closed its output.
    Ended,
    /// The deadline is over.
    Deadline,
}

/// A program could not be run to its end.
#[derive(Debug, Error)]
pub(crate) enum ChildError {
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("cannot wait for a child: {0}")]
    Wait(io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl Child {
    /// Starts `command` without input, with both outputs captured.
    pub(crate) fn start(mut command: Command) -> Result<Self, ChildError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let runner = getpid();
        // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
        unsafe {
            command.pre_exec(move || die_with(runner));
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let mut inner = command.spawn().map_err(|source| ChildError::Start { program, source })?;
        let (sender, output) = mpsc::sync_channel(PIECES_IN_FLIGHT);
        if let Some(pipe) = inner.stdout.take() {
            forward(pipe, sender.clone(), Output::Out);
        }
        if let Some(pipe) = inner.stderr.take() {
            forward(pipe, sender, Output::Err);
        }
        Ok(Self { inner, output })
    }

    /// Waits for output, the end of it, or the deadline.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Result<Next, ChildError> {
        loop {
            if interrupt::requested() {
                return Err(ChildError::Interrupted);
            }
            // Looked at before the output: a program that never falls silent has a deadline, too.
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(Next::Deadline);
            }
            let left = deadline.map_or(GLANCE, |at| at.saturating_duration_since(Instant::now()).min(GLANCE));
            match self.output.recv_timeout(left) {
                Ok(output) => return Ok(Next::Output(output)),
                Err(RecvTimeoutError::Disconnected) => return Ok(Next::Ended),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits for the process to end, after its output has; kills it at the deadline.
    pub(crate) fn finish(mut self, deadline: Option<Instant>) -> Result<Ran, ChildError> {
        loop {
            if let Some(status) = self.inner.try_wait().map_err(ChildError::Wait)? {
                return Ok(Ran::Ended(status));
            }
            if interrupt::requested() {
                return Err(ChildError::Interrupted);
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                return Ok(Ran::Killed);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Asks the kernel to kill this process, which was just forked, when the runner is killed.
fn die_with(runner: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Killed before that, the runner sends nothing any more.
    if getppid() == Some(runner) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A process that was waited for keeps no id that could by now be another's.
        if !matches!(self.inner.try_wait(), Ok(None)) {
            return;
        }
        let _ = kill_process_group(Pid::from_child(&self.inner), Signal::KILL);
        let _ = self.inner.wait();
    }
}

fn forward(mut pipe: impl Read + Send + 'static, to: SyncSender<Output>, wrap: fn(Vec<u8>) -> Output) {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let bytes = buffer.get(..count).unwrap_or_default().to_vec();
            if to.send(wrap(bytes)).is_err() {
                return;
            }
        }
    });
}

/// Collects bytes into lines.
#[derive(Default)]
pub(crate) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes bytes and hands each complete line, without its end, to `line`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for byte in bytes {
            if *byte == b'\n' {
                line(String::from_utf8_lossy(&self.partial).trim_end_matches('\r'));
                self.partial.clear();
            } else {
                self.partial.push(*byte);
            }
        }
    }

    /// What came after the last line end.
    pub(crate) fn rest(self) -> Option<String> {
        (!self.partial.is_empty()).then(|| String::from_utf8_lossy(&self.partial).into_owned())
    }
}

/// Runs a host tool to its end and hands each line of its output, of both kinds, to `line`.
pub(crate) fn run(command: Command, line: impl FnMut(&str)) -> Result<ExitStatus, ChildError> {
    match run_within(command, Limit::None, line)? {
        Ran::Ended(status) => Ok(status),
        Ran::Killed => Err(ChildError::Interrupted),
    }
}

/// How long a tool may take.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// As long as it wants.
    None,
    /// So long from its start.
    Whole(Duration),
    /// Never silent for so long.
    Silence(Duration),
}

/// How a tool ended that had a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ran {
    /// By itself.
    Ended(ExitStatus),
    /// It was killed at its limit.
    Killed,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(status) => status.fmt(f),
            Self::Killed => f.write_str("a hang"),
        }
    }
}

/// The same within a limit.
pub(crate) fn run_within(
    command: Command,
    limit: Limit,
    mut line: impl FnMut(&str),
) -> Result<Ran, ChildError> {
    let child = Child::start(command)?;
    let (mut out, mut err) = (Lines::default(), Lines::default());
    let mut deadline = match limit {
        Limit::None => None,
        Limit::Whole(time) | Limit::Silence(time) => Some(Instant::now() + time),
    };
    loop {
        let next = child.next(deadline)?;
        if let Limit::Silence(time) = limit {
            deadline = Some(Instant::now() + time);
        }
        match next {
            Next::Output(Output::Out(bytes)) => out.feed(&bytes, &mut line),
            Next::Output(Output::Err(bytes)) => err.feed(&bytes, &mut line),
            Next::Ended => break,
            Next::Deadline => return Ok(Ran::Killed),
        }
    }
    for rest in [out.rest(), err.rest()].into_iter().flatten() {
        line(&rest);
    }
    child.finish(deadline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_and_status_arrive() {
        let mut lines = Vec::new();
        let status = run(shell("echo one; printf two; exit 3"), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(status.code(), Some(3));
    }

    #[test]
    fn the_whole_group_is_killed_at_drop() {
        let child = Child::start(shell("sleep 60 & echo $!; wait")).unwrap();
        let Next::Output(Output::Out(bytes)) = child.next(None).unwrap() else { panic!("no output") };
        let grandchild: i32 = String::from_utf8(bytes).unwrap().trim().parse().unwrap();
        drop(child);
        let gone = || {
            std::fs::read_to_string(format!("/proc/{grandchild}/stat"))
                .map_or(true, |stat| stat.contains(" Z "))
        };
        let until = Instant::now() + Duration::from_secs(5);
        while !gone() {
            assert!(Instant::now() < until, "the grandchild lives on");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_silent_child_meets_its_deadline() {
        let child = Child::start(shell("sleep 60")).unwrap();
        let deadline = Instant::now() + Duration::from_millis(120);
        assert!(matches!(child.next(Some(deadline)), Ok(Next::Deadline)));
        for limit in [Limit::Whole, Limit::Silence].map(|limit| limit(Duration::from_millis(120))) {
            assert_eq!(run_within(shell("sleep 60"), limit, |_| {}).unwrap(), Ran::Killed);
        }
    }

    #[test]
    fn a_child_that_never_falls_silent_meets_its_deadline_too() {
        let begun = Instant::now();
        let soon = Limit::Whole(Duration::from_millis(120));
        assert_eq!(run_within(shell("exec yes"), soon, |_| {}).unwrap(), Ran::Killed);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_child_that_closed_its_output_meets_its_deadline_too() {
        let soon = Limit::Whole(Duration::from_millis(120));
        assert_eq!(run_within(shell("exec sleep 60 >&- 2>&-"), soon, |_| {}).unwrap(), Ran::Killed);
    }

    #[test]
    fn a_child_that_is_heard_in_time_may_take_as_long_as_it_wants() {
        let silence = Limit::Silence(Duration::from_secs(2));
        let ran = run_within(shell("for i in 1 2 3 4 5; do echo $i; sleep 0.5; done"), silence, |_| {});
        assert!(matches!(ran.unwrap(), Ran::Ended(status) if status.success()));
    }

    #[test]
    fn a_child_whose_runner_is_already_gone_does_not_start() {
        // No process is its own parent.
        assert!(die_with(getpid()).is_err());
    }
}
