//! Pages of donated memory, handed out for tables and taken back.

use crate::{
    addr::PhysAddr,
    sync::{AtomicU64, AtomicUsize, Ordering},
    table_memory::{TABLE_PAGE_BYTES, TABLE_PAGE_CELLS, TableMemory},
};

/// Pages that one page of bitmap tells apart.
const PAGES_PER_BITMAP_PAGE: usize = 4096 * 8;

/// Contiguous pages taken from a [`PagePool`]: not `Copy`, so that they go back at most once.
///
/// Dropping one keeps the pages out of the pool for good: right for pages that hung hardware may
/// still read.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping a run keeps its pages out of the pool for good"]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PageRun {
    first: u32,
    pages: u32,
}

impl PageRun {
    /// Index of the first page in the donated region.
    #[inline]
    #[must_use]
    pub const fn first(&self) -> usize {
        self.first as usize
    }

    /// Number of pages, a power of two.
    #[inline]
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages as usize
    }
}

/// Why the pool gave no pages. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PoolError {
    /// No free run of so many pages.
    NeedPages {
        /// Contiguous 4 KiB pages that were asked for.
        count: usize,
    },
    /// A run must be a power of two of pages, at most 64.
    BadCount {
        /// Pages that were asked for.
        count: usize,
    },
    /// The donated region has no page left beside the bitmap, or more than `u32` counts.
    BadRegion {
        /// Pages in the region.
        pages: usize,
    },
}

/// A lock-free allocator over donated memory.
///
/// Its bitmap lies in the first pages of the region, never in a free page: hardware may still walk a
/// page that was just freed. Any CPU may take and give pages at any time; a call reads the bitmap at
/// most twice.
#[derive(Debug)]
pub struct PagePool<M> {
    memory: M,
    bitmap_pages: usize,
    next_word: AtomicUsize,
}

impl<M: TableMemory> PagePool<M> {
    /// Takes the region; every page except those of the bitmap is free.
    ///
    /// # Errors
    /// [`PoolError::BadRegion`] when nothing would be left to hand out.
    pub fn new(memory: M) -> Result<Self, PoolError> {
        let pages = memory.page_count();
        let bitmap_pages = pages.div_ceil(PAGES_PER_BITMAP_PAGE);
        if bitmap_pages >= pages || u32::try_from(pages).is_err() {
            return Err(PoolError::BadRegion { pages });
        }
        let pool = Self { memory, bitmap_pages, next_word: AtomicUsize::new(0) };
        for (index, word) in pool.bitmap().iter().enumerate() {
            word.store(used_bits(index, bitmap_pages, pages), Ordering::Relaxed);
        }
        Ok(pool)
    }

    /// The donated region.
    #[inline]
    pub const fn memory(&self) -> &M {
        &self.memory
    }

    /// Takes `count` contiguous zeroed pages, aligned to their own size.
    ///
    /// # Errors
    /// [`PoolError::BadCount`] unless `count` is a power of two up to 64; [`PoolError::NeedPages`] when
    /// no such run is free.
    pub fn take(&self, count: usize) -> Result<PageRun, PoolError> {
        if !count.is_power_of_two() || count > 64 {
            return Err(PoolError::BadCount { count });
        }
        let words = self.memory.page_count().div_ceil(64);
        let start = self.next_word.load(Ordering::Relaxed);
        for step in 0..words {
            let index = (start.wrapping_add(step)) % words;
            let Some(word) = self.bitmap().get(index) else { continue };
            if let Some(bit) = take_bits(word, count) {
                self.next_word.store(index, Ordering::Relaxed);
                let run = PageRun { first: (index * 64 + bit) as u32, pages: count as u32 };
                self.zero(&run);
                return Ok(run);
            }
        }
        Err(PoolError::NeedPages { count })
    }

    /// Gives a run back. The caller has seen the invalidation that ends hardware's use of it.
    pub fn give_back(&self, run: PageRun) {
        if let Some(word) = self.bitmap().get(run.first() / 64) {
            word.fetch_and(!(mask(run.pages()) << (run.first() % 64)), Ordering::Release);
        }
    }

    /// Takes up the run whose first page lies at `address` again: for tables that are found by walking
    /// their parents. The caller says how many pages it took there, and takes each run up once: two runs of
    /// the same pages would be given back twice.
    ///
    /// `None` when the address is not that of pages that are handed out.
    #[must_use]
    pub fn reclaim(&self, address: PhysAddr, count: usize) -> Option<PageRun> {
        let first = self.memory.page_at(address)?;
        let bits = mask(count).checked_shl((first % 64) as u32)?;
        let taken = self.bitmap().get(first / 64)?.load(Ordering::Acquire) & bits == bits;
        let valid = taken
            && first >= self.bitmap_pages
            && count.is_power_of_two()
            && count <= 64
            && first % count == 0
            && address.as_u64().is_multiple_of(TABLE_PAGE_BYTES);
        valid.then_some(PageRun { first: first as u32, pages: count as u32 })
    }

    /// The cells of a run.
    #[inline]
    #[must_use]
    pub fn cells(&self, run: &PageRun) -> &[AtomicU64] {
        self.memory.pages(run.first(), run.pages()).unwrap_or_default()
    }

    /// Physical address of a run.
    #[inline]
    #[must_use]
    pub fn address(&self, run: &PageRun) -> PhysAddr {
        self.memory.page_address(run.first())
    }

    /// The cells of the page at a physical address, or `None` outside the region.
    #[inline]
    #[must_use]
    pub fn table_at(&self, address: PhysAddr) -> Option<&[AtomicU64; TABLE_PAGE_CELLS]> {
        let page = self.memory.page_at(address)?;
        self.memory.cells().get(page * TABLE_PAGE_CELLS..)?.first_chunk()
    }

    /// Pages that are free now: exact while nobody takes or gives.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.bitmap().iter().map(|word| word.load(Ordering::Relaxed).count_zeros() as usize).sum()
    }

    fn bitmap(&self) -> &[AtomicU64] {
        self.memory.pages(0, self.bitmap_pages).unwrap_or_default()
    }

    fn zero(&self, run: &PageRun) {
        for cell in self.cells(run) {
            cell.store(0, Ordering::Relaxed);
        }
    }
}

const fn mask(count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { (1 << count) - 1 }
}

/// Bits of bitmap word `index` that stand for no page to hand out.
fn used_bits(index: usize, bitmap_pages: usize, pages: usize) -> u64 {
    let first = index * 64;
    let below = mask(bitmap_pages.saturating_sub(first).min(64));
    let present = mask(pages.saturating_sub(first).min(64));
    below | !present
}

/// Sets `count` aligned clear bits in one step; their position, or `None` when there are none.
fn take_bits(word: &AtomicU64, count: usize) -> Option<usize> {
    let mut seen = word.load(Ordering::Relaxed);
    // Each failed exchange means that another CPU made progress on 64 pages: 64 rounds settle them all
    // unless pages are given back meanwhile, and then this word is left to the others.
    for _ in 0..64 {
        let bit = (0..64).step_by(count).find(|bit| seen & (mask(count) << bit) == 0)?;
        let wanted = seen | mask(count) << bit;
        match word.compare_exchange_weak(seen, wanted, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return Some(bit),
            Err(now) => seen = now,
        }
    }
    None
}
