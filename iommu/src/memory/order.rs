//! Slots in an order, for binary search by CPUs that take no lock.

use const_fn::const_fn;
use portcullis_hal::{
    array_of,
    sync::{AtomicU32, Ordering},
};

/// Up to `N` slot numbers, sorted by whoever changes them.
///
/// One CPU at a time changes it. A search at that moment ends, too, but may find anything: its caller
/// looks at the version that is kept beside.
#[derive(Debug)]
pub(super) struct Order<const N: usize> {
    count: AtomicU32,
    slots: [AtomicU32; N],
}

impl<const N: usize> Order<N> {
    #[const_fn(cfg(not(loom)))]
    pub(super) const fn new() -> Self {
        Self { count: AtomicU32::new(0), slots: array_of![AtomicU32::new(0); N] }
    }

    /// The first slot of which `is_before` does not hold.
    #[inline]
    pub(super) fn search(&self, is_before: impl Fn(u32) -> bool) -> Option<u32> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if is_before(self.at(middle)?) {
                low = middle.wrapping_add(1);
            } else {
                high = middle;
            }
        }
        if low < self.len() { self.at(low) } else { None }
    }

    /// Puts `slot` behind all slots of which `is_before` holds.
    pub(super) fn insert(&self, slot: u32, is_before: impl Fn(u32) -> bool) {
        let (end, mut moved, mut passed) = (self.len(), slot, false);
        for (place, cell) in self.slots.iter().enumerate().take(end.saturating_add(1)) {
            let here = cell.load(Ordering::Relaxed);
            passed = passed || place == end || !is_before(here);
            if passed {
                cell.store(moved, Ordering::Relaxed);
                moved = here;
            }
        }
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes `slot` out.
    pub(super) fn remove(&self, slot: u32) {
        let Some(place) = (0..self.len()).find(|&place| self.at(place) == Some(slot)) else { return };
        for (cell, next) in self.slots.iter().zip(self.slots.iter().skip(1)).skip(place) {
            cell.store(next.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed) as usize
    }

    #[inline]
    fn at(&self, place: usize) -> Option<u32> {
        self.slots.get(place).map(|slot| slot.load(Ordering::Relaxed))
    }
}
