//! A guest with a device on a modelled unit, in front of memory with a modelled data cache.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::time::Duration;

use portcullis_fake::{
    memory::{FakeCache, FakeClock, FakeMemory, extent},
    obedient::ObedientFunctions,
    vtd::{FakeVtd, FakeVtdRegisters, VtdConfig},
};
use portcullis_hal::{
    Access, CacheMaintenance, DeviceId, Iova, PhysAddr, RequesterId, Segment, page_pool::PagePool,
};
use portcullis_hypervisor::x86::caching::{
    ByNotice,
    CacheInstruction::{self, Invd, Wbinvd, Wbnoinvd},
    Caches, Counts, Cpus, Flush, Footprint, NotObeyed, Obeyed,
};
use portcullis_iommu::{Claim, Iommu, VmId, pci::Method};
use portcullis_vtd::{Coherency, ContextSpec, UnitConfig, VtdIommu};

type Policy = Iommu<VtdIommu<FakeVtdRegisters, FakeMemory, FakeClock, FakeCache>>;

const KINDS: [CacheInstruction; 3] = [Wbinvd, Wbnoinvd, Invd];
const PAGE: u64 = 4096;
const BASE: u64 = 2 << 20;
const TABLE_PAGES: usize = 64;
const DATA: u64 = BASE + TABLE_PAGES as u64 * PAGE;
const OWNER: VmId = VmId(1);
const OTHER: VmId = VmId(2);
const DEVICE: u16 = 0x10;

struct Machine {
    memory: FakeMemory,
    unit: FakeVtd,
    iommu: Policy,
}

/// Flushes through the modelled cache, which all CPUs share.
struct SharedCache<'a>(&'a FakeMemory);

impl Caches for SharedCache<'_> {
    fn flush(&mut self, _: Flush, cpus: Cpus) -> Result<(), Cpus> {
        cpus.iter().for_each(|_| FakeCache::new(self.0).flush_everything());
        Ok(())
    }

    fn interrupt(&mut self, _: Cpus) -> Result<(), Cpus> {
        Ok(())
    }

    fn wait(&mut self, ready: &mut dyn FnMut() -> bool) {
        ready();
    }
}

impl Machine {
    fn new(snoop_control: bool) -> Self {
        let memory = FakeMemory::coherent(PhysAddr::new(BASE), TABLE_PAGES + 16);
        let unit = FakeVtd::new(memory.clone(), VtdConfig { snoop_control, ..VtdConfig::default() });
        let tables = memory.part(0, TABLE_PAGES);
        let pool = PagePool::new(tables.clone()).unwrap();
        let config = UnitConfig::new(Segment(0));
        let cache = FakeCache::new(&tables);
        let driver = VtdIommu::bring_up(unit.registers(), pool, FakeClock::default(), cache, config).unwrap();
        Self { memory, unit, iommu: Iommu::new(driver) }
    }

    /// The owner's device is attached, and reaches one page at 0. Mapping it flushed; that is over.
    fn attached(&self, coherency: Coherency) -> Claim<'_, impl portcullis_iommu::Driver, 32, 32> {
        let spec = ContextSpec { coherency, ..ContextSpec::new(39) };
        let context = self.iommu.create_context(OWNER, &spec).unwrap();
        let device = DeviceId { segment: Segment(0), requester: RequesterId::new(DEVICE) };
        let group = self.iommu.add_group(&[device]).unwrap();
        self.iommu.grant(OWNER, group).unwrap();
        let mut claim = self.iommu.claim(OWNER, group).unwrap();
        let (clock, limit) = (FakeClock::default(), Duration::from_millis(1));
        let quiesced = claim.quiesce(&ObedientFunctions, &clock, Method::BusMasterOff, limit).unwrap();
        claim.attach(context, quiesced).unwrap();
        self.iommu.map(context, Iova::new(0), extent(DATA, PAGE), Access::all()).unwrap();
        let _ = self.memory.take_flushes();
        claim
    }

    fn device_writes(&self, byte: u8) {
        self.unit.dma_write(DEVICE, 0, &[byte]).unwrap();
    }

    fn device_reads(&self) -> u8 {
        let mut byte = [0];
        self.unit.dma_read(DEVICE, 0, &mut byte).unwrap();
        byte[0]
    }
}

/// One guest as its exit handler sees it.
struct Guest<'m> {
    machine: &'m Machine,
    vm: VmId,
    footprint: Footprint,
    counts: Counts,
}

impl<'m> Guest<'m> {
    fn new(machine: &'m Machine, vm: VmId) -> Self {
        Self { machine, vm, footprint: Footprint::new(), counts: Counts::new() }
    }

    /// On one of its CPUs, loads the word that its device reaches.
    fn loads(&self) -> u64 {
        self.footprint.entered(1).unwrap();
        let value = self.machine.memory.load_through_cache(DATA);
        self.footprint.left(1);
        value
    }

    fn stores(&self, value: u64) {
        self.footprint.entered(1).unwrap();
        self.machine.memory.store_in_cache(DATA, value);
        self.footprint.left(1);
    }

    /// On another CPU.
    fn does(&self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        self.footprint.entered(0).unwrap();
        self.footprint.left(0);
        let notices = || self.machine.iommu.coherency(self.vm);
        let caches = SharedCache(&self.machine.memory);
        ByNotice { notices, footprint: &self.footprint, caches, counts: &self.counts }.cache_instruction(kind)
    }
}

#[test]
fn x24_a_guest_sees_what_a_device_stored_past_the_caches_after_its_wbinvd() {
    for kind in [Wbinvd, Invd] {
        let machine = Machine::new(false);
        let guest = Guest::new(&machine, OWNER);
        let _claim = machine.attached(Coherency::Device);
        assert_eq!(guest.loads(), 0);
        machine.device_writes(7);
        assert_eq!(guest.loads(), 0, "the line is stale");
        assert_eq!(guest.does(kind), Ok(Obeyed::Flushed([0, 1].into_iter().collect())));
        assert_eq!(guest.loads(), 7);
    }
}

#[test]
fn x24_a_device_past_the_caches_sees_what_a_guest_stored_after_any_cache_instruction() {
    for kind in KINDS {
        let machine = Machine::new(false);
        let guest = Guest::new(&machine, OWNER);
        let _claim = machine.attached(Coherency::Device);
        guest.stores(5);
        assert_eq!(machine.device_reads(), 0, "it is in the cache alone");
        guest.does(kind).unwrap();
        assert_eq!(machine.device_reads(), 5, "{kind:?}");
    }
}

#[test]
fn x24_where_the_unit_snoops_no_instruction_is_needed_and_none_flushes() {
    let machine = Machine::new(true);
    let guest = Guest::new(&machine, OWNER);
    let snoop = machine.iommu.driver().snoop_control().unwrap();
    let _claim = machine.attached(Coherency::Enforced(snoop));
    guest.stores(5);
    assert_eq!(machine.device_reads(), 5);
    machine.device_writes(7);
    assert_eq!(guest.loads(), 7);
    for kind in KINDS {
        assert_eq!(guest.does(kind), Ok(Obeyed::Skipped));
    }
    assert_eq!(machine.memory.take_flushes(), []);
    assert_eq!((guest.counts.skipped.total(), guest.counts.flushed.total()), (3, 0));
}

#[test]
fn x24_a_guest_without_such_a_device_never_causes_a_flush() {
    let machine = Machine::new(false);
    let (owner, other) = (Guest::new(&machine, OWNER), Guest::new(&machine, OTHER));
    let skipped = |guest: &Guest<'_>| KINDS.map(|kind| guest.does(kind)) == [Ok(Obeyed::Skipped); 3];
    assert!(skipped(&owner) && skipped(&other));
    let claim = machine.attached(Coherency::Device);
    assert!(skipped(&other));
    assert_eq!(machine.memory.take_flushes(), []);
    owner.does(Wbinvd).unwrap();
    assert_ne!(machine.memory.take_flushes(), []);
    drop(claim);
    let _ = machine.memory.take_flushes();
    assert!(skipped(&owner) && skipped(&other));
    assert_eq!(machine.memory.take_flushes(), []);
    assert_eq!((other.counts.skipped.total(), other.counts.flushed.total()), (9, 0));
    assert_eq!((owner.counts.skipped.total(), owner.counts.flushed.total()), (6, 1));
}
