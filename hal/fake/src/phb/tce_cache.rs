//! The TCE cache: lines of eight TCEs as memory had them when they were fetched.

use std::collections::HashMap;

use crate::memory::FakeMemory;

const LINE_TCES: u64 = 8;

/// Which line: of which PE, at which level over the leaves, from which entry on. The tag says nothing of
/// where the table lies: a TVE that is replaced without a kill goes on with the old entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Tag {
    pe: u16,
    window: u8,
    above: u32,
    first: u64,
}

#[derive(Default)]
pub(super) struct TceCache {
    lines: HashMap<Tag, [u64; LINE_TCES as usize]>,
}

impl TceCache {
    /// The entry `number` (counted over all tables of its level), which lies at `address` in memory.
    pub(super) fn entry(
        &mut self,
        memory: &FakeMemory,
        (pe, window, above): (u16, u8, u32),
        number: u64,
        address: u64,
    ) -> Option<u64> {
        let position = number % LINE_TCES;
        let tag = Tag { pe, window, above, first: number - position };
        if let Some(line) = self.lines.get(&tag) {
            return Some(line[position as usize]);
        }
        let mut line = [0; LINE_TCES as usize];
        for (cell, at) in line.iter_mut().zip((address - position * 8..).step_by(8)) {
            // Cells of the fake memory hold bytes in little-endian order, TCEs are big-endian.
            *cell = memory.walk(at)?.swap_bytes();
        }
        self.lines.insert(tag, line);
        Some(line[position as usize])
    }

    pub(super) fn kill_pe(&mut self, pe: u16) {
        self.lines.retain(|tag, _| tag.pe != pe);
    }

    pub(super) fn kill_all(&mut self) {
        self.lines.clear();
    }

    pub(super) fn lines_of(&self, pe: u16) -> usize {
        self.lines.keys().filter(|tag| tag.pe == pe).count()
    }
}
