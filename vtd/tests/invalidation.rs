//! What the queue is told, and when.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{DATA, DEVICE, Guest, LARGE, Machine, PAGE, QuiesceAndAttach, VM, spec};
use portcullis_fake::vtd::{Reason, VtdConfig};
use portcullis_hal::{Iova, PhysAddr};
use portcullis_iommu::Error;
use portcullis_vtd::spec::invalidation::{DESCRIPTOR_BYTES, Descriptor};

const IOTLB: u64 = 2;
const DOMAIN: u64 = 2 << 4;
const PAGES: u64 = 3 << 4;
const DRAIN: u64 = 1 << 6 | 1 << 7;
const LEAVES_ONLY: u64 = 1 << 6;
const FIRST_ID: u64 = 1 << 16;
const WRITE_DENIED: Reason = Reason(5);

/// What an unmap of `bytes` at `iova` sends.
fn sent_for(config: VtdConfig, iova: u64, bytes: u64) -> Vec<(u64, u64)> {
    let machine = Machine::new(config);
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(iova, DATA, bytes).unwrap();
    let _ = machine.invalidations();
    guest.unmap(iova, bytes).unwrap();
    machine.invalidations()
}

#[test]
fn f24_an_unmap_waits_until_hardware_has_confirmed() {
    for slow_queue in [0, 1, 50] {
        let machine = Machine::usual();
        let iommu = machine.iommu();
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, 3 * PAGE).unwrap();
        machine.write(PAGE, 1).unwrap();
        machine.unit.misbehave(|knobs| knobs.slow_queue = slow_queue);
        assert_eq!(guest.unmap(0, 3 * PAGE), Ok(3 * PAGE));
        assert_eq!(machine.write(PAGE, 2), Err(WRITE_DENIED), "slow by {slow_queue}");
        assert_eq!(machine.byte(DATA + PAGE), 1);
    }
}

#[test]
fn f24_dma_under_way_has_landed_when_an_unmap_returns() {
    for draining in [true, false] {
        let machine = Machine::new(VtdConfig { draining, ..VtdConfig::default() });
        let iommu = machine.iommu();
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, PAGE).unwrap();
        machine.unit.dma_write_posted(DEVICE, 0, &[7]).unwrap();
        guest.unmap(0, PAGE).unwrap();
        assert_eq!(machine.byte(DATA), if draining { 7 } else { 0 });
        let flags = if draining { DRAIN } else { 0 };
        guest.map(0, DATA, PAGE).unwrap();
        let _ = machine.invalidations();
        guest.unmap(0, PAGE).unwrap();
        assert_eq!(machine.invalidations(), [(IOTLB | PAGES | FIRST_ID | flags, LEAVES_ONLY)]);
    }
}

#[test]
fn f25_a_range_is_invalidated_as_one_aligned_block() {
    let kind = IOTLB | PAGES | FIRST_ID | DRAIN;
    for (first, pages, start, mask) in [
        (0, 1, 0, 0),
        (7, 1, 7, 0),
        (2, 2, 2, 1),
        (3, 2, 0, 3),
        (5, 3, 4, 2),
        (511, 2, 0, 10),
        (512, 512, 512, 9),
    ] {
        let sent = sent_for(VtdConfig::default(), first * PAGE, pages * PAGE);
        assert_eq!(sent, [(kind, (start * PAGE) | LEAVES_ONLY | mask)], "{pages} pages from {first}");
    }
}

#[test]
fn f25_without_page_selective_invalidation_the_domain_goes() {
    let whole = [(IOTLB | DOMAIN | FIRST_ID | DRAIN, 0)];
    let none = VtdConfig { page_selective: None, ..VtdConfig::default() };
    assert_eq!(sent_for(none, 0, PAGE), whole);
    let small = VtdConfig { page_selective: Some(2), ..VtdConfig::default() };
    assert_eq!(sent_for(small, 0, 8 * PAGE), whole);
    assert_eq!(sent_for(small, 3 * PAGE, 2 * PAGE), whole, "the block that covers both is too large");
    let block = (IOTLB | PAGES | FIRST_ID | DRAIN, LEAVES_ONLY | 2);
    assert_eq!(sent_for(small, 0, 4 * PAGE), [block]);
}

#[test]
fn f25_one_unmap_sends_one_descriptor_and_none_where_nothing_was() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, LARGE + 40 * PAGE).unwrap();
    let _ = machine.invalidations();
    guest.unmap(0, LARGE + 40 * PAGE).unwrap();
    assert_eq!(machine.invalidations().len(), 1);
    guest.unmap(0, LARGE).unwrap();
    assert_eq!(machine.invalidations(), []);
}

#[test]
fn f26_pages_of_tables_come_back_after_a_flush_that_took_the_pointers() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    let free = guest.free_pages();
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    guest.unmap(0, PAGE).unwrap();
    assert_eq!(free - guest.free_pages(), 2, "tables stay: the unit may have cached the way to them");
    guest.map(PAGE, DATA + PAGE, PAGE).unwrap();
    machine.write(PAGE, 2).expect("through cached table pointers");
    let old = guest.context;
    let next = iommu.create_context(VM, &spec(39)).unwrap();
    guest.claim.quiesce_and_attach(next).unwrap();
    let _ = machine.invalidations();
    iommu.destroy_context(old).unwrap();
    assert_eq!(machine.invalidations(), [(IOTLB | DOMAIN | FIRST_ID | DRAIN, 0)]);
    assert_eq!(guest.free_pages(), free, "one root went, one came");
}

#[test]
fn f26_pages_whose_flush_is_not_confirmed_do_not_come_back() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let Guest { context, mut claim, .. } = Guest::new(&iommu);
    claim.detach().unwrap();
    let free = iommu.driver().pool().free_pages();
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    assert!(matches!(iommu.destroy_context(context), Err(Error::Timeout(_))));
    assert_eq!(iommu.driver().pool().free_pages(), free);
}

#[test]
fn f27_in_caching_mode_new_entries_are_seen() {
    let machine = Machine::new(VtdConfig { caching_mode: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    assert_eq!(machine.write(0, 1), Err(Reason(1)), "cached as not present");
    let guest = Guest::new(&iommu);
    assert_eq!(machine.write(0, 1), Err(WRITE_DENIED), "cached as not mapped");
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    guest.unmap(0, PAGE).unwrap();
    assert_eq!(machine.write(0, 2), Err(WRITE_DENIED));
    guest.map(0, DATA + PAGE, PAGE).unwrap();
    machine.write(0, 3).unwrap();
    assert_eq!((machine.byte(DATA), machine.byte(DATA + PAGE)), (1, 3));
}

#[test]
fn f27_a_mapping_that_caching_mode_cannot_confirm_is_reported() {
    let machine = Machine::new(VtdConfig { caching_mode: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    assert!(matches!(guest.map(0, DATA, PAGE), Err(Error::Timeout(_))));
    assert_eq!(guest.map(PAGE, DATA, PAGE), Err(Error::Quarantined));
}

#[test]
fn f27_an_attachment_that_caching_mode_cannot_confirm_is_closed_again() {
    let machine = Machine::new(VtdConfig { caching_mode: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let Guest { context, mut claim, .. } = {
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, PAGE).unwrap();
        guest
    };
    claim.detach().unwrap();
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    assert!(matches!(claim.quiesce_and_attach(context), Err(Error::Timeout(_))));
    assert_eq!(machine.write(0, 1), Err(Reason(2)));
}

#[test]
fn f37_the_ring_wraps() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let rounds = 3 * PAGE / DESCRIPTOR_BYTES;
    for round in 0..rounds {
        guest.map(0, DATA, PAGE).unwrap();
        machine.write(0, round as u8).unwrap();
        guest.unmap(0, PAGE).unwrap();
        assert_eq!(machine.write(0, 0xff), Err(WRITE_DENIED), "round {round}");
    }
    assert_eq!(u64::from(machine.byte(DATA)), (rounds - 1) & 0xff);
}

#[test]
fn f31_each_wait_has_a_number_of_its_own() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    let _ = machine.unit.take_descriptors();
    for page in 0..3 {
        guest.map(page * PAGE, DATA, PAGE).unwrap();
        guest.unmap(page * PAGE, PAGE).unwrap();
    }
    let waits: Vec<_> =
        machine.unit.take_descriptors().into_iter().filter(|(low, _)| low & 0xf == 5).collect();
    let cell = PhysAddr::new(waits[0].1);
    let first = (waits[0].0 >> 32) as u32;
    let expected =
        [0, 1, 2].map(|step| Descriptor::wait(cell, first + step)).map(|wait| (wait.low, wait.high));
    assert_eq!(waits, expected, "one status cell, numbers that count up");
    assert_eq!(guest.lookup(0), None);
    assert_eq!(iommu.iova_to_phys(guest.context, Iova::new(PAGE)), Ok(None));
}
