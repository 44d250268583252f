//! The hardware tables behind a window.

use portcullis_hal::{Access, GuestPhysAddr, Iova};
use portcullis_iommu::{EntryDriver, Error, Inside, Owed, RegionPart, SeenRegion, Session};

use super::{
    reply::{Mode, Stop, Why},
    slot::{PLACES, Slot},
    spec::Status,
};

/// The hardware tables that one call, or step of a call, keeps in step: at most `MOST`, so that the usual one needs no
/// loops.
pub(super) struct Connected<'s, D: EntryDriver, const MOST: usize = PLACES> {
    tables: [Option<Inside<'s, D>>; MOST],
    /// Whether an entry was changed since the last kill.
    changed: bool,
}

/// The entries of some pages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) ioba: u64,
    pub(super) bytes: u64,
}

impl<'s, D: EntryDriver> Connected<'s, D, 1> {
    /// One table alone.
    pub(super) const fn one(inside: Inside<'s, D>) -> Self {
        Self { tables: [Some(inside)], changed: false }
    }
}

impl<'s, D: EntryDriver, const MOST: usize> Connected<'s, D, MOST> {
    /// No table yet.
    #[inline(always)]
    pub(super) const fn none() -> Self {
        Self { tables: [const { None }; MOST], changed: false }
    }

    #[inline(always)]
    fn tables(&self) -> impl Iterator<Item = &Inside<'s, D>> {
        self.tables.iter().flatten()
    }

    /// Adds the tables in the places that are in use. One that ended is left out: its entries were counted out then.
    #[inline(always)]
    pub(super) fn find<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &'s Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        slot: &Slot,
    ) -> Result<(), Stop> {
        for (place, table) in slot.places().iter().zip(&mut self.tables) {
            let Some(handle) = place.handle() else { continue };
            match session.context(handle) {
                Ok(inside) => *table = Some(inside),
                Err(Error::Stale { .. }) => {}
                // It is just being ended.
                Err(_) => return Err(Stop::Lacking(Why::Contended)),
            }
        }
        Ok(())
    }

    /// Whether all tables can map pages of the region: theirs are not larger, and hardware reaches its addresses.
    #[inline(always)]
    pub(super) fn admits<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        part: &RegionPart<'_>,
    ) -> Result<(), Stop> {
        for inside in self.tables() {
            if !part.fits_pages_of(session.page_bytes(inside)) {
                return Err(Stop::Lacking(Why::Unregistered));
            }
            if !session.reaches(inside, part) {
                return Err(Stop::PARAMETER);
            }
        }
        Ok(())
    }

    /// Sees to it that no table page is missing for a span.
    #[inline(always)]
    pub(super) fn prepare<N: Mode, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        span: Span,
    ) -> Result<(), Stop> {
        for inside in self.tables() {
            let checked = session.check_tables(inside, Iova::new(span.ioba), span.bytes);
            if let Err(error) = checked {
                missing::<N, D, GROUPS, CONTEXTS, CPUS>(session, inside, span, error)?;
            }
        }
        Ok(())
    }

    /// Replaces the entries of a span in all tables. The caller has taken them, and prepared for new ones.
    ///
    /// When a table refuses, it has changed nothing. Of several that excludes the preparation; else the caller
    /// [empties](Self::empty) all of them.
    #[inline(always)]
    pub(super) fn replace<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        span: Span,
        new: Option<(&RegionPart<'_>, Access)>,
        owed: &mut Owed<'_, CPUS>,
    ) -> Result<(), Stop> {
        self.changed = true;
        for inside in self.tables() {
            session.exchange(inside, Iova::new(span.ioba), span.bytes, new, owed).map_err(lacking)?;
        }
        Ok(())
    }

    /// As [`replace`](Self::replace), for `count` pages that begin with `first`, as long as `new` names pages of one
    /// region; returns how many were replaced, at least one.
    #[inline(always)]
    pub(super) fn replace_run<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        (first, count): (Span, u64),
        region: &SeenRegion<'_>,
        new: impl Iterator<Item = Option<(GuestPhysAddr, Access)>> + Clone,
        owed: &mut Owed<'_, CPUS>,
    ) -> Result<u64, Stop> {
        self.changed = true;
        let mut run = None;
        for inside in self.tables() {
            let place = (Iova::new(first.ioba), first.bytes, count);
            let replaced = session.exchange_run(inside, place, region, new.clone(), owed).map_err(lacking)?;
            if replaced == 0 || run.is_some_and(|run| run != replaced) {
                return Err(Stop::PARAMETER);
            }
            run = Some(replaced);
        }
        Ok(run.unwrap_or(count))
    }

    /// Empties the entries of a span in all tables: that needs nothing that could be missing.
    #[cold]
    #[inline(never)]
    pub(super) fn empty<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        span: Span,
        owed: &mut Owed<'_, CPUS>,
    ) {
        self.changed = true;
        for inside in self.tables() {
            let _ = session.exchange(inside, Iova::new(span.ioba), span.bytes, None, owed);
        }
    }

    /// Makes hardware forget what was replaced, then counts it out. Without a confirmation it stays counted.
    #[inline(always)]
    pub(super) fn finish<const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
        &mut self,
        session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
        owed: Owed<'_, CPUS>,
    ) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        self.changed = false;
        let mut killed = Ok(());
        for inside in self.tables() {
            killed = killed.and(session.kill(inside));
        }
        killed?;
        session.settle(owed);
        Ok(())
    }
}

/// Makes tables that are missing, in virtual mode.
#[cold]
#[inline(never)]
fn missing<N: Mode, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>(
    session: &Session<'_, '_, D, GROUPS, CONTEXTS, CPUS>,
    inside: &Inside<'_, D>,
    span: Span,
    error: Error,
) -> Result<(), Stop> {
    if !N::FINAL {
        return Err(lacking(error));
    }
    session.provide_tables(inside, Iova::new(span.ioba), span.bytes).map_err(lacking)
}

/// What a call comes to that the tables refuse.
#[cold]
fn lacking(error: Error) -> Stop {
    match error {
        Error::NeedPages { .. } => Stop::Lacking(Why::NeedPages),
        Error::Busy => Stop::Lacking(Why::Contended),
        // A part of the window that hardware does not translate: MSIs.
        _ => Stop::PARAMETER,
    }
}

/// Hardware did not confirm a kill.
#[cold]
pub(super) fn unconfirmed(_: Error) -> Stop {
    Stop::Refused(Status::Hardware)
}
