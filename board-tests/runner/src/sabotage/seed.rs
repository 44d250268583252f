//! Dependencies that the project's own builds for tests have compiled already.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
};

/// What the names of all packages of the project begin with. Those are never taken over: the copy's differ.
const OWN: &str = "portcullis";

/// Copies what cargo keeps of the dependencies from one profile's folder into another, which is for the same profile.
/// The times of files are kept, by which cargo sees that nothing has changed; whatever it does not recognise,
/// it builds itself. Nothing is done where something was built before.
pub(super) fn seed(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() || !from.join(".fingerprint").exists() {
        return Ok(());
    }
    let units = names(&from.join(".fingerprint"))?;
    let units = units.iter().filter(|name| !name.starts_with(OWN)).collect::<BTreeSet<_>>();
    let hashes = units.iter().filter_map(|unit| hash(unit)).collect::<BTreeSet<_>>();
    for folder in [".fingerprint", "build"] {
        for unit in &units {
            copy_folder(&from.join(folder).join(unit), &to.join(folder).join(unit))?;
        }
    }
    fs::create_dir_all(to.join("deps"))?;
    for name in names(&from.join("deps"))? {
        if hash(&name).is_some_and(|hash| hashes.contains(hash)) {
            copy_file(&from.join("deps").join(&name), &to.join("deps").join(&name))?;
        }
    }
    Ok(())
}

/// What stands behind the last hyphen, without an extension.
fn hash(name: &str) -> Option<&str> {
    let (_, hash) = name.rsplit_once('-')?;
    hash.split('.').next()
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy_folder(&from, &to)? } else { copy_file(&from, &to)? }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.set_modified(fs::metadata(from)?.modified()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[&str]) {
        for file in files {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::write(root.join(file), file).unwrap();
        }
    }

    #[test]
    fn dependencies_are_taken_over_with_their_times_and_nothing_of_the_projects_own() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("a/to"));
        let files = [
            ".fingerprint/serde-1a/lib-serde",
            ".fingerprint/portcullis-hal-2b/lib",
            "build/serde-1a/out/x",
            "deps/libserde-1a.rlib",
            "deps/serde-1a.d",
            "deps/libportcullis_hal-2b.rlib",
            "deps/gate-2b",
        ];
        write(&from, &files);
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(7);
        File::options().write(true).open(from.join(files[3])).unwrap().set_modified(old).unwrap();
        seed(&from, &to).unwrap();
        let there: Vec<_> = files.iter().map(|file| to.join(file).exists()).collect();
        assert_eq!(there, [true, false, true, true, true, false, false]);
        assert_eq!(fs::metadata(to.join(files[3])).unwrap().modified().unwrap(), old);
    }

    #[test]
    fn what_was_built_before_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        write(&from, &[".fingerprint/serde-1a/lib"]);
        write(&to, &["x"]);
        seed(&from, &to).unwrap();
        assert!(!to.join(".fingerprint").exists());
        assert!(seed(&to.join("nowhere"), &from.join("x")).is_ok());
    }
}
