//! A q35 machine as the suite sees it.

use portcullis_hal::{
    DeviceId, DonatedPages, Iova, PhysAddr,
    arch::x86_64::{CacheLines, MmioRegisters, TimeStampClock},
};
use portcullis_iommu::{Error, Iommu};
use portcullis_suite::{Board, Buffer, DmaDevice, Event, edu::Edu, withhold::Withholding};
use portcullis_vtd::{Coherency, ContextSpec, UnitConfig, VtdIommu, spec::registers};

use crate::{
    console,
    memory::{self, Buffers},
    walk,
};

/// Table pages of a starved context: enough for its first tables and one more branch.
const STARVED_PAGES: u32 = 8;

/// The unit's registers, which a scenario can make lie.
pub(crate) type Registers<'b> = Withholding<&'b MmioRegisters>;
type Driver<'b> = VtdIommu<&'b Registers<'b>, DonatedPages<'static>, TimeStampClock, CacheLines>;
type Device = Edu<MmioRegisters, TimeStampClock>;

/// Wraps the unit's registers: global status and the queue's doorbell can be withheld.
pub(crate) const fn withholding(registers: &MmioRegisters) -> Registers<'_> {
    Withholding::new(registers, registers::GSTS, registers::IQT)
}

/// The machine: one unit, up to two devices, static memory.
pub(crate) struct Q35<'b> {
    iommu: Iommu<Driver<'b>>,
    registers: &'b Registers<'b>,
    window: &'b MmioRegisters,
    devices: [Option<Device>; 2],
    buffers: Buffers,
    clock: TimeStampClock,
    config: UnitConfig,
}

impl<'b> Q35<'b> {
    /// Brings the unit up, with every device blocked.
    ///
    /// # Safety
    /// To be called once.
    pub(crate) unsafe fn bring_up(
        window: &'b MmioRegisters,
        registers: &'b Registers<'b>,
        devices: [Option<Device>; 2],
        clock: TimeStampClock,
        config: UnitConfig,
    ) -> Result<Self, Error> {
        // SAFETY: called once, says the caller.
        let pool = unsafe { memory::pool() }.ok_or(Error::NeedPages { count: 1 })?;
        let driver = VtdIommu::bring_up(registers, pool, clock, CacheLines::detect(), config)?;
        let (iommu, buffers) = (Iommu::new(driver), Buffers::new());
        Ok(Self { iommu, registers, window, devices, buffers, clock, config })
    }

    /// Tells the host what there is.
    pub(crate) fn announce(&self) {
        let driver = self.iommu.driver();
        self.emit(&Event::Ready {
            iommu: "VT-d",
            snoop_control: Some(driver.snoop_control().is_some()),
            address_bits: driver.capability().address_bits(),
        });
    }

    fn spec_with(&self, coherency: Coherency, page_limit: Option<u32>) -> ContextSpec {
        ContextSpec { address_bits: self.iommu.driver().capability().address_bits(), coherency, page_limit }
    }
}

impl<'b> Board for Q35<'b> {
    type Driver = Driver<'b>;
    type Device = Device;

    fn iommu(&self) -> &Iommu<Self::Driver> {
        &self.iommu
    }

    fn device(&self, index: usize) -> Option<&Self::Device> {
        self.devices.get(index)?.as_ref()
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
        memory::image()
    }

    fn image_byte(&self, offset: usize) -> u8 {
        memory::image_byte(offset)
    }

    fn leaf_has_snoop(&self, device: DeviceId, iova: Iova) -> Option<bool> {
        walk::leaf(self.window, device.requester, iova).map(walk::snoops)
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        // SAFETY: a scenario does this once, and one scenario runs a boot.
        let pool = unsafe { memory::spare_pool() }.ok_or(Error::NeedPages { count: 1 })?;
        let dead = withholding(self.window);
        dead.withhold32();
        VtdIommu::bring_up(&dead, pool, self.clock, CacheLines::detect(), self.config).map(|_| ())
    }

    fn withhold_completion(&self) {
        self.registers.withhold32();
    }

    fn reports_faults(&self) -> bool {
        true
    }

    fn emit(&self, event: &Event<'_>) {
        console::emit(event);
    }
}

/// The requester IDs of the devices, for choosing their unit.
pub(crate) fn ids(devices: &[Option<Device>; 2]) -> impl Iterator<Item = DeviceId> {
    devices.iter().flatten().map(DmaDevice::id)
}
