//! A program that meets that of another guest: what it is told and what it writes down.

use super::layout::ARGUMENTS;
use crate::x86::memory::GuestMemory;

/// Rounds of the program.
pub const ROUNDS: u64 = 200;
/// Answer to the report of a round: the other guest has come to it, too.
pub const MET: u64 = 0;
/// It has not.
pub const LOST: u64 = 1;

/// Words from [`ARGUMENTS`] on.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub enum Record {
    /// CPUIDs in each round: told.
    Cpuids,
    /// The round that the program is in.
    Round,
    /// Time stamp of its begin.
    Begin,
    /// And of its end.
    End,
    /// Registers that changed where they must not, of all rounds.
    Changed,
}

impl Record {
    /// Where it is.
    #[must_use]
    pub const fn address(self) -> u64 {
        ARGUMENTS + 8 * self as u64
    }
}

/// Tells the program how many CPUIDs it has to execute in each round; `None` when its memory is too small.
#[must_use]
pub fn prepare(memory: GuestMemory, cpuids: u64) -> Option<()> {
    memory.write(Record::Cpuids.address(), cpuids)
}

/// What it wrote down.
#[must_use]
pub fn read(memory: GuestMemory, record: Record) -> Option<u64> {
    memory.read(record.address())
}
