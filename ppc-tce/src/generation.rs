//! What the generations of the host bridge can do, and where they err.

use portcullis_iommu::PageSizes;

/// A generation of the POWER host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Generation {
    /// POWER8.
    Phb3,
    /// POWER9.
    Phb4,
    /// POWER10.
    Phb5,
}

/// How the bridge tells that a kill is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillCompletion {
    /// It does not: the register is read back, so that the write has reached the bridge before
    /// anything later. Unproved on real PHB3: no source that was read waits for more.
    ReadBack,
    /// Kill status in QUIESCE_DMA, then the DMA read sync.
    Status,
}

/// How the completion bits of DMA_SYNC are made 0 before the next sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncRestart {
    /// The start bit alone does it.
    StartClears,
    /// Completion bits that read as 1 are written back as 1 beside the start bit.
    WriteBack,
}

/// What erratum HW557787 asks of the bridge's set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineBuffer {
    /// The generation has no TCE cache line buffer.
    Absent,
    /// It has one, which must be off: it may serve TCEs that were killed.
    MustBeOff,
}

impl Generation {
    /// IOMMU page sizes of a TVE (device-tree property `ibm,supported-tce-sizes` of each generation).
    #[must_use]
    pub const fn page_sizes(self) -> PageSizes {
        let common = PageSizes::SIZE_4K.union(PageSizes::SIZE_64K);
        match self {
            Self::Phb3 => common.union(PageSizes::SIZE_16M).union(PageSizes::SIZE_256M),
            Self::Phb4 | Self::Phb5 => common.union(PageSizes::SIZE_2M).union(PageSizes::SIZE_1G),
        }
    }

    /// PEs that one bridge has at most.
    #[must_use]
    pub const fn max_pes(self) -> u16 {
        match self {
            Self::Phb3 => 256,
            Self::Phb4 | Self::Phb5 => 512,
        }
    }

    /// Bits of real address that the bridge puts on the fabric (width of its table base registers).
    #[must_use]
    pub const fn real_address_bits(self) -> u32 {
        match self {
            Self::Phb3 => 50,
            Self::Phb4 | Self::Phb5 => 56,
        }
    }

    /// Whether firmware must have switched a TCE cache line buffer off.
    #[must_use]
    pub const fn line_buffer(self) -> LineBuffer {
        match self {
            Self::Phb3 => LineBuffer::Absent,
            Self::Phb4 | Self::Phb5 => LineBuffer::MustBeOff,
        }
    }

    /// How a kill is seen to be finished.
    #[must_use]
    pub const fn kill_completion(self) -> KillCompletion {
        match self {
            Self::Phb3 => KillCompletion::ReadBack,
            Self::Phb4 | Self::Phb5 => KillCompletion::Status,
        }
    }

    /// How a DMA sync is started anew.
    #[must_use]
    pub const fn sync_restart(self) -> SyncRestart {
        match self {
            Self::Phb3 | Self::Phb4 => SyncRestart::StartClears,
            Self::Phb5 => SyncRestart::WriteBack,
        }
    }
}
