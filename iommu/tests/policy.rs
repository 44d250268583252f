//! The policy against a driver that records what it is asked to do and can be made to fail.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use portcullis_hal::{Access, Iova, IovaRange, PhysAddr};
use portcullis_iommu::{Debts, Error, Run, driver::TablesChanged};
use recorder::{DEAD, Did, OTHER, PAGE, QuiesceAndAttach, VM, device, extent, policy};

#[test]
fn a01_nobody_claims_without_a_grant() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::NotGranted { vm: VM, group }));
    iommu.grant(OTHER, group).expect("a grant");
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::NotGranted { vm: VM, group }));
    assert!(iommu.driver().took().is_empty(), "a refused claim touched hardware");
    let unknown = portcullis_iommu::GroupId(9);
    assert_eq!(iommu.claim(VM, unknown).err(), Some(Error::UnknownGroup { group: unknown }));
}

#[test]
fn a02_one_owner_at_a_time_blocked_first() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    iommu.grant(OTHER, group).expect("a grant");
    let claim = iommu.claim(VM, group).expect("a claim");
    assert_eq!(iommu.driver().took(), [Did::Block]);
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::OwnedBy { owner: VM }));
    drop(claim);
    let claim = iommu.claim(OTHER, group).expect("a claim after the drop");
    claim.release().expect("a release");
    drop(iommu.claim(VM, group).expect("a claim after the release"));
}

#[test]
fn a03_a_claim_on_hardware_that_hangs_leaves_the_group_free_and_quarantined() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(iommu.claim(VM, group).err(), Some(DEAD));
    iommu.driver().0.borrow_mut().dead = false;
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::Quarantined));
}

#[test]
fn a04_groups_are_checked_when_they_are_registered() {
    let iommu = policy();
    assert_eq!(iommu.add_group(&[]).err(), Some(Error::BadMemberCount { count: 0 }));
    let nine: Vec<_> = (0..9).map(device).collect();
    assert_eq!(iommu.add_group(&nine).err(), Some(Error::BadMemberCount { count: 9 }));
    assert_eq!(
        iommu.add_group(&[device(1), device(1)]).err(),
        Some(Error::DuplicateDevice { device: device(1) })
    );
    iommu.add_group(&[device(1), device(2)]).expect("a group");
    assert_eq!(
        iommu.add_group(&[device(3), device(2)]).err(),
        Some(Error::DuplicateDevice { device: device(2) })
    );
    for number in 3..6 {
        iommu.add_group(&[device(number)]).expect("a group");
    }
    assert_eq!(iommu.add_group(&[device(9)]).err(), Some(Error::Full { capacity: 4 }));
}

#[test]
fn a05_a_refused_attach_changes_nothing() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    let context = iommu.create_context(VM, &()).expect("a context");
    let foreign = iommu.create_context(OTHER, &()).expect("a context");
    iommu.driver().took();
    assert_eq!(claim.quiesce_and_attach(foreign), Err(Error::OwnedBy { owner: OTHER }));
    iommu.driver().0.borrow_mut().refuse_prepare = true;
    assert_eq!(claim.quiesce_and_attach(context), Err(Error::NotBehindUnit { device: device(1) }));
    assert!(iommu.driver().took().is_empty());
    iommu.destroy_context(context).expect("a refused attach left no user");
}

#[test]
fn a06_a_context_in_use_is_not_destroyed_and_a_stale_handle_is_refused() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    let (first, second) =
        (iommu.create_context(VM, &()).expect("one"), iommu.create_context(VM, &()).expect("two"));
    assert_eq!(iommu.create_context(VM, &()).err(), Some(Error::Full { capacity: 2 }));
    claim.quiesce_and_attach(first).expect("an attach");
    claim.quiesce_and_attach(first).expect("a repeated attach");
    assert_eq!(iommu.destroy_context(first), Err(Error::InUse { users: 1 }));
    claim.quiesce_and_attach(second).expect("a switch");
    iommu.destroy_context(first).expect("nobody uses it");
    let stale = Err(Error::Stale { slot: first.slot() });
    assert_eq!(iommu.destroy_context(first), stale);
    let again = iommu.create_context(VM, &()).expect("the slot again");
    assert_eq!(again.slot(), first.slot());
    assert_eq!(iommu.map(first, Iova::new(0), extent(), Access::READ), stale);
    assert_eq!(claim.quiesce_and_attach(first), stale);
    claim.release().expect("a release");
    assert_eq!(iommu.destroy_context(second), Ok(()));
}

#[test]
fn u01_an_unmap_is_finished_only_after_its_flush() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    let range = IovaRange::new(Iova::new(0x1000), PAGE).expect("a range");
    iommu.map(context, range.start(), extent(), Access::WRITE).expect("a map");
    assert_eq!(iommu.iova_to_phys(context, range.start()), Ok(Some((PhysAddr::new(0x7000), Access::WRITE))));
    assert_eq!(iommu.unmap(context, range), Ok(PAGE));
    assert_eq!(iommu.driver().took(), [Did::Unmap, Did::Flush]);
}

#[test]
fn u02_a_context_with_an_unconfirmed_invalidation_keeps_its_tables() {
    let iommu = policy();
    let context = iommu.create_context(VM, &()).expect("a context");
    let range = IovaRange::new(Iova::new(0x1000), PAGE).expect("a range");
    iommu.map(context, range.start(), extent(), Access::WRITE).expect("a map");
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(iommu.unmap(context, range), Err(DEAD));
    iommu.driver().0.borrow_mut().dead = false;
    assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined));
    assert!(!iommu.driver().took().contains(&Did::Destroy(1)));
}

#[test]
fn u02_a_switch_that_hangs_keeps_both_contexts() {
    let iommu = policy();
    let group = iommu.add_group(&[device(1)]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    let (old, new) =
        (iommu.create_context(VM, &()).expect("one"), iommu.create_context(VM, &()).expect("two"));
    claim.quiesce_and_attach(old).expect("an attach");
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(claim.quiesce_and_attach(new), Err(DEAD));
    assert_eq!(claim.quiesce_and_attach(new), Err(Error::Quarantined));
    assert_eq!(claim.release(), Err(DEAD));
    assert_eq!(iommu.destroy_context(old), Err(Error::Quarantined));
    assert_eq!(iommu.destroy_context(new), Err(Error::Quarantined));
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::Quarantined));
}

#[test]
fn u03_debts_join_and_overflow_into_everything() {
    let mut debts = Debts::new();
    let run = |start, tables_changed| Run {
        range: IovaRange::new(Iova::new(start), PAGE).expect("a range"),
        tables_changed,
    };
    debts.owe(run(0x1000, TablesChanged::LeavesOnly));
    debts.owe(run(0x2000, TablesChanged::NonLeaves));
    let joined = [Run {
        range: IovaRange::new(Iova::new(0x1000), 2 * PAGE).expect("a range"),
        tables_changed: TablesChanged::NonLeaves,
    }];
    assert_eq!(debts.runs(), Some(joined.as_slice()));
    for number in 0..16 {
        debts.owe(run(0x10_0000 + number * 0x10_000, TablesChanged::LeavesOnly));
    }
    assert_eq!(debts.runs(), None, "what does not fit becomes one flush of everything");
    assert!(!debts.is_empty());
}
