//! Descriptions of boards: `board-tests/boards/*.toml`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portcullis_suite::{Requires, Scenario};

use crate::catalogue;
use serde::Deserialize;
use thiserror::Error;

/// File in the folder of boards that lists what is not run, and why.
pub(crate) const IGNORED_FILE: &str = "ignored.toml";

/// A kind of machine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Board {
    /// How the command line and reports name it.
    pub(crate) name: String,
    /// What it is, in a few words.
    pub(crate) about: String,
    /// Package and binary of its image.
    pub(crate) package: String,
    /// Rust target of its image.
    pub(crate) target: String,
    /// QEMU's program.
    pub(crate) qemu: String,
    /// Debian packages that hold it.
    pub(crate) apt: Vec<String>,
    /// Seconds from QEMU's start to the end of one scenario.
    pub(crate) deadline_seconds: u64,
    /// Console line after which frames start.
    pub(crate) marker: String,
    /// How QEMU's own trace is read.
    pub(crate) witness: WitnessKind,
    /// Length of the file behind the board's disk, if it has one.
    pub(crate) disk_bytes: Option<u64>,
    /// QEMU's arguments, with placeholders.
    pub(crate) args: Vec<String>,
    /// Exit statuses; without them QEMU ends with 0 whatever happened.
    pub(crate) exit: Option<ExitStatuses>,
    /// The machines of this kind.
    #[serde(rename = "variant")]
    pub(crate) variants: Vec<Variant>,
}

/// QEMU's exit status for each end of a scenario.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExitStatuses {
    pub(crate) pass: i32,
    pub(crate) fail: i32,
    pub(crate) crash: i32,
}

/// The format of QEMU's trace.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WitnessKind {
    /// `-trace 'vtd_*'`.
    VtdTrace,
    /// `-d guest_errors` of the POWER host bridges.
    PhbErrors,
}

/// Files that are made for one boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files<'f> {
    /// Where QEMU writes its own trace.
    pub(crate) trace: &'f Path,
    /// What the board has for a disk.
    pub(crate) disk: Option<&'f Path>,
}

/// One machine of a kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variant {
    /// How the command line and reports name it.
    pub(crate) name: String,
    /// What is special about it.
    pub(crate) about: String,
    /// Arguments in the place of `{variant}`.
    #[serde(default)]
    pub(crate) args: Vec<String>,
    /// Names of the [`Requires`] flags that it has.
    pub(crate) offers: Vec<String>,
}

/// A scenario that a board does not run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ignored {
    /// The board's name.
    pub(crate) board: String,
    /// The scenario's name.
    pub(crate) scenario: String,
    /// Why QEMU cannot show it.
    pub(crate) reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct IgnoredFile {
    #[serde(default)]
    ignored: Vec<Ignored>,
}

/// What is wrong with a description.
#[derive(Debug, Error)]
pub(crate) enum BoardError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{board}: no variant; add a [[variant]] table")]
    NoVariant { board: String },
    #[error("{board}/{variant} offers `{flag}`, which is no flag of `Requires` in the suite")]
    UnknownFlag { board: String, variant: String, flag: String },
    #[error("{board}: the arguments lack {placeholder}")]
    MissingPlaceholder { board: String, placeholder: &'static str },
    #[error("{IGNORED_FILE} names `{name}`, which is no {what}")]
    UnknownIgnored { name: String, what: &'static str },
    #[error("no board `{name}`; there are: {known}")]
    NoSuchBoard { name: String, known: String },
}

impl Board {
    fn check(self) -> Result<Self, BoardError> {
        if self.variants.is_empty() {
            return Err(BoardError::NoVariant { board: self.name });
        }
        for placeholder in ["{image}", "{trace}"] {
            if !self.args.iter().any(|argument| argument.contains(placeholder)) {
                return Err(BoardError::MissingPlaceholder { board: self.name, placeholder });
            }
        }
        if !self.args.iter().any(|argument| argument.contains("scenario={scenario}")) {
            let placeholder = "scenario={scenario}";
            return Err(BoardError::MissingPlaceholder { board: self.name, placeholder });
        }
        if self.disk_bytes.is_some() && !self.args.iter().any(|argument| argument.contains("{disk}")) {
            return Err(BoardError::MissingPlaceholder { board: self.name, placeholder: "{disk}" });
        }
        for variant in &self.variants {
            variant.flags(&self.name)?;
        }
        Ok(self)
    }

    /// QEMU's arguments for one boot.
    pub(crate) fn arguments(
        &self,
        variant: &Variant,
        image: &Path,
        scenario: &str,
        files: &Files<'_>,
    ) -> Vec<String> {
        let mut arguments = Vec::new();
        for argument in &self.args {
            if argument == "{variant}" {
                arguments.extend(variant.args.iter().cloned());
                continue;
            }
            arguments.push(
                argument
                    .replace("{image}", &image.display().to_string())
                    .replace("{trace}", &files.trace.display().to_string())
                    .replace("{disk}", &files.disk.map(|path| path.display().to_string()).unwrap_or_default())
                    .replace("{scenario}", scenario),
            );
        }
        arguments
    }
}

impl Variant {
    fn flags(&self, board: &str) -> Result<Requires, BoardError> {
        let mut flags = Requires::empty();
        for name in &self.offers {
            flags |= Requires::from_name(name).ok_or_else(|| BoardError::UnknownFlag {
                board: board.to_owned(),
                variant: self.name.clone(),
                flag: name.clone(),
            })?;
        }
        Ok(flags)
    }

    /// Whether this machine has everything that `scenario` needs.
    pub(crate) fn runs(&self, scenario: &Scenario) -> bool {
        // Unknown names were refused when the file was read.
        self.flags("").is_ok_and(|offers| offers.contains(scenario.requires))
    }

    /// Whether its IOMMU can make all DMA coherent.
    pub(crate) fn snoops(&self) -> bool {
        self.flags("").is_ok_and(|offers| offers.contains(Requires::SNOOP_CONTROL))
    }
}

/// Parses and checks the text of one description.
fn parse(path: &Path, text: &str) -> Result<Board, BoardError> {
    let source =
        |source| BoardError::Parse { path: path.to_owned(), source: Box::<toml::de::Error>::new(source) };
    toml::from_str::<Board>(text).map_err(source)?.check()
}

/// All descriptions of a folder, by name.
pub(crate) fn load_all(folder: &Path) -> Result<Vec<Board>, BoardError> {
    let read = |source| BoardError::Read { path: folder.to_owned(), source };
    let mut boards = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let is_toml = path.extension().is_some_and(|extension| extension == "toml");
        if is_toml && path.file_name().is_some_and(|name| name != IGNORED_FILE) {
            let source = |source| BoardError::Read { path: path.clone(), source };
            boards.push(parse(&path, &fs::read_to_string(&path).map_err(source)?)?);
        }
    }
    // VT-d first: the description without firmware in between starts fastest.
    boards.sort_by(|a, b| b.name.cmp(&a.name));
    Ok(boards)
}

/// What is not run; an entry for an unknown board or scenario is an error, so that none goes stale.
pub(crate) fn load_ignored(folder: &Path, boards: &[Board]) -> Result<Vec<Ignored>, BoardError> {
    let path = folder.join(IGNORED_FILE);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
    let source = |source| BoardError::Parse { path: path.clone(), source: Box::new(source) };
    let IgnoredFile { ignored } = toml::from_str(&text).map_err(source)?;
    for entry in &ignored {
        if !boards.iter().any(|board| board.name == entry.board) {
            return Err(BoardError::UnknownIgnored { name: entry.board.clone(), what: "board" });
        }
        if !catalogue::scenarios().any(|scenario| scenario.name == entry.scenario) {
            return Err(BoardError::UnknownIgnored { name: entry.scenario.clone(), what: "scenario" });
        }
    }
    Ok(ignored)
}

/// Keeps the boards with these names; all when there are none.
pub(crate) fn select(boards: Vec<Board>, names: &[String]) -> Result<Vec<Board>, BoardError> {
    for name in names {
        if !boards.iter().any(|board| board.name == *name) {
            let known = boards.iter().map(|board| board.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(BoardError::NoSuchBoard { name: name.clone(), known });
        }
    }
    Ok(boards.into_iter().filter(|board| names.is_empty() || names.contains(&board.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        name = "b"
        about = "a board"
        package = "p"
        target = "t"
        qemu = "q"
        apt = []
        deadline_seconds = 3
        marker = "-"
        witness = "phb-errors"
        args = ["-x", "{variant}", "-k", "{image}", "-D", "{trace}", "-append", "scenario={scenario}"]
        [[variant]]
        name = "v"
        about = "plain"
        args = ["-device", "d"]
        offers = ["TCE"]
    "#;

    #[test]
    fn placeholders_are_filled_in_place() {
        let board = parse(Path::new("b.toml"), TEXT).unwrap();
        let files = Files { trace: Path::new("/t"), disk: None };
        let arguments = board.arguments(&board.variants[0], Path::new("/i"), "read_only_page", &files);
        let expected = "-x -device d -k /i -D /t -append scenario=read_only_page";
        assert_eq!(arguments.join(" "), expected);
        assert_eq!(board.witness, WitnessKind::PhbErrors);
    }

    #[test]
    fn a_variant_runs_what_it_has_everything_for() {
        let board = parse(Path::new("b.toml"), TEXT).unwrap();
        let runs = |name| {
            let scenario = catalogue::scenarios().find(|scenario| scenario.name == name).unwrap();
            board.variants[0].runs(scenario)
        };
        assert!(runs("scattered_maps"));
        assert!(!runs("large_page"), "that one needs VT-d");
    }

    #[test]
    fn mistakes_are_named() {
        let path = Path::new("b.toml");
        let unknown_flag = TEXT.replace("\"TCE\"", "\"TEC\"");
        assert!(
            matches!(parse(path, &unknown_flag), Err(BoardError::UnknownFlag { flag, .. }) if flag == "TEC")
        );
        let no_trace = TEXT.replace("{trace}", "x");
        let error = parse(path, &no_trace).unwrap_err();
        assert!(matches!(error, BoardError::MissingPlaceholder { placeholder: "{trace}", .. }));
        let no_disk = TEXT.replace("args = [\"-x\"", "disk_bytes = 512\nargs = [\"-x\"");
        let error = parse(path, &no_disk).unwrap_err();
        assert!(matches!(error, BoardError::MissingPlaceholder { placeholder: "{disk}", .. }));
        let unknown_key = TEXT.replace("about = \"a board\"", "about = \"a board\"\nabuot = 1");
        assert!(parse(path, &unknown_key).unwrap_err().to_string().contains("abuot"));
    }

    #[test]
    fn the_boards_of_this_repository_are_sound() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards");
        let boards = load_all(&folder).unwrap();
        assert!(boards.iter().any(|board| board.name == "q35"));
        load_ignored(&folder, &boards).unwrap();
        let error = select(boards, &["q36".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("q35"), "the error lists what there is");
    }
}
