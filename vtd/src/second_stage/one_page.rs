//! One small page in a leaf table that exists: the common case, without the machinery for ranges.
//!
//! Whatever is not common (a table is missing, a larger page is in the way, another CPU is at work,
//! hardware does not snoop, an argument is wrong) is declined with nothing changed, and the general way
//! deals with it.

use portcullis_hal::{
    Access, CacheMaintenance, DmaExtent, Iova, IovaRange, PhysAddr, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Removals;

use super::{INTERRUPTS, PAGE, SecondStage, entry_for, slots::Exclusion};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// A leaf entry, with the slot above its table and what that holds.
pub(super) struct Leaf<'t> {
    slot: &'t AtomicU64,
    slot_pte: Pte,
    pub(super) entry: &'t AtomicU64,
}

impl SecondStage {
    /// Maps one page; `false` when it declines.
    #[inline]
    pub(super) fn map_one_page<E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> bool {
        let physical = extent.start().as_u64();
        let fits = physical.is_multiple_of(PAGE) && physical <= self.last_physical;
        if !fits || extent.bytes() != PAGE || !access.intersects(Access::all()) {
            return false;
        }
        let Some(busy) = self.enter_leaf::<E, M, K>(tables, iova) else { return false };
        let free = busy.entry.load(Ordering::Relaxed) == 0;
        if free {
            let bits = Pte::leaf_bits(1, access, self.snoop.load(Ordering::Relaxed));
            busy.entry.store(physical | bits, Ordering::Relaxed);
        }
        busy.slot.store(busy.slot_pte.0, Ordering::Release);
        free
    }

    /// Unmaps one page and returns the bytes that were mapped; `None` when it declines.
    #[inline]
    pub(super) fn unmap_one_page<E: Exclusion, M: TableMemory, K: CacheMaintenance, T: Removals>(
        &self,
        tables: &TableAccess<'_, M, K>,
        range: IovaRange,
        removals: &mut T,
    ) -> Option<u64> {
        if range.bytes() != PAGE {
            return None;
        }
        let busy = self.enter_leaf::<E, M, K>(tables, range.start())?;
        let old = Pte(busy.entry.load(Ordering::Relaxed));
        busy.entry.store(0, Ordering::Relaxed);
        busy.slot.store(busy.slot_pte.0, Ordering::Release);
        let was_mapped = old != Pte::EMPTY;
        if T::WANTED && was_mapped {
            removals.removed(PhysAddr::new(old.address()), PAGE);
        }
        Some(if was_mapped { PAGE } else { 0 })
    }

    /// Finds the leaf of a page that can be mapped and makes the slot above it busy.
    #[inline]
    fn enter_leaf<'t, E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'t, M, K>,
        iova: Iova,
    ) -> Option<Leaf<'t>> {
        let address = iova.as_u64();
        // The interrupt addresses are one whole megabyte.
        let is_interrupt = address >> 20 == INTERRUPTS.0 >> 20;
        if !address.is_multiple_of(PAGE)
            || address > self.last_address
            || is_interrupt
            || tables.cache.is_some()
        {
            return None;
        }
        let leaf = self.find_leaf(tables, address)?;
        E::mark(leaf.slot, leaf.slot_pte).then_some(leaf)
    }

    /// The leaf entry for an address of the aperture, if tables on which nobody works lead there.
    #[inline]
    pub(super) fn find_leaf<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'t, M, K>,
        address: u64,
    ) -> Option<Leaf<'t>> {
        let mut table = tables.table(&self.root)?;
        let down = |table, level| {
            let entry: &AtomicU64 = entry_for(table, address, level)?;
            tables.table_of(Pte(entry.load(Ordering::Acquire)))
        };
        // Unrolled: with the level a constant, a step costs half.
        if self.format.levels > 4 {
            table = down(table, 5)?;
        }
        if self.format.levels > 3 {
            table = down(table, 4)?;
        }
        let slot = entry_for(down(table, 3)?, address, 2)?;
        let slot_pte = Pte(slot.load(Ordering::Acquire));
        let entry = entry_for(tables.table_of(slot_pte)?, address, 1)?;
        Some(Leaf { slot, slot_pte, entry })
    }
}
