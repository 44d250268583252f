//! Memory types, and the register that gives page-table entries theirs (AMD64 APM volume 2, sections 7.4 and 7.8).

/// How a CPU caches accesses. The values are those of the MTRRs and of the PAT register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// UC: not cached, not combined, strictly ordered.
    Uncacheable = 0,
    /// WC: not cached, writes are combined.
    WriteCombining = 1,
    /// WT: reads are cached, writes go to memory as well.
    WriteThrough = 4,
    /// WP: reads are cached, writes go to memory alone.
    WriteProtected = 5,
    /// WB: cached.
    WriteBack = 6,
}

impl MemoryType {
    /// From the encoding of an MTRR; `None` for a reserved one.
    #[must_use]
    pub const fn from_mtrr(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }
}

/// UC-, of the PAT register only: UC, unless an MTRR says WC.
const UNCACHEABLE_MINUS: u8 = 7;

/// A value that the PAT register can hold: eight types, none of them reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pat(u64);

impl Pat {
    /// Its number as an MSR.
    pub const MSR: u32 = 0x277;

    /// After reset: WB, WT, UC-, UC, and these again.
    pub const RESET: Self = Self(0x0007_0406_0007_0406);

    /// WB eight times: what nested tables say is then what counts, whatever the guest's own say.
    pub const ALL_WRITE_BACK: Self = Self(0x0606_0606_0606_0606);

    /// Checks what is to be written; `None` when hardware would refuse it, with #GP, or with
    /// `VMEXIT_INVALID` in a VMCB (section 15.25.4).
    #[must_use]
    pub fn new(value: u64) -> Option<Self> {
        let is_type = |&byte: &u8| byte == UNCACHEABLE_MINUS || MemoryType::from_mtrr(byte).is_some();
        value.to_le_bytes().iter().all(is_type).then_some(Self(value))
    }

    /// The register's value.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The index by which an entry of tables under this register gets `memory_type`: bit 0 is its PWT, bit 1
    /// PCD, bit 2 PAT. UC stands in for a type that the register lacks: it is right for all memory, only slow.
    /// `None` when that is lacking as well.
    #[must_use]
    pub fn index_of(self, memory_type: MemoryType) -> Option<usize> {
        let types = self.0.to_le_bytes();
        let find = |wanted: MemoryType| types.iter().position(|&byte| byte == wanted as u8);
        find(memory_type).or_else(|| find(MemoryType::Uncacheable))
    }
}

impl Default for Pat {
    fn default() -> Self {
        Self::RESET
    }
}
