//! One registered range: where it leads, and how many entries lead into it.

use const_fn::const_fn;
use portcullis_hal::{
    DmaExtent, DmaExtentCell, GuestPhysAddr, GuestPhysRange, IoPageSize, PhysAddr, PhysRange,
    seats::LOOK,
    sync::{AtomicU32, AtomicU64, Ordering},
};

use super::tokens::Tokens;
use crate::group::VmId;

/// Set in the state while no new mapping may begin.
const CLOSED: u64 = 1 << 63;
/// Set while it is being decided whether the region ends; never without [`CLOSED`].
const DECIDING: u64 = 1 << 62;
/// The rest of the state: units that are mapped, or about to be, by others than sessions.
const COUNT: u64 = DECIDING - 1;
/// More than table memory could ever hold, with room for calls that are about to be refused.
const MOST: u64 = 1 << 61;

/// A slot for a region.
///
/// The state is gate and count in one word: a caller that counts itself in and finds the gate open
/// holds the region until it counts itself out, because only a region with count 0 is ever emptied.
/// The other fields change only while the slot is empty and closed.
#[derive(Debug)]
pub(super) struct Region {
    state: AtomicU64,
    /// Changes when the slot is emptied.
    generation: AtomicU32,
    owner: AtomicU32,
    guest: AtomicU64,
    /// Stored after owner and guest address; empty in an empty slot.
    extent: DmaExtentCell,
}

/// What a slot holds at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) owner: VmId,
    pub(super) guest: GuestPhysRange,
    pub(super) extent: DmaExtent,
}

impl Seen {
    /// The host memory as a range.
    #[inline]
    pub(super) fn host(&self) -> Option<PhysRange> {
        PhysRange::new(self.extent.start(), self.extent.bytes()).ok()
    }

    /// The largest page of which the region is made: the smallest of its alignments.
    pub(super) fn page_size(&self) -> IoPageSize {
        page_size(alignment(self.guest.start().as_u64(), self.extent))
    }
}

/// Units that were counted in, and what the caller may do with them.
#[must_use = "tokens are installed or go back to their region"]
pub(super) struct Counted {
    /// The host memory behind the guest range.
    pub(super) part: DmaExtent,
    /// [`alignment`] of the region.
    pub(super) alignment: u64,
    pub(super) tokens: Tokens,
}

/// All addresses and the length, or-ed: aligned to what all of them are aligned to.
#[inline]
pub(super) const fn alignment(guest: u64, extent: DmaExtent) -> u64 {
    guest | extent.start().as_u64() | extent.bytes()
}

/// The largest page that an [`alignment`] allows.
pub(super) fn page_size(alignment: u64) -> IoPageSize {
    IoPageSize::from_shift(alignment.trailing_zeros().min(34) as u8).unwrap_or(IoPageSize::SIZE_4K)
}

/// A region that is closed until it is decided whether it ends. Dropping it leaves it as it was.
pub(super) struct Deciding<'r> {
    region: &'r Region,
    /// [`CLOSED`], if the region was open.
    opens: u64,
}

impl Deciding<'_> {
    /// It ends.
    pub(super) fn for_good(mut self) {
        self.opens = 0;
    }
}

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.region.state.fetch_and(!(self.opens | DECIDING), Ordering::Release);
    }
}

impl Region {
    #[const_fn(cfg(not(loom)))]
    pub(super) const fn new() -> Self {
        Self {
            state: AtomicU64::new(CLOSED),
            generation: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            guest: AtomicU64::new(0),
            extent: DmaExtentCell::new(),
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// What the slot holds, unless it is empty or being changed.
    #[inline]
    pub(super) fn see(&self) -> Option<Seen> {
        let extent = self.extent.load()?;
        let start = GuestPhysAddr::new(self.guest.load(Ordering::Relaxed));
        let guest = GuestPhysRange::new(start, extent.bytes()).ok()?;
        Some(Seen { owner: VmId(self.owner.load(Ordering::Relaxed)), guest, extent })
    }

    /// The host memory, unless the slot is empty or being changed.
    #[inline]
    pub(super) fn extent(&self) -> Option<DmaExtent> {
        self.extent.load()
    }

    /// The same as a range.
    pub(super) fn host(&self) -> Option<PhysRange> {
        let extent = self.extent.load()?;
        PhysRange::new(extent.start(), extent.bytes()).ok()
    }

    /// Counts the pages of a guest range in; `None` when it is not here or the region is closed.
    #[inline]
    pub(super) fn take(&self, vm: VmId, range: GuestPhysRange) -> Option<Counted> {
        let generation = self.generation.load(Ordering::Acquire);
        let extent = self.extent.load()?;
        let guest = self.guest.load(Ordering::Relaxed);
        if self.owner.load(Ordering::Relaxed) != vm.0 {
            return None;
        }
        let part = extent.part(range.start().as_u64().checked_sub(guest)?, range.bytes())?;
        let tokens = Tokens::wanted(range);
        let before = self.state.fetch_add(tokens.count(), Ordering::AcqRel);
        // Counted in, the slot cannot be emptied any more: if it was not by now, what was read holds.
        if before < MOST && self.generation.load(Ordering::Relaxed) == generation {
            return Some(Counted { part, alignment: alignment(guest, extent), tokens });
        }
        self.give_back(tokens);
        None
    }

    /// Counts units out.
    #[inline]
    pub(super) fn give_back(&self, tokens: Tokens) {
        self.state.fetch_sub(tokens.spend(), Ordering::Release);
    }

    /// Units that are mapped, or about to be.
    pub(super) fn count(&self) -> u64 {
        self.state.load(Ordering::Acquire) & COUNT
    }

    /// From now on no new mapping begins.
    pub(super) fn shut(&self) {
        self.state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Closes a region into which nothing leads that was not made in a session, until it is decided; else
    /// says how many units do, and nothing changed.
    pub(super) fn close(&self) -> Result<Deciding<'_>, u64> {
        let closed = |state| (state & COUNT == 0).then_some(state | CLOSED | DECIDING);
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, closed);
        let before = before.map_err(|state| state & COUNT)?;
        Ok(Deciding { region: self, opens: (before & CLOSED) ^ CLOSED })
    }

    /// Whether it is just being decided whether the region ends.
    pub(super) fn is_deciding(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DECIDING != 0
    }

    /// Whether it holds a range of a VM, open or not.
    pub(super) fn holds(&self, vm: VmId, range: GuestPhysRange) -> bool {
        self.see().is_some_and(|seen| seen.owner == vm && seen.guest.contains(range))
    }

    /// Looks into the region without counting: where it begins for the guest, and its memory; `None` when it is another
    /// VM's or closed. In a session nothing changes here any more once it was found open: `again` says that it was, and
    /// then it is found even if it was closed since.
    #[inline(always)]
    pub(super) fn look(&self, again: bool, vm: VmId) -> Option<(u64, DmaExtent)> {
        let closed = self.state.load(LOOK) & CLOSED != 0;
        if (closed && !again) || self.owner.load(Ordering::Relaxed) != vm.0 {
            return None;
        }
        let extent = self.extent.load()?;
        Some((self.guest.load(Ordering::Relaxed), extent))
    }

    /// The host memory of an open region, for a session.
    #[inline(always)]
    pub(super) fn open_extent(&self) -> Option<DmaExtent> {
        if self.state.load(LOOK) & CLOSED != 0 { None } else { self.extent.load() }
    }

    /// Fills an empty slot and opens it.
    pub(super) fn fill(&self, seen: Seen) -> bool {
        self.owner.store(seen.owner.0, Ordering::Relaxed);
        self.guest.store(seen.guest.start().as_u64(), Ordering::Relaxed);
        let stored = self.extent.store(Some(seen.extent));
        if stored {
            self.state.fetch_and(!(CLOSED | DECIDING), Ordering::AcqRel);
        }
        stored
    }

    /// Empties a closed slot: every handle is stale from now on.
    pub(super) fn empty(&self) -> bool {
        let stored = self.extent.store(None);
        if stored {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
        stored
    }

    /// Whether the region ends before a guest address, in the order of VMs and addresses.
    #[inline]
    pub(super) fn ends_before_guest(&self, vm: VmId, address: GuestPhysAddr) -> bool {
        self.see().is_some_and(|seen| (seen.owner.0, seen.guest.last()) < (vm.0, address))
    }

    /// Whether the region ends before a host address.
    #[inline]
    pub(super) fn ends_before_host(&self, address: PhysAddr) -> bool {
        self.host().is_some_and(|host| host.last() < address)
    }
}
