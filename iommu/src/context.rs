//! Security contexts: the tables of one owner, in numbered slots.

use const_fn::const_fn;
use portcullis_hal::{
    gate::{Gate, Inside},
    sync::{AtomicBool, AtomicU32, Ordering},
};

use crate::{error::Error, ownership::Owner};

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
    pub(crate) owner: Owner,
    pub(crate) tables: C,
}

/// A slot. Mapping calls enter its gate; making and destroying a context closes it.
#[derive(Debug)]
pub(crate) struct Slot<C> {
    /// That of the context inside; written by the control plane only.
    pub(crate) generation: AtomicU32,
    /// An invalidation was never confirmed: the tables must not be given back.
    pub(crate) poisoned: AtomicBool,
    pub(crate) gate: Gate<Option<Context<C>>>,
}

impl<C> Slot<C> {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self { generation: AtomicU32::new(0), poisoned: AtomicBool::new(false), gate: Gate::new(None) }
    }

    /// Enters the gate for `handle`; the context that it names cannot end as long as the entry lives.
    #[inline]
    pub(crate) fn enter(&self, handle: ContextHandle) -> Result<Entered<'_, C>, Error> {
        let stale = Error::Stale { slot: handle.slot };
        let inside = self.gate.enter();
        if self.generation.load(Ordering::Relaxed) != handle.generation {
            return Err(stale);
        }
        Ok(Entered { inside: inside.ok_or(Error::Busy)?, slot: self, stale })
    }
}

/// A caller in a context.
#[derive(Debug)]
pub(crate) struct Entered<'s, C> {
    inside: Inside<'s, Option<Context<C>>>,
    pub(crate) slot: &'s Slot<C>,
    stale: Error,
}

impl<C> Entered<'_, C> {
    #[inline]
    pub(crate) fn context(&self) -> Result<&Context<C>, Error> {
        self.inside.as_ref().ok_or(self.stale)
    }
}
