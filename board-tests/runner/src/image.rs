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
    let package = Package { name: &board.package, target: &board.target, features: &[] };
    let image = build(project, &package)?;
    let messages = MessageTable::load(&image)?;
    Ok(ReadyBoard { board, qemu, image, messages })
}

/// What cargo builds.
pub(crate) struct Package<'a> {
    /// The package, whose program has the same name.
    pub(crate) name: &'a str,
    /// For what machine.
    pub(crate) target: &'a str,
    /// Features to build it with.
    pub(crate) features: &'a [&'a str],
}

/// Builds an image, and says where it is.
pub(crate) fn build(project: &Project, package: &Package<'_>) -> Result<PathBuf, Error> {
    let Package { name, target, features } = package;
    let what = format!("building {name} for {target}");
    let screen = Screen::spinner(&what);
    let mut command = project.cargo();
    command.args(["build", "--release", "--package", name, "--target", target]);
    features.iter().for_each(|feature| {
        command.args(["--features", feature]);
    });
    project::build(&what, command, |line| screen.now(&format!("{what}: {}", line.trim())))?;
    Ok(project.target().join(target).join("release").join(name))
}
