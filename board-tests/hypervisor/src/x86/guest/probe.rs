//! Instructions that may be refused: what came of them.

use super::script::Outcome;

/// Executes an instruction in a guest; a vector or [`DONE`](super::script::DONE). RAX holds a value before and after; RCX and RDX are given
/// to it and lost.
macro_rules! probe {
    ($instruction:literal, $rax:expr, $rcx:expr, $rdx:expr) => {{
        let (value, vector): (u64, u64);
        // SAFETY: the exception's handler goes on behind the instruction, whichever that is; flags and these registers
        // are all that it changes of the program's.
        unsafe {
            core::arch::asm!(
                "lea {resume}, [rip + 2f]",
                "mov qword ptr gs:[0x08], -1",
                "mov gs:[0x00], {resume}",
                $instruction,
                "2:",
                "mov qword ptr gs:[0x00], 0",
                "mov {resume}, gs:[0x08]",
                resume = out(reg) vector,
                inlateout("rax") $rax => value,
                inlateout("rcx") $rcx => _,
                inlateout("rdx") $rdx => _,
            );
        }
        $crate::x86::guest::script::Outcome { vector, value }
    }};
}
pub(crate) use probe;

/// Loads from an address.
pub fn load(at: u64) -> Outcome {
    probe!("mov rax, [rcx]", 0u64, at, 0u64)
}

/// Stores a value at an address.
pub fn store(at: u64, value: u64) -> Outcome {
    probe!("mov [rcx], rax", value, at, 0u64)
}

/// Reads an MSR: its low half.
pub fn read_msr(number: u32) -> Outcome {
    probe!("rdmsr", 0u64, u64::from(number), 0u64)
}

/// Writes an MSR.
pub fn write_msr(number: u32, value: u64) -> Outcome {
    probe!("wrmsr", value & 0xffff_ffff, u64::from(number), value >> 32)
}

/// Reads a port of 32 bits.
pub fn read_port(number: u16) -> Outcome {
    probe!("in eax, dx", 0u64, 0u64, u64::from(number))
}

/// Writes a port of 32 bits.
pub fn write_port(number: u16, value: u32) -> Outcome {
    probe!("out dx, eax", u64::from(value), 0u64, u64::from(number))
}
