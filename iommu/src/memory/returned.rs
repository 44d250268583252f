//! What an unmap took out of each region, kept until hardware has confirmed it.

use heapless::Vec;
use portcullis_hal::PhysAddr;

use super::{RegisteredMemory, tokens::Tokens};
use crate::{context::Backing, removals::Removals};

/// Tokens made again from what a driver took out of the tables.
///
/// They go back to their regions when hardware has confirmed the invalidation. Dropped without that,
/// they never do: devices may still reach the memory.
pub(crate) struct Returned<'m, const N: usize, const CPUS: usize> {
    memory: &'m RegisteredMemory<N, CPUS>,
    backing: &'m Backing,
    /// Slot and tokens of the region that was met first.
    first: Option<(u32, Tokens)>,
    /// The other regions, which are rare.
    others: Vec<(u32, Tokens), N>,
}

impl<'m, const N: usize, const CPUS: usize> Returned<'m, N, CPUS> {
    #[inline]
    pub(crate) const fn new(memory: &'m RegisteredMemory<N, CPUS>, backing: &'m Backing) -> Self {
        Self { memory, backing, first: None, others: Vec::new() }
    }

    /// The invalidation is confirmed: no device reaches the memory through these entries any more.
    #[inline]
    pub(crate) fn give_back(&mut self) {
        let by_sessions = self.backing.is_entries();
        while let Some((slot, tokens)) = self.others.pop() {
            self.memory.give_back(slot, tokens, by_sessions);
        }
        if let Some((slot, tokens)) = self.first.take() {
            self.memory.give_back(slot, tokens, by_sessions);
        }
    }

    #[inline]
    fn count(&mut self, slot: u32, tokens: Tokens) {
        match &mut self.first {
            Some((counted, more)) if *counted == slot => more.join(tokens),
            Some(_) => self.count_other(slot, tokens),
            none => *none = Some((slot, tokens)),
        }
    }

    #[inline(never)]
    fn count_other(&mut self, slot: u32, tokens: Tokens) {
        match self.others.iter_mut().find(|(counted, _)| *counted == slot) {
            Some((_, counted)) => counted.join(tokens),
            // There are no more slots than there is room for.
            None => drop(self.others.push((slot, tokens))),
        }
    }

    /// Counts a run of memory that begins in another region than the last one, or ends there.
    #[inline(never)]
    fn count_run(&mut self, start: PhysAddr, bytes: u64) {
        let memory = self.memory;
        memory.each_region(start, bytes, |slot, bytes| self.count(slot, Tokens::of_removed(bytes)));
    }
}

impl<const N: usize, const CPUS: usize> Removals for Returned<'_, N, CPUS> {
    const WANTED: bool = true;

    /// Memory of no region is a device's registers: nobody counts those.
    #[inline]
    fn removed(&mut self, start: PhysAddr, bytes: u64) {
        // Asked only now: whoever mapped this has decided it before.
        let Some(hint) = self.backing.hint() else { return };
        if self.memory.holds(hint, start, bytes) {
            self.count(hint, Tokens::of_removed(bytes));
        } else {
            self.count_run(start, bytes);
        }
    }
}
