//! H_GET_TCE.

use portcullis_hal::{GuestMemory, TableMemory};
use portcullis_iommu::EntryDriver;

use super::{Hypercalls, Vcpu, reply::Stop, view::Entry};

impl<D, V, M, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize, const WINDOWS: usize>
    Hypercalls<'_, D, V, M, GROUPS, CONTEXTS, CPUS, WINDOWS>
where
    D: EntryDriver,
    V: TableMemory,
    M: GuestMemory,
{
    /// What the guest wrote, or 0 where it never wrote anything: one load.
    #[inline]
    pub(super) fn get_tce(&self, vcpu: &mut Vcpu, [liobn, ioba, ..]: [u64; 4]) -> Result<u64, Stop> {
        let slot = self.find(vcpu, liobn)?;
        let table = slot.table();
        let index = table.window.one(ioba).ok_or(Stop::PARAMETER)?;
        Ok(table.view.entry(&self.pool, index).map_or(0, Entry::form))
    }
}
