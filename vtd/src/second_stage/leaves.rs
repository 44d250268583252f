//! Runs of leaf entries in one table.

use portcullis_hal::{
    CacheMaintenance, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Error;

use super::{index, slots::Span};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// The leaf entries of `part` in the table that a level-2 entry points to.
#[inline]
pub(super) fn leaves<'t, M: TableMemory, K: CacheMaintenance>(
    tables: &TableAccess<'t, M, K>,
    pte: Pte,
    part: Span,
) -> Result<&'t [AtomicU64], Error> {
    let first = index(part.first, 1);
    tables.entries(pte.address(), first, index(part.last, 1) + 1 - first)
}

/// Index of the first entry that is not empty.
#[inline]
pub(super) fn first_present(entries: &[AtomicU64]) -> Option<usize> {
    entries.iter().position(|entry| entry.load(Ordering::Relaxed) != 0)
}

/// Clears entries; returns how many held something.
#[inline]
pub(super) fn clear(entries: &[AtomicU64]) -> u64 {
    let mut cleared = 0;
    for entry in entries {
        if entry.load(Ordering::Relaxed) != 0 {
            entry.store(0, Ordering::Relaxed);
            cleared += 1;
        }
    }
    cleared
}
