//! A guest's memory type range registers: a model that checks what is written, and says what it means
//! (AMD64 APM volume 2, section 7.7).
//!
//! The guest is offered a default type and [`VARIABLE`] variable ranges. `MTRRcap` says that there are no fixed
//! ranges, so accesses to theirs are refused as on a CPU without them.

use super::memory_type::MemoryType;

/// Variable ranges of a guest.
pub const VARIABLE: usize = 8;

/// `MTRRcap`, read-only.
pub const CAPABILITIES_MSR: u32 = 0xfe;
/// `MTRRdefType`.
pub const DEFAULT_TYPE_MSR: u32 = 0x2ff;
/// `MTRRphysBase0`; its mask is the next, then comes the next pair.
pub const FIRST_VARIABLE_MSR: u32 = 0x200;

/// `MTRRcap[10]`: write-combining is a type.
const HAS_WRITE_COMBINING: u64 = 1 << 10;
/// `MTRRdefType[11]`: without it everything is uncacheable.
const ENABLE: u64 = 1 << 11;
/// Valid bit of `MTRRphysMask`.
const VALID: u64 = 1 << 11;
const TYPE: u64 = 0xff;
/// Ranges are made of pages of 4 KiB.
const PAGE: u64 = 1 << 12;

/// An access that ends in #GP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadMsr {
    /// There is no such register, or it cannot be written.
    Register(u32),
    /// The value has reserved bits, or a reserved type.
    Value(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    base: u64,
    mask: u64,
}

impl Pair {
    const NONE: Self = Self { base: 0, mask: 0 };

    const fn is_valid(self) -> bool {
        self.mask & VALID != 0
    }

    /// Any mask, also one with holes: hardware compares where it has ones.
    const fn covers(self, address: u64) -> bool {
        let compared = self.mask & !(PAGE - 1);
        self.is_valid() && address & compared == self.base & compared
    }

    const fn memory_type(self) -> Option<MemoryType> {
        MemoryType::from_mtrr((self.base & TYPE) as u8)
    }

    /// The type can change only at multiples of this power of two.
    const fn granule(self) -> Option<u64> {
        let compared = self.mask & !(PAGE - 1);
        if self.is_valid() && compared != 0 { Some(compared & compared.wrapping_neg()) } else { None }
    }
}

/// One guest's registers. Its CPUs share them, as an operating system keeps them equal on all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtrrs {
    default_type: u64,
    pairs: [Pair; VARIABLE],
    /// Bits of an address that the guest's CPUs have, without those within a page.
    addresses: u64,
}

/// Pages of one type in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// First guest-physical address.
    pub start: u64,
    /// First address behind; a multiple of 4 KiB, as `start`.
    pub end: u64,
    /// Their type.
    pub memory_type: MemoryType,
}

impl Mtrrs {
    /// After reset: disabled, everything is uncacheable. Addresses have `address_bits` bits (13 to 52; others are
    /// brought into that range), as CPUID 8000_0008h tells the guest.
    #[must_use]
    pub const fn reset(address_bits: u32) -> Self {
        let bits = if address_bits < 13 {
            13
        } else if address_bits > 52 {
            52
        } else {
            address_bits
        };
        Self { default_type: 0, pairs: [Pair::NONE; VARIABLE], addresses: (1 << bits) - PAGE }
    }

    /// As firmware leaves them to a guest that has none: enabled, and all memory is write-back.
    #[must_use]
    pub const fn after_firmware(address_bits: u32) -> Self {
        Self { default_type: ENABLE | MemoryType::WriteBack as u64, ..Self::reset(address_bits) }
    }

    /// Whether the register is one of these, so that accesses to it belong here.
    #[must_use]
    pub const fn has(msr: u32) -> bool {
        matches!(msr, CAPABILITIES_MSR | DEFAULT_TYPE_MSR) || variable(msr).is_some()
    }

    /// RDMSR.
    ///
    /// # Errors
    /// [`BadMsr::Register`].
    pub fn read(&self, msr: u32) -> Result<u64, BadMsr> {
        match msr {
            CAPABILITIES_MSR => Ok(VARIABLE as u64 | HAS_WRITE_COMBINING),
            DEFAULT_TYPE_MSR => Ok(self.default_type),
            _ => {
                let (index, is_mask) = variable(msr).ok_or(BadMsr::Register(msr))?;
                let pair = self.pairs.get(index).ok_or(BadMsr::Register(msr))?;
                Ok(if is_mask { pair.mask } else { pair.base })
            }
        }
    }

    /// WRMSR.
    ///
    /// # Errors
    /// [`BadMsr`]; nothing was changed.
    pub fn write(&mut self, msr: u32, value: u64) -> Result<(), BadMsr> {
        let addresses = self.addresses;
        let (register, allowed) = match (msr, variable(msr)) {
            (DEFAULT_TYPE_MSR, _) => (&mut self.default_type, ENABLE | TYPE),
            (_, Some((index, is_mask))) => {
                let pair = self.pairs.get_mut(index).ok_or(BadMsr::Register(msr))?;
                if is_mask { (&mut pair.mask, addresses | VALID) } else { (&mut pair.base, addresses | TYPE) }
            }
            _ => return Err(BadMsr::Register(msr)),
        };
        let has_type = allowed & TYPE != 0;
        if value & !allowed != 0 || has_type && MemoryType::from_mtrr((value & TYPE) as u8).is_none() {
            return Err(BadMsr::Value(value));
        }
        *register = value;
        Ok(())
    }

    /// The type of the page at a guest-physical address. Where ranges overlap: one type if they agree, UC if one is
    /// UC, WT of WT and WB (section 7.7.4); of others, which are undefined, UC.
    #[must_use]
    pub fn type_at(&self, address: u64) -> MemoryType {
        if self.default_type & ENABLE == 0 {
            return MemoryType::Uncacheable;
        }
        let matching =
            self.pairs.iter().filter(|pair| pair.covers(address)).filter_map(|pair| pair.memory_type());
        let default = MemoryType::from_mtrr((self.default_type & TYPE) as u8);
        matching.reduce(overlap).or(default).unwrap_or(MemoryType::Uncacheable)
    }

    /// The pages from `start` on that have one type, `end` at most; `None` when there is none. Both are multiples of
    /// 4 KiB. Takes as many steps as there are pages, at most.
    #[must_use]
    pub fn first_run(&self, start: u64, end: u64) -> Option<Run> {
        if start >= end {
            return None;
        }
        let memory_type = self.type_at(start);
        let mut at = self.next_change(start, end);
        while at < end && self.type_at(at) == memory_type {
            at = self.next_change(at, end);
        }
        Some(Run { start, end: at, memory_type })
    }

    /// The next address at which a range may begin or end, `end` at most.
    fn next_change(&self, address: u64, end: u64) -> u64 {
        let granule = self.pairs.iter().filter_map(|pair| pair.granule()).min();
        granule
            .and_then(|granule| (address / granule).checked_add(1)?.checked_mul(granule))
            .unwrap_or(end)
            .min(end)
    }
}

/// Index of the pair, and whether the register is its mask.
const fn variable(msr: u32) -> Option<(usize, bool)> {
    let offset = msr.wrapping_sub(FIRST_VARIABLE_MSR) as usize;
    if offset < 2 * VARIABLE { Some((offset / 2, offset % 2 == 1)) } else { None }
}

fn overlap(one: MemoryType, other: MemoryType) -> MemoryType {
    use MemoryType::{Uncacheable, WriteBack, WriteThrough};
    match (one, other) {
        _ if one == other => one,
        (WriteThrough, WriteBack) | (WriteBack, WriteThrough) => WriteThrough,
        _ => Uncacheable,
    }
}
