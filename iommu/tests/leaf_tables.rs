//! Entries in tables that an earlier session found.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod pages;

use std::{sync::atomic::Ordering, time::Duration};

use pages::{LEAF, OTHER, PAGE, Pages, Policy, VM, context, extent, guest, policy};
use portcullis_fake::{memory::FakeClock, obedient::ObedientFunctions};
use portcullis_hal::{Access, DeviceId, GuestPhysAddr, IoPageSize, Iova, RequesterId, Segment};
use portcullis_iommu::{Claim, ContextHandle, Error, LeafTable, Seat, Session, pci::Method};

const HOST: u64 = 0x4000_0000;
const BYTES: u64 = 64 * PAGE;
const LIMIT: Duration = Duration::from_millis(5);

type Call<'s, 'i> = Session<'s, 'i, Pages, 4, 8>;

fn machine() -> (Policy, ContextHandle) {
    let iommu = policy();
    iommu.register_memory(VM, guest(0, BYTES), extent(HOST, BYTES)).expect("a region");
    let at = context(&iommu, VM);
    (iommu, at)
}

/// Finds the table with the entry for an address, as the first call does.
fn found<'i>(seat: &mut Seat<'i, Pages, 4, 8>, at: ContextHandle, iova: u64) -> Option<LeafTable<'i>> {
    let call = seat.enter(VM);
    call.context(at).expect("live");
    call.leaf_table(at, Iova::new(iova))
}

/// Lets the entry for an address lead to a page of the guest's, or nowhere; `None` where it is not in the table.
fn put(call: &Call<'_, '_>, table: &LeafTable<'_>, iova: u64, to: Option<u64>) -> Option<()> {
    let entry = call.entry(table, Iova::new(iova))?;
    let page = to.map(|to| call.page(0, GuestPhysAddr::new(to), entry.page_size()).expect("registered"));
    call.replace(&entry, page.as_ref().map(|page| (page, Access::all())), || ())?.ok()
}

fn leads_to(iommu: &Policy, at: ContextHandle, iova: u64) -> Option<u64> {
    iommu.iova_to_phys(at, Iova::new(iova)).expect("live").map(|(phys, _)| phys.as_u64())
}

fn claimed(iommu: &Policy, requester: u16) -> Claim<'_, Pages, 4, 8> {
    let device = DeviceId { segment: Segment(0), requester: RequesterId::new(requester) };
    let group = iommu.add_group(&[device]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    iommu.claim(VM, group).expect("a claim")
}

fn join(claim: &mut Claim<'_, Pages, 4, 8>, context: ContextHandle) -> Result<(), Error> {
    let proof = claim.quiesce(&ObedientFunctions, &FakeClock::default(), Method::BusMasterOff, LIMIT);
    claim.attach(context, proof.expect("a proof"))
}

fn attach(claim: &mut Claim<'_, Pages, 4, 8>, context: ContextHandle) {
    join(claim, context).expect("an attach");
}

#[test]
fn c14_what_was_found_is_found_again_where_it_is() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    assert!(seat.enter(VM).leaf_table(at, Iova::new(0)).is_none(), "nobody decided that calls change it");
    let table = found(&mut seat, at, LEAF + PAGE).expect("a table");
    assert_eq!(table.start(), Iova::new(LEAF));
    let call = seat.enter(VM);
    assert_eq!(put(&call, &table, LEAF, Some(PAGE)), Some(()));
    assert_eq!(put(&call, &table, 2 * LEAF - PAGE, Some(2 * PAGE)), Some(()));
    assert_eq!(call.entry(&table, Iova::new(2 * LEAF - PAGE)).map(|entry| entry.number()), Some(7));
    for outside in [LEAF - PAGE, 2 * LEAF, LEAF + 1, LEAF + PAGE / 2, u64::MAX] {
        assert!(call.entry(&table, Iova::new(outside)).is_none(), "{outside:#x}");
    }
    assert_eq!(
        [LEAF, 2 * LEAF - PAGE].map(|iova| leads_to(&iommu, at, iova)),
        [1, 2].map(|n| Some(HOST + n * PAGE))
    );
    assert_eq!(put(&call, &table, LEAF, None), Some(()));
    assert_eq!(leads_to(&iommu, at, LEAF), None);
}

#[test]
fn c14_a_part_of_a_table_is_whole_pages_of_it() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let table = found(&mut seat, at, LEAF).expect("a table");
    let part = |start, bytes| table.within(Iova::new(start), bytes);
    for (start, bytes) in
        [(0, LEAF), (2 * LEAF, PAGE), (LEAF, 0), (LEAF, PAGE - 1), (LEAF + 1, PAGE), (PAGE, u64::MAX)]
    {
        assert!(part(start, bytes).is_none(), "{start:#x}, {bytes:#x}");
    }
    let middle = part(LEAF + PAGE, 2 * PAGE).expect("two pages");
    let last = part(2 * LEAF - PAGE, 5 * PAGE).expect("one page");
    let call = seat.enter(VM);
    let numbers = |table: &LeafTable<'_>| {
        [0, 1, 2, 3, 7, 8]
            .map(|page| call.entry(table, Iova::new(LEAF + page * PAGE)).map(|entry| entry.number()))
    };
    assert_eq!(numbers(&middle), [None, Some(0), Some(1), None, None, None]);
    assert_eq!(numbers(&last), [None, None, None, None, Some(0), None]);
    assert_eq!(put(&call, &middle, LEAF + 2 * PAGE, Some(0)), Some(()));
    assert_eq!(leads_to(&iommu, at, LEAF + 2 * PAGE), Some(HOST));
}

#[test]
fn c14_a_table_of_a_context_that_ended_is_found_no_more_nor_one_of_another_vm_or_iommu() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let table = found(&mut seat, at, 0).expect("a table");
    assert!(seat.enter(OTHER).entry(&table, Iova::new(0)).is_none(), "another VM");
    let (second, same) = machine();
    assert_eq!(same, at, "the same numbers");
    let mut elsewhere = second.seat(0).expect("a seat");
    assert!(found(&mut elsewhere, same, 0).is_some());
    assert!(elsewhere.enter(VM).entry(&table, Iova::new(0)).is_none(), "another IOMMU");
    iommu.destroy_context(at).expect("idle");
    assert!(seat.enter(VM).entry(&table, Iova::new(0)).is_none(), "it has ended");
    let next = context(&iommu, VM);
    assert_eq!(next.slot(), at.slot());
    assert!(found(&mut seat, next, 0).is_some());
    assert!(seat.enter(VM).entry(&table, Iova::new(0)).is_none(), "another context in its slot");
}

#[test]
fn c14_a_page_is_taken_of_the_region_that_is_named_if_it_is_open_and_made_of_such_pages() {
    let (iommu, _) = machine();
    iommu.register_memory(VM, guest(1 << 30, 32 * PAGE), extent(0x5000_1000, 32 * PAGE)).expect("a region");
    let mut seat = iommu.seat(0).expect("a seat");
    let call = seat.enter(VM);
    let page = |slot, guest, size| {
        call.page(slot, GuestPhysAddr::new(guest), size).map(|page| page.extent().start().as_u64())
    };
    let (small, large) = (IoPageSize::SIZE_4K, IoPageSize::SIZE_64K);
    assert_eq!(page(0, 63 * PAGE, small), Some(HOST + 63 * PAGE));
    assert_eq!(page(0, 48 * PAGE, large), Some(HOST + 48 * PAGE));
    assert_eq!(page(1, (1 << 30) + PAGE, small), Some(0x5000_2000));
    for (slot, guest, size) in [
        (0, 64 * PAGE, small),
        (0, 49 * PAGE, large),
        (0, 8, small),
        (0, u64::MAX, small),
        (1, 0, small),
        (1, (1 << 30) - PAGE, small),
        (1, 1 << 30, large),
        (2, 0, small),
        (u32::MAX, 0, small),
    ] {
        assert_eq!(page(slot, guest, size), None, "{slot}, {guest:#x}");
    }
    drop(call);
    assert!(seat.enter(OTHER).page(0, GuestPhysAddr::new(0), small).is_none());
}

#[test]
fn c15_nothing_is_killed_while_no_device_is_attached_and_every_change_is_while_one_is() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let mut killed = || kills(&iommu, &mut seat, at);
    let [mut first, mut second] = [8, 16].map(|requester| claimed(&iommu, requester));
    assert_eq!(killed(), 0);
    attach(&mut first, at);
    assert_eq!(killed(), 1);
    attach(&mut second, at);
    first.detach().expect("a detach");
    assert_eq!(killed(), 1, "one is still there");
    let other = context(&iommu, VM);
    attach(&mut second, other);
    assert_eq!(killed(), 0, "it is elsewhere");
    attach(&mut second, at);
    assert_eq!(killed(), 1);
    drop(second);
    assert_eq!(killed(), 0);
    attach(&mut first, at);
    assert_eq!(killed(), 1);
}

#[test]
fn c15_a_device_joins_a_context_that_all_have_left_only_when_no_session_is_under_way() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let mut claim = claimed(&iommu, 8);
    attach(&mut claim, at);
    claim.detach().expect("a detach");
    let call = seat.enter(VM);
    assert_eq!(join(&mut claim, at), Err(Error::Busy), "what the session stores may be found too late");
    drop(call);
    assert_eq!(join(&mut claim, at), Ok(()));
}

/// How many kills a change of an entry asks for, in a table that is found anew.
fn kills(iommu: &Policy, seat: &mut Seat<'_, Pages, 4, 8>, at: ContextHandle) -> u64 {
    let before = iommu.driver().kills.load(Ordering::Relaxed);
    let table = found(seat, at, 0).expect("a table");
    let _ = put(&seat.enter(VM), &table, 0, Some(0));
    iommu.driver().kills.load(Ordering::Relaxed) - before
}

#[test]
fn c15_nothing_is_killed_after_an_attach_that_was_refused() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let mut claim = claimed(&iommu, 8);
    let call = seat.enter(VM);
    assert_eq!(join(&mut claim, at), Err(Error::Busy));
    drop(call);
    assert_eq!(kills(&iommu, &mut seat, at), 0, "no group is attached");
}

#[test]
fn c15_a_context_that_one_joins_while_another_leaves_is_killed() {
    let iommu: &'static Policy = Box::leak(Box::new(machine().0));
    let at = context(iommu, VM);
    let mut seat = iommu.seat(0).expect("a seat");
    let [mut first, mut second] = [8, 16].map(|requester| claimed(iommu, requester));
    attach(&mut first, at);
    let mut leaves = Some(first);
    *iommu.driver().on_commit.lock().expect("no panic") = Some(Box::new(move || {
        if let Some(mut first) = leaves.take() {
            first.detach().expect("a detach");
        }
    }));
    attach(&mut second, at);
    assert_eq!(kills(iommu, &mut seat, at), 1, "one is there");
}

#[test]
fn c15_a_context_of_a_group_that_was_not_blocked_is_killed() {
    let (iommu, at) = machine();
    let mut seat = iommu.seat(0).expect("a seat");
    let mut claim = claimed(&iommu, 8);
    attach(&mut claim, at);
    iommu.driver().dead.store(true, Ordering::Relaxed);
    assert!(claim.detach().is_err());
    assert_eq!(kills(&iommu, &mut seat, at), 1, "its device may still be there");
}

#[test]
fn c14_no_page_is_taken_of_a_region_that_is_ending() {
    let iommu = policy();
    iommu.register_memory(VM, guest(0, BYTES), extent(HOST, BYTES)).expect("a region");
    let mut seat = iommu.seat(0).expect("a seat");
    let call = seat.enter(VM);
    assert!(call.page(0, GuestPhysAddr::new(0), IoPageSize::SIZE_4K).is_some());
    assert!(iommu.vm_died(VM, drop, &FakeClock::default(), LIMIT).is_err(), "a session is under way");
    drop(call);
    assert!(seat.enter(VM).page(0, GuestPhysAddr::new(0), IoPageSize::SIZE_4K).is_none());
}
