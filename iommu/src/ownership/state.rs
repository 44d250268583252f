//! What is known of groups, contexts and external users.

use heapless::Vec;
use portcullis_hal::{DeviceId, IovaRange, PhysRange};

use crate::{
    coherency::Coherency,
    driver::MAX_MEMBERS,
    group::{GroupId, VmId},
};

/// VMs that one group may be granted to at a time.
pub const MAX_GRANTS: usize = 4;

/// Reserved regions that the devices of one group may have.
pub const MAX_RESERVED: usize = 4;

/// BARs that the devices of one group may have.
pub const MAX_BARS: usize = 16;

/// Mappings of the BARs of one group.
pub const MAX_BAR_MAPPINGS: usize = 8;

/// VMs whose death may be under way at a time.
pub const MAX_DYING: usize = 4;

/// Who may let a group do DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Owner {
    /// The hypervisor's own drivers.
    Host,
    /// One guest.
    Guest(VmId),
}

/// Names somebody, other than the owner, who uses a group: a vCPU core, a device model. The hypervisor
/// numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UserId(pub u32);

/// Memory that a device reaches at fixed addresses, whatever its driver says (VT-d calls it RMRR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reserved {
    /// The device.
    pub device: DeviceId,
    /// The memory.
    pub range: PhysRange,
    /// Whether blocking the device there would break it.
    pub harm: Harm,
}

/// Registers of a device at fixed addresses (PCI: base address register).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bar {
    /// The device.
    pub device: DeviceId,
    /// Where its registers are.
    pub range: PhysRange,
}

/// A BAR, or a part of it, that devices in a context reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarMapping {
    /// What is mapped.
    pub bar: Bar,
    /// Slot.
    pub context: usize,
    /// Where.
    pub iova: IovaRange,
}

/// Whether a device with a reserved region may be blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Harm {
    /// The device, or firmware behind it, needs the region: its group is not claimed.
    Needed,
    /// The hypervisor vouches that nothing breaks without it.
    Harmless,
}

/// Who holds a group, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tenancy {
    /// The owner.
    pub owner: Owner,
    /// Its claims or host drivers. None for a moment while the first is being made or the last given up.
    pub holds: u32,
}

/// Whether a group may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Health {
    /// It may: hardware answers for it, and nobody complained.
    #[default]
    Good,
    /// The hypervisor set it aside: it is blocked, and stays so until it is readmitted.
    SetAside,
    /// A wait timed out: the group counts as blocked, and nobody gets it any more.
    Quarantined,
}

/// Whether an operation is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Work {
    /// None.
    #[default]
    Idle,
    /// One CPU's; others are refused until it is finished.
    UnderWay,
}

/// Whether a revocation is announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Announced {
    /// No.
    #[default]
    No,
    /// It waits for the operation under way; no other one begins.
    Revocation,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Group {
    pub(super) members: Vec<DeviceId, MAX_MEMBERS>,
    pub(super) grants: Vec<VmId, MAX_GRANTS>,
    pub(super) reserved: Vec<Reserved, MAX_RESERVED>,
    pub(super) bars: Vec<Bar, MAX_BARS>,
    pub(super) bar_mappings: Vec<BarMapping, MAX_BAR_MAPPINGS>,
    pub(super) tenancy: Option<Tenancy>,
    /// Counts ownerships that ended: what was made under an old number is stale.
    pub(super) tenure: u32,
    /// The device carries nothing of its former owner.
    pub(super) quiesced: Quiet,
    pub(super) context: Option<usize>,
    /// Where a switch that is under way leads to.
    pub(super) next: Option<usize>,
    pub(super) health: Health,
    pub(super) work: Work,
    pub(super) announced: Announced,
}

impl Group {
    /// Whether it is attached to a context, or about to be.
    pub(super) fn reaches(&self, context: usize) -> bool {
        self.context == Some(context) || self.next == Some(context)
    }
}

/// Whether the devices of a group were quiesced for their present owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Quiet {
    /// They may hold the former owner's addresses.
    #[default]
    No,
    /// They were.
    Yes,
}

/// How far the life of a context has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Life {
    /// Nothing in this slot.
    #[default]
    Vacant,
    /// Its tables are being made.
    Making,
    /// Groups attach, callers map.
    Live,
    /// One operation is ending it.
    Closing,
    /// Its gate is shut for ever, and its tables stay: somebody is inside, a reference lives, or hardware
    /// may still reach them.
    Kept,
}

/// One context, as far as ownership needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextState {
    pub(super) life: Life,
    pub(super) owner: Owner,
    /// Counts contexts that this slot has held.
    pub(super) generation: u32,
    /// Hardware may reach its tables and its memory for ever.
    pub(super) poisoned: Poison,
    pub(super) drained: Drained,
    pub(super) coherency: Coherency,
}

/// Whether hardware may have kept something of a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Poison {
    #[default]
    None,
    /// Hardware did not answer: nothing of the context is given back.
    Reachable,
}

/// Whether all callers have left a context whose gate is shut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Drained {
    #[default]
    No,
    Yes,
}

impl ContextState {
    pub(super) const VACANT: Self = Self {
        life: Life::Vacant,
        owner: Owner::Host,
        generation: 0,
        poisoned: Poison::None,
        drained: Drained::No,
        coherency: Coherency::Coherent,
    };
}

/// One external reference: it keeps the context that the group had when it was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    pub(super) user: UserId,
    pub(super) group: GroupId,
    pub(super) context: usize,
    pub(super) notice: Notified,
}

/// Whether an external user knows that the ownership it relied on ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Notified {
    /// Not yet, or it does not end.
    #[default]
    No,
    /// It was told.
    Yes,
}

/// A numbered place for an external reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) generation: u32,
    pub(super) reference: Option<Reference>,
}

impl Place {
    pub(super) const VACANT: Self = Self { generation: 0, reference: None };
}
