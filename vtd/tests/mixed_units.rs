//! Units that differ: what a context behind several of them is made of.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{
    DATA, LARGE, PAGE, QuiesceAndAttach, VM, extent,
    several::{
        BRIDGED, DEVICES, GRAPHICS, Policy, REST, Several, UNITS, at, attach, context, map, own, unmap,
    },
};
use portcullis_fake::vtd::{Reason, VtdConfig};
use portcullis_hal::{Access, Iova, RegisterIo};
use portcullis_iommu::{ContextHandle, Error, PageSizes};
use portcullis_vtd::{Coherency, ContextSpec, UnitSet};

const RIGHTS: Access = Access::READ.union(Access::WRITE);
const NO_CONTEXT: Reason = Reason(2);
const ROOT_NOT_PRESENT: Reason = Reason(1);
const SNOOP: u64 = 1 << 11;
const USUAL: VtdConfig = VtdConfig {
    snoop_control: true,
    coherent: true,
    queued_invalidation: true,
    caching_mode: false,
    write_buffer: false,
    page_selective: Some(18),
    draining: true,
    root_pointer_invalidates: false,
    widths: 0b0110,
    guest_bits: 48,
    large_pages: 0b11,
    domain_code: 6,
    fault_records: 1,
    protected_memory: false,
};
/// As an integrated graphics unit often is.
const PLAIN: VtdConfig = VtdConfig { snoop_control: false, ..USUAL };

fn only(unit: usize) -> UnitSet {
    UnitSet::NONE.with(unit)
}

fn make(iommu: &Policy, spec: ContextSpec) -> ContextHandle {
    iommu.create_context(VM, &spec).unwrap()
}

fn map_large(iommu: &Policy, context: ContextHandle) {
    iommu.map(context, Iova::new(0), extent(DATA, LARGE), RIGHTS).unwrap();
}

/// The leaf that the unit's tables have for an address of its device, as memory holds it.
fn leaf(machine: &Several, unit: usize, iova: u64) -> (u64, u32) {
    let read = |address| machine.memory.read64(address).unwrap();
    let page = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    let (bus, devfn) = (u64::from(DEVICES[unit] >> 8), u64::from(DEVICES[unit] & 0xff));
    let root = page(machine.units[unit].registers().read64(0x20));
    let entry = page(read(root + bus * 16)) + devfn * 16;
    let (mut table, mut level) = (page(read(entry)), (read(entry + 8) & 7) as u32 + 2);
    loop {
        let found = read(table + (iova >> (3 + 9 * level) & 0x1ff) * 8);
        if level == 1 || found & 1 << 7 != 0 {
            return (found, level);
        }
        (table, level) = (page(found), level - 1);
    }
}

#[test]
fn f40_tables_have_the_depth_that_all_units_have() {
    // 39 or 48 bits here, 48 only there.
    let machine = Several::with(BRIDGED, VtdConfig { widths: 0b0100, ..USUAL });
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let _claims = [attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED)];
    map(&iommu, shared, 0, DATA).unwrap();
    machine.write(GRAPHICS, 0, 1).unwrap();
    machine.write(BRIDGED, 0, 2).unwrap();
    assert_eq!(machine.byte(DATA), 2);
}

#[test]
fn f40_widths_that_one_unit_lacks_are_refused_unless_the_context_is_for_others() {
    let machine = Several::with(GRAPHICS, VtdConfig { widths: 0b0010, guest_bits: 39, ..USUAL });
    let iommu = machine.iommu();
    assert_eq!(iommu.driver().address_bits(), 39);
    let wide = ContextSpec::new(48);
    assert_eq!(iommu.create_context(VM, &wide), Err(Error::Unsupported { value: 48 }));
    let units = iommu.driver().units_of(&[at(0, DEVICES[BRIDGED]), at(0, DEVICES[REST])]).unwrap();
    let wide = make(&iommu, ContextSpec { units, ..wide });
    let _claim = attach(&iommu, wide, BRIDGED);
    let far = 1 << 47;
    map(&iommu, wide, far, DATA).unwrap();
    machine.write(BRIDGED, far, 1).unwrap();
    let mut graphics = own(&iommu, VM, GRAPHICS);
    let free = iommu.driver().pool().free_pages();
    let refused = Error::NotBehindUnit { device: at(0, DEVICES[GRAPHICS]) };
    assert_eq!(graphics.quiesce_and_attach(wide), Err(refused));
    assert_eq!(iommu.driver().pool().free_pages(), free);
    assert_eq!(machine.write(GRAPHICS, far, 1), Err(ROOT_NOT_PRESENT));
}

#[test]
fn f40_the_smaller_guest_width_counts() {
    let machine = Several::with(REST, VtdConfig { guest_bits: 42, ..USUAL });
    let iommu = machine.iommu();
    assert_eq!(iommu.driver().address_bits(), 42);
    assert_eq!(iommu.create_context(VM, &ContextSpec::new(43)), Err(Error::Unsupported { value: 43 }));
    make(&iommu, ContextSpec::new(42));
}

#[test]
fn f40_pages_are_as_large_as_all_units_have_them() {
    let machine = Several::with(GRAPHICS, VtdConfig { large_pages: 0, ..USUAL });
    let iommu = machine.iommu();
    let (all, others) = (context(&iommu), UnitSet::NONE.with(BRIDGED).with(REST));
    assert_eq!(iommu.aperture(all).unwrap().page_sizes, PageSizes::SIZE_4K);
    let _claims = [attach(&iommu, all, GRAPHICS), attach(&iommu, all, BRIDGED)];
    map_large(&iommu, all);
    assert_eq!(leaf(&machine, BRIDGED, PAGE).1, 1);
    machine.write(GRAPHICS, PAGE, 1).expect("no entry has a reserved size bit");
    let large = make(&iommu, ContextSpec { units: others, ..ContextSpec::new(39) });
    let sizes = PageSizes::SIZE_4K | PageSizes::SIZE_2M | PageSizes::SIZE_1G;
    assert_eq!(iommu.aperture(large).unwrap().page_sizes, sizes);
    let _claim = attach(&iommu, large, REST);
    map_large(&iommu, large);
    assert_eq!(leaf(&machine, REST, PAGE).1, 2);
    machine.write(REST, PAGE, 2).unwrap();
}

#[test]
fn f41_one_domain_id_is_valid_on_all_units() {
    let machine = Several::with(REST, VtdConfig { domain_code: 0, ..USUAL });
    let iommu = machine.iommu();
    let contexts: Vec<_> = (0..15).map(|_| context(&iommu)).collect();
    let none_left = Err(Error::OutOfNumbers { limit: 15 });
    assert_eq!(iommu.create_context(VM, &ContextSpec::new(39)), none_left);
    let last = contexts[14];
    let _claims = [attach(&iommu, last, REST), attach(&iommu, last, BRIDGED)];
    map(&iommu, last, 0, DATA).unwrap();
    machine.write(REST, 0, 1).expect("the unit knows the ID");
    machine.write(BRIDGED, 0, 1).unwrap();
    let _ = (machine.invalidations(REST), machine.invalidations(BRIDGED));
    unmap(&iommu, last, 0).unwrap();
    let domain = |unit| machine.invalidations(unit)[0].0 >> 16 & 0xffff;
    assert_eq!((domain(REST), domain(BRIDGED)), (15, 15));
}

#[test]
fn f42_snoop_bits_are_set_only_where_all_units_obey_them() {
    for (graphics, coherent) in [(USUAL, true), (PLAIN, false)] {
        let machine = Several::with(GRAPHICS, graphics);
        let iommu = machine.iommu();
        let shared = context(&iommu);
        let _claims: Vec<_> = (0..UNITS).map(|unit| attach(&iommu, shared, unit)).collect();
        map(&iommu, shared, 0, DATA).unwrap();
        map(&iommu, shared, LARGE, DATA).unwrap();
        for unit in 0..UNITS {
            machine.write(unit, 0, 1).expect("no reserved bit");
            assert_eq!(leaf(&machine, unit, 0).0 & SNOOP != 0, coherent);
        }
    }
}

#[test]
fn f42_an_enforcing_context_refuses_a_device_behind_a_unit_that_cannot() {
    let machine = Several::with(GRAPHICS, PLAIN);
    let iommu = machine.iommu();
    let witness = iommu.driver().snoop_control().expect("two units can");
    let enforced = ContextSpec { coherency: Coherency::Enforced(witness), ..ContextSpec::new(39) };
    let shared = make(&iommu, enforced);
    let _claim = attach(&iommu, shared, BRIDGED);
    let mut graphics = own(&iommu, VM, GRAPHICS);
    let _ = (machine.cache.take_write_backs(), machine.invalidations(GRAPHICS));
    let free = iommu.driver().pool().free_pages();
    assert_eq!(graphics.quiesce_and_attach(shared), Err(Error::NoSnoopControl));
    assert_eq!(iommu.driver().pool().free_pages(), free);
    assert_eq!(machine.invalidations(GRAPHICS), [], "nothing was told to the unit");
    assert_eq!(machine.write(GRAPHICS, 0, 1), Err(ROOT_NOT_PRESENT));
    map(&iommu, shared, 0, DATA).unwrap();
    machine.write(BRIDGED, 0, 1).unwrap();
    assert_eq!(leaf(&machine, BRIDGED, 0).0 & SNOOP, SNOOP);
    // It is free for a context that is not coherent.
    let plain = context(&iommu);
    graphics.quiesce_and_attach(plain).unwrap();
    let alone = ContextSpec { units: only(GRAPHICS), ..enforced };
    assert_eq!(iommu.create_context(VM, &alone), Err(Error::NoSnoopControl));
}

#[test]
fn f42_coherency_is_not_enforced_later_while_a_unit_of_the_context_cannot() {
    let machine = Several::with(GRAPHICS, PLAIN);
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let (mut graphics, _bridged) = (attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED));
    assert_eq!(iommu.enforce_cache_coherency(shared), Err(Error::NoSnoopControl));
    graphics.detach().unwrap();
    assert_eq!(iommu.enforce_cache_coherency(shared), Ok(()));
    assert_eq!(graphics.quiesce_and_attach(shared), Err(Error::NoSnoopControl));
    assert_eq!(machine.write(GRAPHICS, 0, 1), Err(NO_CONTEXT));
    let alone = make(&iommu, ContextSpec { units: only(GRAPHICS), ..ContextSpec::new(39) });
    assert_eq!(iommu.enforce_cache_coherency(alone), Err(Error::NoSnoopControl));
}

#[test]
fn f43_tables_are_written_back_when_one_unit_of_the_context_does_not_snoop() {
    let machine = Several::with(GRAPHICS, VtdConfig { coherent: false, ..USUAL });
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let _claims = [attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED)];
    for (step, iova) in [0, PAGE, LARGE].into_iter().enumerate() {
        map(&iommu, shared, iova, DATA).unwrap();
        machine.write(GRAPHICS, iova, step as u8 + 1).expect("memory has the entry");
        machine.write(BRIDGED, iova, step as u8 + 1).unwrap();
        unmap(&iommu, shared, iova).unwrap();
        assert!(machine.write(GRAPHICS, iova, 9).is_err() && machine.write(BRIDGED, iova, 9).is_err());
    }
    assert_eq!(machine.byte(DATA), 3);
}

#[test]
fn f43_nothing_is_written_back_for_units_that_snoop() {
    let machine = Several::with(GRAPHICS, VtdConfig { coherent: false, ..USUAL });
    let iommu = machine.iommu();
    let units = UnitSet::NONE.with(BRIDGED).with(REST);
    let shared = make(&iommu, ContextSpec { units, ..ContextSpec::new(39) });
    let _claim = attach(&iommu, shared, BRIDGED);
    map(&iommu, shared, 0, DATA).unwrap();
    machine.write(BRIDGED, 0, 1).unwrap();
    unmap(&iommu, shared, 0).unwrap();
    assert_eq!(machine.cache.take_write_backs(), []);
    // The unit's own tables are.
    let _graphics = attach(&iommu, context(&iommu), GRAPHICS);
    assert_ne!(machine.cache.take_write_backs(), []);
}
