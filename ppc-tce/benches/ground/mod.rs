//! What benches and counts stand on: warm tables over ordinary memory, no device attached, so that only
//! the software's own work is seen.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "neither user needs all of it")]

pub mod hcalls;

use core::time::Duration;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory, donated_pages, extent},
    phb::{FakePhb, PhbKind},
};
use portcullis_hal::{
    Access, DonatedPages, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova, IovaRange, PagePool, PhysAddr,
    RequesterId, Segment,
};
use portcullis_iommu::{ContextHandle, Error, Iommu, VmId};
use portcullis_ppc_tce::{
    Config, ContextSpec, Firmware, FirmwareError, Generation, Geometry, PeNumber, PestEntry, Table,
    TableRoot, TceIommu, WindowNumber,
};

pub const PAGE: u64 = 4096;
pub const GIB: u64 = 1 << 30;
/// The window lies above the MSI range.
pub const START: u64 = 4 * GIB;
/// 4 GiB.
pub const PAGES: u64 = 1 << 20;
/// Pages for two trees and the bitmap.
const POOL_PAGES: usize = 8192;
const POOL_BASE: u64 = 1 << 32;

pub type Donated = DonatedPages<'static>;
pub type Driver = TceIommu<NoFirmware, FakePhb, Donated, FakeClock, FakeCache>;

/// Firmware that has nothing to do: no device is ever attached.
pub struct NoFirmware;

impl Firmware for NoFirmware {
    fn set_pe(&self, _: RequesterId, _: PeNumber) -> Result<(), FirmwareError> {
        Ok(())
    }
    fn map_pe_dma_window(&self, _: PeNumber, _: WindowNumber, _: TableRoot) -> Result<(), FirmwareError> {
        Ok(())
    }
    fn unmap_pe_dma_window(&self, _: PeNumber, _: WindowNumber) -> Result<(), FirmwareError> {
        Ok(())
    }
    fn frozen(&self, _: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        Ok(None)
    }
    fn clear_freeze(&self, _: PeNumber) -> Result<(), FirmwareError> {
        Ok(())
    }
}

/// A pool over memory of the heap that is never given back.
pub fn pool() -> PagePool<Donated> {
    PagePool::new(donated_pages(PhysAddr::new(POOL_BASE), POOL_PAGES)).expect("a pool")
}

/// A policy with one empty context of two levels over [`PAGES`] pages from [`START`], its tables warm.
pub struct Ground {
    pub iommu: Iommu<Driver>,
    pub context: ContextHandle,
}

impl Ground {
    /// Mapped as bare extents.
    pub fn new() -> Self {
        let ground = Self::empty();
        ground.map(0, PAGES);
        ground.unmap(0, PAGES);
        ground
    }

    /// Mapped as registered memory, which is counted: one region over all of it.
    pub fn registered() -> Self {
        let ground = Self::with_memory();
        ground.map_guest(0, PAGES);
        ground.unmap(0, PAGES);
        ground
    }

    /// The same before the first mapping.
    pub fn with_memory() -> Self {
        let ground = Self::empty();
        let all = guest(0, PAGES);
        ground.iommu.register_memory(VmId(1), all, extent(0, PAGES * PAGE)).expect("a region");
        ground
    }

    fn empty() -> Self {
        let memory = FakeMemory::coherent(PhysAddr::new(0), 1);
        let config = Config {
            generation: Generation::Phb4,
            segment: Segment(0),
            pe_count: 512,
            reserved_pe: PeNumber(511),
            kill_limit: Duration::from_secs(1),
        };
        let phb = FakePhb::new(PhbKind::Phb4, &memory);
        let (clock, cache) = (FakeClock::default(), FakeCache::new(&memory));
        let driver = Driver::bring_up(NoFirmware, phb, pool(), clock, cache, config).expect("a driver");
        let iommu = Iommu::new(driver);
        let spec = ContextSpec {
            page_size: IoPageSize::SIZE_4K,
            window_start: Iova::new(START),
            window_bytes: PAGES * PAGE,
            levels: 2,
            page_limit: None,
        };
        let context = iommu.create_context(VmId(1), &spec).expect("a context");
        Self { iommu, context }
    }

    /// Maps `pages` pages of registered memory from page `first` of the window on.
    #[inline(always)]
    pub fn map_guest(&self, first: u64, pages: u64) {
        let iova = Iova::new(START + first * PAGE);
        self.iommu.map_guest(self.context, iova, guest(first, pages), Access::all()).expect("a map");
    }

    /// Maps `pages` pages from page `first` of the window on. Where the system takes the CPU away from one
    /// thread, the other is told that its range is busy, and asks again.
    #[inline(always)]
    pub fn map(&self, first: u64, pages: u64) {
        let (iova, extent) = (Iova::new(START + first * PAGE), extent(first * PAGE, pages * PAGE));
        loop {
            match self.iommu.map(self.context, iova, extent, Access::all()) {
                Err(Error::Busy) => core::hint::spin_loop(),
                mapped => return mapped.expect("a map"),
            }
        }
    }

    /// Unmaps them.
    #[inline(always)]
    pub fn unmap(&self, first: u64, pages: u64) {
        let range = IovaRange::new(Iova::new(START + first * PAGE), pages * PAGE).expect("a range");
        self.iommu.unmap(self.context, range).expect("an unmap");
    }

    /// Where a page leads.
    #[inline(always)]
    pub fn lookup(&self, page: u64) -> Option<(PhysAddr, Access)> {
        self.iommu.iova_to_phys(self.context, Iova::new(START + page * PAGE)).expect("live")
    }
}

/// The same pages as the guest calls them.
fn guest(first: u64, pages: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(first * PAGE), pages * PAGE).expect("a range")
}

/// The same tables alone, as hypercalls use them, with an entry for each page.
pub fn full_table() -> (PagePool<Donated>, Table) {
    let pool = pool();
    let geometry = Geometry::covering(IoPageSize::SIZE_4K, 2, START + PAGES * PAGE).expect("a geometry");
    let table = Table::new(&pool, geometry, u32::MAX).expect("a tree");
    let all = table.entries(index(0), PAGES).expect("entries");
    table.map(&pool, all, portcullis_ppc_tce::Tce::leaf(PhysAddr::new(0), Access::all())).expect("room");
    (pool, table)
}

/// Index in the tree of a page of the window.
#[inline]
pub const fn index(page: u64) -> u64 {
    START / PAGE + page
}

/// The page that comes `number`th in an order without locality: a full cycle over all pages (Knuth, TAOCP
/// 2, 3.2.1.2: odd increment, multiplier 1 modulo 4).
#[inline]
pub const fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9_e375) & (PAGES - 1)
}
