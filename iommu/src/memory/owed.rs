//! What a session took out of each region, kept until hardware has confirmed it.

use portcullis_hal::PhysAddr;

use super::{REGIONS, RegisteredMemory, shards::Shard, tokens::Tokens};
use crate::removals::Removals;

// One bit for each slot.
const _: () = assert!(REGIONS <= 64);

/// Units of registered memory that a session took out of tables and did not count out yet, because
/// devices may still reach the memory.
///
/// [`settle`](crate::Session::settle) counts them out. Dropped without that, they never are.
#[must_use = "dropped without being settled, it keeps the regions for ever"]
pub struct Owed<'a, const CPUS: usize> {
    memory: &'a RegisteredMemory<REGIONS, CPUS>,
    shard: &'a Shard<REGIONS>,
    /// Slot and tokens of the region that was met first.
    first: Option<(u32, Tokens)>,
    /// Slots of the other regions, whose tokens the shard holds.
    others: u64,
}

impl<'a, const CPUS: usize> Owed<'a, CPUS> {
    #[inline]
    pub(crate) const fn new(memory: &'a RegisteredMemory<REGIONS, CPUS>, shard: &'a Shard<REGIONS>) -> Self {
        Self { memory, shard, first: None, others: 0 }
    }

    /// Whether it is of the CPU that this shard belongs to.
    #[inline]
    pub(crate) fn is_of(&self, shard: &Shard<REGIONS>) -> bool {
        core::ptr::eq(self.shard, shard)
    }

    /// Hardware has confirmed that nothing is reached through these entries any more.
    #[inline]
    pub(crate) fn count_out(mut self) {
        if let Some((slot, tokens)) = self.first.take() {
            self.shard.count_out(slot, tokens);
        }
        if self.others != 0 {
            self.count_others_out();
        }
    }

    #[inline(never)]
    fn count_others_out(&mut self) {
        while let Some((slot, tokens)) = self.next_other() {
            self.shard.count_out(slot, tokens);
        }
    }

    fn next_other(&mut self) -> Option<(u32, Tokens)> {
        if self.others == 0 {
            return None;
        }
        let slot = self.others.trailing_zeros();
        self.others &= self.others.wrapping_sub(1);
        Some((slot, self.shard.take_owed(slot)))
    }

    #[inline]
    fn count(&mut self, slot: u32, tokens: Tokens) {
        match &mut self.first {
            Some((counted, more)) if *counted == slot => more.join(tokens),
            Some(_) => {
                self.others |= 1 << (slot % u64::BITS);
                self.shard.owe(slot, tokens);
            }
            none => *none = Some((slot, tokens)),
        }
    }

    /// Counts a run of memory that begins in another region than the last one, or ends there.
    #[inline(never)]
    fn count_run(&mut self, start: PhysAddr, bytes: u64) {
        let (memory, shard) = (self.memory, self.shard);
        memory.each_region(start, bytes, |slot, bytes| {
            shard.remember(slot);
            self.count(slot, Tokens::of_removed(bytes));
        });
    }
}

impl<const CPUS: usize> Removals for Owed<'_, CPUS> {
    const WANTED: bool = true;

    #[inline]
    fn removed(&mut self, start: PhysAddr, bytes: u64) {
        let hint = self.first.as_ref().map_or_else(|| self.shard.last(), |(slot, _)| *slot);
        if self.memory.holds(hint, start, bytes) {
            self.count(hint, Tokens::of_removed(bytes));
        } else {
            self.count_run(start, bytes);
        }
    }
}

impl<const CPUS: usize> Drop for Owed<'_, CPUS> {
    #[inline]
    fn drop(&mut self) {
        if self.others != 0 {
            // The next session must not find them in its shard.
            while self.next_other().is_some() {}
        }
    }
}
