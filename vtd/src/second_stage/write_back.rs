//! Making changed slots visible to hardware that does not snoop.

use portcullis_hal::{CacheMaintenance, TableMemory, sync::Ordering};
use portcullis_iommu::Error;

use super::{index, slots::Slot};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// Neighbouring slots of one table that hold their new entries and stay busy until memory has them:
/// else another CPU could build on what hardware cannot see yet.
#[derive(Default)]
pub(super) struct Unseen {
    table: u64,
    first: usize,
    count: usize,
}

impl Unseen {
    /// Stores the new entry of a busy slot, and writes back what was held so far when the slot is no
    /// neighbour of it.
    pub(super) fn hold<M: TableMemory, K: CacheMaintenance>(
        &mut self,
        tables: &TableAccess<'_, M, K>,
        slot: &Slot<'_>,
        pte: Pte,
    ) -> Result<(), Error> {
        slot.release(pte.busy());
        let index = index(slot.last(), slot.level);
        if self.count > 0 && slot.table == self.table && index == self.first + self.count {
            self.count += 1;
            return Ok(());
        }
        self.show(tables)?;
        *self = Self { table: slot.table, first: index, count: 1 };
        Ok(())
    }

    /// Writes back what is held; then nobody works on it any more.
    pub(super) fn show<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
    ) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let entries = tables.entries(self.table, self.first, self.count)?;
        tables.write_back(entries);
        for entry in entries {
            let pte = Pte(entry.load(Ordering::Relaxed));
            entry.store(pte.idle().0, Ordering::Release);
        }
        Ok(())
    }
}
