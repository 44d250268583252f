//! The file behind a board's disk: new for each boot, so that no image can know what it holds.

use std::{
    fs,
    path::{Path, PathBuf},
};

use portcullis_suite::{Event, checksum::Checksum, event};
use serde::Serialize;

use crate::{error::Error, record::Record};

/// A file that was made for one boot.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    value: u32,
    bytes: u64,
}

/// A checksum that a board reported, beside the file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Compared {
    /// What was read.
    pub(crate) what: String,
    /// The board's sum.
    pub(crate) value: u32,
    /// Bytes that it read.
    pub(crate) bytes: u64,
    /// The file's sum and length; none when the host has no such file.
    pub(crate) expected: Option<u32>,
    pub(crate) expected_bytes: Option<u64>,
}

impl Disk {
    /// Makes a file of `bytes` random bytes at `path`.
    pub(crate) fn make(path: &Path, bytes: u64) -> Result<Self, Error> {
        let mut content = vec![0; bytes as usize];
        fastrand::Rng::new().fill(&mut content);
        fs::write(path, &content).map_err(Error::file(path))?;
        Ok(Self { path: path.to_owned(), value: Checksum::of(&content).value(), bytes })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// All checksums that a board reported, each with what it should have been.
pub(crate) fn compare(record: &Record, disk: Option<&Disk>) -> Vec<Compared> {
    let reported = record.events().filter_map(|event| match event {
        Event::Checksum { what, value, bytes } => Some((what.to_owned(), value, bytes)),
        _ => None,
    });
    reported
        .map(|(what, value, bytes)| {
            let known = disk.filter(|_| what == event::DISK);
            let (expected, expected_bytes) = (known.map(|disk| disk.value), known.map(|disk| disk.bytes));
            Compared { what, value, bytes, expected, expected_bytes }
        })
        .collect()
}

impl Compared {
    /// What is wrong with it.
    pub(crate) fn complaint(&self) -> Option<String> {
        let Self { what, value, bytes, .. } = self;
        let (Some(expected), Some(expected_bytes)) = (self.expected, self.expected_bytes) else {
            return Some(format!("the board read `{what}`, of which this host knows nothing"));
        };
        ((*value, *bytes) != (expected, expected_bytes)).then(|| {
            format!(
                "the board read {bytes} bytes of the {what} with checksum {value:#010x}; the file has \
                 {expected_bytes} with {expected:#010x}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record_of;

    #[test]
    fn sums_are_compared_with_the_file_that_this_boot_had() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::make(&folder.path().join("disk"), 5000).unwrap();
        let content = fs::read(disk.path()).unwrap();
        assert_eq!(content.len(), 5000);
        let judged = |what, value, bytes, disk: Option<&Disk>| {
            let record = record_of(&[Event::Checksum { what, value, bytes }]);
            compare(&record, disk).iter().filter_map(Compared::complaint).collect::<Vec<_>>()
        };
        let right = Checksum::of(&content).value();
        assert_eq!(judged(event::DISK, right, 5000, Some(&disk)), Vec::<String>::new());
        let wrong = judged(event::DISK, right ^ 1, 5000, Some(&disk)).remove(0);
        assert!(wrong.contains(&format!("{right:#010x}")) && wrong.contains(&format!("{:#010x}", right ^ 1)));
        assert!(judged(event::DISK, right, 4999, Some(&disk))[0].contains("4999 bytes"));
        assert!(judged("tape", right, 5000, Some(&disk))[0].contains("`tape`"));
        assert!(judged(event::DISK, right, 5000, None)[0].contains("knows nothing"));
    }

    #[test]
    fn no_two_boots_have_the_same_disk() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["a", "b"].map(|name| Disk::make(&folder.path().join(name), 4096).unwrap());
        assert_ne!(one.value, two.value);
    }
}
