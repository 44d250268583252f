//! Test programs that cargo announces among its build messages.

use std::{path::PathBuf, process::Command};

use serde::Deserialize;

/// What cargo is asked for to announce them.
pub(crate) const MESSAGES: [&str; 4] = ["test", "--no-run", "--message-format", "json-render-diagnostics"];

/// A test program, built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Name of its package.
    pub(crate) package: String,
    /// Folder of its package.
    pub(crate) folder: PathBuf,
    /// `lib`, `bin`, `test`, `example` or `bench`.
    pub(crate) kind: String,
    /// Name of its target.
    pub(crate) target: String,
    path: PathBuf,
}

/// A line of cargo's build messages.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Artifact {
    /// The test program that this build message announces.
    pub(crate) fn announced(line: &str) -> Option<Self> {
        let message: Message = serde_json::from_str(line).ok()?;
        if message.reason != "compiler-artifact" || !message.profile?.test {
            return None;
        }
        let (path, target) = (message.executable?, message.target?);
        let folder = message.manifest_path.parent()?.to_owned();
        let package = package_name(&message.package_id)?.to_owned();
        let kind = target.kind.into_iter().next()?;
        Some(Self { package, folder, kind, target: target.name, path })
    }

    /// Runs it where cargo would.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder);
        command
    }
}

/// The name in `path+file:///folder#name@version`; cargo leaves it out where the folder is called the same.
fn package_name(id: &str) -> Option<&str> {
    let (folder, rest) = id.rsplit_once('#')?;
    match rest.split_once('@') {
        Some((name, _)) => Some(name),
        None => folder.rsplit('/').next(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn message(kind: &str, test: bool) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"path+file:///r/hal#portcullis-hal@0.1.0",
            "manifest_path":"/r/hal/Cargo.toml","target":{{"kind":["{kind}"],"name":"gate"}},
            "profile":{{"test":{test}}},"executable":"/r/t/gate-1"}}"#
        )
    }

    #[test]
    fn test_programs_are_taken_from_cargos_messages() {
        let artifact = Artifact::announced(&message("test", true)).unwrap();
        assert_eq!(
            [&*artifact.package, &*artifact.kind, &*artifact.target],
            ["portcullis-hal", "test", "gate"]
        );
        assert_eq!(artifact.folder, PathBuf::from("/r/hal"));
        assert_eq!(artifact.command().get_program(), "/r/t/gate-1");
        assert_eq!(Artifact::announced(&message("bin", false)), None);
        assert_eq!(Artifact::announced("   Compiling x"), None);
    }

    #[test]
    fn a_package_is_called_like_its_folder_or_by_its_name() {
        assert_eq!(package_name("path+file:///r/hal#portcullis-hal@0.1.0"), Some("portcullis-hal"));
        assert_eq!(package_name("path+file:///r/hal#0.1.0"), Some("hal"));
        assert_eq!(package_name("hal 0.1.0"), None);
    }
}
