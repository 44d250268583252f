//! Devices that go past the CPUs' caches: contract G, on units without snoop control.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{DATA, DEVICE, Guest, LARGE, Machine, PAGE, VM, device, extent, range, spec};
use portcullis_fake::vtd::VtdConfig;
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova, PhysAddr, PhysRange};
use portcullis_vtd::{Coherency, ContextSpec};

fn no_snoop() -> Machine {
    Machine::new(VtdConfig { snoop_control: false, ..VtdConfig::default() })
}

fn data(page: u64, pages: u64) -> Option<PhysRange> {
    PhysRange::new(PhysAddr::new(DATA + page * PAGE), pages * PAGE).ok()
}

#[test]
fn n06_a_device_sees_what_the_cpu_stored_before() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    machine.memory.store_in_cache(DATA, 5);
    guest.map(0, DATA, PAGE).unwrap();
    assert_eq!(machine.read(0), Ok(5));
}

#[test]
fn n06_no_dirty_line_overwrites_what_a_device_stored() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let words = [DATA, DATA + PAGE - 8, DATA + 2 * PAGE - 8];
    words.iter().for_each(|&word| machine.memory.store_in_cache(word, 5));
    guest.map(0, DATA, 2 * PAGE).unwrap();
    words.iter().for_each(|word| machine.write(word - DATA, 9).unwrap());
    machine.memory.evict_lines();
    words.iter().for_each(|&word| assert_eq!(machine.byte(word), 9));
}

#[test]
fn n07_after_an_unmap_the_cpu_sees_what_the_device_stored_last() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, 2 * PAGE).unwrap();
    for word in [DATA, DATA + 2 * PAGE - 8] {
        assert_eq!(machine.memory.load_through_cache(word), 0);
        machine.write(word - DATA, 9).unwrap();
        assert_eq!(machine.memory.load_through_cache(word), 0, "the line is stale");
    }
    guest.unmap(0, 2 * PAGE).unwrap();
    for word in [DATA, DATA + 2 * PAGE - 8] {
        assert_eq!(machine.memory.load_through_cache(word), 9);
    }
}

#[test]
fn n07_each_run_of_memory_is_flushed_and_no_other() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, 3 * PAGE).unwrap();
    guest.map(3 * PAGE, DATA + 8 * PAGE, PAGE).unwrap();
    guest.map(LARGE, DATA + LARGE, LARGE).unwrap();
    let large = data(512, 512);
    assert_eq!(machine.memory.take_flushes(), [data(0, 3), data(8, 1), large]);
    guest.unmap(PAGE, 2 * LARGE - PAGE).unwrap();
    assert_eq!(machine.memory.take_flushes(), [data(1, 2), data(8, 1), large]);
    guest.unmap(PAGE, LARGE).unwrap();
    assert_eq!(machine.memory.take_flushes(), [], "nothing was mapped");
}

#[test]
fn n07_registered_memory_is_flushed_before_it_can_be_given_back() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let physical = GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).unwrap();
    let region = iommu.register_memory(VM, physical, extent(DATA, PAGE)).unwrap();
    machine.memory.store_in_cache(DATA, 5);
    iommu.map_guest(guest.context, Iova::new(0), physical, Access::all()).unwrap();
    machine.write(0, 9).unwrap();
    iommu.unmap(guest.context, range(0, PAGE)).unwrap();
    assert_eq!(machine.memory.take_flushes(), [data(0, 1), data(0, 1)]);
    assert_eq!(machine.memory.load_through_cache(DATA), 9);
    iommu.unregister_memory(VM, region).unwrap();
}

#[test]
fn n07_the_end_of_a_context_flushes_what_it_still_mapped() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let Guest { context, claim, .. } = Guest::new(&iommu);
    iommu.map(context, Iova::new(0), extent(DATA, PAGE), Access::all()).unwrap();
    let _ = machine.memory.load_through_cache(DATA);
    machine.write(0, 9).unwrap();
    drop(claim);
    let _ = machine.memory.take_flushes();
    iommu.destroy_context(context).unwrap();
    assert_eq!(machine.memory.take_flushes(), [data(0, 1)]);
    assert_eq!(machine.memory.load_through_cache(DATA), 9);
}

#[test]
fn n09_registers_of_devices_are_left_alone() {
    let machine = no_snoop();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    iommu.declare_bar(device(DEVICE), data(4, 1).unwrap()).unwrap();
    let bar = extent(DATA + 4 * PAGE, PAGE);
    iommu.map_bar(guest.context, Iova::new(0), device(DEVICE), bar, Access::all()).unwrap();
    iommu.unmap_bar(guest.context, range(0, PAGE)).unwrap();
    assert_eq!(machine.memory.take_flushes(), []);
}

#[test]
fn n09_where_hardware_snoops_nothing_is_flushed() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let snoop = iommu.driver().snoop_control().unwrap();
    let guest =
        Guest::with(&iommu, DEVICE, ContextSpec { coherency: Coherency::Enforced(snoop), ..spec(39) });
    guest.map(0, DATA, PAGE).unwrap();
    guest.unmap(0, PAGE).unwrap();
    assert_eq!(machine.memory.take_flushes(), []);
}
