//! The timer of the local APIC, which ends a guest's turn.

use core::{arch::global_asm, ptr, time::Duration};

use portcullis_hypervisor::x86::vcpu::TurnLimit;
use x86_64::instructions::{interrupts, port::Port};

use crate::traps;

/// Registers of the local APIC, after reset (AMD64 manual, volume 2, 16.3).
const APIC: usize = 0xfee0_0000;
const SPURIOUS: usize = 0xf0;
const TIMER: usize = 0x320;
/// Where the older interrupt controller's interrupts arrive.
const LINT0: usize = 0x350;
const INITIAL_COUNT: usize = 0x380;
const CURRENT_COUNT: usize = 0x390;
const DIVIDE: usize = 0x3e0;
/// The APIC is on; spurious interrupts have vector 63.
const ENABLED: u32 = 1 << 8 | 63;
/// One count every 16 ticks of its clock.
const BY_16: u32 = 3;
const MASKED: u32 = 1 << 16;
const VECTOR: u8 = 48;
/// Counts of this many microseconds at 1 GHz, which is what QEMU has; a slower timer ends a turn later, a faster one
/// earlier, and the loop around looks at the time.
const COUNTS_A_MICROSECOND: u64 = 1000 / 16;

global_asm!(
    ".section .text.limit, \"ax\", @progbits",
    "limit_interrupt:",
    "push rax",
    "mov eax, 0xfee000b0", // End of interrupt.
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    "limit_spurious:",
    "iretq",
);

unsafe extern "C" {
    static limit_interrupt: u8;
    static limit_spurious: u8;
}

/// The timer of this CPU.
#[derive(Debug)]
pub(crate) struct Limit(());

impl Limit {
    /// Turns the local APIC on, with its timer at rest.
    ///
    /// # Safety
    /// With interrupts off, on the boot CPU, where the local APIC is mapped uncached at its address after reset.
    pub(crate) unsafe fn new() -> Self {
        // SAFETY: both are handlers that return; the rest is promised by the caller.
        unsafe {
            traps::install_interrupt(VECTOR, (&raw const limit_interrupt).addr() as u64);
            traps::install_interrupt(63, (&raw const limit_spurious).addr() as u64);
        }
        // First, so that none is on its way when the APIC lets none through.
        mask_older_controllers();
        write(SPURIOUS, ENABLED);
        write(LINT0, MASKED);
        write(DIVIDE, BY_16);
        write(TIMER, MASKED | u32::from(VECTOR));
        Self(())
    }
}

impl TurnLimit for Limit {
    fn arm(&mut self, left: Duration) {
        let counts = (left.as_micros() as u64).saturating_mul(COUNTS_A_MICROSECOND);
        write(TIMER, VECTOR.into());
        write(INITIAL_COUNT, u32::try_from(counts).unwrap_or(u32::MAX).max(1));
    }

    fn take_interrupts(&mut self) {
        interrupts::enable();
        // An interrupt is taken behind the instruction that follows.
        x86_64::instructions::nop();
        interrupts::disable();
    }

    fn disarm(&mut self) {
        write(INITIAL_COUNT, 0);
        write(TIMER, MASKED | u32::from(VECTOR));
        // Reading it back lets an interrupt that was on its way arrive.
        read(CURRENT_COUNT);
        self.take_interrupts();
    }
}

/// Masks all interrupts of the two 8259 controllers, of which the interval timer's has come by now.
fn mask_older_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: masks interrupts that nothing of this image waits for.
        unsafe { Port::<u8>::new(port).write(0xff) }
    }
}

fn write(register: usize, value: u32) {
    // SAFETY: the local APIC is there (promised to `new`); its timer and its being on act on this image only.
    unsafe { ptr::with_exposed_provenance_mut::<u32>(APIC + register).write_volatile(value) }
}

fn read(register: usize) -> u32 {
    // SAFETY: as above; reading changes nothing.
    unsafe { ptr::with_exposed_provenance::<u32>(APIC + register).read_volatile() }
}
