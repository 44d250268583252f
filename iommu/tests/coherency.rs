//! What a guest's WBINVD must do: contract G.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use std::time::Duration;

use portcullis_fake::memory::{self, FakeClock};
use portcullis_hal::{Access, Iova, IovaRange, PhysAddr, PhysRange};
use portcullis_iommu::{Because, Coherency, ContextHandle, Error, Notice, VmId};
use recorder::{DEAD, Did, OTHER, PAGE, Policy, QuiesceAndAttach, VM, attached, extent, granted, policy};

const BAD: Coherency = Coherency::NonCoherent { because: Because::NoSnoopControl };

fn notice(iommu: &Policy) -> Notice {
    iommu.coherency(VM).expect("a VM")
}

#[test]
fn n01_only_the_owner_of_a_group_in_a_non_coherent_context_flushes() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent, "nobody owns anything");
    let context = iommu.create_context(VM, &()).expect("a context");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent, "blocked, and a context without a group");
    claim.quiesce_and_attach(context).expect("an attach");
    assert_eq!(notice(&iommu).verdict, BAD);
    assert_eq!(iommu.coherency(OTHER).map(|notice| notice.verdict), Ok(Coherency::Coherent));
    claim.detach().expect("a detach");
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent);
}

#[test]
fn n01_every_end_of_ownership_ends_the_verdict() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (clock, limit) = (FakeClock::default(), Duration::from_millis(1));
    let ends: [&dyn Fn(); 2] =
        [&|| iommu.revoke(VM, group, |_| {}, &clock, limit).expect("a revocation"), &|| {
            iommu.vm_died(VM, |_| {}, &clock, limit).expect("a death")
        }];
    for end in ends {
        let (claim, _) = attached(&iommu, group);
        assert_eq!(notice(&iommu).verdict, BAD);
        end();
        assert_eq!(notice(&iommu).verdict, Coherency::Coherent);
        drop(claim);
    }
}

#[test]
fn n02_each_change_has_a_new_epoch_and_nothing_else_has() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let before = notice(&iommu).epoch;
    let (mut claim, context) = attached(&iommu, group);
    let bad = notice(&iommu).epoch;
    assert_ne!(bad, before);
    claim.switch(context).expect("a repeated attach");
    assert_eq!(notice(&iommu).epoch, bad, "the verdict is the same");
    drop(claim);
    assert_ne!(notice(&iommu).epoch, bad);
}

#[test]
fn n03_one_non_coherent_group_among_coherent_ones_counts() {
    let iommu = policy();
    let (first, second) = (granted(&iommu, &[1]), granted(&iommu, &[2]));
    iommu.driver().0.borrow_mut().coherent = true;
    let (_good, _) = attached(&iommu, first);
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent);
    iommu.driver().0.borrow_mut().coherent = false;
    let (bad, _) = attached(&iommu, second);
    assert_eq!(notice(&iommu).verdict, BAD);
    drop(bad);
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent);
}

#[test]
fn n04_a_context_that_is_made_coherent_later_changes_the_verdict() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (_claim, context) = attached(&iommu, group);
    assert_eq!(iommu.enforce_cache_coherency(context), Err(Error::NoSnoopControl));
    assert_eq!(notice(&iommu).verdict, BAD);
    iommu.driver().0.borrow_mut().snoop_control = true;
    iommu.enforce_cache_coherency(context).expect("it can now");
    assert_eq!(notice(&iommu).verdict, Coherency::Coherent);
}

#[test]
fn n05_a_vm_whose_number_is_too_large_is_refused_before_it_gets_anything() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let vm = VmId(256);
    assert_eq!(iommu.coherency(vm), Err(Error::UnknownVm { vm }));
    assert_eq!(iommu.grant(vm, group), Err(Error::UnknownVm { vm }));
}

/// Page `page` of an address space.
fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::new(Iova::new(page * PAGE), pages * PAGE).expect("a range")
}

fn lines(address: u64) -> Did {
    Did::FlushLines(PhysRange::new(PhysAddr::new(address), PAGE).ok())
}

/// Maps a page of memory of its own at each of so many pages.
fn map_apart(iommu: &Policy, context: ContextHandle, pages: u64) {
    for page in 0..pages {
        let extent = memory::extent((2 * page + 1) * PAGE, PAGE);
        iommu.map(context, Iova::new(page * PAGE), extent, Access::all()).expect("free");
    }
}

#[test]
fn n06_lines_are_written_back_before_a_device_can_see_the_page() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    iommu.map(context, Iova::new(0), extent(), Access::READ).expect("free");
    assert_eq!(iommu.driver().took(), [lines(0x7000), Did::Map]);
}

#[test]
fn n07_lines_are_dropped_after_hardware_has_let_the_page_go() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    map_apart(&iommu, context, 2);
    iommu.driver().took();
    iommu.unmap(context, range(0, 2)).expect("hardware answers");
    assert_eq!(iommu.driver().took(), [Did::Unmap, Did::Flush, lines(PAGE), lines(3 * PAGE)]);
}

#[test]
fn n07_what_hardware_did_not_let_go_counts_as_written() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    map_apart(&iommu, context, 1);
    iommu.driver().0.borrow_mut().deaf = true;
    iommu.driver().took();
    assert_eq!(iommu.unmap(context, range(0, 1)), Err(DEAD));
    assert_eq!(iommu.driver().took(), [Did::Unmap, Did::Flush], "the memory is not used again");
}

#[test]
fn n07_the_end_of_a_context_drops_the_lines_of_what_was_mapped() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    map_apart(&iommu, context, 1);
    iommu.driver().took();
    iommu.destroy_context(context).expect("no users");
    assert_eq!(iommu.driver().took(), [Did::Destroy(1), lines(PAGE)]);
}

#[test]
fn n08_more_runs_than_there_is_room_for_flush_everything() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    for (pages, flushed) in [(64, 64), (65, 1)] {
        map_apart(&iommu, context, pages);
        iommu.driver().took();
        iommu.unmap(context, range(0, pages)).expect("hardware answers");
        let did = iommu.driver().took().split_off(2);
        assert_eq!(did.len(), flushed);
        assert_eq!(did.contains(&Did::FlushLines(None)), pages == 65);
    }
}

#[test]
fn n09_a_coherent_context_flushes_nothing() {
    let iommu = policy();
    iommu.driver().0.borrow_mut().coherent = true;
    let context = iommu.create_context(VM, &()).expect("a context");
    map_apart(&iommu, context, 2);
    iommu.unmap(context, range(0, 1)).expect("hardware answers");
    iommu.destroy_context(context).expect("no users");
    assert_eq!(iommu.driver().took(), [Did::Map, Did::Map, Did::Unmap, Did::Flush, Did::Destroy(1)]);
}
