//! Physical memory, time and CPU caches of a machine that does not exist.

use std::{
    ops::Range,
    ptr::NonNull,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use crate::dma::extent;
use portcullis_hal::{
    CacheMaintenance, Clock, DmaExtent, DonatedPages, GuestMemory, PhysAddr, TableMemory,
    table_memory::TABLE_PAGE_CELLS,
};

/// Cells of 8 bytes in one cache line.
const LINE_CELLS: usize = 8;

/// Physical memory on the heap, shared by CPU, table walkers and devices. Clones are the same memory.
///
/// Memory is kept as little-endian 64-bit cells; [`read`](Self::read) and [`write`](Self::write) see it
/// as bytes in bus order.
#[derive(Clone, Debug)]
pub struct FakeMemory {
    cells: Arc<[AtomicU64]>,
    /// What a table walker that does not snoop sees: `cells` itself when it snoops.
    written_back: Arc<[AtomicU64]>,
    part: Range<usize>,
    base: PhysAddr,
}

fn zeroed(cells: usize) -> Arc<[AtomicU64]> {
    (0..cells).map(|_| AtomicU64::new(0)).collect()
}

impl FakeMemory {
    /// `pages` pages of zeroes at `base`; everybody sees each store at once.
    #[must_use]
    pub fn coherent(base: PhysAddr, pages: usize) -> Self {
        let cells = zeroed(pages * TABLE_PAGE_CELLS);
        Self { written_back: cells.clone(), part: 0..cells.len(), cells, base }
    }

    /// The same, but [`walk`](Self::walk) sees only what [`FakeCache`] wrote back.
    #[must_use]
    pub fn incoherent(base: PhysAddr, pages: usize) -> Self {
        Self { written_back: zeroed(pages * TABLE_PAGE_CELLS), ..Self::coherent(base, pages) }
    }

    /// A part of this memory, as a region of its own: for the pages that a driver is given.
    #[must_use]
    pub fn part(&self, first_page: usize, pages: usize) -> Self {
        let start = self.part.start + first_page * TABLE_PAGE_CELLS;
        let end = start + pages * TABLE_PAGE_CELLS;
        assert!(end <= self.part.end, "the part lies inside");
        let base = PhysAddr::new(self.base.as_u64() + first_page as u64 * 4096);
        Self { part: start..end, base, ..self.clone() }
    }

    /// Memory that a device may be pointed at: `pages` pages from page `first_page` of this region.
    #[must_use]
    pub fn extent(&self, first_page: usize, pages: usize) -> DmaExtent {
        extent(self.part(first_page, pages).base.as_u64(), pages as u64 * 4096)
    }

    /// Lets table walkers see all stores so far.
    pub fn drain(&self) {
        for (cell, seen) in self.cells.iter().zip(self.written_back.iter()) {
            seen.store(cell.load(Ordering::Acquire), Ordering::Release);
        }
    }

    fn index(&self, address: u64) -> Option<usize> {
        let cell = usize::try_from(address.checked_sub(self.base.as_u64())? / 8).ok()?;
        (cell < self.part.len()).then_some(self.part.start + cell)
    }

    /// What a table walker reads from the 8-byte cell at `address`, or `None` where no memory is.
    #[must_use]
    pub fn walk(&self, address: u64) -> Option<u64> {
        Some(self.written_back[self.index(address)?].load(Ordering::Acquire))
    }

    /// What a coherent access reads from the 8-byte cell at `address`.
    #[must_use]
    pub fn read64(&self, address: u64) -> Option<u64> {
        Some(self.cells[self.index(address)?].load(Ordering::Acquire))
    }

    /// A device reads bytes; `false` where no memory is.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        for (offset, byte) in (address..).zip(bytes) {
            let Some(cell) = self.read64(offset) else { return false };
            *byte = cell.to_le_bytes()[(offset % 8) as usize];
        }
        true
    }

    /// A device writes bytes; `false` where no memory is.
    pub fn write(&self, address: u64, bytes: &[u8]) -> bool {
        for (offset, &byte) in (address..).zip(bytes) {
            let Some(index) = self.index(offset) else { return false };
            let shift = offset % 8 * 8;
            let replace = |cell: u64| Some(cell & !(0xff << shift) | u64::from(byte) << shift);
            let _ = self.cells[index].fetch_update(Ordering::AcqRel, Ordering::Acquire, replace);
        }
        true
    }
}

// SAFETY: the cells live as long as any clone, the models reach them through clones only, and every
// access is atomic. `part` was checked to lie inside and to be made of whole pages.
unsafe impl TableMemory for FakeMemory {
    #[inline]
    fn cells(&self) -> &[AtomicU64] {
        &self.cells[self.part.clone()]
    }

    #[inline]
    fn base(&self) -> PhysAddr {
        self.base
    }
}

// SAFETY: every access is to an atomic cell of the heap, found by a checked index.
unsafe impl GuestMemory for FakeMemory {
    fn read_words(&self, extent: DmaExtent, words: &mut [u64]) -> bool {
        let start = extent.start().as_u64();
        if size_of_val(words) as u64 > extent.bytes() || !start.is_multiple_of(8) {
            return false;
        }
        let Some(first) = self.index(start) else { return false };
        let end = (first + words.len()).min(self.part.end);
        for (word, cell) in words.iter_mut().zip(&self.cells[first..end]) {
            *word = u64::from_ne_bytes(cell.load(Ordering::Acquire).to_le_bytes());
        }
        end - first == words.len()
    }
}

/// Pages of ordinary memory that live for ever: the implementation that a hypervisor uses, without its
/// machine. Physical addresses begin at `base`, which is 4 KiB aligned.
#[must_use]
pub fn donated_pages(base: PhysAddr, pages: usize) -> DonatedPages<'static> {
    let cells = Vec::leak(vec![0_u64; (pages + 1) * TABLE_PAGE_CELLS]);
    let first = cells.as_ptr().align_offset(4096);
    let start = NonNull::from(&mut cells[first..]).cast();
    // SAFETY: the leaked memory is initialised, lives for ever, is reached by nobody else, and holds
    // `pages` pages from the first aligned address on. No hardware knows it.
    unsafe { DonatedPages::new(start, base, pages) }.expect("both are aligned")
}

/// A clock that advances by a fixed step at each reading. Clones show the same time.
#[derive(Clone, Debug)]
pub struct FakeClock {
    nanoseconds: Arc<AtomicU64>,
    step: u64,
}

impl FakeClock {
    /// A clock at zero.
    #[must_use]
    pub fn new(step: Duration) -> Self {
        Self { nanoseconds: Arc::default(), step: step.as_nanos() as u64 }
    }
}

impl Default for FakeClock {
    /// One microsecond a reading.
    fn default() -> Self {
        Self::new(Duration::from_micros(1))
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.fetch_add(self.step, Ordering::Relaxed))
    }
}

/// The CPU's cache in front of a [`FakeMemory`]: notes what was written back. Clones share the notes.
#[derive(Clone, Debug)]
pub struct FakeCache {
    memory: FakeMemory,
    written: Arc<Mutex<Vec<(PhysAddr, usize)>>>,
}

impl FakeCache {
    /// The cache of `memory`.
    #[must_use]
    pub fn new(memory: &FakeMemory) -> Self {
        Self { memory: memory.clone(), written: Arc::default() }
    }

    /// Takes the notes: address and bytes of each write-back so far.
    #[must_use]
    pub fn take_write_backs(&self) -> Vec<(PhysAddr, usize)> {
        std::mem::take(&mut self.written.lock().expect("no test thread died here"))
    }
}

impl CacheMaintenance for FakeCache {
    fn write_back<T>(&self, memory: &[T]) {
        let cells = self.memory.cells();
        let Some(offset) = memory.as_ptr().addr().checked_sub(cells.as_ptr().addr()) else { return };
        let (first, end) = (offset / 8, (offset + size_of_val(memory)).div_ceil(8));
        if end > cells.len() || first == end {
            return;
        }
        let address = PhysAddr::new(self.memory.base.as_u64() + offset as u64);
        self.written.lock().expect("no test thread died here").push((address, size_of_val(memory)));
        let start = self.memory.part.start;
        for index in first / LINE_CELLS * LINE_CELLS..end.next_multiple_of(LINE_CELLS) {
            let value = self.memory.cells[start + index].load(Ordering::Acquire);
            self.memory.written_back[start + index].store(value, Ordering::Release);
        }
    }

    fn store_barrier(&self) {
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn write_back_all(&self) {
        self.memory.drain();
    }
}
