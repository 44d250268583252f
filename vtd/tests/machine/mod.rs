//! A machine with one modelled unit, and a guest that owns a device on it.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

pub(crate) mod several;

use std::time::Duration;

pub(crate) use portcullis_fake::memory::extent;
use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    obedient::ObedientFunctions,
    vtd::{FakeVtd, FakeVtdRegisters, Reason, VtdConfig},
};
use portcullis_hal::{
    Access, DeviceId, Iova, IovaRange, PhysAddr, RequesterId, Segment, page_pool::PagePool,
};
use portcullis_iommu::{Claim, ContextHandle, Error, Iommu, VmId, pci::Method};
use portcullis_vtd::{Coherency, ContextSpec, UnitConfig, VtdIommu};

pub(crate) type Driver = VtdIommu<FakeVtdRegisters, FakeMemory, FakeClock, FakeCache>;
pub(crate) type Policy = Iommu<Driver>;

pub(crate) const PAGE: u64 = 4096;
pub(crate) const LARGE: u64 = 2 << 20;
pub(crate) const VM: VmId = VmId(1);
pub(crate) const SEGMENT: Segment = Segment(0);
/// 00:02.0 and its neighbours.
pub(crate) const DEVICE: u16 = 0x0010;
pub(crate) const NEIGHBOUR: u16 = 0x0018;
/// Behind another bus.
pub(crate) const FAR: u16 = 0x0320;

/// Physical address of the machine's memory.
const BASE: u64 = LARGE;
/// Pages before the data: the driver gets some, firmware has the rest.
const RESERVED_PAGES: usize = 512;
const DATA_PAGES: usize = 1024;
/// Physical address of the data, aligned to 2 MiB.
pub(crate) const DATA: u64 = BASE + RESERVED_PAGES as u64 * PAGE;
/// Physical address of pages that the driver never gets.
pub(crate) const FIRMWARE: u64 = DATA - 64 * PAGE;
const MOST_TABLE_PAGES: usize = RESERVED_PAGES - 64;

pub(crate) struct Machine {
    pub(crate) memory: FakeMemory,
    pub(crate) unit: FakeVtd,
    pub(crate) cache: FakeCache,
    pub(crate) config: UnitConfig,
    pub(crate) table_pages: usize,
}

/// A VM that owns `DEVICE`, attached to a context.
pub(crate) struct Guest<'i> {
    pub(crate) iommu: &'i Policy,
    pub(crate) context: ContextHandle,
    pub(crate) claim: Claim<'i, Driver, 32, 32>,
}

pub(crate) const fn device(requester: u16) -> DeviceId {
    DeviceId { segment: SEGMENT, requester: RequesterId::new(requester) }
}

pub(crate) fn range(iova: u64, bytes: u64) -> IovaRange {
    IovaRange::new(Iova::new(iova), bytes).unwrap()
}

/// Any width, nothing enforced, no limit.
pub(crate) const fn spec(address_bits: u8) -> ContextSpec {
    ContextSpec { coherency: Coherency::Device, ..ContextSpec::new(address_bits) }
}

impl Machine {
    /// Its memory can be cached or buffered away from the unit when the configuration says so.
    pub(crate) fn new(config: VtdConfig) -> Self {
        let (base, pages) = (PhysAddr::new(BASE), RESERVED_PAGES + DATA_PAGES);
        let transparent = config.coherent && !config.write_buffer;
        let memory =
            if transparent { FakeMemory::coherent(base, pages) } else { FakeMemory::incoherent(base, pages) };
        let mut unit_config = UnitConfig::new(SEGMENT);
        unit_config.timeout = Duration::from_millis(1);
        Self {
            unit: FakeVtd::new(memory.clone(), config),
            cache: FakeCache::new(&memory),
            memory,
            config: unit_config,
            table_pages: MOST_TABLE_PAGES,
        }
    }

    pub(crate) fn usual() -> Self {
        Self::new(VtdConfig::default())
    }

    pub(crate) fn bring_up(&self) -> Result<Driver, Error> {
        let tables = self.memory.part(0, self.table_pages);
        let pool = PagePool::new(tables.clone()).unwrap();
        let clock = FakeClock::default();
        VtdIommu::bring_up(self.unit.registers(), pool, clock, FakeCache::new(&tables), self.config)
    }

    pub(crate) fn iommu(&self) -> Policy {
        let iommu = Iommu::new(self.bring_up().unwrap());
        let _ = self.unit.take_descriptors();
        iommu
    }

    pub(crate) fn write(&self, iova: u64, byte: u8) -> Result<(), Reason> {
        self.unit.dma_write(DEVICE, iova, &[byte])
    }

    pub(crate) fn read(&self, iova: u64) -> Result<u8, Reason> {
        let mut byte = [0];
        self.unit.dma_read(DEVICE, iova, &mut byte).map(|()| byte[0])
    }

    /// What memory holds at a physical address.
    pub(crate) fn byte(&self, physical: u64) -> u8 {
        let mut byte = [0];
        assert!(self.memory.read(physical, &mut byte));
        byte[0]
    }

    /// Descriptors since the last call without waits, each as its low and high half.
    pub(crate) fn invalidations(&self) -> Vec<(u64, u64)> {
        self.unit.take_descriptors().into_iter().filter(|(low, _)| low & 0xf != 5).collect()
    }
}

impl Drop for Machine {
    /// Every test ends with a driver that kept to the manual.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.unit.take_violations(), Vec::<String>::new());
        }
    }
}

impl<'i> Guest<'i> {
    /// Owns `DEVICE` and attaches it to a new context of 39 bits.
    pub(crate) fn new(iommu: &'i Policy) -> Self {
        Self::with(iommu, DEVICE, spec(39))
    }

    pub(crate) fn with(iommu: &'i Policy, requester: u16, spec: ContextSpec) -> Self {
        let context = iommu.create_context(VM, &spec).unwrap();
        let group = iommu.add_group(&[device(requester)]).unwrap();
        iommu.grant(VM, group).unwrap();
        let mut claim = iommu.claim(VM, group).unwrap();
        claim.quiesce_and_attach(context).unwrap();
        Self { iommu, context, claim }
    }

    /// Maps for reading and writing.
    pub(crate) fn map(&self, iova: u64, physical: u64, bytes: u64) -> Result<(), Error> {
        self.map_for(iova, physical, bytes, Access::READ | Access::WRITE)
    }

    pub(crate) fn map_for(&self, iova: u64, physical: u64, bytes: u64, access: Access) -> Result<(), Error> {
        self.iommu.map(self.context, Iova::new(iova), extent(physical, bytes), access)
    }

    pub(crate) fn unmap(&self, iova: u64, bytes: u64) -> Result<u64, Error> {
        self.iommu.unmap(self.context, range(iova, bytes))
    }

    pub(crate) fn lookup(&self, iova: u64) -> Option<u64> {
        let found = self.iommu.iova_to_phys(self.context, Iova::new(iova)).unwrap();
        found.map(|(physical, _)| physical.as_u64())
    }

    pub(crate) fn free_pages(&self) -> usize {
        self.iommu.driver().pool().free_pages()
    }
}

/// Attaches a claim, and quiesces its devices first where that was not done under this ownership.
pub(crate) trait QuiesceAndAttach {
    fn quiesce_and_attach(&mut self, context: ContextHandle) -> Result<(), Error>;
}

impl<D: portcullis_iommu::Driver, const GROUPS: usize, const CONTEXTS: usize> QuiesceAndAttach
    for Claim<'_, D, GROUPS, CONTEXTS>
{
    fn quiesce_and_attach(&mut self, context: ContextHandle) -> Result<(), Error> {
        match self.switch(context) {
            Err(Error::NotQuiesced { .. }) => {}
            switched => return switched,
        }
        let (clock, limit) = (FakeClock::default(), Duration::from_millis(1));
        let quiesced = self.quiesce(&ObedientFunctions, &clock, Method::BusMasterOff, limit)?;
        self.attach(context, quiesced)
    }
}
