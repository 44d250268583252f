//! Windows and what the bridge translates through them.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{GIB, KINDS, Machine, MachineClaim, PAGE, QuiesceAndAttach, VM, extent, range, spec};
use portcullis_fake::phb::{PhbFault, PhbKind};
use portcullis_hal::{Access, IoPageSize, Iova};
use portcullis_iommu::{ContextHandle, Error};
use portcullis_ppc_tce::ContextSpec;

const RID: u16 = 0x0100;
const HALF: u64 = 1 << 59;
/// In memory below the table pages.
const DATA: u64 = 0x5000;

fn sizes(kind: PhbKind) -> [IoPageSize; 4] {
    let common = [IoPageSize::SIZE_4K, IoPageSize::SIZE_64K];
    let [small, middle] = common;
    match kind {
        PhbKind::Phb3 => [small, middle, IoPageSize::SIZE_16M, IoPageSize::SIZE_256M],
        PhbKind::Phb4 | PhbKind::Phb5 => [small, middle, IoPageSize::SIZE_2M, IoPageSize::SIZE_1G],
    }
}

fn enter<'m>(machine: &'m Machine, spec: &ContextSpec) -> (ContextHandle, MachineClaim<'m>) {
    let context = machine.context(spec);
    let mut claim = machine.claim(&[RID]);
    claim.quiesce_and_attach(context).expect("an attach");
    (context, claim)
}

fn refused(kind: PhbKind, spec: &ContextSpec) -> Option<Error> {
    let machine = Machine::new(kind);
    let error = machine.iommu.create_context(VM, spec).err();
    assert_eq!(machine.free_pages(), machine::POOL_PAGES - 1, "a refusal kept pages");
    error
}

#[test]
fn e04_the_bridge_walks_tables_of_every_depth_and_page_size() {
    for kind in KINDS {
        for size in sizes(kind) {
            for levels in 1..=5 {
                let wide = u32::from(levels) * 9 + size.shift() > 59;
                let spec = ContextSpec { page_size: size, ..spec(levels, size.bytes() * 512) };
                if wide {
                    assert!(matches!(refused(kind, &spec), Some(Error::Unsupported { .. })));
                    continue;
                }
                let machine = Machine::new(kind);
                let (context, _claim) = enter(&machine, &spec);
                // The page at 0 is the only one that every size can have in this small memory.
                let iova = size.bytes() * 300;
                machine.store(8, 0x5a);
                machine.map(context, iova, 0, size.bytes()).expect("a map");
                assert_eq!(machine.read(RID, iova + 8), Ok(0x5a), "{kind:?} {levels} {size:?}");
                assert_eq!(machine.read(RID, iova - 1), Err(PhbFault::PageFault));
                assert_eq!(machine.read(RID, iova + size.bytes()), Err(PhbFault::PageFault));
                machine.assert_obedient();
            }
        }
    }
}

#[test]
fn e04_entries_that_follow_each_other_lead_to_pages_that_do() {
    for (size, levels) in [(IoPageSize::SIZE_4K, 2), (IoPageSize::SIZE_64K, 1), (IoPageSize::SIZE_64K, 2)] {
        let machine = Machine::new(PhbKind::Phb4);
        let (context, _claim) = enter(&machine, &ContextSpec { page_size: size, ..spec(levels, GIB) });
        let pages = 0x10_0000 / size.bytes();
        let iova = 509 * size.bytes();
        machine.map(context, iova, 0, 0x10_0000).expect("a map over the end of a table");
        for page in 0..pages {
            machine.store(page * size.bytes() + 8, (page % 251) as u8);
            assert_eq!(machine.read(RID, iova + page * size.bytes() + 8), Ok((page % 251) as u8));
        }
    }
}

#[test]
fn e14_each_generation_has_its_own_page_sizes() {
    for kind in KINDS {
        for shift in 12..=34 {
            let page_size = IoPageSize::from_shift(shift).expect("a size");
            let spec = ContextSpec { page_size, ..spec(1, page_size.bytes()) };
            let unsupported = Some(Error::Unsupported { value: u64::from(shift) });
            let expected = if sizes(kind).contains(&page_size) { None } else { unsupported };
            assert_eq!(Machine::new(kind).iommu.create_context(VM, &spec).err(), expected, "{kind:?}");
        }
    }
}

#[test]
fn e15_both_edges_of_a_window_can_be_used_in_either_half() {
    for (start, bytes) in [(0, GIB), (GIB, GIB), (3 * PAGE, PAGE), (HALF, GIB), (HALF + 7 * GIB, GIB / 2)] {
        let machine = Machine::new(PhbKind::Phb4);
        let wanted = ContextSpec { window_start: Iova::new(start), ..spec(3, bytes) };
        let (context, _claim) = enter(&machine, &wanted);
        assert_eq!(machine.iommu.aperture(context).expect("live").range, range(start, bytes));
        machine.store(DATA, 1);
        for page in [start, start + bytes - PAGE] {
            machine.map(context, page, DATA, PAGE).expect("an edge");
            assert_eq!(machine.read(RID, page), Ok(1), "{page:#x}");
            assert_eq!(machine.unmap(context, page, PAGE), Ok(PAGE));
        }
        let outside = |iova| Err(Error::OutsideAperture { iova: Iova::new(iova), bytes: PAGE });
        assert_eq!(machine.map(context, start + bytes, DATA, PAGE), outside(start + bytes));
        if let Some(below) = start.checked_sub(PAGE) {
            assert_eq!(machine.map(context, below, DATA, PAGE), outside(below));
        }
    }
}

#[test]
fn e15_a_window_that_is_none_is_refused() {
    let check = |start, bytes| {
        refused(PhbKind::Phb4, &ContextSpec { window_start: Iova::new(start), ..spec(5, bytes) })
    };
    let outside = |iova, bytes| Some(Error::OutsideAperture { iova: Iova::new(iova), bytes });
    for bytes in [0, 3 * PAGE, u64::MAX] {
        assert_eq!(check(0, bytes), Some(Error::Unsupported { value: bytes }));
    }
    assert_eq!(check(0, 2048), Some(Error::Misaligned { value: 2048 }));
    assert_eq!(check(12, PAGE), Some(Error::Misaligned { value: 12 | PAGE }));
    for (start, bytes) in [
        (HALF - PAGE, 2 * PAGE),
        (0, HALF * 2),
        (HALF * 2 - PAGE, 2 * PAGE),
        (HALF * 2, PAGE),
        (0xffff_ffff_ffff_f000, PAGE),
        (0xffff_ffff_ffff_f000, 2 * PAGE),
        (0, 1 << 63),
        (1 << 63, 1 << 63),
    ] {
        assert_eq!(check(start, bytes), outside(start, bytes), "{start:#x} {bytes:#x}");
    }
}

#[test]
fn e16_addresses_and_lengths_that_are_none_change_nothing() {
    let machine = Machine::new(PhbKind::Phb4);
    let (context, _claim) = enter(&machine, &spec(3, 8 * GIB));
    let free = machine.free_pages();
    let outside = |iova, bytes| Error::OutsideAperture { iova: Iova::new(iova), bytes };
    let bad = [
        (1, DATA, PAGE, Error::Misaligned { value: 1 }),
        (PAGE, DATA, PAGE + 1, Error::Misaligned { value: PAGE + 1 }),
        (PAGE, DATA + 8, PAGE, Error::Misaligned { value: DATA + 8 }),
        (8 * GIB, DATA, PAGE, outside(8 * GIB, PAGE)),
        (8 * GIB - PAGE, DATA, 2 * PAGE, outside(8 * GIB - PAGE, 2 * PAGE)),
        (HALF, DATA, PAGE, outside(HALF, PAGE)),
        (1 << 60, DATA, PAGE, outside(1 << 60, PAGE)),
        (u64::MAX - 0xfff, DATA, PAGE, outside(u64::MAX - 0xfff, PAGE)),
        (u64::MAX - 0xfff, 0, 1 << 63, outside(u64::MAX - 0xfff, 1 << 63)),
        (0xffff_0000, DATA, PAGE, outside(0xffff_0000, PAGE)),
        (0xffff_f000, DATA, PAGE, outside(0xffff_f000, PAGE)),
        (0xfffe_f000, DATA, 2 * PAGE, outside(0xfffe_f000, 2 * PAGE)),
    ];
    for (iova, phys, bytes, error) in bad {
        assert_eq!(machine.map(context, iova, phys, bytes), Err(error), "{iova:#x} {bytes:#x}");
    }
    for (iova, bytes) in [(1, PAGE), (8 * GIB, PAGE), (8 * GIB - PAGE, 2 * PAGE), (0xffff_0000, PAGE)] {
        assert!(machine.unmap(context, iova, bytes).is_err(), "{iova:#x} {bytes:#x}");
    }
    assert_eq!(machine.free_pages(), free, "a refused call took a page");
    machine.map(context, 0xfffe_f000, DATA, PAGE).expect("just below the MSI range");
    machine.map(context, 0x1_0000_0000, DATA, PAGE).expect("just above it");
}

#[test]
fn e17_a_device_reaches_nothing_beyond_its_tables_or_past_them() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (context, _claim) = enter(&machine, &spec(2, GIB));
        machine.map(context, 0, DATA, PAGE).expect("a map");
        assert_eq!(machine.read(RID, GIB), Err(PhbFault::BeyondWindow));
        assert_eq!(machine.read(RID, HALF), Err(PhbFault::InvalidTve), "the other window");
        assert_eq!(machine.read(RID, HALF | DATA), Err(PhbFault::InvalidTve), "bypass");
        assert_eq!(machine.read(RID, 1 << 60), Err(PhbFault::NotDma));
        assert_eq!(machine.write(RID, 0xffff_0000, 1), Err(PhbFault::NotDma));
        assert_eq!(machine.read(RID + 1, 0), Err(PhbFault::InvalidTve), "a device that was given nothing");
    }
}

#[test]
fn e18_a_real_address_that_is_too_wide_is_refused() {
    for (kind, bits) in [(PhbKind::Phb3, 50), (PhbKind::Phb4, 56), (PhbKind::Phb5, 56)] {
        let machine = Machine::new(kind);
        let context = machine.context(&spec(2, GIB));
        let limit = 1_u64 << bits;
        machine.map(context, 0, limit - PAGE, PAGE).expect("the last page");
        for (phys, bytes) in [(limit, PAGE), (limit - PAGE, 2 * PAGE), (u64::MAX - 0xfff, PAGE)] {
            let address = phys + (bytes - 1);
            let wide = Err(Error::PhysicalTooWide { address });
            assert_eq!(machine.map(context, PAGE, phys, bytes), wide, "{kind:?}");
        }
        assert_eq!(machine.iommu.iova_to_phys(context, Iova::new(PAGE)), Ok(None));
    }
}

#[test]
fn e19_a_device_can_do_what_its_mapping_says_and_nothing_else() {
    let machine = Machine::new(PhbKind::Phb4);
    let (context, _claim) = enter(&machine, &spec(2, GIB));
    let iommu = &machine.iommu;
    for (page, access) in [(1, Access::READ), (2, Access::WRITE), (3, Access::all())] {
        let iova = Iova::new(page * PAGE);
        iommu.map(context, iova, extent(DATA, PAGE), access).expect("a map");
        let there = iommu.iova_to_phys(context, Iova::new(page * PAGE + 5)).expect("live");
        assert_eq!(there.map(|(phys, access)| (phys.as_u64(), access)), Some((DATA + 5, access)));
        let denied = Err(PhbFault::AccessFault);
        let read = machine.read(RID, page * PAGE).map(|_| ());
        assert_eq!(read, if access.contains(Access::READ) { Ok(()) } else { denied });
        let written = machine.write(RID, page * PAGE, 1);
        assert_eq!(written, if access.contains(Access::WRITE) { Ok(()) } else { denied });
    }
    let nothing = iommu.map(context, Iova::new(9 * PAGE), extent(DATA, PAGE), Access::empty());
    assert_eq!(nothing, Err(Error::NoAccess));
    assert_eq!(iommu.iova_to_phys(context, Iova::new(9 * PAGE)), Ok(None));
}

#[test]
fn e37_coherency_is_granted_any_number_of_times() {
    let machine = Machine::new(PhbKind::Phb4);
    let (context, _claim) = enter(&machine, &spec(2, GIB));
    assert_eq!(machine.iommu.enforce_cache_coherency(context), Ok(()));
    machine.map(context, 0, DATA, PAGE).expect("a map");
    assert_eq!(machine.iommu.enforce_cache_coherency(context), Ok(()));
}
