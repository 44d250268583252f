//! Programs with an `edu` device: what they are told and what they write down.

use super::layout::{ARGUMENTS, FREE};
use crate::x86::memory::GuestMemory;

/// The page that the device reads first.
pub const SOURCE: u64 = FREE;
/// The page that it writes then: one that no program touches by itself.
pub const TARGET: u64 = FREE + 0x10_0000;
/// Where it writes in that page: not at its begin, where the scenarios have the device write by themselves, so that a trace
/// tells the two apart.
pub const ARRIVAL: u64 = TARGET + 0x80;
/// Bytes that it moves at once.
pub const BYTES: u32 = 128;

/// Words from [`ARGUMENTS`] on.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Record {
    /// Address of the device's registers: told.
    Registers,
    /// Their length: told.
    Length,
    /// Writes that the device has been told to do.
    Writes,
}

impl Record {
    /// Where it is.
    #[must_use]
    pub const fn address(self) -> u64 {
        ARGUMENTS + 8 * self as u64
    }
}

/// Tells a program where its device is, and fills the source with `pattern`; `None` when its memory is too small.
#[must_use]
pub fn prepare(memory: GuestMemory, (registers, bytes): (u64, u64), pattern: u64) -> Option<()> {
    memory.write(Record::Registers.address(), registers)?;
    memory.write(Record::Length.address(), bytes)?;
    memory.write(Record::Writes.address(), 0)?;
    words(SOURCE).try_for_each(|at| memory.write(at, pattern))
}

/// Whether there arrived what was the source's pattern.
#[must_use]
pub fn has_arrived(memory: GuestMemory, pattern: u64) -> bool {
    words(ARRIVAL).all(|at| memory.read(at) == Some(pattern))
}

/// Writes that the device has been told to do.
#[must_use]
pub fn writes(memory: GuestMemory) -> u64 {
    memory.read(Record::Writes.address()).unwrap_or(0)
}

fn words(at: u64) -> impl Iterator<Item = u64> {
    (at..at + u64::from(BYTES)).step_by(8)
}
