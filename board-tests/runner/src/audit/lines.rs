//! Source lines of instructions.

use std::path::{Path, PathBuf};

use addr2line::Loader;

use crate::error::Error;

/// A line of a source file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// The function that it is in, perhaps an inlined one, as the line tables name it: without its module.
    pub(super) function: String,
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
            let function = frame.function.as_ref().and_then(|name| name.demangle().ok());
            let function = function.map_or_else(String::new, |name| plain(&name));
            let at = frame.location.and_then(|at| Some((at.file?, at.line.filter(|line| *line > 0)?)));
            places.extend(at.map(|(file, line)| self.place(function, file, line)));
        }
        places
    }

    /// The line that the project's developers wrote: the innermost one of the project, else of a library.
    pub(super) fn written(&self, address: u64) -> Option<Place> {
        let places = self.places(address);
        places.iter().find(|place| !place.foreign).or(places.first()).cloned()
    }

    fn place(&self, function: String, file: &str, line: u32) -> Place {
        let library = of_library(file);
        let own = Path::new(file).strip_prefix(&self.root).ok().and_then(Path::to_str);
        let foreign = library.is_some() && own.is_none();
        Place { function, file: own.or(library).unwrap_or(file).to_owned(), line, foreign }
    }
}

/// A file of a package from a registry or of the Rust library, without what differs from machine to machine.
fn of_library(file: &str) -> Option<&str> {
    let registry = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    registry.map(|(_, rest)| rest).or_else(|| {
        let rust = file.starts_with("/rustc/") || file.contains("/rustlib/src/");
        file.find("/library/").filter(|_| rust).and_then(|at| file.get(at + 1..))
    })
}

/// A function's name without type arguments, which are many and long, and without the compiler's hash.
fn plain(name: &str) -> String {
    let generic = name.split_once('<').map(|(plain, _)| plain).filter(|plain| !plain.is_empty());
    let name = generic.unwrap_or(name);
    let hash = |part: &str| part.len() == 17 && part.strip_prefix('h').is_some_and(is_hexadecimal);
    match name.rsplit_once("::") {
        Some((path, last)) if hash(last) => path.to_owned(),
        _ => name.to_owned(),
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_the_same_on_every_machine() {
        let lines = Lines { loader: None, root: PathBuf::from("/home/me/portcullis") };
        let place = |file| {
            let Place { file, foreign, .. } = lines.place(String::new(), file, 7);
            (file, foreign)
        };
        assert_eq!(place("/home/me/portcullis/hal/src/lib.rs"), ("hal/src/lib.rs".to_owned(), false));
        assert_eq!(
            place("/rustc/0f1e/library/core/src/num.rs"),
            ("library/core/src/num.rs".to_owned(), true)
        );
        let registry = "/home/me/.cargo/registry/src/index.crates.io-1949/defmt-1.0.1/src/lib.rs";
        assert_eq!(place(registry), ("defmt-1.0.1/src/lib.rs".to_owned(), true));
        let sources = "/home/me/.rustup/lib/rustlib/src/rust/library/core/src/num.rs";
        assert_eq!(place(sources), ("library/core/src/num.rs".to_owned(), true));
        assert_eq!(place("/elsewhere/library/a.rs"), ("/elsewhere/library/a.rs".to_owned(), false));
    }

    #[test]
    fn names_are_short() {
        assert_eq!(plain("a::b::h05d32781d19d73eb"), "a::b");
        assert_eq!(plain("a::handle"), "a::handle");
        assert_eq!(plain("search<64, a::{closure_env#0}<8>>"), "search");
        assert_eq!(plain("{closure#2}<64>"), "{closure#2}");
        assert_eq!(plain("<a::B as c::D>::e"), "<a::B as c::D>::e");
    }
}
