//! Exception vectors: a trap is reported, then the machine is powered off.

use core::{arch::asm, ptr::with_exposed_provenance_mut};

use crate::{console, opal};

/// Vectors that are taken without an external interrupt, and what they tell (Power ISA, Book III,
/// "Interrupt vectors").
const VECTORS: [(u64, &str); 19] = [
    (0x100, "system reset"),
    (0x200, "machine check"),
    (0x300, "data storage interrupt"),
    (0x380, "data segment interrupt"),
    (0x400, "instruction storage interrupt"),
    (0x480, "instruction segment interrupt"),
    (0x600, "alignment interrupt"),
    (0x700, "program interrupt"),
    (0x800, "floating point unavailable"),
    (0x900, "decrementer interrupt"),
    (0xc00, "system call"),
    (0xd00, "trace interrupt"),
    (0xe00, "hypervisor data storage interrupt"),
    (0xe20, "hypervisor instruction storage interrupt"),
    (0xe40, "hypervisor emulation assistance"),
    (0xf20, "vector unavailable"),
    (0xf40, "VSX unavailable"),
    (0xf60, "facility unavailable"),
    (0xf80, "hypervisor facility unavailable"),
];
/// Where the code lies that all vectors call: in reach of an absolute branch.
const COMMON: usize = 0x3000;
/// `bla COMMON`: leaves the vector's address in the link register.
const CALL_COMMON: u32 = 0x4800_0003 | COMMON as u32;

unsafe extern "C" {
    static vector_code: u32;
    static vector_code_end: u32;
}

/// Fills the vectors and has exceptions enter in little-endian mode.
pub(crate) fn install() {
    let (start, end) = (&raw const vector_code, &raw const vector_code_end);
    for word in 0..(end.addr() - start.addr()) / 4 {
        // SAFETY: real mode: memory below skiboot's is the image's; the code is `word`s of code.
        unsafe {
            let code = start.add(word).read_volatile();
            with_exposed_provenance_mut::<u32>(COMMON).add(word).write_volatile(code);
        }
    }
    for (vector, _) in VECTORS {
        // SAFETY: as above.
        unsafe { with_exposed_provenance_mut::<u32>(vector as usize).write_volatile(CALL_COMMON) }
    }
    // SAFETY: makes the new instructions visible to this CPU, and nothing else.
    unsafe { asm!("sync", "icbi 0, {zero}", "sync", "isync", zero = in(reg) 0u64, options(nostack)) }
    if opal::little_endian_exceptions() != 0 {
        defmt::warn!("exceptions stay big-endian: a trap will hang");
    }
}

/// Called by the vectors' code.
#[unsafe(no_mangle)]
extern "C" fn trapped(link: u64, srr0: u64, hsrr0: u64) -> ! {
    let vector = link.wrapping_sub(4);
    let what = VECTORS.iter().find(|(address, _)| *address == vector).map_or("trap", |(_, what)| what);
    let hypervisor = (0xe00..0xf00).contains(&vector) || vector == 0xf80;
    console::crash(what, if hypervisor { hsrr0 } else { srr0 })
}
