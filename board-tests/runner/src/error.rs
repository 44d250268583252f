//! Why a command could not do its work, and what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{board::BoardError, child::ChildError, console::TableError};

/// Why a command could not do its work.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Board(#[from] BoardError),
    #[error(transparent)]
    Child(#[from] ChildError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("cannot find the project: {0}")]
    Project(String),
    #[error("{what} failed:\n{output}")]
    Build { what: String, output: String },
    #[error("{program} is not installed")]
    NoQemu { program: String },
    #[error("{program} is not in {}", folder.display())]
    NotInFolder { program: String, folder: PathBuf },
    #[error("{0} is not installed")]
    NoTool(&'static str),
    #[error("not everything is installed")]
    NotInstalled { commands: Vec<String> },
    #[error("not everything is installed, and this account may not install Debian packages")]
    MayNotInstall { by_hand: Vec<String> },
    #[error("`{command}` failed with {status}")]
    InstallFailed { command: String, status: String },
    #[error("no test matches `{filter}`")]
    NothingMatches { filter: String },
    #[error("{} has no function `{symbol}`, which the audit was to enter", image.display())]
    NoEntryPoint { symbol: String, image: PathBuf },
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}: {why}", path.display())]
    Content { path: PathBuf, why: String },
}

impl Error {
    /// For the errors of a file's operation.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// What to do next.
    pub(crate) fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NoQemu { .. } | Self::NoTool(_) | Self::Child(ChildError::Start { .. }) => {
                "run `cargo boards install`: it says what is missing and how to get it".to_owned()
            }
            Self::NotInFolder { .. } => {
                "--qemu takes the folder that holds the qemu-system-* programs".to_owned()
            }
            Self::NotInstalled { commands } => {
                format!("`cargo boards install --yes` runs this:\n  {}", commands.join("\n  "))
            }
            Self::MayNotInstall { by_hand } => {
                format!("run this, then the same command again:\n  {}", by_hand.join("\n  "))
            }
            Self::InstallFailed { .. } => {
                "its output is above; `sudo apt-get update` helps when a package was not found".to_owned()
            }
            Self::NothingMatches { .. } => {
                "`cargo boards test --list` shows all names; a filter is a part of one".to_owned()
            }
            Self::NoEntryPoint { .. } => {
                "an entry point is an `#[unsafe(no_mangle)] extern \"C\" fn` that the image uses: correct its name \
                 or its package in audit.toml; if it is inlined, enter its caller or add `#[inline(never)]`"
                    .to_owned()
            }
            Self::Table(_) => "build the image with `cargo boards test`, not by hand".to_owned(),
            Self::Project(_) => "run it inside the repository, as `cargo boards …`".to_owned(),
            _ => return None,
        })
    }

    /// The process's exit status: 2 when the machine lacks something, 130 after Ctrl-C, else 1.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Child(ChildError::Interrupted) => 130,
            Self::NoQemu { .. }
            | Self::NotInFolder { .. }
            | Self::NoTool(_)
            | Self::NotInstalled { .. }
            | Self::MayNotInstall { .. }
            | Self::InstallFailed { .. } => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_ends_with_2_and_the_exact_command() {
        let error = Error::MayNotInstall { by_hand: vec!["sudo apt-get install x".to_owned()] };
        assert_eq!(error.status(), 2);
        assert!(error.advice().unwrap().contains("\n  sudo apt-get install x"));
        assert_eq!(Error::Child(ChildError::Interrupted).status(), 130);
    }
}
