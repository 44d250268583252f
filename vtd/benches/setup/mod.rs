//! A context of 1 M pages with warm tables, for the benchmarks and for counting instructions.
#![allow(dead_code, unused_imports, reason = "each user takes a part")]

pub(crate) use portcullis_fake::memory::extent as extent_at;
use portcullis_fake::memory::{FakeCache, donated_pages};
use portcullis_hal::{
    Access, DmaExtent, DonatedPages, Iova, IovaRange, PhysAddr, TableMemory,
    page_pool::PagePool,
    sync::{AtomicU64, Ordering},
};
use portcullis_vtd::{Format, SecondStage, TableAccess};

pub(crate) const PAGE: u64 = 4096;
/// Pages in one leaf table.
pub(crate) const LEAVES: u64 = 512;
/// Pages of the context: 4 GiB.
pub(crate) const PAGES: u64 = 1 << 20;
/// Where they begin, above the interrupt addresses.
pub(crate) const FIRST: u64 = 1 << 36;
/// Where they lead: not aligned like the I/O virtual addresses, so that no larger page is possible.
const PHYSICAL: u64 = (1 << 40) + PAGE;
/// Bases of the tables.
const TABLES: u64 = 1 << 32;
const RIGHTS: Access = Access::READ.union(Access::WRITE);

pub(crate) type Pool = PagePool<DonatedPages<'static>>;
pub(crate) type Tables<'p> = TableAccess<'p, DonatedPages<'static>, FakeCache>;

/// The order in which pages are visited.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Sequential,
    Scattered,
}

impl Order {
    /// The page at a step. An odd factor visits each page of a power of two once.
    #[inline]
    pub(crate) const fn page(self, step: u64) -> u64 {
        match self {
            Self::Sequential => step,
            Self::Scattered => step.wrapping_mul(0x9_e377) & (PAGES - 1),
        }
    }
}

pub(crate) fn pool() -> Pool {
    PagePool::new(donated_pages(PhysAddr::new(TABLES), 4096)).expect("4096 pages")
}

/// Tables in a pool, on a unit that snoops.
#[inline(always)]
pub(crate) fn access(pool: &Pool) -> Tables<'_> {
    TableAccess::new(pool, None)
}

/// Tables of four levels, all of them made, nothing mapped.
pub(crate) fn warm(pool: &Pool) -> SecondStage {
    let format = Format { levels: 4, address_bits: 48, largest_page: 3, physical_bits: 46 };
    let tables = SecondStage::new(&access(pool), format, None, None).expect("a root");
    map(&tables, &access(pool), 0, PAGES);
    unmap(&tables, &access(pool), 0, PAGES);
    tables
}

#[inline(always)]
pub(crate) fn iova(page: u64) -> Iova {
    Iova::new(FIRST + page * PAGE)
}

#[inline(always)]
pub(crate) fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::new(iova(page), pages * PAGE).expect("inside")
}

#[inline(always)]
pub(crate) fn extent(page: u64, pages: u64) -> DmaExtent {
    extent_at(PHYSICAL + page * PAGE, pages * PAGE)
}

#[inline(always)]
pub(crate) fn map(tables: &SecondStage, access: &Tables<'_>, page: u64, pages: u64) {
    tables.map(access, iova(page), extent(page, pages), RIGHTS).expect("free, and tables exist");
}

#[inline(always)]
pub(crate) fn map_exclusive(tables: &mut SecondStage, access: &Tables<'_>, page: u64, pages: u64) {
    tables.map_exclusive(access, iova(page), extent(page, pages), RIGHTS).expect("free, and tables exist");
}

#[inline(always)]
pub(crate) fn unmap(tables: &SecondStage, access: &Tables<'_>, page: u64, pages: u64) {
    assert_eq!(tables.unmap(access, range(page, pages)), Ok(pages * PAGE));
}

#[inline(always)]
pub(crate) fn unmap_exclusive(tables: &mut SecondStage, access: &Tables<'_>, page: u64, pages: u64) {
    assert_eq!(tables.unmap_exclusive(access, range(page, pages)), Ok(pages * PAGE));
}

/// What any walker has to do at least: four dependent loads less the last, which is the entry's cell.
#[inline]
pub(crate) fn bare_walk(cells: &[AtomicU64], root: u64, page: u64) -> &AtomicU64 {
    let address = FIRST + page * PAGE;
    let cell = |table: u64, shift: u32| &cells[((table - TABLES) / 8 + (address >> shift & 511)) as usize];
    let next = |table, shift| cell(table, shift).load(Ordering::Acquire) & 0x000f_ffff_ffff_f000;
    cell(next(next(next(root, 39), 30), 21), 12)
}

/// Index of the first cell of each leaf table, in the order of its addresses.
pub(crate) fn leaf_tables(pool: &Pool, tables: &SecondStage) -> Vec<usize> {
    let cells = pool.memory().cells();
    let first = |table| std::ptr::from_ref(bare_walk(cells, tables.root().as_u64(), table * LEAVES));
    (0..PAGES / LEAVES).map(|table| (first(table).addr() - cells.as_ptr().addr()) / 8).collect()
}
