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

/// Joins pages that follow each other before it tells of them; what is left is told on drop.
#[derive(Debug)]
pub struct Joined<'r, R: Removals> {
    removals: &'r mut R,
    start: u64,
    bytes: u64,
}

impl<'r, R: Removals> Joined<'r, R> {
    /// Nothing to tell yet.
    #[inline]
    pub const fn new(removals: &'r mut R) -> Self {
        Self { removals, start: 0, bytes: 0 }
    }

    /// One more page.
    #[inline]
    pub fn removed(&mut self, page: PhysAddr, bytes: u64) {
        if page.as_u64() == self.start.wrapping_add(self.bytes) && self.bytes != 0 {
            self.bytes = self.bytes.wrapping_add(bytes);
            return;
        }
        self.tell();
        (self.start, self.bytes) = (page.as_u64(), bytes);
    }

    #[inline]
    fn tell(&mut self) {
        if self.bytes != 0 {
            self.removals.removed(PhysAddr::new(self.start), self.bytes);
        }
    }
}

impl<R: Removals> Drop for Joined<'_, R> {
    #[inline]
    fn drop(&mut self) {
        self.tell();
    }
}
