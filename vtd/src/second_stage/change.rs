//! Map, unmap, enforce: what changes the tables.

use portcullis_hal::{Access, CacheMaintenance, DmaExtent, Iova, IovaRange, TableMemory, sync::Ordering};
use portcullis_iommu::{Error, Removals, Unheard};

use super::{
    PAGE, SecondStage,
    filler::{Filler, need_for},
    leaves::{clear, first_present, leaves, remove_page},
    reservation::Reservation,
    slots::{Exclusion, Exclusive, Shared, Slot, Span},
    write_back::Unseen,
};
use crate::{spec::entries::Pte, table_access::TableAccess};

impl SecondStage {
    /// Maps `extent` at `iova`. Both and the length are multiples of 4 KiB; larger pages are used where
    /// both addresses allow and no leaf table exists. Any CPU, at any time.
    ///
    /// Hardware may still remember that nothing was there (CAP.CM), or hold the stores in its write
    /// buffer (CAP.RWBF): that is the caller's to end.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::PhysicalTooWide`],
    /// [`Error::NoAccess`], [`Error::AlreadyMapped`], [`Error::NeedPages`], or [`Error::Busy`] when
    /// another CPU works on the same 2 MiB for long. Nothing changed.
    #[inline]
    pub fn map<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        self.map_with::<Shared, M, K>(tables, iova, extent, access)
    }

    /// The same for a caller that has the tables for itself: no locked instruction.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    #[inline]
    pub fn map_exclusive<M: TableMemory, K: CacheMaintenance>(
        &mut self,
        tables: &TableAccess<'_, M, K>,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        self.map_with::<Exclusive, M, K>(tables, iova, extent, access)
    }

    /// Takes the mappings of `range` out, skipping holes; returns the bytes that were mapped. Hardware
    /// may still use them until the caller has invalidated. Any CPU, at any time.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::SplitsPage`] when a larger page lies
    /// only partly inside, or [`Error::Busy`]. Nothing changed.
    #[inline]
    pub fn unmap<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
    ) -> Result<u64, Error> {
        self.take_out(tables, range, &mut Unheard)
    }

    /// As [`unmap`](Self::unmap), and tells `removals` which memory was mapped.
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap).
    #[inline]
    pub fn take_out<M: TableMemory, K: CacheMaintenance, T: Removals>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
        removals: &mut T,
    ) -> Result<u64, Error> {
        self.unmap_with::<Shared, M, K, T>(tables, range, removals)
    }

    /// The same for a caller that has the tables for itself: no locked instruction.
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap).
    #[inline]
    pub fn unmap_exclusive<M: TableMemory, K: CacheMaintenance>(
        &mut self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
    ) -> Result<u64, Error> {
        self.unmap_with::<Exclusive, M, K, _>(tables, range, &mut Unheard)
    }

    /// From now on every page that is mapped carries SNP. The caller holds the witness that the unit can.
    ///
    /// # Errors
    /// [`Error::HasMappings`] when pages without SNP exist; [`Error::Busy`].
    pub fn enforce_snoop<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        _: crate::SnoopControl,
    ) -> Result<(), Error> {
        if self.is_coherent() {
            return Ok(());
        }
        // With all slots busy nobody is between reading the bit and storing a leaf.
        let span = Span { first: 0, last: self.last_address };
        let (first, _) = self.lock::<Shared, M, K>(tables, span, |slot, part| {
            let pte = slot.pte();
            let empty = if pte.is_table(slot.level) {
                first_present(leaves(tables, pte, part)?).is_none()
            } else {
                !pte.is_present()
            };
            if empty { Ok(0) } else { Err(Error::HasMappings) }
        })?;
        self.snoop.store(Pte::SNOOP, Ordering::Release);
        self.unlock(tables, first, span.last)
    }

    #[inline]
    fn map_with<E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        if self.map_one_page::<E, M, K>(tables, iova, extent, access) {
            return Ok(());
        }
        self.map_range::<E, M, K>(tables, iova, extent, access)
    }

    #[inline(never)]
    fn map_range<E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        let request = self.request(iova, extent, access)?;
        let span = request.span;
        let judge = |slot: &Slot<'_>, part| need_for(tables, &request, slot, part);
        let (first, need) = self.lock::<E, M, K>(tables, span, judge)?;
        let mut reservation = match self.reserve(tables, need) {
            Ok(reservation) => reservation,
            Err(error) => {
                self.unlock(tables, first, span.last)?;
                return Err(error);
            }
        };
        let leaf_bits = |level| Pte::leaf_bits(level, access, self.snoop.load(Ordering::Relaxed));
        let mut filler = Filler { tables, request: &request, leaf_bits, reservation: &mut reservation };
        self.each_locked(tables, first, span.last, |slot| filler.fill_slot(slot))
    }

    #[inline]
    fn unmap_with<E: Exclusion, M: TableMemory, K: CacheMaintenance, T: Removals>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
        removals: &mut T,
    ) -> Result<u64, Error> {
        match self.unmap_one_page::<E, M, K, T>(tables, range, removals) {
            Some(bytes) => Ok(bytes),
            None => self.unmap_range::<E, M, K, T>(tables, range, removals),
        }
    }

    #[inline(never)]
    fn unmap_range<E: Exclusion, M: TableMemory, K: CacheMaintenance, T: Removals>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
        removals: &mut T,
    ) -> Result<u64, Error> {
        let span = self.span(range)?;
        let (first, _) = self.lock::<E, M, K>(tables, span, |slot, part| {
            let pte = slot.pte();
            let splits = pte.is_present() && !pte.is_table(slot.level) && !slot.is_filled_by(part);
            if splits { Err(Error::SplitsPage { iova: Iova::new(part.first) }) } else { Ok(0) }
        })?;
        let mut bytes = 0;
        self.each_locked(tables, first, span.last, |slot| {
            let pte = slot.pte();
            if !pte.is_table(slot.level) {
                bytes += remove_page(pte, slot.level, removals);
                return Ok(Pte::EMPTY);
            }
            let entries = leaves(tables, pte, slot.part(span))?;
            let cleared = clear(entries, removals);
            if cleared > 0 {
                tables.write_back(entries);
            }
            bytes += cleared * PAGE;
            Ok(pte)
        })?;
        Ok(bytes)
    }

    /// Works on all busy slots from `first` to the one that covers `last`: stores what `work` returns,
    /// which ends the work on the slot. Where hardware does not snoop, changed slots are written back a
    /// run at a time, and the work on them ends then.
    #[inline]
    fn each_locked<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'t, M, K>,
        first: Slot<'t>,
        last: u64,
        mut work: impl FnMut(&Slot<'t>) -> Result<Pte, Error>,
    ) -> Result<(), Error> {
        let mut slot = first;
        let mut unseen = Unseen::default();
        loop {
            let next = if slot.last() >= last { None } else { Some(self.next_slot(tables, slot)?) };
            let before = slot.pte();
            let after = work(&slot)?;
            if after != before && tables.cache.is_some() {
                unseen.hold(tables, &slot, after)?;
            } else {
                slot.release(after);
            }
            match next {
                Some(next) => slot = next,
                None => return unseen.show(tables),
            }
        }
    }

    /// Takes `need` pages, if the context may have so many.
    #[inline]
    fn reserve<'p, M: TableMemory, K>(
        &self,
        tables: &TableAccess<'p, M, K>,
        need: u64,
    ) -> Result<Option<Reservation<'p, M>>, Error> {
        if need == 0 {
            return Ok(None);
        }
        let count = u32::try_from(need).map_err(|_| Error::NeedPages { count: need as usize })?;
        let grow = |pages: u32| pages.checked_add(count).filter(|&pages| pages <= self.page_limit);
        if let Err(pages) = self.pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow) {
            let left = self.page_limit.saturating_sub(pages);
            return Err(Error::NeedPages { count: count.saturating_sub(left) as usize });
        }
        Reservation::take(tables.pool, count).map(Some).inspect_err(|_| {
            self.pages.fetch_sub(count, Ordering::Relaxed);
        })
    }
}
