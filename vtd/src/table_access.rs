//! How the driver and its tables reach donated memory.

use portcullis_hal::{
    CacheMaintenance, TableMemory,
    page_pool::{PagePool, PoolError},
    sync::AtomicU64,
};
use portcullis_iommu::Error;

/// How tables are reached and made visible to hardware.
#[derive(Debug)]
pub struct TableAccess<'p, M, K> {
    pub(crate) pool: &'p PagePool<M>,
    /// The region's cells and base, looked up once: a walk asks for them at each level.
    cells: &'p [AtomicU64],
    base: u64,
    /// Present when hardware does not snoop its walks.
    pub(crate) cache: Option<&'p K>,
}

impl<'p, M: TableMemory, K: CacheMaintenance> TableAccess<'p, M, K> {
    /// Tables in `pool`; `cache` is needed exactly when hardware does not snoop (ECAP.C = 0).
    #[inline]
    pub fn new(pool: &'p PagePool<M>, cache: Option<&'p K>) -> Self {
        let memory = pool.memory();
        Self { pool, cells: memory.cells(), base: memory.base().as_u64(), cache }
    }

    /// The entries from `index` on of the table at a physical address.
    #[inline]
    pub(crate) fn entries(&self, table: u64, index: usize, count: usize) -> Result<&'p [AtomicU64], Error> {
        let start = (table.wrapping_sub(self.base) / 8) as usize + index;
        self.cells.get(start..start.saturating_add(count)).ok_or(outside(table))
    }

    #[inline]
    pub(crate) fn entry(&self, table: u64, index: usize) -> Result<&'p AtomicU64, Error> {
        let start = (table.wrapping_sub(self.base) / 8) as usize + index;
        self.cells.get(start).ok_or(outside(table))
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
