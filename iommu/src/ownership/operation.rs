//! Requests, and the operations that they become: one hardware effect a step.

use portcullis_hal::{Access, DeviceId, DmaExtent, IovaRange};

use super::state::{BarMapping, Owner, UserId};
use crate::{
    context::ContextHandle,
    error::Error,
    group::{GroupId, VmId},
};

/// One hold on a group: a claim of a guest, or a host driver. Its number goes stale with the ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Hold {
    /// The group.
    pub group: GroupId,
    /// Who holds it.
    pub owner: Owner,
    /// Number of the ownership.
    pub tenure: u32,
}

/// One external reference, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReferenceNumber {
    pub(super) slot: usize,
    pub(super) generation: u32,
}

impl ReferenceNumber {
    /// A number that somebody kept.
    #[must_use]
    pub const fn new(slot: usize, generation: u32) -> Self {
        Self { slot, generation }
    }

    /// Its place.
    #[must_use]
    pub const fn slot(self) -> usize {
        self.slot
    }
}

/// What shows that devices hold no address of a former owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// Nothing: good only when the same ownership has shown it before.
    None,
    /// All members were quiesced under this ownership.
    Quiesced {
        /// Their group.
        group: GroupId,
        /// Number of the ownership.
        tenure: u32,
    },
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Request {
    /// A hold on a group, for a guest or for a host driver that does DMA.
    Acquire {
        /// For whom.
        owner: Owner,
        /// What.
        group: GroupId,
    },
    /// Gives one hold up; the last one blocks and frees the group. A stale one is nothing to give up.
    Release {
        /// The hold.
        hold: Hold,
    },
    /// Switches the whole group to a context of its owner.
    Attach {
        /// The right to do so.
        hold: Hold,
        /// The context.
        context: ContextHandle,
        /// What the first attach of an ownership needs.
        proof: Proof,
    },
    /// Blocks the whole group, which stays owned.
    Detach {
        /// The right to do so.
        hold: Hold,
    },
    /// Blocks the whole group, whoever owns it; nothing begins on it until it is readmitted.
    SetAside {
        /// The group.
        group: GroupId,
    },
    /// A device joins a group, and the context that the group has.
    AddDevice {
        /// The group.
        group: GroupId,
        /// The device.
        device: DeviceId,
    },
    /// A device leaves its group. With the last one the ownership ends.
    RemoveDevice {
        /// The device.
        device: DeviceId,
    },
    /// Makes a context.
    CreateContext {
        /// Whose.
        owner: Owner,
    },
    /// Ends a context that nobody uses.
    DestroyContext {
        /// Which.
        context: ContextHandle,
    },
    /// Keeps the context of a group for somebody else than its owner.
    Refer {
        /// Who.
        user: UserId,
        /// Which group.
        group: GroupId,
    },
    /// Ends an external reference. A stale one is nothing to end.
    Unrefer {
        /// Which.
        reference: ReferenceNumber,
    },
    /// Ends a VM's ownership of a group, and the context that only this group used.
    Revoke {
        /// The VM.
        vm: VmId,
        /// The group.
        group: GroupId,
    },
    /// A BAR of a device in a context of the owner of its group.
    MapBar {
        /// The context.
        context: ContextHandle,
        /// Whose BAR.
        device: DeviceId,
        /// Where.
        iova: IovaRange,
        /// The BAR, or a part of it.
        extent: DmaExtent,
        /// What for.
        access: Access,
    },
    /// Ends one mapping of a BAR.
    UnmapBar {
        /// The context.
        context: ContextHandle,
        /// Where it was mapped.
        iova: IovaRange,
    },
    /// Ends everything that a VM has.
    VmDied {
        /// The VM.
        vm: VmId,
    },
}

/// One thing to do outside the lock. Contexts are named by slot: they stay as long as the operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Effect {
    /// Tell an external user that the ownership ends.
    Notify {
        /// Whom.
        user: UserId,
        /// Of which group.
        group: GroupId,
        /// Place of the reference.
        slot: usize,
    },
    /// Block all members.
    Block {
        /// Of this group.
        group: GroupId,
    },
    /// Block one device.
    BlockDevice {
        /// Which.
        device: DeviceId,
    },
    /// Switch all members to a context.
    Switch {
        /// Of this group.
        group: GroupId,
        /// Slot.
        context: usize,
    },
    /// Make tables.
    Make {
        /// Slot.
        context: usize,
    },
    /// Close the gate if nobody is inside; wait for nobody.
    Close {
        /// Slot.
        context: usize,
    },
    /// Let nobody in any more.
    Shut {
        /// Slot.
        context: usize,
    },
    /// Wait, under a deadline, until everybody inside has left.
    Drain {
        /// Slot.
        context: usize,
    },
    /// Give the tables back. The gate is closed and no device uses them.
    Dissolve {
        /// Slot.
        context: usize,
    },
    /// Let a context lead to a BAR.
    MapBar {
        /// Whose BAR.
        group: GroupId,
        /// What and where.
        mapping: BarMapping,
        /// The same memory.
        extent: DmaExtent,
        /// What for.
        access: Access,
    },
    /// Take a mapping of a BAR out, until hardware has forgotten it.
    UnmapBar {
        /// Whose BAR.
        group: GroupId,
        /// What and where.
        mapping: BarMapping,
    },
    /// Forget the memory that the VM had registered: no device reaches any of it.
    ReleaseMemory {
        /// Whose.
        vm: VmId,
    },
}

/// How an effect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Done, and hardware has confirmed it.
    Done,
    /// Nothing was changed.
    Refused(Error),
    /// Hardware did not answer: it may be as before, as wanted, or in between. Of a drain: the deadline
    /// has passed.
    Failed(Error),
}

/// What an operation needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// This effect, then [`finish`](super::Ownership::finish).
    Do(Effect),
    /// Another CPU's operation must end first: [`poll`](super::Ownership::poll), or
    /// [`give_up`](super::Ownership::give_up).
    Wait,
    /// Nothing: it is over.
    Over(Result<Yield, Error>),
}

/// What an operation gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Yield {
    /// Nothing but its effects.
    Nothing,
    /// A hold.
    Hold(Hold),
    /// A context.
    Context(ContextHandle),
    /// An external reference.
    Reference(ReferenceNumber),
}

/// A request on its way. It must be brought to its end: what it works on is closed to others till then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[must_use = "what it works on stays closed to others until it is over"]
pub struct Operation {
    pub(super) plan: Plan,
    pub(super) step: Step,
    /// The first thing that went wrong, for the end.
    pub(super) error: Option<Error>,
    /// The context that this operation is ending.
    pub(super) closing: Option<Closing>,
}

/// A context on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Closing {
    pub(super) context: usize,
    pub(super) stage: Stage,
}

/// What was done to a context on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    /// Nothing: it is only shut when no other group uses it.
    Shared,
    /// Nobody new comes in.
    Shut,
    /// All callers have left, or the deadline has passed.
    Waited,
}

/// What an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Plan {
    /// Nothing is left to do.
    Nothing,
    Acquire {
        group: GroupId,
    },
    Attach {
        group: GroupId,
    },
    Detach {
        group: GroupId,
    },
    SetAside {
        group: GroupId,
    },
    AddDevice {
        group: GroupId,
        device: DeviceId,
    },
    RemoveDevice {
        group: GroupId,
        device: DeviceId,
    },
    /// A BAR is being mapped or unmapped.
    Bar {
        group: GroupId,
    },
    CreateContext,
    DestroyContext {
        context: usize,
    },
    /// The last hold was given up, or the last device went.
    End {
        group: GroupId,
    },
    /// A revocation that waits for the operation under way.
    RevokeWhenIdle {
        group: GroupId,
        vm: VmId,
    },
    Revoke {
        group: GroupId,
    },
    /// The last reference to a context that is kept was ended.
    Unkeep,
    /// Ends the groups of a VM one by one, then its contexts from `cursor` on.
    Die {
        vm: VmId,
        group: Option<GroupId>,
        cursor: usize,
    },
    /// The memory of a VM is being released.
    Bury {
        vm: VmId,
    },
}

impl Operation {
    /// What to do next.
    #[must_use]
    pub const fn step(&self) -> Step {
        self.step
    }

    pub(super) const fn new(plan: Plan, step: Step) -> Self {
        Self { plan, step, error: None, closing: None }
    }

    /// An operation that was over as soon as it began.
    pub(super) const fn over(what: Yield) -> Self {
        Self::new(Plan::Nothing, Step::Over(Ok(what)))
    }
}
