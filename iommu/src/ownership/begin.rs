//! Whether a request may begin. A refusal changes nothing.

use portcullis_hal::DeviceId;

use super::{
    Ownership,
    operation::{
        Closing, Effect, Hold, Operation, Plan, Proof, ReferenceNumber, Request, Stage, Step, Yield,
    },
    state::{
        Announced, ContextState, Group, Harm, Health, Life, MAX_DYING, Notified, Owner, Poison, Quiet,
        Reference, Tenancy, UserId, Work,
    },
};
use crate::{
    context::ContextHandle,
    error::Error,
    group::{GroupId, VmId},
};

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    /// Begins what was requested.
    ///
    /// # Errors
    /// Why it may not; nothing changed. [`Error::Busy`] while another operation is under way there.
    pub fn begin(&mut self, request: Request) -> Result<Operation, Error> {
        match request {
            Request::Acquire { owner, group } => self.begin_acquire(owner, group),
            Request::Release { hold } => self.begin_release(hold),
            Request::Attach { hold, context, proof } => self.begin_attach(hold, context, proof),
            Request::Detach { hold } => self.begin_detach(hold),
            Request::SetAside { group } => self.begin_set_aside(group),
            Request::AddDevice { group, device } => self.begin_add_device(group, device),
            Request::RemoveDevice { device } => self.begin_remove_device(device),
            Request::CreateContext { owner } => self.begin_create(owner),
            Request::DestroyContext { context } => self.begin_destroy(context),
            Request::MapBar { context, device, iova, extent, access } => {
                self.begin_map_bar(context, device, iova, (extent, access))
            }
            Request::UnmapBar { context, iova } => self.begin_unmap_bar(context, iova),
            Request::Refer { user, group } => self.refer(user, group),
            Request::Unrefer { reference } => Ok(self.begin_unrefer(reference)),
            Request::Revoke { vm, group } => self.begin_revoke(vm, group),
            Request::VmDied { vm } => self.begin_death(vm),
        }
    }

    fn begin_acquire(&mut self, owner: Owner, id: GroupId) -> Result<Operation, Error> {
        self.may_own(owner, id)?;
        let group = self.group_mut(id)?;
        if let Some(tenancy) = &mut group.tenancy {
            tenancy.holds += 1;
            return Ok(Operation::over(Yield::Hold(Hold { group: id, owner, tenure: group.tenure })));
        }
        group.tenancy = Some(Tenancy { owner, holds: 0 });
        group.quiesced = Quiet::No;
        group.work = Work::UnderWay;
        Ok(Operation::new(Plan::Acquire { group: id }, Step::Do(Effect::Block { group: id })))
    }

    /// Refused for a VM whose death is under way: nothing new may come in its way.
    fn lives(&self, owner: Owner) -> Result<(), Error> {
        match owner {
            Owner::Guest(vm) if self.dying.contains(&vm) => Err(Error::Ending { vm }),
            _ => Ok(()),
        }
    }

    /// A group on which an operation may begin.
    pub(super) fn open(&mut self, id: GroupId) -> Result<&mut Group, Error> {
        if let Some(tenancy) = self.group(id)?.tenancy {
            self.lives(tenancy.owner)?;
        }
        let group = self.group_mut(id)?;
        group.idle()?;
        Ok(group)
    }

    fn may_own(&self, owner: Owner, id: GroupId) -> Result<(), Error> {
        let group = self.group(id)?;
        self.lives(owner)?;
        if let Owner::Guest(vm) = owner
            && !group.grants.contains(&vm)
        {
            return Err(Error::NotGranted { vm, group: id });
        }
        match group.tenancy {
            Some(tenancy) if tenancy.owner != owner => return Err(tenancy.refusal()),
            _ => group.idle()?,
        }
        if group.members.is_empty() {
            return Err(Error::BadMemberCount { count: 0 });
        }
        let needed = group.reserved.iter().find(|region| region.harm == Harm::Needed);
        match needed.filter(|_| owner != Owner::Host) {
            Some(region) => Err(Error::ReservedRegion { device: region.device, range: region.range }),
            None => Ok(()),
        }
    }

    /// Never refused: who no longer holds anything has nothing to release.
    fn begin_release(&mut self, hold: Hold) -> Result<Operation, Error> {
        let nothing = Operation::over(Yield::Nothing);
        if self.check(hold).is_err() {
            return Ok(nothing);
        }
        let group = self.group_mut(hold.group)?;
        let Some(tenancy) = &mut group.tenancy else { return Ok(nothing) };
        tenancy.holds -= 1;
        // Whoever is at work on the group finds it without a hold, and ends the ownership.
        if tenancy.holds > 0 || group.work == Work::UnderWay {
            return Ok(nothing);
        }
        group.work = Work::UnderWay;
        let mut operation = Operation::new(Plan::End { group: hold.group }, Step::Wait);
        self.advance(&mut operation);
        Ok(operation)
    }

    fn begin_attach(&mut self, hold: Hold, to: ContextHandle, proof: Proof) -> Result<Operation, Error> {
        self.check(hold)?;
        let id = hold.group;
        let slot = self.usable(hold.owner, to)?;
        let group = self.open(id)?;
        let fits = proof == Proof::Quiesced { group: id, tenure: group.tenure };
        if group.quiesced == Quiet::No && !fits {
            return Err(Error::NotQuiesced { group: id });
        }
        group.quiesced = Quiet::Yes;
        group.next = Some(slot);
        group.work = Work::UnderWay;
        Ok(Operation::new(Plan::Attach { group: id }, Step::Do(Effect::Switch { group: id, context: slot })))
    }

    /// The slot of a context that `owner` may attach to.
    pub(super) fn usable(&self, owner: Owner, handle: ContextHandle) -> Result<usize, Error> {
        let (slot, state) = self.context(handle)?;
        if state.owner != owner {
            return Err(match state.owner {
                Owner::Guest(owner) => Error::OwnedBy { owner },
                Owner::Host => Error::OwnedByHost { drivers: 0 },
            });
        }
        match state.life {
            Life::Live if state.poisoned == Poison::Reachable => Err(Error::Quarantined),
            Life::Live => Ok(slot),
            _ => Err(Error::Busy),
        }
    }

    pub(super) fn context(&self, handle: ContextHandle) -> Result<(usize, &ContextState), Error> {
        let slot = handle.slot as usize;
        let state = self
            .contexts
            .get(slot)
            .filter(|state| state.life != Life::Vacant && state.generation == handle.generation);
        Ok((slot, state.ok_or(Error::Stale { slot: handle.slot })?))
    }

    fn begin_detach(&mut self, hold: Hold) -> Result<Operation, Error> {
        self.check(hold)?;
        let group = self.group_mut(hold.group)?;
        group.free_of_others()?;
        if group.context.is_none() {
            return Ok(Operation::over(Yield::Nothing));
        }
        group.work = Work::UnderWay;
        let block = Effect::Block { group: hold.group };
        Ok(Operation::new(Plan::Detach { group: hold.group }, Step::Do(block)))
    }

    /// Of a group that is busy this much is done: nothing new begins on it.
    fn begin_set_aside(&mut self, id: GroupId) -> Result<Operation, Error> {
        let group = self.group_mut(id)?;
        if group.health == Health::Quarantined {
            return Err(Error::Quarantined);
        }
        group.health = Health::SetAside;
        group.quiesced = Quiet::No;
        group.free_of_others()?;
        group.work = Work::UnderWay;
        Ok(Operation::new(Plan::SetAside { group: id }, Step::Do(Effect::Block { group: id })))
    }

    fn begin_add_device(&mut self, id: GroupId, device: DeviceId) -> Result<Operation, Error> {
        if self.group_of(device).is_some() {
            return Err(Error::DuplicateDevice { device });
        }
        let group = self.open(id)?;
        let count = group.members.len() + 1;
        group.members.push(device).map_err(|_| Error::BadMemberCount { count })?;
        group.work = Work::UnderWay;
        let effect = match group.context {
            Some(context) => Effect::Switch { group: id, context },
            None => Effect::BlockDevice { device },
        };
        Ok(Operation::new(Plan::AddDevice { group: id, device }, Step::Do(effect)))
    }

    fn begin_remove_device(&mut self, device: DeviceId) -> Result<Operation, Error> {
        let id = self.group_of(device).ok_or(Error::UnknownDevice { device })?;
        let group = self.open(id)?;
        group.work = Work::UnderWay;
        let plan = Plan::RemoveDevice { group: id, device };
        if group.members.len() > 1 || group.tenancy.is_none() {
            let mut operation = Operation::new(plan, Step::Wait);
            self.advance_bars_of(&mut operation, id, device);
            return Ok(operation);
        }
        let mut operation = Operation::new(plan, Step::Wait);
        self.advance(&mut operation);
        Ok(operation)
    }

    fn begin_create(&mut self, owner: Owner) -> Result<Operation, Error> {
        self.lives(owner)?;
        let vacant = self.contexts.iter().position(|state| state.life == Life::Vacant);
        let slot = vacant.ok_or(Error::Full { capacity: CONTEXTS })?;
        if let Some(state) = self.contexts.get_mut(slot) {
            let generation = state.generation;
            *state = ContextState { life: Life::Making, owner, generation, ..ContextState::VACANT };
        }
        Ok(Operation::new(Plan::CreateContext, Step::Do(Effect::Make { context: slot })))
    }

    fn begin_destroy(&mut self, handle: ContextHandle) -> Result<Operation, Error> {
        let (slot, state) = self.context(handle)?;
        self.lives(state.owner)?;
        match state.life {
            _ if state.poisoned == Poison::Reachable => return Err(Error::Quarantined),
            Life::Live => {}
            _ => return Err(Error::Busy),
        }
        match self.users_of(slot) + self.references_to(slot) {
            0 => {}
            users => return Err(Error::InUse { users }),
        }
        self.set_life(slot, Life::Closing);
        let close = Effect::Close { context: slot };
        Ok(Operation::new(Plan::DestroyContext { context: slot }, Step::Do(close)))
    }

    fn refer(&mut self, user: UserId, id: GroupId) -> Result<Operation, Error> {
        let context = self.open(id)?.context.ok_or(Error::NotAttached { group: id })?;
        let vacant = self.places.iter().position(|place| place.reference.is_none());
        let slot = vacant.ok_or(Error::Full { capacity: USERS })?;
        let place = self.places.get_mut(slot).ok_or(Error::Full { capacity: USERS })?;
        place.reference = Some(Reference { user, group: id, context, notice: Notified::No });
        let generation = place.generation;
        Ok(Operation::over(Yield::Reference(ReferenceNumber { slot, generation })))
    }

    /// Never refused. The last reference to a context that is kept lets it go.
    fn begin_unrefer(&mut self, number: ReferenceNumber) -> Operation {
        let nothing = Operation::over(Yield::Nothing);
        let place = self.places.get_mut(number.slot).filter(|place| place.generation == number.generation);
        let Some(place) = place else { return nothing };
        let Some(reference) = place.reference.take() else { return nothing };
        place.generation = place.generation.wrapping_add(1);
        let slot = reference.context;
        if !self.can_go(slot) {
            return nothing;
        }
        self.set_life(slot, Life::Closing);
        let mut operation = Operation::new(Plan::Unkeep, Step::Wait);
        operation.closing = Some(Closing { context: slot, stage: Stage::Shut });
        self.advance(&mut operation);
        operation
    }

    /// Whether a context that was kept for its references alone has none left.
    fn can_go(&self, slot: usize) -> bool {
        let kept = |state: &ContextState| state.life == Life::Kept && state.poisoned == Poison::None;
        self.contexts.get(slot).is_some_and(kept) && self.references_to(slot) == 0
    }

    fn begin_revoke(&mut self, vm: VmId, id: GroupId) -> Result<Operation, Error> {
        self.lives(Owner::Guest(vm))?;
        let group = self.group_mut(id)?;
        let Some(tenancy) = group.tenancy else { return Err(Error::NotOwner { vm, group: id }) };
        if tenancy.owner != Owner::Guest(vm) {
            return Err(tenancy.refusal());
        }
        if group.announced == Announced::Revocation {
            return Err(Error::Busy);
        }
        group.announced = Announced::Revocation;
        let mut operation = Operation::new(Plan::RevokeWhenIdle { group: id, vm }, Step::Wait);
        self.advance(&mut operation);
        Ok(operation)
    }

    fn begin_death(&mut self, vm: VmId) -> Result<Operation, Error> {
        self.lives(Owner::Guest(vm))?;
        self.dying.push(vm).map_err(|_| Error::Full { capacity: MAX_DYING })?;
        self.groups.iter_mut().for_each(|group| group.grants.retain(|granted| *granted != vm));
        let mut operation = Operation::new(Plan::Die { vm, group: None, cursor: 0 }, Step::Wait);
        self.advance(&mut operation);
        Ok(operation)
    }

    pub(super) fn set_life(&mut self, slot: usize, life: Life) {
        if let Some(state) = self.contexts.get_mut(slot) {
            state.life = life;
        }
    }
}

impl Tenancy {
    const fn refusal(self) -> Error {
        match self.owner {
            Owner::Guest(owner) => Error::OwnedBy { owner },
            Owner::Host => Error::OwnedByHost { drivers: self.holds },
        }
    }
}

impl Group {
    pub(super) const fn begin_work(&mut self) {
        self.work = Work::UnderWay;
    }

    /// Nobody is at work on the group, and nobody is about to end its ownership.
    pub(super) fn free_of_others(&self) -> Result<(), Error> {
        match (self.work, self.announced) {
            (Work::Idle, Announced::No) => Ok(()),
            _ => Err(Error::Busy),
        }
    }

    /// As [`free_of_others`](Self::free_of_others), on hardware that answers.
    fn idle(&self) -> Result<(), Error> {
        self.free_of_others()?;
        match self.health {
            Health::Good => Ok(()),
            Health::SetAside | Health::Quarantined => Err(Error::Quarantined),
        }
    }
}
