//! Sessions: what stays as long as one lives, and what they count.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod pages;

use std::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use pages::{DEAD, LARGE, OTHER, PAGE, Pages, Policy, VM, context, extent, guest, iovas, live, map, policy};
use portcullis_fake::obedient::ObedientFunctions;
use portcullis_hal::{Access, Clock, DeviceId, Iova, PhysAddr, PhysRange, RequesterId, Segment};
use portcullis_iommu::{Claim, ContextHandle, Error, RegionHandle, Seat, Session, VmId, pci::Method};

const HOST: u64 = 0x4000_0000;
const BYTES: u64 = 64 * PAGE;
const LIMIT: Duration = Duration::from_millis(5);

type Call<'s, 'i> = Session<'s, 'i, Pages, 4, 8>;

/// A millisecond passes with each look.
#[derive(Default)]
struct Ticking(Cell<u64>);

impl Clock for Ticking {
    fn now(&self) -> Duration {
        self.0.set(self.0.get() + 1);
        Duration::from_millis(self.0.get())
    }
}

fn register(iommu: &Policy) -> RegionHandle {
    iommu.register_memory(VM, guest(0, BYTES), extent(HOST, BYTES)).expect("a region")
}

fn mapped(iommu: &Policy, region: RegionHandle) -> u64 {
    iommu.region(VM, region).expect("a region").mapped
}

fn put(call: &Call<'_, '_>, at: ContextHandle, iova: u64, bytes: u64, to: Option<u64>) -> Result<(), Error> {
    let context = call.context(at)?;
    let part = to.map(|to| call.memory(0, guest(to, bytes))).transpose()?;
    let mut owed = call.owed();
    let new = part.as_ref().map(|part| (part, Access::all()));
    call.exchange(&context, Iova::new(iova), bytes, new, &mut owed)?;
    call.kill(&context)?;
    call.settle(owed);
    Ok(())
}

fn once(seat: &mut Seat<'_, Pages, 4, 8>, at: ContextHandle, iova: u64, to: Option<u64>) {
    put(&seat.enter(VM), at, iova, PAGE, to).expect("served");
}

fn device() -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(8) }
}

fn attached(iommu: &Policy, context: ContextHandle) -> Claim<'_, Pages, 4, 8> {
    let group = iommu.add_group(&[device()]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    let proof = claim.quiesce(&ObedientFunctions, &Ticking::default(), Method::BusMasterOff, LIMIT);
    claim.attach(context, proof.expect("a proof")).expect("an attach");
    claim
}

#[test]
fn c11_nothing_ends_while_a_session_lives_and_a_refusal_changes_nothing() {
    let iommu = policy();
    let (region, at) = (register(&iommu), context(&iommu, VM));
    let claim = attached(&iommu, at);
    let mut seat = iommu.seat(3).expect("a seat");
    let call = seat.enter(VM);
    assert_eq!(call.vm(), VM);
    assert!(call.context(at).is_ok());
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::Busy));
    assert!(call.memory(0, guest(0, PAGE)).is_ok(), "open as before");
    assert_eq!(iommu.wait_for_sessions(&Ticking::default(), LIMIT), Err(Error::Busy));
    let other = iommu.create_context(VM, &iommu.aperture(at).expect("live").page_sizes).expect("a free slot");
    assert_eq!(iommu.destroy_context(other), Err(Error::Busy));
    assert!(call.context(other).is_ok(), "open as before");
    let revoked = iommu.revoke(VM, claim.group(), drop, &Ticking::default(), LIMIT);
    assert_eq!(revoked, Err(Error::Busy), "its tables are kept");
    assert_eq!(call.context(at).map(drop), Err(Error::Stale { slot: at.slot() }));
    drop(call);
    assert_eq!(iommu.wait_for_sessions(&Ticking::default(), LIMIT), Ok(()));
    assert_eq!(iommu.destroy_context(other), Ok(()));
    assert_eq!(iommu.unregister_memory(VM, region), Ok(()));
    let gone = Err(Error::NotRegistered { guest: guest(0, PAGE) });
    assert_eq!(seat.enter(VM).memory(0, guest(0, PAGE)).map(drop), gone);
    drop(claim);
}

#[test]
fn c11_of_a_dead_vm_nothing_ends_while_a_session_lives() {
    let iommu = policy();
    let (region, at) = (register(&iommu), context(&iommu, VM));
    let mut seat = iommu.seat(0).expect("a seat");
    once(&mut seat, at, 0, Some(PAGE));
    let call = seat.enter(VM);
    let found = call.context(at).expect("live");
    assert!(iommu.vm_died(VM, drop, &Ticking::default(), LIMIT).is_err());
    assert!(call.is_mapped(&found, Iova::new(0)), "its tables are there");
    assert_eq!(mapped(&iommu, region), 1);
    drop(call);
    assert_eq!(iommu.vm_died(VM, drop, &Ticking::default(), LIMIT), Ok(()));
    assert_eq!(iommu.region(VM, region).err(), Some(Error::Stale { slot: region.slot() }));
}

#[test]
fn c12_entries_of_sessions_are_counted_out_by_whoever_ends_them() {
    let iommu = policy();
    let (region, at) = (register(&iommu), context(&iommu, VM));
    let mut seats = [0, 7].map(|cpu| iommu.seat(cpu).expect("a seat"));
    for page in 0..8 {
        once(&mut seats[(page % 2) as usize], at, page * PAGE, Some(page * PAGE));
    }
    once(&mut seats[0], at, PAGE, None);
    once(&mut seats[1], at, 0, Some(9 * PAGE));
    assert_eq!((mapped(&iommu, region), live(&iommu, at, 64, HOST..HOST + BYTES)), (7, 7));
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::StillMapped { pages: 7 }));
    assert_eq!(iommu.destroy_context(at), Ok(()));
    assert_eq!(mapped(&iommu, region), 0);
    let again = context(&iommu, VM);
    once(&mut seats[0], again, 0, Some(0));
    assert_eq!(mapped(&iommu, region), 1, "on top of what the control plane took out");
    once(&mut seats[1], again, 0, None);
    assert_eq!(iommu.release_memory(VM), Ok(()));
}

#[test]
fn c12_what_is_settled_before_every_changed_context_was_killed_is_never_counted_out() {
    let iommu = policy();
    let (region, at) = (register(&iommu), context(&iommu, VM));
    let second = context(&iommu, VM);
    let mut seat = iommu.seat(0).expect("a seat");
    for context in [at, second] {
        once(&mut seat, context, 0, Some(0));
    }
    {
        let call = seat.enter(VM);
        let [first, other] = [at, second].map(|context| call.context(context).expect("live"));
        let mut owed = call.owed();
        for context in [&first, &other] {
            call.exchange(context, Iova::new(0), PAGE, None, &mut owed).expect("an exchange");
        }
        call.kill(&first).expect("confirmed");
        call.settle(owed);
    }
    assert_eq!(mapped(&iommu, region), 2, "a device may reach it through the other context");
    once(&mut seat, at, 0, Some(0));
    once(&mut seat, at, 0, None);
    assert_eq!(mapped(&iommu, region), 2, "and what comes later is counted as ever");
}

#[test]
fn c12_without_a_confirmed_kill_counts_and_tables_stay() {
    let iommu = policy();
    let (region, at) = (register(&iommu), context(&iommu, VM));
    let mut claim = attached(&iommu, at);
    let mut seat = iommu.seat(0).expect("a seat");
    once(&mut seat, at, 0, Some(0));
    iommu.driver().dead.store(true, Ordering::Relaxed);
    assert_eq!(put(&seat.enter(VM), at, 0, PAGE, None), Err(DEAD));
    iommu.driver().dead.store(false, Ordering::Relaxed);
    claim.detach().expect("a detach");
    assert_eq!(mapped(&iommu, region), 1);
    assert_eq!(iommu.destroy_context(at), Err(Error::Quarantined));
    assert_eq!(iommu.unregister_memory(VM, region), Err(Error::StillMapped { pages: 1 }));
}

#[test]
fn c13_a_context_is_changed_by_sessions_or_by_mapping_calls() {
    let iommu = policy();
    register(&iommu);
    let [by_extents, by_regions, with_bar, untouched, ours] = [(); 5].map(|()| context(&iommu, VM));
    iommu.map(by_extents, Iova::new(0), extent(LARGE, PAGE), Access::READ).expect("a map");
    map(&iommu, by_regions, 0, 0, PAGE).expect("a map");
    let mut claim = attached(&iommu, with_bar);
    let bar = PhysRange::new(PhysAddr::new(1 << 40), PAGE).expect("a range");
    iommu.declare_bar(device(), bar).expect("a BAR");
    let map_bar = |at| iommu.map_bar(at, Iova::new(0), device(), extent(1 << 40, PAGE), Access::READ);
    assert_eq!(map_bar(with_bar), Ok(()));
    assert_eq!(iommu.unmap(untouched, iovas(0, PAGE)), Ok(0), "nothing was mapped");
    assert_eq!(iommu.unmap(untouched, iovas(1, PAGE)), Err(Error::Misaligned { value: 1 }));
    let outside = Error::OutsideAperture { iova: Iova::new(1 << 48), bytes: PAGE };
    assert_eq!(iommu.unmap(untouched, iovas(1 << 48, PAGE)), Err(outside));
    let mut seat = iommu.seat(0).expect("a seat");
    let refused = |seat: &mut Seat<'_, Pages, 4, 8>, at| seat.enter(VM).context(at).map(drop);
    for at in [by_extents, by_regions, with_bar] {
        assert_eq!(refused(&mut seat, at), Err(Error::OtherBacking));
    }
    once(&mut seat, untouched, 0, Some(0));
    once(&mut seat, ours, 0, Some(0));
    assert_eq!(iommu.unmap(ours, iovas(0, PAGE)), Err(Error::OtherBacking));
    assert_eq!(map(&iommu, ours, PAGE, 0, PAGE), Err(Error::OtherBacking));
    let by_extent = iommu.map(ours, Iova::new(PAGE), extent(LARGE, PAGE), Access::READ);
    assert_eq!(by_extent, Err(Error::OtherBacking));
    assert_eq!(map_bar(ours), Err(Error::OtherBacking));
    iommu.unmap_bar(with_bar, iovas(0, PAGE)).expect("mapped there");
    claim.switch(ours).expect("a switch");
}

#[test]
fn c03_a_session_finds_the_memory_of_its_vm_and_no_other() {
    let iommu = policy();
    register(&iommu);
    let mut seat = iommu.seat(0).expect("a seat");
    let found = |seat: &mut Seat<'_, Pages, 4, 8>, vm: VmId, hint, start, bytes| {
        seat.enter(vm).memory(hint, guest(start, bytes)).map(|part| (part.slot(), part.extent().start()))
    };
    let behind = |offset| Ok((0, PhysAddr::new(HOST + offset)));
    assert_eq!(found(&mut seat, VM, 0, PAGE, PAGE), behind(PAGE));
    assert_eq!(found(&mut seat, VM, 5, BYTES - PAGE, PAGE), behind(BYTES - PAGE), "a wrong hint");
    assert_eq!(found(&mut seat, VM, u32::MAX, 0, BYTES), behind(0), "no hint");
    let none = |start, bytes| Err(Error::NotRegistered { guest: guest(start, bytes) });
    assert_eq!(found(&mut seat, OTHER, 0, 0, PAGE), none(0, PAGE));
    assert_eq!(found(&mut seat, VM, 0, BYTES - PAGE, 2 * PAGE), none(BYTES - PAGE, 2 * PAGE));
    assert_eq!(found(&mut seat, VM, 0, 1, PAGE), Err(Error::Misaligned { value: 1 }));
}

#[test]
fn c12_counts_stay_exact_when_cpus_exchange_and_contexts_and_regions_end_at_once() {
    let rounds: u64 = if cfg!(miri) { 20 } else { 3000 };
    let iommu = policy();
    let region = register(&iommu);
    let (done, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let contexts = [0; 2].map(|_: u64| context(&iommu, VM));
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (iommu, done, served) = (&iommu, &done, &served);
            scope.spawn(move || {
                let mut seat = iommu.seat(cpu).expect("its own");
                for round in 0..rounds {
                    // Each CPU has its own entries in both contexts.
                    let iova = (cpu as u64 * 8 + round % 8) * PAGE;
                    let to = (round % 3 != 0).then_some(round % 64 * PAGE);
                    let call = seat.enter(VM);
                    let result = put(&call, contexts[(round / 8 % 2) as usize], iova, PAGE, to);
                    served.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
                }
                done.store(true, Ordering::Relaxed);
            });
        }
        while !done.load(Ordering::Relaxed) {
            if iommu.unregister_memory(VM, region).is_ok() {
                assert_eq!(contexts.map(|at| live(&iommu, at, 16, HOST..HOST + BYTES)), [0; 2]);
                return;
            }
            thread::yield_now();
        }
    });
    let live: u64 = contexts.iter().map(|&at| live(&iommu, at, 16, HOST..HOST + BYTES)).sum();
    assert!(served.load(Ordering::Relaxed) > 0);
    if live > 0 {
        assert_eq!(mapped(&iommu, region), live);
    }
    contexts.iter().for_each(|&at| iommu.destroy_context(at).expect("unused"));
    assert_eq!(iommu.release_memory(VM), Ok(()));
}
