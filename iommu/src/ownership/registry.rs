//! What changes no hardware: registration, grants, and questions.

use heapless::Vec;
use portcullis_hal::DeviceId;

use super::{
    Ownership,
    operation::{Hold, ReferenceNumber, Request},
    state::{
        Announced, ContextState, Group, Health, Life, MAX_GRANTS, MAX_RESERVED, Notified, Owner, Poison,
        Reserved, Tenancy, UserId, Work,
    },
};
use crate::{
    coherency::Coherency,
    context::ContextHandle,
    driver::MAX_MEMBERS,
    error::Error,
    group::{GroupId, VmId},
};

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    /// Registers the devices of one group. Nobody may claim it before a [`grant`](Self::grant).
    ///
    /// # Errors
    /// [`Error::BadMemberCount`], [`Error::DuplicateDevice`], [`Error::Full`].
    pub fn add_group(&mut self, members: &[DeviceId]) -> Result<GroupId, Error> {
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return Err(Error::BadMemberCount { count: members.len() });
        }
        let mut group = Group::default();
        for &device in members {
            let known = self.group_of(device).is_some() || group.members.contains(&device);
            if known || group.members.push(device).is_err() {
                return Err(Error::DuplicateDevice { device });
            }
        }
        let id = GroupId(self.groups.len() as u32);
        self.groups.push(group).map_err(|_| Error::Full { capacity: GROUPS })?;
        Ok(id)
    }

    /// Lets `vm` claim `group` from now on.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::Full`], [`Error::Ending`] while the VM's death is under way.
    pub fn grant(&mut self, vm: VmId, group: GroupId) -> Result<(), Error> {
        if self.dying.contains(&vm) {
            return Err(Error::Ending { vm });
        }
        let grants = &mut self.group_mut(group)?.grants;
        if grants.contains(&vm) {
            return Ok(());
        }
        grants.push(vm).map_err(|_| Error::Full { capacity: MAX_GRANTS })
    }

    /// Lets `vm` claim `group` no more. A claim that it has stays.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn withdraw_grant(&mut self, vm: VmId, group: GroupId) -> Result<(), Error> {
        self.group_mut(group)?.grants.retain(|granted| *granted != vm);
        Ok(())
    }

    /// Notes memory that a device reaches at fixed addresses. As long as it is
    /// [needed](super::Harm::Needed), nobody claims the group.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::Full`].
    pub fn declare_reserved(&mut self, region: Reserved) -> Result<(), Error> {
        let device = region.device;
        let group = self.group_of(device).ok_or(Error::UnknownDevice { device })?;
        let reserved = &mut self.group_mut(group)?.reserved;
        reserved.retain(|known| (known.device, known.range) != (device, region.range));
        reserved.push(region).map_err(|_| Error::Full { capacity: MAX_RESERVED })
    }

    /// Ends that a group is [set aside](Request::SetAside). Its first attach needs a proof again that its
    /// devices were quiesced.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::Busy`] while an operation is under way there;
    /// [`Error::Quarantined`] when its hardware did not answer: that stays.
    pub fn readmit(&mut self, group: GroupId) -> Result<(), Error> {
        let group = self.group_mut(group)?;
        group.free_of_others()?;
        match group.health {
            Health::Quarantined => Err(Error::Quarantined),
            Health::Good | Health::SetAside => {
                group.health = Health::Good;
                Ok(())
            }
        }
    }

    /// The group of a device.
    #[must_use]
    pub fn group_of(&self, device: DeviceId) -> Option<GroupId> {
        let index = self.groups.iter().position(|group| group.members.contains(&device))?;
        Some(GroupId(index as u32))
    }

    /// The devices of a group.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn members(&self, group: GroupId) -> Result<Vec<DeviceId, MAX_MEMBERS>, Error> {
        Ok(self.group(group)?.members.clone())
    }

    /// Who holds a group, and how often.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn tenancy(&self, group: GroupId) -> Result<Option<Tenancy>, Error> {
        Ok(self.group(group)?.tenancy)
    }

    /// Whether a group may be used.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn health(&self, group: GroupId) -> Result<Health, Error> {
        Ok(self.group(group)?.health)
    }

    /// Whether an operation on a group is under way or announced.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn work(&self, group: GroupId) -> Result<(Work, Announced), Error> {
        let group = self.group(group)?;
        Ok((group.work, group.announced))
    }

    /// The context that a group is attached to.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn context_of(&self, group: GroupId) -> Result<Option<ContextHandle>, Error> {
        Ok(self.group(group)?.context.and_then(|context| self.handle_of(context)))
    }

    /// The slot of the context that a group is attached to.
    #[must_use]
    pub fn slot_of(&self, group: GroupId) -> Option<usize> {
        self.group(group).ok()?.context
    }

    /// Whether hardware may walk the tables of a context, or is about to.
    #[must_use]
    pub fn is_walked(&self, context: usize) -> bool {
        let poisoned = self.contexts.get(context).is_some_and(|state| state.poisoned == Poison::Reachable);
        poisoned || self.groups.iter().any(|group| group.reaches(context))
    }

    /// Whether a hold is of the present ownership.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::Stale`].
    pub fn check(&self, hold: Hold) -> Result<(), Error> {
        let group = self.group(hold.group)?;
        let present = group.tenure == hold.tenure
            && group.tenancy.is_some_and(|tenancy| tenancy.owner == hold.owner && tenancy.holds > 0);
        if present { Ok(()) } else { Err(Error::Stale { slot: hold.group.0 }) }
    }

    /// The context that an external reference keeps.
    ///
    /// # Errors
    /// [`Error::Stale`] once its user was told that the ownership ends.
    pub fn context_of_reference(&self, number: ReferenceNumber) -> Result<ContextHandle, Error> {
        let stale = Error::Stale { slot: number.slot as u32 };
        let place = self.places.get(number.slot).ok_or(stale)?;
        let reference = place.reference.filter(|_| place.generation == number.generation).ok_or(stale)?;
        match reference.notice {
            Notified::Yes => Err(stale),
            Notified::No => self.handle_of(reference.context).ok_or(stale),
        }
    }

    /// The group that an external reference was taken of.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub fn group_of_reference(&self, number: ReferenceNumber) -> Result<GroupId, Error> {
        let stale = Error::Stale { slot: number.slot as u32 };
        let place = self.places.get(number.slot).ok_or(stale)?;
        let reference = place.reference.filter(|_| place.generation == number.generation);
        reference.map(|reference| reference.group).ok_or(stale)
    }

    /// The users that refer to a group, and have not been told that its ownership ends.
    pub fn users(&self, group: GroupId) -> impl Iterator<Item = UserId> + '_ {
        let references = self.places.iter().filter_map(|place| place.reference);
        references
            .filter(move |reference| reference.group == group && reference.notice == Notified::No)
            .map(|reference| reference.user)
    }

    /// Names the context in a slot.
    #[must_use]
    pub fn handle_of(&self, context: usize) -> Option<ContextHandle> {
        let state = self.contexts.get(context)?;
        let handle = ContextHandle { slot: context as u32, generation: state.generation };
        (state.life != Life::Vacant).then_some(handle)
    }

    /// Number of the context in a slot, or of the next one there.
    #[must_use]
    pub fn generation_of(&self, context: usize) -> Option<u32> {
        Some(self.contexts.get(context)?.generation)
    }

    /// Who owns a device.
    #[must_use]
    pub fn owner_of_device(&self, device: DeviceId) -> Option<Owner> {
        Some(self.group(self.group_of(device)?).ok()?.tenancy?.owner)
    }

    /// The VM whose DMA a request is about.
    #[must_use]
    pub fn subject(&self, request: &Request) -> Option<VmId> {
        let owner = match *request {
            Request::Acquire { owner, .. } | Request::CreateContext { owner } => Some(owner),
            Request::Release { hold } | Request::Attach { hold, .. } | Request::Detach { hold } => {
                Some(hold.owner)
            }
            Request::AddDevice { group, .. } | Request::Refer { group, .. } | Request::SetAside { group } => {
                self.tenancy(group).ok().flatten().map(|tenancy| tenancy.owner)
            }
            Request::RemoveDevice { device } => self.owner_of_device(device),
            Request::DestroyContext { context }
            | Request::MapBar { context, .. }
            | Request::UnmapBar { context, .. } => self.owner_of(context.slot as usize),
            Request::Unrefer { .. } => None,
            Request::Revoke { vm, .. } | Request::VmDied { vm } => Some(Owner::Guest(vm)),
        };
        match owner? {
            Owner::Guest(vm) => Some(vm),
            Owner::Host => None,
        }
    }

    /// How far the life of the context in a slot has come.
    #[must_use]
    pub fn life_of(&self, context: usize) -> Option<Life> {
        Some(self.contexts.get(context)?.life)
    }

    /// Whose context is in a slot.
    #[must_use]
    pub fn owner_of(&self, context: usize) -> Option<Owner> {
        self.contexts.get(context).filter(|state| state.life != Life::Vacant).map(|state| state.owner)
    }

    /// Notes how DMA through the context in a slot goes.
    pub fn set_coherency(&mut self, context: usize, coherency: Coherency) {
        if let Some(state) = self.contexts.get_mut(context) {
            state.coherency = coherency;
        }
    }

    /// What DMA of a VM's groups does to caches, a switch that is under way included.
    #[must_use]
    pub fn verdict(&self, vm: VmId) -> Coherency {
        let owned = |group: &&Group| group.tenancy.is_some_and(|tenancy| tenancy.owner == Owner::Guest(vm));
        let reached = self.groups.iter().filter(owned).flat_map(|group| [group.context, group.next]);
        let verdicts = reached.flatten().filter_map(|context| self.contexts.get(context));
        let bad = |state: &&ContextState| state.coherency != Coherency::Coherent;
        verdicts.filter(bad).map(|state| state.coherency).next().unwrap_or(Coherency::Coherent)
    }

    /// Makes all numbers of what lives one, so that states that differ in nothing else are equal. For a
    /// model checker: numbers that were handed out before must not be used afterwards.
    #[doc(hidden)]
    pub fn renumber(&mut self) {
        self.groups.iter_mut().for_each(|group| group.tenure = 1);
        self.contexts.iter_mut().for_each(|context| context.generation = 1);
        self.places.iter_mut().for_each(|place| place.generation = 1);
    }
}
