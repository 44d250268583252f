//! Exception vectors: a trap is reported, then the machine is powered off.

use portcullis_hypervisor::power::{cpu, secondary, vectors};

use crate::{console, opal};

/// Vectors that are taken without an external interrupt, and what they tell (Power ISA, Book III,
/// "Interrupt vectors").
const VECTORS: [(u64, &str); 21] = [
    (0x100, "system reset"),
    (0x200, "machine check"),
    (0x300, "data storage interrupt"),
    (0x380, "data segment interrupt"),
    (0x400, "instruction storage interrupt"),
    (0x480, "instruction segment interrupt"),
    (0x500, "external interrupt"),
    (0x600, "alignment interrupt"),
    (0x700, "program interrupt"),
    (0x800, "floating point unavailable"),
    (0x900, "decrementer interrupt"),
    (0x980, "hypervisor decrementer interrupt"),
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

/// Puts the vectors in place and has exceptions enter in little-endian mode.
pub(crate) fn install() {
    // SAFETY: the first thing that the only CPU does; memory below skiboot's is the image's.
    unsafe { vectors::install() }
    if opal::little_endian_exceptions() != 0 {
        defmt::warn!("exceptions stay big-endian: a trap will hang");
    }
}

/// Called by the vectors' code when the hypervisor itself was interrupted. Only the first CPU may talk.
#[unsafe(no_mangle)]
extern "C" fn portcullis_host_trap(vector: u64, pc: u64) -> ! {
    let what = VECTORS.iter().find(|(address, _)| *address == vector).map_or("trap", |(_, what)| what);
    if cpu::this() != 0 {
        secondary::report_crash(vector, pc);
    }
    console::crash(what, pc)
}
