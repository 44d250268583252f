//! Words of a radix partition-scoped translation (section 5.7): four levels over 52 bits of guest real address.

/// Bytes that a leaf of the second level maps.
pub const HUGE_PAGE: u64 = 1 << 30;
/// Bytes that a leaf of the last level but one maps.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bytes that a leaf of the last level maps.
pub const SMALL_PAGE: u64 = 4096;
/// Entries of the root.
pub const ROOT_ENTRIES: usize = 1 << ROOT_BITS;
/// Entries of every other table.
pub const ENTRIES: usize = 1 << NEXT_BITS;

const ROOT_BITS: u64 = 13;
const NEXT_BITS: u64 = 9;
/// Radix tree size, as its value less 31 (5.7.6.1): 52 bits.
const TREE_SIZE: u64 = 52 - 31;
/// In a partition table entry: the host uses radix.
const HOST_RADIX: u64 = 1 << 63;
/// In an entry: it is valid.
const VALID: u64 = 1 << 63;
/// In an entry: it is a leaf.
const LEAF: u64 = 1 << 62;
/// In a leaf: referenced and changed, so that hardware has nothing to record.
const REFERENCED_CHANGED: u64 = 1 << 8 | 1 << 7;
/// In a leaf: read and write.
const READ_WRITE: u64 = 4 | 2;
const EXECUTE: u64 = 1;
/// In a leaf: out of reach of problem state, and beyond the storage keys that a guest may change.
const PRIVILEGED: u64 = 8;
/// In a leaf: non-idempotent I/O, which is cache-inhibited and guarded.
const DEVICE: u64 = 0b10 << 4;
/// The bits of an address in an entry.
const ADDRESS: u64 = 0x01ff_ffff_ffff_f000;

/// What a leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory: everything is allowed.
    Memory,
    /// Registers of a device: read and written, cache-inhibited.
    Registers,
}

/// First word of the partition table's entry for a guest whose root lies at `root`.
#[must_use]
pub const fn partition_entry(root: u64) -> u64 {
    // The size is cut in two: bits 1:2 and 56:58.
    let size = (TREE_SIZE >> 3) << 61 | (TREE_SIZE & 7) << 5;
    HOST_RADIX | size | root | ROOT_BITS
}

/// Second word of that entry: the process table of 4 KiB at `table`, whose processes use radix.
#[must_use]
pub const fn partition_processes(table: u64) -> u64 {
    HOST_RADIX | table
}

/// First word of a process table's entry for a process whose root lies at `root` (5.7.6.2).
#[must_use]
pub const fn process_entry(root: u64) -> u64 {
    partition_entry(root) & !HOST_RADIX
}

/// A leaf of the hypervisor's own tables onto the page at `page`.
#[must_use]
pub const fn privileged_leaf(page: u64, kind: Kind) -> u64 {
    leaf(page, kind) | PRIVILEGED
}

/// An entry that leads to the table at `table`.
#[must_use]
pub const fn directory(table: u64) -> u64 {
    VALID | (table & ADDRESS) | NEXT_BITS
}

/// The table that a [`directory`] entry leads to.
#[must_use]
pub const fn next(directory: u64) -> u64 {
    directory & ADDRESS
}

/// A leaf onto the page at `page`.
#[must_use]
pub const fn leaf(page: u64, kind: Kind) -> u64 {
    let attributes = match kind {
        Kind::Memory => EXECUTE,
        Kind::Registers => DEVICE,
    };
    VALID | LEAF | (page & ADDRESS) | REFERENCED_CHANGED | READ_WRITE | attributes
}

/// Indices of `address` in the four levels, root first.
#[must_use]
pub const fn indices(address: u64) -> [usize; 4] {
    let below = (1 << NEXT_BITS) - 1;
    [
        (address >> 39) as usize & (ROOT_ENTRIES - 1),
        (address >> 30 & below) as usize,
        (address >> 21 & below) as usize,
        (address >> 12 & below) as usize,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_architecture() {
        assert_eq!(partition_entry(0x12_0000), 0xc000_0000_0012_00ad);
        assert_eq!(directory(0x3000), 0x8000_0000_0000_3009);
        assert_eq!(leaf(0x40_0000, Kind::Memory), 0xc000_0000_0040_0187);
        assert_eq!(leaf(0x6_0000_1000, Kind::Registers), 0xc000_0006_0000_11a6);
        assert_eq!(privileged_leaf(0x4000_0000, Kind::Memory), 0xc000_0000_4000_018f);
        assert_eq!(partition_processes(0x5000), 0x8000_0000_0000_5000);
        assert_eq!(process_entry(0x12_0000), 0x4000_0000_0012_00ad);
    }

    #[test]
    fn registers_are_not_executed() {
        assert_eq!(leaf(0, Kind::Registers) & EXECUTE, 0);
    }

    #[test]
    fn an_address_has_an_index_in_each_level() {
        assert_eq!(indices(0), [0; 4]);
        assert_eq!(indices(5 << 39 | 7 << 30 | 9 << 21 | 11 << 12 | 0xfff), [5, 7, 9, 11]);
        assert_eq!(indices(u64::MAX), [ROOT_ENTRIES - 1, ENTRIES - 1, ENTRIES - 1, ENTRIES - 1]);
    }
}
