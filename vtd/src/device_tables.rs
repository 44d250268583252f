//! Root and context tables: which device goes through which second-stage table (manual, 3.4, 9.1, 9.3).

use portcullis_hal::{
    CacheMaintenance, PhysAddr, RequesterId, TableMemory,
    page_pool::PageRun,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Error;

use crate::{
    spec::entries::{ContextEntry, PRESENT, context_table, root_entry},
    table_access::{TableAccess, need_pages},
};

/// The root table of a unit and the context tables below it. An entry that is not present blocks.
#[derive(Debug)]
pub(crate) struct DeviceTables {
    root: PageRun,
}

impl DeviceTables {
    /// An empty root table: every device is blocked.
    pub(crate) fn new<M: TableMemory, K: CacheMaintenance>(
        tables: &TableAccess<'_, M, K>,
    ) -> Result<Self, Error> {
        let root = tables.pool.take(1).map_err(need_pages)?;
        tables.write_back(tables.pool.cells(&root));
        Ok(Self { root })
    }

    pub(crate) fn root<M: TableMemory, K>(&self, tables: &TableAccess<'_, M, K>) -> PhysAddr {
        tables.pool.address(&self.root)
    }

    fn root_entry<'t, M: TableMemory, K>(
        &self,
        tables: &TableAccess<'t, M, K>,
        bus: u8,
    ) -> Option<&'t AtomicU64> {
        let first = tables.pool.memory().pages(self.root.first(), 1)?;
        first.get(usize::from(bus) * 2)
    }

    /// Whether the bus has a context table.
    pub(crate) fn has_bus<M: TableMemory, K>(&self, tables: &TableAccess<'_, M, K>, bus: u8) -> bool {
        self.root_entry(tables, bus).is_some_and(|entry| entry.load(Ordering::Acquire) & PRESENT != 0)
    }

    /// Gives a bus its context table, an empty page; returns the page when it has one already.
    pub(crate) fn add_bus<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        bus: u8,
        page: PageRun,
    ) -> Option<PageRun> {
        let Some(entry) = self.root_entry(tables, bus) else { return Some(page) };
        if entry.load(Ordering::Acquire) & PRESENT != 0 {
            return Some(page);
        }
        tables.write_back(tables.pool.cells(&page));
        entry.store(root_entry(tables.pool.address(&page)), Ordering::Release);
        tables.write_back(core::slice::from_ref(entry));
        None
    }

    fn context_entry<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'t, M, K>,
        requester: RequesterId,
    ) -> Option<&'t [AtomicU64]> {
        let root = self.root_entry(tables, requester.bus())?.load(Ordering::Acquire);
        let table = context_table(root)?;
        tables.entries(table.as_u64(), usize::from(requester.devfn()) * 2, 2).ok()
    }

    /// Sends a blocked device through a table: the half with the present bit comes last.
    pub(crate) fn set<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        requester: RequesterId,
        entry: ContextEntry,
    ) {
        let Some(halves @ [low, high]) = self.context_entry(tables, requester) else { return };
        high.store(entry.high, Ordering::Relaxed);
        low.store(entry.low, Ordering::Release);
        tables.write_back(halves);
    }

    /// Blocks a device: the half with the present bit goes first. Returns the domain ID that the device
    /// had, or `None` when it was blocked.
    pub(crate) fn clear<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        requester: RequesterId,
    ) -> Option<u16> {
        let halves @ [low, high] = self.context_entry(tables, requester)? else { return None };
        let was_present = low.swap(0, Ordering::AcqRel) & PRESENT != 0;
        let old = high.swap(0, Ordering::AcqRel);
        tables.write_back(halves);
        was_present.then_some(ContextEntry::domain(old))
    }
}
