//! Memory on the atomics of [`portcullis_hal::sync`]: under `--cfg loom` the model checker's.

use portcullis_hal::{DmaExtent, GuestMemory, PhysAddr, TABLE_PAGE_CELLS, TableMemory, sync::AtomicU64};

/// Pages for tables, and for lists of a guest: whatever an extent says, its words are those from the first cell on.
#[derive(Debug)]
pub struct CheckedMemory(Vec<AtomicU64>);

impl CheckedMemory {
    /// `pages` pages of zeroes.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self((0..pages * TABLE_PAGE_CELLS).map(|_| AtomicU64::new(0)).collect())
    }
}

// SAFETY: the cells live as long as the value, nothing else uses them, and no hardware exists.
unsafe impl TableMemory for CheckedMemory {
    fn cells(&self) -> &[AtomicU64] {
        &self.0
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(0x1000)
    }
}

// SAFETY: every word is an atomic cell of the heap.
unsafe impl GuestMemory for CheckedMemory {
    fn read_words(&self, _: DmaExtent, words: &mut [u64]) -> bool {
        for (word, cell) in words.iter_mut().zip(&self.0) {
            *word = cell.load(portcullis_hal::sync::Ordering::Relaxed);
        }
        words.len() <= self.0.len()
    }
}
