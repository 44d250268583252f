//! The VT-d model does what the manual says, above all what software would rather it did not.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a model that is used wrongly shall stop the test"
)]

use portcullis_fake::{
    memory::{FakeCache, FakeMemory},
    vtd::{FakeVtd, Reason, VtdConfig},
};
use portcullis_hal::{CacheMaintenance, PhysAddr, RegisterIo, TableMemory, sync::Ordering};

const BASE: u64 = 0x10_0000;
const DEVICE: u16 = 0x0010;
const DOMAIN: u64 = 7;
/// Pages: root, context, three levels of tables, queue, status, data.
const ROOT: u64 = 0;
const CONTEXT: u64 = 1;
const TOP: u64 = 2;
const MIDDLE: u64 = 3;
const LAST: u64 = 4;
const QUEUE: u64 = 5;
const STATUS: u64 = 6;
const DATA: u64 = 8;
const OTHER: u64 = 9;
const IOVA: u64 = 0x1000;

struct Rig {
    memory: FakeMemory,
    unit: FakeVtd,
    tail: u64,
}

fn page(number: u64) -> u64 {
    BASE + number * 4096
}

impl Rig {
    fn new(config: VtdConfig) -> Self {
        let base = PhysAddr::new(BASE);
        let memory =
            if config.coherent { FakeMemory::coherent(base, 16) } else { FakeMemory::incoherent(base, 16) };
        let rig = Self { unit: FakeVtd::new(memory.clone(), config), memory, tail: 0 };
        rig.store(page(ROOT), page(CONTEXT) | 1);
        rig.store(page(CONTEXT) + 0x10 * 16 + 8, 1 | DOMAIN << 8);
        rig.store(page(CONTEXT) + 0x10 * 16, page(TOP) | 1);
        rig.store(page(TOP), page(MIDDLE) | 3);
        rig.store(page(MIDDLE), page(LAST) | 3);
        rig.store(page(LAST) + 8, page(DATA) | 3);
        let registers = rig.unit.registers();
        registers.write64(0x20, page(ROOT));
        registers.write32(0x18, 1 << 30);
        registers.write64(0x90, page(QUEUE));
        registers.write32(0x18, 1 << 26);
        registers.write32(0x18, 1 << 31 | 1 << 26);
        assert_eq!(registers.read32(0x1c), 1 << 31 | 1 << 30 | 1 << 26);
        rig
    }

    fn store(&self, address: u64, value: u64) {
        self.memory.cells()[((address - BASE) / 8) as usize].store(value, Ordering::Release);
    }

    fn submit(&mut self, low: u64, high: u64) {
        self.store(page(QUEUE) + self.tail, low);
        self.store(page(QUEUE) + self.tail + 8, high);
        self.tail += 16;
        self.unit.registers().write64(0x88, self.tail);
    }

    fn write(&self, data: u8) -> Result<(), Reason> {
        self.unit.dma_write(DEVICE, IOVA, &[data])
    }

    fn byte(&self, number: u64) -> u8 {
        let mut byte = [0];
        assert!(self.memory.read(page(number), &mut byte));
        byte[0]
    }
}

#[test]
fn a_leaf_stays_cached_until_its_page_is_invalidated() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.write(1).unwrap();
    rig.store(page(LAST) + 8, page(OTHER) | 3);
    rig.write(2).unwrap();
    assert_eq!((rig.byte(DATA), rig.byte(OTHER)), (2, 0));
    rig.submit(2 | 3 << 4 | DOMAIN << 16, 0x2000);
    rig.write(3).unwrap();
    assert_eq!((rig.byte(DATA), rig.byte(OTHER)), (3, 0), "another page was invalidated");
    rig.submit(2 | 3 << 4 | (DOMAIN + 1) << 16, IOVA);
    rig.write(4).unwrap();
    assert_eq!((rig.byte(DATA), rig.byte(OTHER)), (4, 0), "another domain was invalidated");
    rig.submit(2 | 3 << 4 | DOMAIN << 16, IOVA | 1 << 6);
    rig.write(5).unwrap();
    assert_eq!((rig.byte(DATA), rig.byte(OTHER)), (4, 5));
}

#[test]
fn a_table_pointer_outlives_an_invalidation_of_leaves_only() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.write(1).unwrap();
    rig.store(page(MIDDLE), 0);
    rig.submit(2 | 3 << 4 | DOMAIN << 16, IOVA | 1 << 6);
    rig.write(2).expect("the table is still cached");
    rig.submit(2 | 3 << 4 | DOMAIN << 16, IOVA);
    assert_eq!(rig.write(3), Err(Reason(5)));
}

#[test]
fn a_context_stays_cached_until_it_is_invalidated() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.write(1).unwrap();
    rig.store(page(CONTEXT) + 0x10 * 16, 0);
    rig.submit(2 | 1 << 4, 0);
    rig.write(2).expect("the context is still cached");
    rig.submit(1 | 3 << 4 | DOMAIN << 16 | u64::from(DEVICE) << 32, 0);
    assert_eq!(rig.write(3), Err(Reason(2)));
}

#[test]
fn the_snoop_bit_is_reserved_without_snoop_control_and_above_leaves() {
    for (snoop_control, table, leaf, seen) in
        [(true, 0, 1, Ok(())), (false, 0, 1, Err(Reason(0xc))), (true, 1, 0, Err(Reason(0xc)))]
    {
        let rig = Rig::new(VtdConfig { snoop_control, ..VtdConfig::default() });
        rig.store(page(MIDDLE), page(LAST) | 3 | table << 11);
        rig.store(page(LAST) + 8, page(DATA) | 3 | leaf << 11);
        assert_eq!(rig.write(1), seen);
    }
}

#[test]
fn a_unit_that_does_not_snoop_sees_what_was_written_back() {
    let rig = Rig::new(VtdConfig { coherent: false, ..VtdConfig::default() });
    assert_eq!(rig.write(1), Err(Reason(1)));
    let cache = FakeCache::new(&rig.memory);
    cache.write_back(rig.memory.pages(0, 5).unwrap());
    assert_eq!(rig.write(1), Ok(()));
    rig.store(page(LAST) + 8, 0);
    rig.unit.registers().write64(0x20, page(ROOT));
    assert_eq!(rig.write(2), Ok(()));
}

#[test]
fn faults_are_recorded_once_and_cleared_by_writing_one() {
    let rig = Rig::new(VtdConfig::default());
    let registers = rig.unit.registers();
    assert_eq!(rig.unit.dma_read(DEVICE, 0x5123, &mut [0]), Err(Reason(6)));
    assert_eq!(rig.unit.dma_write(DEVICE, 0x6000, &[0]), Err(Reason(5)));
    assert_eq!(registers.read64(0x220), 0x5000, "the second fault of a source is dropped");
    assert_eq!(registers.read64(0x228), 1 << 63 | 1 << 62 | 6 << 32 | u64::from(DEVICE));
    assert_eq!(rig.unit.dma_write(0x18, 0x6000, &[0]), Err(Reason(2)));
    assert_eq!(registers.read32(0x34) & 3, 3, "no room for another source: overflow");
    registers.write32(0x22c, 1 << 31);
    registers.write32(0x34, 1);
    assert_eq!(registers.read32(0x34) & 3, 0);
}

#[test]
fn a_bad_descriptor_stops_the_queue_until_the_error_is_cleared() {
    let mut rig = Rig::new(VtdConfig::default());
    let registers = rig.unit.registers();
    rig.submit(0xf, 0);
    rig.submit(5 | 1 << 5 | 9 << 32, page(STATUS));
    assert_eq!((registers.read32(0x34) & 1 << 4, registers.read64(0x80)), (1 << 4, 0));
    assert_eq!(rig.byte(STATUS), 0);
    rig.store(page(QUEUE), 5 | 1 << 5);
    rig.store(page(QUEUE) + 8, page(STATUS) + 8);
    registers.write32(0x34, 1 << 4);
    assert_eq!((registers.read64(0x80), rig.byte(STATUS)), (32, 9));
}

#[test]
fn a_hung_bit_never_shows_and_a_slow_one_does_later() {
    let memory = FakeMemory::coherent(PhysAddr::new(BASE), 1);
    let unit = FakeVtd::new(memory, VtdConfig::default());
    let registers = unit.registers();
    unit.misbehave(|knobs| knobs.slow_status = 2);
    registers.write32(0x18, 1 << 30);
    assert_eq!([0; 3].map(|_: u32| registers.read32(0x1c)), [0, 0, 1 << 30]);
    unit.misbehave(|knobs| knobs.hang_status = 1 << 31);
    registers.write32(0x18, 1 << 31);
    assert_eq!([0; 4].map(|_: u32| registers.read32(0x1c)), [1 << 30; 4]);
}

#[test]
fn two_commands_at_once_are_noticed() {
    let memory = FakeMemory::coherent(PhysAddr::new(BASE), 1);
    let unit = FakeVtd::new(memory, VtdConfig::default());
    unit.registers().write32(0x18, 1 << 31 | 1 << 30);
    assert_eq!(unit.take_violations().len(), 2, "two bits at once, and translation without a root table");
}

#[test]
fn posted_writes_land_before_a_draining_invalidation_ends() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.unit.dma_write_posted(DEVICE, IOVA, &[7]).unwrap();
    rig.submit(2 | 1 << 4, 0);
    assert_eq!(rig.byte(DATA), 0, "an invalidation that does not drain leaves it on its way");
    rig.submit(2 | 1 << 4 | 1 << 6 | 1 << 7, 0);
    assert_eq!(rig.byte(DATA), 7);
}

#[test]
fn a_draining_invalidation_of_one_domain_leaves_the_writes_of_others_on_their_way() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.unit.dma_write_posted(DEVICE, IOVA, &[7]).unwrap();
    rig.submit(2 | 2 << 4 | 1 << 6 | 1 << 7 | (DOMAIN + 1) << 16, 0);
    assert_eq!((rig.byte(DATA), rig.unit.posted().len()), (0, 1));
    rig.submit(2 | 2 << 4 | 1 << 6 | 1 << 7 | DOMAIN << 16, 0);
    assert_eq!((rig.byte(DATA), rig.unit.posted().len()), (7, 0));
}

#[test]
fn a_restless_device_writes_again_behind_each_descriptor() {
    let mut rig = Rig::new(VtdConfig::default());
    rig.unit.misbehave(|knobs| knobs.restless = true);
    rig.write(1).unwrap();
    rig.submit(1 | 1 << 4, 0);
    let posted = rig.unit.posted();
    assert_eq!((posted.len(), posted[0].requester, posted[0].iova), (1, DEVICE, IOVA));
    assert_eq!(u64::from(posted[0].domain), DOMAIN);
    rig.store(page(CONTEXT) + 0x10 * 16, 0);
    rig.submit(1 | 1 << 4, 0);
    rig.submit(2 | 1 << 4 | 1 << 6 | 1 << 7, 0);
    assert_eq!(rig.unit.posted().len(), 0, "a blocked device writes no more");
}
