//! A q35-like machine: the VT-d driver in front of the modelled unit.

use std::{cell::RefCell, rc::Rc};

use portcullis_fake::{
    config_space::FakeConfigSpace,
    memory::{FakeCache, FakeClock, FakeMemory},
    vtd::{FakeVtd, FakeVtdRegisters, Posted, VtdConfig},
};
use portcullis_hal::{
    Clock, ConfigSpace, DeviceId, Iova, PagePool, PhysAddr, RegisterIo, RequesterId, Segment,
};
use portcullis_iommu::{Error, Iommu};
use portcullis_suite::{Board, Buffer, DmaDevice, Event, withhold::Withholding};
use portcullis_vtd::{Coherency, ContextSpec, UnitConfig, VtdIommu};

use crate::{
    device::{ModelDevice, REQUESTERS, Transfers, functions},
    machine::{Machine, PATIENCE, Trace},
    model_board::ModelBoard,
    queue_device::QueueDevice,
};

/// Byte offsets of registers (manual, 11.4): command and status, root table, invalidation queue.
const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const RTADDR: usize = 0x20;
const IQH: usize = 0x80;
const IQT: usize = 0x88;
/// Bits 51:12 of an entry of any kind.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const READ_WRITE: u64 = 3;
const IS_PAGE: u64 = 1 << 7;
const SNOOP: u64 = 1 << 11;

type Driver<R> = VtdIommu<R, FakeMemory, FakeClock, FakeCache>;

/// What a unit is like beside its capabilities, and how its board starves contexts.
#[derive(Clone, Copy)]
pub struct VtdHabits {
    /// Register reads that a command or an invalidation takes.
    pub slow: u32,
    /// Devices go on writing while the unit invalidates.
    pub restless: bool,
    /// Table pages of a starved context; `None`: the pool runs out.
    pub starved: Option<u32>,
}

/// The machine, its unit, two devices and a third with a command queue behind it.
pub struct VtdBoard {
    machine: Machine,
    unit: FakeVtd,
    registers: Shared,
    address_bits: u8,
    starved: Option<u32>,
    iommu: Iommu<Driver<Shared>>,
    functions: Rc<FakeConfigSpace>,
    devices: [Box<dyn DmaDevice>; 3],
    undrained: RefCell<Vec<String>>,
}

impl VtdBoard {
    /// A unit of this kind and with these habits, taken over by the driver.
    pub fn new(config: VtdConfig, habits: VtdHabits, trace: Trace, transfers: &Transfers) -> Self {
        let machine = Machine::new(config.coherent && !config.write_buffer, trace);
        let unit = FakeVtd::new(machine.memory.clone(), config);
        unit.misbehave(|knobs| {
            (knobs.slow_status, knobs.slow_queue) = (habits.slow, habits.slow);
            knobs.restless = habits.restless;
        });
        let registers = Shared(Rc::new(Withholding::new(unit.registers(), IQH, IQT)));
        let driver = bring_up(registers.clone(), machine.pool(), &machine).expect("a unit that answers");
        let functions = functions(machine.clock.clone());
        let [first, second, engine] =
            REQUESTERS.map(|requester| ModelDevice::new(requester, &unit, &functions, transfers));
        let third = QueueDevice::new(engine, &unit, machine.queue());
        Self {
            devices: [Box::new(first), Box::new(second), Box::new(third)],
            address_bits: config.guest_bits,
            starved: habits.starved,
            iommu: Iommu::new(driver),
            functions,
            machine,
            unit,
            registers,
            undrained: RefCell::default(),
        }
    }

    fn expect_drained(&self, concerned: impl Fn(&Posted) -> bool) {
        let posted = self.unit.posted();
        let undrained = posted.iter().filter(|posted| concerned(posted));
        self.undrained.borrow_mut().extend(undrained.map(|posted| format!("not drained: {posted:x?}")));
    }

    /// Where the context entry of a device lies.
    fn context_entry(&self, requester: RequesterId) -> Option<u64> {
        let root = (self.unit.registers().read64(RTADDR) & ADDRESS) + u64::from(requester.bus()) * 16;
        let table = self.machine.memory.walk(root).filter(|entry| entry & PRESENT != 0)? & ADDRESS;
        Some(table + u64::from(requester.devfn()) * 16)
    }

    /// The domain that a device is in now.
    fn domain(&self, requester: RequesterId) -> Option<u16> {
        let (entry, walk) = (self.context_entry(requester)?, |address| self.machine.memory.walk(address));
        walk(entry).filter(|low| low & PRESENT != 0)?;
        walk(entry + 8).map(|high| (high >> 8) as u16)
    }

    /// The leaf that hardware finds for a device's address.
    fn leaf(&self, device: DeviceId, iova: Iova) -> Option<u64> {
        let walk = |address| self.machine.memory.walk(address);
        let context = self.context_entry(device.requester)?;
        let (mut table, width) = (walk(context)? & ADDRESS, walk(context + 8)? & 7);
        for level in (1..=width + 2).rev() {
            let index = iova.as_u64() >> (3 + 9 * level) & 0x1ff;
            let entry = walk(table + index * 8)?;
            if entry & READ_WRITE == 0 {
                return None;
            }
            if level == 1 || entry & IS_PAGE != 0 {
                return Some(entry);
            }
            table = entry & ADDRESS;
        }
        None
    }
}

fn bring_up<R: RegisterIo>(
    registers: R,
    pool: PagePool<FakeMemory>,
    machine: &Machine,
) -> Result<Driver<R>, Error> {
    let config = UnitConfig { timeout: PATIENCE, ..UnitConfig::new(Segment(0)) };
    VtdIommu::bring_up(registers, pool, machine.clock.clone(), FakeCache::new(&machine.memory), config)
}

impl Board for VtdBoard {
    type Driver = Driver<Shared>;
    type Device = dyn DmaDevice;

    fn iommu(&self) -> &Iommu<Self::Driver> {
        &self.iommu
    }

    fn device(&self, index: usize) -> Option<&Self::Device> {
        self.devices.get(index).map(Box::as_ref)
    }

    fn spec(&self) -> ContextSpec {
        ContextSpec { coherency: Coherency::Device, ..ContextSpec::new(self.address_bits) }
    }

    fn coherent_spec(&self) -> Result<ContextSpec, Error> {
        let witness = self.iommu.driver().snoop_control().ok_or(Error::NoSnoopControl)?;
        Ok(ContextSpec { coherency: Coherency::Enforced(witness), ..self.spec() })
    }

    fn starved_spec(&self) -> ContextSpec {
        ContextSpec { page_limit: self.starved, ..self.spec() }
    }

    fn table_pages_free(&self) -> usize {
        self.iommu.driver().pool().free_pages()
    }

    fn buffer(&self, index: usize) -> Option<Buffer<'_>> {
        self.machine.buffer(index)
    }

    fn large_buffer(&self) -> Option<Buffer<'_>> {
        Some(self.machine.large_buffer())
    }

    fn image(&self) -> PhysAddr {
        self.machine.image()
    }

    fn image_byte(&self, offset: usize) -> u8 {
        self.machine.image_byte(offset)
    }

    fn leaf_has_snoop(&self, device: DeviceId, iova: Iova) -> Option<bool> {
        self.leaf(device, iova).map(|leaf| leaf & SNOOP != 0)
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        let dead = Withholding::new(self.unit.registers(), GSTS, GCMD);
        dead.withhold32();
        bring_up(dead, self.machine.spare_pool(), &self.machine).map(|_| ())
    }

    fn withhold_completion(&self) {
        self.registers.0.withhold64();
    }

    fn reports_faults(&self) -> bool {
        true
    }

    fn config_space(&self) -> impl ConfigSpace + '_ {
        &*self.functions
    }

    fn clock(&self) -> impl Clock + '_ {
        self.machine.clock.clone()
    }

    /// An event says that a call has returned: from then on nothing may be on its way any more.
    fn emit(&self, event: &Event<'_>) {
        self.machine.emit(event);
        match *event {
            Event::Attached { requester, .. }
            | Event::Detached { requester }
            | Event::Claimed { requester, .. }
            | Event::Released { requester, .. }
            | Event::Revoked { requester, .. } => {
                let domain = self.domain(RequesterId::new(requester));
                self.expect_drained(|posted| posted.requester == requester && domain != Some(posted.domain));
            }
            Event::Unmapped { iova, bytes, .. } => {
                self.expect_drained(|posted| (iova..iova + bytes).contains(&posted.iova));
            }
            _ => {}
        }
    }
}

impl ModelBoard for VtdBoard {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn violations(&self) -> Vec<String> {
        let mut violations = self.unit.take_violations();
        violations.extend(self.undrained.take());
        violations
    }
}

/// Registers that the driver owns and the board can make lie.
#[derive(Clone)]
pub struct Shared(Rc<Withholding<FakeVtdRegisters>>);

// SAFETY: forwards to an implementation that gave the promise.
unsafe impl RegisterIo for Shared {
    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.write64(offset, value);
    }
}
