//! A copy of the tree that may be broken.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::seed::seed;
use crate::{child, error::Error, project::Project, test::artifact::Artifact};

/// The copy's build folder, in that of the project.
const BUILD: &str = "sabotage/build";

/// The profile's folder in each build folder.
const PROFILE: &str = "debug";

/// The copy, and the build folder that all breakages share.
pub(super) struct Tree {
    project: Project,
    folder: PathBuf,
    patches: PathBuf,
}

/// How a test program is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Soon compiled, slow to run: `profile.toml`.
    Quick,
    /// As for `cargo boards test`.
    Optimised,
    /// For the model checker of threads, in a build folder of its own. The checker is optimised; what it brings
    /// along is not.
    Modelled,
}

impl Way {
    /// The way of a target of this name.
    pub(super) fn of(target: &str) -> Self {
        match target {
            // It looks at millions of states.
            "model" => Self::Optimised,
            loom if loom.starts_with("loom_") => Self::Modelled,
            _ => Self::Quick,
        }
    }
}

impl Tree {
    /// Copies what git knows, or would add. The copy stays for the next run, which changes only the files
    /// that differ: so cargo builds only what a patch touches.
    pub(super) fn copy(project: &Project) -> Result<Self, Error> {
        let folder = project.target().join("sabotage/tree");
        let files = files(project)?;
        remove_others(&folder, &folder, &files)?;
        for file in &files {
            copy_if_different(&project.root().join(file), &folder.join(file))?;
        }
        let build = project.target().join(BUILD).join(PROFILE);
        seed(&project.target().join(PROFILE), &build).map_err(Error::file(&build))?;
        let patches = project.root().join("board-tests/sabotage");
        Ok(Self { project: project.clone(), folder, patches })
    }

    /// Cargo, to be run in the copy.
    pub(super) fn cargo(&self, way: Way) -> Command {
        let mut command = self.project.cargo();
        command.current_dir(&self.folder);
        let build = if way == Way::Modelled { "sabotage/loom" } else { BUILD };
        command.env("CARGO_TARGET_DIR", self.project.target().join(build));
        match way {
            Way::Quick => {
                command.arg("--config").arg(self.patches.join("profile.toml"));
            }
            Way::Optimised => {}
            Way::Modelled => {
                command.env("RUSTFLAGS", "--cfg loom").env("CARGO_PROFILE_DEV_DEBUG", "false");
                for package in ["loom", "generator"] {
                    command.args(["--config", &format!("profile.dev.package.{package}.opt-level=3")]);
                }
            }
        }
        command
    }

    /// Runs a test program of the copy. Some tests call cargo: they find the copy's build folder.
    pub(super) fn program(&self, artifact: &Artifact) -> Command {
        let mut command = artifact.command();
        command.env("CARGO_TARGET_DIR", self.project.target().join(BUILD));
        command
    }

    /// This program, for the copy.
    pub(super) fn runner(&self) -> Result<Command, Error> {
        let program = std::env::current_exe().map_err(|why| Error::Project(why.to_string()))?;
        let mut command = Command::new(program);
        command.env("CARGO_MANIFEST_DIR", self.folder.join("board-tests/runner"));
        command.env("CARGO_TARGET_DIR", self.project.target().join(BUILD));
        Ok(command)
    }

    /// Applies a patch, or takes it back; the inner error is git's message.
    pub(super) fn patch(&self, name: &str, back: bool) -> Result<Result<(), String>, Error> {
        let mut command = Command::new("git");
        command.arg("apply").args(back.then_some("--reverse")).arg(self.patches.join(name));
        // The copy is no repository, and git must not take the one around it.
        command.current_dir(&self.folder).env("GIT_CEILING_DIRECTORIES", self.project.target());
        let mut lines = Vec::new();
        let status = child::run(command, |line| lines.push(line.to_owned()))?;
        Ok(if status.success() { Ok(()) } else { Err(lines.join("; ")) })
    }
}

fn files(project: &Project) -> Result<BTreeSet<PathBuf>, Error> {
    let mut command = Command::new("git");
    command.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(project.root());
    let mut files = BTreeSet::new();
    let status = child::run(command, |line| {
        // A file that was deleted but not committed is still listed.
        if project.root().join(line).is_file() {
            files.insert(PathBuf::from(line));
        }
    })?;
    if status.success() && !files.is_empty() {
        Ok(files)
    } else {
        Err(Error::Project("git lists no files here".to_owned()))
    }
}

fn copy_if_different(from: &Path, to: &Path) -> Result<(), Error> {
    let content = fs::read(from).map_err(Error::file(from))?;
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).map_err(Error::file(folder))?;
    }
    fs::write(to, content).map_err(Error::file(to))
}

/// Removes files below `folder` that are not among `files`, which are relative to `root`.
fn remove_others(root: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(Error::file(folder))?.path();
        if path.is_dir() {
            remove_others(root, &path, files)?;
        } else if path.strip_prefix(root).is_ok_and(|relative| !files.contains(relative)) {
            fs::remove_file(&path).map_err(Error::file(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_its_original_and_leaves_equal_files_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("tree/a/b"));
        fs::write(&from, "one").unwrap();
        copy_if_different(&from, &to).unwrap();
        let first = fs::metadata(&to).unwrap().modified().unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().modified().unwrap(), first);
        fs::write(&from, "two").unwrap();
        copy_if_different(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        let root = folder.path().join("tree");
        fs::write(root.join("left over"), "").unwrap();
        remove_others(&root, &root, &[PathBuf::from("a/b")].into()).unwrap();
        assert!(to.is_file() && !root.join("left over").exists());
    }
}
