//! One boot of a board in QEMU.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    board::{Board, Files, Variant},
    child::{Child, ChildError, Lines, Next, Output, Ran},
    console::{Console, MessageTable, Said},
    record::{End, Record},
};

/// What is booted, and where.
pub(crate) struct Boot<'b> {
    pub(crate) board: &'b Board,
    pub(crate) variant: &'b Variant,
    pub(crate) scenario: &'b str,
    /// QEMU's program.
    pub(crate) qemu: &'b Path,
    /// The image.
    pub(crate) image: &'b Path,
    /// The image's messages.
    pub(crate) messages: &'b MessageTable,
    /// The files that it works with.
    pub(crate) files: Files<'b>,
}

/// QEMU's program in `folder`, or in `PATH`; `None` when it is in neither.
pub(crate) fn find(program: &str, folder: Option<&Path>) -> Option<PathBuf> {
    if let Some(folder) = folder {
        return Some(folder.join(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

impl Boot<'_> {
    /// Boots, and hands everything that the board says to `live` as it comes.
    pub(crate) fn run(&self, mut live: impl FnMut(&Said)) -> Result<(Record, End), ChildError> {
        let mut command = Command::new(self.qemu);
        command.args(self.board.arguments(self.variant, self.image, self.scenario, &self.files));
        let limit = Duration::from_secs(self.board.deadline_seconds);
        let mut record = Record::start();
        let deadline = Instant::now() + limit;
        let child = Child::start(command)?;
        let mut console = Console::new(&self.board.marker, self.messages.decoder());
        let mut complaints = Lines::default();
        let ended = loop {
            match child.next(Some(deadline))? {
                Next::Output(Output::Out(bytes)) => console.feed(&bytes, |said| {
                    live(&said);
                    record.note(said);
                }),
                Next::Output(Output::Err(bytes)) => {
                    complaints.feed(&bytes, |line| record.note_line(format!("qemu: {line}")));
                }
                Next::Ended => break true,
                Next::Deadline => break false,
            }
        };
        console.finish(|said| {
            live(&said);
            record.note(said);
        });
        let ran = if ended { child.finish(Some(deadline))? } else { Ran::Killed };
        let end = match ran {
            Ran::Ended(status) => End::Exited(status),
            Ran::Killed => End::Deadline(limit),
        };
        Ok((record, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_folder_is_searched_alone() {
        assert!(find("sh", None).is_some_and(|path| path.is_absolute()));
        assert_eq!(find("sh", Some(Path::new("/nonexistent"))), None);
        assert_eq!(find("no-such-program-anywhere", None), None);
    }
}
