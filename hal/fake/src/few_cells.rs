//! Table pages on the model checker's atomics, which track every word.

use portcullis_hal::{PhysAddr, TABLE_PAGE_CELLS, TableMemory, sync::AtomicU64};

/// Donated memory of whole pages, of which only the first cells are lent page by page: zeroing a page is
/// then a few steps of the model, not 512. Whoever uses it keeps to entries that lie there.
#[derive(Debug)]
pub struct FewCells {
    cells: Vec<AtomicU64>,
    lent: usize,
}

impl FewCells {
    /// So many pages at address 0, which lend `lent` cells each.
    #[must_use]
    pub fn new(pages: usize, lent: usize) -> Self {
        Self { cells: (0..pages * TABLE_PAGE_CELLS).map(|_| AtomicU64::new(0)).collect(), lent }
    }
}

// SAFETY: the cells live as long as the value, nothing else uses them, no hardware exists, and every access is
// atomic. The length is whole pages; `pages` lends less than it could.
unsafe impl TableMemory for FewCells {
    fn cells(&self) -> &[AtomicU64] {
        &self.cells
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(0)
    }

    fn pages(&self, first: usize, pages: usize) -> Option<&[AtomicU64]> {
        assert_eq!(pages, 1, "runs are not lent");
        let start = first.checked_mul(TABLE_PAGE_CELLS)?;
        self.cells.get(start..start + self.lent)
    }
}
