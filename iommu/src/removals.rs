//! What a driver tells of the memory that it took out of the tables.

use portcullis_hal::PhysAddr;

/// Hears which memory was taken out of the tables, so that what was counted in is counted out.
///
/// A driver tells each mapped byte that it takes out exactly once, from the entry that it cleared, with
/// the tables still closed to others: a listener waits for nobody and its work is bounded. Hardware may
/// reach the memory until the invalidation is confirmed.
pub trait Removals {
    /// Whether anybody listens. When nobody does, a driver need not look at what it clears.
    const WANTED: bool;

    /// `bytes` bytes of memory from `start` were mapped by consecutive entries and are so no more.
    fn removed(&mut self, start: PhysAddr, bytes: u64);
}

/// Nobody listens.
#[derive(Debug)]
pub struct Unheard;

impl Removals for Unheard {
    const WANTED: bool = false;

    #[inline]
    fn removed(&mut self, _: PhysAddr, _: u64) {}
}

/// Tells what the entries of consecutive pages of `page` bytes led to, each run of memory once; returns
/// the bytes. `entries` are as they were taken out; `address` says where an entry leads, if anywhere.
///
/// Entries for memory without a gap differ by the size of the page, so most cost one comparison.
#[inline]
pub fn tell<R: Removals>(
    entries: impl Iterator<Item = u64>,
    page: u64,
    address: impl Fn(u64) -> Option<PhysAddr>,
    removals: &mut R,
) -> u64 {
    let mut bytes = 0_u64;
    let mut run = |first: u64, next: u64| {
        let Some(start) = address(first) else { return };
        let length = next.wrapping_sub(first);
        removals.removed(start, length);
        bytes = bytes.wrapping_add(length);
    };
    let (mut first, mut next, mut step) = (0, 0, 0);
    for entry in entries {
        if entry != next {
            run(first, next);
            first = entry;
            step = if address(entry).is_some() { page } else { 0 };
        }
        next = entry.wrapping_add(step);
    }
    run(first, next);
    bytes
}
