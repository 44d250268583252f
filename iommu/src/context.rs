//! Security contexts: the tables of one owner, in numbered slots.

use const_fn::const_fn;
use portcullis_hal::{
    gate::Gate,
    sync::{AtomicBool, AtomicU32},
};

use crate::group::VmId;

/// Names a context: slot and generation. A handle that outlived its context is refused as stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ContextHandle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl ContextHandle {
    /// The slot that the handle names: a number for people; it says nothing without the generation.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

/// A context in its slot.
#[derive(Debug)]
pub(crate) struct Context<C> {
    pub(crate) owner: VmId,
    pub(crate) tables: C,
}

/// A slot. Mapping calls enter its gate; making and destroying a context closes it.
#[derive(Debug)]
pub(crate) struct Slot<C> {
    pub(crate) generation: AtomicU32,
    /// Groups attached to the context.
    pub(crate) users: AtomicU32,
    /// An invalidation was never confirmed: the tables must not be given back.
    pub(crate) poisoned: AtomicBool,
    pub(crate) gate: Gate<Option<Context<C>>>,
}

impl<C> Slot<C> {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            users: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
            gate: Gate::new(None),
        }
    }
}
