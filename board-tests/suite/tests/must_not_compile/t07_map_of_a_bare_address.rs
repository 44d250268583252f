//! Only what somebody vouched for, in an `unsafe` block, is a target of DMA.
use portcullis_hal::{Access, DmaExtent, Iova, PhysAddr, PhysRange};
use portcullis_iommu::{ContextHandle, Driver, Iommu};

fn address<D: Driver>(iommu: &Iommu<D, 1, 1>, to: ContextHandle, iova: Iova, bare: PhysAddr) {
    let _ = iommu.map(to, iova, bare, Access::READ);
}

fn range<D: Driver>(iommu: &Iommu<D, 1, 1>, to: ContextHandle, iova: Iova, bare: PhysRange) {
    let _ = iommu.map(to, iova, bare, Access::READ);
}

fn vouched_for_by_nobody(bare: PhysRange) -> DmaExtent {
    DmaExtent::new(bare)
}

fn main() {}
