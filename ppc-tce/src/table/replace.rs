//! Entries that their owner replaces: plain stores, because nobody else changes them meanwhile.

use portcullis_hal::{
    PagePool, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::{Error, Exchanged, Removals};

use super::{Entries, Table, range::tell_entries, reserve::Reserve};
use crate::spec::tce::Tce;

impl Table {
    /// Whether the tables for all `entries` exist.
    ///
    /// # Errors
    /// [`Error::NeedPages`] with the pages of one table.
    #[inline]
    pub fn exist<M: TableMemory>(&self, pool: &PagePool<M>, entries: Entries) -> Result<(), Error> {
        let mut index = entries.first();
        loop {
            if self.tree.place(pool, index).is_none() {
                return Err(Error::NeedPages { count: self.geometry().level_pages() });
            }
            let last = self.last_in_table(index);
            if last >= entries.last() {
                return Ok(());
            }
            index = last + 1;
        }
    }

    /// Makes the tables that are missing for `entries`; each is linked as it is found missing, so that
    /// those which were made stay when there are no pages for more.
    ///
    /// # Errors
    /// [`Error::NeedPages`].
    pub fn provide<M: TableMemory>(&self, pool: &PagePool<M>, entries: Entries) -> Result<(), Error> {
        let mut index = entries.first();
        loop {
            if self.tree.place(pool, index).is_none() {
                let mut reserve = Reserve::fill(self, pool, self.missing_below(pool, index, index))?;
                self.leaf_or_link(pool, index, &mut reserve)?;
            }
            let last = self.last_in_table(index);
            if last >= entries.last() {
                return Ok(());
            }
            index = last + 1;
        }
    }

    /// Replaces `entries` by `new` and the pages that follow it, or empties them if it leads nowhere, and
    /// tells `removals` what they led to. The caller owns the entries. What is missing is empty.
    ///
    /// # Errors
    /// [`Error::NeedPages`] when a table is missing for a `new` that leads somewhere. Nothing changed.
    #[inline(never)]
    pub fn replace<M: TableMemory, T: Removals>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        new: Tce,
        removals: &mut T,
    ) -> Result<(), Error> {
        if !new.is_valid() {
            return self.each_span(pool, entries, |_, cells| {
                self.clear(cells.unwrap_or_default(), removals);
                Ok(())
            });
        }
        self.exist(pool, entries)?;
        let size = self.geometry().page_size();
        let mut next = new;
        self.each_span(pool, entries, |_, cells| {
            let replaced = cells.unwrap_or_default().iter().map(|cell| {
                let old = put(cell, next);
                next = next.next(size);
                old
            });
            tell_entries(replaced, size, removals);
            Ok(())
        })
    }
}

/// There is nothing more to replace.
struct Ended;

impl Table {
    /// Replaces `entries`, one after the other, by what `new` yields, and tells `removals` what they led to; ends with
    /// `new`. The caller owns the entries.
    ///
    /// # Errors
    /// [`Error::NeedPages`] when a table is missing: nothing changed.
    #[inline(always)]
    pub(crate) fn replace_each<M: TableMemory, T: Removals>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        mut new: impl Iterator<Item = Tce>,
        removals: &mut T,
    ) -> Result<Exchanged, Error> {
        self.exist(pool, entries)?;
        let bytes = self.geometry().page_size().bytes();
        let mut exchanged = Exchanged::default();
        let _: Result<(), Ended> = self.each_span(pool, entries, |_, cells| {
            for cell in cells.unwrap_or_default() {
                let new = new.next().ok_or(Ended)?;
                let old = put(cell, new);
                if old.is_valid() {
                    removals.removed(old.address(), bytes);
                }
                exchanged.pages += 1;
                exchanged.mapping += u64::from(new.is_valid());
            }
            Ok(())
        });
        Ok(exchanged)
    }
}

/// Stores an entry; returns what was there.
#[inline(always)]
pub(crate) fn put(cell: &AtomicU64, new: Tce) -> Tce {
    let old = Tce::from_memory(cell.load(Ordering::Relaxed));
    cell.store(new.to_memory(), Ordering::Relaxed);
    old
}
