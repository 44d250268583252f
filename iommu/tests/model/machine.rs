//! What the hardware and the holders of references may be doing: all that the invariants are about.

use portcullis_fake::dma::extent;
use portcullis_hal::{Access, DeviceId, DmaExtent, Iova, IovaRange, PhysRange, RequesterId, Segment};
use portcullis_iommu::{
    ContextHandle, GroupId, VmId,
    ownership::{Answer, Effect, Life, Owner, Ownership, Request},
};

pub(crate) const GROUPS: usize = 2;
pub(crate) const CONTEXTS: usize = 2;
pub(crate) const USERS: usize = 2;
pub(crate) const DEVICES: usize = 4;
pub(crate) const VMS: usize = 3;

pub(crate) type Policy = Ownership<GROUPS, CONTEXTS, USERS>;

pub(crate) fn device(number: usize) -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(number as u16) }
}

pub(crate) fn number(device: DeviceId) -> usize {
    (0..DEVICES).find(|number| self::device(*number) == device).expect("one of ours")
}

pub(crate) fn owner_index(owner: Owner) -> usize {
    match owner {
        Owner::Guest(VmId(vm)) => vm as usize,
        Owner::Host => VMS,
    }
}

/// How far the gate of a context is closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Gate {
    #[default]
    Open,
    Shut,
    Empty,
}

/// The world outside the policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct World {
    /// For each device, the contexts that it may reach: a bit each. What hardware did not confirm is both
    /// as before and as wanted.
    pub(crate) reach: [u8; DEVICES],
    pub(crate) gates: [Gate; CONTEXTS],
    /// Holds that each owner believes to have, by group.
    pub(crate) holds: [[u8; VMS + 1]; GROUPS],
    /// For the BAR of each group's first device, the contexts that lead to it: a bit each.
    pub(crate) bars: [u8; GROUPS],
    /// The context that each external reference relies on, by place.
    pub(crate) references: [Option<usize>; USERS],
}

impl World {
    pub(crate) fn does(&mut self, policy: &Policy, effect: Effect, answer: Answer) {
        match effect {
            Effect::Block { group } => {
                let members = policy.members(group).expect("a group");
                members.iter().for_each(|member| self.block(*member, answer));
            }
            Effect::BlockDevice { device } => self.block(device, answer),
            Effect::Switch { group, context } => {
                for member in policy.members(group).expect("a group") {
                    self.switch(member, context, answer);
                }
            }
            Effect::Shut { context } if self.gates[context] == Gate::Open => {
                self.gates[context] = Gate::Shut;
            }
            Effect::Close { context } | Effect::Drain { context } if answer == Answer::Done => {
                self.gates[context] = Gate::Empty;
            }
            Effect::MapBar { group, mapping, .. } if !matches!(answer, Answer::Refused(_)) => {
                self.bars[group.0 as usize] |= 1 << mapping.context;
            }
            Effect::UnmapBar { group, mapping } if answer == Answer::Done => {
                self.bars[group.0 as usize] &= !(1 << mapping.context);
            }
            Effect::Dissolve { context } if answer == Answer::Done => self.gates[context] = Gate::Open,
            _ => {}
        }
    }

    fn block(&mut self, device: DeviceId, answer: Answer) {
        if answer == Answer::Done {
            self.reach[number(device)] = 0;
        }
    }

    fn switch(&mut self, device: DeviceId, context: usize, answer: Answer) {
        let reach = &mut self.reach[number(device)];
        match answer {
            Answer::Done => *reach = 1 << context,
            Answer::Failed(_) => *reach |= 1 << context,
            Answer::Refused(_) => {}
        }
    }

    /// What a device may reach while `effects` are being done.
    pub(crate) fn may_reach(
        &self,
        policy: &Policy,
        device: usize,
        effects: impl Iterator<Item = Effect>,
    ) -> u8 {
        let group = policy.group_of(self::device(device));
        let joining = effects.filter_map(|effect| match effect {
            Effect::Switch { group: switched, context } if Some(switched) == group => Some(1 << context),
            _ => None,
        });
        joining.fold(self.reach[device], |reach, context: u8| reach | context)
    }

    /// Contexts that lead to a group's BAR, or will when `effects` are done.
    pub(crate) fn lead_to_bar(&self, group: GroupId, effects: impl Iterator<Item = Effect>) -> u8 {
        let mapped = effects.filter_map(|effect| match effect {
            Effect::MapBar { group: mapped, mapping, .. } if mapped == group => Some(1 << mapping.context),
            _ => None,
        });
        mapped.fold(self.bars[group.0 as usize], |contexts, context: u8| contexts | context)
    }

    /// Whether `request` ends an ownership whether or not its holds were given up.
    pub(crate) fn ends_ownership(request: Request) -> bool {
        matches!(request, Request::Revoke { .. } | Request::VmDied { .. } | Request::RemoveDevice { .. })
    }

    pub(crate) fn held(&self, group: usize) -> u32 {
        self.holds[group].iter().map(|holds| u32::from(*holds)).sum()
    }

    pub(crate) fn owners(&self, group: usize) -> usize {
        self.holds[group].iter().filter(|holds| **holds > 0).count()
    }
}

/// The BAR of a group's first device: a page of its own, wherever it is mapped.
fn bar(group: GroupId) -> DmaExtent {
    extent((1 << 32) + (u64::from(group.0) << 12), 1 << 12)
}

fn iova_of_bar(group: GroupId) -> IovaRange {
    IovaRange::new(Iova::new(u64::from(group.0) << 12), 1 << 12).expect("a page")
}

pub(crate) fn declare_bars(policy: &mut Policy) {
    for group in groups() {
        let range = PhysRange::new(bar(group).start(), bar(group).bytes()).expect("a page");
        policy.declare_bar(device(2 * group.0 as usize), range).expect("a BAR");
    }
}

pub(crate) fn map_bar(context: ContextHandle, group: GroupId) -> Request {
    let (device, iova) = (device(2 * group.0 as usize), iova_of_bar(group));
    Request::MapBar { context, device, iova, extent: bar(group), access: Access::all() }
}

pub(crate) fn unmap_bar(context: ContextHandle, group: GroupId) -> Request {
    Request::UnmapBar { context, iova: iova_of_bar(group) }
}

pub(crate) fn groups() -> impl Iterator<Item = GroupId> {
    (0..GROUPS as u32).map(GroupId)
}

pub(crate) fn vms() -> impl Iterator<Item = VmId> {
    (0..VMS as u32).map(VmId)
}

pub(crate) fn gone(policy: &Policy, context: usize) -> bool {
    policy.life_of(context) == Some(Life::Vacant)
}
