//! The shape of a tree of TCE tables.

use portcullis_hal::{IoPageSize, TABLE_PAGE_BYTES};
use portcullis_iommu::Error;

/// Address bits that a window can translate: bit 59 chooses the window, bit 60 the MSI space.
pub const WINDOW_BITS: u32 = 59;
/// log2 of the entries in the smallest table, one page.
const MIN_LEVEL_BITS: u32 = 9;
/// log2 of the entries in the largest table: the longest run that the page pool hands out.
const MAX_LEVEL_BITS: u32 = 15;
/// Levels that a TVE can express (IODA2, "TVT": number of levels).
const MAX_LEVELS: u8 = 5;

/// Page size, number of levels and size of each level, checked.
///
/// The bound is `level_bits · levels + page_shift ≤ 59`: an index bit beyond it could never be put on
/// the bus. Other systems stay below 55; nothing above that was seen on a real board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Geometry {
    page_size: IoPageSize,
    levels: u8,
    level_bits: u8,
    /// Bits of the index of an entry: of all levels together.
    index_bits: u8,
}

impl Geometry {
    /// The smallest tables of `levels` equal levels that translate at least the addresses below `bytes`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the number of levels, the bits of one level or the bits of address
    /// that are too many.
    pub const fn covering(page_size: IoPageSize, levels: u8, bytes: u64) -> Result<Self, Error> {
        if levels < 1 || levels > MAX_LEVELS {
            return Err(Error::Unsupported { value: levels as u64 });
        }
        let address_bits = u64::BITS - bytes.saturating_sub(1).leading_zeros();
        let index_bits = address_bits.saturating_sub(page_size.shift());
        let even = index_bits.div_ceil(levels as u32);
        let level_bits = if even < MIN_LEVEL_BITS { MIN_LEVEL_BITS } else { even };
        if level_bits > MAX_LEVEL_BITS {
            return Err(Error::Unsupported { value: level_bits as u64 });
        }
        let index_bits = level_bits * levels as u32;
        let covered = index_bits + page_size.shift();
        if covered > WINDOW_BITS {
            return Err(Error::Unsupported { value: covered as u64 });
        }
        Ok(Self { page_size, levels, level_bits: level_bits as u8, index_bits: index_bits as u8 })
    }

    /// The shape of a tree that [`covering`](Self::covering) made, from its numbers.
    #[inline]
    pub(crate) const fn of_levels(page_size: IoPageSize, levels: u8, level_bits: u8) -> Self {
        Self { page_size, levels, level_bits, index_bits: levels.wrapping_mul(level_bits) }
    }

    /// IOMMU page size.
    #[inline]
    #[must_use]
    pub const fn page_size(self) -> IoPageSize {
        self.page_size
    }

    /// Levels, 1..=5.
    #[inline]
    #[must_use]
    pub const fn levels(self) -> u8 {
        self.levels
    }

    /// log2 of the entries in one table.
    #[inline]
    #[must_use]
    pub const fn level_bits(self) -> u32 {
        self.level_bits as u32
    }

    /// Bytes of one table.
    #[inline]
    #[must_use]
    pub const fn level_bytes(self) -> u64 {
        8 << self.level_bits
    }

    /// 4 KiB pages of one table.
    #[inline]
    #[must_use]
    pub const fn level_pages(self) -> usize {
        (self.level_bytes() / TABLE_PAGE_BYTES) as usize
    }

    /// Entries of all last-level tables together: indices at or above it do not exist.
    #[inline]
    #[must_use]
    pub const fn entries(self) -> u64 {
        1 << self.index_bits
    }

    #[inline]
    pub(crate) const fn index_bits(self) -> u32 {
        self.index_bits as u32
    }

    /// Position of `index` in its table `above` levels over the last one.
    #[inline]
    pub(crate) const fn slot(self, index: u64, above: u32) -> usize {
        ((index >> (self.level_bits() * above)) & ((1 << self.level_bits) - 1)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn e01_tables_are_as_small_as_the_window_allows() {
        let shape = |size, levels, bytes| {
            Geometry::covering(size, levels, bytes).map(|g| (g.level_bits(), g.level_pages()))
        };
        assert_eq!(shape(IoPageSize::SIZE_4K, 1, 2 << 20), Ok((9, 1)));
        assert_eq!(shape(IoPageSize::SIZE_4K, 2, GIB), Ok((9, 1)));
        assert_eq!(shape(IoPageSize::SIZE_4K, 2, GIB + 1), Ok((10, 2)));
        assert_eq!(shape(IoPageSize::SIZE_64K, 1, 2 * GIB), Ok((15, 64)));
        assert_eq!(shape(IoPageSize::SIZE_1G, 1, GIB), Ok((9, 1)));
    }

    #[test]
    fn e02_the_geometry_bound_is_59_bits_of_address() {
        let covered = |size, levels, bytes| {
            Geometry::covering(size, levels, bytes).map(|g| g.entries().ilog2() + size.shift())
        };
        assert_eq!(covered(IoPageSize::SIZE_4K, 5, GIB), Ok(57));
        assert_eq!(covered(IoPageSize::SIZE_64K, 4, GIB), Ok(52));
        assert_eq!(covered(IoPageSize::SIZE_64K, 5, GIB), Err(Error::Unsupported { value: 61 }));
        assert_eq!(covered(IoPageSize::SIZE_1G, 2, 1 << 59), Err(Error::Unsupported { value: 60 }));
        assert_eq!(covered(IoPageSize::SIZE_4K, 4, 1 << 59), Err(Error::Unsupported { value: 60 }));
    }

    #[test]
    fn e03_levels_outside_1_to_5_and_oversized_levels_are_refused() {
        let refused = |levels, bytes| Geometry::covering(IoPageSize::SIZE_4K, levels, bytes).err();
        assert_eq!(refused(0, GIB), Some(Error::Unsupported { value: 0 }));
        assert_eq!(refused(6, GIB), Some(Error::Unsupported { value: 6 }));
        assert_eq!(refused(1, GIB), Some(Error::Unsupported { value: 18 }));
    }
}
