//! Stores what a checked mapping asks for.

use portcullis_hal::{
    CacheMaintenance, Iova, TableMemory,
    page_pool::PageRun,
    sync::{AtomicU64, Ordering},
};
use portcullis_iommu::Error;

use super::{
    PAGE, index,
    leaves::{fill, first_present, leaves},
    request::Request,
    reservation::Reservation,
    shift,
    slots::{Slot, Span},
};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// Tables that mapping `part` in a busy slot needs, if nothing is in the way.
#[inline]
pub(super) fn need_for<M: TableMemory, K: CacheMaintenance>(
    tables: &TableAccess<'_, M, K>,
    request: &Request,
    slot: &Slot<'_>,
    part: Span,
) -> Result<u64, Error> {
    let pte = slot.pte();
    if pte.is_table(slot.level) {
        return match first_present(leaves(tables, pte, part)?) {
            None => Ok(0),
            Some(at) => Err(Error::AlreadyMapped { iova: Iova::new(part.first + at as u64 * PAGE) }),
        };
    }
    if pte.is_present() {
        return Err(Error::AlreadyMapped { iova: Iova::new(part.first) });
    }
    Ok(request.tables_below(slot.level, part))
}

/// Stores the entries of a checked mapping whose pages are reserved.
pub(super) struct Filler<'f, 'p, M: TableMemory, K, B> {
    pub(super) tables: &'f TableAccess<'p, M, K>,
    pub(super) request: &'f Request,
    pub(super) leaf_bits: B,
    pub(super) reservation: &'f mut Option<Reservation<'p, M>>,
}

impl<M: TableMemory, K: CacheMaintenance, B: Fn(u8) -> u64> Filler<'_, '_, M, K, B> {
    /// Fills a busy slot; returns what it holds from now on.
    #[inline]
    pub(super) fn fill_slot(&mut self, slot: &Slot<'_>) -> Result<Pte, Error> {
        let (pte, part) = (slot.pte(), slot.part(self.request.span));
        if !pte.is_table(slot.level) {
            return self.make_entry(slot.level, part);
        }
        let entries = leaves(self.tables, pte, part)?;
        self.fill_leaves(entries, part.first);
        self.tables.write_back(entries);
        Ok(pte)
    }

    #[inline]
    fn fill_leaves(&self, entries: &[AtomicU64], first: u64) {
        fill(entries, first.wrapping_add(self.request.delta) | (self.leaf_bits)(1));
    }

    /// The entry of `level` for `part`: a page, or a new table that hardware does not know yet.
    fn make_entry(&mut self, level: u8, part: Span) -> Result<Pte, Error> {
        if self.request.is_page(level, part) {
            return Ok(Pte(part.first.wrapping_add(self.request.delta) | (self.leaf_bits)(level)));
        }
        let run: PageRun =
            self.reservation.as_mut().and_then(Reservation::pop).ok_or(Error::NeedPages { count: 1 })?;
        let address = self.tables.pool.address(&run);
        if level == 2 {
            let first = index(part.first, 1);
            let count = index(part.last, 1) + 1 - first;
            self.fill_leaves(self.tables.entries(address.as_u64(), first, count)?, part.first);
        } else {
            self.fill_table(address.as_u64(), level - 1, part)?;
        }
        self.tables.write_back(self.tables.pool.cells(&run));
        Ok(Pte::table(address))
    }

    /// Fills a new table whose entries are of `level`, 2 or higher.
    fn fill_table(&mut self, table: u64, level: u8, part: Span) -> Result<(), Error> {
        let mut first = part.first;
        loop {
            let entry_last = first | ((1 << shift(level)) - 1);
            let last = entry_last.min(part.last);
            let pte = self.make_entry(level, Span { first, last })?;
            self.tables.entry(table, index(first, level))?.store(pte.0, Ordering::Relaxed);
            if last == part.last {
                return Ok(());
            }
            first = last + 1;
        }
    }
}
