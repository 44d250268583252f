//! Ranges of entries: each last-level table is walked to once.

use portcullis_hal::{
    IoPageSize, Iova, PagePool, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::{Error, Removals, Unheard, removals::tell};

use super::{Table, reserve::Reserve};
use crate::spec::tce::Tce;

/// Entries `first..=last` of a tree.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    first: u64,
    last: u64,
}

impl Entries {
    /// Entries that the caller knows to lie in the tree.
    #[inline]
    pub(crate) const fn inside(first: u64, last: u64) -> Self {
        Self { first, last }
    }

    #[inline]
    pub(super) const fn first(self) -> u64 {
        self.first
    }

    #[inline]
    pub(super) const fn last(self) -> u64 {
        self.last
    }
}

impl Table {
    /// The entries of `count` pages from index `first`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when they are none, or reach beyond the tree.
    #[inline]
    pub fn entries(&self, first: u64, count: u64) -> Result<Entries, Error> {
        let beyond = Error::Unsupported { value: first };
        let last = count.checked_sub(1).and_then(|more| first.checked_add(more)).ok_or(beyond)?;
        if last >= self.tree.geometry.entries() {
            return Err(beyond);
        }
        Ok(Entries { first, last })
    }

    /// Fills empty `entries` with `tce` and the pages that follow it. Visible to hardware after the
    /// caller's store barrier.
    ///
    /// # Errors
    /// [`Error::NoAccess`] for a `tce` that leads nowhere; [`Error::AlreadyMapped`] with the offset in the
    /// window of the first entry in the way; [`Error::NeedPages`]; [`Error::Busy`] while another CPU changes
    /// the same tables. Nothing changed.
    #[inline(always)]
    pub fn map<M: TableMemory>(&self, pool: &PagePool<M>, entries: Entries, tce: Tce) -> Result<(), Error> {
        if !tce.is_valid() {
            return Err(Error::NoAccess);
        }
        if let Some(cell) = self.single(pool, entries)
            && let Some(_exclusive) = self.stripes.try_table(entries.first >> self.tree.geometry.level_bits())
            && cell.load(Ordering::Relaxed) == 0
        {
            cell.store(tce.to_memory(), Ordering::Relaxed);
            return Ok(());
        }
        self.map_tables(pool, entries, tce)
    }

    /// Maps any range, and single entries that are missing, taken or being changed.
    #[inline(never)]
    fn map_tables<M: TableMemory>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        tce: Tce,
    ) -> Result<(), Error> {
        let _exclusive = self.exclusive(entries)?;
        let mut missing = 0;
        self.each_span(pool, entries, |span, cells| match cells {
            Some(cells) => self.check_vacant(cells, span.first),
            None => {
                missing += self.missing_below(pool, span.first, span.last);
                Ok(())
            }
        })?;
        let mut reserve = Reserve::fill(self, pool, missing)?;
        let mut next = tce;
        let mut first = entries.first;
        loop {
            let span = Entries { first, last: self.last_in_table(first).min(entries.last) };
            let cells = self.part(self.leaf_or_link(pool, first, &mut reserve)?, span);
            next = self.fill(cells, next);
            if span.last == entries.last {
                return Ok(());
            }
            first = span.last + 1;
        }
    }

    /// Empties `entries` and returns how many of them were valid. Each of those owes a kill before its
    /// page may be used for anything else.
    ///
    /// # Errors
    /// [`Error::Busy`] while another CPU changes the same tables. Nothing changed.
    #[inline(always)]
    pub fn unmap<M: TableMemory>(&self, pool: &PagePool<M>, entries: Entries) -> Result<u64, Error> {
        self.take_out(pool, entries, &mut Unheard)
    }

    /// As [`unmap`](Self::unmap), and tells `removals` which memory was mapped.
    ///
    /// # Errors
    /// As [`unmap`](Self::unmap).
    #[inline(always)]
    pub fn take_out<M: TableMemory, T: Removals>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        removals: &mut T,
    ) -> Result<u64, Error> {
        if let Some(cell) = self.single(pool, entries)
            && let Some(_exclusive) = self.stripes.try_table(entries.first >> self.tree.geometry.level_bits())
        {
            return Ok(self.clear_one(cell, removals));
        }
        self.unmap_tables(pool, entries, removals)
    }

    #[inline(never)]
    fn unmap_tables<M: TableMemory, T: Removals>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        removals: &mut T,
    ) -> Result<u64, Error> {
        let _exclusive = self.exclusive(entries)?;
        let mut valid = 0;
        self.each_span::<_, Error>(pool, entries, |_, cells| {
            valid += self.clear(cells.unwrap_or_default(), removals);
            Ok(())
        })?;
        Ok(valid)
    }

    /// The cell of a range that is one entry and exists.
    #[inline]
    pub(super) fn single<'p, M: TableMemory>(
        &self,
        pool: &'p PagePool<M>,
        entries: Entries,
    ) -> Option<&'p AtomicU64> {
        if entries.first != entries.last {
            return None;
        }
        self.cell(pool, entries.first)
    }

    /// The cell at an index that lies in the tree, if it exists.
    #[inline(always)]
    pub(crate) fn cell<'p, M: TableMemory>(
        &self,
        pool: &'p PagePool<M>,
        index: u64,
    ) -> Option<&'p AtomicU64> {
        pool.memory().cells().get(self.tree.place(pool, index)?)
    }

    /// Calls `act` for each last-level table in the range with its part of the range and its cells there,
    /// and once, without cells, for each stretch that lies below one missing table.
    #[inline]
    pub(super) fn each_span<'p, M: TableMemory, E>(
        &self,
        pool: &'p PagePool<M>,
        entries: Entries,
        mut act: impl FnMut(Entries, Option<&'p [AtomicU64]>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut first = entries.first;
        loop {
            let cells = self.tree.leaf(pool, first);
            let end =
                if cells.is_some() { self.last_in_table(first) } else { self.tree.last_missing(pool, first) };
            let span = Entries { first, last: end.min(entries.last) };
            act(span, cells.map(|cells| self.part(cells, span)))?;
            if span.last == entries.last {
                return Ok(());
            }
            first = span.last + 1;
        }
    }

    #[inline]
    fn exclusive(&self, entries: Entries) -> Result<super::stripes::Exclusive<'_>, Error> {
        let bits = self.tree.geometry.level_bits();
        self.stripes.take(entries.first >> bits, entries.last >> bits)
    }

    /// The last index in the last-level table of `index`.
    #[inline]
    pub(super) const fn last_in_table(&self, index: u64) -> u64 {
        index | ((1 << self.tree.geometry.level_bits()) - 1)
    }

    /// The cells of a span that lies in the table `cells`.
    #[inline]
    fn part<'c>(&self, cells: &'c [AtomicU64], span: Entries) -> &'c [AtomicU64] {
        let (first, last) = (self.tree.geometry.slot(span.first, 0), self.tree.geometry.slot(span.last, 0));
        cells.get(first..=last).unwrap_or_default()
    }

    #[inline]
    fn check_vacant(&self, cells: &[AtomicU64], first: u64) -> Result<(), Error> {
        let taken = cells.iter().position(|cell| cell.load(Ordering::Relaxed) != 0);
        taken.map_or(Ok(()), |position| {
            let index = first.wrapping_add(position as u64);
            Err(Error::AlreadyMapped { iova: Iova::new(index << self.tree.geometry.page_size().shift()) })
        })
    }

    /// Stores `tce` and the pages that follow it; returns the one after the last.
    #[inline]
    fn fill(&self, cells: &[AtomicU64], mut tce: Tce) -> Tce {
        for cell in cells {
            cell.store(tce.to_memory(), Ordering::Relaxed);
            tce = tce.next(self.tree.geometry.page_size());
        }
        tce
    }

    /// Empties a cell and tells what it led to; returns whether it was valid, as a number.
    #[inline]
    fn clear_one<T: Removals>(&self, cell: &AtomicU64, removals: &mut T) -> u64 {
        let old = take(cell);
        if old.is_valid() {
            removals.removed(old.address(), self.tree.geometry.page_size().bytes());
        }
        u64::from(old.is_valid())
    }

    /// Empties cells and tells what they led to; returns how many were valid.
    #[inline]
    pub(super) fn clear<T: Removals>(&self, cells: &[AtomicU64], removals: &mut T) -> u64 {
        if !T::WANTED {
            return cells.iter().map(|cell| u64::from(take(cell).is_valid())).sum();
        }
        tell_entries(cells.iter().map(take), self.tree.geometry.page_size(), removals)
            >> self.tree.geometry.page_size().shift()
    }
}

/// Tells what last-level entries led to; returns the bytes.
#[inline]
pub(super) fn tell_entries<T: Removals>(
    entries: impl Iterator<Item = Tce>,
    page_size: IoPageSize,
    removals: &mut T,
) -> u64 {
    let address = |entry| Tce::from_u64(entry).is_valid().then(|| Tce::from_u64(entry).address());
    tell(entries.map(Tce::as_u64), page_size.bytes(), address, removals)
}

/// Empties a cell; returns what it held.
#[inline]
fn take(cell: &AtomicU64) -> Tce {
    let old = Tce::from_memory(cell.load(Ordering::Relaxed));
    cell.store(0, Ordering::Relaxed);
    old
}
