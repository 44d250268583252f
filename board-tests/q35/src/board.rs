//! A q35 machine as the suite sees it.

use portcullis_hal::{
    Clock, ConfigSpace, DeviceId, DonatedPages, Iova, PhysAddr,
    arch::x86_64::{CacheLines, MmioRegisters, TimeStampClock},
};
use portcullis_iommu::{Error, Iommu};
use portcullis_suite::{Board, Buffer, DmaDevice, Event, memory::Buffers, withhold::Withholding};
use portcullis_vtd::{Coherency, ContextSpec, UnitConfig, VtdIommu, spec::registers};

use crate::{
    console,
    memory::{self, MEMORY},
    pci::ConfigPorts,
    walk,
};

/// Table pages of a starved context: enough for its first tables and one more branch.
const STARVED_PAGES: u32 = 8;

/// The unit's registers, which a scenario can make lie.
pub(crate) type Registers<'b> = Withholding<&'b MmioRegisters>;
type Driver<'b> = VtdIommu<&'b Registers<'b>, DonatedPages<'static>, TimeStampClock, CacheLines>;
/// Two edu devices and an NVMe controller, as far as the machine has them.
pub(crate) type Devices<'b> = [Option<&'b (dyn DmaDevice + 'b)>; 3];

/// Wraps the unit's registers: global status and the queue's doorbell can be withheld.
pub(crate) const fn withholding(registers: &MmioRegisters) -> Registers<'_> {
    Withholding::new(registers, registers::GSTS, registers::IQT)
}

/// The machine: one unit, up to three devices, static memory.
pub(crate) struct Q35<'b> {
    iommu: Iommu<Driver<'b>>,
    registers: &'b Registers<'b>,
    window: &'b MmioRegisters,
    devices: Devices<'b>,
    buffers: &'b Buffers,
    clock: TimeStampClock,
    config: UnitConfig,
}

impl<'b> Q35<'b> {
    /// Brings the unit up, with every device blocked. To be called once: there is one pool.
    pub(crate) fn bring_up(
        window: &'b MmioRegisters,
        registers: &'b Registers<'b>,
        devices: Devices<'b>,
        buffers: &'b Buffers,
        clock: TimeStampClock,
        config: UnitConfig,
    ) -> Result<Self, Error> {
        let (pool, cache) = MEMORY.pool().zip(memory::cache_lines()).ok_or(Error::NeedPages { count: 1 })?;
        let driver = VtdIommu::bring_up(registers, pool, clock, cache, config)?;
        Ok(Self { iommu: Iommu::new(driver), registers, window, devices, buffers, clock, config })
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
        walk::leaf(self.window, device.requester, iova).map(walk::snoops)
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        let (pool, cache) =
            MEMORY.spare_pool().zip(memory::cache_lines()).ok_or(Error::NeedPages { count: 1 })?;
        let dead = withholding(self.window);
        dead.withhold32();
        VtdIommu::bring_up(&dead, pool, self.clock, cache, self.config).map(|_| ())
    }

    fn withhold_completion(&self) {
        self.registers.withhold32();
    }

    fn reports_faults(&self) -> bool {
        true
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
