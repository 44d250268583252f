//! Entries that guests change by hypercalls.

use portcullis_hal::{Access, CacheMaintenance, Clock, DmaExtent, Iova, PhysAddr, RegisterIo, TableMemory};
use portcullis_iommu::{EntryDriver, Error, Outcome, Permit, Removals};

use crate::{context::Context, driver::TceIommu, firmware::Firmware, spec::tce::Tce};

impl<F, R, M, C, K, const DEVICES: usize> EntryDriver for TceIommu<F, R, M, C, K, DEVICES>
where
    F: Firmware,
    R: RegisterIo,
    M: TableMemory,
    C: Clock,
    K: CacheMaintenance,
{
    #[inline(always)]
    fn tables_exist(&self, context: &Context, iova: Iova, bytes: u64) -> Result<(), Error> {
        context.table.exist(&self.pool, context.entries(iova, bytes, PhysAddr::new(0))?)
    }

    fn provide(&self, _: &Permit, context: &Context, iova: Iova, bytes: u64) -> Result<(), Error> {
        context.table.provide(&self.pool, context.entries(iova, bytes, PhysAddr::new(0))?)
    }

    #[inline(always)]
    fn exchange<T: Removals>(
        &self,
        _: &Permit,
        context: &Context,
        iova: Iova,
        bytes: u64,
        new: Option<(DmaExtent, Access)>,
        removals: &mut T,
    ) -> Result<(), Error> {
        let (entries, tce) = match new {
            Some((extent, access)) => {
                (context.entries(iova, bytes, extent.start())?, self.leaf(extent, access)?)
            }
            None => (context.entries_to_empty(iova, bytes)?, Tce::EMPTY),
        };
        context.table.replace(&self.pool, entries, tce, removals)
    }

    #[inline(always)]
    fn reaches(&self, _: &Context, last: PhysAddr) -> bool {
        last.as_u64() <= self.last_real
    }

    #[inline(always)]
    fn kill(&self, _: &Permit, context: &Context) -> Outcome {
        Outcome::from(self.kill_context(context))
    }
}
