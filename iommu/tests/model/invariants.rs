//! What must never be.

use portcullis_iommu::{
    GroupId, VmId,
    ownership::{Announced, Effect, Health, Life, Owner, Step, Work},
};

use crate::{
    machine::{CONTEXTS, DEVICES, Gate, Policy, VMS, device, gone, groups, owner_index},
    model::{Cpu, MOST_STEPS, State},
};

pub(crate) fn one_owner(state: &State, group: GroupId) -> bool {
    let tenancy = state.policy.tenancy(group).expect("a group");
    let believed = &state.world.holds[group.0 as usize];
    let owner_agrees = |index: usize| tenancy.is_some_and(|tenancy| owner_index(tenancy.owner) == index);
    state.world.owners(group.0 as usize) <= 1
        && (0..=VMS).all(|index| believed[index] == 0 || owner_agrees(index))
}

pub(crate) fn reach_is_claimed(state: &State, number: usize) -> bool {
    let reach = state.world.may_reach(&state.policy, number, state.effects());
    if reach == 0 {
        return true;
    }
    let Some(group) = state.policy.group_of(device(number)) else { return false };
    let tenancy = state.policy.tenancy(group).expect("a group");
    let quarantined = state.policy.health(group) == Ok(Health::Quarantined);
    let under_way = state.policy.work(group).is_ok_and(|(work, _)| work == Work::UnderWay);
    (0..CONTEXTS).filter(|context| reach & 1 << context != 0).all(|context| {
        let owner = state.policy.owner_of(context);
        let held = tenancy.is_some_and(|tenancy| {
            Some(tenancy.owner) == owner && (state.world.held(group.0 as usize) > 0 || under_way)
        });
        held || (quarantined && owner.is_some())
    })
}

/// Whatever leads to a BAR is a context of the owner of its group; where hardware did not confirm that it
/// leads there no more, nobody owns the group any more.
pub(crate) fn bar_is_its_owners(state: &State, group: GroupId) -> bool {
    let lead = state.world.lead_to_bar(group, state.effects());
    let owner = state.policy.tenancy(group).expect("a group").map(|tenancy| tenancy.owner);
    let quarantined = state.policy.health(group) == Ok(Health::Quarantined);
    (0..CONTEXTS).filter(|context| lead & 1 << context != 0).all(|context| {
        let is_owners = owner.is_some() && state.policy.owner_of(context) == owner;
        is_owners || (quarantined && !gone(&state.policy, context))
    })
}

pub(crate) fn releases_nothing_reachable(state: &State, effect: Effect) -> bool {
    let reach = |device| state.world.may_reach(&state.policy, device, state.effects());
    let reached: u8 = (0..DEVICES).map(reach).fold(0, |all, one| all | one);
    match effect {
        Effect::Dissolve { context } => {
            let referred = state.world.references.contains(&Some(context));
            let no_bar = state.world.bars.iter().all(|contexts| contexts & 1 << context == 0);
            no_bar && reached & 1 << context == 0 && state.world.gates[context] == Gate::Empty && !referred
        }
        Effect::ReleaseMemory { vm: VmId(vm) } => (0..CONTEXTS).all(|context| {
            let owned = state.policy.owner_of(context) == Some(Owner::Guest(VmId(vm)));
            !owned || reached & 1 << context == 0
        }),
        _ => true,
    }
}

pub(crate) fn no_reference_lost(state: &State) -> bool {
    let holds = |group: GroupId| {
        let tenancy = state.policy.tenancy(group).expect("a group");
        tenancy.map_or(0, |tenancy| tenancy.holds) == state.world.held(group.0 as usize)
    };
    let kept = state.world.references.iter().flatten().all(|context| !gone(&state.policy, *context));
    kept && groups().all(holds)
}

pub(crate) fn every_operation_ends(state: &State) -> bool {
    let bounded = state.cpus.iter().all(|cpu| cpu.steps <= MOST_STEPS);
    let moves = |cpu: &Cpu| match cpu.operation.step() {
        Step::Wait => {
            let (mut policy, mut operation) = (state.policy.clone(), cpu.operation.clone());
            policy.poll(&mut operation);
            operation.step() != Step::Wait
        }
        _ => true,
    };
    bounded
        && if state.cpus.is_empty() {
            nothing_left_closed(&state.policy)
        } else {
            state.cpus.iter().any(moves)
        }
}

/// With no operation under way, nothing is closed to others.
fn nothing_left_closed(policy: &Policy) -> bool {
    let open = |group| policy.work(group) == Ok((Work::Idle, Announced::No));
    let settled = |slot| !matches!(policy.life_of(slot), Some(Life::Making | Life::Closing));
    groups().all(open) && (0..CONTEXTS).all(settled)
}
