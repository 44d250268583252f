//! Brings a request to its end: the lock for what is decided, hardware and callbacks outside it.

use core::time::Duration;

use portcullis_hal::{
    Clock, DeviceId,
    gate::Closed,
    seats::Closing,
    sync::{Ordering, spin_loop},
};

use crate::{
    context::{Backing, Context, Slot},
    driver::{Driver, Outcome, Permit, Target},
    error::Error,
    group::{GroupId, VmId},
    ownership::{Answer, Effect, Operation, Ownership, Request, Step, UserId, Yield},
    policy::{Control, Iommu, MAX_USERS},
};

/// A gate with nobody behind it, or the right to it when somebody stays.
type Drained<'g, T, const CPUS: usize> = Result<Closed<'g, T>, Closing<'g, T, CPUS>>;

/// What an operation may do to its surroundings, and how long it may take.
pub(crate) trait Hands {
    /// Tells an external user that the ownership ends.
    fn notify(&mut self, user: UserId);
    /// Waits until nobody is behind the gate any more.
    fn drain<'g, T, const CPUS: usize>(&mut self, closing: Closing<'g, T, CPUS>) -> Drained<'g, T, CPUS>;
    /// Whether there is time to wait for another CPU's operation.
    fn may_wait(&mut self) -> bool;
}

/// Waits for nothing. External users learn of the end from their reference, which is stale.
pub(crate) struct AtOnce;

/// Tells external users, and waits up to a limit each time.
pub(crate) struct Patient<'c, C, N> {
    clock: &'c C,
    limit: Duration,
    begun: Duration,
    /// Against a clock that stands still.
    polls: u32,
    notify: N,
}

impl Hands for AtOnce {
    fn notify(&mut self, _: UserId) {}

    fn drain<'g, T, const CPUS: usize>(&mut self, closing: Closing<'g, T, CPUS>) -> Drained<'g, T, CPUS> {
        closing.drain_soon()
    }

    fn may_wait(&mut self) -> bool {
        false
    }
}

impl<'c, C: Clock, N: FnMut(UserId)> Patient<'c, C, N> {
    pub(crate) fn new(clock: &'c C, limit: Duration, notify: N) -> Self {
        Self { clock, limit, begun: clock.now(), polls: 1 << 22, notify }
    }
}

impl<C: Clock, N: FnMut(UserId)> Hands for Patient<'_, C, N> {
    fn notify(&mut self, user: UserId) {
        (self.notify)(user);
    }

    fn drain<'g, T, const CPUS: usize>(&mut self, closing: Closing<'g, T, CPUS>) -> Drained<'g, T, CPUS> {
        closing.drain(&self.clock, self.limit)
    }

    fn may_wait(&mut self) -> bool {
        self.polls = self.polls.saturating_sub(1);
        spin_loop();
        self.polls > 0 && self.clock.now().saturating_sub(self.begun) < self.limit
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    pub(crate) fn run(&self, request: Request, hands: &mut impl Hands) -> Result<Yield, Error> {
        self.run_with(request, None, hands)
    }

    /// Brings a request to its end. `spec` is for a context to be made.
    pub(crate) fn run_with(
        &self,
        request: Request,
        spec: Option<&D::Spec>,
        hands: &mut impl Hands,
    ) -> Result<Yield, Error> {
        let (mut operation, subject) = self.begin(request)?;
        loop {
            match operation.step() {
                Step::Do(effect) => {
                    let answer = self.perform(effect, spec, hands);
                    self.finish(&mut operation, subject, effect, answer);
                }
                Step::Wait => self.wait(&mut operation, subject, hands),
                Step::Over(result) => {
                    self.control.lock().log.over(request, &result);
                    return result;
                }
            }
        }
    }

    fn begin(&self, request: Request) -> Result<(Operation, Option<VmId>), Error> {
        let mut control = self.control.lock();
        let subject = control.ownership.subject(&request);
        match control.ownership.begin(request) {
            Ok(operation) => {
                // What a switch will reach counts from now on.
                self.renew(&control, subject);
                Ok((operation, subject))
            }
            Err(error) => {
                control.log.refused(request, error);
                Err(error)
            }
        }
    }

    fn finish(&self, operation: &mut Operation, subject: Option<VmId>, effect: Effect, answer: Answer) {
        let mut control = self.control.lock();
        self.describe(&mut control, effect, answer);
        let left = left_by(&control.ownership, effect, answer);
        control.ownership.finish(operation, answer);
        left.into_iter().flatten().for_each(|context| self.rest(&control, context));
        control.log.did(effect, answer);
        self.publish(&control, effect);
        self.renew(&control, subject);
    }

    fn wait(&self, operation: &mut Operation, subject: Option<VmId>, hands: &mut impl Hands) {
        let patient = hands.may_wait();
        let mut control = self.control.lock();
        if patient {
            control.ownership.poll(operation);
        } else {
            control.ownership.give_up(operation);
        }
        self.renew(&control, subject);
    }

    /// Notes of a context that was just made how its DMA goes.
    fn describe(&self, control: &mut Control<GROUPS, CONTEXTS>, effect: Effect, answer: Answer) {
        let (Effect::Make { context }, Answer::Done) = (effect, answer) else { return };
        let Some(entered) = self.slot(context).and_then(|slot| slot.0.enter()) else { return };
        if let Some(context_inside) = entered.as_ref() {
            control.ownership.set_coherency(context, self.driver.coherency(&context_inside.tables));
        }
    }

    /// Lets sessions see that hardware walks a context no more, if so. Under the lock nobody else begins to attach.
    fn rest(&self, control: &Control<GROUPS, CONTEXTS>, context: usize) {
        if !control.ownership.is_walked(context)
            && let Some(slot) = self.slot(context)
        {
            slot.state().rest();
        }
    }

    /// Lets the data plane see the generation of a context that is ending.
    fn publish(&self, control: &Control<GROUPS, CONTEXTS>, effect: Effect) {
        if let Effect::Shut { context } | Effect::Dissolve { context } = effect
            && let Some(slot) = self.slot(context)
            && let Some(generation) = control.ownership.generation_of(context)
        {
            slot.state().generation.store(generation, Ordering::Relaxed);
        }
    }

    fn perform(&self, effect: Effect, spec: Option<&D::Spec>, hands: &mut impl Hands) -> Answer {
        match effect {
            Effect::Notify { user, .. } => {
                hands.notify(user);
                Answer::Done
            }
            Effect::Block { group } => self.block(group),
            Effect::BlockDevice { device } => self.driver.block(&Permit::new(), &[device]).into(),
            Effect::Switch { group, context } => self.switch(group, context),
            Effect::Make { context } => self.with_slot(context, |slot| self.make(slot, context, spec)),
            Effect::Close { context } => self.with_slot(context, close),
            Effect::Shut { context } => self.with_slot(context, shut),
            Effect::Drain { context } => self.with_slot(context, |slot| drain(slot, hands)),
            Effect::Dissolve { context } => self.with_slot(context, |slot| self.dissolve(slot)),
            Effect::MapBar { mapping, extent, access, .. } => {
                self.with_slot(mapping.context, |slot| self.install_bar(slot, mapping, extent, access))
            }
            Effect::UnmapBar { mapping, .. } => {
                self.with_slot(mapping.context, |slot| self.remove_bar(slot, mapping))
            }
            Effect::ReleaseMemory { vm } => {
                self.release_memory(vm).map_or_else(Answer::Failed, |()| Answer::Done)
            }
        }
    }

    fn with_slot(&self, slot: usize, act: impl FnOnce(&Slot<'_, D::Context, CPUS>) -> Answer) -> Answer {
        let stale = Answer::Refused(Error::Stale { slot: slot as u32 });
        self.slot(slot).map_or(stale, |slot| act(&slot))
    }

    fn members(&self, group: GroupId) -> heapless::Vec<DeviceId, { crate::driver::MAX_MEMBERS }> {
        self.control.lock().ownership.members(group).unwrap_or_default()
    }

    fn block(&self, group: GroupId) -> Answer {
        self.driver.block(&Permit::new(), &self.members(group)).into()
    }

    fn switch(&self, group: GroupId, context: usize) -> Answer {
        let members = self.members(group);
        self.with_slot(context, |slot| {
            let inside = slot.0.enter();
            let Some(to) = inside.as_ref().and_then(|inside| inside.as_ref()) else {
                return Answer::Refused(Error::Busy);
            };
            if to.may_have_sessions() && !slot.state().attach(|| self.contexts.outlast_soon()) {
                return Answer::Refused(Error::Busy);
            }
            let permit = Permit::new();
            match self.driver.prepare(&permit, &members, Target::Context(&to.tables)) {
                Ok(prepared) => self.driver.commit(&permit, prepared).into(),
                Err(error) => Answer::Refused(error),
            }
        })
    }

    fn make(&self, slot: &Slot<'_, D::Context, CPUS>, index: usize, spec: Option<&D::Spec>) -> Answer {
        let owner = self.control.lock().ownership.owner_of(index);
        let (Some(spec), Some(owner)) = (spec, owner) else { return Answer::Refused(Error::Busy) };
        let closed = slot.0.shut().and_then(|closing| closing.drain_soon().ok());
        let Some(mut closed) = closed else { return Answer::Refused(Error::Busy) };
        match self.driver.create(&Permit::new(), spec) {
            Ok(tables) => {
                slot.state().renew();
                *closed = Some(Context { owner, tables, backing: Backing::undecided() });
                Answer::Done
            }
            Err(error) => {
                closed.keep_shut();
                Answer::Refused(error)
            }
        }
    }

    fn dissolve(&self, slot: &Slot<'_, D::Context, CPUS>) -> Answer {
        if slot.state().poisoned.load(Ordering::Acquire) {
            return Answer::Failed(Error::Quarantined);
        }
        let closed = slot.0.shut().and_then(|closing| closing.drain_soon().ok());
        let Some(mut closed) = closed else { return Answer::Failed(Error::Busy) };
        let context = closed.take();
        // Nobody has to look behind it before the next context is made.
        closed.keep_shut();
        match context {
            Some(context) => self.end_tables(context).map_or_else(Answer::Failed, |()| Answer::Done),
            None => Answer::Done,
        }
    }
}

/// The contexts that a group may have left by an effect: where it was before, and where it did not come in.
fn left_by<const GROUPS: usize, const CONTEXTS: usize>(
    ownership: &Ownership<GROUPS, CONTEXTS, MAX_USERS>,
    effect: Effect,
    answer: Answer,
) -> [Option<usize>; 2] {
    match effect {
        Effect::Block { group } => [ownership.slot_of(group), None],
        Effect::Switch { group, context } => {
            [ownership.slot_of(group), Some(context).filter(|_| answer != Answer::Done)]
        }
        _ => [None; 2],
    }
}

fn close<C, const CPUS: usize>(slot: &Slot<'_, C, CPUS>) -> Answer {
    if slot.state().poisoned.load(Ordering::Acquire) {
        return Answer::Failed(Error::Quarantined);
    }
    match slot.0.close() {
        Some(closed) => {
            closed.keep_shut();
            Answer::Done
        }
        None => Answer::Refused(Error::Busy),
    }
}

fn shut<C, const CPUS: usize>(slot: &Slot<'_, C, CPUS>) -> Answer {
    match slot.0.shut() {
        Some(closing) => {
            closing.keep_shut();
            Answer::Done
        }
        None => Answer::Refused(Error::Busy),
    }
}

fn drain<C, const CPUS: usize>(slot: &Slot<'_, C, CPUS>, hands: &mut impl Hands) -> Answer {
    let Some(closing) = slot.0.shut() else { return Answer::Failed(Error::Busy) };
    match hands.drain(closing) {
        Ok(closed) => {
            closed.keep_shut();
            Answer::Done
        }
        Err(closing) => {
            closing.keep_shut();
            Answer::Failed(Error::Busy)
        }
    }
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::Done,
            Outcome::Quarantined { error } => Self::Failed(error),
        }
    }
}
