//! Registered guest memory, over a driver whose tables are a map of pages.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod pages;

use std::sync::{atomic::Ordering, mpsc};

use pages::{DEAD, LARGE, OTHER, PAGE, Policy, VM, context, extent, guest, iovas, live, map, policy};
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova, PhysAddr};
use portcullis_iommu::{ContextHandle, Error, PageSizes, REGIONS, RegionHandle};

/// Where the host memory of the first region begins.
const HOST: u64 = 1 << 30;

/// A region of 8 MiB at guest address 2 MiB, and a context.
fn usual(iommu: &Policy) -> (RegionHandle, ContextHandle) {
    let region = iommu.register_memory(VM, guest(LARGE, 4 * LARGE), extent(HOST, 4 * LARGE));
    (region.expect("a region"), context(iommu, VM))
}

fn mapped(iommu: &Policy, region: RegionHandle) -> u64 {
    iommu.region(VM, region).expect("a live region").mapped
}

#[test]
fn c01_ranges_that_are_misaligned_or_unequal_are_refused() {
    let iommu = policy();
    let register = |start, bytes, host, host_bytes| {
        iommu.register_memory(VM, guest(start, bytes), extent(host, host_bytes)).err()
    };
    assert_eq!(register(0x800, PAGE, HOST, PAGE), Some(Error::Misaligned { value: 0x800 }));
    assert_eq!(register(0, PAGE, HOST + 1, PAGE), Some(Error::Misaligned { value: HOST + 1 }));
    assert_eq!(register(0, 0x1800, HOST, 0x1800), Some(Error::Misaligned { value: 0x1800 }));
    let differ = Error::SizesDiffer { guest: PAGE, host: 2 * PAGE };
    assert_eq!(register(0, PAGE, HOST, 2 * PAGE), Some(differ));
    assert_eq!(register(0, 2 * PAGE, HOST, 2 * PAGE), None, "what was refused left nothing behind");
}

#[test]
fn c01_an_overlap_is_refused_by_the_name_of_the_region_in_the_way() {
    let iommu = policy();
    let register = |vm, start, host, pages| {
        iommu.register_memory(vm, guest(start, pages * PAGE), extent(host, pages * PAGE))
    };
    let first = register(VM, 0x10_000, HOST, 4).expect("a region");
    let second = register(OTHER, 0x10_000, HOST + 4 * PAGE, 4).expect("the same addresses in another VM");
    let in_the_way = |region| Err(Error::Overlaps { region });
    assert_eq!(register(VM, 0x13_000, 0, 1), in_the_way(first), "guest addresses, last page");
    assert_eq!(register(VM, 0xf_000, 0, 2), in_the_way(first), "guest addresses, first page");
    assert_eq!(register(VM, 0, 0, 64), in_the_way(first), "around it");
    assert_eq!(register(VM, 0x10_000, HOST, 4), in_the_way(first), "the same again");
    assert_eq!(register(OTHER, 0, HOST + 3 * PAGE, 1), in_the_way(first), "another VM's host memory");
    assert_eq!(register(VM, 0, HOST + 7 * PAGE, 2), in_the_way(second), "another VM's host memory");
    register(VM, 0x14_000, HOST + 8 * PAGE, 1).expect("right behind both");
    register(VM, 0xf_000, HOST - PAGE, 1).expect("right before both");
}

#[test]
fn c01_a_full_table_refuses_and_has_room_again() {
    let iommu = policy();
    let register = |number: u64| {
        let at = number * 2 * PAGE;
        iommu.register_memory(VM, guest(at, PAGE), extent(HOST + at, PAGE))
    };
    let regions: Vec<_> = (0..REGIONS as u64).map(|number| register(number).expect("room")).collect();
    assert_eq!(register(999), Err(Error::Full { capacity: REGIONS }));
    iommu.unregister_memory(VM, regions[7]).expect("nothing is mapped");
    let again = register(999).expect("room again");
    assert_eq!((again.slot(), again == regions[7]), (regions[7].slot(), false));
    // Every region is found, wherever it stands in the orders.
    let context = context(&iommu, VM);
    for number in (0..REGIONS as u64).chain([999]).filter(|&number| number != 7) {
        map(&iommu, context, number * PAGE, number * 2 * PAGE, PAGE).expect("registered");
        let found = iommu.iova_to_phys(context, Iova::new(number * PAGE)).expect("live");
        assert_eq!(found, Some((PhysAddr::new(HOST + number * 2 * PAGE), Access::all())));
    }
    assert_eq!(iommu.unmap(context, iovas(0, 1000 * PAGE)), Ok(REGIONS as u64 * PAGE));
    for region in regions.into_iter().filter(|&region| region.slot() != again.slot()).chain([again]) {
        assert_eq!(mapped(&iommu, region), 0);
        iommu.unregister_memory(VM, region).expect("all counts came back");
    }
}

#[test]
fn c02_a_region_has_pages_as_large_as_all_its_alignments_allow() {
    let iommu = policy();
    let page_size = |start, host, bytes| {
        let region = iommu.register_memory(VM, guest(start, bytes), extent(host, bytes)).expect("a region");
        let page_size = iommu.region(VM, region).expect("live").page_size;
        iommu.unregister_memory(VM, region).expect("unused");
        page_size
    };
    let size = |shift| IoPageSize::from_shift(shift).expect("a size");
    assert_eq!(page_size(0, 0, 1 << 40), size(34), "no page is larger");
    assert_eq!(page_size(1 << 30, 1 << 30, 1 << 30), size(30));
    assert_eq!(page_size(1 << 16, 1 << 30, 1 << 30), size(16), "guest address");
    assert_eq!(page_size(1 << 30, 1 << 21, 1 << 30), size(21), "host address");
    assert_eq!(page_size(1 << 30, 1 << 30, 3 << 12), size(12), "length");
}

#[test]
fn c02_a_context_of_larger_pages_is_refused() {
    let iommu = policy();
    let small = iommu.register_memory(VM, guest(0, LARGE + PAGE), extent(0, LARGE + PAGE)).expect("a region");
    let at = 1 << 30;
    let large = iommu.register_memory(VM, guest(at, LARGE), extent(at, LARGE)).expect("a region");
    let context = iommu.create_context(VM, &PageSizes::SIZE_2M).expect("a context");
    let refused = Err(Error::PageTooLarge { page_size: IoPageSize::SIZE_4K });
    assert_eq!(map(&iommu, context, 0, 0, LARGE), refused);
    assert_eq!(mapped(&iommu, small), 0);
    assert_eq!(map(&iommu, context, 0, at, LARGE), Ok(()));
    assert_eq!(mapped(&iommu, large), 512);
}

#[test]
fn c03_a_mapping_lies_inside_one_region_of_the_contexts_owner() {
    let iommu = policy();
    let (first, context) = usual(&iommu);
    let next = 5 * LARGE;
    iommu.register_memory(VM, guest(next, LARGE), extent(HOST + 4 * LARGE, LARGE)).expect("a neighbour");
    iommu.register_memory(OTHER, guest(0, LARGE), extent(0, LARGE)).expect("another VM's");
    let refused = |start, bytes| {
        let range = guest(start, bytes);
        assert_eq!(map(&iommu, context, 0, start, bytes), Err(Error::NotRegistered { guest: range }));
    };
    refused(LARGE - PAGE, PAGE);
    refused(LARGE - PAGE, 2 * PAGE);
    refused(next - PAGE, 2 * PAGE);
    refused(next + LARGE, PAGE);
    refused(next + LARGE - PAGE, 2 * PAGE);
    refused(0, PAGE);
    refused(u64::MAX - 0xfff, PAGE);
    assert_eq!(map(&iommu, context, 0, LARGE + 1, PAGE), Err(Error::Misaligned { value: LARGE + 1 }));
    assert_eq!(map(&iommu, context, 0, LARGE, 100), Err(Error::Misaligned { value: 100 }));
    assert_eq!(mapped(&iommu, first), 0);
    for (iova, start, host) in [(0, next - PAGE, HOST + 4 * LARGE - PAGE), (PAGE, next, HOST + 4 * LARGE)] {
        map(&iommu, context, iova, start, PAGE).expect("registered");
        let found = iommu.iova_to_phys(context, Iova::new(iova)).expect("live");
        assert_eq!(found, Some((PhysAddr::new(host), Access::all())));
    }
}

#[test]
fn c04_counts_are_in_units_of_4_kib_whatever_the_page_size() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, 0, LARGE, 2 * LARGE).expect("two large pages");
    map(&iommu, context, 4 * LARGE, LARGE, 3 * PAGE).expect("three small pages, mapped twice now");
    assert_eq!(mapped(&iommu, region), 2 * 512 + 3);
    assert_eq!(iommu.unmap(context, iovas(PAGE, PAGE)), Err(Error::SplitsPage { iova: Iova::new(0) }));
    assert_eq!(mapped(&iommu, region), 2 * 512 + 3);
    assert_eq!(iommu.unmap(context, iovas(4 * LARGE + PAGE, PAGE)), Ok(PAGE));
    assert_eq!(iommu.unmap(context, iovas(4 * LARGE + PAGE, PAGE)), Ok(0), "a hole counts nothing");
    assert_eq!(mapped(&iommu, region), 2 * 512 + 2);
    assert_eq!(iommu.unmap(context, iovas(LARGE, LARGE)), Ok(LARGE));
    assert_eq!(mapped(&iommu, region), 512 + 2);
    assert_eq!(iommu.unmap(context, iovas(0, 8 * LARGE)), Ok(LARGE + 2 * PAGE));
    assert_eq!(mapped(&iommu, region), 0);
}

#[test]
fn c04_an_unmap_over_neighbouring_regions_counts_each() {
    let iommu = policy();
    let context = context(&iommu, VM);
    // Neighbours in host memory, in the other order in the guest's, so that pages join over the seams.
    let regions: Vec<_> = (0..5)
        .map(|number| {
            let (at, bytes) = ((4 - number) << 30, (number + 1) * PAGE);
            let host = HOST + (0..number).map(|before| (before + 1) * PAGE).sum::<u64>();
            let region = iommu.register_memory(VM, guest(at, bytes), extent(host, bytes)).expect("a region");
            map(&iommu, context, host - HOST, at, bytes).expect("registered");
            region
        })
        .collect();
    let counts = || regions.iter().map(|&region| mapped(&iommu, region)).collect::<Vec<_>>();
    assert_eq!(counts(), [1, 2, 3, 4, 5]);
    assert_eq!(iommu.unmap(context, iovas(2 * PAGE, 6 * PAGE)), Ok(6 * PAGE));
    assert_eq!(counts(), [1, 1, 0, 2, 5]);
    assert_eq!(iommu.unmap(context, iovas(0, 64 * PAGE)), Ok(9 * PAGE));
    assert_eq!(counts(), [0; 5]);
}

#[test]
fn c04_a_refused_mapping_gives_its_counts_back_and_a_destroyed_context_too() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, PAGE, LARGE, PAGE).expect("registered");
    let taken = Err(Error::AlreadyMapped { iova: Iova::new(PAGE) });
    assert_eq!(map(&iommu, context, 0, LARGE, 4 * PAGE), taken);
    assert_eq!(mapped(&iommu, region), 1);
    map(&iommu, context, LARGE, LARGE, LARGE).expect("registered");
    iommu.destroy_context(context).expect("nobody uses it");
    assert_eq!(iommu.unregister_memory(VM, region), Ok(()));
}

#[test]
fn c04_counts_are_taken_before_the_driver_stores_anything() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    let (entered, stopped) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    *iommu.driver().on_map.lock().unwrap() = Some(Box::new(move || {
        entered.send(()).unwrap();
        wait.recv().unwrap();
    }));
    std::thread::scope(|scope| {
        scope.spawn(|| map(&iommu, context, 0, LARGE, 3 * PAGE).expect("registered"));
        stopped.recv().unwrap();
        let ended = iommu.unregister_memory(VM, region);
        go.send(()).unwrap();
        assert_eq!(ended, Err(Error::StillMapped { pages: 3 }));
    });
}

#[test]
fn c04_a_mapping_that_hardware_did_not_confirm_stands_and_counts() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    iommu.driver().deaf.store(true, Ordering::Relaxed);
    assert_eq!(map(&iommu, context, 0, LARGE, PAGE), Err(DEAD));
    assert_eq!((mapped(&iommu, region), live(&iommu, context, 4, HOST..HOST + LARGE)), (1, 1));
    assert_eq!(iommu.unmap(context, iovas(0, PAGE)), Ok(PAGE));
    assert_eq!(mapped(&iommu, region), 0);
}

#[test]
fn c05_unknown_stale_and_foreign_regions_are_not_unregistered() {
    let iommu = policy();
    let (region, _) = usual(&iommu);
    assert_eq!(iommu.unregister_memory(OTHER, region), Err(Error::OwnedBy { owner: VM }));
    assert_eq!(iommu.region(OTHER, region), Err(Error::OwnedBy { owner: VM }));
    let stale = Error::Stale { slot: region.slot() };
    assert_eq!(policy().unregister_memory(VM, region), Err(stale), "a region of another machine");
    assert_eq!(iommu.unregister_memory(VM, region), Ok(()));
    assert_eq!(iommu.unregister_memory(VM, region), Err(stale));
    let (again, _) = usual(&iommu);
    assert_eq!((again.slot(), again == region), (region.slot(), false));
    assert_eq!(iommu.unregister_memory(VM, region), Err(stale), "its slot is used again");
    assert_eq!(iommu.region(VM, region), Err(stale));
}

#[test]
fn c05_a_mapped_region_is_not_unregistered_and_stays_usable() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, 0, LARGE, LARGE + 5 * PAGE).expect("registered");
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::StillMapped { pages: 517 }));
    map(&iommu, context, 4 * LARGE, LARGE, PAGE).expect("nothing changed");
    assert_eq!(iommu.unmap(context, iovas(0, 8 * LARGE)), Ok(LARGE + 6 * PAGE));
    assert_eq!(iommu.unregister_memory(VM, region), Ok(()));
    let range = guest(LARGE, PAGE);
    assert_eq!(map(&iommu, context, 0, LARGE, PAGE), Err(Error::NotRegistered { guest: range }));
}

#[test]
fn c06_counts_come_back_only_when_the_invalidation_is_confirmed() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, 0, LARGE, 3 * PAGE).expect("registered");
    let (entered, stopped) = mpsc::channel();
    let (go, wait) = mpsc::channel::<()>();
    *iommu.driver().on_flush.lock().unwrap() = Some(Box::new(move || {
        entered.send(()).unwrap();
        wait.recv().unwrap();
    }));
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(iommu.unmap(context, iovas(0, 2 * PAGE)), Ok(2 * PAGE)));
        stopped.recv().unwrap();
        let (ended, left) =
            (iommu.unregister_memory(VM, region), live(&iommu, context, 4, HOST..HOST + LARGE));
        go.send(()).unwrap();
        assert_eq!((ended, left), (Err(Error::StillMapped { pages: 3 }), 1), "the entries are gone");
    });
    assert_eq!(mapped(&iommu, region), 1);
}

#[test]
fn c06_what_hardware_never_confirmed_is_never_given_back() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, 0, LARGE, 2 * PAGE).expect("registered");
    iommu.driver().dead.store(true, Ordering::Relaxed);
    assert_eq!(iommu.unmap(context, iovas(0, PAGE)), Err(DEAD));
    iommu.driver().dead.store(false, Ordering::Relaxed);
    assert_eq!(iommu.unmap(context, iovas(0, 2 * PAGE)), Ok(PAGE));
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::StillMapped { pages: 1 }));
    assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined));
    assert_eq!(iommu.release_memory(VM), Err(Error::StillMapped { pages: 1 }));
}

#[test]
fn c06_a_context_whose_end_hardware_did_not_confirm_keeps_its_memory() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    map(&iommu, context, 0, LARGE, LARGE).expect("registered");
    iommu.driver().dead.store(true, Ordering::Relaxed);
    assert_eq!(iommu.destroy_context(context), Err(DEAD));
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::StillMapped { pages: 512 }));
}

#[test]
fn c08_of_a_vm_that_goes_nothing_new_is_mapped_and_all_is_released() {
    let iommu = policy();
    let (region, context) = usual(&iommu);
    iommu.register_memory(VM, guest(1 << 40, PAGE), extent(0, PAGE)).expect("a second one");
    let other = iommu.register_memory(OTHER, guest(0, PAGE), extent(PAGE, PAGE)).expect("another VM's");
    map(&iommu, context, 0, LARGE, LARGE).expect("registered");
    assert_eq!(iommu.release_memory(VM), Err(Error::StillMapped { pages: 512 }));
    let range = guest(LARGE, PAGE);
    assert_eq!(map(&iommu, context, LARGE, LARGE, PAGE), Err(Error::NotRegistered { guest: range }));
    assert_eq!(mapped(&iommu, region), 512, "what is mapped stays");
    iommu.destroy_context(context).expect("nobody uses it");
    assert_eq!(iommu.release_memory(VM), Ok(()));
    assert_eq!(iommu.region(VM, region), Err(Error::Stale { slot: region.slot() }));
    assert_eq!(iommu.region(OTHER, other).map(|info| info.guest), Ok(guest(0, PAGE)));
    iommu.register_memory(OTHER, guest(PAGE, 2 * LARGE), extent(HOST, 2 * LARGE)).expect("free memory");
}

#[test]
fn c09_a_context_maps_regions_or_bare_extents_never_both() {
    let iommu = policy();
    let (region, by_regions) = usual(&iommu);
    let by_extents = context(&iommu, VM);
    let bare = |context| iommu.map(context, Iova::new(LARGE), extent(HOST, PAGE), Access::all());
    map(&iommu, by_regions, 0, LARGE, PAGE).expect("registered");
    bare(by_extents).expect("the first call decides");
    assert_eq!(bare(by_regions), Err(Error::OtherBacking));
    assert_eq!(map(&iommu, by_extents, 0, LARGE, PAGE), Err(Error::OtherBacking));
    assert_eq!(iommu.unmap(by_extents, iovas(0, 2 * LARGE)), Ok(PAGE));
    assert_eq!(mapped(&iommu, region), 1, "a bare extent in the same memory was never counted");
    iommu.destroy_context(by_regions).expect("unused");
    bare(context(&iommu, VM)).expect("another context decides anew");
}

#[test]
#[cfg_attr(miri, ignore = "maps whole large pages, entry by entry: too long")]
fn c10_any_numbers_are_served_or_refused() {
    let iommu = policy();
    let context = context(&iommu, VM);
    let whole = iommu.register_memory(VM, guest(0, 1 << 63), extent(1 << 63, 1 << 63)).expect("half of all");
    let top = 1 << 63;
    let last = GuestPhysRange::new(GuestPhysAddr::new(top), top).expect("up to the last byte");
    iommu.register_memory(VM, last, extent(0, top)).expect("the other half");
    let edges: Vec<u64> =
        (0..64).flat_map(|bit| [(1_u64 << bit) - 1, 1 << bit, (1 << bit) + 1, u64::MAX << bit]).collect();
    let mut served = 0;
    for &start in &edges {
        for &bytes in &edges {
            let Ok(range) = GuestPhysRange::new(GuestPhysAddr::new(start), bytes) else { continue };
            // A table of pages would be too long for larger ones.
            if bytes > 8 * LARGE && start % 3 != 0 {
                continue;
            }
            let iova = if bytes > 8 * LARGE { u64::MAX } else { start % (1 << 40) };
            if iommu.map_guest(context, Iova::new(iova), range, Access::all()).is_ok() {
                served += 1;
                assert_eq!(iommu.unmap(context, iovas(iova, bytes)), Ok(bytes));
            }
        }
    }
    assert!(served > 100, "only {served} were served");
    assert_eq!(mapped(&iommu, whole), 0);
    assert_eq!(iommu.release_memory(VM), Ok(()));
}
