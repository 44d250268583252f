//! Taking a unit over: handshakes, what firmware left behind, caches that do not snoop.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::cell::RefCell;

use machine::{DATA, DEVICE, FIRMWARE, Guest, Machine, PAGE, QuiesceAndAttach, extent};
use portcullis_fake::{
    memory::{FakeCache, FakeMemory},
    vtd::{Reason, VtdConfig},
};
use portcullis_hal::{
    Access, CacheMaintenance, Iova, PhysAddr, PhysRange, RegisterIo, TableMemory, TimedOut,
    page_pool::PagePool, sync::Ordering,
};
use portcullis_iommu::Error;
use portcullis_vtd::{Format, SecondStage, TableAccess};

const GCMD: usize = 0x18;
const GSTS: usize = 0x1c;
const RTADDR: usize = 0x20;
const PMEN: usize = 0x64;
const IQH: u32 = 0x80;
const IQT: usize = 0x88;
const IQA: usize = 0x90;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const EMPTY_ROOT: Reason = Reason(1);

fn store(machine: &Machine, physical: u64, value: u64) {
    assert!(machine.memory.write(physical, &value.to_le_bytes()));
}

/// Firmware maps the first data page at 0 for the device, and lets it write there.
fn firmware_translates(machine: &Machine) {
    let [root, context, top, middle, last] = [0, 1, 2, 3, 4].map(|page| FIRMWARE + page * PAGE);
    store(machine, root, context | 1);
    store(machine, context + u64::from(DEVICE) * 16 + 8, 1 | 9 << 8);
    store(machine, context + u64::from(DEVICE) * 16, top | 1);
    store(machine, top, middle | 3);
    store(machine, middle, last | 3);
    store(machine, last, DATA | 3);
    let registers = machine.unit.registers();
    registers.write64(RTADDR, root);
    registers.write32(GCMD, SRTP);
    registers.write32(GCMD, TE);
    machine.write(0, 1).expect("firmware's tables are good");
}

fn firmware_queue(machine: &Machine, descriptors: u64) {
    let registers = machine.unit.registers();
    let queue = FIRMWARE + 8 * PAGE;
    for index in 0..descriptors {
        store(machine, queue + index * 16, 1 | 1 << 4);
    }
    registers.write64(IQA, queue);
    registers.write32(GCMD, registers.read32(GSTS) & TE | QIE);
    registers.write64(IQT, descriptors * 16);
}

#[test]
fn f05_an_absent_unit_is_refused() {
    let machine = Machine::usual();
    machine.unit.misbehave(|knobs| knobs.absent = true);
    assert_eq!(machine.bring_up().unwrap_err(), Error::Hardware { source: 0, code: -1 });
}

#[test]
fn f05_a_unit_that_lacks_the_queue_or_a_table_depth_is_left_alone() {
    let no_queue = VtdConfig { queued_invalidation: false, ..VtdConfig::default() };
    let no_depth = VtdConfig { widths: 0b0001, ..VtdConfig::default() };
    for (config, register) in [(no_queue, 0x10), (no_depth, 0x08)] {
        let machine = Machine::new(config);
        let code = machine.unit.registers().read64(register) as i64;
        let source = register as u32;
        assert_eq!(machine.bring_up().unwrap_err(), Error::Hardware { source, code });
        let registers = machine.unit.registers();
        let seen = [GSTS, RTADDR, IQA].map(|offset| registers.read32(offset));
        assert_eq!(seen, [0; 3]);
    }
}

#[test]
fn f05_too_few_pages_are_refused_before_anything_is_written() {
    for table_pages in [2, 3] {
        let mut machine = Machine::usual();
        machine.table_pages = table_pages;
        assert_eq!(machine.bring_up().unwrap_err(), Error::NeedPages { count: 1 });
        assert_eq!(machine.unit.registers().read32(GSTS), 0);
    }
}

#[test]
fn f06_after_bring_up_every_device_is_blocked() {
    for slow_status in [0, 7] {
        let machine = Machine::usual();
        machine.unit.misbehave(|knobs| knobs.slow_status = slow_status);
        machine.write(DATA, 1).expect("before, nothing is blocked");
        let _driver = machine.bring_up().unwrap();
        assert!(machine.unit.translates());
        for requester in [0, DEVICE, 0x0320, 0xffff] {
            assert_eq!(machine.unit.dma_write(requester, DATA, &[2]), Err(EMPTY_ROOT));
        }
        assert_eq!(machine.byte(DATA), 1);
    }
}

#[test]
fn f07_a_handshake_that_never_ends_is_a_timeout() {
    let buffered = VtdConfig { write_buffer: true, ..VtdConfig::default() };
    for (config, bits) in [
        (VtdConfig::default(), SRTP),
        (VtdConfig::default(), TE),
        (VtdConfig::default(), QIE),
        (buffered, WBF),
    ] {
        let machine = Machine::new(config);
        machine.unit.misbehave(|knobs| knobs.hang_status = bits);
        let timed_out = TimedOut { register: GSTS as u32, bits: bits.into() };
        assert_eq!(machine.bring_up().unwrap_err(), Error::Timeout(timed_out), "bit {bits:#x}");
        assert!(!machine.unit.translates(), "bit {bits:#x}");
    }
}

#[test]
fn f07_an_invalidation_that_hangs_ends_bring_up_before_translation() {
    let machine = Machine::usual();
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    let error = machine.bring_up().unwrap_err();
    assert!(matches!(error, Error::Timeout(TimedOut { register: IQH, .. })), "{error:?}");
    assert!(!machine.unit.translates());
}

#[test]
fn f08_what_firmware_left_on_is_taken_over_without_a_gap() {
    let machine = Machine::usual();
    firmware_translates(&machine);
    firmware_queue(&machine, 3);
    let registers = machine.unit.registers();
    registers.write32(GCMD, TE | QIE | IRE);
    // A driver that turned translation or interrupt remapping off would wait for it in vain.
    machine.unit.misbehave(|knobs| knobs.hang_status = TE | IRE);
    let _driver = machine.bring_up().unwrap();
    assert_eq!(registers.read32(GSTS), TE | SRTP | QIE | IRE);
    assert_eq!(machine.write(0, 2), Err(EMPTY_ROOT), "firmware's mapping was cached");
    assert_eq!(machine.byte(DATA), 1);
}

#[test]
fn f08_firmwares_queue_runs_empty_before_it_is_turned_off() {
    let machine = Machine::usual();
    machine.unit.misbehave(|knobs| knobs.slow_queue = 4);
    firmware_queue(&machine, 3);
    let _driver = machine.bring_up().unwrap();
    let firmwares = machine.unit.take_descriptors().into_iter().take(3).collect::<Vec<_>>();
    assert_eq!(firmwares, [(1 | 1 << 4, 0); 3]);
    let stuck = Machine::usual();
    stuck.unit.misbehave(|knobs| knobs.hang_queue = true);
    firmware_queue(&stuck, 3);
    let timed_out = TimedOut { register: IQH, bits: 48 };
    assert_eq!(stuck.bring_up().unwrap_err(), Error::Timeout(timed_out));
}

#[test]
fn f09_protected_memory_is_opened_after_translation_is_on() {
    let config = VtdConfig { protected_memory: true, ..VtdConfig::default() };
    let machine = Machine::new(config);
    let _driver = machine.bring_up().unwrap();
    assert_eq!(machine.unit.registers().read32(PMEN), 0);
    let hung = Machine::new(config);
    hung.unit.misbehave(|knobs| knobs.hang_status = TE);
    assert!(hung.bring_up().is_err());
    assert_ne!(hung.unit.registers().read32(PMEN), 0, "memory stays protected");
}

#[test]
fn f10_a_new_root_table_is_followed_by_global_invalidations() {
    const DRAIN: u64 = 1 << 6 | 1 << 7;
    let machine = Machine::usual();
    let _driver = machine.bring_up().unwrap();
    assert_eq!(machine.invalidations(), [(1 | 1 << 4, 0), (2 | 1 << 4 | DRAIN, 0)]);
    let machine = Machine::new(VtdConfig { root_pointer_invalidates: true, ..VtdConfig::default() });
    firmware_translates(&machine);
    let _driver = machine.bring_up().unwrap();
    assert_eq!(machine.invalidations(), []);
    assert_eq!(machine.write(0, 2), Err(EMPTY_ROOT));
}

/// Maps, moves and unmaps a page; true when DMA follows each time.
fn dma_follows(config: VtdConfig) {
    let machine = Machine::new(config);
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    assert_eq!(guest.unmap(0, PAGE).unwrap(), PAGE);
    assert_eq!(machine.write(0, 2), Err(Reason(5)));
    guest.map(0, DATA + PAGE, 3 * PAGE).unwrap();
    machine.write(2 * PAGE, 3).unwrap();
    guest.map(machine::LARGE, DATA, machine::LARGE).unwrap();
    machine.write(machine::LARGE, 4).unwrap();
    assert_eq!((machine.byte(DATA), machine.byte(DATA + 3 * PAGE)), (4, 3));
    let Guest { mut claim, context, .. } = guest;
    claim.detach().unwrap();
    assert_eq!(machine.write(2 * PAGE, 5), Err(Reason(2)));
    claim.quiesce_and_attach(context).unwrap();
    machine.write(2 * PAGE, 6).unwrap();
    assert_eq!(machine.byte(DATA + 3 * PAGE), 6);
}

#[test]
fn f11_a_unit_that_does_not_snoop_sees_every_change() {
    dma_follows(VtdConfig { coherent: false, ..VtdConfig::default() });
}

#[test]
fn f12_a_unit_with_a_write_buffer_sees_every_change() {
    dma_follows(VtdConfig { write_buffer: true, ..VtdConfig::default() });
}

/// At each write-back another CPU tries to map next to what is being written back.
struct Intruder<'a> {
    pool: &'a PagePool<FakeMemory>,
    tables: &'a SecondStage,
    cache: FakeCache,
    outcomes: RefCell<Vec<Result<(), Error>>>,
}

impl CacheMaintenance for Intruder<'_> {
    fn write_back<T>(&self, _: &[T]) {
        let access = TableAccess::new(self.pool, Some(&self.cache));
        let outcome = self.tables.map(&access, Iova::new(5 * PAGE), extent(0, PAGE), Access::READ);
        self.outcomes.borrow_mut().push(outcome);
    }
    fn store_barrier(&self) {}
    fn flush(&self, _: PhysRange) {}
    fn flush_everything(&self) {}
    fn write_back_all(&self) {}
}

#[test]
fn f11_nobody_builds_on_an_entry_that_is_not_written_back() {
    let memory = FakeMemory::incoherent(PhysAddr::new(1 << 20), 16);
    let (pool, cache) = (PagePool::new(memory.clone()).unwrap(), FakeCache::new(&memory));
    let format = Format { levels: 4, address_bits: 48, largest_page: 3, physical_bits: 46 };
    let access = TableAccess::new(&pool, Some(&cache));
    let tables = SecondStage::new(&access, format, None, None).unwrap();
    let outcomes = RefCell::default();
    let intruder = Intruder { pool: &pool, tables: &tables, cache, outcomes };
    // Makes the tables of three levels, then a leaf in them.
    for page in [0, 1] {
        let access = TableAccess::new(&pool, Some(&intruder));
        tables.map(&access, Iova::new(page * PAGE), extent(0, PAGE), Access::READ).unwrap();
    }
    let outcomes = intruder.outcomes.into_inner();
    assert!(outcomes.len() >= 5, "{outcomes:?}");
    assert_eq!(outcomes, vec![Err(Error::Busy); outcomes.len()]);
    let tables_only = memory.pages(1, 15).unwrap();
    assert!(tables_only.iter().all(|cell| cell.load(Ordering::Relaxed) >> 52 & 1 == 0), "nobody is at work");
    let access = TableAccess::new(&pool, Some(&intruder.cache));
    tables.map(&access, Iova::new(5 * PAGE), extent(0, PAGE), Access::READ).unwrap();
    tables.give_back(&access);
}
