//! Memory that a device may be pointed at.

use crate::addr::{PhysAddr, PhysRange};

/// Physical memory that a device may read and write.
///
/// Safe code cannot make one, so it cannot aim DMA at Rust objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct DmaExtent {
    range: PhysRange,
}

impl DmaExtent {
    /// Vouches for `range` as a target of DMA.
    ///
    /// # Safety
    /// From now on, until every mapping made of this extent or of a part of it was unmapped and its
    /// invalidation was reported as finished, a device may read and write all of the range at any
    /// moment. So the range must be memory (or a device's BAR) that holds no Rust object except cells
    /// made for it (atomics, volatile access), no code, no hardware table and nothing that belongs to
    /// anybody but the owner of the mapping.
    #[must_use]
    pub const unsafe fn new(range: PhysRange) -> Self {
        Self { range }
    }

    /// First address.
    #[inline]
    #[must_use]
    pub const fn start(self) -> PhysAddr {
        self.range.start()
    }

    /// Length in bytes, never 0.
    #[inline]
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.range.bytes()
    }

    /// The part of `bytes` bytes from `offset`, or `None` when it is empty or reaches beyond the end.
    #[must_use]
    pub fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        let start = self.range.start().checked_add(offset)?;
        let part = PhysRange::new(start, bytes).ok()?;
        self.range.contains(part).then_some(Self { range: part })
    }
}
