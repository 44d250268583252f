//! Entries that guests change by hypercalls.

use portcullis_hal::{Access, CacheMaintenance, Clock, DmaExtent, Iova, PhysAddr, RegisterIo, TableMemory};
use portcullis_iommu::{EntryDriver, Error, Exchanged, Leaf, Outcome, Permit, Removals};

use crate::{context::Context, driver::TceIommu, firmware::Firmware, spec::tce::Tce, table::put};

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

    #[inline]
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
                (context.entries(iova, bytes, extent.start())?, self.tce(extent, access)?)
            }
            None => (context.entries_to_empty(iova, bytes)?, Tce::EMPTY),
        };
        context.table.replace(&self.pool, entries, tce, removals)
    }

    fn leaf(&self, context: &Context, iova: Iova) -> Option<Leaf> {
        context.leaf(&self.pool, iova)
    }

    #[inline(always)]
    fn exchange_at(
        &self,
        _: &Permit,
        _: &Context,
        place: usize,
        new: Option<(DmaExtent, Access)>,
    ) -> Option<Option<PhysAddr>> {
        let tce = match new {
            Some((extent, access)) => self.tce(extent, access).ok()?,
            None => Tce::EMPTY,
        };
        let old = put(self.pool.memory().cells().get(place)?, tce);
        Some(old.is_valid().then(|| old.address()))
    }

    #[inline(always)]
    fn exchange_each<T: Removals>(
        &self,
        permit: &Permit,
        context: &Context,
        (iova, bytes, count): (Iova, u64, u64),
        new: impl Iterator<Item = Option<(DmaExtent, Access)>>,
        removals: &mut T,
    ) -> Result<Exchanged, Error> {
        let all = bytes.checked_mul(count).ok_or(Error::OutsideAperture { iova, bytes })?;
        let entries = context.entries(iova, all, PhysAddr::new(0))?;
        if bytes == context.page_bytes() {
            let leaf = |new| match new {
                Some((extent, access)) => self.page(context, extent, access),
                None => Some(Tce::EMPTY),
            };
            return context.table.replace_each(&self.pool, entries, new.map_while(leaf), removals);
        }
        let mut exchanged = Exchanged::default();
        for (number, new) in (0..count).zip(new) {
            let page = Iova::new(iova.as_u64().wrapping_add(bytes.wrapping_mul(number)));
            if self.exchange(permit, context, page, bytes, new, removals).is_err() {
                break;
            }
            exchanged.pages = number + 1;
            exchanged.mapping += u64::from(new.is_some());
        }
        Ok(exchanged)
    }

    #[inline(always)]
    fn page_bytes(&self, context: &Context) -> u64 {
        context.page_bytes()
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

impl<F, R, M, C, K, const DEVICES: usize> TceIommu<F, R, M, C, K, DEVICES>
where
    F: Firmware,
    R: RegisterIo,
    M: TableMemory,
    C: Clock,
    K: CacheMaintenance,
{
    /// The entry for the page that begins an extent, unless it is one that no entry can lead to.
    #[inline(always)]
    fn page(&self, context: &Context, extent: DmaExtent, access: Access) -> Option<Tce> {
        let in_page = extent.start().as_u64() & (context.page_bytes() - 1);
        if in_page != 0 { None } else { self.tce(extent, access).ok() }
    }
}
