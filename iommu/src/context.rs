//! Security contexts: the tables of one owner, in numbered slots.

use const_fn::const_fn;
use portcullis_hal::{
    gate::{Gate, Inside},
    sync::{AtomicBool, AtomicU32, Ordering},
};

use crate::{error::Error, group::VmId, ownership::Owner};

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
    pub(crate) backing: Backing,
}

impl<C> Context<C> {
    /// The VM whose context it is.
    #[inline]
    pub(crate) const fn guest(&self) -> Result<VmId, Error> {
        match self.owner {
            Owner::Guest(vm) => Ok(vm),
            Owner::Host => Err(Error::OwnedByHost { drivers: 0 }),
        }
    }
}

/// What the mappings of a context are made of: bare extents, or registered memory, which is counted. The
/// first mapping call decides, so that each entry is known to be of one kind.
///
/// Holds the slot of the region that was used last, or one of the numbers below.
#[derive(Debug)]
pub(crate) struct Backing(AtomicU32);

/// No mapping call came yet.
const UNDECIDED: u32 = u32::MAX;
/// The context maps bare extents.
const EXTENTS: u32 = u32::MAX - 1;

impl Backing {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn undecided() -> Self {
        Self(AtomicU32::new(UNDECIDED))
    }

    /// Decides for bare extents, or finds that it was decided so.
    #[inline]
    pub(crate) fn by_extents(&self) -> Result<(), Error> {
        if self.is_extents() || self.decide(EXTENTS) == EXTENTS { Ok(()) } else { Err(Error::OtherBacking) }
    }

    /// Decides for registered memory, or finds that it was decided so; returns the slot used last.
    #[inline]
    pub(crate) fn by_regions(&self) -> Result<u32, Error> {
        if let Some(slot) = self.region() {
            return Ok(slot);
        }
        let slot = self.decide(0);
        if slot == EXTENTS { Err(Error::OtherBacking) } else { Ok(slot) }
    }

    /// Whether it was decided for bare extents, which no call changes any more.
    #[inline]
    pub(crate) fn is_extents(&self) -> bool {
        self.0.load(Ordering::Relaxed) == EXTENTS
    }

    /// The slot of the region that was used last, when it was decided for registered memory.
    #[inline]
    pub(crate) fn region(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&slot| slot < EXTENTS)
    }

    /// Notes which region was used last, after [`by_regions`](Self::by_regions).
    #[inline]
    pub(crate) fn remember(&self, slot: u32) {
        self.0.store(slot, Ordering::Relaxed);
    }

    #[inline(never)]
    fn decide(&self, wanted: u32) -> u32 {
        let seen = self.0.load(Ordering::Relaxed);
        if seen != UNDECIDED {
            return seen;
        }
        let relaxed = Ordering::Relaxed;
        self.0.compare_exchange(UNDECIDED, wanted, relaxed, relaxed).map_or_else(|faster| faster, |_| wanted)
    }
}

/// A slot. Mapping calls enter its gate; making and destroying a context closes it.
#[derive(Debug)]
pub(crate) struct Slot<C> {
    /// That of the context inside; written by the control plane only.
    pub(crate) generation: AtomicU32,
    /// An invalidation was never confirmed: the tables must not be given back.
    pub(crate) poisoned: AtomicBool,
    /// A BAR was mapped since the context was made.
    pub(crate) leads_to_bars: AtomicBool,
    pub(crate) gate: Gate<Option<Context<C>>>,
}

impl<C> Slot<C> {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self {
            generation: AtomicU32::new(0),
            poisoned: AtomicBool::new(false),
            leads_to_bars: AtomicBool::new(false),
            gate: Gate::new(None),
        }
    }

    /// Enters the gate for `handle`; the context that it names cannot end as long as the entry lives.
    #[inline]
    pub(crate) fn enter(&self, handle: ContextHandle) -> Result<Entered<'_, C>, Error> {
        let Some(inside) = self.gate.enter() else { return Err(self.turned_away(handle)) };
        if self.generation.load(Ordering::Relaxed) != handle.generation {
            return Err(Error::Stale { slot: handle.slot });
        }
        Ok(Entered { inside, slot: self, number: handle.slot })
    }

    /// Why a shut gate turns `handle` away.
    #[cold]
    fn turned_away(&self, handle: ContextHandle) -> Error {
        match self.generation.load(Ordering::Relaxed) == handle.generation {
            true => Error::Busy,
            false => Error::Stale { slot: handle.slot },
        }
    }

    /// Enters the gate for an operation that keeps the context, which is in slot `number`.
    pub(crate) fn enter_again(&self, number: u32) -> Result<Entered<'_, C>, Error> {
        let inside = self.gate.enter().ok_or(Error::Busy)?;
        Ok(Entered { inside, slot: self, number })
    }
}

/// A caller in a context.
#[derive(Debug)]
pub(crate) struct Entered<'s, C> {
    inside: Inside<'s, Option<Context<C>>>,
    pub(crate) slot: &'s Slot<C>,
    number: u32,
}

impl<C> Entered<'_, C> {
    #[inline]
    pub(crate) fn context(&self) -> Result<&Context<C>, Error> {
        self.inside.as_ref().ok_or(Error::Stale { slot: self.number })
    }
}
