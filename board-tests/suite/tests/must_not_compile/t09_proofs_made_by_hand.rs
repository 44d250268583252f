//! Proofs come from whoever has seen to what they say.
use portcullis_hal::{DeviceId, DmaExtent, PhysRange};
use portcullis_iommu::{
    Claim, Driver, GroupId, Iommu, QuiescedGroup,
    ownership::Hold,
    pci::{Method, Quiesced},
};

fn claim<D: Driver>(iommu: &Iommu<D, 1, 1>, hold: Hold) -> Claim<'_, D, 1, 1> {
    Claim { iommu, hold }
}

fn quiesced_group(group: GroupId) -> QuiescedGroup {
    QuiescedGroup { group, tenure: 0 }
}

fn quiesced(device: DeviceId) -> Quiesced {
    Quiesced { device, method: Method::BusMasterOff }
}

fn extent(range: PhysRange) -> DmaExtent {
    DmaExtent { range }
}

fn main() {}
