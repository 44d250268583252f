//! The same calls, made as they should be: the refusals are for the reasons that they name.
use core::time::Duration;

use portcullis_hal::{Access, Clock, ConfigSpace, DeviceId, DmaExtent, GuestPhysAddr, Iova, IovaRange, PhysRange};
use portcullis_iommu::{
    Claim, ContextHandle, Driver, Error, GroupId, Iommu, Permit, QuiescedGroup, VmId, pci::Method,
};
use portcullis_vtd::{Coherency, ContextSpec, SnoopControl};

fn claim<D: Driver>(iommu: &Iommu<D, 1, 1>, group: GroupId) -> Result<Claim<'_, D, 1, 1>, Error> {
    iommu.claim(VmId(1), group)
}

fn attach<D: Driver>(
    mut claim: Claim<'_, D, 1, 1>,
    context: ContextHandle,
    config: &impl ConfigSpace,
    clock: &impl Clock,
) -> Result<(), Error> {
    let proof: QuiescedGroup =
        claim.quiesce(config, clock, Method::FunctionLevelReset, Duration::from_secs(1))?;
    claim.attach(context, proof)?;
    claim.switch(context)?;
    claim.release()
}

fn enforced(witness: SnoopControl) -> ContextSpec {
    ContextSpec { coherency: Coherency::Enforced(witness), ..ContextSpec::new(48) }
}

fn map<D: Driver>(
    iommu: &Iommu<D, 1, 1>,
    context: ContextHandle,
    iova: Iova,
    memory: PhysRange,
) -> Result<u64, Error> {
    // SAFETY: never called.
    let extent = unsafe { DmaExtent::new(memory) };
    iommu.map(context, iova, extent, Access::READ)?;
    let _ = iommu.iova_to_phys(context, iova)?;
    iommu.unmap(context, IovaRange::new(iova, memory.bytes()).expect("a range"))
}

fn identity(guest: GuestPhysAddr) -> Iova {
    Iova::new(guest.as_u64())
}

fn obey<D: Driver>(driver: &D, permit: &Permit, members: &[DeviceId]) {
    let _ = driver.block(permit, members);
}

fn main() {}
