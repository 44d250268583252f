//! Entries that a session replaces, and what becomes of what they led to.

use portcullis_hal::{Access, GuestPhysAddr, Iova, PhysAddr, sync::Ordering};

use super::{Inside, Session};
use crate::{
    driver::{Aperture, Outcome, Permit},
    entries::EntryDriver,
    error::Error,
    memory::{Owed, RegionPart, SeenRegion, Tokens},
};

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
    /// many bytes, and how many at most. `new` names pages of one region, which is not shorter than one, by the guest's
    /// addresses. Ends with `new`, or before one that `exchange` would refuse; returns how many pages were replaced.
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
        let Some(parts) = region.parts(bytes) else { return Ok(0) };
        let page = |new| match new {
            Some((guest, access)) => parts.at(region.offset_of(guest)).map(|extent| Some((extent, access))),
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

    /// Counts an entry in that was made.
    #[inline(always)]
    pub(super) fn count_in(&self, part: &RegionPart<'_>, bytes: u64) {
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
    pub(super) fn killed(&self, inside: &Inside<'_, D>) -> Result<(), Error> {
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
