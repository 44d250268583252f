//! Table pages that were taken before the first store that hardware sees.

use portcullis_hal::{
    PhysAddr, TableMemory,
    page_pool::{PagePool, PageRun},
    sync::Ordering,
};
use portcullis_iommu::Error;

/// Zeroed pages, linked through their first cells: hardware does not know them yet. What is left goes
/// back to the pool on drop.
pub(super) struct Reservation<'p, M: TableMemory> {
    pool: &'p PagePool<M>,
    head: Option<PageRun>,
}

impl<'p, M: TableMemory> Reservation<'p, M> {
    /// Takes `count` pages, or none.
    pub(super) fn take(pool: &'p PagePool<M>, count: u32) -> Result<Self, Error> {
        let mut reservation = Self { pool, head: None };
        for taken in 0..count {
            let Ok(run) = pool.take(1) else {
                return Err(Error::NeedPages { count: (count - taken) as usize });
            };
            reservation.push(run);
        }
        Ok(reservation)
    }

    fn push(&mut self, run: PageRun) {
        let next = self.head.take().map_or(0, |next| self.pool.address(&next).as_u64());
        if let Some(link) = self.pool.cells(&run).first() {
            link.store(next, Ordering::Relaxed);
        }
        self.head = Some(run);
    }

    /// Takes one page out, all zero again.
    pub(super) fn pop(&mut self) -> Option<PageRun> {
        let run = self.head.take()?;
        let link = self.pool.cells(&run).first()?;
        self.head = match link.swap(0, Ordering::Relaxed) {
            0 => None,
            next => self.pool.reclaim(PhysAddr::new(next), 1),
        };
        Some(run)
    }
}

impl<M: TableMemory> Drop for Reservation<'_, M> {
    fn drop(&mut self) {
        while let Some(run) = self.pop() {
            self.pool.give_back(run);
        }
    }
}
