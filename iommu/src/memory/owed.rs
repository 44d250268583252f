//! What a session took out of each region, kept until hardware has confirmed it.

use core::mem;

use portcullis_hal::{DmaExtent, PhysAddr};

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
    units: Units,
}

/// What is owed, in a value that calls take and give back: behind a reference it would lie in memory for all of the
/// usual call, which needs no call.
struct Units {
    /// Slot of the region that was met first; before that, of the one that this CPU used last.
    slot: u32,
    /// Its memory, if it does not end before the session.
    host: Option<DmaExtent>,
    /// Tokens of that region.
    first: Tokens,
    /// Slots of the other regions, whose tokens the shard holds.
    others: u64,
}

impl<'a, const CPUS: usize> Owed<'a, CPUS> {
    #[inline(always)]
    pub(crate) fn new(memory: &'a RegisteredMemory<REGIONS, CPUS>, shard: &'a Shard<REGIONS>) -> Self {
        Self { memory, shard, units: Units::of(memory, shard.last()) }
    }

    /// Whether it is of the CPU that this shard belongs to.
    #[inline]
    pub(crate) fn is_of(&self, shard: &Shard<REGIONS>) -> bool {
        core::ptr::eq(self.shard, shard)
    }

    /// Hardware has confirmed that nothing is reached through these entries any more.
    #[inline(always)]
    pub(crate) fn count_out(mut self) {
        let Units { slot, first, others, .. } = mem::replace(&mut self.units, Units::NONE);
        if first.count() != 0 {
            self.shard.count_out(slot, first);
        }
        if others != 0 {
            count_others_out(self.shard, others);
        }
    }
}

impl Units {
    const NONE: Self = Self { slot: 0, host: None, first: Tokens::NONE, others: 0 };

    /// None yet, to begin with the region in a slot.
    #[inline(always)]
    fn of<const CPUS: usize>(memory: &RegisteredMemory<REGIONS, CPUS>, slot: u32) -> Self {
        Self { slot, host: memory.open_extent(slot), first: Tokens::NONE, others: 0 }
    }

    /// Whether memory is all of the region that was met first.
    #[inline(always)]
    fn holds(&self, start: PhysAddr, bytes: u64) -> bool {
        let offset = |host: &DmaExtent| start.as_u64().wrapping_sub(host.start().as_u64());
        self.host.is_some_and(|host| host.part(offset(&host), bytes).is_some())
    }

    fn count<const CPUS: usize>(
        &mut self,
        memory: &RegisteredMemory<REGIONS, CPUS>,
        shard: &Shard<REGIONS>,
        slot: u32,
        tokens: Tokens,
    ) {
        if self.first.count() == 0 {
            *self = Self { others: self.others, ..Self::of(memory, slot) };
        }
        if slot == self.slot {
            self.first.join(tokens);
        } else {
            self.others |= 1 << (slot % u64::BITS);
            shard.owe(slot, tokens);
        }
    }

    /// Counts a run of memory that begins in another region than the last one, or ends there.
    #[cold]
    #[inline(never)]
    fn and_run<const CPUS: usize>(
        mut self,
        memory: &RegisteredMemory<REGIONS, CPUS>,
        shard: &Shard<REGIONS>,
        start: PhysAddr,
        bytes: u64,
    ) -> Self {
        memory.each_region(start, bytes, |slot, bytes| {
            shard.remember(slot);
            self.count(memory, shard, slot, Tokens::of_removed(bytes));
        });
        self
    }
}

impl<const CPUS: usize> Removals for Owed<'_, CPUS> {
    const WANTED: bool = true;

    #[inline(always)]
    fn removed(&mut self, start: PhysAddr, bytes: u64) {
        if self.units.holds(start, bytes) {
            self.units.first.join(Tokens::of_removed(bytes));
        } else {
            let units = mem::replace(&mut self.units, Units::NONE);
            self.units = units.and_run(self.memory, self.shard, start, bytes);
        }
    }
}

impl<const CPUS: usize> Drop for Owed<'_, CPUS> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.units.others != 0 {
            forget_others(self.shard, self.units.others);
        }
    }
}

#[cold]
#[inline(never)]
fn count_others_out(shard: &Shard<REGIONS>, mut others: u64) {
    while let Some((slot, tokens)) = next_other(shard, &mut others) {
        shard.count_out(slot, tokens);
    }
}

/// The next session must not find them in its shard.
#[cold]
#[inline(never)]
fn forget_others(shard: &Shard<REGIONS>, mut others: u64) {
    while next_other(shard, &mut others).is_some() {}
}

fn next_other(shard: &Shard<REGIONS>, others: &mut u64) -> Option<(u32, Tokens)> {
    if *others == 0 {
        return None;
    }
    let slot = others.trailing_zeros();
    *others &= others.wrapping_sub(1);
    Some((slot, shard.take_owed(slot)))
}
