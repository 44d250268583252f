//! What an effect has changed, and what comes next.

use super::{
    Ownership,
    operation::{Answer, Effect, Hold, Operation, Plan, Stage, Step, Yield},
    state::{Announced, ContextState, Drained, Group, Health, Life, Poison, Quiet, Tenancy, Work},
};
use crate::{error::Error, group::GroupId};

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    /// Notes how the effect that `operation` named has ended, and names the next one.
    pub fn finish(&mut self, operation: &mut Operation, answer: Answer) {
        let Step::Do(effect) = operation.step else { return };
        if let Answer::Refused(error) | Answer::Failed(error) = answer {
            operation.error.get_or_insert(error);
        }
        self.apply(operation, effect, answer);
        self.advance(operation);
    }

    /// Asks whether a waiting operation may go on.
    pub fn poll(&mut self, operation: &mut Operation) {
        if operation.step == Step::Wait {
            self.advance(operation);
        }
    }

    /// Gives a waiting operation up: it is over, with [`Error::Busy`], and what it has done so far stays.
    pub fn give_up(&mut self, operation: &mut Operation) {
        if operation.step != Step::Wait {
            return;
        }
        match operation.plan {
            Plan::RevokeWhenIdle { group, .. } => self.with(group, |group| group.announced = Announced::No),
            Plan::Die { vm, .. } => self.dying.retain(|dying| *dying != vm),
            _ => {}
        }
        operation.error.get_or_insert(Error::Busy);
        over(operation, Yield::Nothing);
    }

    fn apply(&mut self, operation: &mut Operation, effect: Effect, answer: Answer) {
        match effect {
            Effect::Block { group } => self.blocked(operation.plan, group, answer),
            Effect::BlockDevice { .. } => self.device_blocked(operation.plan, answer),
            Effect::Switch { group, context } => self.switched(operation.plan, group, context, answer),
            Effect::Make { context } => self.made(context, answer),
            Effect::Close { context } => self.closed(context, answer),
            Effect::Shut { context } => {
                self.with_context(context, |state| state.generation = state.generation.wrapping_add(1));
                operation.reach(Stage::Shut);
            }
            Effect::Drain { context } => {
                if answer == Answer::Done {
                    self.with_context(context, |state| state.drained = Drained::Yes);
                }
                operation.reach(Stage::Waited);
            }
            Effect::Dissolve { context } => {
                operation.closing = None;
                self.dissolved(context, answer);
            }
            Effect::MapBar { group, mapping, .. } => self.bar_mapped(group, mapping, answer),
            Effect::UnmapBar { group, mapping } => self.bar_unmapped(group, mapping, answer),
            Effect::Notify { .. } | Effect::ReleaseMemory { .. } => {}
        }
    }

    fn blocked(&mut self, plan: Plan, id: GroupId, answer: Answer) {
        if answer != Answer::Done {
            self.quarantine(id);
        }
        self.with(id, |group| {
            group.context = None;
            match (plan, answer) {
                (Plan::Detach { .. } | Plan::SetAside { .. }, _) => {}
                (Plan::Acquire { .. }, Answer::Done) => group.hold_once(),
                _ => group.end_tenancy(),
            }
        });
    }

    fn device_blocked(&mut self, plan: Plan, answer: Answer) {
        let (Plan::AddDevice { group: id, device } | Plan::RemoveDevice { group: id, device }) = plan else {
            return;
        };
        let stays = match (plan, answer) {
            (Plan::AddDevice { .. }, Answer::Done) => true,
            (_, Answer::Failed(_)) => {
                self.quarantine(id);
                true
            }
            (Plan::RemoveDevice { .. }, Answer::Refused(_)) => true,
            // A context may lead to its registers for ever: nobody may register it anew.
            (Plan::RemoveDevice { .. }, Answer::Done) => {
                self.group(id).is_ok_and(|group| group.health == Health::Quarantined)
            }
            _ => false,
        };
        if !stays {
            self.with(id, |group| group.forget(device));
        }
    }

    fn switched(&mut self, plan: Plan, id: GroupId, context: usize, answer: Answer) {
        match answer {
            Answer::Done => self.with(id, |group| group.context = Some(context)),
            Answer::Refused(_) => {
                if let Plan::AddDevice { device, .. } = plan {
                    self.with(id, |group| group.forget(device));
                }
            }
            Answer::Failed(_) => self.quarantine(id),
        }
        self.with(id, |group| group.next = None);
    }

    /// The group counts as blocked from now on, and nothing that it may still reach is given back.
    fn quarantine(&mut self, id: GroupId) {
        let Ok(group) = self.group_mut(id) else { return };
        group.health = Health::Quarantined;
        let reached = [group.context.take(), group.next.take()];
        for context in reached.into_iter().flatten() {
            self.with_context(context, |state| state.poisoned = Poison::Reachable);
        }
    }

    fn made(&mut self, context: usize, answer: Answer) {
        self.with_context(context, |state| match answer {
            Answer::Done => state.life = Life::Live,
            Answer::Refused(_) => state.life = Life::Vacant,
            Answer::Failed(_) => (state.life, state.poisoned) = (Life::Kept, Poison::Reachable),
        });
    }

    /// Destruction may still be refused here; revocation never closes, it shuts.
    fn closed(&mut self, context: usize, answer: Answer) {
        self.with_context(context, |state| match answer {
            Answer::Done => state.drained = Drained::Yes,
            Answer::Refused(_) => state.life = Life::Live,
            Answer::Failed(_) => (state.life, state.poisoned) = (Life::Live, Poison::Reachable),
        });
    }

    fn dissolved(&mut self, context: usize, answer: Answer) {
        self.with_context(context, |state| match answer {
            Answer::Done => {
                let generation = state.generation.wrapping_add(1);
                *state = ContextState { generation, ..ContextState::VACANT };
            }
            _ => (state.life, state.poisoned) = (Life::Kept, Poison::Reachable),
        });
    }

    /// Names what comes next.
    pub(super) fn advance(&mut self, operation: &mut Operation) {
        match operation.plan {
            Plan::Acquire { group } => self.acquired(operation, group),
            Plan::Attach { group }
            | Plan::Detach { group }
            | Plan::SetAside { group }
            | Plan::Bar { group }
            | Plan::AddDevice { group, .. } => {
                self.leave(operation, group);
            }
            Plan::RemoveDevice { group, device } => self.advance_removal(operation, group, device),
            Plan::CreateContext => self.created(operation),
            Plan::DestroyContext { context } => self.advance_destruction(operation, context),
            Plan::End { group } => self.advance_end(operation, group),
            Plan::RevokeWhenIdle { group, vm } => self.advance_waiting(operation, group, vm),
            Plan::Revoke { group } => self.advance_revocation(operation, group),
            Plan::Unkeep => {
                if !self.advance_closing(operation) {
                    over(operation, Yield::Nothing);
                }
            }
            Plan::Die { vm, .. } => self.advance_death(operation, vm),
            Plan::Bury { vm } => {
                self.dying.retain(|dying| *dying != vm);
                over(operation, Yield::Nothing);
            }
            Plan::Nothing => over(operation, Yield::Nothing),
        }
    }

    fn acquired(&mut self, operation: &mut Operation, id: GroupId) {
        let Ok(group) = self.group_mut(id) else { return over(operation, Yield::Nothing) };
        group.work = Work::Idle;
        match group.tenancy {
            Some(Tenancy { owner, .. }) => {
                over(operation, Yield::Hold(Hold { group: id, owner, tenure: group.tenure }));
            }
            None => over(operation, Yield::Nothing),
        }
    }

    fn created(&mut self, operation: &mut Operation) {
        let Step::Do(Effect::Make { context }) = operation.step else { return };
        match self.handle_of(context) {
            Some(handle) => over(operation, Yield::Context(handle)),
            None => over(operation, Yield::Nothing),
        }
    }

    fn advance_destruction(&mut self, operation: &mut Operation, context: usize) {
        let closed = operation.step == Step::Do(Effect::Close { context });
        if closed && operation.error.is_none() {
            operation.step = Step::Do(Effect::Dissolve { context });
        } else {
            over(operation, Yield::Nothing);
        }
    }

    /// Opens the group to others, unless its last hold was given up in the meantime.
    pub(super) fn leave(&mut self, operation: &mut Operation, id: GroupId) {
        let Ok(group) = self.group_mut(id) else { return over(operation, Yield::Nothing) };
        if group.tenancy.is_some_and(|tenancy| tenancy.holds == 0) {
            operation.plan = Plan::End { group: id };
            return self.advance(operation);
        }
        group.work = Work::Idle;
        over(operation, Yield::Nothing);
    }

    pub(super) fn with(&mut self, id: GroupId, change: impl FnOnce(&mut Group)) {
        if let Ok(group) = self.group_mut(id) {
            change(group);
        }
    }

    pub(super) fn with_context(&mut self, slot: usize, change: impl FnOnce(&mut ContextState)) {
        if let Some(state) = self.contexts.get_mut(slot) {
            change(state);
        }
    }
}

pub(super) fn over(operation: &mut Operation, what: Yield) {
    operation.plan = Plan::Nothing;
    operation.step = Step::Over(operation.error.map_or(Ok(what), Err));
}

impl Operation {
    pub(super) const fn reach(&mut self, stage: Stage) {
        if let Some(closing) = &mut self.closing {
            closing.stage = stage;
        }
    }
}

impl Group {
    const fn hold_once(&mut self) {
        if let Some(tenancy) = &mut self.tenancy {
            tenancy.holds = 1;
        }
    }

    const fn end_tenancy(&mut self) {
        self.tenancy = None;
        self.tenure = self.tenure.wrapping_add(1);
        self.quiesced = Quiet::No;
    }

    /// A device has left: with the last one, so does every right to the group.
    pub(super) fn forget(&mut self, device: portcullis_hal::DeviceId) {
        self.members.retain(|member| *member != device);
        self.reserved.retain(|region| region.device != device);
        self.bars.retain(|bar| bar.device != device);
        if self.members.is_empty() {
            self.grants.clear();
        }
    }
}
