//! Memory that a device may be pointed at.

use const_fn::const_fn;

use crate::{
    addr::{PhysAddr, PhysRange},
    sync::{AtomicU32, AtomicU64, Ordering, fence},
};

/// Physical memory that a device may read and write.
///
/// Safe code cannot make one, so it cannot aim DMA at Rust objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    #[inline(always)]
    #[must_use]
    pub const fn part(self, offset: u64, bytes: u64) -> Option<Self> {
        match self.range.part(offset, bytes) {
            Some(range) => Some(Self { range }),
            None => None,
        }
    }

    /// Its parts of `bytes` bytes, or `None` when there are none.
    #[inline]
    #[must_use]
    pub const fn parts(self, bytes: u64) -> Option<DmaParts> {
        match self.part(0, bytes) {
            Some(first) => Some(DmaParts { first, last: self.bytes() - bytes }),
            None => None,
        }
    }
}

/// The parts of one length of a [`DmaExtent`], for who wants many.
#[derive(Clone, Copy, Debug)]
pub struct DmaParts {
    first: DmaExtent,
    /// The last offset at which one begins.
    last: u64,
}

impl DmaParts {
    /// The part from `offset` on, or `None` when it reaches beyond the end.
    #[inline(always)]
    #[must_use]
    pub const fn at(&self, offset: u64) -> Option<DmaExtent> {
        if offset <= self.last { Some(DmaExtent { range: self.first.range.moved(offset) }) } else { None }
    }
}

/// A place for one [`DmaExtent`], which readers on any CPU take out whole or not at all.
///
/// Nobody waits: a reader that meets a change gets nothing, a second writer is refused.
#[derive(Debug)]
pub struct DmaExtentCell {
    /// Odd while a writer is at work.
    version: AtomicU32,
    start: AtomicU64,
    /// 0 when there is no extent.
    bytes: AtomicU64,
}

impl DmaExtentCell {
    /// An empty place.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new() -> Self {
        Self { version: AtomicU32::new(0), start: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// The extent, or `None` when there is none or it is being changed.
    #[inline(always)]
    #[must_use]
    pub fn load(&self) -> Option<DmaExtent> {
        let version = self.version.load(Ordering::Acquire);
        let start = PhysAddr::new(self.start.load(Ordering::Relaxed));
        let bytes = self.bytes.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if version & 1 != 0 || self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        // Both numbers are of one extent, for which somebody vouched.
        PhysRange::kept(start, bytes).map(|range| DmaExtent { range })
    }

    /// Puts another extent here, or none; `false`, and nothing changed, when another CPU is at it.
    pub fn store(&self, extent: Option<DmaExtent>) -> bool {
        let version = self.version.load(Ordering::Relaxed);
        let (odd, acquire) = (version | 1, Ordering::Acquire);
        let taken = self.version.compare_exchange(version & !1, odd, acquire, Ordering::Relaxed);
        if taken.is_err() {
            return false;
        }
        fence(Ordering::Release);
        self.start.store(extent.map_or(0, |extent| extent.start().as_u64()), Ordering::Relaxed);
        self.bytes.store(extent.map_or(0, DmaExtent::bytes), Ordering::Relaxed);
        self.version.store(odd.wrapping_add(1), Ordering::Release);
        true
    }
}

impl Default for DmaExtentCell {
    fn default() -> Self {
        Self::new()
    }
}
