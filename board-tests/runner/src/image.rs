//! Building the boards' images.

use std::path::{Path, PathBuf};

use crate::{
    board::Board,
    console::MessageTable,
    error::Error,
    progress::Screen,
    project::{self, Project},
    qemu,
};

/// A board with all that it takes to boot it.
pub(crate) struct ReadyBoard {
    pub(crate) board: Board,
    /// QEMU's program.
    pub(crate) qemu: PathBuf,
    /// The image.
    pub(crate) image: PathBuf,
    /// The image's messages.
    pub(crate) messages: MessageTable,
}

/// Finds QEMU (in `folder`, if given) and builds the image of `board`.
pub(crate) fn prepare(project: &Project, board: Board, folder: Option<&Path>) -> Result<ReadyBoard, Error> {
    let qemu = qemu::find(&board.qemu, folder).ok_or_else(|| match folder {
        Some(folder) => Error::NotInFolder { program: board.qemu.clone(), folder: folder.to_owned() },
        None => Error::NoQemu { program: board.qemu.clone() },
    })?;
    let image = build(project, &board)?;
    let messages = MessageTable::load(&image)?;
    Ok(ReadyBoard { board, qemu, image, messages })
}

fn build(project: &Project, board: &Board) -> Result<PathBuf, Error> {
    let what = format!("building {} for {}", board.package, board.target);
    let screen = Screen::spinner(&what);
    let mut command = project.cargo();
    command.args(["build", "--release", "--package", &board.package, "--target", &board.target]);
    project::build(&what, command, |line| screen.now(&format!("{what}: {}", line.trim())))?;
    Ok(project.target().join(&board.target).join("release").join(&board.package))
}
