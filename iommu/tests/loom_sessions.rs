//! Sessions against whoever ends what they use, in every interleaving and on every value that weak memory
//! lets a load return. Models that look at too many words to be exhausted bound how often a CPU is
//! interrupted.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

mod small;

use std::time::Duration;

use loom::{
    model,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use portcullis_fake::{dma::extent, obedient::ObedientFunctions};
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova};
use portcullis_iommu::{Claim, Coherency, ContextHandle, Error, QuiescedGroup, RegionHandle, pci::Method};
use small::{EMPTY, PAGE, Policy, Small, Stopped, VM, attached, cpu, machine};

/// A host page.
const OLD: u32 = 7;

/// As [`model`], but a CPU is taken away from what it does at most so many times.
fn bounded(interruptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(run);
}

fn guest() -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).expect("a range")
}

fn register(iommu: &Policy) -> RegionHandle {
    iommu.register_memory(VM, guest(), extent(u64::from(OLD) * PAGE, PAGE)).expect("a region")
}

/// What a guest's mapping call does with the only entry: leads it to the guest's page or to nothing.
fn put(iommu: &Policy, context: ContextHandle, leads: bool) -> Result<(), Error> {
    let mut seat = iommu.seat(0).expect("its own");
    let call = seat.enter(VM);
    let context = call.context(context)?;
    let part = leads.then(|| call.memory(0, guest())).transpose()?;
    let mut owed = call.owed();
    let new = part.as_ref().map(|part| (part, Access::READ));
    call.exchange(&context, Iova::new(0), PAGE, new, &mut owed)?;
    call.kill(&context)?;
    call.settle(owed);
    Ok(())
}

/// Whether a mapping call was served; it may only be refused because something ends.
fn served(iommu: &Policy, context: ContextHandle, leads: bool) -> bool {
    match put(iommu, context, leads) {
        Ok(()) => true,
        Err(Error::NotRegistered { .. } | Error::Busy | Error::Stale { .. }) => false,
        Err(error) => panic!("{error:?}"),
    }
}

fn mapped(iommu: &Policy, region: RegionHandle) -> u64 {
    iommu.region(VM, region).expect("a region").mapped
}

fn leads(iommu: &Policy, context: ContextHandle) -> bool {
    iommu.iova_to_phys(context, Iova::new(0)).expect("a context").is_some()
}

/// A context of entries that sessions change, no device in it, and the VM's memory.
fn idle() -> (Arc<Policy>, ContextHandle, RegionHandle) {
    let (iommu, _) = machine();
    let context = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
    let region = register(&iommu);
    assert_eq!(put(&iommu, context, false), Ok(()));
    (iommu, context, region)
}

/// As a mapping call that leads the entry to the guest's page, without a search; whether it could.
fn replaced(iommu: &Policy, context: ContextHandle) -> bool {
    let mut seat = iommu.seat(0).expect("its own");
    let call = seat.enter(VM);
    let Some(table) = call.leaf_table(context, Iova::new(0)) else { return false };
    let Some(entry) = call.entry(&table, Iova::new(0)) else { return false };
    let Some(page) = call.page(0, GuestPhysAddr::new(0), IoPageSize::SIZE_4K) else { return false };
    call.replace(&entry, Some((&page, Access::READ)), || ()) == Some(Ok(()))
}

/// A region ends while a session maps it, if it can.
fn unregistered_during(session: fn(&Policy, ContextHandle) -> bool) {
    bounded(3, move || {
        let (iommu, context, region) = idle();
        let other = cpu(&iommu, move |iommu| session(iommu, context));
        let ended = iommu.unregister_memory(VM, region);
        let made = other.join().expect("no panic");
        assert_eq!(leads(&iommu, context), made);
        if ended.is_ok() {
            assert!(!made, "memory that was given back");
        } else {
            assert!(matches!(ended, Err(Error::StillMapped { pages: 1 } | Error::Busy)), "{ended:?}");
            assert_eq!(mapped(&iommu, region), u64::from(made));
            let again = iommu.unregister_memory(VM, region);
            assert_eq!(again, if made { Err(Error::StillMapped { pages: 1 }) } else { Ok(()) });
        }
    });
}

#[test]
fn l08_no_region_ends_under_a_session_and_none_is_mapped_that_has_ended() {
    unregistered_during(|iommu, context| served(iommu, context, true));
}

#[test]
fn l08_no_region_ends_under_a_session_that_searches_nothing() {
    unregistered_during(replaced);
}

#[test]
fn l08_a_region_does_not_end_before_the_kill_of_a_session_is_confirmed() {
    model(|| {
        let (iommu, _, context) = attached(Coherency::Coherent);
        let region = register(&iommu);
        assert_eq!(put(&iommu, context, true), Ok(()));
        let killed = iommu.driver().flushed.load(Relaxed);
        let other = cpu(&iommu, move |iommu| served(iommu, context, false));
        let ended = iommu.unregister_memory(VM, region);
        if ended.is_ok() {
            assert_eq!(iommu.driver().flushed.load(Relaxed), killed + 1, "ended, and hardware may reach it");
        }
        assert!(other.join().expect("no panic"));
        if ended.is_err() {
            assert_eq!((leads(&iommu, context), mapped(&iommu, region)), (false, 0));
        }
    });
}

#[test]
fn l09_no_context_is_destroyed_under_a_session_and_its_entries_are_counted_out() {
    bounded(3, || {
        let (iommu, context, region) = idle();
        let other = cpu(&iommu, move |iommu| served(iommu, context, true));
        let destroyed = iommu.destroy_context(context);
        let made = other.join().expect("no panic");
        match destroyed {
            Ok(()) => {
                let left = if made { OLD } else { EMPTY };
                assert_eq!(
                    iommu.driver().left.load(Relaxed),
                    left,
                    "an entry in tables that were given back"
                );
                assert_eq!(mapped(&iommu, region), 0);
            }
            Err(error) => {
                assert_eq!((error, mapped(&iommu, region)), (Error::Busy, u64::from(made)));
                assert_eq!(leads(&iommu, context), made);
            }
        }
    });
}

#[test]
fn l09_no_context_is_revoked_under_a_session_and_its_entries_are_counted_out() {
    bounded(2, || {
        let (iommu, group, context) = attached(Coherency::Coherent);
        let region = register(&iommu);
        assert_eq!(put(&iommu, context, false), Ok(()));
        let other = cpu(&iommu, move |iommu| served(iommu, context, true));
        assert_eq!(iommu.revoke(VM, group, drop, &Stopped, Duration::MAX), Ok(()));
        let left = if other.join().expect("no panic") { OLD } else { EMPTY };
        assert_eq!(iommu.driver().left.load(Relaxed), left, "an entry in tables that were given back");
        assert_eq!(mapped(&iommu, region), 0);
        assert_eq!(put(&iommu, context, true), Err(Error::Stale { slot: context.slot() }));
    });
}

#[test]
fn l09_the_memory_of_a_dead_vm_is_released_when_no_session_uses_it() {
    bounded(2, || {
        let (iommu, _, context) = attached(Coherency::Coherent);
        let region = register(&iommu);
        assert_eq!(put(&iommu, context, false), Ok(()));
        let other = cpu(&iommu, move |iommu| served(iommu, context, true));
        let died = iommu.vm_died(VM, drop, &Stopped, Duration::MAX);
        let left = if other.join().expect("no panic") { OLD } else { EMPTY };
        assert_eq!(iommu.driver().left.load(Relaxed), left, "an entry in tables that were given back");
        if died.is_err() {
            assert_eq!((died, mapped(&iommu, region)), (Err(Error::Busy), 0), "a session was late");
            assert_eq!(iommu.vm_died(VM, drop, &Stopped, Duration::MAX), Ok(()));
        }
        assert_eq!(iommu.region(VM, region).err(), Some(Error::Stale { slot: region.slot() }));
    });
}

fn quiesced(claim: &mut Claim<'_, Small, 1, 2>) -> QuiescedGroup {
    let proof = claim.quiesce(&ObedientFunctions, &Stopped, Method::BusMasterOff, Duration::from_millis(1));
    proof.expect("a proof")
}

/// A device joins the context while a session changes its entry: what it may have cached of the old one was killed.
fn joined_during_a_session(had_left: bool) {
    let (iommu, group) = machine();
    let context = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
    register(&iommu);
    let mut claim = iommu.claim(VM, group).expect("a claim");
    if had_left {
        let proof = quiesced(&mut claim);
        claim.attach(context, proof).expect("nobody is inside");
        claim.detach().expect("a detach");
    }
    assert_eq!(put(&iommu, context, false), Ok(()));
    let (before, proof) = (iommu.driver().flushed.load(Relaxed), quiesced(&mut claim));
    let other = cpu(&iommu, move |iommu| served(iommu, context, true));
    let joined = claim.attach(context, proof);
    assert!(other.join().expect("no panic"));
    let killed = iommu.driver().flushed.load(Relaxed) > before;
    if joined.is_ok() && !killed {
        assert_eq!(iommu.driver().found.load(Relaxed), OLD, "the device may have cached the old entry");
    }
    std::mem::forget(claim);
}

#[test]
fn l10_a_session_that_kills_nothing_has_stored_before_the_first_device_joins() {
    bounded(3, || joined_during_a_session(false));
}

#[test]
fn l10_a_session_that_kills_nothing_has_stored_before_a_device_joins_after_the_last_one_left() {
    bounded(3, || joined_during_a_session(true));
}
