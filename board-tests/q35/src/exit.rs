//! How a run ends: QEMU's exit port, then a halt.

use x86_64::instructions::{hlt, interrupts, port::Port};

/// The port of QEMU's `isa-debug-exit`; nothing answers there on a real machine.
const EXIT_PORT: u16 = 0xf4;

/// What the run came to.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum Verdict {
    Passed = 0x10,
    Failed = 0x11,
    Crashed = 0x12,
}

/// Tells QEMU and halts.
pub(crate) fn exit(verdict: Verdict) -> ! {
    // SAFETY: under QEMU the write ends the machine; elsewhere the port belongs to no device.
    unsafe { Port::new(EXIT_PORT).write(verdict as u32) };
    halt()
}

/// Stops this CPU for good.
pub(crate) fn halt() -> ! {
    interrupts::disable();
    loop {
        hlt();
    }
}
