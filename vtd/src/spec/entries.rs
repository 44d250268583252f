//! Root, context and second-stage paging entries, in legacy mode.

use portcullis_hal::{Access, PhysAddr};

/// Bits 51:12 of any entry: the page that it points to.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Present, in the low half of a root or context entry (manual 9.1, 9.3).
pub const PRESENT: u64 = 1;

/// The low half of a root entry that points to a context table (9.1). The high half is reserved, 0.
#[must_use]
pub const fn root_entry(context_table: PhysAddr) -> u64 {
    context_table.as_u64() & ADDRESS | PRESENT
}

/// Where a root entry's context table is, or `None` when it is not present (9.1).
#[must_use]
pub const fn context_table(root_low: u64) -> Option<PhysAddr> {
    if root_low & PRESENT == 0 { None } else { Some(PhysAddr::new(root_low & ADDRESS)) }
}

/// A context entry in two halves (9.3): untranslated requests go through a second-stage table
/// (TT = 00b), and faults are reported (FPD = 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// Bits 63:0: present, table pointer.
    pub low: u64,
    /// Bits 127:64: address width (bits 2:0 of the half), domain ID (bits 23:8).
    pub high: u64,
}

impl ContextEntry {
    /// The entry that sends a device through a table of so many levels (AW = levels - 2).
    #[must_use]
    pub const fn new(table: PhysAddr, levels: u8, domain: u16) -> Self {
        let width = levels.saturating_sub(2) as u64;
        Self { low: table.as_u64() & ADDRESS | PRESENT, high: width | (domain as u64) << 8 }
    }

    /// The domain ID in the high half of an entry.
    #[must_use]
    pub const fn domain(high: u64) -> u16 {
        (high >> 8) as u16
    }
}

/// A second-stage paging entry (9.8): points to a table, to a page, or to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pte(pub u64);

impl Pte {
    /// Nothing, and nobody works on it.
    pub const EMPTY: Self = Self(0);
    /// Read and write: hardware looks at an entry only when one of them is set.
    const READ_WRITE: u64 = 3;
    /// The entry of a higher level is a page (PS, bit 7).
    const PAGE: u64 = 1 << 7;
    /// Snoop: the page's DMA is cache-coherent whatever the device asks for (SNP, bit 11). Reserved in an
    /// entry that points to a table, and everywhere without ECAP.SC.
    pub const SNOOP: u64 = 1 << 11;
    /// Ours: a CPU works on what the entry covers. In bits 61:52, which hardware ignores.
    pub const BUSY: u64 = 1 << 52;

    /// The entry that points to a table, with all rights: the leaf decides.
    #[inline]
    #[must_use]
    pub const fn table(table: PhysAddr) -> Self {
        Self(table.as_u64() & ADDRESS | Self::READ_WRITE)
    }

    /// The attribute bits of a leaf at a level (1: 4 KiB, 2: 2 MiB, 3: 1 GiB), to be joined with an
    /// address. `snoop` is [`Self::SNOOP`] or 0.
    #[inline]
    #[must_use]
    pub const fn leaf_bits(level: u8, access: Access, snoop: u64) -> u64 {
        let page = if level > 1 { Self::PAGE } else { 0 };
        (access.bits() & 3) as u64 | page | snoop
    }

    /// Whether hardware sees something in the entry.
    #[inline]
    #[must_use]
    pub const fn is_present(self) -> bool {
        self.0 & Self::READ_WRITE != 0
    }

    /// Whether the entry, which stands at `level`, points to a table.
    #[inline]
    #[must_use]
    pub const fn is_table(self, level: u8) -> bool {
        level > 1 && self.is_present() && self.0 & Self::PAGE == 0
    }

    /// Whether a CPU works on what the entry covers.
    #[inline]
    #[must_use]
    pub const fn is_busy(self) -> bool {
        self.0 & Self::BUSY != 0
    }

    /// The entry with a CPU at work on what it covers.
    #[inline]
    #[must_use]
    pub const fn busy(self) -> Self {
        Self(self.0 | Self::BUSY)
    }

    /// The entry with nobody at work on it.
    #[inline]
    #[must_use]
    pub const fn idle(self) -> Self {
        Self(self.0 & !Self::BUSY)
    }

    /// The table or page that the entry points to.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    /// What a device may do with the page.
    #[must_use]
    pub const fn access(self) -> Access {
        Access::from_bits_truncate(self.0 as u8 & 3)
    }
}
