//! A guest's memory, as the hypervisor reaches it, and the guest's own way to it.

use core::ptr::NonNull;

use portcullis_hal::PhysAddr;

/// What `CR3` and table entries hold of addresses (AMD64 manual, volume 2, 5.3).
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// Memory that is a guest's, from its address 0 on. A value of it may be copied: every access is one volatile load or
/// store, whoever else accesses the memory meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct GuestMemory {
    start: NonNull<u64>,
    bytes: u64,
}

// SAFETY: accesses are volatile, inside memory that is nothing else's.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// The memory at `start`.
    ///
    /// # Safety
    /// It must be that long, stay, be mapped one to one and hold nothing that Rust references or other guests reach.
    #[must_use]
    pub const unsafe fn new(start: NonNull<u64>, bytes: u64) -> Self {
        Self { start, bytes }
    }

    /// Where it lies.
    #[must_use]
    pub fn address(self) -> PhysAddr {
        PhysAddr::new(self.start.addr().get() as u64)
    }

    /// How long it is.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// The aligned word at guest-physical `at`; `None` beyond the memory.
    #[must_use]
    pub fn read(self, at: u64) -> Option<u64> {
        let index = self.index(at)?;
        // SAFETY: inside the memory that `new`'s caller vouched for, and aligned.
        Some(unsafe { self.start.add(index).read_volatile() })
    }

    /// Changes the aligned word at guest-physical `at`; `None` beyond the memory.
    #[must_use]
    pub fn write(self, at: u64, value: u64) -> Option<()> {
        let index = self.index(at)?;
        // SAFETY: as for `read`.
        unsafe { self.start.add(index).write_volatile(value) }
        Some(())
    }

    fn index(self, at: u64) -> Option<usize> {
        let inside = at.is_multiple_of(8) && at.checked_add(8)? <= self.bytes;
        inside.then_some((at / 8) as usize)
    }

    /// Fills `bytes` from guest-virtual `at` on, as far as the guest's tables lead to its memory; how many there were.
    #[must_use]
    pub fn fetch(self, cr3: u64, at: u64, bytes: &mut [u8]) -> usize {
        let mut page = None;
        for (got, byte) in bytes.iter_mut().enumerate() {
            let at = at.wrapping_add(got as u64);
            if got == 0 || at.is_multiple_of(4096) {
                page = self.walk(cr3, at & !0xfff);
            }
            let Some(word) = page.and_then(|page| self.read(page | at & 0xff8)) else { return got };
            *byte = (word >> (at % 8 * 8)) as u8;
        }
        bytes.len()
    }

    /// Where the guest's own tables of four levels lead, by their addresses alone: nobody's rights are judged.
    fn walk(self, cr3: u64, at: u64) -> Option<u64> {
        let mut table = cr3 & ADDRESS;
        for level in (0..4).rev() {
            let entry = self.read(table + (at >> (12 + 9 * level) & 0x1ff) * 8)?;
            if entry & PRESENT == 0 {
                return None;
            }
            let inside = (1u64 << (12 + 9 * level)) - 1;
            if level == 0 || level < 3 && entry & LARGE != 0 {
                return Some(entry & ADDRESS & !inside | at & inside);
            }
            table = entry & ADDRESS;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_memory(act: impl FnOnce(GuestMemory)) {
        let mut words = vec![0u64; 5 * 512];
        let start = NonNull::new(words.as_mut_ptr()).expect("memory");
        // SAFETY: the vector is that long and lives longer than `act`.
        act(unsafe { GuestMemory::new(start, 5 * 4096) });
    }

    #[test]
    fn x01_words_are_in_the_guests_memory_or_nowhere() {
        with_memory(|memory| {
            assert_eq!(memory.write(5 * 4096 - 8, 7), Some(()));
            assert_eq!(memory.read(5 * 4096 - 8), Some(7));
            for outside in [5 * 4096, 5 * 4096 - 4, u64::MAX - 7, u64::MAX] {
                assert_eq!((memory.read(outside), memory.write(outside, 1)), (None, None), "{outside:#x}");
            }
        });
    }

    #[test]
    fn instructions_are_found_through_the_guests_tables() {
        with_memory(|memory| {
            // Level 4 at 0x1000, 3 at 0x2000, 2 at 0x3000; 2 MiB pages one to one, then one small page by level 1 at 0.
            let writes = [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x87), (0x3008, 7), (0, 0x4007)];
            writes.iter().for_each(|&(at, value)| memory.write(at, value).expect("in memory"));
            memory.write(0x4000, 0x0807_0605_0403_0201).expect("in memory");
            let mut bytes = [0; 4];
            assert_eq!((memory.fetch(0x1000, 0x4002, &mut bytes), bytes), (4, [3, 4, 5, 6]));
            assert_eq!((memory.fetch(0x1000, 0x20_0000, &mut bytes), bytes), (4, [1, 2, 3, 4]));
            assert_eq!(memory.fetch(0x1000, 5 * 4096 - 2, &mut bytes), 2, "the memory ends");
            assert_eq!(memory.fetch(0x1000, 0x40_0000, &mut bytes), 0, "not mapped");
            assert_eq!(memory.fetch(0xffff_ffff_f000, 0, &mut bytes), 0, "no table");
        });
    }
}
