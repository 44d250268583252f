//! Nested tables: where a guest's memory lies (AMD64 manual, volume 2, 15.25; formats of 5.3).

use core::sync::atomic::Ordering;

use portcullis_hal::{PagePool, PageRun, PhysAddr, PoolError, TableMemory, sync::AtomicU64};

use super::caching::{MemoryType, Pat, mtrr::Run};

/// Bytes of a small page.
pub const SMALL: u64 = 4096;
/// Bytes of a large page.
pub const LARGE: u64 = 2 << 20;
/// End of what four levels translate.
const END: u64 = 1 << 48;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
/// A nested access counts as one of a user (15.25.5): without this bit it faults.
const USER: u64 = 1 << 2;
/// PWT and PCD: the low bits of an index into the page attribute table.
const INDEX: u64 = 3 << 3;
/// The hypervisor's table, by which the CPU reads the index (15.25.8): the image leaves it as it is after reset, where
/// the types of the lower half are those of the upper.
const HOST_PAT: Pat = Pat::RESET;
const IS_LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const TABLE: u64 = PRESENT | WRITE | USER;

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Memory, executable, cached so; a type that the hypervisor's table lacks is uncacheable.
    Memory(MemoryType),
    /// Registers of a device: uncacheable, never executed.
    Registers,
}

impl Mapping {
    /// Bits of a leaf entry.
    fn bits(self) -> u64 {
        match self {
            Self::Memory(memory_type) => index(memory_type),
            Self::Registers => index(MemoryType::Uncacheable) | NO_EXECUTE,
        }
    }

    /// From a leaf entry.
    fn of(entry: u64) -> Self {
        let is_same = |memory_type: &MemoryType| index(*memory_type) == entry & INDEX;
        let found = [MemoryType::WriteBack, MemoryType::WriteThrough].into_iter().find(is_same);
        if entry & NO_EXECUTE != 0 {
            Self::Registers
        } else {
            Self::Memory(found.unwrap_or(MemoryType::Uncacheable))
        }
    }
}

/// The bits of an entry that choose a type; all ones, which are UC, for one that is not there.
fn index(memory_type: MemoryType) -> u64 {
    HOST_PAT.index_of(memory_type).map_or(INDEX, |index| (index as u64) << 3 & INDEX)
}

/// Why nested tables cannot be changed so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NptError {
    /// An address or the size is not a multiple of 4096, or the range is empty or too far up.
    BadRange {
        /// First guest-physical address.
        guest: u64,
        /// Length.
        bytes: u64,
    },
    /// Something is mapped there.
    Mapped {
        /// Guest-physical address.
        guest: u64,
    },
    /// A large page lies partly outside the range.
    Split {
        /// Its guest-physical address.
        guest: u64,
    },
    /// No pages for tables.
    Pool(PoolError),
}

impl From<PoolError> for NptError {
    fn from(error: PoolError) -> Self {
        Self::Pool(error)
    }
}

/// The nested tables of one guest. Its pages go back to the pool with it: by then no CPU may run the guest.
#[derive(Debug)]
pub struct NestedTables<'p, M: TableMemory> {
    pool: &'p PagePool<M>,
    root: u64,
}

impl<'p, M: TableMemory> NestedTables<'p, M> {
    /// Tables that map nothing.
    ///
    /// # Errors
    /// The pool's.
    pub fn new(pool: &'p PagePool<M>) -> Result<Self, NptError> {
        let root = pool.take(1)?;
        Ok(Self { pool, root: pool.address(&root).as_u64() })
    }

    /// Physical address of the first table, for the VMCB.
    #[must_use]
    pub const fn root(&self) -> u64 {
        self.root
    }

    /// Maps `bytes` at guest-physical `guest` to physical `host`, with large pages where both allow it. After an error
    /// part of the range may be mapped.
    ///
    /// # Errors
    /// [`NptError::BadRange`], [`NptError::Mapped`], [`NptError::Pool`].
    pub fn map(&mut self, guest: u64, host: PhysAddr, bytes: u64, of: Mapping) -> Result<(), NptError> {
        check(guest, host.as_u64(), bytes)?;
        let attributes = TABLE | of.bits();
        let mut done = 0;
        while done < bytes {
            let (at, to) = (guest + done, host.as_u64() + done);
            let large = at.is_multiple_of(LARGE) && to.is_multiple_of(LARGE) && bytes - done >= LARGE;
            let (depth, size, kind) = if large { (2, LARGE, IS_LARGE) } else { (3, SMALL, 0) };
            let entry = self.entry(at, depth)?;
            if entry.load(Ordering::Relaxed) & PRESENT != 0 {
                return Err(NptError::Mapped { guest: at });
            }
            entry.store(to | attributes | kind, Ordering::Release);
            done += size;
        }
        Ok(())
    }

    /// Takes out what is mapped in the range. Every CPU that ran the guest must forget its translations before the
    /// memory is used otherwise.
    ///
    /// # Errors
    /// [`NptError::BadRange`], [`NptError::Split`]; then part of the range may be unmapped.
    pub fn unmap(&mut self, guest: u64, bytes: u64) -> Result<(), NptError> {
        check(guest, 0, bytes)?;
        let mut at = guest;
        while at < guest + bytes {
            match self.leaf(at) {
                Some((entry, LARGE)) => {
                    if !at.is_multiple_of(LARGE) || guest + bytes - at < LARGE {
                        return Err(NptError::Split { guest: at & !(LARGE - 1) });
                    }
                    entry.store(0, Ordering::Release);
                    at += LARGE;
                }
                leaf => {
                    if let Some((entry, _)) = leaf {
                        entry.store(0, Ordering::Release);
                    }
                    at += SMALL;
                }
            }
        }
        Ok(())
    }

    /// Gives the memory of a run its type; registers and what is not mapped stay as they are. Large pages that it
    /// covers in part are split for good. Before that all CPUs left the guest, and none runs it again with
    /// translations of before.
    ///
    /// # Errors
    /// [`NptError::BadRange`], [`NptError::Pool`]; then part of the run may be changed.
    pub fn retype(&self, run: Run) -> Result<(), NptError> {
        check(run.start, 0, run.end.saturating_sub(run.start))?;
        let mut at = run.start;
        while at < run.end {
            match self.leaf(at) {
                Some((entry, LARGE)) if !at.is_multiple_of(LARGE) || run.end - at < LARGE => {
                    self.split(entry)?;
                }
                Some((entry, size)) => {
                    change_type(entry, run.memory_type);
                    at += size;
                }
                None => at += SMALL,
            }
        }
        Ok(())
    }

    /// Puts a table with the same meaning in the place of a large page.
    fn split(&self, large: &AtomicU64) -> Result<(), NptError> {
        const LOST: NptError = NptError::Pool(PoolError::NeedPages { count: 1 });
        let value = large.load(Ordering::Relaxed);
        let table = self.pool.address(&self.pool.take(1)?);
        let entries = self.pool.table_at(table).ok_or(LOST)?;
        for (entry, offset) in entries.iter().zip((0..).step_by(SMALL as usize)) {
            entry.store((value & !IS_LARGE) + offset, Ordering::Relaxed);
        }
        large.store(table.as_u64() | TABLE, Ordering::Release);
        Ok(())
    }

    /// Where guest-physical `guest` lies, and how it is treated.
    #[must_use]
    pub fn translate(&self, guest: u64) -> Option<(PhysAddr, Mapping)> {
        let (entry, size) = self.leaf(guest)?;
        let entry = entry.load(Ordering::Relaxed);
        Some((PhysAddr::new(entry & ADDRESS & !(size - 1) | guest & (size - 1)), Mapping::of(entry)))
    }

    /// The leaf entry for an address and the size of its page, if one is present.
    fn leaf(&self, guest: u64) -> Option<(&AtomicU64, u64)> {
        (guest < END).then_some(())?;
        let mut table = self.root;
        for depth in 0..4 {
            let entry = self.slot(table, guest, depth)?;
            let value = entry.load(Ordering::Relaxed);
            if value & PRESENT == 0 {
                return None;
            }
            if depth == 3 || value & IS_LARGE != 0 {
                return Some((entry, if depth == 3 { SMALL } else { LARGE }));
            }
            table = value & ADDRESS;
        }
        None
    }

    /// The entry at `depth` (0: root), with tables made on the way to it.
    fn entry(&self, guest: u64, depth: u32) -> Result<&AtomicU64, NptError> {
        const LOST: NptError = NptError::Pool(PoolError::NeedPages { count: 1 });
        let mut table = self.root;
        for level in 0..depth {
            let slot = self.slot(table, guest, level).ok_or(LOST)?;
            let value = slot.load(Ordering::Relaxed);
            if value & IS_LARGE != 0 {
                return Err(NptError::Mapped { guest });
            }
            table = value & ADDRESS;
            if value & PRESENT == 0 {
                table = self.pool.address(&self.pool.take(1)?).as_u64();
                slot.store(table | TABLE, Ordering::Release);
            }
        }
        self.slot(table, guest, depth).ok_or(LOST)
    }

    fn slot(&self, table: u64, guest: u64, depth: u32) -> Option<&AtomicU64> {
        let index = guest >> (39 - 9 * depth) & 0x1ff;
        self.pool.table_at(PhysAddr::new(table))?.get(index as usize)
    }

    /// Gives a table back, and those below it first.
    fn give_back(&self, table: u64, depth: u32) {
        let address = PhysAddr::new(table);
        for entry in self.pool.table_at(address).into_iter().flatten().filter(|_| depth < 3) {
            let value = entry.load(Ordering::Relaxed);
            if value & PRESENT != 0 && value & IS_LARGE == 0 {
                self.give_back(value & ADDRESS, depth + 1);
            }
        }
        let run: Option<PageRun> = self.pool.reclaim(address, 1);
        run.into_iter().for_each(|run| self.pool.give_back(run));
    }
}

impl<M: TableMemory> Drop for NestedTables<'_, M> {
    fn drop(&mut self) {
        self.give_back(self.root, 0);
    }
}

fn change_type(entry: &AtomicU64, memory_type: MemoryType) {
    let value = entry.load(Ordering::Relaxed);
    if matches!(Mapping::of(value), Mapping::Memory(_)) {
        entry.store(value & !INDEX | index(memory_type), Ordering::Release);
    }
}

fn check(guest: u64, host: u64, bytes: u64) -> Result<(), NptError> {
    let whole = (guest | host | bytes).is_multiple_of(SMALL) && bytes != 0;
    let ends = |start: u64| start.checked_add(bytes).is_some_and(|end| end <= END);
    if whole && ends(guest) && ends(host) { Ok(()) } else { Err(NptError::BadRange { guest, bytes }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_fake::memory::FakeMemory;

    const WRITE_BACK: Mapping = Mapping::Memory(MemoryType::WriteBack);

    fn pool() -> PagePool<FakeMemory> {
        PagePool::new(FakeMemory::coherent(PhysAddr::new(0x10_0000), 64)).expect("a pool")
    }

    #[test]
    fn x03_a_guest_reaches_what_is_mapped_and_nothing_else() {
        let pool = pool();
        let mut tables = NestedTables::new(&pool).expect("tables");
        let (host, registers) = (PhysAddr::new(0x800_0000), PhysAddr::new(0xfebf_0000));
        tables.map(0, host, 2 * LARGE, WRITE_BACK).expect("memory");
        tables.map(0xfebf_0000, registers, 2 * SMALL, Mapping::Registers).expect("registers");
        let seen = |at| tables.translate(at).map(|(to, of)| (to.as_u64(), of));
        assert_eq!(seen(0), Some((0x800_0000, WRITE_BACK)));
        assert_eq!(seen(2 * LARGE - 1), Some((0x800_0000 + 2 * LARGE - 1, WRITE_BACK)));
        assert_eq!(seen(0xfebf_1fff), Some((0xfebf_1fff, Mapping::Registers)));
        for outside in [2 * LARGE, 0xfebe_ffff, 0xfebf_2000, 0xfed9_0000, 0xfee0_0000, END, u64::MAX] {
            assert_eq!(seen(outside), None, "{outside:#x}");
        }
    }

    #[test]
    fn words_are_those_of_the_architecture() {
        let pool = pool();
        let mut tables = NestedTables::new(&pool).expect("tables");
        tables.map(0, PhysAddr::new(0x20_0000), LARGE, WRITE_BACK).expect("a large page");
        tables.map(LARGE, PhysAddr::new(0x1000), SMALL, Mapping::Registers).expect("a small page");
        let word = |at| tables.leaf(at).map(|(entry, size)| (entry.load(Ordering::Relaxed), size));
        assert_eq!(word(0), Some((0x20_0087, LARGE)));
        assert_eq!(word(LARGE), Some((0x8000_0000_0000_101f, SMALL)));
    }

    #[test]
    fn what_is_unmapped_is_gone_and_large_pages_are_not_split() {
        let pool = pool();
        let mut tables = NestedTables::new(&pool).expect("tables");
        tables.map(0, PhysAddr::new(0), LARGE + 2 * SMALL, WRITE_BACK).expect("memory");
        assert_eq!(tables.unmap(SMALL, SMALL), Err(NptError::Split { guest: 0 }));
        tables.unmap(LARGE, SMALL).expect("a small page");
        assert!(tables.translate(LARGE).is_none() && tables.translate(LARGE + SMALL).is_some());
        tables.unmap(0, LARGE).expect("a large page");
        assert!(tables.translate(0).is_none() && tables.translate(LARGE + SMALL).is_some());
        tables.map(0, PhysAddr::new(LARGE), LARGE, WRITE_BACK).expect("room again");
    }

    #[test]
    fn refuses_what_is_mapped_or_crooked_and_gives_its_pages_back() {
        let pool = pool();
        let free = pool.free_pages();
        let mut tables = NestedTables::new(&pool).expect("tables");
        let mut map = |guest, host, bytes| tables.map(guest, PhysAddr::new(host), bytes, WRITE_BACK);
        assert_eq!(map(0, 0, LARGE), Ok(()));
        assert_eq!(map(SMALL, 0, SMALL), Err(NptError::Mapped { guest: SMALL }));
        for (guest, host, bytes) in
            [(1, 0, SMALL), (0, 1, SMALL), (0, 0, 0), (END, 0, SMALL), (0, 0, u64::MAX - 4095)]
        {
            assert_eq!(map(guest, host, bytes), Err(NptError::BadRange { guest, bytes }));
        }
        drop(tables);
        assert_eq!(pool.free_pages(), free);
    }

    #[test]
    fn x25_memory_of_any_type_is_executable_and_registers_never() {
        let pool = pool();
        let mut tables = NestedTables::new(&pool).expect("tables");
        tables.map(0, PhysAddr::new(0), LARGE, WRITE_BACK).expect("memory");
        tables.map(LARGE, PhysAddr::new(LARGE), SMALL, Mapping::Registers).expect("registers");
        let retype = |start, end, memory_type| {
            tables.retype(Run { start, end, memory_type }).expect("pages");
        };
        let word = |at| tables.leaf(at).map(|(entry, size)| (entry.load(Ordering::Relaxed), size));
        retype(0, 2 * LARGE, MemoryType::Uncacheable);
        assert_eq!(word(0), Some((0x9f, LARGE)));
        assert_eq!(word(LARGE), Some((0x8000_0000_0020_001f, SMALL)), "registers stay what they are");
        retype(0, LARGE, MemoryType::WriteThrough);
        assert_eq!(tables.translate(0).map(|seen| seen.1), Some(Mapping::Memory(MemoryType::WriteThrough)));
        retype(0, LARGE, MemoryType::WriteBack);
        retype(3 * SMALL, 4 * SMALL, MemoryType::WriteCombining);
        assert_eq!(word(2 * SMALL), Some((0x2007, SMALL)));
        assert_eq!(word(3 * SMALL), Some((0x301f, SMALL)), "a type that the table lacks is UC");
        assert_eq!(word(4 * SMALL), Some((0x4007, SMALL)));
        assert_eq!(word(LARGE - SMALL), Some(((LARGE - SMALL) | 7, SMALL)));
    }
}
