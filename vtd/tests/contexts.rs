//! Context entries and domain IDs: which device goes through which tables.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use machine::{
    DATA, DEVICE, FAR, Guest, Machine, NEIGHBOUR, PAGE, QuiesceAndAttach, VM, device, range, spec,
};
use portcullis_fake::end::End;
use portcullis_fake::vtd::{Reason, VtdConfig};
use portcullis_hal::{DeviceId, Iova, RequesterId, Segment};
use portcullis_iommu::Error;

const NO_CONTEXT: Reason = Reason(2);
const BEYOND_WIDTH: Reason = Reason(4);
const WRITE_DENIED: Reason = Reason(5);

#[test]
fn f13_dma_during_switches_meets_the_old_context_the_new_one_or_none() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    let first = guest.context;
    let second = iommu.create_context(VM, &spec(48)).unwrap();
    guest.map(0, DATA, PAGE).unwrap();
    guest.context = second;
    guest.map(0, DATA + PAGE, PAGE).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = End(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let seen = machine.write(0, 1);
                assert!(matches!(seen, Ok(()) | Err(NO_CONTEXT)), "{seen:?}");
            }
        });
        for context in [first, second].into_iter().cycle().take(2000) {
            guest.claim.detach().unwrap();
            guest.claim.quiesce_and_attach(context).unwrap();
            machine.write(0, 1).unwrap();
        }
    });
    assert_eq!((machine.byte(DATA), machine.byte(DATA + PAGE)), (1, 1), "both were met");
}

#[test]
fn f14_a_switch_invalidates_the_context_then_the_old_domain() {
    const DRAIN: u64 = 1 << 6 | 1 << 7;
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    let (_, second) = (guest.context, iommu.create_context(VM, &spec(39)).unwrap());
    assert_eq!(machine.invalidations(), [], "nothing is cached of a device that was blocked");
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    guest.claim.quiesce_and_attach(second).unwrap();
    let (domain, source) = (1 << 16, u64::from(DEVICE) << 32);
    assert_eq!(
        machine.invalidations(),
        [(1 | 3 << 4 | domain | source, 0), (2 | 2 << 4 | domain | DRAIN, 0)]
    );
    assert_eq!(machine.write(0, 2), Err(WRITE_DENIED), "the new context is empty");
}

#[test]
fn f14_a_wait_separates_context_cache_and_iotlb() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    let _ = machine.unit.take_descriptors();
    guest.claim.detach().unwrap();
    let kinds: Vec<_> = machine.unit.take_descriptors().iter().map(|(low, _)| low & 0xf).collect();
    assert_eq!(kinds, [1, 5, 2, 5]);
}

#[test]
fn f15_a_blocked_device_reaches_nothing_and_its_neighbour_goes_on() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let neighbour = Guest::with(&iommu, NEIGHBOUR, spec(39));
    let far = Guest::with(&iommu, FAR, spec(39));
    for (guest, page) in [(&guest, 0), (&neighbour, 1), (&far, 2)] {
        guest.map(0, DATA + page * PAGE, PAGE).unwrap();
    }
    machine.write(0, 1).unwrap();
    guest.claim.release().unwrap();
    assert_eq!(machine.write(0, 2), Err(NO_CONTEXT));
    machine.unit.dma_write(NEIGHBOUR, 0, &[3]).unwrap();
    machine.unit.dma_write(FAR, 0, &[4]).unwrap();
    assert_eq!([0, 1, 2].map(|page| machine.byte(DATA + page * PAGE)), [1, 3, 4]);
    drop(neighbour);
    assert_eq!(machine.unit.dma_write(NEIGHBOUR, 0, &[5]), Err(NO_CONTEXT));
}

#[test]
fn f15_all_members_of_a_group_switch_and_are_blocked_together() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let members = [DEVICE, DEVICE + 1, FAR];
    let group = iommu.add_group(&members.map(device)).unwrap();
    iommu.grant(VM, group).unwrap();
    let context = iommu.create_context(VM, &spec(39)).unwrap();
    let mut claim = iommu.claim(VM, group).unwrap();
    let mut guest = Guest::with(&iommu, NEIGHBOUR, spec(39));
    guest.context = context;
    guest.map(0, DATA, PAGE).unwrap();
    claim.quiesce_and_attach(context).unwrap();
    let write_all = |byte| members.map(|member| machine.unit.dma_write(member, 0, &[byte]));
    assert_eq!(write_all(1), [Ok(()); 3]);
    claim.detach().unwrap();
    assert_eq!(write_all(2), [Err(NO_CONTEXT); 3]);
}

#[test]
fn f16_a_context_has_the_shallowest_tables_that_cover_it() {
    let config = VtdConfig { widths: 0b1110, guest_bits: 57, ..VtdConfig::default() };
    for (address_bits, levels_in_entry) in [(30, 1), (39, 1), (40, 2), (48, 2), (49, 3), (57, 3)] {
        let machine = Machine::new(config);
        let iommu = machine.iommu();
        let guest = Guest::with(&iommu, DEVICE, spec(address_bits));
        assert_eq!(iommu.aperture(guest.context).unwrap().range.bytes(), 1 << address_bits);
        let last = (1 << address_bits) - PAGE;
        guest.map(last, DATA, PAGE).unwrap();
        machine.write(last, 7).unwrap();
        let beyond = Error::OutsideAperture { iova: Iova::new(last), bytes: 2 * PAGE };
        assert_eq!(guest.map(last, DATA, 2 * PAGE), Err(beyond));
        assert_eq!(guest.unmap(last, 2 * PAGE), Err(beyond));
        assert_eq!(guest.lookup(1 << address_bits), None);
        let covered = 12 + 9 * (levels_in_entry + 2);
        let reason = if covered == address_bits { BEYOND_WIDTH } else { WRITE_DENIED };
        assert_eq!(machine.write(1 << address_bits, 8), Err(reason), "{address_bits} bits");
    }
}

#[test]
fn f16_widths_that_the_unit_lacks_are_refused() {
    let refused = |config, bits: u8| {
        let machine = Machine::new(config);
        let error = machine.iommu().create_context(VM, &spec(bits)).unwrap_err();
        assert_eq!(error, Error::Unsupported { value: bits.into() });
    };
    refused(VtdConfig::default(), 49);
    refused(VtdConfig { guest_bits: 40, ..VtdConfig::default() }, 41);
    refused(VtdConfig { widths: 0b0010, ..VtdConfig::default() }, 48);
    refused(VtdConfig::default(), 11);
    refused(VtdConfig::default(), 255);
    let deep = VtdConfig { widths: 0b0100, ..VtdConfig::default() };
    let machine = Machine::new(deep);
    let iommu = machine.iommu();
    let guest = Guest::with(&iommu, DEVICE, spec(30));
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).expect("four levels serve 30 bits where there are no three");
}

#[test]
fn f17_domain_ids_are_apart_and_run_out_with_an_error() {
    let machine = Machine::new(VtdConfig { domain_code: 0, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let mut contexts = Vec::new();
    let error = loop {
        match iommu.create_context(VM, &spec(39)) {
            Ok(context) => contexts.push(context),
            Err(error) => break error,
        }
    };
    assert_eq!((contexts.len(), error), (15, Error::OutOfNumbers { limit: 15 }), "0 is not used");
    let group = iommu.add_group(&[device(DEVICE)]).unwrap();
    iommu.grant(VM, group).unwrap();
    let mut claim = iommu.claim(VM, group).unwrap();
    let mut seen: Vec<_> = contexts
        .drain(..)
        .map(|context| {
            claim.quiesce_and_attach(context).unwrap();
            claim.detach().unwrap();
            let _ = machine.invalidations();
            iommu.destroy_context(context).unwrap();
            machine.invalidations()[0].0 >> 16 & 0xffff
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..16).collect::<Vec<_>>());
    iommu.create_context(VM, &spec(39)).expect("IDs come back");
}

#[test]
fn f17_a_domain_id_is_used_again_only_after_its_flush() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let Guest { context, mut claim, .. } = {
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, PAGE).unwrap();
        guest.map(machine::LARGE, DATA, machine::LARGE).unwrap();
        guest
    };
    machine.write(0, 1).unwrap();
    machine.write(machine::LARGE, 1).unwrap();
    claim.detach().unwrap();
    let before = iommu.driver().pool().free_pages();
    iommu.destroy_context(context).unwrap();
    assert_eq!(iommu.driver().pool().free_pages(), before + 3, "root, level 2, level 1");
    let next = iommu.create_context(VM, &spec(39)).unwrap();
    claim.quiesce_and_attach(next).unwrap();
    assert_eq!(machine.write(0, 2), Err(WRITE_DENIED));
    assert_eq!(machine.write(machine::LARGE, 2), Err(WRITE_DENIED));
}

#[test]
fn f36_a_device_of_another_segment_does_not_attach() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let stranger = DeviceId { segment: Segment(1), requester: RequesterId::new(DEVICE) };
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    let group = iommu.add_group(&[device(NEIGHBOUR), stranger]).unwrap();
    iommu.grant(VM, group).unwrap();
    let mut claim = iommu.claim(VM, group).unwrap();
    let free = guest.free_pages();
    assert_eq!(claim.quiesce_and_attach(guest.context), Err(Error::NotBehindUnit { device: stranger }));
    assert_eq!(guest.free_pages(), free);
    claim.release().unwrap();
    machine.write(0, 1).expect("the device with the same number here goes on");
    assert_eq!(machine.unit.dma_write(NEIGHBOUR, 0, &[1]), Err(NO_CONTEXT));
    assert_eq!(iommu.unmap(guest.context, range(0, PAGE)), Ok(PAGE));
}
