//! Registers of devices as targets of DMA: contract A, peer to peer.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use std::time::Duration;

use portcullis_fake::dma::extent;
use portcullis_fake::memory::FakeClock;
use portcullis_hal::{
    Access, DmaExtent, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, PhysAddr, PhysRange,
};
use portcullis_iommu::{
    Claim, ContextHandle, Error, GroupId, Owner,
    ownership::{Answer, Effect, Operation, Ownership, Request, Step, Yield},
};
use recorder::{DEAD, Did, OTHER, PAGE, Policy, Recorder, VM, attached, device, granted, policy};

const IOVA: Iova = Iova::new(0x10_0000);

fn bar(number: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(0xe000_0000 + number * 0x10_0000), 4 * PAGE).expect("a range")
}

fn page_of(range: PhysRange) -> DmaExtent {
    extent(range.start().as_u64(), PAGE)
}

fn mapped() -> IovaRange {
    IovaRange::new(IOVA, PAGE).expect("a range")
}

fn reached(iommu: &Policy, context: ContextHandle) -> Option<PhysAddr> {
    iommu.iova_to_phys(context, IOVA).expect("a context").map(|(phys, _)| phys)
}

fn end(iommu: &Policy, by: impl FnOnce(&Policy)) -> Vec<Did> {
    iommu.driver().took();
    by(iommu);
    iommu.driver().took()
}

/// Two groups of `VM`: the second one's device has the BAR, which the first one's reaches.
struct Peers<'i> {
    context: ContextHandle,
    reader: Claim<'i, Recorder, 4, 2>,
    target: Claim<'i, Recorder, 4, 2>,
    group: GroupId,
}

fn peers<'i>(iommu: &'i Policy, devices: &[u16]) -> Peers<'i> {
    let first = granted(iommu, &[1]);
    let group = granted(iommu, devices);
    iommu.declare_bar(device(2), bar(2)).expect("a BAR");
    let (reader, context) = attached(iommu, first);
    let target = iommu.claim(VM, group).expect("a claim");
    iommu.map_bar(context, IOVA, device(2), page_of(bar(2)), Access::READ).expect("an own BAR");
    assert_eq!(reached(iommu, context), Some(bar(2).start()));
    Peers { context, reader, target, group }
}

#[test]
fn a19_the_owner_maps_its_bar_and_unmaps_it_by_its_own_call_only() {
    let iommu = policy();
    let peers = peers(&iommu, &[2]);
    let again = iommu.map_bar(peers.context, IOVA, device(2), page_of(bar(2)), Access::READ);
    assert_eq!(again, Err(Error::AlreadyMapped { iova: IOVA }));
    assert_eq!(iommu.unmap(peers.context, mapped()), Err(Error::IsBar { device: device(2) }));
    let elsewhere = IovaRange::new(IOVA, 2 * PAGE).expect("a range");
    let unknown = Err(Error::UnknownBar { address: IOVA.as_u64() });
    assert_eq!(iommu.unmap_bar(peers.context, elsewhere), unknown);
    let did = end(&iommu, |iommu| iommu.unmap_bar(peers.context, mapped()).expect("mapped there"));
    assert_eq!(did, [Did::Unmap, Did::Flush]);
    assert_eq!(iommu.unmap_bar(peers.context, mapped()), unknown);
    assert_eq!(iommu.unmap(peers.context, mapped()), Ok(PAGE), "addresses like any others");
    let did = end(&iommu, |_| drop(peers.target));
    assert_eq!(did, [Did::Block], "nothing was left to unmap");
}

#[test]
fn a19_bars_of_others_and_of_nobody_are_refused_by_device() {
    let iommu = policy();
    let (first, second) = (granted(&iommu, &[1]), granted(&iommu, &[2]));
    iommu.declare_bar(device(2), bar(2)).expect("a BAR");
    let (_claim, context) = attached(&iommu, first);
    let foreign = Err(Error::ForeignBar { device: device(2) });
    let map = |by| iommu.map_bar(context, IOVA, device(by), page_of(bar(2)), Access::READ);
    assert_eq!(map(2), foreign, "nobody's");
    let theirs = iommu.claim(OTHER, second).expect("a claim");
    assert_eq!((map(2), map(1)), (foreign, foreign), "another VM's, whatever device is named");
    theirs.release().expect("a release");
    assert_eq!(map(2), foreign, "nobody's again");
    let nothing = iommu.map_bar(context, IOVA, device(1), page_of(bar(1)), Access::READ);
    assert_eq!(nothing, Err(Error::UnknownBar { address: bar(1).start().as_u64() }));
    assert_eq!(reached(&iommu, context), None);
}

#[test]
fn a19_no_other_call_leads_to_a_bar() {
    let iommu = policy();
    let peers = peers(&iommu, &[2]);
    let is_bar = Error::IsBar { device: device(2) };
    let across = extent(bar(2).start().as_u64() - PAGE, 2 * PAGE);
    assert_eq!(iommu.map(peers.context, Iova::new(0), page_of(bar(2)), Access::READ), Err(is_bar));
    assert_eq!(iommu.map(peers.context, Iova::new(0), across, Access::READ), Err(is_bar));
    iommu.map(peers.context, Iova::new(0), page_of(bar(3)), Access::READ).expect("no BAR");
    let guest = |bytes| GuestPhysRange::new(GuestPhysAddr::new(0), bytes).expect("a range");
    assert_eq!(iommu.register_memory(VM, guest(2 * PAGE), across).err(), Some(is_bar));
    let region = iommu.register_memory(VM, guest(PAGE), page_of(bar(3))).expect("no BAR");
    assert_eq!(iommu.declare_bar(device(1), bar(3)), Err(Error::Overlaps { region }));
}

#[test]
fn a19_a_bar_is_one_device_s() {
    let iommu = policy();
    granted(&iommu, &[1, 2]);
    iommu.declare_bar(device(1), bar(1)).expect("a BAR");
    iommu.declare_bar(device(1), bar(1)).expect("the same once more");
    assert_eq!(iommu.declare_bar(device(2), bar(1)), Err(Error::IsBar { device: device(1) }));
    assert_eq!(iommu.declare_bar(device(9), bar(9)), Err(Error::UnknownDevice { device: device(9) }));
    iommu.remove_device(device(1)).expect("unplugged");
    iommu.declare_bar(device(2), bar(1)).expect("the addresses are free again");
}

#[test]
fn a19_a_release_unmaps_the_bar_before_the_group_is_free() {
    let iommu = policy();
    let Peers { context, target, group, reader: _reader } = peers(&iommu, &[2]);
    let did = end(&iommu, |_| target.release().expect("a release"));
    assert_eq!(did, [Did::Unmap, Did::Flush, Did::Block]);
    assert_eq!(reached(&iommu, context), None);
    drop(iommu.claim(OTHER, group).expect("free"));
}

#[test]
fn a19_a_revocation_unmaps_the_bar_and_leaves_the_context() {
    let iommu = policy();
    let peers = peers(&iommu, &[2]);
    let limit = Duration::from_millis(1);
    let did = end(&iommu, |iommu| {
        iommu.revoke(VM, peers.group, |_| {}, &FakeClock::default(), limit).expect("hardware answers");
    });
    assert_eq!(did, [Did::Unmap, Did::Flush, Did::Block]);
    assert_eq!(reached(&iommu, peers.context), None);
}

#[test]
fn a19_a_context_that_leads_to_a_bar_is_not_destroyed_and_a_death_ends_both() {
    let iommu = policy();
    let mut peers = peers(&iommu, &[2]);
    peers.reader.detach().expect("a detach");
    assert_eq!(iommu.destroy_context(peers.context), Err(Error::InUse { users: 1 }));
    let limit = Duration::from_millis(1);
    let did = end(&iommu, |iommu| {
        iommu.vm_died(VM, |_| {}, &FakeClock::default(), limit).expect("hardware answers");
    });
    assert_eq!(did, [Did::Block, Did::Unmap, Did::Flush, Did::Block, Did::Destroy(1)]);
    let slot = peers.context.slot();
    assert_eq!(iommu.iova_to_phys(peers.context, IOVA), Err(Error::Stale { slot }));
}

#[test]
fn a19_a_removed_device_s_bar_is_unmapped_first_and_the_others_stay() {
    for devices in [&[2, 3][..], &[2]] {
        let iommu = policy();
        let peers = peers(&iommu, devices);
        let did = end(&iommu, |iommu| iommu.remove_device(device(2)).expect("unplugged"));
        assert_eq!(did, [Did::Unmap, Did::Flush, Did::Block]);
        assert_eq!(reached(&iommu, peers.context), None);
    }
    let iommu = policy();
    let peers = peers(&iommu, &[2, 3]);
    let did = end(&iommu, |iommu| iommu.remove_device(device(3)).expect("unplugged"));
    assert_eq!(did, [Did::Block], "its neighbour has the BAR");
    assert_eq!(reached(&iommu, peers.context), Some(bar(2).start()));
}

#[test]
fn a19_a_bar_that_may_still_be_reached_is_nobody_s_any_more() {
    let iommu = policy();
    let peers = peers(&iommu, &[2, 3]);
    iommu.driver().0.borrow_mut().deaf = true;
    assert_eq!(iommu.unmap_bar(peers.context, mapped()), Err(DEAD));
    iommu.driver().0.borrow_mut().deaf = false;
    peers.target.release().expect("given up");
    assert_eq!(iommu.claim(OTHER, peers.group).err(), Some(Error::Quarantined));
    drop(peers.reader);
    assert_eq!(iommu.destroy_context(peers.context), Err(Error::Quarantined));
}

#[test]
fn a19_a_device_whose_bar_may_still_be_reached_stays_known() {
    let iommu = policy();
    let peers = peers(&iommu, &[2, 3]);
    iommu.driver().0.borrow_mut().deaf = true;
    assert_eq!(iommu.remove_device(device(2)), Err(DEAD));
    iommu.driver().0.borrow_mut().deaf = false;
    let known = Err(Error::DuplicateDevice { device: device(2) });
    assert_eq!(iommu.add_group(&[device(2)]).map(drop), known);
    peers.target.release().expect("given up");
    assert_eq!(iommu.claim(OTHER, peers.group).err(), Some(Error::Quarantined));
}

type Machine = Ownership<1, 1, 1>;

fn done(machine: &mut Machine, request: Request) -> Yield {
    let mut operation = machine.begin(request).expect("begun");
    while let Step::Do(_) = operation.step() {
        machine.finish(&mut operation, Answer::Done);
    }
    match operation.step() {
        Step::Over(result) => result.expect("done"),
        step => panic!("{step:?}"),
    }
}

fn rest(machine: &mut Machine, mut operation: Operation) -> Vec<Effect> {
    let mut effects = Vec::new();
    while let Step::Do(effect) = operation.step() {
        effects.push(effect);
        machine.finish(&mut operation, Answer::Done);
    }
    effects
}

#[test]
fn a19_a_release_while_the_bar_is_being_mapped_does_not_overlook_it() {
    let (mut machine, owner) = (Machine::new(), Owner::Guest(VM));
    let group = machine.add_group(&[device(2)]).expect("a group");
    machine.grant(VM, group).expect("a grant");
    machine.declare_bar(device(2), bar(2)).expect("a BAR");
    let Yield::Context(context) = done(&mut machine, Request::CreateContext { owner }) else { panic!() };
    let Yield::Hold(hold) = done(&mut machine, Request::Acquire { owner, group }) else { panic!() };
    let (iova, extent, access) = (mapped(), page_of(bar(2)), Access::READ);
    let map = Request::MapBar { context, device: device(2), iova, extent, access };
    let mapping = machine.begin(map).expect("an own BAR");
    assert_eq!(machine.begin(map).err(), Some(Error::AlreadyMapped { iova: iova.start() }));
    assert_eq!(done(&mut machine, Request::Release { hold }), Yield::Nothing, "left to the other CPU");
    let effects = rest(&mut machine, mapping);
    assert!(
        matches!(effects[..], [Effect::MapBar { .. }, Effect::UnmapBar { .. }, Effect::Block { .. }]),
        "{effects:?}"
    );
    assert_eq!(machine.tenancy(group), Ok(None));
}
