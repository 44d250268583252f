//! Who gets a group, and how it is given up: contract A, row by row.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use portcullis_hal::{PhysAddr, PhysRange};
use portcullis_iommu::{
    DmaUse, Error, Event, Owner,
    ownership::{Harm, Reserved},
};
use recorder::{DEAD, Did, OTHER, PAGE, QuiesceAndAttach, VM, attached, device, granted, policy, quiesced};

#[test]
fn a07_host_drivers_are_counted_and_the_last_one_blocks_and_frees() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let first = iommu.bind_host(group, DmaUse::Dma).expect("a free group");
    let second = iommu.bind_host(group, DmaUse::Dma).expect("a host group");
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::OwnedByHost { drivers: 2 }));
    drop(first);
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::OwnedByHost { drivers: 1 }));
    iommu.driver().took();
    second.unbind().expect("hardware answers");
    assert_eq!(iommu.driver().took(), [Did::Block]);
    drop(iommu.claim(VM, group).expect("a free group"));
}

#[test]
fn a07_the_host_has_contexts_of_its_own() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (ours, theirs) = (iommu.create_host_context(&()), iommu.create_context(VM, &()));
    let (ours, theirs) = (ours.expect("a context"), theirs.expect("a context"));
    let mut binding = iommu.bind_host(group, DmaUse::Dma).expect("a free group");
    assert_eq!(binding.switch(theirs), Err(Error::OwnedBy { owner: VM }));
    assert_eq!(binding.switch(ours), Err(Error::NotQuiesced { group }));
    assert_eq!(iommu.owner(ours), Ok(Owner::Host));
    drop(binding);
    let mut claim = iommu.claim(VM, group).expect("a claim");
    assert_eq!(claim.switch(ours), Err(Error::OwnedByHost { drivers: 0 }));
}

#[test]
fn a08_a_host_driver_is_refused_a_guest_s_group_with_the_owner_s_id() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let claim = iommu.claim(VM, group).expect("a claim");
    iommu.driver().took();
    assert_eq!(iommu.bind_host(group, DmaUse::Dma).err(), Some(Error::OwnedBy { owner: VM }));
    assert!(iommu.driver().took().is_empty(), "a refusal touched hardware");
    drop(claim);
    drop(iommu.bind_host(group, DmaUse::Dma).expect("a free group"));
}

#[test]
fn a09_a_driver_without_dma_counts_neither_way() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let mut stub = iommu.bind_host(group, DmaUse::None).expect("a stub");
    let claim = iommu.claim(VM, group).expect("the stub is no owner");
    drop(iommu.bind_host(group, DmaUse::None).expect("nor does it need to be"));
    let context = iommu.create_host_context(&()).expect("a context");
    assert_eq!(stub.switch(context), Err(Error::NotAttached { group }));
    iommu.driver().took();
    drop(stub);
    assert!(iommu.driver().took().is_empty(), "it had nothing to give up");
    drop(claim);
}

#[test]
fn a10_an_owner_claims_again_and_only_the_last_release_blocks() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let (first, context) = attached(&iommu, group);
    let mut second = iommu.claim(VM, group).expect("a second claim of the owner");
    iommu.driver().took();
    first.release().expect("one is left");
    assert!(iommu.driver().took().is_empty(), "the group was blocked under its owner");
    second.switch(context).expect("still the owner");
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::OwnedBy { owner: VM }));
    iommu.driver().took();
    drop(second);
    assert_eq!(iommu.driver().took(), [Did::Block]);
    drop(iommu.claim(OTHER, group).expect("a free group"));
}

#[test]
fn a11_who_is_refused_learns_who_has_it_and_the_log_does_too() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let claim = iommu.claim(VM, group).expect("a claim");
    let error = Error::OwnedBy { owner: VM };
    assert_eq!(iommu.claim(OTHER, group).err(), Some(error));
    drop(claim);
    let owner = Owner::Guest(VM);
    let events: Vec<_> = std::iter::from_fn(|| iommu.take_event()).collect();
    let refused = Event::Refused { owner: Owner::Guest(OTHER), group, error };
    let blocked = Event::Blocked { group };
    assert_eq!(events, [blocked, Event::Claimed { owner, group }, refused, blocked]);
}

#[test]
fn a12_a_release_gives_up_also_when_hardware_hangs() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (claim, context) = attached(&iommu, group);
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(claim.release(), Err(DEAD));
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::Quarantined), "given up, and nobody's");
    assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined));
}

#[test]
fn a13_a_needed_reserved_region_is_refused_by_name_unless_declared_harmless() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let range = PhysRange::new(PhysAddr::new(0x7000_0000), PAGE).expect("a range");
    let region = Reserved { device: device(2), range, harm: Harm::Needed };
    iommu.declare_reserved(region).expect("a known device");
    let refused = Error::ReservedRegion { device: device(2), range };
    assert_eq!(iommu.claim(VM, group).err(), Some(refused));
    assert!(iommu.driver().took().is_empty(), "the device lost its region");
    iommu.declare_reserved(Reserved { harm: Harm::Harmless, ..region }).expect("declared again");
    drop(iommu.claim(VM, group).expect("a claim"));
    let unknown = Reserved { device: device(9), ..region };
    assert_eq!(iommu.declare_reserved(unknown), Err(Error::UnknownDevice { device: device(9) }));
}

#[test]
fn a14_a_hot_added_device_joins_the_context_or_is_refused_and_the_group_stays() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (mut claim, context) = attached(&iommu, group);
    iommu.driver().took();
    iommu.driver().0.borrow_mut().refuse_prepare = true;
    assert!(matches!(iommu.add_device(group, device(2)), Err(Error::NotBehindUnit { .. })));
    iommu.driver().0.borrow_mut().refuse_prepare = false;
    assert!(iommu.driver().took().is_empty());
    claim.switch(context).expect("the group works on");
    iommu.driver().took();
    iommu.add_device(group, device(2)).expect("refused devices may come again");
    assert_eq!(iommu.driver().took(), [Did::Attach(1)], "it joined the context");
    let error = Error::DuplicateDevice { device: device(2) };
    assert_eq!(iommu.add_device(group, device(2)), Err(error));
    claim.detach().expect("a detach");
    iommu.driver().took();
    iommu.add_device(group, device(3)).expect("a third device");
    assert_eq!(iommu.driver().took(), [Did::Block], "a blocked group takes a blocked device");
}

#[test]
fn a15_with_the_last_device_every_claim_goes_stale_and_every_grant_goes() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let (mut claim, context) = attached(&iommu, group);
    iommu.driver().took();
    iommu.remove_device(device(1)).expect("one of two");
    assert_eq!(iommu.driver().took(), [Did::Block]);
    claim.switch(context).expect("the claim follows");
    iommu.remove_device(device(2)).expect("the last one");
    let stale = Err(Error::Stale { slot: 0 });
    assert_eq!((claim.switch(context), claim.detach()), (stale, stale));
    iommu.add_device(group, device(1)).expect("plugged in again");
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::NotGranted { vm: VM, group }));
    iommu.grant(OTHER, group).expect("a grant");
    let other = iommu.claim(OTHER, group).expect("nobody's");
    drop(claim);
    assert_eq!(iommu.bind_host(group, DmaUse::Dma).err(), Some(Error::OwnedBy { owner: OTHER }));
    drop(other);
    assert_eq!(iommu.remove_device(device(7)), Err(Error::UnknownDevice { device: device(7) }));
}

#[test]
fn a15_a_device_that_hangs_when_it_is_removed_stays_known() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let (claim, context) = attached(&iommu, group);
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(iommu.remove_device(device(1)), Err(DEAD));
    iommu.driver().0.borrow_mut().dead = false;
    let known = Error::DuplicateDevice { device: device(1) };
    assert_eq!(iommu.add_group(&[device(1)]), Err(known));
    drop(claim);
    assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined));
}

#[test]
fn a16_a_withdrawn_grant_ends_no_claim_and_allows_no_other() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (mut claim, context) = attached(&iommu, group);
    iommu.withdraw_grant(VM, group).expect("a group");
    claim.switch(context).expect("the claim stays");
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::NotGranted { vm: VM, group }));
}

#[test]
fn a17_a_new_owner_s_attach_needs_a_proof_of_this_ownership() {
    let iommu = policy();
    let (group, other_group) = (granted(&iommu, &[1]), granted(&iommu, &[2]));
    let context = iommu.create_context(VM, &()).expect("a context");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    let other = iommu.claim(VM, other_group).expect("a claim");
    let refused = Err(Error::NotQuiesced { group });
    assert_eq!(claim.switch(context), refused);
    assert_eq!(claim.attach(context, quiesced(&other).expect("a proof")), refused, "of another group");
    let old = quiesced(&claim).expect("a proof");
    claim.release().expect("a release");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    assert_eq!(claim.attach(context, old), refused, "of an older ownership");
    let proof = quiesced(&claim).expect("a proof");
    claim.attach(context, proof).expect("quiesced");
    claim.detach().expect("a detach");
    claim.switch(context).expect("the same owner needs no more");
}

#[test]
fn a18_a_switch_goes_straight_from_context_to_context() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let (mut claim, _) = attached(&iommu, group);
    let second = iommu.create_context(VM, &()).expect("a context");
    iommu.driver().took();
    claim.quiesce_and_attach(second).expect("a switch");
    assert_eq!(iommu.driver().took(), [Did::Attach(2)], "one change for the whole group");
}
