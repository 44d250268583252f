//! The full context with address translation on (POWER9 and POWER10): memory and devices at their own addresses,
//! devices by ordinary loads and stores.

use core::{
    arch::asm,
    sync::atomic::{AtomicBool, Ordering},
};

use portcullis_hal::PhysAddr;

use super::{
    cpu::{self, Processor},
    frame::{Frame, MSR_DR, MSR_IR},
    guest::{FullContext, Guest},
    tables,
};

static ON: AtomicBool = AtomicBool::new(false);

/// From now on hands hypercalls that are too hard for real mode to the full context with translation on. The GiB
/// around each of `devices` is mapped cache-inhibited and guarded; beyond those and the first GiB of memory, nothing
/// is. `None` on POWER8, and for a device that lies within the memory.
///
/// # Safety
/// In hypervisor real mode; the image and its stacks must lie in the first GiB, and no vCPU may have its turn.
#[must_use]
pub unsafe fn switch_on(_guest: &Guest, devices: &[PhysAddr]) -> Option<()> {
    (Processor::this()? == Processor::Radix).then_some(())?;
    tables::map_host(devices)?;
    // SAFETY: this processor has radix tables, and `_guest` has set PTCR to the partition table.
    unsafe { cpu::forget_translations() }
    ON.store(true, Ordering::Release);
    Some(())
}

/// The full context is in real mode again.
pub fn switch_off() {
    ON.store(false, Ordering::Release);
}

/// Calls the full context in the mode that was chosen.
pub(super) fn call(full: FullContext, frame: &mut Frame) {
    if !ON.load(Ordering::Acquire) {
        full(frame);
        return;
    }
    // A guest may write PIDR, which chooses the process table's entry (section 5.7.5.1): the hypervisor's is 0.
    let process = cpu::exchange_process(0);
    let real = cpu::machine_state();
    // SAFETY: everything that is used from here on is mapped at its own address; interrupts turn translation off.
    unsafe { set_machine_state(real | MSR_IR | MSR_DR) }
    full(frame);
    // SAFETY: the state from before.
    unsafe { set_machine_state(real) }
    cpu::exchange_process(process);
}

/// # Safety
/// Code, stack and data must be where they are under that state, too.
unsafe fn set_machine_state(state: u64) {
    // SAFETY: promised by the caller.
    unsafe { asm!("mtmsrd {state}", "isync", state = in(reg) state, options(nostack)) }
}
