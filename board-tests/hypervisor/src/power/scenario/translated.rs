//! The full context serves a guest with address translation on.

use core::{
    ptr::{NonNull, with_exposed_provenance_mut},
    sync::atomic::{AtomicU64, Ordering},
};

use portcullis_hal::{RegisterIo, arch::powerpc64::MappedRegisters};
use portcullis_suite::Failure;

use super::{LIMIT, Machine, Stage, ensure, need, present, stopped};
use crate::power::{
    cpu,
    frame::{Frame, MSR_DR, MSR_HV, MSR_IR},
    script::{Op, calls},
    secondary::{self, SECOND},
    virtual_mode,
};

const CALLS: usize = 64;
const BOTH: u64 = MSR_IR | MSR_DR;
/// edu's liveness check: reads as the complement of what was written.
const LIVENESS: usize = 4;

static DEVICE: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// The result is the full context's MSR, the status what a device says of the first argument.
fn full(frame: &mut Frame) {
    let [first, ..] = frame.arguments();
    let status = if first == 0 { 0 } else { ask_device(first as u32).into() };
    frame.set_status(status);
    frame.set_result(cpu::machine_state());
}

fn ask_device(question: u32) -> u32 {
    let registers = with_exposed_provenance_mut(DEVICE.load(Ordering::Relaxed) as usize);
    let Some(start) = NonNull::<u8>::new(registers) else { return 0 };
    // SAFETY: mapped guarded and cache-inhibited at their own address while translation is on.
    let registers = unsafe { MappedRegisters::new(start, BYTES.load(Ordering::Relaxed) as usize) };
    registers.write32(LIVENESS, question);
    registers.read32(LIVENESS)
}

/// V08.
pub(super) fn guest_is_served_in_virtual_mode<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    let (registers, bytes) = need(stage.machine.device_registers(), "the board has no device")?;
    DEVICE.store(registers.as_u64(), Ordering::Relaxed);
    BYTES.store(bytes, Ordering::Relaxed);
    // SAFETY: hypervisor real mode; the link script puts the image in the first GiB; no vCPU has its turn.
    let on = unsafe { virtual_mode::switch_on(&stage.guest, &[registers]) };
    need(on, "the hypervisor's own tables cannot be made")?;
    let result = served(stage);
    virtual_mode::switch_off();
    result?;
    stage.step("and in real mode again");
    stage.run([poisoned(0)], full)?;
    ensure(stage.outcome(0, 0)?.result & BOTH == 0, "the full context still translates")
}

fn served<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("hypercalls are handled with address translation on, and the handler asks a device");
    stage.run(script(), full)?;
    check(stage, 0)?;
    ensure(cpu::machine_state() & BOTH == 0, "translation stays on")?;
    stage.step("the same on the second CPU");
    present(secondary::start(SECOND, || stage.machine.start_cpu(SECOND)))?;
    let loaded = stopped(stage.guest.load(SECOND, script()))?;
    let (theirs, ()) = present(secondary::run_beside(SECOND, stage.guest, loaded, full, LIMIT, || ()))?;
    stopped(theirs)?;
    check(stage, SECOND)
}

fn check<M: Machine>(stage: &Stage<'_, M>, vcpu: usize) -> Result<(), Failure> {
    ensure(stage.outcome(vcpu, 0)?.trap == 0, "the guest may not write PIDR")?;
    for index in 0..CALLS {
        let outcome = stage.outcome(vcpu, 1 + index)?;
        let expected = if index == 0 { 0 } else { !(index as u32) };
        ensure(outcome.status == u64::from(expected), "the device answers the handler otherwise")?;
        let state = outcome.result & (BOTH | MSR_HV);
        ensure(state == BOTH | MSR_HV, "the full context ran without address translation")?;
        ensure(outcome.extra == 0, "a call changed registers of the guest")?;
    }
    Ok(())
}

/// The guest names another process than the hypervisor's, and calls.
fn script() -> impl Iterator<Item = Op> {
    let calls = (0..CALLS).map(|index| poisoned(index as u64));
    core::iter::once(Op::WriteProcess(5)).chain(calls)
}

const fn poisoned(first: u64) -> Op {
    Op::PoisonedCall([calls::REPORT, first, 2, 3, 4, 5, 6, 7, 8])
}
