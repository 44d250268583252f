//! What a device's transaction goes through: Requester ID to PE, TVE, levels of TCEs.

use super::{FakePhb, PhbFault, State};
use crate::memory::FakeMemory;

/// Addresses that are 32-bit MSIs when written.
const MSI_32: std::ops::Range<u64> = 0xffff_0000..0x1_0000_0000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// The fields of a TVE.
struct Tve {
    table: u64,
    levels: u32,
    level_bits: u32,
    page_shift: u32,
}

impl Tve {
    fn decode(word: u64, state: &State) -> Option<Self> {
        let field = |first: u32, last: u32| word >> (63 - last) & ((1 << (last - first + 1)) - 1);
        let (levels, size, page) = (field(48, 50) + 1, field(51, 55), field(59, 63));
        let page_shift = page + 11;
        let reserved = field(56, 58);
        let valid = size != 0 && levels <= 5 && reserved == 0 && page != 0;
        if !valid || !state.kind.page_shifts().contains(&page_shift) {
            return None;
        }
        let (levels, level_bits, page_shift) = (levels as u32, size as u32 + 8, page_shift as u32);
        Some(Self { table: field(0, 47) << 12, levels, level_bits, page_shift })
    }
}

impl State {
    fn pe_of(&self, rid: u16) -> u16 {
        self.rtt.get(&rid).copied().unwrap_or(self.kind.reserved_pe())
    }

    /// Where one transaction of a device that stays inside a 4 KiB page ends up.
    fn translate(
        &mut self,
        memory: &FakeMemory,
        rid: u16,
        address: u64,
        direction: Direction,
    ) -> Result<u64, PhbFault> {
        if self.fenced {
            return Err(PhbFault::Fenced);
        }
        let pe = self.pe_of(rid);
        if self.pest.contains_key(&pe) {
            return Err(PhbFault::Frozen);
        }
        self.walk(memory, pe, address, direction)
            .inspect_err(|&fault| self.freeze(pe, rid, address, direction, fault))
    }

    fn walk(
        &mut self,
        memory: &FakeMemory,
        pe: u16,
        address: u64,
        direction: Direction,
    ) -> Result<u64, PhbFault> {
        if address >> 60 != 0 || MSI_32.contains(&address) {
            return Err(PhbFault::NotDma);
        }
        let window = (address >> 59) as u8;
        let word = self.tvt[usize::from(pe) * 2 + usize::from(window)];
        let tve = Tve::decode(word, self).ok_or(PhbFault::InvalidTve)?;
        let offset = address & ((1 << 59) - 1);
        let covered = tve.page_shift + tve.level_bits * tve.levels;
        if covered < 59 && offset >> covered != 0 {
            return Err(PhbFault::BeyondWindow);
        }
        let mut table = tve.table;
        for above in (0..tve.levels).rev() {
            let number = offset >> (tve.page_shift + tve.level_bits * above);
            let tce = self.fetch(memory, (pe, window, above), number, table, tve.level_bits)?;
            if above == 0 {
                return self.leaf(tce, tve.page_shift, offset, direction);
            }
            if tce & 3 != 3 {
                return Err(PhbFault::PageFault);
            }
            table = tce & !0xfff;
        }
        Err(PhbFault::InvalidTve)
    }

    fn fetch(
        &mut self,
        memory: &FakeMemory,
        tag: (u16, u8, u32),
        number: u64,
        table: u64,
        level_bits: u32,
    ) -> Result<u64, PhbFault> {
        if table & ((8 << level_bits) - 1) != 0 {
            return Err(PhbFault::BadTce);
        }
        let address = table + (number & ((1 << level_bits) - 1)) * 8;
        let tce = self.cache.entry(memory, tag, number, address).ok_or(PhbFault::NoMemory)?;
        let wide = tce >> self.kind.real_address_bits() != 0;
        if tce & 0xffc != 0 || wide { Err(PhbFault::BadTce) } else { Ok(tce) }
    }

    fn leaf(&self, tce: u64, page_shift: u32, offset: u64, direction: Direction) -> Result<u64, PhbFault> {
        let in_page = (1_u64 << page_shift) - 1;
        if tce & 3 == 0 {
            return Err(PhbFault::PageFault);
        }
        if tce & in_page & !0xfff != 0 {
            return Err(PhbFault::BadTce);
        }
        let needed = if direction == Direction::Read { 1 } else { 2 };
        if tce & needed == 0 {
            return Err(PhbFault::AccessFault);
        }
        Ok(tce & !0xfff | offset & in_page)
    }

    fn freeze(&mut self, pe: u16, rid: u16, address: u64, direction: Direction, fault: PhbFault) {
        let kind: u64 = if direction == Direction::Read { 2 } else { 0 };
        let cause = match fault {
            PhbFault::AccessFault => 1 << (63 - 19),
            _ => 1 << (63 - 18),
        };
        let state = 1 << 63 | kind << 56 | cause | u64::from(rid) << 16;
        self.pest.insert(pe, [state, address & (u64::MAX >> 3)]);
    }
}

/// The parts of `bytes` bytes at `address` that each lie in one 4 KiB page: address, offset, length.
fn pieces(address: u64, bytes: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address + done as u64;
        let length = (4096 - (at % 4096) as usize).min(bytes - done);
        let range = done..done + length;
        done += length;
        (length != 0).then_some((at, range))
    })
}

impl FakePhb {
    /// A device reads memory.
    ///
    /// # Errors
    /// Why it was blocked; bytes of earlier pages have arrived.
    pub fn dma_read(&self, rid: u16, address: u64, data: &mut [u8]) -> Result<(), PhbFault> {
        for (at, range) in pieces(address, data.len()) {
            let physical = self.state().translate(&self.memory, rid, at, Direction::Read)?;
            if !self.memory.read(physical, &mut data[range]) {
                return Err(PhbFault::NoMemory);
            }
        }
        Ok(())
    }

    /// A device writes memory.
    ///
    /// # Errors
    /// Why it was blocked; bytes of earlier pages were written.
    pub fn dma_write(&self, rid: u16, address: u64, data: &[u8]) -> Result<(), PhbFault> {
        for (at, range) in pieces(address, data.len()) {
            let physical = self.state().translate(&self.memory, rid, at, Direction::Write)?;
            if !self.memory.write(physical, &data[range]) {
                return Err(PhbFault::NoMemory);
            }
        }
        Ok(())
    }
}
