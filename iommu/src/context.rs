//! Security contexts: the tables of one owner, in numbered slots.

use const_fn::const_fn;
use portcullis_hal::{
    gate::Inside,
    seats::{GateAt, Gates, LOOK, Place},
    sync::{AtomicBool, AtomicU32, Ordering},
};

use crate::{error::Error, group::VmId, ownership::Owner};

/// Bits of a slot's number that fit into a word; no table has as many slots.
const MOST_SLOTS: u32 = u32::MAX >> 2;

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

    /// The handle as a word, to be kept in an atomic: never 0, below 2^63.
    #[inline]
    #[must_use]
    pub const fn to_word(self) -> u64 {
        ((self.slot & MOST_SLOTS) as u64 + 1) << u32::BITS | self.generation as u64
    }

    /// The handle of such a word, or `None` for 0. A word that was made up names nothing that a VM does not own: each
    /// use is checked against the caller's VM.
    #[inline]
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        match (word >> u32::BITS) as u32 {
            0 => None,
            next => Some(Self { slot: next - 1, generation: word as u32 }),
        }
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
    /// Whether sessions change its entries, maybe from this moment on.
    pub(crate) fn may_have_sessions(&self) -> bool {
        self.owner != Owner::Host && self.backing.may_be_entries()
    }

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
/// Sessions change the entries of the context, which lead to registered memory.
const ENTRIES: u32 = u32::MAX - 2;
/// No mapping call came yet, but BARs are or were mapped: it is too late for sessions.
const BARS: u32 = u32::MAX - 3;

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
        if slot >= BARS { Err(Error::OtherBacking) } else { Ok(slot) }
    }

    /// Decides for entries that sessions change, or finds that it was decided so.
    #[inline]
    pub(crate) fn by_entries(&self) -> Result<(), Error> {
        if self.is_entries() || self.decide(ENTRIES) == ENTRIES { Ok(()) } else { Err(Error::OtherBacking) }
    }

    /// Whether it was decided for entries that sessions change.
    #[inline]
    pub(crate) fn is_entries(&self) -> bool {
        self.0.load(Ordering::Relaxed) == ENTRIES
    }

    /// Whether sessions change the entries, maybe from this moment on, because no mapping call came yet: then there is
    /// nothing that an unmap may touch.
    #[inline]
    pub(crate) fn may_be_entries(&self) -> bool {
        matches!(self.0.load(Ordering::Relaxed), UNDECIDED | ENTRIES)
    }

    /// Notes that a BAR is about to be mapped, which does not go together with sessions.
    pub(crate) fn admit_bar(&self) -> Result<(), Error> {
        if self.decide(BARS) == ENTRIES { Err(Error::OtherBacking) } else { Ok(()) }
    }

    /// A region to look at first for what is counted out; `None` where nothing is counted.
    #[inline]
    pub(crate) fn hint(&self) -> Option<u32> {
        match self.0.load(Ordering::Relaxed) {
            ENTRIES => Some(0),
            other => Some(other).filter(|&slot| slot < BARS),
        }
    }

    /// Whether it was decided for bare extents, which no call changes any more.
    #[inline]
    pub(crate) fn is_extents(&self) -> bool {
        self.0.load(Ordering::Relaxed) == EXTENTS
    }

    /// The slot of the region that was used last, when it was decided for registered memory.
    #[inline]
    pub(crate) fn region(&self) -> Option<u32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&slot| slot < BARS)
    }

    /// Notes which region was used last, after [`by_regions`](Self::by_regions).
    #[inline]
    pub(crate) fn remember(&self, slot: u32) {
        self.0.store(slot, Ordering::Relaxed);
    }

    #[inline(never)]
    fn decide(&self, wanted: u32) -> u32 {
        let relaxed = Ordering::Relaxed;
        let decided = self.0.fetch_update(relaxed, relaxed, |seen| match seen {
            UNDECIDED => Some(wanted),
            BARS if wanted != ENTRIES => Some(wanted),
            _ => None,
        });
        decided.map_or_else(|stays| stays, |_| wanted)
    }
}

/// What is known of a slot outside its gate.
#[derive(Debug)]
pub(crate) struct SlotState {
    /// That of the context inside; written by the control plane only.
    pub(crate) generation: AtomicU32,
    /// An invalidation was never confirmed: the tables must not be given back.
    pub(crate) poisoned: AtomicBool,
    /// A BAR was mapped since the context was made.
    pub(crate) leads_to_bars: AtomicBool,
    /// A group is attached, or just being, or could not be blocked. Not kept where no session ever looks.
    attached: AtomicBool,
    /// Every session that did not find that has ended.
    settled: AtomicBool,
}

/// All slots. Mapping calls enter a slot's gate, sessions go through it; making and destroying a context
/// closes it.
pub(crate) type Contexts<C, const N: usize, const CPUS: usize> =
    Gates<SlotState, Option<Context<C>>, N, CPUS>;

/// One slot.
pub(crate) struct Slot<'i, C, const CPUS: usize>(pub(crate) GateAt<'i, SlotState, Option<Context<C>>, CPUS>);

#[const_fn(cfg(not(loom)))]
pub(crate) const fn empty_slot<C>() -> Place<SlotState, Option<Context<C>>> {
    let state = SlotState {
        generation: AtomicU32::new(0),
        poisoned: AtomicBool::new(false),
        leads_to_bars: AtomicBool::new(false),
        attached: AtomicBool::new(false),
        settled: AtomicBool::new(false),
    };
    Place::kept_shut(state, None)
}

impl SlotState {
    #[inline]
    pub(crate) fn is_of(&self, handle: ContextHandle) -> bool {
        self.generation.load(Ordering::Relaxed) == handle.generation
    }

    /// Whether hardware may walk the tables now or before the caller's session ends. While this is `false`
    /// nothing of them is cached, and whoever attaches a group then waits for the session: hardware will
    /// find what it has stored.
    #[inline]
    pub(crate) fn may_be_walked(&self) -> bool {
        self.attached.load(LOOK)
    }

    /// Notes that a group is about to be attached, and has `outlast` wait for sessions which may not have
    /// found that; whether all have ended. Once is enough, also for groups that come later, until none is left.
    pub(crate) fn attach(&self, outlast: impl FnOnce() -> bool) -> bool {
        if self.settled.load(Ordering::Acquire) {
            return true;
        }
        self.attached.store(true, Ordering::Relaxed);
        let settled = outlast();
        if settled {
            self.settled.store(true, Ordering::Release);
        }
        settled
    }

    /// Notes that hardware walks the tables no more and has forgotten them. No group is attached or about to be: the
    /// caller sees to that, too.
    pub(crate) fn rest(&self) {
        self.settled.store(false, Ordering::Relaxed);
        self.attached.store(false, Ordering::Release);
    }

    /// Notes that a new context is in the slot.
    pub(crate) fn renew(&self) {
        self.leads_to_bars.store(false, Ordering::Relaxed);
        self.rest();
    }

    /// Why a shut gate turns `handle` away.
    #[cold]
    pub(crate) fn turned_away(&self, handle: ContextHandle) -> Error {
        if self.is_of(handle) { Error::Busy } else { Error::Stale { slot: handle.slot } }
    }
}

impl<'i, C, const CPUS: usize> Slot<'i, C, CPUS> {
    /// What is known of the slot.
    #[inline]
    pub(crate) const fn state(&self) -> &'i SlotState {
        self.0.beside()
    }

    /// Enters the gate for `handle`; the context that it names cannot end as long as the entry lives.
    #[inline]
    pub(crate) fn enter(&self, handle: ContextHandle) -> Result<Entered<'i, C>, Error> {
        let state = self.state();
        let Some(inside) = self.0.enter() else { return Err(state.turned_away(handle)) };
        if !state.is_of(handle) {
            return Err(Error::Stale { slot: handle.slot });
        }
        Ok(Entered { inside, state, number: handle.slot })
    }

    /// Enters the gate for an operation that keeps the context, which is in slot `number`.
    pub(crate) fn enter_again(&self, number: u32) -> Result<Entered<'i, C>, Error> {
        let inside = self.0.enter().ok_or(Error::Busy)?;
        Ok(Entered { inside, state: self.state(), number })
    }
}

/// A caller in a context.
#[derive(Debug)]
pub(crate) struct Entered<'s, C> {
    inside: Inside<'s, Option<Context<C>>>,
    pub(crate) state: &'s SlotState,
    number: u32,
}

impl<C> Entered<'_, C> {
    #[inline]
    pub(crate) fn context(&self) -> Result<&Context<C>, Error> {
        self.inside.as_ref().ok_or(Error::Stale { slot: self.number })
    }
}
