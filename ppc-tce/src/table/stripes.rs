//! Who may change a range of entries: plain stores are several times faster than atomic exchanges, so
//! a range is taken once a last-level table instead of once an entry.

use portcullis_hal::{
    array_of,
    sync::{AtomicBool, Ordering, spin_loop},
};
use portcullis_iommu::Error;

/// Stripes of one tree; a last-level table falls into one of them.
const STRIPES: u32 = 64;
/// Looks at a taken stripe before giving up. Its holder waits for nothing. Few for the model checker, which
/// tries each number of them.
const PATIENCE: u32 = if cfg!(loom) { 2 } else { 1 << 14 };
/// 2^64 divided by the golden ratio: spreads neighbours (Knuth, TAOCP 3, 6.4).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug)]
pub(super) struct Stripes([AtomicBool; STRIPES as usize]);

/// The stripes of one range, taken; given up on drop.
pub(super) struct Exclusive<'s> {
    stripes: &'s Stripes,
    taken: u64,
}

/// The stripe of one last-level table, taken; given up on drop.
pub(super) struct ExclusiveTable<'s>(&'s AtomicBool);

impl Stripes {
    pub(super) fn new() -> Self {
        Self(array_of![AtomicBool::new(false); STRIPES as usize])
    }

    /// Takes the last-level tables `first..=last`, always in the same order.
    pub(super) fn take(&self, first: u64, last: u64) -> Result<Exclusive<'_>, Error> {
        let mut exclusive = Exclusive { stripes: self, taken: 0 };
        let mut wanted = stripes_of(first, last);
        while wanted != 0 {
            let stripe = wanted.trailing_zeros();
            take_flag(self.0.get(stripe as usize).ok_or(Error::Busy)?)?;
            exclusive.taken |= 1 << stripe;
            wanted &= wanted - 1;
        }
        Ok(exclusive)
    }

    /// Takes one last-level table, unless it is taken.
    #[inline]
    pub(super) fn try_table(&self, table: u64) -> Option<ExclusiveTable<'_>> {
        let flag = self.0.get(stripe_of(table) as usize)?;
        // Lazily: a value that is made and dropped would give up what another has taken.
        (!flag.swap(true, Ordering::Acquire)).then(|| ExclusiveTable(flag))
    }
}

fn take_flag(flag: &AtomicBool) -> Result<(), Error> {
    for _ in 0..PATIENCE {
        if !flag.load(Ordering::Relaxed) && !flag.swap(true, Ordering::Acquire) {
            return Ok(());
        }
        spin_loop();
    }
    Err(Error::Busy)
}

impl Drop for ExclusiveTable<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Drop for Exclusive<'_> {
    fn drop(&mut self) {
        while self.taken != 0 {
            let stripe = self.taken.trailing_zeros();
            if let Some(flag) = self.stripes.0.get(stripe as usize) {
                flag.store(false, Ordering::Release);
            }
            self.taken &= self.taken - 1;
        }
    }
}

fn stripes_of(first: u64, last: u64) -> u64 {
    if last - first >= u64::from(STRIPES) {
        return u64::MAX;
    }
    (first..=last).fold(0, |set, table| set | 1 << stripe_of(table))
}

#[inline]
const fn stripe_of(table: u64) -> u64 {
    table.wrapping_mul(SPREAD) >> (u64::BITS - STRIPES.ilog2())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn e13_who_is_refused_a_table_does_not_give_up_what_another_has_taken() {
        let stripes = Stripes::new();
        let range = stripes.take(5, 5).expect("all are free");
        assert!(stripes.try_table(5).is_none());
        assert!(stripes.try_table(5).is_none(), "the refusal gave it up");
        drop(range);
        let table = stripes.try_table(5).expect("given up");
        assert!(stripes.try_table(5).is_none());
        assert!(stripes.try_table(5).is_none(), "the refusal gave it up");
        drop(table);
        assert!(stripes.take(5, 5).is_ok());
    }
}
