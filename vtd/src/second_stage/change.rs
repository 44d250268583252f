//! Map, unmap, enforce: what changes the tables.

use portcullis_hal::{
    Access, CacheMaintenance, DmaExtent, Iova, IovaRange, TableMemory,
    page_pool::PageRun,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Error;

use super::{
    INTERRUPTS, SecondStage, index,
    reservation::Reservation,
    shift,
    slots::{Exclusion, Exclusive, Shared, Slot, Span},
};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// Bytes of the smallest page.
const PAGE: u64 = 4096;

/// A mapping that was checked: what goes where, and in which pages.
struct Request {
    span: Span,
    /// Added to an I/O virtual address it gives the physical one.
    delta: u64,
    /// Highest level at which both addresses are aligned alike and pages are allowed.
    leaf_level: u8,
}

impl Request {
    /// Whether `part`, which one entry of `level` covers, can be a page of that level.
    const fn is_page(&self, level: u8, part: Span) -> bool {
        level <= self.leaf_level && part.last - part.first == (1 << shift(level)) - 1
    }

    /// Tables that must be made below an empty entry of `level` for `part` of the range.
    const fn tables_below(&self, level: u8, part: Span) -> u64 {
        let (mut count, mut at) = (0, level);
        while at > 1 {
            let shift = shift(at);
            let touched = (part.last >> shift) - (part.first >> shift) + 1;
            let first_whole = (part.first + (1 << shift) - 1) >> shift;
            let whole = ((part.last + 1) >> shift).saturating_sub(first_whole);
            count += if at <= self.leaf_level { touched - whole } else { touched };
            at -= 1;
        }
        count
    }
}

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
        self.unmap_with::<Shared, M, K>(tables, range)
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
        self.unmap_with::<Exclusive, M, K>(tables, range)
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
        let span = Span { first: 0, last: self.aperture.last().as_u64() };
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
    fn unmap_with<E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
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
                bytes += if pte.is_present() { 1 << shift(slot.level) } else { 0 };
                return Ok(Pte::EMPTY);
            }
            let entries = leaves(tables, pte, slot.part(span))?;
            let cleared = clear(entries);
            if cleared > 0 {
                tables.write_back(entries);
            }
            bytes += cleared * PAGE;
            Ok(pte)
        })?;
        Ok(bytes)
    }

    /// Works on all busy slots from `first` to the one that covers `last`: stores what `work` returns,
    /// which ends the work on the slot, and writes changed slots back a run at a time.
    #[inline]
    fn each_locked<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'t, M, K>,
        first: Slot<'t>,
        last: u64,
        mut work: impl FnMut(&Slot<'t>) -> Result<Pte, Error>,
    ) -> Result<(), Error> {
        let mut slot = first;
        let mut dirty = Dirty::default();
        loop {
            let next = if slot.last() >= last { None } else { Some(self.next_slot(tables, slot)?) };
            let before = slot.pte();
            let after = work(&slot)?;
            slot.release(after);
            if after != before && tables.cache.is_some() {
                dirty.add(tables, slot.table, index(slot.last(), slot.level))?;
            }
            match next {
                Some(next) => slot = next,
                None => return dirty.write_back(tables),
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

    #[inline]
    fn request(&self, iova: Iova, extent: DmaExtent, access: Access) -> Result<Request, Error> {
        let (physical, bytes) = (extent.start().as_u64(), extent.bytes());
        let range = IovaRange::new(iova, bytes).map_err(|_| Error::OutsideAperture { iova, bytes })?;
        let span = self.span(range)?;
        if physical % PAGE != 0 {
            return Err(Error::Misaligned { value: physical });
        }
        // An extent does not wrap, so its last byte is a number.
        if (physical + (bytes - 1)) >> self.format.physical_bits != 0 {
            return Err(Error::PhysicalTooWide { address: physical });
        }
        if access.is_empty() {
            return Err(Error::NoAccess);
        }
        let delta = physical.wrapping_sub(span.first);
        let mut leaf_level = 1;
        while leaf_level < self.format.largest_page && delta & ((1 << shift(leaf_level + 1)) - 1) == 0 {
            leaf_level += 1;
        }
        Ok(Request { span, delta, leaf_level })
    }

    /// The range as numbers, if it is aligned and can be mapped.
    #[inline]
    fn span(&self, range: IovaRange) -> Result<Span, Error> {
        let (iova, bytes) = (range.start(), range.bytes());
        let (first, last) = (iova.as_u64(), range.last().as_u64());
        if first % PAGE != 0 {
            return Err(Error::Misaligned { value: first });
        }
        if bytes % PAGE != 0 {
            return Err(Error::Misaligned { value: bytes });
        }
        let interrupts = first <= INTERRUPTS.1 && last >= INTERRUPTS.0;
        if last > self.aperture.last().as_u64() || interrupts {
            return Err(Error::OutsideAperture { iova, bytes });
        }
        Ok(Span { first, last })
    }
}

/// Slots of one table that were changed and not yet written back.
#[derive(Default)]
struct Dirty {
    table: u64,
    first: usize,
    count: usize,
}

impl Dirty {
    fn add<M: TableMemory, K: CacheMaintenance>(
        &mut self,
        tables: &TableAccess<'_, M, K>,
        table: u64,
        index: usize,
    ) -> Result<(), Error> {
        if self.count > 0 && table == self.table && index == self.first + self.count {
            self.count += 1;
            return Ok(());
        }
        self.write_back(tables)?;
        *self = Self { table, first: index, count: 1 };
        Ok(())
    }

    fn write_back<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
    ) -> Result<(), Error> {
        if self.count > 0 {
            tables.write_back(tables.entries(self.table, self.first, self.count)?);
        }
        Ok(())
    }
}

/// The leaf entries of `part` in the table that a level-2 entry points to.
#[inline]
fn leaves<'t, M: TableMemory, K: CacheMaintenance>(
    tables: &TableAccess<'t, M, K>,
    pte: Pte,
    part: Span,
) -> Result<&'t [AtomicU64], Error> {
    let first = index(part.first, 1);
    tables.entries(pte.address(), first, index(part.last, 1) + 1 - first)
}

/// Index of the first entry that is not empty.
#[inline]
fn first_present(entries: &[AtomicU64]) -> Option<usize> {
    entries.iter().position(|entry| entry.load(Ordering::Relaxed) != 0)
}

/// Clears entries; returns how many held something.
#[inline]
fn clear(entries: &[AtomicU64]) -> u64 {
    let mut cleared = 0;
    for entry in entries {
        if entry.load(Ordering::Relaxed) != 0 {
            entry.store(0, Ordering::Relaxed);
            cleared += 1;
        }
    }
    cleared
}

/// Tables that mapping `part` in a busy slot needs, if nothing is in the way.
#[inline]
fn need_for<M: TableMemory, K: CacheMaintenance>(
    tables: &TableAccess<'_, M, K>,
    request: &Request,
    slot: &Slot<'_>,
    part: Span,
) -> Result<u64, Error> {
    let pte = slot.pte();
    if pte.is_table(slot.level) {
        return match first_present(leaves(tables, pte, part)?) {
            None => Ok(0),
            Some(at) => Err(Error::AlreadyMapped { iova: Iova::new(part.first + at as u64 * PAGE) }),
        };
    }
    if pte.is_present() {
        return Err(Error::AlreadyMapped { iova: Iova::new(part.first) });
    }
    Ok(request.tables_below(slot.level, part))
}

/// Stores the entries of a checked mapping whose pages are reserved.
struct Filler<'f, 'p, M: TableMemory, K, B> {
    tables: &'f TableAccess<'p, M, K>,
    request: &'f Request,
    leaf_bits: B,
    reservation: &'f mut Option<Reservation<'p, M>>,
}

impl<M: TableMemory, K: CacheMaintenance, B: Fn(u8) -> u64> Filler<'_, '_, M, K, B> {
    /// Fills a busy slot; returns what it holds from now on.
    #[inline]
    fn fill_slot(&mut self, slot: &Slot<'_>) -> Result<Pte, Error> {
        let (pte, part) = (slot.pte(), slot.part(self.request.span));
        if !pte.is_table(slot.level) {
            return self.make_entry(slot.level, part);
        }
        let entries = leaves(self.tables, pte, part)?;
        self.fill_leaves(entries, part.first);
        self.tables.write_back(entries);
        Ok(pte)
    }

    #[inline]
    fn fill_leaves(&self, entries: &[AtomicU64], first: u64) {
        let mut value = first.wrapping_add(self.request.delta) | (self.leaf_bits)(1);
        for entry in entries {
            entry.store(value, Ordering::Relaxed);
            value += PAGE;
        }
    }

    /// The entry of `level` for `part`: a page, or a new table that hardware does not know yet.
    fn make_entry(&mut self, level: u8, part: Span) -> Result<Pte, Error> {
        if self.request.is_page(level, part) {
            return Ok(Pte(part.first.wrapping_add(self.request.delta) | (self.leaf_bits)(level)));
        }
        let run: PageRun =
            self.reservation.as_mut().and_then(Reservation::pop).ok_or(Error::NeedPages { count: 1 })?;
        let address = self.tables.pool.address(&run);
        if level == 2 {
            let first = index(part.first, 1);
            let count = index(part.last, 1) + 1 - first;
            self.fill_leaves(self.tables.entries(address.as_u64(), first, count)?, part.first);
        } else {
            self.fill_table(address.as_u64(), level - 1, part)?;
        }
        self.tables.write_back(self.tables.pool.cells(&run));
        Ok(Pte::table(address))
    }

    /// Fills a new table whose entries are of `level`, 2 or higher.
    fn fill_table(&mut self, table: u64, level: u8, part: Span) -> Result<(), Error> {
        let mut first = part.first;
        loop {
            let entry_last = first | ((1 << shift(level)) - 1);
            let last = entry_last.min(part.last);
            let pte = self.make_entry(level, Span { first, last })?;
            self.tables.entry(table, index(first, level))?.store(pte.0, Ordering::Relaxed);
            if last == part.last {
                return Ok(());
            }
            first = last + 1;
        }
    }
}
