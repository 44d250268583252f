//! Remapping registers: offsets in bytes and the bits that this driver uses (manual, section 11.4).

use bitflags::bitflags;

/// Version, 32 bits (11.4.1).
pub const VER: usize = 0x000;
/// Capability, 64 bits (11.4.2).
pub const CAP: usize = 0x008;
/// Extended capability, 64 bits (11.4.3).
pub const ECAP: usize = 0x010;
/// Global command, 32 bits (11.4.4.1).
pub const GCMD: usize = 0x018;
/// Global status, 32 bits (11.4.4.2).
pub const GSTS: usize = 0x01c;
/// Root table address, 64 bits (11.4.5).
pub const RTADDR: usize = 0x020;
/// Context command, 64 bits (11.4.6.1): the register-based invalidation that the queue replaces.
pub const CCMD: usize = 0x028;
/// Fault status, 32 bits (11.4.7.1).
pub const FSTS: usize = 0x034;
/// Fault event control, 32 bits (11.4.7.2).
pub const FECTL: usize = 0x038;
/// Protected memory enable, 32 bits (11.4.8.1).
pub const PMEN: usize = 0x064;
/// Invalidation queue head, 64 bits (11.4.9.1).
pub const IQH: usize = 0x080;
/// Invalidation queue tail, 64 bits (11.4.9.2).
pub const IQT: usize = 0x088;
/// Invalidation queue address, 64 bits (11.4.9.3).
pub const IQA: usize = 0x090;

/// CCMD: a register-based context-cache invalidation is under way (11.4.6.1, ICC).
pub const CCMD_PENDING: u64 = 1 << 63;
/// FECTL: no interrupt for a fault (11.4.7.2, IM).
pub const FECTL_INTERRUPT_MASK: u32 = 1 << 31;
/// PMEN: protected memory regions are enabled (11.4.8.1, EPM).
pub const PMEN_ENABLE: u32 = 1 << 31;
/// PMEN: protection is in effect (11.4.8.1, PRS).
pub const PMEN_STATUS: u32 = 1;

bitflags! {
    /// Commands and, at the same places, their status (11.4.4.1 GCMD, 11.4.4.2 GSTS).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Global: u32 {
        /// DMA remapping (TE, TES).
        const TRANSLATION = 1 << 31;
        /// Root table pointer (SRTP, RTPS).
        const ROOT_TABLE = 1 << 30;
        /// Fault log (SFL, FLS).
        const FAULT_LOG = 1 << 29;
        /// Advanced fault logging (EAFL, AFLS).
        const ADVANCED_FAULT_LOG = 1 << 28;
        /// Write buffer flush (WBF, WBFS).
        const WRITE_BUFFER_FLUSH = 1 << 27;
        /// Queued invalidation (QIE, QIES).
        const QUEUED_INVALIDATION = 1 << 26;
        /// Interrupt remapping (IRE, IRES).
        const INTERRUPT_REMAPPING = 1 << 25;
        /// Interrupt remapping table pointer (SIRTP, IRTPS).
        const INTERRUPT_TABLE = 1 << 24;
        /// Compatibility format interrupts (CFI, CFIS).
        const COMPATIBILITY_INTERRUPTS = 1 << 23;
        /// One-shot commands: never written back from the status.
        const ONE_SHOT = 1 << 30 | 1 << 29 | 1 << 27 | 1 << 24;
    }
}

bitflags! {
    /// Fault status (11.4.7.1). All of these but PPF are cleared by writing 1.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultStatus: u32 {
        /// Records were lost (PFO).
        const OVERFLOW = 1;
        /// At least one record is pending (PPF).
        const PENDING = 1 << 1;
        /// The queue met an invalid descriptor (IQE).
        const QUEUE_ERROR = 1 << 4;
        /// A device TLB sent an unexpected completion (ICE).
        const COMPLETION_ERROR = 1 << 5;
        /// A device TLB did not complete in time (ITE).
        const TIME_OUT_ERROR = 1 << 6;
        /// Any error of the queue.
        const QUEUE_ERRORS = 1 << 4 | 1 << 5 | 1 << 6;
    }
}

impl FaultStatus {
    /// Index of the record to read first (FRI, bits 15:8), valid while `PENDING`.
    #[must_use]
    pub const fn first_record(raw: u32) -> usize {
        (raw >> 8) as usize & 0xff
    }
}

/// The capability register (11.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(pub u64);

impl Capability {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 != 0
    }

    /// Number of domain IDs (ND, bits 2:0).
    #[must_use]
    pub const fn domains(self) -> u32 {
        1 << (4 + 2 * (self.0 & 7))
    }

    /// Write buffers must be flushed by command (RWBF, bit 4).
    #[must_use]
    pub const fn needs_write_buffer_flush(self) -> bool {
        self.bit(4)
    }

    /// Protected low or high memory region exists (PLMR bit 5, PHMR bit 6).
    #[must_use]
    pub const fn has_protected_memory(self) -> bool {
        self.0 & (1 << 5 | 1 << 6) != 0
    }

    /// Entries that are not present may be cached (CM, bit 7).
    #[must_use]
    pub const fn caching_mode(self) -> bool {
        self.bit(7)
    }

    /// Whether tables of so many levels are supported (SAGAW, bits 12:8; bit n stands for n + 2 levels).
    #[must_use]
    pub const fn supports_levels(self, levels: u8) -> bool {
        levels >= 3 && levels <= 5 && self.0 >> (8 + levels - 2) & 1 != 0
    }

    /// Bits of DMA address (MGAW, bits 21:16, plus one).
    #[must_use]
    pub const fn address_bits(self) -> u8 {
        (self.0 >> 16 & 0x3f) as u8 + 1
    }

    /// Byte offset of the first fault record (FRO, bits 33:24, in units of 16).
    #[must_use]
    pub const fn fault_offset(self) -> usize {
        (self.0 >> 24 & 0x3ff) as usize * 16
    }

    /// Pages of 2 MiB in second-stage tables (SSLPS, bit 34).
    #[must_use]
    pub const fn large_2m(self) -> bool {
        self.bit(34)
    }

    /// Pages of 1 GiB in second-stage tables (SSLPS, bit 35).
    #[must_use]
    pub const fn large_1g(self) -> bool {
        self.bit(35)
    }

    /// Page-selective invalidation (PSI, bit 39).
    #[must_use]
    pub const fn page_selective(self) -> bool {
        self.bit(39)
    }

    /// Number of fault records (NFR, bits 47:40, plus one).
    #[must_use]
    pub const fn fault_records(self) -> usize {
        (self.0 >> 40 & 0xff) as usize + 1
    }

    /// Largest address mask of a page-selective invalidation (MAMV, bits 53:48).
    #[must_use]
    pub const fn max_address_mask(self) -> u8 {
        (self.0 >> 48 & 0x3f) as u8
    }

    /// Writes can be drained (DWD, bit 54).
    #[must_use]
    pub const fn drains_writes(self) -> bool {
        self.bit(54)
    }

    /// Reads can be drained (DRD, bit 55).
    #[must_use]
    pub const fn drains_reads(self) -> bool {
        self.bit(55)
    }

    /// Setting the root table pointer invalidates all caches (ESRTPS, bit 63).
    #[must_use]
    pub const fn root_table_invalidates(self) -> bool {
        self.bit(63)
    }
}

/// The extended capability register (11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability(pub u64);

impl ExtendedCapability {
    /// Hardware snoops caches when it walks tables (C, bit 0).
    #[must_use]
    pub const fn coherent(self) -> bool {
        self.0 & 1 != 0
    }

    /// Queued invalidation (QI, bit 1).
    #[must_use]
    pub const fn queued_invalidation(self) -> bool {
        self.0 >> 1 & 1 != 0
    }

    /// Snoop control (SC, bit 7).
    #[must_use]
    pub const fn snoop_control(self) -> bool {
        self.0 >> 7 & 1 != 0
    }
}
