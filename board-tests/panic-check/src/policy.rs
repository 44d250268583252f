//! Every method of the policy, over any driver.

use core::{hint::black_box, time::Duration};

use portcullis_hal::{
    Access, DeviceId, DmaExtent, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, PhysAddr, PhysRange,
    RequesterId, Segment,
};
use portcullis_iommu::{
    Claim, ContextHandle, DmaUse, Driver, GroupId, Handle, HandleTable, Iommu, Rights, Trusted, UserId, VmId,
    ownership::{Harm, Reserved},
    pci::Method,
};

use crate::{
    machine::{AnyClock, unknown},
    pci::AnyConfig,
};

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
    control(&iommu, &mut claim, context);
    map(&iommu, context);
    registered_memory(&iommu, vm, spec);
    handles(&iommu, claim);
    let Ok(mut claim) = iommu.claim(vm, GroupId(unknown())) else { return };
    let _ = black_box(claim.detach());
    let _ = black_box(claim.group());
    let _ = black_box(claim.release());
    let _ = black_box(iommu.claim(vm, GroupId(unknown())).is_ok());
    let _ = black_box(iommu.destroy_context(context));
}

fn control<D: Driver>(iommu: &Iommu<D>, claim: &mut Claim<'_, D, 32, 32>, context: ContextHandle) {
    let (limit, method) = (Duration::from_nanos(unknown()), Method::FunctionLevelReset);
    let device = DeviceId { segment: Segment(unknown()), requester: RequesterId::new(unknown()) };
    let (vm, group) = (VmId(unknown()), GroupId(unknown()));
    if let Ok(quiesced) = claim.quiesce(&AnyConfig, &AnyClock, method, limit) {
        let _ = black_box(claim.attach(context, quiesced));
    }
    let _ = black_box(claim.switch(context));
    let _ = black_box(iommu.add_device(group, device));
    let _ = black_box(iommu.remove_device(device));
    let _ = black_box(iommu.withdraw_grant(vm, group));
    if let Ok(range) = PhysRange::new(PhysAddr::new(unknown()), unknown()) {
        let _ = black_box(iommu.declare_reserved(Reserved { device, range, harm: Harm::Needed }));
    }
    users(iommu, claim, device);
    bars(iommu, context, device);
    let _ = black_box(iommu.bind_host(group, DmaUse::Dma).map(|binding| binding.unbind()));
    let _ = black_box(iommu.revoke(
        vm,
        group,
        |user| {
            black_box(user);
        },
        &AnyClock,
        limit,
    ));
    let _ = black_box(iommu.vm_died(
        vm,
        |user| {
            black_box(user);
        },
        &AnyClock,
        limit,
    ));
    let _ = black_box((iommu.coherency(vm), iommu.owner(context), iommu.take_event(), iommu.lost_events()));
}

fn bars<D: Driver>(iommu: &Iommu<D>, context: ContextHandle, device: DeviceId) {
    let Ok(phys) = PhysRange::new(PhysAddr::new(unknown()), unknown()) else { return };
    let Ok(range) = IovaRange::new(Iova::new(unknown()), unknown()) else { return };
    // SAFETY: the image is never run.
    let (extent, access) = (unsafe { DmaExtent::new(phys) }, Access::from_bits_retain(unknown()));
    let _ = black_box(iommu.declare_bar(device, phys));
    let _ = black_box(iommu.map_bar(context, range.start(), device, extent, access));
    let _ = black_box(iommu.unmap_bar(context, range));
}

fn handles<D: Driver>(iommu: &Iommu<D>, claim: Claim<'_, D, 32, 32>) {
    let (vm, any, rights) =
        (VmId(unknown()), Handle::from_raw(unknown()), Rights::from_bits_retain(unknown()));
    let table = HandleTable::<8>::new(vm, unknown());
    let _ = black_box(table.look_up(vm, any, rights));
    let _ = black_box(table.remove(vm, any));
    let _ = black_box(iommu.with_claim(&table, vm, any, rights, |claim| claim.detach()));
    let _ = black_box(iommu.take_claim(&table, vm, any).is_ok());
    if let Ok(handle) = claim.store(&table, rights) {
        let _ = black_box(iommu.take_claim(&table, vm, handle).is_ok());
    }
}

fn users<D: Driver>(iommu: &Iommu<D>, claim: &Claim<'_, D, 32, 32>, device: DeviceId) {
    if let Ok(user) = claim.refer(UserId(unknown())) {
        let _ = black_box(user.context());
        let _ = black_box(user.release());
    }
    black_box(iommu.refer_to_device(&Trusted::hypervisor(), UserId(unknown()), device).is_ok());
}

fn map<D: Driver>(iommu: &Iommu<D>, context: ContextHandle) {
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
