//! Groups: devices that the hardware cannot tell apart, or that can reach each other unseen.

use heapless::Vec;
use portcullis_hal::DeviceId;

use crate::{context::ContextHandle, driver::MAX_MEMBERS};

/// VMs that one group may be granted to at a time.
pub(crate) const MAX_GRANTS: usize = 4;

/// A VM, as the hypervisor numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct VmId(pub u32);

/// A group, as [`Iommu::add_group`](crate::Iommu::add_group) numbered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct GroupId(pub u32);

/// What the policy knows of one group. Default: nobody may claim it.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) members: Vec<DeviceId, MAX_MEMBERS>,
    pub(crate) grants: Vec<VmId, MAX_GRANTS>,
    pub(crate) owner: Option<VmId>,
    pub(crate) context: Option<ContextHandle>,
    pub(crate) health: Health,
}

/// Whether hardware still answers for a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Health {
    #[default]
    Good,
    /// Blocked for good: a wait for its hardware timed out.
    Quarantined,
}
