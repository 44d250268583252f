//! Scripts: what a guest is to try, one thing after the other, as records in its memory that it fills in.

use super::layout::{ARGUMENTS, OWN};
use crate::x86::memory::GuestMemory;

/// Words of a record: what, two arguments, vector, value.
const WORDS: u64 = 5;
/// Records that fit.
pub const MAX_RECORDS: u64 = (OWN - ARGUMENTS) / (8 * WORDS);
/// Vector of an invalid opcode.
pub const INVALID_OPCODE: u64 = 6;
/// Vector of a general protection fault.
pub const GENERAL_PROTECTION: u64 = 13;
/// In the place of a vector: nothing was refused.
pub const DONE: u64 = u64::MAX;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)+) => {
        /// What a guest can try.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum What {
            $($(#[$doc])* $name = $number,)+
        }

        impl What {
            /// The operation with this number.
            #[must_use]
            pub const fn numbered(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

operations! {
    /// Loads 8 bytes from an address.
    Load = 1,
    /// Stores 8 bytes at an address: the second argument.
    Store = 2,
    /// Jumps to an address.
    Jump = 3,
    /// RDMSR.
    ReadMsr = 4,
    /// WRMSR: number, value.
    WriteMsr = 5,
    /// Reads 4 bytes from a port.
    ReadPort = 6,
    /// Writes 4 bytes to a port: number, value.
    WritePort = 7,
    /// CPUID: leaf, and the number of the answer's word (EAX, EBX, ECX, EDX).
    Cpuid = 8,
    /// VMRUN.
    Vmrun = 9,
    /// VMLOAD.
    Vmload = 10,
    /// VMSAVE.
    Vmsave = 11,
    /// STGI.
    Stgi = 12,
    /// CLGI.
    Clgi = 13,
    /// SKINIT.
    Skinit = 14,
    /// INVLPGA.
    Invlpga = 15,
    /// WBINVD.
    Wbinvd = 16,
    /// WBNOINVD.
    Wbnoinvd = 17,
    /// INVD.
    Invd = 18,
    /// WBINVD at privilege level 3.
    WbinvdAsProgram = 19,
    /// VMMCALL at privilege level 3.
    CallAsProgram = 20,
    /// HLT.
    Halt = 21,
    /// MONITOR.
    Monitor = 22,
    /// XSETBV.
    Xsetbv = 23,
    /// Writes DR0.
    WriteDebug = 24,
    /// Writes CR0.
    WriteCr0 = 25,
    /// Reads CR0.
    ReadCr0 = 26,
    /// A triple fault.
    TripleFault = 27,
    /// Goes round for ever.
    Spin = 28,
    /// Writes CR4.
    WriteCr4 = 29,
    /// Writes XMM0's low half.
    WriteVector = 30,
    /// Reads XMM0's low half.
    ReadVector = 31,
    /// Lets an edu device read memory: where its registers are, and its address of the memory. Brings 0 unless the
    /// device did not answer.
    EduRead = 32,
    /// The same, but the device writes what it read before.
    EduWrite = 33,
    /// WBINVD as often as told: the least ticks that one took.
    LeastWbinvd = 34,
    /// Tells the scenario a value: its answer.
    Report = 35,
}

/// One thing to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op(pub What, pub u64, pub u64);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Vector of the exception that it ended in, or [`DONE`].
    pub vector: u64,
    /// What it brought; 0 when refused.
    pub value: u64,
}

/// Puts a script in place; `None` when it does not fit.
#[must_use]
pub fn load(memory: GuestMemory, script: impl IntoIterator<Item = Op>) -> Option<()> {
    load_from(memory, 0, script)
}

/// The same from record `first` on, for a vCPU of its own.
#[must_use]
pub fn load_from(memory: GuestMemory, first: u64, script: impl IntoIterator<Item = Op>) -> Option<()> {
    let mut count = first;
    for Op(what, first, second) in script {
        // One record stays free: it ends the script.
        (count + 1 < MAX_RECORDS).then_some(())?;
        // What no outcome is, so that one that is missing is seen.
        write(memory, count, [what as u64, first, second, DONE - 1, DONE - 1])?;
        count += 1;
    }
    write(memory, count, [0; 5])
}

/// What came of operation `index`.
#[must_use]
pub fn outcome(memory: GuestMemory, index: u64) -> Option<Outcome> {
    let at = record(index)?;
    Some(Outcome { vector: memory.read(at + 24)?, value: memory.read(at + 32)? })
}

/// Address of a record.
#[must_use]
pub const fn record(index: u64) -> Option<u64> {
    if index < MAX_RECORDS { Some(ARGUMENTS + index * 8 * WORDS) } else { None }
}

fn write(memory: GuestMemory, index: u64, words: [u64; WORDS as usize]) -> Option<()> {
    words.iter().zip((record(index)?..).step_by(8)).try_for_each(|(word, at)| memory.write(at, *word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ptr::NonNull;
    use std::vec;

    #[test]
    fn a_script_is_where_the_guest_finds_it_and_ends() {
        let mut words = vec![7u64; OWN as usize / 8];
        let start = NonNull::new(words.as_mut_ptr()).expect("memory");
        // SAFETY: the vector is that long and lives longer than the value.
        let memory = unsafe { GuestMemory::new(start, OWN) };
        load(memory, [Op(What::Store, 0x1000, 42), Op(What::Halt, 0, 0)]).expect("room");
        let word = |index: u64| memory.read(ARGUMENTS + 8 * index).expect("in memory");
        assert_eq!([word(0), word(1), word(2)], [2, 0x1000, 42]);
        assert_eq!([word(5), word(10)], [21, 0], "the second operation, and the end");
        assert_eq!(outcome(memory, 0), Some(Outcome { vector: DONE - 1, value: DONE - 1 }), "not done yet");
        assert_eq!(outcome(memory, MAX_RECORDS), None);
        assert_eq!(load(memory, vec![Op(What::Halt, 0, 0); MAX_RECORDS as usize]), None);
    }

    #[test]
    fn operations_have_the_numbers_that_they_are_found_by() {
        for number in 1..=35 {
            assert_eq!(What::numbered(number).map(|what| what as u64), Some(number));
        }
        assert_eq!((What::numbered(0), What::numbered(36)), (None, None));
    }
}
