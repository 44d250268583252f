//! Tables that the guest needs for its problem state, which always translates (section 3.3.1, MSR[PR]): one process, for
//! which the first 2 MiB lie at their own addresses. POWER9 and POWER10.

use super::{
    memory::GuestMemory,
    radix::{self, Kind},
};

/// Guest real address of the process table.
pub(super) const PROCESSES: u64 = 0x30_0000;
/// Guest real addresses of the tree's three levels; the root is aligned to its 64 KiB.
const LEVELS: [u64; 3] = [0x31_0000, 0x32_0000, 0x32_1000];

/// Writes the tables into the guest's memory; `None` when it is too small.
pub(super) fn make_tables(memory: GuestMemory) -> Option<()> {
    let [root, upper, middle] = LEVELS;
    let entries = [
        (PROCESSES, radix::process_entry(root)),
        (root, radix::directory(upper)),
        (upper, radix::directory(middle)),
        (middle, radix::leaf(0, Kind::Memory)),
    ];
    entries.into_iter().try_for_each(|(at, entry)| memory.write(at, entry.to_be()))
}
