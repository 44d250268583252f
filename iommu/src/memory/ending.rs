//! The end of regions: when nothing leads there, and no session is left that could change that.

use portcullis_hal::sync::Ordering;

use super::{RegionHandle, RegisteredMemory, region::Region};
use crate::{error::Error, group::VmId};

impl<const N: usize, const CPUS: usize> RegisteredMemory<N, CPUS> {
    /// Ends a region. `outlast` waits for every session that is there, and says whether they all ended.
    pub(super) fn unregister(
        &self,
        vm: VmId,
        handle: RegionHandle,
        outlast: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        let _control = self.control.lock();
        let (region, _) = self.named(vm, handle)?;
        // Sums of counts that are being changed are not exact, but this is no moment to shut anybody out.
        let pages = self.mapped(handle.slot, region);
        if pages > 0 {
            return Err(Error::StillMapped { pages });
        }
        let deciding = region.close().map_err(|pages| Error::StillMapped { pages })?;
        if !outlast() {
            return Err(Error::Busy);
        }
        match self.by_sessions(handle.slot) {
            0 => {
                deciding.for_good();
                self.end(handle.slot, region);
                Ok(())
            }
            pages => Err(Error::StillMapped { pages }),
        }
    }

    /// Ends all regions of a VM, as far as nothing leads into them; from now on nothing new does.
    pub(super) fn release(&self, vm: VmId, outlast: impl FnOnce() -> bool) -> Result<(), Error> {
        let _control = self.control.lock();
        let its = |region: &Region| region.see().is_some_and(|seen| seen.owner == vm);
        self.slots().filter(|(_, region)| its(region)).for_each(|(_, region)| region.shut());
        if !outlast() {
            return Err(Error::Busy);
        }
        let mut pages = 0_u64;
        for (slot, region) in self.slots().filter(|(_, region)| its(region)) {
            match self.mapped(slot, region) {
                0 => self.end(slot, region),
                some => pages = pages.saturating_add(some),
            }
        }
        if pages == 0 { Ok(()) } else { Err(Error::StillMapped { pages }) }
    }

    /// Units of a region that tables map, or are about to. Sessions that are under way make it inexact.
    pub(super) fn mapped(&self, slot: u32, region: &Region) -> u64 {
        region.count().saturating_add(self.by_sessions(slot))
    }

    /// Units that sessions have mapped. Exact when the region is closed and the sessions that had found it
    /// open have ended: others only count out, so that what is read is never less than what is there.
    fn by_sessions(&self, slot: u32) -> u64 {
        let balance = self.balance.get(slot as usize).map_or(0, |balance| balance.load(Ordering::Acquire));
        let sum = self.shards.iter().map(|shard| shard.count(slot)).fold(balance, u64::wrapping_add);
        // Read while counts move from shard to shard, it may seem to be below 0.
        if sum >> 63 == 0 { sum } else { 0 }
    }

    /// Empties the slot of a closed region into which nothing leads.
    fn end(&self, slot: u32, region: &Region) {
        self.reorder(|| {
            self.by_guest.remove(slot);
            self.by_host.remove(slot);
            region.empty();
        });
    }
}
