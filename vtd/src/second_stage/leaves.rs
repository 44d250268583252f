//! Runs of leaf entries in one table, whose slot is busy.

use portcullis_hal::{
    CacheMaintenance, PhysAddr, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::{Error, Removals, removals::tell};

use super::{PAGE, index, shift, slots::Span};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// Entries that are looked at, or stored, in one go: a cache line.
const LINE: usize = 8;

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

/// Whether no entry maps anything.
#[inline]
pub(super) fn is_empty(entries: &[AtomicU64]) -> bool {
    let (lines, rest) = entries.as_chunks::<LINE>();
    let mut seen = 0;
    for line in lines {
        for entry in line {
            seen |= entry.load(Ordering::Relaxed);
        }
        if seen != 0 {
            return false;
        }
    }
    rest.iter().fold(seen, |seen, entry| seen | entry.load(Ordering::Relaxed)) == 0
}

/// Index of the first entry that is not empty.
#[inline]
pub(super) fn first_present(entries: &[AtomicU64]) -> Option<usize> {
    if is_empty(entries) {
        return None;
    }
    entries.iter().position(|entry| entry.load(Ordering::Relaxed) != 0)
}

/// Stores entries for consecutive pages, the first of which is `value`.
#[inline]
pub(super) fn fill(entries: &[AtomicU64], value: u64) {
    let (lines, rest) = entries.as_chunks::<LINE>();
    let mut value = value;
    for line in lines {
        for (entry, offset) in line.iter().zip(0..) {
            entry.store(value + offset * PAGE, Ordering::Relaxed);
        }
        value += LINE as u64 * PAGE;
    }
    for entry in rest {
        entry.store(value, Ordering::Relaxed);
        value += PAGE;
    }
}

/// Clears entries and tells what they led to; returns how many held something.
#[inline]
pub(super) fn clear<T: Removals>(entries: &[AtomicU64], removals: &mut T) -> u64 {
    if T::WANTED {
        return tell_leaves(entries.iter().map(|entry| Pte(take(entry))), removals) / PAGE;
    }
    let (lines, rest) = entries.as_chunks::<LINE>();
    let cleared = lines.iter().map(clear_line).sum::<u64>() + count(rest);
    rest.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    cleared
}

/// Empties an entry; returns what it held.
#[inline]
fn take(entry: &AtomicU64) -> u64 {
    let old = entry.load(Ordering::Relaxed);
    entry.store(0, Ordering::Relaxed);
    old
}

/// Tells what leaves led to; returns the bytes.
#[inline]
pub(super) fn tell_leaves<T: Removals>(leaves: impl Iterator<Item = Pte>, removals: &mut T) -> u64 {
    let address = |leaf| Pte(leaf).is_present().then(|| PhysAddr::new(Pte(leaf).address()));
    tell(leaves.map(|leaf| leaf.0), PAGE, address, removals)
}

/// Tells of the page that an entry of `level`, which is no table's, led to; returns its bytes.
#[inline]
pub(super) fn remove_page<T: Removals>(pte: Pte, level: u8, removals: &mut T) -> u64 {
    if !pte.is_present() {
        return 0;
    }
    let bytes = 1 << shift(level);
    removals.removed(PhysAddr::new(pte.address()), bytes);
    bytes
}

#[inline]
fn clear_line(line: &[AtomicU64; LINE]) -> u64 {
    // An entry has bit 63 clear, so one less has it set only where the entry is 0.
    let holes = line.iter().fold(0, |holes, entry| holes | entry.load(Ordering::Relaxed).wrapping_sub(1));
    let held = if holes >> 63 == 0 { LINE as u64 } else { count(line) };
    line.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    held
}

/// How many entries hold something.
fn count(entries: &[AtomicU64]) -> u64 {
    entries.iter().map(|entry| u64::from(entry.load(Ordering::Relaxed) != 0)).sum()
}
