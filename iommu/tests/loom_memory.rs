//! Mapping calls against the end of registered memory, in every interleaving and on every value that weak
//! memory lets a load return. Three models look at too many words to be exhausted: those bound how often a
//! CPU is interrupted, and say so.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

mod small;

use std::time::Duration;

use loom::{
    model,
    sync::{Arc, atomic::Ordering::Relaxed},
};
use portcullis_fake::dma::extent;
use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, PhysAddr};
use portcullis_iommu::{Coherency, ContextHandle, Error, RegionHandle, VmId};
use small::{EMPTY, OTHER, PAGE, Policy, Stopped, VM, attached, cpu, machine};

/// Host pages.
const OLD: u32 = 7;
const NEW: u32 = 8;

/// As [`model`], but a CPU is taken away from what it does at most so many times; when it waits or has
/// ended, the other goes on at no cost.
fn bounded(interruptions: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut builder = model::Builder::new();
    builder.preemption_bound = Some(interruptions);
    builder.check(run);
}

fn guest() -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(0), PAGE).expect("a range")
}

/// The guest's first page leads to `host` from now on.
fn register(iommu: &Policy, vm: VmId, host: u32) -> RegionHandle {
    let extent = extent(u64::from(host) * PAGE, PAGE);
    iommu.register_memory(vm, guest(), extent).expect("a region")
}

/// Maps the guest's first page; whether it did.
fn map(iommu: &Policy, context: ContextHandle) -> bool {
    match iommu.map_guest(context, Iova::new(0), guest(), Access::READ) {
        Ok(()) => true,
        Err(error) => {
            let ended = matches!(error, Error::NotRegistered { .. } | Error::Busy | Error::Stale { .. });
            assert!(ended, "{error:?}");
            false
        }
    }
}

fn unmap(iommu: &Policy, context: ContextHandle) -> Result<u64, Error> {
    iommu.unmap(context, IovaRange::new(Iova::new(0), PAGE).expect("a range"))
}

/// Where the guest's first page leads to.
fn leads_to(iommu: &Policy, context: ContextHandle) -> Option<PhysAddr> {
    iommu.iova_to_phys(context, Iova::new(0)).expect("a context").map(|(address, _)| address)
}

fn page(number: u32) -> Option<PhysAddr> {
    Some(PhysAddr::new(u64::from(number) * PAGE))
}

/// A context of the VM, and its first page registered.
fn registered() -> (Arc<Policy>, ContextHandle, RegionHandle) {
    let (iommu, _) = machine();
    let context = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
    let region = register(&iommu, VM, OLD);
    (iommu, context, region)
}

fn mapped(iommu: &Policy, region: RegionHandle) -> u64 {
    iommu.region(VM, region).expect("a region").mapped
}

#[test]
fn l07_a_mapping_and_the_end_of_its_region_exclude_each_other() {
    bounded(3, || {
        let (iommu, context, region) = registered();
        let other = cpu(&iommu, move |iommu| map(iommu, context));
        let ended = iommu.unregister_memory(VM, region);
        if other.join().expect("no panic") {
            assert_eq!(ended, Err(Error::StillMapped { pages: 1 }));
            assert_eq!((leads_to(&iommu, context), mapped(&iommu, region)), (page(OLD), 1));
            assert_eq!(unmap(&iommu, context), Ok(PAGE));
            assert_eq!(iommu.unregister_memory(VM, region), Ok(()), "counted out");
        } else {
            assert_eq!(ended, Ok(()), "neither");
            assert_eq!(leads_to(&iommu, context), None);
        }
    });
}

#[test]
fn l07_a_region_does_not_end_before_hardware_has_confirmed_that_it_is_unmapped() {
    model(|| {
        let (iommu, context, region) = registered();
        assert!(map(&iommu, context));
        let other = cpu(&iommu, move |iommu| unmap(iommu, context));
        let ended = iommu.unregister_memory(VM, region);
        match ended {
            Ok(()) => assert_eq!(iommu.driver().flushed.load(Relaxed), 1, "ended, and hardware may reach it"),
            Err(error) => assert_eq!(error, Error::StillMapped { pages: 1 }),
        }
        assert_eq!(other.join().expect("no panic"), Ok(PAGE));
        if ended.is_err() {
            assert_eq!((leads_to(&iommu, context), mapped(&iommu, region)), (None, 0));
        }
    });
}

/// Ends the region and makes one of `vm` in its slot while another CPU maps; whether the region ended,
/// and whether the mapping was made.
fn replaced(vm: VmId) -> (Arc<Policy>, ContextHandle, Option<RegionHandle>, bool) {
    let (iommu, context, region) = registered();
    let other = cpu(&iommu, move |iommu| map(iommu, context));
    let new = iommu.unregister_memory(VM, region).is_ok().then(|| register(&iommu, vm, NEW));
    let mapped = other.join().expect("no panic");
    (iommu, context, new, mapped)
}

#[test]
fn l07_a_mapping_leads_to_the_region_that_is_there_now() {
    bounded(1, || {
        let (iommu, context, new, made) = replaced(VM);
        let leads_to = leads_to(&iommu, context);
        match new {
            Some(region) => {
                assert_eq!(leads_to, page(NEW).filter(|_| made), "memory that was given back");
                assert_eq!(mapped(&iommu, region), u64::from(made));
            }
            None => assert_eq!(leads_to, page(OLD)),
        }
    });
}

#[test]
fn l07_a_mapping_never_leads_to_another_vm_s_region_in_the_same_slot() {
    bounded(1, || {
        let (iommu, context, new, made) = replaced(OTHER);
        assert!(made != new.is_some());
        if let Some(region) = new {
            assert_eq!(leads_to(&iommu, context), None);
            assert_eq!(iommu.unregister_memory(OTHER, region), Ok(()), "counted in, and never out");
        }
    });
}

#[test]
fn l07_two_who_map_and_unmap_one_region_leave_its_count_exact() {
    model(|| {
        let (iommu, context, region) = registered();
        let second = iommu.create_context(VM, &Coherency::Coherent).expect("a context");
        let other = cpu(&iommu, move |iommu| map(iommu, second));
        assert!(map(&iommu, context));
        assert_eq!(unmap(&iommu, context), Ok(PAGE));
        assert!(other.join().expect("no panic"));
        assert_eq!(mapped(&iommu, region), 1);
    });
}

#[test]
fn l07_the_memory_of_a_dead_vm_is_released_when_nothing_leads_there() {
    model(|| {
        let (iommu, _, context) = attached(Coherency::Coherent);
        let region = register(&iommu, VM, OLD);
        let other = cpu(&iommu, move |iommu| map(iommu, context));
        assert_eq!(iommu.vm_died(VM, drop, &Stopped, Duration::MAX), Ok(()));
        let left = if other.join().expect("no panic") { OLD } else { EMPTY };
        assert_eq!(iommu.driver().left.load(Relaxed), left, "mapped in tables that were given back");
        assert_eq!(iommu.region(VM, region).err(), Some(Error::Stale { slot: region.slot() }));
    });
}
