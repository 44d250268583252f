//! How the driver and its tables reach donated memory.

use portcullis_hal::{
    CacheMaintenance, PhysAddr, TableMemory,
    page_pool::{PagePool, PageRun, PoolError},
    sync::AtomicU64,
    table_memory::TABLE_PAGE_CELLS,
};
use portcullis_iommu::Error;

use crate::spec::entries::Pte;

/// One table: a page of entries.
pub(crate) type Table = [AtomicU64; TABLE_PAGE_CELLS];

/// How tables are reached and made visible to hardware.
#[derive(Debug)]
pub struct TableAccess<'p, M, K> {
    pub(crate) pool: &'p PagePool<M>,
    /// The region's pages, looked up once: a walk asks for them at each level.
    pages: &'p [Table],
    /// The idle entry that would point to the region's first page.
    first_table: Pte,
    /// Present when hardware does not snoop its walks.
    pub(crate) cache: Option<&'p K>,
}

impl<'p, M: TableMemory, K: CacheMaintenance> TableAccess<'p, M, K> {
    /// Tables in `pool`; `cache` is needed exactly when hardware does not snoop (ECAP.C = 0).
    #[inline]
    pub fn new(pool: &'p PagePool<M>, cache: Option<&'p K>) -> Self {
        let memory = pool.memory();
        let (pages, _) = memory.cells().as_chunks();
        Self { pool, pages, first_table: Pte::table(memory.base()), cache }
    }

    /// The entries from `index` on of the table at a physical address.
    #[inline]
    pub(crate) fn entries(&self, table: u64, index: usize, count: usize) -> Result<&'p [AtomicU64], Error> {
        let table_entries = self.table_of(Pte::table(PhysAddr::new(table))).ok_or(outside(table))?;
        table_entries.get(index..index.saturating_add(count)).ok_or(outside(table))
    }

    #[inline]
    pub(crate) fn entry(&self, table: u64, index: usize) -> Result<&'p AtomicU64, Error> {
        self.table_of(Pte::table(PhysAddr::new(table)))
            .and_then(|table| table.get(index))
            .ok_or(outside(table))
    }

    /// The table at a page of the region.
    #[inline]
    pub(crate) fn table(&self, page: &PageRun) -> Option<&'p Table> {
        self.pages.get(page.first())
    }

    /// The table that an idle entry points to; `None` for an entry of any other kind.
    #[inline]
    pub(crate) fn table_of(&self, pte: Pte) -> Option<&'p Table> {
        // Such an entry is an address in the region with both rights and no other bit. After the
        // subtraction any other bit is in the page offset, which the rotation makes too large an index,
        // or makes it too large as it is.
        let offset = pte.0.wrapping_sub(self.first_table.0);
        self.pages.get(usize::try_from(offset.rotate_right(12)).ok()?)
    }

    #[inline]
    pub(crate) fn write_back(&self, entries: &[AtomicU64]) {
        if let Some(cache) = self.cache {
            cache.write_back(entries);
        }
    }
}

/// A table pointer of ours leads out of the donated region: somebody else wrote to our tables.
const fn outside(table: u64) -> Error {
    Error::PhysicalTooWide { address: table }
}

/// What the pool said, as the policy puts it.
pub(crate) fn need_pages(error: PoolError) -> Error {
    match error {
        PoolError::NeedPages { count } => Error::NeedPages { count },
        _ => Error::NeedPages { count: 1 },
    }
}
