//! Interrupt vectors: installed once, for the hypervisor's own traps and for guests.

use core::{
    arch::{asm, global_asm},
    ptr::with_exposed_provenance_mut,
};

use super::{
    area::{self, offsets},
    guest_call::portcullis_guest_call,
};

unsafe extern "C" {
    static hv_vectors: u32;
    static hv_vectors_end: u32;
    /// What the image does when the hypervisor itself is interrupted, at `vector` from `pc`. Never returns.
    fn portcullis_host_trap(vector: u64, pc: u64) -> !;
}

global_asm!(
    ".set F_PC, {pc}", ".set F_MSR, {msr}", ".set F_LR, {lr}", ".set F_CTR, {ctr}",
    ".set F_XER, {xer}", ".set F_CR, {cr}", ".set F_HANDLER_MSR, {frame_handler_msr}",
    ".set F_VECTOR, {vector}", ".set F_HDAR, {hdar}", ".set F_HDSISR, {hdsisr}",
    ".set A_REAL_STACK, {real_stack}", ".set A_CRASH_STACK, {crash_stack}",
    ".set A_HOST_STACK, {host_stack}", ".set A_HOST_MSR, {host_msr}",
    ".set A_HANDLER_MASK, {handler_mask}", ".set A_HANDLER_MSR, {handler_msr}",
    ".set A_GUEST_VECTORS, {guest_vectors}", ".set A_HOST_VECTORS, {host_vectors}",
    include_str!("vectors.s"),
    pc = const offsets::PC,
    msr = const offsets::MSR,
    lr = const offsets::LR,
    ctr = const offsets::CTR,
    xer = const offsets::XER,
    cr = const offsets::CR,
    frame_handler_msr = const offsets::FRAME_HANDLER_MSR,
    vector = const offsets::VECTOR,
    hdar = const offsets::HDAR,
    hdsisr = const offsets::HDSISR,
    real_stack = const offsets::REAL_STACK,
    crash_stack = const offsets::CRASH_STACK,
    host_stack = const offsets::HOST_STACK,
    host_msr = const offsets::HOST_MSR,
    handler_mask = const offsets::HANDLER_MASK,
    handler_msr = const offsets::HANDLER_MSR,
    guest_vectors = const offsets::GUEST_VECTORS,
    host_vectors = const offsets::HOST_VECTORS,
    guest_call = sym portcullis_guest_call,
    host_trap = sym portcullis_host_trap,
);

/// Where vectors begin: real address 0, of which the first 256 bytes are nobody's.
const FIRST_VECTOR: usize = 0x100;

/// Puts the vectors in place, and gives this CPU, the first one, its area.
///
/// # Safety
/// To be called once, in hypervisor real mode, by the only CPU that runs; memory below 64 KiB must be nobody's.
/// Interrupts must enter in little-endian mode from then on.
pub unsafe fn install() {
    let (start, end) = (&raw const hv_vectors, &raw const hv_vectors_end);
    for word in FIRST_VECTOR / 4..(end.addr() - start.addr()) / 4 {
        // SAFETY: the words of the code; the memory is nobody's, says the caller.
        unsafe {
            with_exposed_provenance_mut::<u32>(0).wrapping_add(word).write_volatile(start.add(word).read())
        }
    }
    // SAFETY: makes the new instructions visible to this CPU, and nothing else.
    unsafe { asm!("sync", "icbi 0, {zero}", "sync", "isync", zero = in(reg) 0u64, options(nostack)) }
    if let Some(area) = area::prepare(0) {
        // SAFETY: the vectors' code wants the area there.
        unsafe { asm!("mtspr 304, {area}", area = in(reg) area.addr(), options(nostack, nomem)) }
    }
}
