//! Sessions: a guest's mapping call inside the data plane.
//!
//! A CPU with a [`Seat`] goes in for one call, and from then on no context that it finds, no region of
//! registered memory and no table of its hypercalls ends: whoever ends one waits for the session. That
//! costs one locked operation for all of them, and the counts of regions are plain stores.

use core::{cell::Cell, ptr, time::Duration};

use portcullis_hal::{
    Access, Clock, GuestPhysAddr, GuestPhysRange, Iova, PhysAddr,
    seats::{self, Present},
    sync::Ordering,
};

use crate::{
    context::{Context, ContextHandle, SlotState},
    driver::{Aperture, Driver, Outcome, Permit},
    entries::EntryDriver,
    error::Error,
    group::VmId,
    memory::{Owed, REGIONS, RegionPart, SeenRegion, Shard, Tokens},
    ownership::Owner,
    policy::Iommu,
    removals::Removals,
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

    /// As [`memory`](Self::memory), if it is in the region in slot `hint`.
    #[inline(always)]
    pub fn memory_at(&self, hint: u32, guest: GuestPhysRange) -> Option<RegionPart<'_>> {
        let found = self.found.get();
        let part = self.iommu.memory.look_at(hint, found, &self.vm, guest)?.part(guest)?;
        self.found.set(found | 1 << (hint % u64::BITS));
        Some(part)
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
        let (state, behind) = (self.present.beside(number)?, self.present.pass(number)?);
        let context = behind.as_ref().filter(|context| context.owner == Owner::Guest(self.vm))?;
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
        if ptr::eq(inside.session, &raw const self.vm) {
            Ok(1 << (inside.slot % u64::BITS))
        } else {
            Err(Error::Stale { slot: inside.slot })
        }
    }
}

impl<D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>
{
    /// What the context can map.
    #[inline(always)]
    pub fn aperture(&self, inside: &Inside<'_, D>) -> Aperture {
        self.iommu.driver.aperture(&inside.context.tables)
    }

    /// Whether all tables exist for the entries of `bytes` bytes at `iova`. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::NeedPages`] when one is missing; [`Error::Misaligned`], [`Error::OutsideAperture`].
    #[inline(always)]
    pub fn check_tables(&self, inside: &Inside<'_, D>, iova: Iova, bytes: u64) -> Result<(), Error> {
        self.iommu.driver.tables_exist(&inside.context.tables, iova, bytes)
    }

    /// Makes the tables that are missing there. Takes pages: not for real mode.
    ///
    /// # Errors
    /// [`Error::NeedPages`], [`Error::Misaligned`], [`Error::OutsideAperture`]. No entry changed.
    pub fn provide_tables(&self, inside: &Inside<'_, D>, iova: Iova, bytes: u64) -> Result<(), Error> {
        self.bit_of(inside)?;
        self.iommu.driver.provide(&Permit::new(), &inside.context.tables, iova, bytes)
    }

    /// Bytes of the page of one entry.
    #[inline(always)]
    pub fn page_bytes(&self, inside: &Inside<'_, D>) -> u64 {
        self.iommu.driver.page_bytes(&inside.context.tables)
    }

    /// Whether hardware reaches all of this memory: else [`exchange`](Self::exchange) refuses it.
    #[inline(always)]
    pub fn reaches(&self, inside: &Inside<'_, D>, part: &RegionPart<'_>) -> bool {
        let last = part.extent().start().as_u64().wrapping_add(part.extent().bytes() - 1);
        self.iommu.driver.reaches(&inside.context.tables, PhysAddr::new(last))
    }

    /// Whether an entry leads somewhere there.
    #[inline]
    pub fn is_mapped(&self, inside: &Inside<'_, D>, iova: Iova) -> bool {
        self.iommu.driver.iova_to_phys(&inside.context.tables, iova).is_some()
    }

    /// Replaces the entries of `bytes` bytes at `iova`, at most one guest page, by those that lead to `new`,
    /// which is as long, or by none. No other CPU may change the same entries meanwhile: the caller settles
    /// it. The new entries are counted in; what was there is noted in `owed`, and counted out when the
    /// context was [killed](Self::kill) and `owed` is [settled](Self::settle).
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::PhysicalTooWide`], [`Error::NoAccess`],
    /// [`Error::SizesDiffer`]; [`Error::NeedPages`] for new entries where a table is missing; [`Error::Stale`]
    /// for something that another session found. Nothing changed.
    #[inline(always)]
    pub fn exchange(
        &self,
        inside: &Inside<'_, D>,
        iova: Iova,
        bytes: u64,
        new: Option<(&RegionPart<'_>, Access)>,
        owed: &mut Owed<'_, CPUS>,
    ) -> Result<(), Error> {
        let bit = self.bit_of(inside)?;
        if !owed.is_of(self.shard) {
            return Err(Error::Stale { slot: inside.slot });
        }
        let (driver, tables) = (&self.iommu.driver, &inside.context.tables);
        let Some((part, access)) = new else {
            driver.exchange(&Permit::new(), tables, iova, bytes, None, owed)?;
            self.unkilled.set(self.unkilled.get() | bit);
            return Ok(());
        };
        if !part.is_of(&self.vm) {
            return Err(Error::Stale { slot: part.slot() });
        }
        if part.extent().bytes() != bytes {
            return Err(Error::SizesDiffer { guest: bytes, host: part.extent().bytes() });
        }
        driver.exchange(&Permit::new(), tables, iova, bytes, Some((part.extent(), access)), owed)?;
        self.unkilled.set(self.unkilled.get() | bit);
        self.count_in(part, bytes);
        Ok(())
    }

    /// As [`exchange`](Self::exchange), for consecutive guest pages, each by its own of `new`; `pages` says where, of how
    /// many bytes, and how many at most. `new` names pages of one region by the guest's addresses. Ends with `new`, or before one that
    /// `exchange` would refuse; returns how many pages were replaced.
    ///
    /// # Errors
    /// As for `exchange`. Nothing changed.
    #[inline(always)]
    pub fn exchange_run(
        &self,
        inside: &Inside<'_, D>,
        pages @ (_, bytes, _): (Iova, u64, u64),
        region: &SeenRegion<'_>,
        new: impl Iterator<Item = Option<(GuestPhysAddr, Access)>>,
        owed: &mut Owed<'_, CPUS>,
    ) -> Result<u64, Error> {
        let bit = self.bit_of(inside)?;
        if !owed.is_of(self.shard) || !region.is_of(&self.vm) {
            return Err(Error::Stale { slot: inside.slot });
        }
        let page = |new| match new {
            Some((guest, access)) => region.extent_of(guest, bytes).map(|extent| Some((extent, access))),
            None => Some(None),
        };
        let (permit, tables) = (Permit::new(), &inside.context.tables);
        let new = new.map_while(page);
        let exchanged = self.iommu.driver.exchange_each(&permit, tables, pages, new, owed)?;
        self.unkilled.set(self.unkilled.get() | bit);
        self.shard.count_in(region.slot(), Tokens::of_entries(bytes.wrapping_mul(exchanged.mapping)));
        self.shard.remember(region.slot());
        Ok(exchanged.pages)
    }

    /// Replaces the entry of one page by one that leads to `new`, or nowhere, as [`exchange`](Self::exchange) does; says
    /// so by `done`; then makes hardware forget what was there and counts it out. `None` where that does not go by one
    /// store: then nothing changed, and `exchange` does it, or says what is wrong.
    ///
    /// # Errors
    /// As for [`kill`](Self::kill): the entry is replaced, and what was there is never counted out.
    #[inline(always)]
    pub fn replace(
        &self,
        inside: &Inside<'_, D>,
        iova: Iova,
        bytes: u64,
        new: Option<(&RegionPart<'_>, Access)>,
        done: impl FnOnce(),
    ) -> Option<Result<(), Error>> {
        let bit = self.bit_of(inside).ok()?;
        let fits = |part: &RegionPart<'_>| part.is_of(&self.vm) && part.extent().bytes() == bytes;
        if new.is_some_and(|(part, _)| !fits(part)) {
            return None;
        }
        let leaf = new.map(|(part, access)| (part.extent(), access));
        let tables = &inside.context.tables;
        let old = self.iommu.driver.exchange_one(&Permit::new(), tables, iova, bytes, leaf)?;
        let owed = old.map(|start| {
            let mut owed = self.owed();
            owed.removed(start, bytes);
            owed
        });
        if let Some((part, _)) = new {
            self.count_in(part, bytes);
        }
        done();
        let killed = self.killed(inside);
        match (killed, owed) {
            (Ok(()), Some(owed)) => owed.count_out(),
            (Ok(()), None) => {}
            (Err(_), _) => self.unkilled.set(self.unkilled.get() | bit),
        }
        Some(killed)
    }

    /// Counts an entry in that was made.
    #[inline(always)]
    fn count_in(&self, part: &RegionPart<'_>, bytes: u64) {
        self.shard.count_in(part.slot(), Tokens::of_entries(bytes));
        self.shard.remember(part.slot());
    }

    /// Makes hardware forget what any device has cached of the context, and waits for it, under the
    /// driver's deadline. Once for each context and call, or step of a call.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Hardware`] or [`Error::Quarantined`] when hardware did not confirm: devices
    /// may still reach what was mapped, and the tables of the context are never given back.
    /// [`Error::Stale`] for a context that another session found.
    #[inline(always)]
    pub fn kill(&self, inside: &Inside<'_, D>) -> Result<(), Error> {
        let bit = self.bit_of(inside)?;
        self.killed(inside)?;
        self.unkilled.set(self.unkilled.get() & !bit);
        Ok(())
    }

    #[inline(always)]
    fn killed(&self, inside: &Inside<'_, D>) -> Result<(), Error> {
        if !inside.state.may_be_walked() {
            return Ok(());
        }
        match self.iommu.driver.kill(&Permit::new(), &inside.context.tables) {
            Outcome::Done => Ok(()),
            Outcome::Quarantined { error } => {
                inside.state.poisoned.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Counts out what `owed` holds. Only after every context whose entries were changed in this session
    /// was killed, and hardware has confirmed it; else nothing is counted out, ever.
    #[inline(always)]
    pub fn settle(&self, owed: Owed<'_, CPUS>) {
        if self.unkilled.get() == 0 && owed.is_of(self.shard) {
            owed.count_out();
        }
    }
}

#[cold]
const fn foreign(owner: Owner) -> Error {
    match owner {
        Owner::Guest(owner) => Error::OwnedBy { owner },
        Owner::Host => Error::OwnedByHost { drivers: 0 },
    }
}
