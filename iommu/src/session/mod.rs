//! Sessions: a guest's mapping call inside the data plane.
//!
//! A CPU with a [`Seat`] goes in for one call, and from then on no context that it finds, no region of
//! registered memory and no table of its hypercalls ends: whoever ends one waits for the session. That
//! costs one locked operation for all of them, and the counts of regions are plain stores.

mod exchange;
mod leaf;

use core::{cell::Cell, ptr, time::Duration};

use portcullis_hal::{
    Clock, GuestPhysAddr, GuestPhysRange, IoPageSize,
    seats::{self, Present},
};

pub use self::leaf::{LeafEntry, LeafTable};
use crate::{
    context::{Context, ContextHandle, SlotState},
    driver::Driver,
    error::Error,
    group::VmId,
    memory::{Owed, REGIONS, RegionPart, SeenRegion, Shard},
    ownership::Owner,
    policy::Iommu,
};

/// CPUs that may have a seat, unless an [`Iommu`] says otherwise. One for the model checker, which tracks
/// every word.
pub const CPUS: usize = if cfg!(loom) { 1 } else { 8 };

/// The right of one CPU at a time to enter [`Session`]s. Dropping it gives it back.
pub struct Seat<
    'i,
    D: Driver,
    const GROUPS: usize = 32,
    const CONTEXTS: usize = 32,
    const CPUS: usize = { self::CPUS },
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    seat: seats::Seat<'i, SlotState, Option<Context<D::Context>>, CONTEXTS, CPUS>,
    shard: &'i Shard<REGIONS>,
}

/// One call of a VM, on the CPU that has the seat. Keep it short: who ends a context or a region waits
/// for it.
///
/// No context and no region that was found in a session ends before it.
pub struct Session<
    's,
    'i,
    D: Driver,
    const GROUPS: usize = 32,
    const CONTEXTS: usize = 32,
    const CPUS: usize = { self::CPUS },
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    present: Present<'s, 'i, SlotState, Option<Context<D::Context>>, CONTEXTS, CPUS>,
    shard: &'i Shard<REGIONS>,
    /// Its address names the session, too.
    vm: VmId,
    /// Bit n: entries of the context in slot n were changed, and hardware has not confirmed a kill since.
    unkilled: Cell<u64>,
    /// Bit n: the region in slot n was found open, so that it does not end before the session.
    found: Cell<u64>,
}

/// A context of the session's VM, whose entries may be changed as long as the session lives.
pub struct Inside<'a, D: Driver> {
    /// The session that found it.
    session: &'a VmId,
    context: &'a Context<D::Context>,
    state: &'a SlotState,
    slot: u32,
}

impl<D: Driver> Inside<'_, D> {
    /// Its bit in a word of all contexts.
    const fn bit(&self) -> u64 {
        1 << (self.slot % u64::BITS)
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// The seat of a CPU; the hypervisor numbers them from 0.
    ///
    /// # Errors
    /// [`Error::Full`] when there are not so many, [`Error::InUse`] while another has it.
    pub fn seat(&self, number: usize) -> Result<Seat<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        const { assert!(CONTEXTS <= u64::BITS as usize, "a session has one bit for each context") };
        let shard = self.memory.shard(number).ok_or(Error::Full { capacity: CPUS })?;
        let seat = self.contexts.seat(number).ok_or(Error::InUse { users: 1 })?;
        Ok(Seat { iommu: self, seat, shard })
    }

    /// Waits until every session that is there at the call has ended, at most for `limit`. What the caller
    /// stored before is found by all later ones, if they load it with [`LOOK`](seats::LOOK): for owners of
    /// data that sessions read. Takes no lock. Not to be called inside a session.
    ///
    /// # Errors
    /// [`Error::Busy`] when a session did not end in time.
    pub fn wait_for_sessions(&self, clock: &impl Clock, limit: Duration) -> Result<(), Error> {
        self.contexts.outlast(clock, limit).map_err(|_| Error::Busy)
    }
}

impl<'i, D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Seat<'i, D, GROUPS, CONTEXTS, CPUS>
{
    /// Begins a call of `vm`. In any mode; waits for nobody and cannot fail.
    #[inline]
    pub fn enter(&mut self, vm: VmId) -> Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS> {
        let present = self.seat.enter();
        Session {
            iommu: self.iommu,
            present,
            shard: self.shard,
            vm,
            unkilled: Cell::new(0),
            found: Cell::new(0),
        }
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>
{
    /// Whose call it is.
    #[inline]
    pub const fn vm(&self) -> VmId {
        self.vm
    }

    /// The host memory behind `guest`, a range inside one region of the VM; `hint` is the slot of a region
    /// to look at first. Not counted: entries are. What a session found it finds again, whatever happens to the region.
    ///
    /// # Errors
    /// [`Error::Misaligned`] for a range that is no multiple of 4 KiB, [`Error::NotRegistered`],
    /// [`Error::Busy`] while it is being decided whether its region ends.
    #[inline(always)]
    pub fn memory(&self, hint: u32, guest: GuestPhysRange) -> Result<RegionPart<'_>, Error> {
        self.region(hint, guest)?.part(guest).ok_or(Error::NotRegistered { guest })
    }

    /// The host memory behind the guest's page that begins at `guest`, if it is in the region in slot `hint`, which is
    /// open now and made of such pages; else as [`memory`](Self::memory).
    #[inline(always)]
    pub fn page(&self, hint: u32, guest: GuestPhysAddr, size: IoPageSize) -> Option<RegionPart<'_>> {
        self.iommu.memory.page_at(hint, &self.vm, guest, size)
    }

    /// The region that holds `guest`, for who wants more than one part of it; else as [`memory`](Self::memory).
    ///
    /// # Errors
    /// As [`memory`](Self::memory).
    #[inline(always)]
    pub fn region(&self, hint: u32, guest: GuestPhysRange) -> Result<SeenRegion<'_>, Error> {
        let found = self.found.get();
        let region = self.iommu.memory.look(hint, found, &self.vm, guest)?;
        self.found.set(found | 1 << (region.slot() % u64::BITS));
        Ok(region)
    }

    /// A context of the VM whose entries its hypercalls change. The first call that asks so decides it: from
    /// then on `map`, `map_guest` and `unmap` refuse the context, and it gets no BARs.
    ///
    /// # Errors
    /// [`Error::Stale`]; [`Error::Busy`] while the context ends; [`Error::OwnedBy`] for another VM's context,
    /// [`Error::OwnedByHost`]; [`Error::OtherBacking`] when others map in it.
    #[inline(always)]
    pub fn context(&self, handle: ContextHandle) -> Result<Inside<'_, D>, Error> {
        match self.entries_of(handle) {
            Some(inside) => Ok(inside),
            None => self.judged(handle),
        }
    }

    /// As [`context`](Self::context), if it was decided before that hypercalls change its entries.
    #[inline(always)]
    pub fn entries_of(&self, handle: ContextHandle) -> Option<Inside<'_, D>> {
        let number = handle.slot as usize;
        let (state, behind) = self.present.look(number)?;
        let context = behind?.as_ref().filter(|context| context.owner == Owner::Guest(self.vm))?;
        if !state.is_of(handle) || !context.backing.is_entries() {
            return None;
        }
        Some(Inside { session: &self.vm, context, state, slot: handle.slot })
    }

    /// A context whose entries no session has changed yet; or why none will.
    #[cold]
    #[inline(never)]
    fn judged(&self, handle: ContextHandle) -> Result<Inside<'_, D>, Error> {
        let stale = Error::Stale { slot: handle.slot };
        let number = handle.slot as usize;
        let state = self.present.beside(number).ok_or(stale)?;
        let Some(behind) = self.present.pass(number) else { return Err(state.turned_away(handle)) };
        if !state.is_of(handle) {
            return Err(stale);
        }
        let context = behind.as_ref().ok_or(stale)?;
        if context.owner != Owner::Guest(self.vm) {
            return Err(foreign(context.owner));
        }
        context.backing.by_entries()?;
        Ok(Inside { session: &self.vm, context, state, slot: handle.slot })
    }

    /// A place for what [`exchange`](Self::exchange) takes out.
    #[inline(always)]
    pub fn owed(&self) -> Owed<'_, CPUS> {
        Owed::new(&self.iommu.memory, self.shard)
    }

    /// The bit of a context that this session found.
    #[inline]
    fn bit_of(&self, inside: &Inside<'_, D>) -> Result<u64, Error> {
        if self.has_found(inside) { Ok(inside.bit()) } else { Err(Error::Stale { slot: inside.slot }) }
    }

    /// Whether it was this session that found the context.
    #[inline(always)]
    fn has_found(&self, inside: &Inside<'_, D>) -> bool {
        ptr::eq(inside.session, &raw const self.vm)
    }
}

#[cold]
const fn foreign(owner: Owner) -> Error {
    match owner {
        Owner::Guest(owner) => Error::OwnedBy { owner },
        Owner::Host => Error::OwnedByHost { drivers: 0 },
    }
}
