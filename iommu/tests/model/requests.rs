//! What the environment asks for.

use portcullis_iommu::{
    GroupId,
    ownership::{Hold, Owner, Proof, ReferenceNumber, Request, UserId},
};

use crate::{
    machine::{CONTEXTS, DEVICES, USERS, device, groups, map_bar, owner_index, unmap_bar, vms},
    model::State,
};

/// Which requests the environment makes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Requests {
    pub(crate) host: bool,
    pub(crate) revoke: bool,
    pub(crate) die: bool,
    pub hot_plug: bool,
    pub(crate) bars: bool,
    pub(crate) cpus: usize,
    pub(crate) vms: usize,
    pub(crate) holds: u8,
    pub(crate) contexts: usize,
    pub(crate) users: usize,
}

impl Requests {
    /// What anybody may ask for in a state.
    pub(crate) fn of(&self, state: &State, mut ask: impl FnMut(Request)) {
        // VMs that have nothing are all alike: one of them stands for the others.
        let (some, none): (Vec<_>, Vec<_>) = vms().take(self.vms).partition(|vm| state.has_anything(*vm));
        let guests = some.into_iter().chain(none.into_iter().take(1)).map(Owner::Guest);
        let owners: Vec<_> = guests.chain(self.host.then_some(Owner::Host)).collect();
        for owner in owners {
            if self.contexts > state.contexts() {
                ask(Request::CreateContext { owner });
            }
            for group in groups() {
                self.of_owner(state, owner, group, &mut ask);
            }
            if let Owner::Guest(vm) = owner
                && self.die
            {
                ask(Request::VmDied { vm });
            }
        }
        for context in (0..CONTEXTS).filter_map(|slot| state.policy.handle_of(slot)) {
            ask(Request::DestroyContext { context });
            if self.bars {
                groups().for_each(|group| ask(map_bar(context, group)));
                groups().for_each(|group| ask(unmap_bar(context, group)));
            }
        }
        of_users(state, self.users, &mut ask);
        if self.hot_plug {
            of_slots(state, &mut ask);
        }
    }

    fn of_owner(&self, state: &State, owner: Owner, group: GroupId, ask: &mut impl FnMut(Request)) {
        let holds = state.world.holds[group.0 as usize][owner_index(owner)];
        if holds < self.holds {
            ask(Request::Acquire { owner, group });
        }
        if let Owner::Guest(vm) = owner
            && self.revoke
        {
            ask(Request::Revoke { vm, group });
        }
        if holds == 0 {
            return;
        }
        let hold = Hold { group, owner, tenure: 1 };
        ask(Request::Release { hold });
        ask(Request::Detach { hold });
        for context in (0..CONTEXTS).filter_map(|slot| state.policy.handle_of(slot)) {
            ask(Request::Attach { hold, context, proof: Proof::Quiesced { group, tenure: 1 } });
        }
    }
}

fn of_users(state: &State, users: usize, ask: &mut impl FnMut(Request)) {
    for slot in 0..users.min(USERS) {
        match state.world.references[slot] {
            Some(_) => ask(Request::Unrefer { reference: ReferenceNumber::new(slot, 1) }),
            None if state.world.references[..slot].iter().all(Option::is_some) => {
                groups().for_each(|group| ask(Request::Refer { user: UserId(0), group }))
            }
            None => {}
        }
    }
}

fn of_slots(state: &State, ask: &mut impl FnMut(Request)) {
    for number in 0..DEVICES {
        match state.policy.group_of(device(number)) {
            Some(_) => ask(Request::RemoveDevice { device: device(number) }),
            None => {
                let group = GroupId(number as u32 / 2);
                ask(Request::AddDevice { group, device: device(number) });
            }
        }
    }
}
