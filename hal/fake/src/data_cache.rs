//! The CPUs' caches in front of memory that a device reads and writes past them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use portcullis_hal::{PhysAddr, PhysRange};

use crate::memory::FakeMemory;

/// Bytes of one line.
const LINE: u64 = 64;

/// A line as a CPU holds it.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    words: [u64; 8],
    is_dirty: bool,
}

/// Lines by address, and what was flushed.
#[derive(Debug, Default)]
struct State {
    lines: BTreeMap<u64, Line>,
    flushed: Vec<Option<PhysRange>>,
}

/// What CPUs hold of a [`FakeMemory`]: a line stays until it is flushed, evicted, or snooped by a device that must.
/// Of CPU and a device that does not, whichever writes memory last wins.
#[derive(Debug, Default)]
pub(crate) struct DataCache(Mutex<State>);

impl DataCache {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test thread died here")
    }

    fn end(memory: &FakeMemory, address: u64, line: Line) {
        if line.is_dirty {
            let bytes: Vec<u8> = line.words.iter().flat_map(|word| word.to_le_bytes()).collect();
            memory.write(address, &bytes);
        }
    }
}

impl FakeMemory {
    fn line(&self, address: u64) -> Line {
        let words = [0, 8, 16, 24, 32, 40, 48, 56].map(|offset| self.read64(address + offset));
        Line { words: words.map(|word| word.expect("memory is there")), is_dirty: false }
    }

    /// A CPU stores 8 bytes, which stay in its cache.
    pub fn store_in_cache(&self, address: u64, value: u64) {
        let start = address / LINE * LINE;
        let mut cache = self.data_cache.state();
        let line = cache.lines.entry(start).or_insert_with(|| self.line(start));
        line.words[(address % LINE / 8) as usize] = value;
        line.is_dirty = true;
    }

    /// A CPU loads 8 bytes through its cache, which keeps the line.
    #[must_use]
    pub fn load_through_cache(&self, address: u64) -> u64 {
        let start = address / LINE * LINE;
        let mut cache = self.data_cache.state();
        cache.lines.entry(start).or_insert_with(|| self.line(start)).words[(address % LINE / 8) as usize]
    }

    /// The caches make room: dirty lines overwrite memory, whoever wrote there meanwhile.
    pub fn evict_lines(&self) {
        let lines = std::mem::take(&mut self.data_cache.state().lines);
        lines.into_iter().for_each(|(address, line)| DataCache::end(self, address, line));
    }

    /// Takes the notes of what was flushed, in order; `None` stands for everything.
    #[must_use]
    pub fn take_flushes(&self) -> Vec<Option<PhysRange>> {
        std::mem::take(&mut self.data_cache.state().flushed)
    }

    /// Writes back and drops the lines that hold part of `range`, or all, and notes it.
    pub(crate) fn flush_lines(&self, range: Option<PhysRange>) {
        self.data_cache.state().flushed.push(range);
        self.end_lines(range);
    }

    /// What a snooped access of a device does to the lines it touches. Nobody asked for it, so nobody notes it.
    pub(crate) fn snoop_lines(&self, address: u64, bytes: u64) {
        let range = PhysRange::new(PhysAddr::new(address), bytes).expect("a transfer does not wrap");
        self.end_lines(Some(range));
    }

    fn end_lines(&self, range: Option<PhysRange>) {
        let mut cache = self.data_cache.state();
        let holds_part = |&address: &u64| {
            let line = PhysRange::new(PhysAddr::new(address), LINE).expect("a line does not wrap");
            range.is_none_or(|range| range.overlaps(line))
        };
        let hit: Vec<u64> = cache.lines.keys().copied().filter(holds_part).collect();
        for address in hit {
            if let Some(line) = cache.lines.remove(&address) {
                DataCache::end(&self.whole(), address, line);
            }
        }
    }
}
