//! QEMU as an independent witness: its own trace of translations and faults, against what the target says.

mod phb;
mod vtd;

use std::{fs, io, path::Path};

use portcullis_suite::event::Direction;

use crate::{board::WitnessKind, record::Record, words};

/// What QEMU's trace says about the transfers of one boot.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Transfers that landed, as the trace says too.
    pub(crate) landed: usize,
    /// Blocked transfers for which the trace has the fault.
    pub(crate) faulted: usize,
    /// Blocked transfers of which the trace has neither a translation nor a fault.
    pub(crate) absent: usize,
    /// Where the two differ.
    pub(crate) mismatches: Vec<String>,
}

impl Findings {
    /// Transfers on which both agree.
    pub(crate) fn confirmed(&self) -> usize {
        self.landed + self.faulted + self.absent
    }
}

/// Compares what the target said with the trace at `trace`.
pub(crate) fn examine(kind: WitnessKind, record: &Record, trace: &Path) -> io::Result<Findings> {
    let text = match fs::read(trace) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        // The bridges' log is made with its first line.
        Err(error) if error.kind() == io::ErrorKind::NotFound && kind == WitnessKind::PhbErrors => {
            String::new()
        }
        Err(error) => return Err(error),
    };
    Ok(match kind {
        WitnessKind::VtdTrace => vtd::examine(record, &text),
        WitnessKind::PhbErrors => phb::examine(record, &text),
    })
}

/// A transfer as the target reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Transfer {
    requester: u16,
    iova: u64,
    direction: Direction,
}

impl Transfer {
    fn mismatch(self, said: &str, seen: &str) -> String {
        let Self { requester, iova, direction } = self;
        let (device, verb) = (words::requester(requester), words::verb(direction));
        format!("{device} {verb} {iova:#x}: the target says {said}, QEMU's trace {seen}")
    }
}

/// The hexadecimal (with or without `0x`) or decimal number that follows `key` in `line`.
fn number_after(line: &str, key: &str, radix: u32) -> Option<u64> {
    let (_, rest) = line.split_once(key)?;
    let rest = rest.strip_prefix("0x").unwrap_or(rest);
    let end = rest.find(|c: char| !c.is_digit(radix)).unwrap_or(rest.len());
    u64::from_str_radix(rest.get(..end)?, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_key() {
        let line = "vtd_dmar_fault sid 0x8 fault 5 addr 0x330a4 write 1";
        assert_eq!(number_after(line, "sid ", 16), Some(8));
        assert_eq!(number_after(line, "addr ", 16), Some(0x330a4));
        assert_eq!(number_after(line, "write ", 10), Some(1));
        assert_eq!(number_after(line, "gpa ", 16), None);
        assert_eq!(number_after("sid ", "sid ", 16), None);
    }
}
