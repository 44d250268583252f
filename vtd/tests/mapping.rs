//! Mapping and unmapping: all or nothing, page sizes, snoop control.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{DATA, DEVICE, FAR, Guest, LARGE, Machine, PAGE, QuiesceAndAttach, VM, device, extent, spec};
use portcullis_fake::vtd::{Reason, VtdConfig};
use portcullis_hal::{Access, Iova, TableMemory, sync::Ordering};
use portcullis_iommu::{ContextHandle, Error};
use portcullis_vtd::{Coherency, ContextSpec};

const GIB: u64 = 1 << 30;
const INTERRUPTS: u64 = 0xfee0_0000;
const SNP: u64 = 1 << 11;
const READ_DENIED: Reason = Reason(6);
const WRITE_DENIED: Reason = Reason(5);

/// All entries of the driver's tables that lead to the page or large page at `physical`.
fn entries_to(machine: &Machine, physical: u64) -> Vec<u64> {
    let cells = machine.memory.pages(1, machine.table_pages - 1).unwrap();
    let values = cells.iter().map(|cell| cell.load(Ordering::Relaxed));
    values.filter(|value| value & 0x000f_ffff_ffff_f000 == physical && value & 3 != 0).collect()
}

#[test]
fn f18_a_map_that_misses_any_page_changes_nothing() {
    // Over the end of a 1 GiB entry: a level-2 table and a leaf table on each side.
    let (iova, bytes) = (GIB - PAGE, 2 * PAGE);
    let mut missing = Vec::new();
    for table_pages in 6..12 {
        let mut machine = Machine::usual();
        machine.table_pages = table_pages;
        let iommu = machine.iommu();
        let guest = Guest::new(&iommu);
        let free = guest.free_pages();
        let outcome = guest.map(iova, DATA, bytes);
        if outcome == Ok(()) {
            assert_eq!(free - guest.free_pages(), 4);
            break;
        }
        assert_eq!(outcome, Err(Error::NeedPages { count: 4 - free }));
        assert_eq!(guest.free_pages(), free);
        assert_eq!([iova, iova + PAGE].map(|iova| guest.lookup(iova)), [None, None]);
        assert_eq!(machine.write(iova, 1), Err(WRITE_DENIED));
        assert_eq!(guest.unmap(iova, bytes), Ok(0));
        missing.push(4 - free);
    }
    assert_eq!(missing, [4, 3, 2, 1]);
}

#[test]
fn f18_contexts_and_attachments_that_miss_a_page_change_nothing() {
    let mut machine = Machine::usual();
    // Bitmap, root table, queue, status, context table, root of the first context.
    machine.table_pages = 6;
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    assert_eq!(iommu.create_context(VM, &spec(39)).unwrap_err(), Error::NeedPages { count: 1 });
    let far = iommu.add_group(&[device(FAR)]).unwrap();
    iommu.grant(VM, far).unwrap();
    let mut claim = iommu.claim(VM, far).unwrap();
    assert_eq!(claim.quiesce_and_attach(guest.context), Err(Error::NeedPages { count: 1 }));
    assert_eq!(machine.unit.dma_write(FAR, 0, &[1]), Err(Reason(1)));
    guest.claim.detach().unwrap();
    iommu.destroy_context(guest.context).expect("the refused attach counts no user");
    assert_eq!(guest.free_pages(), 1);
    let next = iommu.create_context(VM, &spec(39)).expect("the failed attempt kept no domain ID");
    guest.claim.quiesce_and_attach(next).unwrap();
}

#[test]
fn f18_a_map_over_a_mapping_changes_nothing() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(LARGE + 5 * PAGE, DATA, PAGE).unwrap();
    guest.map(2 * LARGE, DATA, LARGE).unwrap();
    let free = guest.free_pages();
    for (iova, bytes, first) in [
        (LARGE + 5 * PAGE, PAGE, LARGE + 5 * PAGE),
        (0, 2 * LARGE, LARGE + 5 * PAGE),
        (2 * LARGE + PAGE, PAGE, 2 * LARGE + PAGE),
        (LARGE + 6 * PAGE, LARGE, 2 * LARGE),
    ] {
        let in_the_way = Error::AlreadyMapped { iova: Iova::new(first) };
        assert_eq!(guest.map(iova, DATA + PAGE, bytes), Err(in_the_way));
    }
    assert_eq!(guest.free_pages(), free);
    assert_eq!([0, LARGE, LARGE + 6 * PAGE].map(|iova| guest.lookup(iova)), [None; 3]);
    assert_eq!(guest.lookup(LARGE + 5 * PAGE), Some(DATA));
    assert_eq!(guest.unmap(0, 4 * LARGE), Ok(PAGE + LARGE));
}

/// All that f19 refuses, on pages for which tables may exist or not.
fn refuses_what_cannot_be_mapped(guest: &Guest<'_>) {
    let free = guest.free_pages();
    let misaligned = |value| Err(Error::Misaligned { value });
    let outside = |iova, bytes| Err(Error::OutsideAperture { iova: Iova::new(iova), bytes });
    assert_eq!(guest.map(0x10, DATA, PAGE), misaligned(0x10));
    assert_eq!(guest.map(0, DATA + 8, PAGE), misaligned(DATA + 8));
    assert_eq!(guest.map(0, DATA, PAGE + 1), misaligned(PAGE + 1));
    assert_eq!(guest.unmap(0x10, PAGE).map(drop), misaligned(0x10));
    assert_eq!(guest.unmap(0, 100).map(drop), misaligned(100));
    assert_eq!(guest.map(1 << 39, DATA, PAGE), outside(1 << 39, PAGE));
    assert_eq!(guest.unmap(1 << 39, PAGE).map(drop), outside(1 << 39, PAGE));
    assert_eq!(guest.map(!0 - PAGE + 1, DATA, 2 * PAGE), outside(!0 - PAGE + 1, 2 * PAGE));
    for (iova, bytes) in
        [(INTERRUPTS, PAGE), (INTERRUPTS - PAGE, 2 * PAGE), (INTERRUPTS + 0xf_f000, PAGE), (0, 4 * GIB)]
    {
        assert_eq!(guest.map(iova, DATA, bytes), outside(iova, bytes));
    }
    let wide = (1 << 40) - PAGE;
    assert_eq!(guest.map(0, wide, 2 * PAGE), Err(Error::PhysicalTooWide { address: wide }));
    assert_eq!(guest.map(0, 1 << 40, PAGE), Err(Error::PhysicalTooWide { address: 1 << 40 }));
    for access in [Access::empty(), Access::from_bits_retain(4)] {
        assert_eq!(guest.map_for(0, DATA, PAGE, access), Err(Error::NoAccess));
    }
    assert_eq!((guest.free_pages(), guest.lookup(0)), (free, None));
}

#[test]
fn f19_what_cannot_be_mapped_is_refused_with_the_value() {
    let mut machine = Machine::usual();
    machine.config.host_address_bits = 40;
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    refuses_what_cannot_be_mapped(&guest);
    let highest = (1 << 40) - PAGE;
    for iova in [PAGE, INTERRUPTS - PAGE, INTERRUPTS + 0x10_0000, (1 << 39) - PAGE] {
        guest.map(iova, highest, PAGE).unwrap();
    }
    refuses_what_cannot_be_mapped(&guest);
}

#[test]
fn f19_rights_are_what_was_asked_for() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map_for(0, DATA, PAGE, Access::READ).unwrap();
    guest.map_for(PAGE, DATA, PAGE, Access::WRITE).unwrap();
    assert_eq!((machine.write(0, 1), machine.read(0)), (Err(WRITE_DENIED), Ok(0)));
    assert_eq!((machine.write(PAGE, 1), machine.read(PAGE)), (Ok(()), Err(READ_DENIED)));
    let found = iommu.iova_to_phys(guest.context, Iova::new(0x123)).unwrap().unwrap();
    assert_eq!((found.0.as_u64(), found.1), (DATA + 0x123, Access::READ));
}

#[test]
fn f20_the_largest_pages_that_unit_and_alignment_allow_are_used() {
    // Pages of tables that mapping takes: none for 1 GiB entries in the root of three levels.
    for (large_pages, physical, bytes, tables) in [
        (0b11, GIB, GIB, 0),
        (0b01, GIB, GIB, 1),
        (0b00, GIB, 8 * LARGE, 9),
        (0b11, GIB + LARGE, 4 * LARGE, 2),
        (0b11, DATA, LARGE, 1),
        (0b11, DATA + PAGE, LARGE, 2),
        (0b11, GIB, GIB + LARGE, 1),
        (0b11, GIB, LARGE + PAGE, 2),
    ] {
        let machine = Machine::new(VtdConfig { large_pages, ..VtdConfig::default() });
        let iommu = machine.iommu();
        let guest = Guest::new(&iommu);
        let iova = if physical == GIB + LARGE { GIB - LARGE } else { GIB };
        let free = guest.free_pages();
        guest.map(iova, physical, bytes).unwrap();
        assert_eq!(free - guest.free_pages(), tables, "{bytes:#x} bytes at {physical:#x}");
        for offset in [0, 0x1234, bytes - 1] {
            assert_eq!(guest.lookup(iova + offset), Some(physical + offset));
        }
        assert_eq!((guest.lookup(iova - 1), guest.lookup(iova + bytes)), (None, None));
        assert_eq!(guest.unmap(iova, bytes), Ok(bytes));
        assert_eq!(guest.lookup(iova), None);
    }
}

#[test]
fn f20_where_a_leaf_table_exists_small_entries_are_used() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(LARGE, DATA, PAGE).unwrap();
    guest.unmap(LARGE, PAGE).unwrap();
    guest.map(LARGE, DATA, LARGE).unwrap();
    machine.write(2 * LARGE - 1, 9).unwrap();
    assert_eq!(machine.byte(DATA + LARGE - 1), 9);
    assert_eq!(guest.unmap(LARGE + PAGE, PAGE), Ok(PAGE), "it can be cut");
    assert_eq!(machine.write(LARGE + PAGE, 1), Err(WRITE_DENIED));
    machine.write(LARGE + 2 * PAGE, 1).unwrap();
}

fn coherent_context(machine: &Machine) -> (machine::Policy, ContextHandle) {
    let iommu = machine.iommu();
    let witness = iommu.driver().snoop_control().unwrap();
    let coherency = Coherency::Enforced(witness);
    let spec = ContextSpec { coherency, ..spec(39) };
    let context = iommu.create_context(VM, &spec).unwrap();
    (iommu, context)
}

#[test]
fn f22_every_leaf_of_an_enforcing_context_and_no_other_carries_snp() {
    let machine = Machine::usual();
    let (iommu, enforcing) = coherent_context(&machine);
    let mut guest = Guest::new(&iommu);
    for (context, expected) in [(guest.context, 0), (enforcing, SNP)] {
        guest.context = context;
        guest.claim.quiesce_and_attach(context).unwrap();
        guest.map(0, DATA + 5 * PAGE, PAGE).unwrap();
        guest.map(PAGE, DATA + 6 * PAGE, PAGE).expect("into the same table");
        guest.map(LARGE, DATA + LARGE, LARGE).unwrap();
        guest.map(GIB, GIB, GIB).unwrap();
        for physical in [DATA + 5 * PAGE, DATA + 6 * PAGE, DATA + LARGE, GIB] {
            let snoops: Vec<_> = entries_to(&machine, physical).iter().map(|entry| entry & SNP).collect();
            assert_eq!(snoops, [expected], "{physical:#x}");
        }
        machine.write(0, 1).expect("no entry that points to a table carries it");
        machine.write(LARGE, 1).unwrap();
        assert_eq!(guest.unmap(0, 2 * GIB), Ok(2 * PAGE + LARGE + GIB));
    }
}

#[test]
fn f22_no_witness_of_another_unit_opens_the_way_to_a_reserved_bit() {
    let other = Machine::usual();
    let witness = other.iommu().driver().snoop_control().unwrap();
    let machine = Machine::new(VtdConfig { snoop_control: false, ..VtdConfig::default() });
    let iommu = machine.iommu();
    assert_eq!(iommu.driver().snoop_control(), None);
    let spec = ContextSpec { coherency: Coherency::Enforced(witness), ..spec(39) };
    assert_eq!(iommu.create_context(VM, &spec).unwrap_err(), Error::NoSnoopControl);
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).expect("the reserved bit is clear");
}

#[test]
fn f23_coherency_is_refused_without_snoop_control() {
    let machine = Machine::new(VtdConfig { snoop_control: false, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    assert_eq!(iommu.enforce_cache_coherency(guest.context), Err(Error::NoSnoopControl));
}

#[test]
fn f23_coherency_is_refused_after_mappings_and_granted_before() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    for (iova, bytes) in [(0, PAGE), (GIB, LARGE), (5 * GIB, GIB)] {
        guest.map(iova, GIB, bytes).unwrap();
        assert_eq!(iommu.enforce_cache_coherency(guest.context), Err(Error::HasMappings));
        guest.unmap(iova, bytes).unwrap();
    }
    guest.map(3 * GIB, DATA, PAGE).expect("the refusal left nothing busy");
    assert_eq!(entries_to(&machine, DATA)[0] & SNP, 0);
    guest.unmap(3 * GIB, PAGE).unwrap();
    for _ in 0..2 {
        assert_eq!(iommu.enforce_cache_coherency(guest.context), Ok(()));
    }
    guest.map(0, DATA, PAGE).unwrap();
    assert_eq!(entries_to(&machine, DATA)[0] & SNP, SNP);
    assert_eq!(iommu.enforce_cache_coherency(guest.context), Ok(()), "all that is mapped is coherent");
    machine.write(0, 1).unwrap();
}

#[test]
fn f34_an_unmap_skips_holes_and_refuses_to_cut_a_large_page() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(3 * PAGE, DATA, PAGE).unwrap();
    guest.map(LARGE, DATA, LARGE).unwrap();
    guest.map(GIB + 7 * PAGE, DATA, 2 * PAGE).unwrap();
    for (iova, bytes, first) in
        [(LARGE, PAGE, LARGE), (0, LARGE + PAGE, LARGE), (2 * LARGE - PAGE, 4 * LARGE, 2 * LARGE - PAGE)]
    {
        let splits = Error::SplitsPage { iova: Iova::new(first) };
        assert_eq!(guest.unmap(iova, bytes), Err(splits));
        machine.write(LARGE, 1).unwrap();
        machine.write(3 * PAGE, 1).expect("what came before the large page is still there");
    }
    assert_eq!(guest.unmap(0, 2 * GIB), Ok(PAGE + LARGE + 2 * PAGE));
    assert_eq!(guest.unmap(0, 2 * GIB), Ok(0));
    assert_eq!(machine.write(LARGE, 2), Err(WRITE_DENIED));
}

#[test]
fn f35_a_context_takes_no_more_pages_than_its_limit() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let limited = |limit| ContextSpec { page_limit: Some(limit), ..spec(39) };
    assert_eq!(iommu.create_context(VM, &limited(0)).unwrap_err(), Error::NeedPages { count: 1 });
    let guest = Guest::with(&iommu, DEVICE, limited(4));
    let free = guest.free_pages();
    guest.map(0, DATA, PAGE).unwrap();
    assert_eq!(guest.map(GIB, DATA, PAGE), Err(Error::NeedPages { count: 1 }));
    guest.map(LARGE, DATA, PAGE).expect("one more leaf table");
    assert_eq!(guest.map(2 * LARGE, DATA, PAGE), Err(Error::NeedPages { count: 1 }));
    assert_eq!(free - guest.free_pages(), 3);
    guest.map(PAGE, DATA, PAGE).expect("no table is needed");
    let unlimited = iommu.create_context(VM, &spec(39)).unwrap();
    iommu.map(unlimited, Iova::new(0), extent(DATA, PAGE), Access::READ).unwrap();
}

#[test]
fn f35_a_map_that_the_pool_refuses_counts_no_pages() {
    let mut machine = Machine::usual();
    // Bitmap, root table, queue, status, context table, roots of two contexts, and one of the two tables.
    machine.table_pages = 8;
    let iommu = machine.iommu();
    let guest = Guest::with(&iommu, DEVICE, ContextSpec { page_limit: Some(3), ..spec(39) });
    let other = iommu.create_context(VM, &spec(39)).unwrap();
    assert_eq!(guest.map(0, DATA, PAGE), Err(Error::NeedPages { count: 1 }));
    iommu.destroy_context(other).unwrap();
    guest.map(0, DATA, PAGE).expect("the limit leaves room for both tables");
}
