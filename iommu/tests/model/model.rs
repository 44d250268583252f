//! The state space: what may happen next, and what must never be.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use portcullis_hal::TimedOut;
use portcullis_iommu::{
    Error, VmId,
    ownership::{Answer, Effect, Operation, Owner, Request, Step, Yield},
};
use stateright::{Model, Property};

use crate::invariants::{
    bar_is_its_owners, every_operation_ends, no_reference_lost, one_owner, reach_is_claimed,
    releases_nothing_reachable,
};
use crate::machine::{
    CONTEXTS, DEVICES, GROUPS, Policy, VMS, World, declare_bars, device, groups, owner_index, vms,
};
use crate::requests::Requests;

pub(crate) const DEAD: Error = Error::Timeout(TimedOut { register: 0, bits: 1 });

/// More effects than any operation needs: the longest is a death that finds every group and context.
pub(crate) const MOST_STEPS: u8 = 20;

/// A bug, seeded into what surrounds the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Reports a group as blocked without having blocked it.
    BlockSkipped,
    /// Reports a BAR as unmapped that still is.
    BarLeft,
    /// Dissolves where it was told to shut the gate.
    DissolvedFirst,
    /// Takes a refusal for a claim.
    RefusalIgnored,
    /// Forgets to give up what a guard held.
    ReleaseForgotten,
    /// Tries a drain again whose deadline has passed.
    DrainedForEver,
}

pub(crate) struct Protocol {
    pub(crate) requests: Requests,
    pub(crate) flaw: Option<Flaw>,
}

/// An operation of one CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Cpu {
    pub(crate) request: Request,
    pub(crate) operation: Operation,
    pub(crate) steps: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) policy: Policy,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) world: World,
    pub(crate) refusal: Refusals,
}

/// What refused requests have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refusals {
    ChangedNothing,
    ChangedSomething,
}

#[derive(PartialEq)]
enum First {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Action {
    Begin(Request),
    Answer(usize, Answer),
    Poll(usize),
    GiveUp(usize),
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut policy = Policy::new();
        for group in 0..GROUPS {
            policy.add_group(&[device(2 * group), device(2 * group + 1)]).expect("a group");
        }
        if self.requests.bars {
            declare_bars(&mut policy);
        }
        let mut state =
            State { policy, cpus: Vec::new(), world: World::default(), refusal: Refusals::ChangedNothing };
        state.settle(self, First::Yes);
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, cpu) in state.cpus.iter().enumerate() {
            match cpu.operation.step() {
                Step::Do(effect) => {
                    actions.extend(answers(effect).map(|answer| Action::Answer(index, answer)));
                }
                Step::Wait => actions.extend([Action::Poll(index), Action::GiveUp(index)]),
                Step::Over(_) => {}
            }
        }
        if state.cpus.len() < self.requests.cpus {
            self.requests.of(state, |request| actions.push(Action::Begin(request)));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Begin(request) => next.begin(self, state, request)?,
            Action::Answer(index, answer) => next.answer(self, index, answer),
            Action::Poll(index) => {
                next.policy.poll(&mut next.cpus[index].operation);
                if next == *state {
                    return None;
                }
            }
            Action::GiveUp(index) => next.policy.give_up(&mut next.cpus[index].operation),
        }
        next.settle(self, First::No);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two owners", |_, state: &State| {
                groups().all(|group| one_owner(state, group))
            }),
            Property::always("no reach without a claim", |_, state: &State| {
                (0..DEVICES).all(|device| reach_is_claimed(state, device))
            }),
            Property::always("no memory released while reachable", |protocol: &Self, state: &State| {
                state.effects().all(|effect| releases_nothing_reachable(state, protocol.as_done(effect)))
            }),
            Property::always("no BAR but for its owner", |_, state: &State| {
                groups().all(|group| bar_is_its_owners(state, group))
            }),
            Property::always("no reference lost", |_, state: &State| no_reference_lost(state)),
            Property::always("every operation ends", |_, state: &State| every_operation_ends(state)),
            Property::always("a refusal changes nothing", |_, state: &State| {
                state.refusal == Refusals::ChangedNothing
            }),
        ]
    }
}

fn answers(effect: Effect) -> impl Iterator<Item = Answer> {
    let (refused, failed) = (Answer::Refused(Error::Busy), Answer::Failed(DEAD));
    let bad = match effect {
        Effect::Block { .. }
        | Effect::BlockDevice { .. }
        | Effect::Drain { .. }
        | Effect::UnmapBar { .. }
        | Effect::Dissolve { .. } => {
            vec![failed]
        }
        Effect::Switch { .. } | Effect::Close { .. } | Effect::MapBar { .. } => vec![refused, failed],
        Effect::Make { .. } => vec![refused],
        _ => vec![],
    };
    [Answer::Done].into_iter().chain(bad)
}

impl Protocol {
    /// What is done when `effect` is asked for.
    fn as_done(&self, effect: Effect) -> Effect {
        match (self.flaw, effect) {
            (Some(Flaw::DissolvedFirst), Effect::Shut { context }) => Effect::Dissolve { context },
            _ => effect,
        }
    }
}

impl State {
    /// Effects that are being done at this moment.
    pub(crate) fn effects(&self) -> impl Iterator<Item = Effect> + Clone + '_ {
        self.cpus.iter().filter_map(|cpu| match cpu.operation.step() {
            Step::Do(effect) => Some(effect),
            _ => None,
        })
    }

    /// `None` when the request was refused and so changed nothing.
    fn begin(&mut self, protocol: &Protocol, before: &Self, request: Request) -> Option<()> {
        if protocol.flaw == Some(Flaw::ReleaseForgotten) && matches!(request, Request::Release { .. }) {
            self.give_up(request);
            return Some(());
        }
        match self.policy.begin(request) {
            Ok(operation) => {
                self.give_up(request);
                self.cpus.push(Cpu { request, operation, steps: 0 });
            }
            Err(error) => self.refused(protocol, before, request, error)?,
        }
        Some(())
    }

    fn refused(&mut self, protocol: &Protocol, before: &Self, request: Request, error: Error) -> Option<()> {
        if self.policy != before.policy {
            self.refusal = Refusals::ChangedSomething;
            return Some(());
        }
        match (protocol.flaw, request, error) {
            (Some(Flaw::RefusalIgnored), Request::Acquire { owner, group }, Error::OwnedBy { .. }) => {
                self.world.holds[group.0 as usize][owner_index(owner)] += 1;
                Some(())
            }
            _ => None,
        }
    }

    pub(crate) fn contexts(&self) -> usize {
        (0..CONTEXTS).filter(|slot| self.policy.handle_of(*slot).is_some()).count()
    }

    /// Whether a VM has anything at all, or is about to.
    pub(crate) fn has_anything(&self, vm: VmId) -> bool {
        let owner = Some(Owner::Guest(vm));
        let group =
            |group| self.policy.tenancy(group).expect("a group").map(|tenancy| tenancy.owner) == owner;
        let names = |cpu: &Cpu| match cpu.request {
            Request::VmDied { vm: named } | Request::Revoke { vm: named, .. } => named == vm,
            _ => false,
        };
        groups().any(group)
            || (0..CONTEXTS).any(|context| self.policy.owner_of(context) == owner)
            || self.cpus.iter().any(names)
    }

    /// What the caller no longer has, once it has asked.
    fn give_up(&mut self, request: Request) {
        match request {
            Request::Release { hold } => {
                self.world.holds[hold.group.0 as usize][owner_index(hold.owner)] -= 1;
            }
            Request::Unrefer { reference } => self.world.references[reference.slot()] = None,
            _ => {}
        }
    }

    fn answer(&mut self, protocol: &Protocol, index: usize, answer: Answer) {
        let cpu = &mut self.cpus[index];
        let Step::Do(effect) = cpu.operation.step() else { return };
        cpu.steps = (cpu.steps + 1).min(MOST_STEPS + 1);
        match (protocol.flaw, effect) {
            (Some(Flaw::BlockSkipped), Effect::Block { .. })
            | (Some(Flaw::BarLeft), Effect::UnmapBar { .. }) => {}
            (Some(Flaw::DrainedForEver), Effect::Drain { .. }) if answer != Answer::Done => return,
            _ => self.world.does(&self.policy, effect, answer),
        }
        let cpu = &mut self.cpus[index];
        self.policy.finish(&mut cpu.operation, answer);
        if let (true, Effect::Block { group }) = (World::ends_ownership(cpu.request), effect) {
            self.world.holds[group.0 as usize] = [0; VMS + 1];
        }
    }

    /// Takes what finished operations gave, and makes states equal that differ in numbers only.
    fn settle(&mut self, protocol: &Protocol, first: First) {
        let (over, going): (Vec<_>, Vec<_>) =
            self.cpus.drain(..).partition(|cpu| matches!(cpu.operation.step(), Step::Over(_)));
        self.cpus = going;
        let mut regrant = first == First::Yes;
        for cpu in over {
            self.take(cpu.operation.step());
            regrant |= World::ends_ownership(cpu.request) || matches!(cpu.request, Request::AddDevice { .. });
        }
        if regrant {
            self.grant(protocol);
        }
        self.policy.renumber();
        if self.cpus.len() > 1 {
            let hasher = BuildHasherDefault::<DefaultHasher>::default();
            self.cpus.sort_by_key(|cpu| hasher.hash_one(cpu));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Over(Ok(Yield::Hold(hold))) => {
                self.world.holds[hold.group.0 as usize][owner_index(hold.owner)] += 1;
            }
            Step::Over(Ok(Yield::Reference(reference))) => {
                let group = self.policy.group_of_reference(reference).expect("alive");
                let context = self.policy.context_of(group).expect("a group").expect("a context");
                self.world.references[reference.slot()] = Some(context.slot() as usize);
            }
            _ => {}
        }
    }

    /// The hypervisor grants everything again to whoever is not just dying.
    fn grant(&mut self, protocol: &Protocol) {
        for (vm, group) in vms().flat_map(|vm| groups().map(move |group| (vm, group))) {
            self.policy.withdraw_grant(vm, group).expect("a group");
        }
        for (vm, group) in
            vms().take(protocol.requests.vms).flat_map(|vm| groups().map(move |group| (vm, group)))
        {
            if self.policy.members(group).is_ok_and(|members| !members.is_empty()) {
                let _ = self.policy.grant(vm, group);
            }
        }
    }
}
