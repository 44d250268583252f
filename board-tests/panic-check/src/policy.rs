//! Every method of the policy, over any driver.

use core::hint::black_box;

use portcullis_hal::{
    Access, DeviceId, DmaExtent, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, PhysAddr, PhysRange,
    RequesterId, Segment,
};
use portcullis_iommu::{Driver, GroupId, Iommu, VmId};

use crate::machine::unknown;

/// Calls everything with numbers that could be any.
pub(crate) fn exercise<D: Driver>(driver: D, spec: &D::Spec) {
    let iommu: Iommu<D> = Iommu::new(driver);
    let device = DeviceId { segment: Segment(unknown()), requester: RequesterId::new(unknown()) };
    let vm = VmId(unknown());
    let _ = black_box(iommu.add_group(&[device, black_box(device)]));
    let _ = black_box(iommu.add_group(black_box(&[device; 9])));
    let _ = black_box(iommu.grant(vm, GroupId(unknown())));
    let Ok(context) = iommu.create_context(vm, spec) else { return };
    let Ok(mut claim) = iommu.claim(vm, GroupId(unknown())) else { return };
    let _ = black_box(claim.attach(context));
    map(&iommu, context);
    registered_memory(&iommu, vm, spec);
    let _ = black_box(claim.detach());
    let _ = black_box(claim.group());
    let _ = black_box(claim.release());
    let _ = black_box(iommu.claim(vm, GroupId(unknown())).is_ok());
    let _ = black_box(iommu.destroy_context(context));
}

fn map<D: Driver>(iommu: &Iommu<D>, context: portcullis_iommu::ContextHandle) {
    let Ok(phys) = PhysRange::new(PhysAddr::new(unknown()), unknown()) else { return };
    let Ok(range) = IovaRange::new(Iova::new(unknown()), unknown()) else { return };
    // SAFETY: the image is never run.
    let extent = unsafe { DmaExtent::new(phys) };
    let _ = black_box(iommu.enforce_cache_coherency(context));
    let _ = black_box(iommu.map(context, range.start(), extent, Access::from_bits_retain(unknown())));
    let _ = black_box(iommu.iova_to_phys(context, range.start()));
    let _ = black_box(iommu.unmap(context, range));
    let _ = black_box(iommu.aperture(context));
    let _ = black_box(iommu.take_fault());
}

fn registered_memory<D: Driver>(iommu: &Iommu<D>, vm: VmId, spec: &D::Spec) {
    let Ok(phys) = PhysRange::new(PhysAddr::new(unknown()), unknown()) else { return };
    let Ok(guest) = GuestPhysRange::new(GuestPhysAddr::new(unknown()), unknown()) else { return };
    let Ok(range) = IovaRange::new(Iova::new(unknown()), unknown()) else { return };
    let Ok(context) = iommu.create_context(vm, spec) else { return };
    // SAFETY: the image is never run.
    let extent = unsafe { DmaExtent::new(phys) };
    let Ok(region) = iommu.register_memory(vm, guest, extent) else { return };
    let _ = black_box(iommu.map_guest(context, range.start(), guest, Access::from_bits_retain(unknown())));
    let _ = black_box(iommu.region(vm, region));
    let _ = black_box(iommu.unmap(context, range));
    let _ = black_box(iommu.unregister_memory(vm, black_box(region)));
    let _ = black_box(iommu.destroy_context(context));
    let _ = black_box(iommu.release_memory(vm));
}
