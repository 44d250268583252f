//! What kind of unit it is: the capability registers (manual, 11.4.2 and 11.4.3).

/// Capabilities of a unit.
#[derive(Clone, Copy, Debug)]
pub struct VtdConfig {
    /// ECAP.SC: the snoop bit of a leaf is obeyed; without it, it is reserved.
    pub snoop_control: bool,
    /// ECAP.C: table walks see the CPU's caches. Without it they see what was written back.
    pub coherent: bool,
    /// ECAP.QI: there is an invalidation queue.
    pub queued_invalidation: bool,
    /// CAP.CM: entries that are not present are cached, too.
    pub caching_mode: bool,
    /// CAP.RWBF: tables are read through a write buffer that software must flush.
    pub write_buffer: bool,
    /// CAP.PSI with this largest mask (CAP.MAMV); `None`: no page-selective invalidation.
    pub page_selective: Option<u8>,
    /// CAP.DRD and CAP.DWD: invalidations can drain.
    pub draining: bool,
    /// CAP.ESRTPS: setting the root pointer invalidates everything.
    pub root_pointer_invalidates: bool,
    /// CAP.SAGAW: bit 1: 39 bits, bit 2: 48 bits, bit 3: 57 bits.
    pub widths: u8,
    /// CAP.MGAW plus one: bits of guest address.
    pub guest_bits: u8,
    /// CAP.SLLPS: bit 0: 2 MiB pages, bit 1: 1 GiB pages.
    pub large_pages: u8,
    /// CAP.ND: `2^(4 + 2n)` domains.
    pub domain_code: u8,
    /// CAP.NFR plus one: fault records.
    pub fault_records: u8,
    /// CAP.PLMR: a protected low memory region, which firmware left enabled.
    pub protected_memory: bool,
}

impl Default for VtdConfig {
    /// A present-day unit: coherent, with snoop control, queue, draining, 39 and 48 bits, large pages.
    fn default() -> Self {
        Self {
            snoop_control: true,
            coherent: true,
            queued_invalidation: true,
            caching_mode: false,
            write_buffer: false,
            page_selective: Some(18),
            draining: true,
            root_pointer_invalidates: false,
            widths: 0b0110,
            guest_bits: 48,
            large_pages: 0b11,
            domain_code: 6,
            fault_records: 1,
            protected_memory: false,
        }
    }
}

/// Byte offset of the fault records.
pub(super) const FAULT_RECORDS: usize = 0x220;

impl VtdConfig {
    pub(super) fn cap(&self) -> u64 {
        let bit = |set: bool, position: u32| u64::from(set) << position;
        u64::from(self.domain_code & 7)
            | bit(self.write_buffer, 4)
            | bit(self.protected_memory, 5)
            | bit(self.caching_mode, 7)
            | u64::from(self.widths & 0x1f) << 8
            | u64::from(self.guest_bits - 1) << 16
            | (FAULT_RECORDS as u64 / 16) << 24
            | u64::from(self.large_pages & 0xf) << 34
            | bit(self.page_selective.is_some(), 39)
            | u64::from(self.fault_records - 1) << 40
            | u64::from(self.page_selective.unwrap_or(0)) << 48
            | bit(self.draining, 54)
            | bit(self.draining, 55)
            | bit(self.root_pointer_invalidates, 63)
    }

    pub(super) fn ecap(&self) -> u64 {
        u64::from(self.coherent)
            | u64::from(self.queued_invalidation) << 1
            | u64::from(self.snoop_control) << 7
            | 0x50 << 8
    }

    pub(super) fn domains(&self) -> u32 {
        1 << (4 + 2 * u32::from(self.domain_code & 7))
    }
}
