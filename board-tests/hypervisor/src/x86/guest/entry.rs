//! Where the code of guests begins.

use core::arch::global_asm;

use super::{confined, disk, flood, hypercall, programs::Program, rounds, runs};

global_asm!(include_str!("entry.s"));

unsafe extern "C" {
    static x86_guest_entry: u8;
    static x86_guest_traps: u8;
}

/// Address of the first instruction.
pub fn first_instruction() -> u64 {
    (&raw const x86_guest_entry).addr() as u64
}

/// Address of the entries for exceptions.
pub fn traps() -> u64 {
    (&raw const x86_guest_traps).addr() as u64
}

/// A program that is not there.
const NO_PROGRAM: u64 = u64::MAX;

/// Called by the guest's entry code, in the guest.
#[unsafe(no_mangle)]
extern "C" fn x86_guest_main(number: u64, arguments: u64) -> ! {
    match Program::numbered(number) {
        Some(Program::Runs) => runs::run(arguments),
        Some(Program::Script) => confined::carry_out(arguments),
        Some(Program::Meets) => rounds::meet(),
        Some(Program::Counts) => rounds::count(arguments),
        Some(Program::Copies) => flood::copy(),
        Some(Program::Floods) => flood::flood(),
        Some(Program::DiesUnderDma) => flood::die(),
        Some(Program::Disk) => disk::run(arguments),
        None => hypercall::exit(NO_PROGRAM),
    }
    hypercall::exit(0)
}
