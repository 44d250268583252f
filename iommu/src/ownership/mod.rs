//! Who may do DMA: the control plane as a value.
//!
//! [`Ownership`] knows no hardware, no lock and no time. A request [begins](Ownership::begin) an
//! [`Operation`], which names one [`Effect`] after the other; somebody else does it, outside the lock that
//! guards the value, and [says how it ended](Ownership::finish). A model checker does the same with every
//! answer that hardware could give: see `tests/model.rs`.
//!
//! While an operation is under way on a group or a context, others on it are refused with
//! [`Error::Busy`]; revocation and death announce themselves and wait instead. Whoever waits holds
//! nothing, so that nobody waits for ever.

mod advance;
mod bars;
mod begin;
mod ending;
mod operation;
mod registry;
mod state;

use heapless::Vec;

pub use operation::{Answer, Effect, Hold, Operation, Proof, ReferenceNumber, Request, Step, Yield};
pub use state::{
    Announced, Bar, BarMapping, ContextState, Group, Harm, Health, Life, MAX_BAR_MAPPINGS, MAX_BARS,
    MAX_DYING, MAX_GRANTS, MAX_RESERVED, Notified, Owner, Reference, Reserved, Tenancy, UserId, Work,
};

use state::Place;

use crate::{
    error::Error,
    group::{GroupId, VmId},
};

/// Groups, contexts and external references, and what may happen to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ownership<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> {
    groups: Vec<Group, GROUPS>,
    contexts: [ContextState; CONTEXTS],
    places: [Place; USERS],
    /// VMs whose death is under way: they get nothing any more.
    dying: Vec<VmId, MAX_DYING>,
}

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Default
    for Ownership<GROUPS, CONTEXTS, USERS>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<const GROUPS: usize, const CONTEXTS: usize, const USERS: usize> Ownership<GROUPS, CONTEXTS, USERS> {
    /// No group, no context.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            groups: Vec::new(),
            contexts: [ContextState::VACANT; CONTEXTS],
            places: [Place::VACANT; USERS],
            dying: Vec::new(),
        }
    }

    fn group(&self, id: GroupId) -> Result<&Group, Error> {
        self.groups.get(id.0 as usize).ok_or(Error::UnknownGroup { group: id })
    }

    fn group_mut(&mut self, id: GroupId) -> Result<&mut Group, Error> {
        self.groups.get_mut(id.0 as usize).ok_or(Error::UnknownGroup { group: id })
    }

    /// Groups that are attached to the context, or about to be, or whose BARs are mapped there.
    fn users_of(&self, context: usize) -> u32 {
        let uses = |group: &&Group| {
            let bars = group.bar_mappings.iter().any(|mapping| mapping.context == context);
            bars || group.reaches(context)
        };
        self.groups.iter().filter(uses).count() as u32
    }

    /// External references that keep the context.
    fn references_to(&self, context: usize) -> u32 {
        let keeps = |place: &&Place| place.reference.is_some_and(|reference| reference.context == context);
        self.places.iter().filter(keeps).count() as u32
    }
}
