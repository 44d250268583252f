//! A device with a buffer of its own behind a modelled IOMMU.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use portcullis_fake::{
    config_space::{FakeConfigSpace, FakeFunction, Habits},
    memory::FakeClock,
    phb::FakePhb,
    vtd::FakeVtd,
};
use portcullis_hal::{DeviceId, Iova, RequesterId, Segment};
use portcullis_suite::{DmaDevice, DmaError, event::Direction};

use crate::machine::Trace;

/// Bytes in a device's own buffer.
const BUFFER_BYTES: usize = 4096;

/// What a write leaves on its way.
const STRAGGLER: u8 = 0xee;

/// What devices are behind; the answer is whether the IOMMU let the whole transfer pass.
pub trait Bus: Clone {
    fn read(&self, requester: u16, iova: u64, bytes: &mut [u8]) -> bool;
    fn write(&self, requester: u16, iova: u64, bytes: &[u8]) -> bool;
    /// The same with nothing that follows later.
    fn write_at_once(&self, requester: u16, iova: u64, bytes: &[u8]) -> bool {
        self.write(requester, iova, bytes)
    }
}

impl Bus for FakeVtd {
    fn read(&self, requester: u16, iova: u64, bytes: &mut [u8]) -> bool {
        self.dma_read(requester, iova, bytes).is_ok()
    }

    fn write(&self, requester: u16, iova: u64, bytes: &[u8]) -> bool {
        // The last byte of the page follows later: only an invalidation that drains brings it home.
        let passed = self.dma_write(requester, iova, bytes).is_ok();
        passed && self.dma_write_posted(requester, iova | 0xfff, &[STRAGGLER]).is_ok()
    }

    fn write_at_once(&self, requester: u16, iova: u64, bytes: &[u8]) -> bool {
        self.dma_write(requester, iova, bytes).is_ok()
    }
}

impl Bus for FakePhb {
    fn read(&self, requester: u16, iova: u64, bytes: &mut [u8]) -> bool {
        self.dma_read(requester, iova, bytes).is_ok()
    }

    fn write(&self, requester: u16, iova: u64, bytes: &[u8]) -> bool {
        self.dma_write(requester, iova, bytes).is_ok()
    }
}

/// One transfer as the IOMMU saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    pub requester: u16,
    pub iova: u64,
    pub direction: Direction,
    pub passed: bool,
}

/// All transfers of a machine, in order, each with the number of events that were told before it. Clones are
/// the same log.
#[derive(Clone)]
pub struct Transfers {
    trace: Trace,
    log: Rc<RefCell<Vec<(usize, Transfer)>>>,
}

impl Transfers {
    /// No transfers yet, beside this trace.
    pub fn beside(trace: &Trace) -> Self {
        Self { trace: trace.clone(), log: Rc::default() }
    }

    pub fn log(&self) -> Vec<(usize, Transfer)> {
        self.log.borrow().clone()
    }

    fn note(&self, transfer: Transfer) {
        self.log.borrow_mut().push((self.trace.borrow().len(), transfer));
    }
}

/// Requester IDs of a machine's devices, on different buses.
pub const REQUESTERS: [u16; 3] = [0x0010, 0x0118, 0x0020];

const COMMAND: u16 = 0x04;
const BUS_MASTER: u32 = 1 << 2;

/// Looks at a begun transfer until it is over; at each, the device tries it.
const TRIES: u32 = 3;

fn id_of(requester: u16) -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(requester) }
}

/// The configuration spaces of a machine's devices: firmware left bus mastering on.
pub fn functions(clock: FakeClock) -> Rc<FakeConfigSpace> {
    let functions = FakeConfigSpace::new(clock);
    for requester in REQUESTERS {
        functions.add(id_of(requester), FakeFunction::new(Habits::default()).with_express(0x40, false));
    }
    Rc::new(functions)
}

/// A device that copies between memory and its own buffer, as long as it masters the bus.
pub struct ModelDevice<B> {
    id: DeviceId,
    bus: B,
    functions: Rc<FakeConfigSpace>,
    own: RefCell<Vec<u8>>,
    /// A write that was begun, and how often it is still tried.
    begun: Cell<Option<(Iova, u32, u32)>>,
    transfers: Transfers,
}

impl<B: Bus> ModelDevice<B> {
    /// A device with this Requester ID.
    pub fn new(requester: u16, bus: &B, functions: &Rc<FakeConfigSpace>, transfers: &Transfers) -> Self {
        Self {
            id: id_of(requester),
            bus: bus.clone(),
            functions: functions.clone(),
            own: RefCell::new(vec![0; BUFFER_BYTES]),
            begun: Cell::new(None),
            transfers: transfers.clone(),
        }
    }

    /// Writes what is not the device's own buffer, page by page.
    pub fn write_pages(&self, iova: Iova, content: &[u8]) {
        if self.masters() {
            let (requester, pages) = (self.id.requester.as_u16(), content.chunks(BUFFER_BYTES));
            let mut places = (iova.as_u64()..).step_by(BUFFER_BYTES).zip(pages);
            let passed = places.all(|(iova, page)| self.bus.write_at_once(requester, iova, page));
            self.note(iova, Direction::Write, passed);
        }
    }

    fn masters(&self) -> bool {
        self.functions.peek(self.id, COMMAND) & BUS_MASTER != 0
    }

    fn note(&self, iova: Iova, direction: Direction, passed: bool) {
        let (requester, iova) = (self.id.requester.as_u16(), iova.as_u64());
        self.transfers.note(Transfer { requester, iova, direction, passed });
    }
}

impl<B: Bus> DmaDevice for ModelDevice<B> {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> &'static str {
        "modelled device"
    }

    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        let mut own = self.own.borrow_mut();
        let target = own.get_mut(..bytes as usize).ok_or(DmaError::TooLong { bytes: bytes.into() })?;
        if self.masters() {
            let passed = self.bus.read(self.id.requester.as_u16(), iova.as_u64(), target);
            self.note(iova, Direction::Read, passed);
        }
        Ok(())
    }

    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        let own = self.own.borrow();
        let source = own.get(..bytes as usize).ok_or(DmaError::TooLong { bytes: bytes.into() })?;
        if self.masters() {
            let passed = self.bus.write(self.id.requester.as_u16(), iova.as_u64(), source);
            self.note(iova, Direction::Write, passed);
        }
        Ok(())
    }

    fn begin_write(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.begun.set(Some((iova, bytes, TRIES)));
        Ok(())
    }

    fn is_busy(&self) -> bool {
        let Some((iova, bytes, tries)) = self.begun.take() else { return false };
        self.write_memory(iova, bytes).expect("a length that fits");
        if tries > 1 {
            self.begun.set(Some((iova, bytes, tries - 1)));
        }
        tries > 1
    }
}
