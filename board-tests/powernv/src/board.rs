//! A powernv machine as the suite sees it.

use core::time::Duration;

use portcullis_hal::{
    Clock, ConfigSpace, DeviceId, DonatedPages, IoPageSize, Iova, PhysAddr, Segment,
    arch::powerpc64::{CoherentCaches, EitherModeRegisters, TimeBaseClock},
};
use portcullis_iommu::{Error, Iommu};
use portcullis_ppc_tce::{
    ContextSpec, Generation, TceIommu,
    driver::Config,
    spec::registers::{QUIESCE_DMA, QUIESCE_DMA_KILL_STATUS, TCE_KILL},
};
use portcullis_suite::{
    Board, Buffer, DmaDevice, Event,
    memory::{Buffers, ImageMemory},
    withhold::Withholding,
};
use spin::Once;

use crate::{console, firmware::OpalPci, image, pci::OpalConfig, tree::Phb};

/// Three levels of 512 entries on pages of 4 KiB.
const WINDOW_BITS: u8 = 39;
const LEVELS: u8 = 3;
/// Table pages of a starved context: enough for its first tables and one more branch.
const STARVED_PAGES: u32 = 8;
/// Kills take microseconds; QEMU may stand still for longer.
const KILL_LIMIT: Duration = Duration::from_millis(500);

// SAFETY: a static of an image that runs in real mode.
pub(crate) static MEMORY: ImageMemory = unsafe { ImageMemory::new() };

/// The bridge's registers, which a scenario can make lie.
pub(crate) type Registers = Withholding<EitherModeRegisters>;
pub(crate) type Driver =
    TceIommu<OpalPci, &'static Registers, DonatedPages<'static>, TimeBaseClock, CoherentCaches>;
/// Two edu devices and an NVMe controller, as far as the machine has them.
pub(crate) type Devices<'b> = [Option<&'b (dyn DmaDevice + 'b)>; 3];

static REGISTERS: Once<Registers> = Once::new();

/// The bridge's registers, wrapped: kills never start, and never look finished, once withheld. `None` for a bridge at
/// address 0.
///
/// # Safety
/// `phb` must be what the device tree says, the same each time, and the value the only user of those registers.
pub(crate) unsafe fn registers(phb: &Phb) -> Option<&'static Registers> {
    // SAFETY: as for this function.
    let registers = unsafe { withholding(phb) }?;
    Some(REGISTERS.call_once(|| registers))
}

/// # Safety
/// As for [`registers`].
unsafe fn withholding(phb: &Phb) -> Option<Registers> {
    // SAFETY: registers of one bridge, says the caller; the image runs in hypervisor state, and translates only
    // while the bridge's registers are mapped at their own address.
    let window = unsafe { EitherModeRegisters::new(PhysAddr::new(phb.registers), phb.register_bytes) };
    Some(Withholding::new(window?, QUIESCE_DMA, TCE_KILL))
}

/// The machine: one bridge, up to three devices, static memory.
pub(crate) struct PowerNv<'b> {
    iommu: Iommu<Driver>,
    registers: &'static Registers,
    devices: Devices<'b>,
    buffers: &'b Buffers,
    phb: Phb,
}

impl<'b> PowerNv<'b> {
    /// Brings the bridge up, with every device blocked. To be called once: there is one pool.
    pub(crate) fn bring_up(
        phb: Phb,
        registers: &'static Registers,
        devices: Devices<'b>,
        buffers: &'b Buffers,
    ) -> Result<Self, Error> {
        let pool = MEMORY.pool().ok_or(Error::NeedPages { count: 1 })?;
        let firmware = OpalPci::new(&phb);
        let driver =
            TceIommu::bring_up(firmware, registers, pool, TimeBaseClock, CoherentCaches, config(&phb))?;
        Ok(Self { iommu: Iommu::new(driver), registers, devices, buffers, phb })
    }

    /// Which bridge it has.
    pub(crate) const fn generation(&self) -> Generation {
        self.phb.generation
    }

    /// Where its registers are.
    pub(crate) const fn registers_at(&self) -> PhysAddr {
        PhysAddr::new(self.phb.registers)
    }

    /// Tells the host what there is.
    pub(crate) fn announce(&self) {
        let iommu = match self.phb.generation {
            Generation::Phb3 => "PHB3",
            Generation::Phb4 => "PHB4",
            _ => "PHB5",
        };
        self.emit(&Event::Ready { iommu, snoop_control: None, address_bits: WINDOW_BITS });
    }
}

/// What the driver is told of the bridge.
fn config(phb: &Phb) -> Config {
    Config {
        generation: phb.generation,
        segment: Segment(0),
        pe_count: phb.pe_count,
        reserved_pe: phb.reserved_pe,
        kill_limit: KILL_LIMIT,
    }
}

fn spec_with(page_limit: Option<u32>) -> ContextSpec {
    ContextSpec {
        page_size: IoPageSize::SIZE_4K,
        window_start: Iova::new(0),
        window_bytes: 1 << WINDOW_BITS,
        levels: LEVELS,
        page_limit,
    }
}

impl<'b> Board for PowerNv<'b> {
    type Driver = Driver;
    type Device = dyn DmaDevice + 'b;

    fn iommu(&self) -> &Iommu<Self::Driver> {
        &self.iommu
    }

    fn device(&self, index: usize) -> Option<&Self::Device> {
        *self.devices.get(index)?
    }

    fn spec(&self) -> ContextSpec {
        spec_with(None)
    }

    /// The bus always is coherent.
    fn coherent_spec(&self) -> Result<ContextSpec, Error> {
        Ok(spec_with(None))
    }

    fn starved_spec(&self) -> ContextSpec {
        spec_with(Some(STARVED_PAGES))
    }

    fn table_pages_free(&self) -> usize {
        self.iommu.driver().pool().free_pages()
    }

    fn buffer(&self, index: usize) -> Option<Buffer<'_>> {
        self.buffers.small(index)
    }

    /// Contexts here have 4 KiB pages only.
    fn large_buffer(&self) -> Option<Buffer<'_>> {
        None
    }

    fn image(&self) -> PhysAddr {
        image::image().address()
    }

    fn image_byte(&self, offset: usize) -> u8 {
        image::image().byte(offset)
    }

    fn leaf_has_snoop(&self, _: DeviceId, _: Iova) -> Option<bool> {
        None
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        let pool = MEMORY.spare_pool().ok_or(Error::NeedPages { count: 1 })?;
        // SAFETY: the same bridge; one CPU, so that the other user does nothing meanwhile.
        let dead = unsafe { withholding(&self.phb) }.ok_or(Error::Hardware { source: 0, code: 0 })?;
        dead.withhold64_as(QUIESCE_DMA_KILL_STATUS);
        let firmware = OpalPci::new(&self.phb);
        TceIommu::<_, _, _, _, _>::bring_up(
            firmware,
            &dead,
            pool,
            TimeBaseClock,
            CoherentCaches,
            config(&self.phb),
        )
        .map(|_| ())
    }

    fn withhold_completion(&self) {
        self.registers.withhold64_as(QUIESCE_DMA_KILL_STATUS);
    }

    /// QEMU freezes no PE.
    fn reports_faults(&self) -> bool {
        false
    }

    fn config_space(&self) -> impl ConfigSpace + '_ {
        OpalConfig { phb: self.phb.id }
    }

    fn clock(&self) -> impl Clock + '_ {
        TimeBaseClock
    }

    fn emit(&self, event: &Event<'_>) {
        console::emit(event);
    }
}
