//! Mapping calls against what ends their context, in every interleaving and on every value that weak memory
//! lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

mod small;

use std::time::Duration;

use loom::{
    model,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};
use portcullis_fake::dma::extent;
use portcullis_hal::{Access, Iova};
use portcullis_iommu::{Coherency, ContextHandle, Error};
use small::{EMPTY, PAGE, Policy, Stopped, VM, attached, cpu, machine};

/// The page that a guest maps.
const MAPPED: u32 = 7;

/// Maps; whether it did.
fn map(iommu: &Policy, context: ContextHandle) -> bool {
    let extent = extent(u64::from(MAPPED) * PAGE, PAGE);
    match iommu.map(context, Iova::new(0), extent, Access::READ) {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error, Error::Busy | Error::Stale { .. }), "{error:?}");
            false
        }
    }
}

/// Whether tables were given back, and that they held then what had been mapped.
fn given_back(iommu: &Policy, mapped: bool) -> bool {
    let given_back = iommu.driver().destroyed.load(Relaxed) == 1;
    let left = if mapped { MAPPED } else { EMPTY };
    assert!(
        !given_back || iommu.driver().left.load(Relaxed) == left,
        "mapped in tables that were given back"
    );
    given_back
}

#[test]
fn l02_no_map_finishes_in_a_context_that_is_destroyed() {
    model(|| {
        let (iommu, _) = machine();
        let context = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
        let guest = cpu(&iommu, move |iommu| map(iommu, context));
        let destroyed = iommu.destroy_context(context);
        let mapped = guest.join().expect("no panic");
        match destroyed {
            Ok(()) => assert!(given_back(&iommu, mapped)),
            Err(error) => {
                assert_eq!(error, Error::Busy);
                assert!(mapped && !given_back(&iommu, mapped), "refused although nobody was inside");
                assert_eq!(iommu.destroy_context(context), Ok(()), "the guest has left");
            }
        }
    });
}

#[test]
fn l02_an_old_handle_maps_nothing_in_the_context_that_has_the_slot_now() {
    model(|| {
        let (iommu, _) = machine();
        let old = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
        let guest = cpu(&iommu, move |iommu| {
            map(iommu, old);
        });
        if iommu.destroy_context(old).is_ok() {
            let new = iommu.create_context(VM, &Coherency::Coherent).expect("whoever is just turned away");
            guest.join().expect("no panic");
            assert_eq!(new.slot(), old.slot());
            assert_eq!(iommu.iova_to_phys(new, Iova::new(0)), Ok(None), "mapped in somebody else's context");
        }
    });
}

#[test]
fn l03_no_map_finishes_in_a_context_after_its_drain() {
    model(|| {
        let (iommu, group, context) = attached(Coherency::Coherent);
        let guest = cpu(&iommu, move |iommu| map(iommu, context));
        assert_eq!(iommu.revoke(VM, group, drop, &Stopped, Duration::MAX), Ok(()));
        let mapped = guest.join().expect("no panic");
        assert!(given_back(&iommu, mapped));
    });
}

#[test]
fn l03_a_drain_that_times_out_keeps_the_tables_until_all_have_left() {
    model(|| {
        let (iommu, group, context) = attached(Coherency::Coherent);
        let guest = cpu(&iommu, move |iommu| map(iommu, context));
        let revoked = iommu.revoke(VM, group, drop, &Stopped, Duration::ZERO);
        let mapped = guest.join().expect("no panic");
        assert_eq!(given_back(&iommu, mapped), revoked.is_ok());
        if let Err(error) = revoked {
            assert_eq!(error, Error::Busy);
            assert!(!map(&iommu, context), "the gate of a revoked context is open");
            assert_eq!(iommu.vm_died(VM, drop, &Stopped, Duration::ZERO), Ok(()));
            assert!(given_back(&iommu, mapped), "kept although all have left");
        }
    });
}

#[test]
fn l04_who_knows_of_a_revocation_maps_nothing() {
    model(|| {
        let (iommu, group, context) = attached(Coherency::Coherent);
        let revoked = Arc::new(AtomicBool::new(false));
        let known = revoked.clone();
        let guest = cpu(&iommu, move |iommu| {
            let known = known.load(Acquire);
            assert!(!(map(iommu, context) && known), "mapped after the revocation had returned");
        });
        // Whether it got the tables back or not.
        let _ = iommu.revoke(VM, group, drop, &Stopped, Duration::ZERO);
        revoked.store(true, Release);
        guest.join().expect("no panic");
    });
}

#[test]
fn l04_callers_that_keep_mapping_do_not_hold_up_a_revocation() {
    model(|| {
        let (iommu, group, context) = attached(Coherency::Coherent);
        let guest = cpu(&iommu, move |iommu| {
            while map(iommu, context) {
                loom::thread::yield_now();
            }
        });
        assert_eq!(iommu.revoke(VM, group, drop, &Stopped, Duration::MAX), Ok(()));
        guest.join().expect("no panic");
    });
}
