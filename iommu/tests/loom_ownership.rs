//! Claims, external references and coherency notices of two CPUs, in every interleaving and on every value
//! that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

mod small;

use std::time::Duration;

use loom::{
    model,
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{Acquire, Relaxed},
        },
    },
};
use portcullis_iommu::{Because, Coherency, Error, GroupId, Notice, Trusted, UserId, VmId};
use small::{BLOCKED, OTHER, Policy, Stopped, VM, attach, attached, cpu, device, machine};

const USER: UserId = UserId(7);
const NON_COHERENT: Coherency = Coherency::NonCoherent { because: Because::NotEnforced };

/// Claims for ever; whether it got the group.
fn claim_for_good(iommu: &Policy, vm: VmId, group: GroupId) -> bool {
    match iommu.claim(vm, group) {
        Ok(claim) => {
            assert_eq!(iommu.driver().reached.load(Relaxed), BLOCKED, "claimed, and not blocked yet");
            std::mem::forget(claim);
            true
        }
        Err(error) => {
            assert!(matches!(error, Error::OwnedBy { .. } | Error::Busy), "{error:?}");
            false
        }
    }
}

#[test]
fn l01_of_two_who_claim_at_once_one_wins_and_finds_the_group_blocked() {
    model(|| {
        let (iommu, group) = machine();
        let other = cpu(&iommu, move |iommu| claim_for_good(iommu, OTHER, group));
        let mine = claim_for_good(&iommu, VM, group);
        let theirs = other.join().expect("no panic");
        assert!(mine != theirs, "{mine} {theirs}");
    });
}

/// Claims and gives up, counting who has the group.
fn claim_for_a_while(iommu: &Policy, vm: VmId, group: GroupId, owners: &AtomicU32) {
    if let Ok(claim) = iommu.claim(vm, group) {
        assert_eq!(owners.fetch_add(1, Relaxed), 0, "two owners");
        owners.fetch_sub(1, Relaxed);
        claim.release().expect("a release");
    }
}

#[test]
fn l01_a_group_that_is_given_up_just_now_has_one_owner_at_a_time() {
    model(|| {
        let (iommu, group) = machine();
        let owners = Arc::new(AtomicU32::new(0));
        let seen = owners.clone();
        let other = cpu(&iommu, move |iommu| claim_for_a_while(iommu, OTHER, group, &seen));
        claim_for_a_while(&iommu, VM, group, &owners);
        other.join().expect("no panic");
        assert!(iommu.claim(VM, group).is_ok(), "given up by both, and still not free");
    });
}

/// Revokes the group; how many external users were told.
fn revoke(iommu: &Policy, group: GroupId) -> (Result<(), Error>, u32) {
    let mut told = 0;
    let ended = iommu.revoke(VM, group, |user| told += u32::from(user == USER), &Stopped, Duration::MAX);
    (ended, told)
}

#[test]
fn l05_an_external_user_is_told_of_a_revocation_and_keeps_the_tables_or_gets_no_reference() {
    model(|| {
        let (iommu, group, _) = attached(Coherency::Coherent);
        let taker =
            cpu(&iommu, |iommu| match iommu.refer_to_device(&Trusted::hypervisor(), USER, device()) {
                Ok(reference) => {
                    std::mem::forget(reference);
                    true
                }
                Err(_) => false,
            });
        let (ended, told) = revoke(&iommu, group);
        let got = taker.join().expect("no panic");
        assert_eq!(told, u32::from(got), "a reference was lost, or taken of an ownership that had ended");
        assert_eq!(iommu.driver().destroyed.load(Relaxed), u32::from(!got));
        let kept = if got { Err(Error::InUse { users: 1 }) } else { Ok(()) };
        assert_eq!(ended, kept);
    });
}

#[test]
fn l05_whoever_goes_last_of_a_revocation_and_an_external_user_gives_the_tables_back() {
    model(|| {
        let (iommu, group, _) = attached(Coherency::Coherent);
        let user = cpu(&iommu, |iommu| drop(iommu.refer_to_device(&Trusted::hypervisor(), USER, device())));
        let (ended, told) = revoke(&iommu, group);
        user.join().expect("no panic");
        assert!(told <= 1);
        assert!(matches!(ended, Ok(()) | Err(Error::InUse { users: 1 })), "{ended:?}");
        assert_eq!(iommu.driver().destroyed.load(Relaxed), 1, "kept for nobody, or given back twice");
    });
}

/// The verdict of the VM, which changes between two: odd epochs are those of the second.
fn verdict(iommu: &Policy) -> Notice {
    let notice = iommu.coherency(VM).expect("a VM");
    let odd = notice.epoch % 2 == 1;
    assert_eq!(notice.verdict == NON_COHERENT, odd, "a verdict with the epoch of another: {notice:?}");
    notice
}

#[test]
fn l06_who_sees_a_device_go_past_the_caches_is_told_to_flush() {
    model(|| {
        let (iommu, group) = machine();
        let context = iommu.create_context(VM, &NON_COHERENT).expect("a context");
        let mut claim = iommu.claim(VM, group).expect("a claim");
        let guest = cpu(&iommu, |iommu| {
            let reached = iommu.driver().reached.load(Acquire);
            let notice = verdict(iommu);
            assert!(reached == BLOCKED || notice.verdict == NON_COHERENT, "past the caches, unnoticed");
        });
        attach(&mut claim, context);
        guest.join().expect("no panic");
        std::mem::forget(claim);
    });
}

#[test]
fn l06_who_need_not_flush_any_more_finds_no_device_that_goes_past_the_caches() {
    model(|| {
        let (iommu, group, _) = attached(NON_COHERENT);
        let guest = cpu(&iommu, |iommu| {
            let before = verdict(iommu);
            let after = verdict(iommu);
            assert!(before.epoch <= after.epoch, "an old verdict shown as new: {before:?} {after:?}");
            if after.verdict == Coherency::Coherent {
                assert_eq!(iommu.driver().reached.load(Relaxed), BLOCKED, "let off too early");
            }
        });
        assert_eq!(revoke(&iommu, group), (Ok(()), 0));
        guest.join().expect("no panic");
        assert_eq!(verdict(&iommu).epoch, 2, "one change each way");
    });
}
