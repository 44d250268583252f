//! Registers of devices (BARs) that other devices of the same owner reach: peer to peer.
//!
//! A mapping of a BAR belongs to the group of the device whose BAR it is. It is there only as long as the
//! owner of that group owns it: it is taken out, and hardware has forgotten it, before the group is free.
//! Until then its context counts it as a user, and stays.

use portcullis_hal::{Access, DeviceId, DmaExtent, IovaRange, PhysRange};

use super::{
    Ownership,
    operation::{Answer, Effect, Operation, Plan, Step},
    state::{Bar, BarMapping, Health, MAX_BAR_MAPPINGS, MAX_BARS, Poison},
};
use crate::{context::ContextHandle, error::Error, group::GroupId};

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    /// Notes a BAR of a device. Declaring it once more changes nothing.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::IsBar`] with the device whose BAR overlaps it, [`Error::Full`].
    pub fn declare_bar(&mut self, device: DeviceId, range: PhysRange) -> Result<(), Error> {
        let id = self.group_of(device).ok_or(Error::UnknownDevice { device })?;
        let bar = Bar { device, range };
        match self.bar_in(range) {
            Some(known) if known == bar => return Ok(()),
            Some(known) => return Err(Error::IsBar { device: known.device }),
            None => {}
        }
        self.group_mut(id)?.bars.push(bar).map_err(|_| Error::Full { capacity: MAX_BARS })
    }

    /// A declared BAR that shares memory with `range`.
    #[must_use]
    pub fn bar_in(&self, range: PhysRange) -> Option<Bar> {
        self.bars().find(|bar| bar.range.overlaps(range))
    }

    /// All declared BARs.
    pub fn bars(&self) -> impl Iterator<Item = Bar> + '_ {
        self.groups.iter().flat_map(|group| group.bars.iter().copied())
    }

    /// The device whose BAR is mapped in a part of `range` of the context in a slot.
    #[must_use]
    pub fn bar_mapped_in(&self, context: usize, range: IovaRange) -> Option<DeviceId> {
        let mut mapped = self.groups.iter().flat_map(|group| &group.bar_mappings);
        mapped
            .find(|known| known.context == context && known.iova.overlaps(range))
            .map(|mapping| mapping.bar.device)
    }

    /// Notes the mapping before it exists, so that no end of ownership overlooks it.
    pub(super) fn begin_map_bar(
        &mut self,
        context: ContextHandle,
        device: DeviceId,
        iova: IovaRange,
        (extent, access): (DmaExtent, Access),
    ) -> Result<Operation, Error> {
        let foreign = Error::ForeignBar { device };
        let unknown = Error::UnknownBar { address: extent.start().as_u64() };
        let memory = PhysRange::new(extent.start(), extent.bytes()).map_err(|_| unknown)?;
        let bar = self.bar_in(memory).filter(|bar| bar.range.contains(memory)).ok_or(unknown)?;
        if bar.device != device {
            return Err(Error::ForeignBar { device: bar.device });
        }
        let owner = self.context(context)?.1.owner;
        let slot = self.usable(owner, context)?;
        let id = self.group_of(device).ok_or(Error::UnknownDevice { device })?;
        let tenancy = self.group(id)?.tenancy.ok_or(foreign)?;
        if tenancy.owner != owner || tenancy.holds == 0 {
            return Err(foreign);
        }
        if self.bar_mapped_in(slot, iova).is_some() {
            return Err(Error::AlreadyMapped { iova: iova.start() });
        }
        let group = self.open(id)?;
        let mapping = BarMapping { bar, context: slot, iova };
        group.bar_mappings.push(mapping).map_err(|_| Error::Full { capacity: MAX_BAR_MAPPINGS })?;
        group.begin_work();
        let effect = Effect::MapBar { group: id, mapping, extent, access };
        Ok(Operation::new(Plan::Bar { group: id }, Step::Do(effect)))
    }

    pub(super) fn begin_unmap_bar(
        &mut self,
        context: ContextHandle,
        iova: IovaRange,
    ) -> Result<Operation, Error> {
        let slot = self.context(context)?.0;
        let of = |known: &&BarMapping| known.context == slot && known.iova == iova;
        let mut groups = (0..).map(GroupId).zip(&self.groups);
        let found = groups.find_map(|(id, group)| Some((id, *group.bar_mappings.iter().find(of)?)));
        let (id, mapping) = found.ok_or(Error::UnknownBar { address: iova.start().as_u64() })?;
        self.open(id)?.begin_work();
        Ok(Operation::new(Plan::Bar { group: id }, Step::Do(Effect::UnmapBar { group: id, mapping })))
    }

    /// Takes the next mapping out of a group's BARs, or of one device's.
    pub(super) fn next_bar(&self, id: GroupId, device: Option<DeviceId>) -> Option<Effect> {
        let mut mappings = self.group(id).ok()?.bar_mappings.iter();
        let mapping = mappings.find(|known| device.is_none_or(|device| known.bar.device == device))?;
        Some(Effect::UnmapBar { group: id, mapping: *mapping })
    }

    pub(super) fn bar_mapped(&mut self, id: GroupId, mapping: BarMapping, answer: Answer) {
        // A mapping that hardware did not confirm stands.
        if let Answer::Refused(_) = answer {
            self.forget_bar_mapping(id, mapping);
        }
    }

    /// Whoever could still reach the BAR can do so for ever: then nobody gets the group any more.
    pub(super) fn bar_unmapped(&mut self, id: GroupId, mapping: BarMapping, answer: Answer) {
        self.forget_bar_mapping(id, mapping);
        if answer != Answer::Done {
            self.with_context(mapping.context, |state| state.poisoned = Poison::Reachable);
            self.with(id, |group| group.health = Health::Quarantined);
        }
    }

    fn forget_bar_mapping(&mut self, id: GroupId, mapping: BarMapping) {
        self.with(id, |group| group.bar_mappings.retain(|known| *known != mapping));
    }

    /// A device of several is removed: its BARs first.
    pub(super) fn advance_bars_of(&mut self, operation: &mut Operation, id: GroupId, device: DeviceId) {
        let block = Effect::BlockDevice { device };
        operation.step = Step::Do(self.next_bar(id, Some(device)).unwrap_or(block));
    }
}
