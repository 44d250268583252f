//! CPU exceptions: each is told to the host and ends the run.

use core::{cell::UnsafeCell, ptr};

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

const EXCEPTIONS: usize = 32;
/// Gates of the table: exceptions, then interrupts.
const GATES: usize = 64;
/// Present, 64-bit interrupt gate (Intel SDM volume 3, 7.14.1).
const INTERRUPT_GATE: u64 = 0x8e << 40;

unsafe extern "C" {
    /// Addresses of the entries in `boot.s`.
    static trap_entries: [u64; EXCEPTIONS];
}

/// A gate is two words.
struct Table(UnsafeCell<[[u64; 2]; GATES]>);

// SAFETY: written by `install` and `install_interrupt`, each under its caller's promise; read by the CPU.
unsafe impl Sync for Table {}

static TABLE: Table = Table(UnsafeCell::new([[0; 2]; GATES]));

/// What the entries push, lowest address first.
#[repr(C)]
pub(crate) struct Frame {
    vector: u64,
    error_code: u64,
    instruction: u64,
}

/// Lets exceptions lead to `rust_trap`.
///
/// # Safety
/// To be called once, on the boot CPU.
pub(crate) unsafe fn install() {
    // SAFETY: written by nobody after the image was linked.
    let entries = unsafe { &trap_entries };
    // SAFETY: the table is not in use yet, says the caller.
    let table = unsafe { &mut *TABLE.0.get() };
    for (gate, &entry) in table.iter_mut().zip(entries) {
        *gate = gate_to(entry);
    }
    let base = VirtAddr::from_ptr(ptr::from_ref(table));
    // SAFETY: the table is static, and each gate leads to code that never returns.
    unsafe { lidt(&DescriptorTablePointer { limit: (size_of_val(table) - 1) as u16, base }) };
}

/// Lets interrupt `vector`, from 32 on, lead to `entry`.
///
/// # Safety
/// With interrupts off, on the boot CPU; `entry` must be code that handles an interrupt and returns from it.
pub(crate) unsafe fn install_interrupt(vector: u8, entry: u64) {
    // SAFETY: no interrupt uses the table now, says the caller.
    let table = unsafe { &mut *TABLE.0.get() };
    table.iter_mut().skip(EXCEPTIONS.max(vector.into())).take(1).for_each(|gate| *gate = gate_to(entry));
}

fn gate_to(entry: u64) -> [u64; 2] {
    let selector = u64::from(CS::get_reg().0);
    [entry & 0xffff | selector << 16 | INTERRUPT_GATE | (entry >> 16 & 0xffff) << 48, entry >> 32]
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
