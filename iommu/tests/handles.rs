//! Handles: forged, replayed, foreign.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use std::time::Duration;

use portcullis_fake::memory::FakeClock;
use portcullis_iommu::{Error, GroupId, Handle, HandleTable, Rights, UserId, handle::Object};
use recorder::{OTHER, Policy, VM, attached, granted, policy};

const SEED: u32 = 0x1234_5678;

type Table = HandleTable<4>;

fn is_stale<T: std::fmt::Debug>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Stale { .. }))
}

/// A claim of `VM` in a table, and its number.
fn stored(iommu: &Policy, table: &Table, rights: Rights) -> (Handle, GroupId) {
    let group = granted(iommu, &[1]);
    let (claim, _) = attached(iommu, group);
    let Ok(handle) = claim.store(table, rights) else { panic!("room") };
    (handle, group)
}

#[test]
fn b09_a_stored_claim_stays_and_its_number_stands_for_it() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let (handle, group) = stored(&iommu, &table, Rights::all());
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::OwnedBy { owner: VM }));
    let again = Handle::from_raw(handle.as_raw());
    assert_eq!(table.look_up(VM, again, Rights::CHANGE), Ok(Object::Claim { group }));
    iommu.with_claim(&table, VM, again, Rights::CHANGE, |claim| claim.detach()).expect("a detach");
    iommu.take_claim(&table, VM, handle).expect("still there").release().expect("a release");
    drop(iommu.claim(OTHER, group).expect("a free group"));
}

#[test]
fn b10_forged_numbers_find_nothing() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let (handle, _) = stored(&iommu, &table, Rights::CHANGE);
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..if cfg!(miri) { 500 } else { 1_000_000 } {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // Within the table, with rights that exist: what a clever guest would try.
        let number = random & 0xffff_ffff_0000_0307;
        assert!(
            number == handle.as_raw()
                || is_stale(table.look_up(VM, Handle::from_raw(number), Rights::empty()))
        );
        assert!(is_stale(table.look_up(VM, Handle::from_raw(random | 0x00ff_0000), Rights::empty())));
    }
    for bit in 0..64 {
        let near = Handle::from_raw(handle.as_raw() ^ 1 << bit);
        assert!(is_stale(table.look_up(VM, near, Rights::empty())), "bit {bit}");
    }
}

#[test]
fn b10_a_right_that_was_not_given_cannot_be_added() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let (handle, _) = stored(&iommu, &table, Rights::REFER);
    let needed = Rights::CHANGE.bits();
    assert_eq!(table.look_up(VM, handle, Rights::CHANGE), Err(Error::NoRight { needed }));
    let more = Handle::from_raw(handle.as_raw() | u64::from(needed));
    assert!(is_stale(table.look_up(VM, more, Rights::CHANGE)));
    assert!(
        iommu.with_claim(&table, VM, handle, Rights::REFER, |claim| claim.refer(UserId(1)).map(drop)).is_ok()
    );
}

#[test]
fn b10_another_vm_s_number_is_refused_by_its_owner() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let (handle, group) = stored(&iommu, &table, Rights::all());
    assert_eq!(table.look_up(OTHER, handle, Rights::empty()), Err(Error::OwnedBy { owner: VM }));
    let others = Table::new(OTHER, !SEED);
    assert!(is_stale(others.look_up(OTHER, handle, Rights::empty())));
    let claim = iommu.take_claim(&table, VM, handle).expect("a claim");
    let Err((error, claim)) = claim.store(&others, Rights::all()) else { panic!("stored elsewhere") };
    assert_eq!((error, claim.group()), (Error::OwnedBy { owner: OTHER }, group));
}

#[test]
fn b11_old_numbers_are_stale_however_often_the_slot_is_used_again() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let group = granted(&iommu, &[1]);
    let mut old: Vec<Handle> = Vec::new();
    for _ in 0..if cfg!(miri) { 20 } else { 1000 } {
        let Ok(handle) = iommu.claim(VM, group).expect("a claim").store(&table, Rights::all()) else {
            panic!("room")
        };
        assert!(!old.contains(&handle));
        assert!(old.iter().all(|handle| is_stale(table.look_up(VM, *handle, Rights::empty()))));
        drop(iommu.take_claim(&table, VM, handle).expect("a claim"));
        assert!(is_stale(iommu.take_claim(&table, VM, handle).map(drop)), "taken out twice");
        old.push(handle);
    }
}

#[test]
fn b11_a_revoked_claim_is_of_no_use_under_its_number() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let (handle, group) = stored(&iommu, &table, Rights::all());
    iommu.revoke(VM, group, |_| {}, &FakeClock::default(), Duration::from_millis(1)).expect("a revocation");
    assert!(is_stale(iommu.with_claim(&table, VM, handle, Rights::CHANGE, |claim| claim.detach())));
    let next = iommu.claim(VM, group).expect("a new claim");
    assert!(is_stale(iommu.with_claim(&table, VM, handle, Rights::CHANGE, |claim| claim.detach())));
    drop(iommu.take_claim(&table, VM, handle).expect("the number can still be given back"));
    assert_eq!(iommu.claim(OTHER, group).err(), Some(Error::OwnedBy { owner: VM }));
    drop(next);
}

#[test]
fn b11_contexts_have_numbers_too() {
    let (iommu, table) = (policy(), Table::new(VM, SEED));
    let context = iommu.create_context(VM, &()).expect("a context");
    let handles: Vec<_> =
        (0..4).map(|_| table.insert_context(context, Rights::all()).expect("room")).collect();
    assert_eq!(table.insert_context(context, Rights::all()), Err(Error::Full { capacity: 4 }));
    assert_eq!(table.remove(VM, handles[0]), Ok(Object::Context(context)));
    assert!(is_stale(table.remove(VM, handles[0])));
    assert!(is_stale(iommu.take_claim(&table, VM, handles[1]).map(drop)), "no claim");
    assert_eq!(table.look_up(VM, handles[1], Rights::CHANGE), Ok(Object::Context(context)));
}
