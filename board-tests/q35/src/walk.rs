//! A walk from the unit's root pointer to a leaf, apart from the driver (VT-d manual, chapters 3 and 9).

use portcullis_hal::{Iova, RegisterIo, RequesterId};

use crate::memory::word_at;

const ROOT_TABLE_ADDRESS: usize = 0x20;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const READ_WRITE: u64 = 3;
const LARGE: u64 = 1 << 7;
const SNOOP: u64 = 1 << 11;

/// The leaf entry that `requester` reaches at `iova`.
pub(crate) fn leaf(registers: &impl RegisterIo, requester: RequesterId, iova: Iova) -> Option<u64> {
    let root = registers.read64(ROOT_TABLE_ADDRESS) & ADDRESS;
    let root_entry = word_at(root + u64::from(requester.bus()) * 16)?;
    let context = (root_entry & ADDRESS) + u64::from(requester.devfn()) * 16;
    let (low, high) = (word_at(context)?, word_at(context + 8)?);
    if root_entry & PRESENT == 0 || low & PRESENT == 0 {
        return None;
    }
    let mut table = low & ADDRESS;
    // The width field holds the number of levels minus 2.
    for level in (0..(high & 7) + 2).rev() {
        let entry = word_at(table + (iova.as_u64() >> (12 + 9 * level) & 0x1ff) * 8)?;
        if entry & READ_WRITE == 0 {
            return None;
        }
        if level == 0 || entry & LARGE != 0 {
            return Some(entry);
        }
        table = entry & ADDRESS;
    }
    None
}

/// Whether a leaf carries the snoop bit.
pub(crate) const fn snoops(leaf: u64) -> bool {
    leaf & SNOOP != 0
}
