//! Where things are, and how cargo is called.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde::Deserialize;

use crate::{child, error::Error};

/// The repository and its build folder.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Project {
    #[serde(rename = "workspace_root")]
    root: PathBuf,
    #[serde(rename = "target_directory")]
    target: PathBuf,
}

impl Project {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self, Error> {
        let mut command = cargo();
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        command.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(manifest);
        let mut output = Vec::new();
        let status = child::run(command, |line| output.push(line.to_owned()))?;
        let json = output.iter().find(|line| line.starts_with('{'));
        let project = json.and_then(|json| serde_json::from_str(json).ok());
        project.filter(|_| status.success()).ok_or_else(|| Error::Project(output.join("\n")))
    }

    /// The repository's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The build folder.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// The folder of board descriptions.
    pub(crate) fn boards(&self) -> PathBuf {
        self.root.join("board-tests/boards")
    }

    /// Cargo, to be run at the repository's root.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root);
        command
    }
}

/// The cargo that runs this program.
///
/// Flags for host code from the environment must not reach images, whose own are in `.cargo/config.toml`;
/// and what the outer cargo says about this package must not reach the inner one.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    for name in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET", "CARGO_MANIFEST_DIR"] {
        command.env_remove(name);
    }
    command
}

/// Runs a build and returns the lines of its standard output and error, or all of them in an error.
pub(crate) fn build(what: &str, command: Command, mut live: impl FnMut(&str)) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    let status = child::run(command, |line| {
        live(line);
        lines.push(line.to_owned());
    })?;
    if status.success() {
        return Ok(lines);
    }
    let shown = lines.iter().filter(|line| !line.starts_with('{')).cloned().collect::<Vec<_>>();
    Err(Error::Build { what: what.to_owned(), output: shown.join("\n") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_found() {
        let project = Project::find().unwrap();
        assert!(project.root().join("board-tests/runner/Cargo.toml").is_file());
        assert!(project.boards().join("q35.toml").is_file());
    }

    #[test]
    fn a_failed_build_shows_its_output() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '{}'; echo broken >&2; exit 1"]);
        let error = build("it", command, |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "it failed:\nbroken");
    }
}
