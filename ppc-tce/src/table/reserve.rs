//! Tables taken from the pool before anything changes.

use portcullis_hal::{PagePool, PageRun, PhysAddr, TableMemory, sync::Ordering};
use portcullis_iommu::Error;

use super::{Table, take};

/// Zeroed tables that hardware has never seen, counted to one tree's limit. What is left goes back.
///
/// They are chained through their first cell: hardware cannot walk them before they are linked, and a
/// table leaves the chain zeroed.
pub(super) struct Reserve<'t, M: TableMemory> {
    table: &'t Table,
    pool: &'t PagePool<M>,
    head: Option<PageRun>,
}

impl<'t, M: TableMemory> Reserve<'t, M> {
    /// Takes `count` tables, or none.
    pub(super) fn fill(table: &'t Table, pool: &'t PagePool<M>, count: u64) -> Result<Self, Error> {
        let mut reserve = Self { table, pool, head: None };
        let level_pages = table.tree.geometry.level_pages();
        for taken in 0..count {
            let missing = (count - taken).saturating_mul(level_pages as u64);
            let short = Error::NeedPages { count: usize::try_from(missing).unwrap_or(usize::MAX) };
            reserve.charge().ok_or(short)?;
            match take(pool, table.tree.geometry) {
                Ok(run) => reserve.push(run),
                Err(_) => {
                    reserve.refund();
                    return Err(short);
                }
            }
        }
        Ok(reserve)
    }

    /// One of the tables. `NeedPages` can only mean that the donated memory was tampered with: `fill`
    /// counted what is missing, and tables never go away.
    pub(super) fn pop(&mut self) -> Result<PageRun, Error> {
        let short = Error::NeedPages { count: self.table.tree.geometry.level_pages() };
        let run = self.head.take().ok_or(short)?;
        if let Some(first) = self.pool.cells(&run).first() {
            let next = PhysAddr::new(first.swap(0, Ordering::Relaxed));
            self.head = self.pool.reclaim(next, run.pages());
        }
        Ok(run)
    }

    /// Puts a table in (back, when it was not linked).
    pub(super) fn push(&mut self, run: PageRun) {
        let next = self.head.take().map_or(0, |head| self.pool.address(&head).as_u64());
        if let Some(first) = self.pool.cells(&run).first() {
            first.store(next, Ordering::Relaxed);
        }
        self.head = Some(run);
    }

    fn charge(&self) -> Option<()> {
        let level_pages = self.table.tree.geometry.level_pages() as u32;
        let within =
            |pages: u32| pages.checked_add(level_pages).filter(|&pages| pages <= self.table.page_limit);
        self.table.pages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).ok().map(|_| ())
    }

    fn refund(&self) {
        let level_pages = self.table.tree.geometry.level_pages() as u32;
        self.table.pages.fetch_sub(level_pages, Ordering::Relaxed);
    }
}

impl<M: TableMemory> Drop for Reserve<'_, M> {
    fn drop(&mut self) {
        while let Ok(run) = self.pop() {
            self.pool.give_back(run);
            self.refund();
        }
    }
}
