//! What a device, a guest and the machine call an address are three things.
use portcullis_hal::{Access, DmaExtent, GuestPhysAddr, Iova, PhysAddr, PhysRange};
use portcullis_iommu::{ContextHandle, Driver, Iommu};

fn physical_as_iova<D: Driver>(iommu: &Iommu<D, 1, 1>, to: ContextHandle, at: PhysAddr, extent: DmaExtent) {
    let _ = iommu.map(to, at, extent, Access::READ);
}

fn guest_physical_as_iova<D: Driver>(iommu: &Iommu<D, 1, 1>, of: ContextHandle, at: GuestPhysAddr) {
    let _ = iommu.iova_to_phys(of, at);
}

fn physical_range_as_iova_range<D: Driver>(iommu: &Iommu<D, 1, 1>, of: ContextHandle, range: PhysRange) {
    let _ = iommu.unmap(of, range);
}

fn iova_as_physical(iova: Iova) -> PhysAddr {
    iova
}

fn guest_physical_as_physical(guest: GuestPhysAddr) -> PhysAddr {
    guest
}

fn number_as_iova(number: u64) -> Iova {
    number
}

fn main() {}
