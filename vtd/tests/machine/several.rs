//! A machine with several modelled units over one memory.

use std::time::Duration;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    vtd::{Commands, DmarScope, DmarUnit, FakeVtd, FakeVtdRegisters, Knobs, Reason, VtdConfig, dmar},
};
use portcullis_hal::{Access, DeviceId, Iova, PhysAddr, RequesterId, Segment, page_pool::PagePool};
use portcullis_iommu::{Claim, ContextHandle, Error, Iommu, VmId};
use portcullis_vtd::{
    ContextSpec, Dmar, MachineConfig, UnitAt, UnitScope, VtdIommu,
    dmar::{Bridges, BusRange},
};

use super::{DATA, PAGE, QuiesceAndAttach, VM, device, extent, range};

/// The units, in the table's order.
pub(crate) const GRAPHICS: usize = 0;
pub(crate) const BRIDGED: usize = 1;
pub(crate) const REST: usize = 2;
pub(crate) const UNITS: usize = 3;

/// A device behind each unit: 00:02.0 by its name, 04:00.0 behind a bridge, 00:03.0 because nobody names it.
pub(crate) const DEVICES: [u16; UNITS] = [0x0010, 0x0400, 0x0018];

pub(crate) type Driver = VtdIommu<FakeVtdRegisters, FakeMemory, FakeClock, FakeCache, 4>;
pub(crate) type Policy = Iommu<Driver>;
pub(crate) type GroupClaim<'i> = Claim<'i, Driver, 32, 32>;

const BASE: u64 = DATA - 512 * PAGE;
const TABLE_PAGES: usize = 448;

pub(crate) struct Several {
    pub(crate) memory: FakeMemory,
    pub(crate) units: [FakeVtd; UNITS],
    pub(crate) cache: FakeCache,
    pub(crate) commands: Commands,
    pub(crate) table_pages: usize,
    pub(crate) timeout: Duration,
}

/// Buses 3 to 5 behind 00:1c.0, of these 4 behind 03:00.0.
pub(crate) fn bridges(bridge: DeviceId) -> Option<BusRange> {
    match (bridge.segment.0, bridge.requester.as_u16()) {
        (0, 0x00e0) => Some(BusRange { secondary: 3, subordinate: 5 }),
        (0, 0x0300) => Some(BusRange { secondary: 4, subordinate: 4 }),
        _ => None,
    }
}

/// What firmware says of the three units.
pub(crate) fn firmware() -> Vec<u8> {
    let unit = |registers, scopes: &[DmarScope]| DmarUnit {
        registers,
        segment: 0,
        includes_all: scopes.is_empty(),
        scopes: scopes.to_vec(),
    };
    let graphics = unit(0xfed9_0000, &[DmarScope::endpoint(0, &[(2, 0)])]);
    let bridged = unit(0xfed9_1000, &[DmarScope::bridge(0, &[(0x1c, 0)])]);
    dmar(&[graphics, bridged, unit(0xfed9_2000, &[])], &[])
}

/// The scopes of all units of a table.
pub(crate) fn scopes(table: &[u8], bridges: &impl Bridges) -> Vec<UnitScope> {
    Dmar::parse(table).unwrap().units().map(|unit| UnitScope::of(&unit, bridges).unwrap()).collect()
}

impl Several {
    pub(crate) fn new(configs: [VtdConfig; UNITS]) -> Self {
        let transparent = |config: &VtdConfig| config.coherent && !config.write_buffer;
        let base = PhysAddr::new(BASE);
        let all = configs.iter().all(transparent);
        let memory = if all { FakeMemory::coherent(base, 1536) } else { FakeMemory::incoherent(base, 1536) };
        let commands = Commands::default();
        let units = configs.map(|config| {
            let seen = if transparent(&config) { memory.snooped() } else { memory.clone() };
            FakeVtd::new(seen, config)
        });
        units.iter().enumerate().for_each(|(name, unit)| unit.note_commands(name, &commands));
        let cache = FakeCache::new(&memory.part(0, TABLE_PAGES));
        Self { memory, units, cache, commands, table_pages: TABLE_PAGES, timeout: Duration::from_millis(1) }
    }

    /// All units alike.
    pub(crate) fn usual() -> Self {
        Self::new([VtdConfig::default(); UNITS])
    }

    /// All units alike but one.
    pub(crate) fn with(unit: usize, config: VtdConfig) -> Self {
        let mut configs = [VtdConfig::default(); UNITS];
        configs[unit] = config;
        Self::new(configs)
    }

    pub(crate) fn bring_up(&self) -> Result<Driver, Error> {
        self.bring_up_with(scopes(&firmware(), &bridges))
    }

    pub(crate) fn bring_up_with(&self, scopes: Vec<UnitScope>) -> Result<Driver, Error> {
        let pool = PagePool::new(self.memory.part(0, self.table_pages)).unwrap();
        let units = self.units.iter().zip(scopes);
        let units = units.map(|(unit, scope)| UnitAt { registers: unit.registers(), scope });
        let config = MachineConfig { timeout: self.timeout, ..MachineConfig::default() };
        VtdIommu::bring_up_all(units, pool, FakeClock::default(), self.cache.clone(), config)
    }

    pub(crate) fn iommu(&self) -> Policy {
        let iommu = Iommu::new(self.bring_up().unwrap());
        self.units.iter().for_each(|unit| drop(unit.take_descriptors()));
        let _ = self.cache.take_write_backs();
        iommu
    }

    pub(crate) fn misbehave(&self, unit: usize, change: impl FnOnce(&mut Knobs)) {
        self.units[unit].misbehave(change);
    }

    /// The device behind a unit writes.
    pub(crate) fn write(&self, unit: usize, iova: u64, byte: u8) -> Result<(), Reason> {
        self.units[unit].dma_write(DEVICES[unit], iova, &[byte])
    }

    /// Descriptors since the last call without waits, as their low and high half.
    pub(crate) fn invalidations(&self, unit: usize) -> Vec<(u64, u64)> {
        let descriptors = self.units[unit].take_descriptors();
        descriptors.into_iter().filter(|(low, _)| low & 0xf != 5).collect()
    }

    pub(crate) fn byte(&self, physical: u64) -> u8 {
        let mut byte = [0];
        assert!(self.memory.read(physical, &mut byte));
        byte[0]
    }
}

impl Drop for Several {
    /// Every test ends with a driver that kept to the manual.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            for unit in &self.units {
                assert_eq!(unit.take_violations(), Vec::<String>::new());
            }
        }
    }
}

/// A claim of a VM on the device behind a unit.
pub(crate) fn own(iommu: &Policy, vm: VmId, unit: usize) -> GroupClaim<'_> {
    let group = iommu.add_group(&[device(DEVICES[unit])]).unwrap();
    iommu.grant(vm, group).unwrap();
    iommu.claim(vm, group).unwrap()
}

/// The same, attached.
pub(crate) fn attach(iommu: &Policy, context: ContextHandle, unit: usize) -> GroupClaim<'_> {
    let mut claim = own(iommu, VM, unit);
    claim.quiesce_and_attach(context).unwrap();
    claim
}

pub(crate) fn context(iommu: &Policy) -> ContextHandle {
    iommu.create_context(VM, &ContextSpec::new(39)).unwrap()
}

/// Maps for reading and writing.
pub(crate) fn map(iommu: &Policy, context: ContextHandle, iova: u64, physical: u64) -> Result<(), Error> {
    iommu.map(context, Iova::new(iova), extent(physical, PAGE), Access::READ | Access::WRITE)
}

pub(crate) fn unmap(iommu: &Policy, context: ContextHandle, iova: u64) -> Result<u64, Error> {
    iommu.unmap(context, range(iova, PAGE))
}

/// A requester of segment 0.
pub(crate) fn at(segment: u16, requester: u16) -> DeviceId {
    DeviceId { segment: Segment(segment), requester: RequesterId::new(requester) }
}
