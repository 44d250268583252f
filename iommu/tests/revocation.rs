//! Proofs of ownership, external users, and how both end: contract B.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use std::{cell::RefCell, time::Duration};

use portcullis_fake::memory::FakeClock;
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova};
use portcullis_iommu::{Error, Event, Trusted, UserId, VmId};
use recorder::{
    DEAD, Did, OTHER, PAGE, Policy, QuiesceAndAttach, VM, attached, device, extent, granted, policy,
};

const LIMIT: Duration = Duration::from_millis(1);
const CORE: UserId = UserId(1);
const MODEL: UserId = UserId(2);

fn revoke(iommu: &Policy, group: portcullis_iommu::GroupId, told: impl FnMut(UserId)) -> Result<(), Error> {
    iommu.revoke(VM, group, told, &FakeClock::default(), LIMIT)
}

fn died(iommu: &Policy, vm: VmId) -> Result<(), Error> {
    iommu.vm_died(vm, |_| {}, &FakeClock::default(), LIMIT)
}

#[test]
fn b01_a_reference_needs_a_group_and_a_context() {
    let iommu = policy();
    let trusted = Trusted::hypervisor();
    let unknown = Error::UnknownDevice { device: device(1) };
    assert_eq!(iommu.refer_to_device(&trusted, CORE, device(1)).err(), Some(unknown));
    let group = granted(&iommu, &[1]);
    let unattached = Some(Error::NotAttached { group });
    assert_eq!(iommu.refer_to_device(&trusted, CORE, device(1)).err(), unattached);
    let claim = iommu.claim(VM, group).expect("a claim");
    assert_eq!(claim.refer(CORE).err(), unattached);
}

#[test]
fn b02_as_long_as_a_reference_lives_the_context_stays() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (mut claim, context) = attached(&iommu, group);
    let users = [claim.refer(CORE), iommu.refer_to_device(&Trusted::hypervisor(), MODEL, device(1))];
    let [first, second] = users.map(|user| user.expect("a reference"));
    assert_eq!(first.context(), Ok(context));
    claim.detach().expect("a detach");
    assert_eq!(iommu.destroy_context(context), Err(Error::InUse { users: 2 }));
    drop(first);
    assert_eq!(iommu.destroy_context(context), Err(Error::InUse { users: 1 }));
    second.release().expect("nothing to give back");
    iommu.destroy_context(context).expect("nobody uses it");
}

#[test]
fn b02_no_reference_leaks_when_there_is_no_room() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, _) = attached(&iommu, group);
    let all: Vec<_> = (0..32).map(|user| claim.refer(UserId(user)).expect("room")).collect();
    assert_eq!(claim.refer(CORE).err(), Some(Error::Full { capacity: 32 }));
    drop(all);
    drop(claim.refer(CORE).expect("room again"));
}

#[test]
fn b03_users_are_told_first_in_order_then_access_ends_then_the_context_goes() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (mut claim, context) = attached(&iommu, group);
    let held = RefCell::new(vec![claim.refer(CORE).expect("one"), claim.refer(MODEL).expect("two")]);
    iommu.driver().took();
    let mut told = Vec::new();
    let told_by = |user| {
        assert!(iommu.driver().took().is_empty(), "access ended before a user was told");
        let first = held.borrow_mut().remove(0);
        assert_eq!(first.context(), Err(Error::Stale { slot: told.len() as u32 }), "told, and still let in");
        told.push(user);
    };
    revoke(&iommu, group, told_by).expect("everybody left");
    assert_eq!(told, [CORE, MODEL]);
    assert_eq!(iommu.driver().took(), [Did::Block, Did::Destroy(1)]);
    let stale = Error::Stale { slot: context.slot() };
    assert_eq!(iommu.map(context, Iova::new(0), extent(), Access::READ), Err(stale));
    assert!(matches!(claim.switch(context), Err(Error::Stale { .. })));
    drop(iommu.claim(OTHER, group).expect("nobody's"));
}

#[test]
fn b04_an_old_claim_does_not_release_its_successor() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (old, _) = attached(&iommu, group);
    revoke(&iommu, group, |_| {}).expect("a revocation");
    let again = iommu.claim(VM, group).expect("the grant stays");
    iommu.driver().took();
    assert!(matches!(old.refer(CORE).err(), Some(Error::Stale { .. })));
    old.release().expect("nothing is left to give up");
    assert!(iommu.driver().took().is_empty());
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::OwnedBy { owner: VM }));
    drop(again);
}

#[test]
fn b04_only_the_owner_s_own_ownership_is_revoked() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    assert_eq!(revoke(&iommu, group, |_| {}), Err(Error::NotOwner { vm: VM, group }));
    let claim = iommu.claim(OTHER, group).expect("a claim");
    assert_eq!(revoke(&iommu, group, |_| {}), Err(Error::OwnedBy { owner: OTHER }));
    drop(claim);
}

#[test]
fn b05_the_last_reference_lets_a_revoked_context_go() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, context) = attached(&iommu, group);
    let user = claim.refer(CORE).expect("a reference");
    iommu.driver().took();
    assert_eq!(revoke(&iommu, group, |_| {}), Err(Error::InUse { users: 1 }));
    assert_eq!(iommu.driver().took(), [Did::Block], "access ended, the tables stay");
    let stale = Error::Stale { slot: context.slot() };
    assert_eq!(iommu.aperture(context).err(), Some(stale));
    user.release().expect("a release");
    assert_eq!(iommu.driver().took(), [Did::Destroy(1)]);
    drop(claim);
}

#[test]
fn b06_a_context_that_another_group_uses_survives_a_revocation() {
    let iommu = policy();
    let (group, sister) = (granted(&iommu, &[1]), granted(&iommu, &[2]));
    let (claim, context) = attached(&iommu, group);
    let mut other = iommu.claim(VM, sister).expect("a claim");
    other.quiesce_and_attach(context).expect("an attach");
    iommu.driver().took();
    revoke(&iommu, group, |_| {}).expect("a revocation");
    assert_eq!(iommu.driver().took(), [Did::Block]);
    iommu.map(context, Iova::new(0), extent(), Access::READ).expect("the sister works on");
    drop(claim);
    iommu.driver().took();
    revoke(&iommu, sister, |_| {}).expect("a revocation");
    assert_eq!(iommu.driver().took()[..2], [Did::Block, Did::Destroy(1)]);
    drop(other);
}

#[test]
fn b07_dead_hardware_does_not_hold_up_a_revocation() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, context) = attached(&iommu, group);
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(revoke(&iommu, group, |_| {}), Err(DEAD));
    assert!(!iommu.driver().took().contains(&Did::Destroy(1)), "hardware may still walk the tables");
    assert_eq!(iommu.aperture(context).err(), Some(Error::Stale { slot: context.slot() }));
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::Quarantined));
    drop(claim);
}

#[test]
fn b08_death_ends_all_that_a_vm_has_and_leaves_others_alone() {
    let iommu = policy();
    let (group, other_group) = (granted(&iommu, &[1]), granted(&iommu, &[2]));
    let (claim, context) = attached(&iommu, group);
    let others = iommu.claim(OTHER, other_group).expect("a claim");
    let unused = iommu.create_context(VM, &()).expect("a context");
    iommu.driver().took();
    died(&iommu, VM).expect("nothing in the way");
    assert_eq!(iommu.driver().took(), [Did::Block, Did::Destroy(1), Did::Destroy(2)]);
    for context in [context, unused] {
        assert_eq!(iommu.destroy_context(context), Err(Error::Stale { slot: context.slot() }));
    }
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::NotGranted { vm: VM, group }));
    let died = std::iter::from_fn(|| iommu.take_event()).last();
    assert_eq!(
        died,
        Some(Event::Refused {
            owner: portcullis_iommu::Owner::Guest(VM),
            group,
            error: Error::NotGranted { vm: VM, group },
        })
    );
    others.release().expect("another VM's claim is as before");
    drop(claim);
}

#[test]
fn b08_death_takes_up_what_an_earlier_one_had_to_keep() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, _) = attached(&iommu, group);
    let user = claim.refer(CORE).expect("a reference");
    assert_eq!(died(&iommu, VM), Err(Error::InUse { users: 1 }));
    assert_eq!(died(&iommu, VM), Err(Error::InUse { users: 1 }), "asked again too early");
    drop(user);
    died(&iommu, VM).expect("nobody is left");
    drop(claim);
}

#[test]
fn b08_a_dying_vm_gets_nothing_new() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, _) = attached(&iommu, group);
    let user = RefCell::new(Some(claim.refer(CORE).expect("a reference")));
    let ending = Error::Ending { vm: VM };
    let told = |_| {
        drop(user.borrow_mut().take());
        assert_eq!(iommu.grant(VM, group), Err(ending));
        assert_eq!(iommu.claim(VM, group).err(), Some(ending));
        assert_eq!(iommu.create_context(VM, &()).err(), Some(ending));
        assert_eq!(died(&iommu, VM), Err(ending));
    };
    iommu.vm_died(VM, told, &FakeClock::default(), LIMIT).expect("a death");
    drop(claim);
}

#[test]
fn b08_death_releases_memory_last_and_only_if_nothing_can_reach_it() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let guest = GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).expect("a range");
    let region = iommu.register_memory(VM, guest, extent()).expect("a region");
    let (claim, _) = attached(&iommu, group);
    let user = claim.refer(CORE).expect("a reference");
    assert_eq!(died(&iommu, VM), Err(Error::InUse { users: 1 }));
    iommu.region(VM, region).expect("a context of the VM still lives");
    drop(user);
    died(&iommu, VM).expect("nobody is left");
    assert!(matches!(iommu.region(VM, region), Err(Error::Stale { .. })));
    drop(claim);
}

#[test]
fn b08_memory_that_dead_hardware_may_reach_is_kept() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let guest = GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).expect("a range");
    let region = iommu.register_memory(VM, guest, extent()).expect("a region");
    let (claim, _) = attached(&iommu, group);
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(died(&iommu, VM), Err(DEAD));
    iommu.driver().0.borrow_mut().dead = false;
    assert_eq!(died(&iommu, VM), Err(Error::Quarantined), "for good");
    iommu.region(VM, region).expect("nobody else gets this memory");
    drop(claim);
}
