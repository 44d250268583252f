//! Slots: what a CPU makes busy before it changes what lies below.

use portcullis_hal::{
    CacheMaintenance, TableMemory,
    sync::{AtomicU64, Ordering, spin_loop},
};
use portcullis_iommu::Error;

use super::{SecondStage, index, shift};
use crate::{spec::entries::Pte, table_access::TableAccess};

/// How often a busy slot is looked at before the call gives up. The holder is at most a few hundred
/// stores from its end unless it works on a huge range.
const BUSY_POLLS: u32 = 4096;

/// How a slot is made busy.
pub(super) trait Exclusion {
    /// Puts the busy bit into `cell`, which held `seen`; `false` when it holds something else by now.
    fn mark(cell: &AtomicU64, seen: Pte) -> bool;
}

/// Other CPUs may be at work on the same tables.
pub(super) struct Shared;

/// A `&mut` keeps everybody else out: a plain store is enough.
pub(super) struct Exclusive;

impl Exclusion for Shared {
    #[inline]
    fn mark(cell: &AtomicU64, seen: Pte) -> bool {
        cell.compare_exchange(seen.0, seen.0 | Pte::BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl Exclusion for Exclusive {
    #[inline]
    fn mark(cell: &AtomicU64, seen: Pte) -> bool {
        cell.store(seen.0 | Pte::BUSY, Ordering::Relaxed);
        true
    }
}

/// Addresses from `first` to `last`, both inside.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// The level-2 entry above a leaf table, or a higher entry that points to no table.
#[derive(Clone, Copy)]
pub(super) struct Slot<'t> {
    pub(super) cell: &'t AtomicU64,
    pub(super) table: u64,
    pub(super) level: u8,
    /// First address that the slot covers.
    start: u64,
}

impl Slot<'_> {
    /// Last address that the slot covers.
    #[inline]
    pub(super) const fn last(&self) -> u64 {
        self.start | ((1 << shift(self.level)) - 1)
    }

    /// The part of a span that lies in the slot.
    #[inline]
    pub(super) fn part(&self, span: Span) -> Span {
        Span { first: span.first.max(self.start), last: span.last.min(self.last()) }
    }

    /// Whether a part is all that the slot covers.
    #[inline]
    pub(super) const fn is_filled_by(&self, part: Span) -> bool {
        part.first == self.start && part.last == self.last()
    }

    /// What the slot holds, without the busy bit.
    #[inline]
    pub(super) fn pte(&self) -> Pte {
        Pte(self.cell.load(Ordering::Relaxed)).idle()
    }

    /// Stores what the slot holds from now on; nobody works on it any more.
    #[inline]
    pub(super) fn release(&self, pte: Pte) {
        self.cell.store(pte.0, Ordering::Release);
    }
}

impl SecondStage {
    /// The slot that covers an address. A busy entry that points to a table is one that hardware does not
    /// see yet: the way ends there until it does.
    #[inline]
    fn slot<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'t, M, K>,
        address: u64,
    ) -> Result<Slot<'t>, Error> {
        let (mut table, mut level) = (self.root_address, self.format.levels);
        loop {
            let cell = access.entry(table, index(address, level))?;
            if level > 2 {
                let pte = Pte(cell.load(Ordering::Acquire));
                if pte.is_table(level) && !pte.is_busy() {
                    (table, level) = (pte.address(), level - 1);
                    continue;
                }
            }
            return Ok(Slot { cell, table, level, start: address >> shift(level) << shift(level) });
        }
    }

    /// The slot after `slot`; it begins at `slot.last() + 1`, which the caller has seen to exist.
    #[inline]
    pub(super) fn next_slot<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'t, M, K>,
        slot: Slot<'t>,
    ) -> Result<Slot<'t>, Error> {
        let start = slot.last() + 1;
        let place = index(start, 2);
        if slot.level != 2 || place == 0 {
            return self.slot(access, start);
        }
        Ok(Slot { cell: access.entry(slot.table, place)?, start, ..slot })
    }

    /// Makes the slot that covers `address` busy; `likely` is where it was seen last.
    #[inline]
    fn lock_slot<'t, E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'t, M, K>,
        likely: Slot<'t>,
        address: u64,
    ) -> Result<Slot<'t>, Error> {
        let mut slot = likely;
        for _ in 0..BUSY_POLLS {
            let seen = Pte(slot.cell.load(Ordering::Acquire));
            let settled = slot.level == 2 || !seen.is_table(slot.level);
            if settled && !seen.is_busy() && E::mark(slot.cell, seen) {
                return Ok(slot);
            }
            spin_loop();
            slot = self.slot(access, address)?;
        }
        Err(Error::Busy)
    }

    /// Makes all slots of `span` busy and lets `judge` look at each with its part of the span; returns
    /// the first slot and the sum of what was judged. After an error no slot is busy.
    #[inline]
    pub(super) fn lock<'t, E: Exclusion, M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'t, M, K>,
        span: Span,
        mut judge: impl FnMut(&Slot<'t>, Span) -> Result<u64, Error>,
    ) -> Result<(Slot<'t>, u64), Error> {
        let first = self.lock_slot::<E, M, K>(access, self.slot(access, span.first)?, span.first)?;
        let mut slot = first;
        let mut sum = 0_u64;
        loop {
            match judge(&slot, slot.part(span)) {
                Ok(count) => sum = sum.saturating_add(count),
                Err(error) => {
                    self.unlock(access, first, slot.last())?;
                    return Err(error);
                }
            }
            if slot.last() >= span.last {
                return Ok((first, sum));
            }
            let (start, likely) = (slot.last() + 1, self.next_slot(access, slot)?);
            match self.lock_slot::<E, M, K>(access, likely, start) {
                Ok(next) => slot = next,
                Err(error) => {
                    self.unlock(access, first, slot.last())?;
                    return Err(error);
                }
            }
        }
    }

    /// Ends the work on all slots from `first` up to the one that covers `last`, which stay as they are.
    pub(super) fn unlock<'t, M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'t, M, K>,
        first: Slot<'t>,
        last: u64,
    ) -> Result<(), Error> {
        let mut slot = first;
        loop {
            // The next slot is looked up while this one still cannot become a table.
            let next = if slot.last() >= last { None } else { Some(self.next_slot(access, slot)?) };
            slot.release(slot.pte());
            match next {
                Some(next) => slot = next,
                None => return Ok(()),
            }
        }
    }
}
