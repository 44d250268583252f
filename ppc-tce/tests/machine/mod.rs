//! A machine with one host bridge, for tests, benches and counts: memory, the model of the bridge, its
//! firmware, the driver and the policy above it.
#![allow(dead_code, unreachable_pub, reason = "no test needs all of it")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

pub use portcullis_fake::memory::extent;
use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory},
    obedient::ObedientFunctions,
    phb::{FakePhb, Opal, PhbEvent, PhbFault, PhbKind},
};
use portcullis_hal::{DeviceId, IoPageSize, Iova, IovaRange, PagePool, PhysAddr, RequesterId, Segment};
use portcullis_iommu::{Claim, ContextHandle, Error, GroupId, Iommu, VmId, pci::Method};
use portcullis_ppc_tce::{
    Config, ContextSpec, Firmware, FirmwareError, Generation, PeNumber, PestEntry, TableRoot, TceIommu,
    WindowNumber,
};

pub const PAGE: u64 = 0x1000;
pub const GIB: u64 = 1 << 30;
pub const VM: VmId = VmId(1);
pub const KINDS: [PhbKind; 3] = [PhbKind::Phb3, PhbKind::Phb4, PhbKind::Phb5];
/// Where the driver's table pages begin: at a multiple of every table size.
pub const POOL_PAGE: usize = 256;
/// Table pages, the one of the pool's bitmap included.
pub const POOL_PAGES: usize = 256;
/// Devices that the driver has room for.
pub const DEVICES: usize = 8;

pub type Driver = TceIommu<OpalFirmware, FakePhb, FakeMemory, FakeClock, FakeCache, DEVICES>;
pub type Policy = Iommu<Driver, 16, 8>;
pub type MachineClaim<'m> = Claim<'m, Driver, 16, 8>;

/// OPAL as the driver wants it.
#[derive(Clone)]
pub struct OpalFirmware {
    pub opal: Opal,
    /// Whether the PE state table cannot be read.
    pub blind: Arc<AtomicBool>,
}

impl Firmware for OpalFirmware {
    fn set_pe(&self, device: RequesterId, pe: PeNumber) -> Result<(), FirmwareError> {
        FirmwareError::check(31, self.opal.set_pe(u64::from(pe.0), u64::from(device.as_u16())))
    }

    fn map_pe_dma_window(
        &self,
        pe: PeNumber,
        window: WindowNumber,
        table: TableRoot,
    ) -> Result<(), FirmwareError> {
        let status = self.opal.map_pe_dma_window(
            u64::from(pe.0),
            window.id(pe) as u16,
            u16::from(table.levels),
            table.address.as_u64(),
            table.level_bytes,
            table.page_size.bytes(),
        );
        FirmwareError::check(44, status)
    }

    fn unmap_pe_dma_window(&self, pe: PeNumber, window: WindowNumber) -> Result<(), FirmwareError> {
        let id = window.id(pe) as u16;
        FirmwareError::check(44, self.opal.map_pe_dma_window(u64::from(pe.0), id, 0, 0, 0, 0))
    }

    fn frozen(&self, pe: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        let status = self.opal.freeze_status(pe.0);
        let blind = self.blind.load(Ordering::Relaxed);
        Ok(status.map(|words| if blind { PestEntry::default() } else { PestEntry(words) }))
    }

    fn clear_freeze(&self, pe: PeNumber) -> Result<(), FirmwareError> {
        FirmwareError::check(26, self.opal.freeze_clear(pe.0))
    }
}

/// Memory, bridge, firmware and the policy over the driver.
pub struct Machine {
    pub memory: FakeMemory,
    pub phb: FakePhb,
    pub blind: Arc<AtomicBool>,
    pub iommu: Policy,
    kind: PhbKind,
}

/// The parts that exist before the driver.
pub fn hardware(kind: PhbKind, pool_pages: usize) -> (FakeMemory, FakePhb) {
    let memory = FakeMemory::coherent(PhysAddr::new(0), POOL_PAGE + pool_pages);
    let phb = FakePhb::new(kind, &memory);
    (memory, phb)
}

/// What a platform says of such a bridge.
pub fn config(kind: PhbKind) -> Config {
    let generation = match kind {
        PhbKind::Phb3 => Generation::Phb3,
        PhbKind::Phb4 => Generation::Phb4,
        PhbKind::Phb5 => Generation::Phb5,
    };
    Config {
        generation,
        segment: Segment(0),
        pe_count: kind.pes(),
        reserved_pe: PeNumber(kind.reserved_pe()),
        kill_limit: Duration::from_micros(200),
    }
}

/// The driver's pool in that memory.
pub fn pool(memory: &FakeMemory, pages: usize) -> PagePool<FakeMemory> {
    PagePool::new(memory.part(POOL_PAGE, pages)).expect("a pool")
}

/// Brings the driver up.
pub fn bring_up(memory: &FakeMemory, phb: &FakePhb, config: Config, pages: usize) -> Result<Driver, Error> {
    let firmware = OpalFirmware { opal: phb.opal(), blind: Arc::default() };
    let clock = FakeClock::default();
    let cache = FakeCache::new(memory);
    Driver::bring_up(firmware, phb.clone(), pool(memory, pages), clock, cache, config)
}

impl Machine {
    /// A machine whose driver is up.
    pub fn new(kind: PhbKind) -> Self {
        Self::with_config(kind, POOL_PAGES, config(kind))
    }

    /// A machine whose waits do not end, for threads that hold each other up.
    pub fn patient(kind: PhbKind) -> Self {
        let kill_limit = Duration::from_secs(3600);
        Self::with_config(kind, POOL_PAGES, Config { kill_limit, ..config(kind) })
    }

    /// A machine with so many table pages, one of them the pool's own.
    pub fn with_pool(kind: PhbKind, pages: usize) -> Self {
        Self::with_config(kind, pages, config(kind))
    }

    fn with_config(kind: PhbKind, pages: usize, config: Config) -> Self {
        let (memory, phb) = hardware(kind, pages);
        let blind: Arc<AtomicBool> = Arc::default();
        let firmware = OpalFirmware { opal: phb.opal(), blind: blind.clone() };
        let cache = FakeCache::new(&memory);
        let driver = Driver::bring_up(
            firmware,
            phb.clone(),
            pool(&memory, pages),
            FakeClock::default(),
            cache,
            config,
        )
        .expect("the driver comes up");
        let _ = phb.take_events();
        Self { memory, phb, blind, iommu: Iommu::new(driver), kind }
    }

    /// Registers, grants and claims a group of these functions.
    pub fn claim(&self, members: &[u16]) -> MachineClaim<'_> {
        let group = self.group(members);
        self.iommu.claim(VM, group).expect("a claim")
    }

    /// Registers and grants a group of these functions.
    pub fn group(&self, members: &[u16]) -> GroupId {
        let members: Vec<_> = members.iter().map(|&rid| device(rid)).collect();
        let group = self.iommu.add_group(&members).expect("a group");
        self.iommu.grant(VM, group).expect("a grant");
        group
    }

    /// Makes a context.
    pub fn context(&self, spec: &ContextSpec) -> ContextHandle {
        self.iommu.create_context(VM, spec).expect("a context")
    }

    /// A context of two levels of 4 KiB pages over the first GiB, and a device in it.
    pub fn attached(&self, rid: u16) -> (ContextHandle, MachineClaim<'_>) {
        let context = self.context(&spec(2, GIB));
        let mut claim = self.claim(&[rid]);
        claim.quiesce_and_attach(context).expect("an attach");
        (context, claim)
    }

    /// Maps `bytes` at `iova` for reading and writing.
    pub fn map(&self, context: ContextHandle, iova: u64, phys: u64, bytes: u64) -> Result<(), Error> {
        self.iommu.map(context, Iova::new(iova), extent(phys, bytes), portcullis_hal::Access::all())
    }

    /// Unmaps `bytes` at `iova`.
    pub fn unmap(&self, context: ContextHandle, iova: u64, bytes: u64) -> Result<u64, Error> {
        self.iommu.unmap(context, range(iova, bytes))
    }

    /// What a device's read of one byte meets; the PE does not stay frozen.
    pub fn read(&self, rid: u16, iova: u64) -> Result<u8, PhbFault> {
        let mut byte = [0];
        let read = self.phb.dma_read(rid, iova, &mut byte);
        self.thaw();
        read.map(|()| byte[0])
    }

    /// What a device's write of one byte meets; the PE does not stay frozen.
    pub fn write(&self, rid: u16, iova: u64, byte: u8) -> Result<(), PhbFault> {
        let written = self.phb.dma_write(rid, iova, &[byte]);
        self.thaw();
        written
    }

    /// Lets every PE go on.
    pub fn thaw(&self) {
        for pe in 0..self.kind.pes() {
            assert_eq!(self.phb.opal().freeze_clear(pe), 0);
        }
    }

    /// Puts a byte into memory.
    pub fn store(&self, phys: u64, byte: u8) {
        assert!(self.memory.write(phys, &[byte]));
    }

    /// Takes a byte from memory.
    pub fn load(&self, phys: u64) -> u8 {
        let mut byte = [0];
        assert!(self.memory.read(phys, &mut byte));
        byte[0]
    }

    /// The PE of the device that came `number`th, counted from 0.
    pub fn pe(&self, number: u16) -> u16 {
        if self.kind == PhbKind::Phb3 { number + 1 } else { number }
    }

    /// Table pages that are free.
    pub fn free_pages(&self) -> usize {
        self.iommu.driver().pool().free_pages()
    }

    /// Events since the last call.
    pub fn events(&self) -> Vec<PhbEvent> {
        self.phb.take_events()
    }

    /// Nothing was done that the manual forbids.
    pub fn assert_obedient(&self) {
        let events = self.phb.take_events();
        let forbidden = events.iter().find(|event| matches!(event, PhbEvent::Violation { .. }));
        assert_eq!(forbidden, None);
    }
}

/// 4 KiB pages from 0 on.
pub fn spec(levels: u8, bytes: u64) -> ContextSpec {
    ContextSpec {
        page_size: IoPageSize::SIZE_4K,
        window_start: Iova::new(0),
        window_bytes: bytes,
        levels,
        page_limit: None,
    }
}

pub fn device(rid: u16) -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(rid) }
}

pub fn range(iova: u64, bytes: u64) -> IovaRange {
    IovaRange::new(Iova::new(iova), bytes).expect("a range")
}

/// Attaches a claim, and quiesces its devices first where that was not done under this ownership.
pub trait QuiesceAndAttach {
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
