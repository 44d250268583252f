//! Source lines of instructions.

use std::path::{Path, PathBuf};

use addr2line::Loader;

use crate::error::Error;

/// A line of a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// From the project's root, or from where its package or the Rust library begins.
    pub(super) file: String,
    /// From 1.
    pub(super) line: u32,
    /// Not of the project: of a library.
    pub(super) foreign: bool,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The line tables of an image.
pub(super) struct Lines {
    loader: Option<Loader>,
    root: PathBuf,
}

impl Lines {
    /// Reads the image's DWARF sections; `root` is the project's.
    pub(super) fn load(image: &Path, root: &Path) -> Result<Self, Error> {
        let content = |error: &dyn std::fmt::Display| Error::Content {
            path: image.to_owned(),
            why: format!("its line tables cannot be read: {error}"),
        };
        let loader = Loader::new(image).map_err(|error| content(&error))?;
        Ok(Self { loader: Some(loader), root: root.to_owned() })
    }

    /// No lines at all.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { loader: None, root: PathBuf::new() }
    }

    /// Where the instruction at `address` was written: the innermost inlined function first.
    pub(super) fn places(&self, address: u64) -> Vec<Place> {
        let mut places = Vec::new();
        let Some(mut frames) = self.loader.as_ref().and_then(|loader| loader.find_frames(address).ok())
        else {
            return places;
        };
        while let Ok(Some(frame)) = frames.next() {
            let place = frame.location.and_then(|at| self.place(at.file?, at.line.filter(|line| *line > 0)?));
            places.extend(place);
        }
        places
    }

    /// The line that the project's developers wrote: the innermost one of the project, else of a library.
    pub(super) fn written(&self, address: u64) -> Option<Place> {
        let places = self.places(address);
        places.iter().find(|place| !place.foreign).or(places.first()).cloned()
    }

    fn place(&self, file: &str, line: u32) -> Option<Place> {
        if let Ok(own) = Path::new(file).strip_prefix(&self.root) {
            return Some(Place { file: own.to_str()?.to_owned(), line, foreign: false });
        }
        Some(Place { file: shortened(file).to_owned(), line, foreign: true })
    }
}

/// A file of a library without what differs from machine to machine.
fn shortened(file: &str) -> &str {
    let registry = || file.split_once("/registry/src/")?.1.split_once('/').map(|(_, rest)| rest);
    let library = || file.rfind("/library/").and_then(|at| file.get(at + 1..));
    registry().or_else(library).unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_the_same_on_every_machine() {
        let lines = Lines { loader: None, root: PathBuf::from("/home/me/portcullis") };
        let place = |file| lines.place(file, 7).map(|place| (place.file.clone(), place.foreign)).unwrap();
        assert_eq!(place("/home/me/portcullis/hal/src/lib.rs"), ("hal/src/lib.rs".to_owned(), false));
        assert_eq!(
            place("/rustc/0f1e/library/core/src/num.rs"),
            ("library/core/src/num.rs".to_owned(), true)
        );
        let registry = "/root/.cargo/registry/src/index.crates.io-1949/defmt-1.0.1/src/lib.rs";
        assert_eq!(place(registry), ("defmt-1.0.1/src/lib.rs".to_owned(), true));
    }
}
