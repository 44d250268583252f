//! A powernv-like machine: the TCE driver in front of the modelled host bridge.

use std::rc::Rc;

use portcullis_fake::{
    config_space::FakeConfigSpace,
    memory::{FakeCache, FakeClock, FakeMemory},
    phb::{FakePhb, Hang, Opal, PhbEvent, PhbKind, Timing},
};
use portcullis_hal::{
    Clock, ConfigSpace, DeviceId, IoPageSize, Iova, PagePool, PhysAddr, RequesterId, Segment,
};
use portcullis_iommu::{Error, Iommu};
use portcullis_ppc_tce::{
    Config, ContextSpec, Firmware, FirmwareError, Generation, PeNumber, PestEntry, TableRoot, TceIommu,
    WindowNumber,
};
use portcullis_suite::{Board, Buffer, Event};

use crate::{
    device::{ModelDevice, REQUESTERS, Transfers, functions},
    machine::{Machine, PATIENCE, Trace},
    model_board::ModelBoard,
};

/// Entries of the table that an earlier system left, and their permission bits.
const LEFTOVER_TCES: u64 = 512;
const READ_WRITE: u64 = 3;

type Driver = TceIommu<CallsOpal, FakePhb, FakeMemory, FakeClock, FakeCache>;

/// How a bridge is used by the board.
#[derive(Clone, Copy)]
pub struct BridgeUse {
    pub kind: PhbKind,
    /// First address of contexts, and log2 of their bytes.
    pub window_start: u64,
    pub window_bits: u32,
    pub levels: u8,
    pub timing: Timing,
    /// Table pages of a starved context; `None`: the pool runs out.
    pub starved: Option<u32>,
    /// What stops when completion is withheld.
    pub hang: Hang,
}

/// The machine, its bridge and two devices behind it.
pub struct TceBoard {
    machine: Machine,
    bridge: FakePhb,
    how: BridgeUse,
    iommu: Iommu<Driver>,
    functions: Rc<FakeConfigSpace>,
    devices: [ModelDevice<FakePhb>; 2],
}

impl TceBoard {
    /// A bridge as firmware leaves it, taken over by the driver.
    pub fn new(how: BridgeUse, trace: Trace, transfers: &Transfers) -> Self {
        let machine = Machine::new(true, trace);
        let bridge = FakePhb::new(how.kind, &machine.memory);
        bridge.set_timing(how.timing);
        leave_windows_open(&bridge, how.kind, &machine);
        let driver = bring_up(&bridge, how.kind, machine.pool(), &machine).expect("a bridge that answers");
        let functions = functions(machine.clock.clone());
        let [first, second, _] = REQUESTERS;
        let devices =
            [first, second].map(|requester| ModelDevice::new(requester, &bridge, &functions, transfers));
        Self { iommu: Iommu::new(driver), functions, machine, bridge, how, devices }
    }
}

/// What an earlier system may leave: the first window of every PE leads to all of the machine's memory.
fn leave_windows_open(bridge: &FakePhb, kind: PhbKind, machine: &Machine) {
    let (page, table) = (IoPageSize::SIZE_64K, machine.leftover_table());
    for number in 0..LEFTOVER_TCES {
        let tce = (number * page.bytes()) | READ_WRITE;
        assert!(machine.memory.write(table.as_u64() + number * 8, &tce.to_be_bytes()));
    }
    for pe in 0..kind.pes() {
        let opal = bridge.opal();
        let status =
            opal.map_pe_dma_window(pe.into(), pe * 2, 1, table.as_u64(), LEFTOVER_TCES * 8, page.bytes());
        assert_eq!(status, 0, "firmware takes the window");
    }
}

fn bring_up(
    bridge: &FakePhb,
    kind: PhbKind,
    pool: PagePool<FakeMemory>,
    machine: &Machine,
) -> Result<Driver, Error> {
    let config = Config {
        generation: match kind {
            PhbKind::Phb3 => Generation::Phb3,
            PhbKind::Phb4 => Generation::Phb4,
            PhbKind::Phb5 => Generation::Phb5,
        },
        segment: Segment(0),
        pe_count: kind.pes(),
        reserved_pe: PeNumber(kind.reserved_pe()),
        kill_limit: PATIENCE,
    };
    let cache = FakeCache::new(&machine.memory);
    TceIommu::bring_up(CallsOpal(bridge.opal()), bridge.clone(), pool, machine.clock.clone(), cache, config)
}

impl Board for TceBoard {
    type Driver = Driver;
    type Device = ModelDevice<FakePhb>;

    fn iommu(&self) -> &Iommu<Driver> {
        &self.iommu
    }

    fn device(&self, index: usize) -> Option<&Self::Device> {
        self.devices.get(index)
    }

    fn spec(&self) -> ContextSpec {
        ContextSpec {
            page_size: IoPageSize::SIZE_4K,
            window_start: Iova::new(self.how.window_start),
            window_bytes: 1 << self.how.window_bits,
            levels: self.how.levels,
            page_limit: None,
        }
    }

    /// The bus is always coherent.
    fn coherent_spec(&self) -> Result<ContextSpec, Error> {
        Ok(self.spec())
    }

    fn starved_spec(&self) -> ContextSpec {
        ContextSpec { page_limit: self.how.starved, ..self.spec() }
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

    fn leaf_has_snoop(&self, _: DeviceId, _: Iova) -> Option<bool> {
        None
    }

    fn bring_up_dead_unit(&self) -> Result<(), Error> {
        self.bridge.set_hang(Some(self.how.hang));
        let result = bring_up(&self.bridge, self.how.kind, self.machine.spare_pool(), &self.machine);
        self.bridge.set_hang(None);
        result.map(|_| ())
    }

    /// The bridge itself hangs: a wrapper around its registers could not withhold a completion bit that is
    /// still set from the last kill.
    fn withhold_completion(&self) {
        self.bridge.set_hang(Some(self.how.hang));
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

    fn emit(&self, event: &Event<'_>) {
        self.machine.emit(event);
    }
}

impl ModelBoard for TceBoard {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn violations(&self) -> Vec<String> {
        let what = |event| match event {
            PhbEvent::Violation { what } => Some(what.to_owned()),
            _ => None,
        };
        self.bridge.take_events().into_iter().filter_map(what).collect()
    }
}

/// The driver's firmware calls, as OPAL takes them.
pub struct CallsOpal(Opal);

const SET_PE: u32 = 31;
const MAP_PE_DMA_WINDOW: u32 = 44;
const EEH_FREEZE_CLEAR: u32 = 26;

impl Firmware for CallsOpal {
    fn set_pe(&self, device: RequesterId, pe: PeNumber) -> Result<(), FirmwareError> {
        FirmwareError::check(SET_PE, self.0.set_pe(pe.0.into(), device.as_u16().into()))
    }

    fn map_pe_dma_window(
        &self,
        pe: PeNumber,
        window: WindowNumber,
        table: TableRoot,
    ) -> Result<(), FirmwareError> {
        let status = self.0.map_pe_dma_window(
            pe.0.into(),
            window.id(pe) as u16,
            table.levels.into(),
            table.address.as_u64(),
            table.level_bytes,
            table.page_size.bytes(),
        );
        FirmwareError::check(MAP_PE_DMA_WINDOW, status)
    }

    fn unmap_pe_dma_window(&self, pe: PeNumber, window: WindowNumber) -> Result<(), FirmwareError> {
        let status = self.0.map_pe_dma_window(pe.0.into(), window.id(pe) as u16, 0, 0, 0, 0);
        FirmwareError::check(MAP_PE_DMA_WINDOW, status)
    }

    fn frozen(&self, pe: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        Ok(self.0.freeze_status(pe.0).map(PestEntry))
    }

    fn clear_freeze(&self, pe: PeNumber) -> Result<(), FirmwareError> {
        FirmwareError::check(EEH_FREEZE_CLEAR, self.0.freeze_clear(pe.0))
    }
}
