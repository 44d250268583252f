//! What each CPU has for itself: the guest's registers, stacks, and the full context's place to go back to.

use core::{cell::UnsafeCell, mem::offset_of};

use super::frame::{Frame, HANDLER_MASK, HANDLER_MSR};

/// CPUs that run guests.
pub(super) const CPUS: usize = 3;
/// Bytes of stack for the real-mode handler.
const REAL_STACK_BYTES: usize = 8 << 10;
/// Bytes of stack for the report of a trap in the hypervisor.
const CRASH_STACK_BYTES: usize = 16 << 10;
/// Bytes of stack for the full context of a CPU that the hypervisor starts.
const FULL_STACK_BYTES: usize = 64 << 10;
/// The smallest frame of a caller (64-bit ELF V2 ABI 2.2.2), above which a stack begins.
const FIRST_FRAME: u64 = 128;

/// Vector, float and status registers of one side.
#[repr(C, align(16))]
pub(super) struct Vectors {
    registers: [[u64; 2]; 64],
    vscr: [u64; 2],
    fpscr: u64,
    vrsave: u64,
}

impl Vectors {
    const ZERO: Self = Self { registers: [[0; 2]; 64], vscr: [0; 2], fpscr: 0, vrsave: 0 };
}

/// One CPU's area. The code in `vectors.s` reaches it by HSPRG0.
#[repr(C, align(128))]
pub(super) struct Area {
    pub(super) frame: Frame,
    real_stack: u64,
    crash_stack: u64,
    host_stack: u64,
    host_msr: u64,
    handler_mask: u64,
    handler_msr: u64,
    guest: Vectors,
    host: Vectors,
}

#[repr(C, align(128))]
struct Stacks {
    real: [u8; REAL_STACK_BYTES],
    crash: [u8; CRASH_STACK_BYTES],
    full: [u8; FULL_STACK_BYTES],
}

#[repr(C)]
struct PerCpu {
    area: Area,
    stacks: Stacks,
}

struct PerCpus(UnsafeCell<[PerCpu; CPUS]>);

// SAFETY: each element is used by the CPU with its index alone, and by `prepare` before that CPU runs.
unsafe impl Sync for PerCpus {}

static PER_CPU: PerCpus = PerCpus(UnsafeCell::new([const { PerCpu::NEW }; CPUS]));

impl PerCpu {
    const NEW: Self = Self {
        area: Area {
            frame: Frame::ZERO,
            real_stack: 0,
            crash_stack: 0,
            host_stack: 0,
            host_msr: 0,
            handler_mask: 0,
            handler_msr: 0,
            guest: Vectors::ZERO,
            host: Vectors::ZERO,
        },
        stacks: Stacks {
            real: [0; REAL_STACK_BYTES],
            crash: [0; CRASH_STACK_BYTES],
            full: [0; FULL_STACK_BYTES],
        },
    };
}

/// The area of a CPU; `None` for one that the hypervisor has no area for.
pub(super) fn area(cpu: usize) -> Option<*mut Area> {
    // SAFETY: inside the static; no reference is made.
    (cpu < CPUS).then(|| unsafe { &raw mut (*element(cpu)).area })
}

fn element(cpu: usize) -> *mut PerCpu {
    PER_CPU.0.get().cast::<PerCpu>().wrapping_add(cpu)
}

/// Where a CPU's full context has its stack when the hypervisor starts that CPU.
pub(super) fn full_stack(cpu: usize) -> Option<u64> {
    // SAFETY: inside the static; no reference is made.
    (cpu < CPUS).then(|| top(unsafe { &raw mut (*element(cpu)).stacks.full }.addr(), FULL_STACK_BYTES))
}

/// Fills in what never changes. To be called before the CPU takes interrupts or runs guests.
pub(super) fn prepare(cpu: usize) -> Option<*mut Area> {
    let area = area(cpu)?;
    // SAFETY: inside the static; the CPU does not use its area yet, says the caller's order.
    unsafe {
        let stacks = &raw mut (*element(cpu)).stacks;
        (*area).frame.cpu = cpu as u64;
        (*area).real_stack = top((&raw mut (*stacks).real).addr(), REAL_STACK_BYTES);
        (*area).crash_stack = top((&raw mut (*stacks).crash).addr(), CRASH_STACK_BYTES);
        (*area).handler_mask = HANDLER_MASK;
        (*area).handler_msr = HANDLER_MSR;
    }
    Some(area)
}

const fn top(start: usize, bytes: usize) -> u64 {
    (start + bytes) as u64 - FIRST_FRAME
}

/// Offsets that the assembly code is given.
pub(super) mod offsets {
    use super::{Area, Frame, Vectors, offset_of};

    pub(in super::super) const PC: usize = offset_of!(Frame, pc);
    pub(in super::super) const MSR: usize = offset_of!(Frame, msr);
    pub(in super::super) const LR: usize = offset_of!(Frame, lr);
    pub(in super::super) const CTR: usize = offset_of!(Frame, ctr);
    pub(in super::super) const XER: usize = offset_of!(Frame, xer);
    pub(in super::super) const CR: usize = offset_of!(Frame, cr);
    pub(in super::super) const FRAME_HANDLER_MSR: usize = offset_of!(Frame, handler_msr);
    pub(in super::super) const VECTOR: usize = offset_of!(Frame, vector);
    pub(in super::super) const HDAR: usize = offset_of!(Frame, hdar);
    pub(in super::super) const HDSISR: usize = offset_of!(Frame, hdsisr);
    pub(in super::super) const REAL_STACK: usize = offset_of!(Area, real_stack);
    pub(in super::super) const CRASH_STACK: usize = offset_of!(Area, crash_stack);
    pub(in super::super) const HOST_STACK: usize = offset_of!(Area, host_stack);
    pub(in super::super) const HOST_MSR: usize = offset_of!(Area, host_msr);
    pub(in super::super) const HANDLER_MASK: usize = offset_of!(Area, handler_mask);
    pub(in super::super) const HANDLER_MSR: usize = offset_of!(Area, handler_msr);
    pub(in super::super) const GUEST_VECTORS: usize = offset_of!(Area, guest);
    pub(in super::super) const HOST_VECTORS: usize = offset_of!(Area, host);

    const _: () = assert!(offset_of!(Area, frame) == 0 && offset_of!(Frame, gpr) == 0, "r13 is both");
    const _: () =
        assert!(offset_of!(Vectors, vscr) == 1024 && offset_of!(Vectors, fpscr) == 1040, "as saved");
}
