//! Counts of sessions: each CPU has its own for every region, and changes them with plain stores.

use const_fn::const_fn;
use portcullis_hal::{
    array_of,
    sync::{AtomicU32, AtomicU64, Ordering},
};

use super::tokens::Tokens;

/// What the sessions of one CPU have counted. Written by the owner of its seat only, and read by others
/// when no session is left that could have changed it.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shard<const N: usize> {
    /// Units counted in less units counted out, by slot of the region. Wraps: what one CPU counts in,
    /// another counts out.
    counts: [AtomicU64; N],
    /// Units that were taken out of the tables in this session, and may still be reached.
    owed: [AtomicU64; N],
    /// Slot of the region that was used last.
    last: AtomicU32,
}

impl<const N: usize> Shard<N> {
    #[const_fn(cfg(not(loom)))]
    pub(super) const fn new() -> Self {
        Self {
            counts: array_of![AtomicU64::new(0); N],
            owed: array_of![AtomicU64::new(0); N],
            last: AtomicU32::new(0),
        }
    }

    pub(super) fn count(&self, slot: u32) -> u64 {
        self.counts.get(slot as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Counts units in, for entries that lead to the region in a slot.
    #[inline]
    pub(crate) fn count_in(&self, slot: u32, tokens: Tokens) {
        add(&self.counts, slot, tokens.spend());
    }

    /// Counts units out.
    #[inline]
    pub(super) fn count_out(&self, slot: u32, tokens: Tokens) {
        add(&self.counts, slot, tokens.spend().wrapping_neg());
    }

    pub(super) fn owe(&self, slot: u32, tokens: Tokens) {
        add(&self.owed, slot, tokens.spend());
    }

    /// Takes what is owed of a slot.
    pub(super) fn take_owed(&self, slot: u32) -> Tokens {
        self.owed.get(slot as usize).map_or(Tokens::NONE, |owed| {
            let tokens = Tokens::of_owed(owed.load(Ordering::Relaxed));
            owed.store(0, Ordering::Relaxed);
            tokens
        })
    }

    #[inline]
    pub(crate) fn last(&self) -> u32 {
        self.last.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn remember(&self, slot: u32) {
        self.last.store(slot, Ordering::Relaxed);
    }
}

/// Nobody else writes these.
#[inline]
fn add(counts: &[AtomicU64], slot: u32, units: u64) {
    if let Some(count) = counts.get(slot as usize) {
        count.store(count.load(Ordering::Relaxed).wrapping_add(units), Ordering::Relaxed);
    }
}
