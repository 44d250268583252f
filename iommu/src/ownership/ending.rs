//! How ownership ends: by release, removal, revocation, or the death of a VM.
//!
//! External users are told first, then BARs of the group are unmapped. A revocation then shuts the gate of the context that only this group
//! used, drains it, blocks the devices and dissolves the context; a dead VM's other contexts follow, and at
//! last its memory. What hardware may still reach, or somebody still refers to, is kept.

use portcullis_hal::DeviceId;

use super::{
    Ownership,
    advance::over,
    operation::{Closing, Effect, Operation, Plan, Stage, Step, Yield},
    state::{Announced, Drained, Health, Life, Notified, Owner, Poison, Work},
};
use crate::{
    error::Error,
    group::{GroupId, VmId},
};

/// Whether the context of a group goes with the ownership.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contexts {
    Stay,
    Go,
}

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    pub(super) fn advance_end(&mut self, operation: &mut Operation, id: GroupId) {
        if !self.advance_ending(operation, id, Contexts::Stay) {
            self.leave(operation, id);
        }
    }

    pub(super) fn advance_removal(&mut self, operation: &mut Operation, id: GroupId, device: DeviceId) {
        if matches!(operation.step, Step::Do(Effect::BlockDevice { .. })) {
            return self.leave(operation, id);
        }
        let several = self.group(id).is_ok_and(|group| group.members.len() > 1);
        if several && matches!(operation.step, Step::Do(Effect::UnmapBar { .. })) {
            return self.advance_bars_of(operation, id, device);
        }
        if self.advance_ending(operation, id, Contexts::Stay) {
            return;
        }
        self.with(id, |group| {
            // In quarantine a device stays known: nobody may register it anew.
            if group.health != Health::Quarantined {
                group.forget(device);
            }
        });
        self.leave(operation, id);
    }

    pub(super) fn advance_waiting(&mut self, operation: &mut Operation, id: GroupId, vm: VmId) {
        let Ok(group) = self.group_mut(id) else { return over(operation, Yield::Nothing) };
        if group.work == Work::UnderWay {
            operation.step = Step::Wait;
            return;
        }
        group.announced = Announced::No;
        if group.tenancy.is_none_or(|tenancy| tenancy.owner != Owner::Guest(vm)) {
            return over(operation, Yield::Nothing);
        }
        group.work = Work::UnderWay;
        operation.plan = Plan::Revoke { group: id };
        self.advance_revocation(operation, id);
    }

    pub(super) fn advance_revocation(&mut self, operation: &mut Operation, id: GroupId) {
        if !self.advance_ending(operation, id, Contexts::Go) {
            self.leave(operation, id);
        }
    }

    /// One step towards the end of an ownership; `false` when there is none left.
    fn advance_ending(&mut self, operation: &mut Operation, id: GroupId, contexts: Contexts) -> bool {
        if let Some(notify) = self.next_notice(id) {
            operation.step = Step::Do(notify);
            return true;
        }
        let Ok(group) = self.group(id) else { return false };
        let (owned, context) = (group.tenancy.is_some(), group.context);
        if contexts == Contexts::Go && operation.closing.is_none() {
            operation.closing = context.map(|context| Closing { context, stage: Stage::Shared });
        }
        if let Some(unmap) = self.next_bar(id, None) {
            operation.step = Step::Do(unmap);
            return true;
        }
        if self.advance_withdrawal(operation, u32::from(owned)) {
            return true;
        }
        if owned {
            operation.step = Step::Do(Effect::Block { group: id });
            return true;
        }
        self.advance_closing(operation)
    }

    /// Marks the next external user as told, so that its reference is stale before it hears of it.
    fn next_notice(&mut self, id: GroupId) -> Option<Effect> {
        let references = self.places.iter_mut().enumerate();
        let mut references = references.filter_map(|(slot, place)| Some((slot, place.reference.as_mut()?)));
        let (slot, reference) =
            references.find(|(_, told)| told.group == id && told.notice == Notified::No)?;
        reference.notice = Notified::Yes;
        Some(Effect::Notify { user: reference.user, group: id, slot })
    }

    /// Shuts and drains the context that is to go, as soon as no more than `users` groups use it.
    fn advance_withdrawal(&mut self, operation: &mut Operation, users: u32) -> bool {
        let Some(Closing { context, stage }) = operation.closing else { return false };
        let (life, drained) = match self.contexts.get(context) {
            Some(state) => (state.life, state.drained),
            None => return false,
        };
        let effect = match stage {
            Stage::Shared if life == Life::Live && self.users_of(context) <= users => {
                self.set_life(context, Life::Closing);
                Effect::Shut { context }
            }
            Stage::Shut if drained == Drained::No => Effect::Drain { context },
            _ => return false,
        };
        operation.step = Step::Do(effect);
        true
    }

    /// One step towards the end of the context that the operation is ending; `false` when none is left:
    /// the context is gone, or kept.
    pub(super) fn advance_closing(&mut self, operation: &mut Operation) -> bool {
        if self.advance_withdrawal(operation, 0) {
            return true;
        }
        let Some(Closing { context, stage }) = operation.closing else { return false };
        if stage == Stage::Shared {
            // Other groups use it.
            operation.closing = None;
            return false;
        }
        match self.hindrance(context) {
            None => {
                operation.step = Step::Do(Effect::Dissolve { context });
                true
            }
            Some(error) => {
                operation.error.get_or_insert(error);
                operation.closing = None;
                self.set_life(context, Life::Kept);
                false
            }
        }
    }

    /// Why the tables of a context cannot be given back.
    fn hindrance(&self, context: usize) -> Option<Error> {
        let state = self.contexts.get(context)?;
        if state.poisoned == Poison::Reachable {
            return Some(Error::Quarantined);
        }
        match self.users_of(context) + self.references_to(context) {
            0 if state.drained == Drained::Yes => None,
            0 => Some(Error::Busy),
            users => Some(Error::InUse { users }),
        }
    }

    pub(super) fn advance_death(&mut self, operation: &mut Operation, vm: VmId) {
        if self.advance_groups_of_dead(operation, vm) || self.advance_closing(operation) {
            return;
        }
        if self.owned_by(vm).next().is_some() {
            operation.step = Step::Wait;
            return;
        }
        match self.choose_context_of_dead(operation, vm) {
            Choice::Wait => operation.step = Step::Wait,
            Choice::Chosen => self.advance_death(operation, vm),
            Choice::None => self.bury(operation, vm),
        }
    }

    fn advance_groups_of_dead(&mut self, operation: &mut Operation, vm: VmId) -> bool {
        loop {
            let Plan::Die { group, cursor, .. } = operation.plan else { return false };
            if let Some(id) = group {
                if self.advance_ending(operation, id, Contexts::Go) {
                    return true;
                }
                self.with(id, |group| group.work = Work::Idle);
            }
            let next = self.owned_by(vm).find(|id| {
                self.group(*id)
                    .is_ok_and(|group| group.work == Work::Idle && group.announced == Announced::No)
            });
            operation.plan = Plan::Die { vm, group: next, cursor };
            match next {
                Some(id) => self.with(id, |group| group.work = Work::UnderWay),
                None => return false,
            }
        }
    }

    fn owned_by(&self, vm: VmId) -> impl Iterator<Item = GroupId> + '_ {
        let groups = self.groups.iter().enumerate();
        let owned = groups
            .filter(move |(_, group)| group.tenancy.is_some_and(|tenancy| tenancy.owner == Owner::Guest(vm)));
        owned.map(|(index, _)| GroupId(index as u32))
    }

    /// Chooses the next context of a dead VM to end.
    fn choose_context_of_dead(&mut self, operation: &mut Operation, vm: VmId) -> Choice {
        let Plan::Die { cursor, .. } = &mut operation.plan else { return Choice::None };
        while let Some(state) = self.contexts.get_mut(*cursor) {
            let context = *cursor;
            let stage = match state.life {
                _ if state.owner != Owner::Guest(vm) => None,
                Life::Making | Life::Closing => return Choice::Wait,
                Life::Live => Some(Stage::Shared),
                Life::Kept if state.poisoned == Poison::None => Some(Stage::Shut),
                Life::Vacant | Life::Kept => None,
            };
            *cursor += 1;
            if let Some(stage) = stage {
                if stage == Stage::Shut {
                    state.life = Life::Closing;
                }
                operation.closing = Some(Closing { context, stage });
                return Choice::Chosen;
            }
        }
        Choice::None
    }

    /// Releases the memory of a dead VM, unless something may still reach it.
    fn bury(&mut self, operation: &mut Operation, vm: VmId) {
        let left =
            |state: &&super::ContextState| state.owner == Owner::Guest(vm) && state.life != Life::Vacant;
        if self.contexts.iter().any(|state| left(&state)) {
            operation.error.get_or_insert(Error::Quarantined);
            self.dying.retain(|dying| *dying != vm);
            return over(operation, Yield::Nothing);
        }
        operation.plan = Plan::Bury { vm };
        operation.step = Step::Do(Effect::ReleaseMemory { vm });
    }
}

enum Choice {
    Chosen,
    Wait,
    None,
}
