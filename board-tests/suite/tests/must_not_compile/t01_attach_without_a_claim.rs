//! The policy attaches nothing by itself.
use portcullis_iommu::{ContextHandle, Driver, GroupId, Iommu, QuiescedGroup};

fn attach<D: Driver>(
    iommu: &Iommu<D, 1, 1>,
    group: GroupId,
    context: ContextHandle,
    proof: QuiescedGroup,
) {
    let _ = iommu.attach(group, context, proof);
}

fn main() {}
