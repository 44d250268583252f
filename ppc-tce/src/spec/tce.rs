//! Translation control entries (IODA2, "TCE format"): 8 bytes, big-endian in memory.

use portcullis_hal::{Access, IoPageSize, PhysAddr};

/// Bits of real address that an entry holds: 0..=51.
const ADDRESS: u64 = super::bits(0, 51);
/// Bit 62: the device may write.
const WRITE: u64 = super::bit(62);
/// Bit 63: the device may read.
const READ: u64 = super::bit(63);

/// One entry, as a number; [`to_memory`](Self::to_memory) gives the bytes that hardware reads.
///
/// A leaf holds the real address of a page, an indirect entry that of the next table. Without either
/// permission bit it leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(transparent)]
pub struct Tce(u64);

impl Tce {
    /// The entry that leads nowhere.
    pub const EMPTY: Self = Self(0);

    /// A leaf for the page at `page`, whose low 12 bits are dropped.
    #[inline]
    #[must_use]
    pub const fn leaf(page: PhysAddr, access: Access) -> Self {
        Self(page.as_u64() & ADDRESS | access.bits() as u64 & (READ | WRITE))
    }

    /// An indirect entry for the table at `table`: hardware wants both permissions there.
    #[inline]
    #[must_use]
    pub const fn indirect(table: PhysAddr) -> Self {
        Self(table.as_u64() & ADDRESS | READ | WRITE)
    }

    /// The entry whose bytes in memory read as `cell`.
    #[inline]
    #[must_use]
    pub const fn from_memory(cell: u64) -> Self {
        Self(u64::from_be(cell))
    }

    /// The bytes to store.
    #[inline]
    #[must_use]
    pub const fn to_memory(self) -> u64 {
        self.0.to_be()
    }

    /// Whether a device may do anything through it.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & (READ | WRITE) != 0
    }

    /// What a device may do through it.
    #[inline]
    #[must_use]
    pub const fn access(self) -> Access {
        Access::from_bits_truncate((self.0 & (READ | WRITE)) as u8)
    }

    /// The real address that it holds: of a page or of a table.
    #[inline]
    #[must_use]
    pub const fn address(self) -> PhysAddr {
        PhysAddr::new(self.0 & ADDRESS)
    }

    /// The same permissions for the next page of this size.
    #[inline]
    #[must_use]
    pub const fn next(self, size: IoPageSize) -> Self {
        Self(self.0.wrapping_add(size.bytes()))
    }

    /// The entry with this number.
    #[inline]
    #[must_use]
    pub const fn from_u64(entry: u64) -> Self {
        Self(entry)
    }

    /// The entry as a number.
    #[inline]
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

// `leaf` and `access` take the permission bits as they stand.
const _: () = assert!(READ == Access::READ.bits() as u64 && WRITE == Access::WRITE.bits() as u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_bytes_of_the_manual() {
        let page = PhysAddr::new(0x0012_3456_7000);
        let bytes = |tce: Tce| tce.to_memory().to_ne_bytes();
        assert_eq!(bytes(Tce::leaf(page, Access::READ)), [0, 0, 0, 0x12, 0x34, 0x56, 0x70, 1]);
        assert_eq!(bytes(Tce::leaf(page, Access::WRITE)), [0, 0, 0, 0x12, 0x34, 0x56, 0x70, 2]);
        assert_eq!(bytes(Tce::indirect(page)), [0, 0, 0, 0x12, 0x34, 0x56, 0x70, 3]);
        assert!(!Tce::leaf(page, Access::empty()).is_valid());
    }

    #[test]
    fn entries_round_trip_through_memory() {
        let tce = Tce::leaf(PhysAddr::new(0x4000_0000), Access::READ | Access::WRITE);
        let read = Tce::from_memory(tce.to_memory());
        assert_eq!((read.address().as_u64(), read.access()), (0x4000_0000, Access::READ | Access::WRITE));
    }
}
