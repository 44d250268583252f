//! The table of vectors. CPU exceptions are told to the host and end the run; the vectors behind them are
//! [`interrupts`](crate::interrupts), which return.

use core::cell::UnsafeCell;

use portcullis_suite::Event;
use x86_64::{
    VirtAddr,
    instructions::tables::lidt,
    registers::segmentation::{CS, Segment},
    structures::DescriptorTablePointer,
};

use crate::{
    console,
    exit::{Verdict, exit},
};

const VECTORS: usize = 256;
/// Present, 64-bit interrupt gate (Intel SDM volume 3, 7.14.1).
const INTERRUPT_GATE: u64 = 0x8e << 40;

unsafe extern "C" {
    /// Addresses of the entries in `boot.s`.
    static trap_entries: [u64; VECTORS];
}

/// A gate is two words.
struct Table(UnsafeCell<[[u64; 2]; VECTORS]>);

// SAFETY: written once by `install`, then read by the CPU only.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; VECTORS]));

/// What the entries push, lowest address first.
#[repr(C)]
pub(crate) struct Frame {
    vector: u64,
    error_code: u64,
    instruction: u64,
}

/// Lets each vector lead to its entry, on this CPU.
///
/// # Safety
/// To be called once, on the boot CPU, before others are started.
pub(crate) unsafe fn install() {
    let selector = u64::from(CS::get_reg().0);
    // SAFETY: written by nobody after the image was linked.
    let entries = unsafe { &trap_entries };
    // SAFETY: the table is not in use yet, says the caller.
    let table = unsafe { &mut *TABLE.0.get() };
    for (gate, &entry) in table.iter_mut().zip(entries) {
        *gate =
            [entry & 0xffff | selector << 16 | INTERRUPT_GATE | (entry >> 16 & 0xffff) << 48, entry >> 32];
    }
    load();
}

/// Has this CPU use the table, which [`install`] has filled.
pub(crate) fn load() {
    let table = DescriptorTablePointer {
        limit: (size_of::<Table>() - 1) as u16,
        base: VirtAddr::from_ptr(TABLE.0.get()),
    };
    // SAFETY: the table is static; exceptions lead to code that never returns, other vectors to code that
    // preserves what it interrupts. A gate that is not filled faults, as without a table.
    unsafe { lidt(&table) };
}

const fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        2 => "non-maskable interrupt",
        6 => "invalid opcode",
        8 => "double fault",
        13 => "general protection fault",
        14 => "page fault",
        18 => "machine check",
        _ => "another exception",
    }
}

#[unsafe(no_mangle)]
extern "C" fn rust_trap(frame: &Frame) -> ! {
    defmt::error!("exception {=u64}, error code {=u64:#x}", frame.vector, frame.error_code);
    console::emit_at_last(&Event::Crashed { what: name(frame.vector), at: frame.instruction });
    exit(Verdict::Crashed)
}
