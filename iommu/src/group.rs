//! Groups: devices that the hardware cannot tell apart, or that can reach each other unseen.

/// A VM, as the hypervisor numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct VmId(pub u32);

/// A group, as [`Iommu::add_group`](crate::Iommu::add_group) numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GroupId(pub u32);
