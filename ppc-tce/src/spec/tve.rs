//! Translation validation entries (IODA2, "TVT"; IODA3 the same fields).
//!
//! The driver leaves writing them to firmware, which keeps a copy for PHB resets; the layout stands
//! here for machines without firmware and for reading dumps.

use portcullis_hal::{IoPageSize, PhysAddr};

/// Number of the TVT among the on-chip tables reached through IODA_ADDR and IODA_DATA.
pub const TABLE_SELECT: u64 = 9;

/// One entry: translation through TCE tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tve(u64);

impl Tve {
    /// The entry that refuses every DMA: a table size of 0.
    pub const INVALID: Self = Self(0);

    /// Translation through `levels` levels (1..=5) of tables of `2^level_bytes_shift` bytes (shift
    /// 12..=42), the first one at `table`. `None` for other numbers.
    #[must_use]
    pub const fn new(table: PhysAddr, levels: u8, level_bytes_shift: u32, page: IoPageSize) -> Option<Self> {
        let aligned = table.as_u64() & 0xfff == 0 && table.as_u64() >> 60 == 0;
        if !aligned || levels < 1 || levels > 5 || level_bytes_shift < 12 || level_bytes_shift > 42 {
            return None;
        }
        let address = (table.as_u64() >> 12) << 16;
        let depth = (levels as u64 - 1) << 13;
        let size = (level_bytes_shift as u64 - 11) << 8;
        Some(Self(address | depth | size | (page.shift() as u64 - 11)))
    }

    /// The entry as it stands in the register.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_manual_has_them() {
        let tve = Tve::new(PhysAddr::new(0x1234_5000), 2, 12, IoPageSize::SIZE_64K).expect("valid");
        assert_eq!(super::super::field(tve.as_u64(), 0, 47), 0x1_2345);
        assert_eq!(super::super::field(tve.as_u64(), 48, 50), 1);
        assert_eq!(super::super::field(tve.as_u64(), 51, 55), 1);
        assert_eq!(super::super::field(tve.as_u64(), 59, 63), 5);
    }

    #[test]
    fn impossible_entries_are_refused() {
        let table = PhysAddr::new(0x1000);
        assert_eq!(Tve::new(table, 0, 12, IoPageSize::SIZE_4K), None);
        assert_eq!(Tve::new(table, 6, 12, IoPageSize::SIZE_4K), None);
        assert_eq!(Tve::new(table, 1, 11, IoPageSize::SIZE_4K), None);
        assert_eq!(Tve::new(PhysAddr::new(0x1800), 1, 12, IoPageSize::SIZE_4K), None);
    }
}
