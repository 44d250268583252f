//! Callers that pass any number, in any order.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::collections::BTreeMap;

use machine::{GIB, Machine, PAGE, VM, spec};
use portcullis_fake::phb::PhbKind;
use portcullis_hal::{Access, IoPageSize, Iova, IovaRange, PhysAddr, PhysRange};
use portcullis_iommu::{ContextHandle, Error};
use portcullis_ppc_tce::{ContextSpec, Geometry, Table, Tce};

/// Marsaglia's xorshift: repeatable, and good enough to pick numbers.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A power of two, or a neighbour, or nothing but bits.
    fn edge(&mut self) -> u64 {
        let power = 1_u64 << self.below(64);
        match self.below(6) {
            0 => power.wrapping_sub(1),
            1 => power.wrapping_add(1),
            2 => u64::MAX - self.below(0x2000),
            3 => self.next(),
            4 => self.below(0x4000),
            _ => power,
        }
    }
}

#[test]
fn e38_any_spec_is_served_or_refused() {
    let mut numbers = Numbers(0x1234_5678_9abc_def1);
    let machine = Machine::new(PhbKind::Phb5);
    let mut made = 0;
    for _ in 0..20_000 {
        let spec = ContextSpec {
            page_size: IoPageSize::from_shift(12 + numbers.below(23) as u8).expect("a size"),
            window_start: Iova::new(numbers.edge() * numbers.below(2)),
            window_bytes: numbers.edge(),
            levels: numbers.below(8) as u8,
            page_limit: (numbers.below(4) == 0).then(|| numbers.edge() as u32),
        };
        let Ok(context) = machine.iommu.create_context(VM, &spec) else { continue };
        made += 1;
        let aperture = machine.iommu.aperture(context).expect("live").range;
        assert_eq!((aperture.start(), aperture.bytes()), (spec.window_start, spec.window_bytes));
        machine.iommu.destroy_context(context).expect("unused");
    }
    assert!(made > 50, "only {made} specs were served");
    assert_eq!(machine.free_pages(), machine::POOL_PAGES - 1);
}

/// What should be mapped: page of the window to page of memory.
type Ledger = BTreeMap<u64, u64>;

fn map_any(machine: &Machine, context: ContextHandle, numbers: &mut Numbers, ledger: &mut Ledger) {
    let near = numbers.below(2) == 0;
    let (iova, phys, bytes) = if near {
        (numbers.below(4096) * PAGE, numbers.below(4096) * PAGE, (1 + numbers.below(600)) * PAGE)
    } else {
        (numbers.edge(), numbers.edge(), numbers.edge())
    };
    if PhysRange::new(PhysAddr::new(phys), bytes).is_err() {
        return;
    }
    if machine.map(context, iova, phys, bytes).is_ok() {
        for page in 0..bytes / PAGE {
            let before = ledger.insert(iova / PAGE + page, phys / PAGE + page);
            assert_eq!(before, None, "a mapping was replaced at {iova:#x}");
        }
    }
}

fn unmap_any(machine: &Machine, context: ContextHandle, numbers: &mut Numbers, ledger: &mut Ledger) {
    let near = numbers.below(4) != 0;
    let (iova, bytes) = if near {
        (numbers.below(4096) * PAGE, (1 + numbers.below(900)) * PAGE)
    } else {
        (numbers.edge(), numbers.edge())
    };
    let Ok(range) = IovaRange::new(Iova::new(iova), bytes) else { return };
    if let Ok(unmapped) = machine.iommu.unmap(context, range) {
        let pages = iova / PAGE..iova / PAGE + bytes / PAGE;
        let gone: Vec<_> = ledger.range(pages).map(|(&page, _)| page).collect();
        assert_eq!(unmapped, gone.len() as u64 * PAGE);
        gone.iter().for_each(|page| {
            ledger.remove(page);
        });
    }
}

#[test]
fn e38_whatever_is_mapped_and_unmapped_the_tables_hold_what_was_said() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let machine = Machine::with_pool(PhbKind::Phb4, 24);
    let context = machine.context(&spec(3, GIB));
    let mut ledger = Ledger::new();
    for round in 0..3_000 {
        if numbers.below(2) == 0 {
            map_any(&machine, context, &mut numbers, &mut ledger);
        } else {
            unmap_any(&machine, context, &mut numbers, &mut ledger);
        }
        for page in (0..5000).step_by(if round % 100 == 0 { 1 } else { 97 }) {
            let found = machine.iommu.iova_to_phys(context, Iova::new(page * PAGE)).expect("live");
            let said = ledger.get(&page).map(|&phys| (PhysAddr::new(phys * PAGE), Access::all()));
            assert_eq!(found, said, "round {round}, page {page:#x}");
        }
    }
    assert!(ledger.len() > 10, "hardly anything was mapped");
    for _ in 0..1000 {
        let iova = numbers.edge();
        let outside = iova >= GIB;
        let found = machine.iommu.iova_to_phys(context, Iova::new(iova)).expect("live");
        assert!(!(outside && found.is_some()), "{iova:#x}");
    }
}

#[test]
fn e38_any_index_and_any_entry_can_be_exchanged_or_is_refused() {
    let mut numbers = Numbers(77);
    let memory = machine::hardware(PhbKind::Phb4, 24).0;
    let pool = machine::pool(&memory, 24);
    let free = pool.free_pages();
    let geometry = Geometry::covering(IoPageSize::SIZE_4K, 4, GIB).expect("a geometry");
    let table = Table::new(&pool, geometry, u32::MAX).expect("a tree");
    let mut said = BTreeMap::new();
    for _ in 0..20_000 {
        let (index, entry) = (numbers.edge(), Tce::from_memory(numbers.edge()));
        match table.exchange(&pool, index, entry) {
            Ok(old) if entry.is_valid() || table.lookup(&pool, index) == entry => {
                assert_eq!(old, said.insert(index, entry).unwrap_or(Tce::EMPTY));
            }
            Ok(old) => assert_eq!(old, Tce::EMPTY),
            Err(Error::Unsupported { value }) => assert!(value == index && index >= geometry.entries()),
            Err(error) => assert!(matches!(error, Error::NeedPages { .. }), "{error:?}"),
        }
        if let Ok(entries) = table.entries(numbers.edge(), numbers.edge()) {
            assert_eq!(table.map(&pool, entries, Tce::EMPTY), Err(Error::NoAccess));
        }
    }
    assert!(said.iter().all(|(&index, &entry)| table.lookup(&pool, index) == entry));
    table.dissolve(&pool);
    assert_eq!(pool.free_pages(), free);
}
