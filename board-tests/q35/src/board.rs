//! A q35 machine as the suite sees it.

use core::time::Duration;

use heapless::Vec;
use portcullis_hal::{
    Clock, ConfigSpace, DeviceId, DonatedPages, Iova, PagePool, PhysAddr, PhysRange, RegisterIo,
    arch::x86_64::{CacheLines, MmioRegisters, TimeStampClock},
};
use portcullis_iommu::{Error, Iommu};
use portcullis_suite::{Board, Buffer, DmaDevice, Event, memory::Buffers, withhold::Withholding};
use portcullis_vtd::{
    Coherency, ContextSpec, Dmar, MachineConfig, UnitAt, UnitScope, VtdIommu,
    spec::registers::{self, Global},
};

use crate::{
    console,
    memory::{self, MEMORY},
    pci::{self, ConfigPorts},
    walk,
};

/// Table pages of a starved context: enough for its first tables and one more branch.
const STARVED_PAGES: u32 = 8;

/// Most units that a machine may have.
pub(crate) const UNITS: usize = 8;
/// A unit's registers, which a scenario can make lie.
pub(crate) type Registers<'b> = Withholding<&'b MmioRegisters>;
type Driver<'b> = VtdIommu<&'b Registers<'b>, DonatedPages<'static>, TimeStampClock, CacheLines, UNITS>;
/// Two edu devices and an NVMe controller, as far as the machine has them.
pub(crate) type Devices<'b> = [Option<&'b (dyn DmaDevice + 'b)>; 3];

/// All units of the machine, in the order of firmware's table.
#[derive(Clone, Copy)]
pub(crate) struct Units<'b> {
    pub(crate) windows: &'b [MmioRegisters],
    pub(crate) registers: &'b [Registers<'b>],
    pub(crate) dmar: Dmar<'b>,
}

/// Wraps a unit's registers: global status and the queue's doorbell can be withheld.
pub(crate) const fn withholding(registers: &MmioRegisters) -> Registers<'_> {
    Withholding::new(registers, registers::GSTS, registers::IQT)
}

/// The machine: its units, up to three devices, static memory.
pub(crate) struct Q35<'b> {
    iommu: Iommu<Driver<'b>>,
    units: Units<'b>,
    devices: Devices<'b>,
    buffers: &'b Buffers,
    clock: TimeStampClock,
    bare_disk_time: Option<Duration>,
}

impl<'b> Units<'b> {
    /// Takes all units over; `registers` are theirs, in order.
    fn bring_up<R: RegisterIo>(
        self,
        registers: impl Iterator<Item = R>,
        pool: PagePool<DonatedPages<'static>>,
        clock: TimeStampClock,
    ) -> Result<VtdIommu<R, DonatedPages<'static>, TimeStampClock, CacheLines, UNITS>, Error> {
        let cache = memory::cache_lines().ok_or(Error::NeedPages { count: 1 })?;
        let mut units = Vec::<_, UNITS>::new();
        for (unit, registers) in self.dmar.units().zip(registers) {
            let scope = UnitScope::of(&unit, &pci::buses_behind)?;
            units.push(UnitAt { registers, scope }).map_err(|_| Error::Full { capacity: UNITS })?;
        }
        let host_address_bits = self.dmar.host_address_bits();
        let config = MachineConfig { host_address_bits, ..MachineConfig::default() };
        VtdIommu::bring_up_all(units, pool, clock, cache, config)
    }

    /// Whether any unit translates.
    pub(crate) fn translate(self) -> bool {
        let status = |unit: &MmioRegisters| Global::from_bits_retain(unit.read32(registers::GSTS));
        self.windows.iter().any(|unit| status(unit).contains(Global::TRANSLATION))
    }

    /// The place of the unit that a device is behind.
    fn place_of(self, device: DeviceId) -> Option<usize> {
        let unit = self.dmar.unit_of(device, &pci::buses_behind)?;
        self.dmar.units().position(|other| other.base == unit.base)
    }
}

impl<'b> Q35<'b> {
    /// Brings all units up, with every device blocked. To be called once: there is one pool.
    pub(crate) fn bring_up(
        units: Units<'b>,
        devices: Devices<'b>,
        buffers: &'b Buffers,
        clock: TimeStampClock,
        bare_disk_time: Option<Duration>,
    ) -> Result<Self, Error> {
        let pool = MEMORY.pool().ok_or(Error::NeedPages { count: 1 })?;
        let driver = units.bring_up(units.registers.iter(), pool, clock)?;
        Ok(Self { iommu: Iommu::new(driver), units, devices, buffers, clock, bare_disk_time })
    }

    /// Where the registers of device `index` are, which nobody uses now.
    pub(crate) fn registers(&self, index: usize) -> Option<PhysRange> {
        pci::registers_of(self.device(index)?.id())
    }

    /// Tells the host what there is.
    pub(crate) fn announce(&self) {
        let driver = self.iommu.driver();
        self.emit(&Event::Ready {
            iommu: "VT-d",
            snoop_control: Some(driver.snoop_control().is_some()),
            address_bits: driver.address_bits(),
        });
    }

    fn spec_with(&self, coherency: Coherency, page_limit: Option<u32>) -> ContextSpec {
        ContextSpec { coherency, page_limit, ..ContextSpec::new(self.iommu.driver().address_bits()) }
    }
}

impl<'b> Board for Q35<'b> {
    type Driver = Driver<'b>;
    type Device = dyn DmaDevice + 'b;

    fn iommu(&self) -> &Iommu<Self::Driver> {
        &self.iommu
    }

    fn device(&self, index: usize) -> Option<&Self::Device> {
        *self.devices.get(index)?
    }

    fn declare_reserved(&self, device: DeviceId) -> Result<(), Error> {
        let mut regions = self.units.dmar.reserved_for(device, &pci::buses_behind);
        regions.try_for_each(|region| self.iommu.declare_reserved(region))
    }

    fn spec(&self) -> ContextSpec {
        self.spec_with(Coherency::Device, None)
    }

    fn coherent_spec(&self) -> Result<ContextSpec, Error> {
        let witness = self.iommu.driver().snoop_control().ok_or(Error::NoSnoopControl)?;
        Ok(self.spec_with(Coherency::Enforced(witness), None))
    }

    fn starved_spec(&self) -> ContextSpec {
        self.spec_with(Coherency::Device, Some(STARVED_PAGES))
    }

    fn table_pages_free(&self) -> usize {
        self.iommu.driver().pool().free_pages()
    }

    fn buffer(&self, index: usize) -> Option<Buffer<'_>> {
        self.buffers.small(index)
    }

    fn large_buffer(&self) -> Option<Buffer<'_>> {
        self.buffers.large()
    }

    fn image(&self) -> PhysAddr {
        memory::image().address()
    }

    fn image_byte(&self, offset: usize) -> u8 {
        memory::image().byte(offset)
    }

    fn leaf_has_snoop(&self, device: DeviceId, iova: Iova) -> Option<bool> {
        let window = self.units.windows.get(self.units.place_of(device)?)?;
        walk::leaf(window, device.requester, iova).map(walk::snoops)
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        let pool = MEMORY.spare_pool().ok_or(Error::NeedPages { count: 1 })?;
        let dead = self.units.windows.iter().map(withholding).inspect(|unit| unit.withhold32());
        self.units.bring_up(dead, pool, self.clock).map(|_| ())
    }

    fn withhold_completion(&self) {
        self.units.registers.iter().for_each(|unit| unit.withhold32());
    }

    fn reports_faults(&self) -> bool {
        true
    }

    fn bare_disk_time(&self) -> Option<Duration> {
        self.bare_disk_time
    }

    fn config_space(&self) -> impl ConfigSpace + '_ {
        ConfigPorts
    }

    fn clock(&self) -> impl Clock + '_ {
        self.clock
    }

    fn emit(&self, event: &Event<'_>) {
        console::emit(event);
    }
}
