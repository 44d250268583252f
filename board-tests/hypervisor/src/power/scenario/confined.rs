//! A guest reaches its memory and nothing else.

use core::time::Duration;

use portcullis_suite::Failure;

use super::{Machine, Stage, ensure, fail, no_call};
use crate::power::{
    cpu::{self, Processor},
    guest::Stop,
    guest_call::done_in_real_mode,
    script::{Op, Privileged, Width, call, calls},
};

/// Interrupts that a refused access ends in: the guest's own data storage interrupt (POWER8, whose limit is the
/// guest's), or the hypervisor's.
const REFUSED_ACCESS: [u64; 2] = [0x300, 0xe00];
/// Interrupts that a refused fetch ends in, in the same way.
const REFUSED_FETCH: [u64; 2] = [0x400, 0xe20];
/// Interrupts that a refused instruction ends in: the guest's own program interrupt, or the hypervisor's emulation
/// assistance.
const REFUSED_INSTRUCTION: [u64; 2] = [0x700, 0xe40];
/// Where the image lies, and firmware, when taken for guest real addresses.
const IMAGE: u64 = 0x2000_0000;
const FIRMWARE: u64 = 0x3000_0000;
const INSTRUCTIONS: [Privileged; 9] = [
    Privileged::WriteLpcr,
    Privileged::WritePtcr,
    Privileged::WriteRmor,
    Privileged::WriteHrmor,
    Privileged::WriteLpidr,
    Privileged::WriteHsprg0,
    Privileged::ReturnFromHypervisor,
    Privileged::LoadInhibited,
    Privileged::ReadHsrr1,
];

/// V04, V05.
pub(super) fn guest_is_confined<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    let (digest, control) = (stage.machine.digest(), cpu::controls());
    accesses(stage)?;
    instructions(stage)?;
    problem_state(stage)?;
    ensure(stage.machine.digest() == digest, "the hypervisor's image has changed")?;
    ensure(cpu::controls() == control, "the guest changed a register of the hypervisor")?;
    endless(stage)
}

fn accesses<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest stores to, loads from and jumps to what is not its memory");
    let end = stage.guest.memory().bytes();
    for at in [end, end + 0x1000, IMAGE, FIRMWARE, 1 << 30, 1 << 40, 1 << 51] {
        stage.run([Op::Store(Width::Eight, at, 1), Op::Load(Width::Eight, at), Op::Jump(at)], no_call)?;
        for index in 0..2 {
            let outcome = stage.outcome(0, index)?;
            ensure(
                REFUSED_ACCESS.contains(&outcome.trap),
                "an access beyond the guest's memory was not refused",
            )?;
            ensure(outcome.extra == at, "an access was refused at another address")?;
            ensure(outcome.status == 0, "a refused load brought a value")?;
        }
        let fetched = stage.outcome(0, 2)?.trap;
        ensure(REFUSED_FETCH.contains(&fetched), "a jump beyond the guest's memory was not refused")?;
    }
    Ok(())
}

fn instructions<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest tries the hypervisor's instructions, and goes on after each");
    for what in INSTRUCTIONS.into_iter().filter(|what| cpu::has(*what)) {
        stage.run([Op::Privileged(what), call(calls::EMPTY, &[])], no_call)?;
        let (outcome, call) = (stage.outcome(0, 0)?, stage.outcome(0, 1)?);
        ensure(REFUSED_INSTRUCTION.contains(&outcome.trap), described(what))?;
        ensure(outcome.status == 0, "a refused instruction brought a value")?;
        ensure((call.status, call.extra) == (0, 1), "the guest does not go on after a refusal")?;
    }
    Ok(())
}

const fn described(what: Privileged) -> &'static str {
    match what {
        Privileged::WriteLpcr => "the guest may write LPCR",
        Privileged::WritePtcr => "the guest may write PTCR",
        Privileged::WriteRmor => "the guest may write RMOR",
        Privileged::WriteHrmor => "the guest may write HRMOR",
        Privileged::WriteLpidr => "the guest may write LPIDR",
        Privileged::WriteHsprg0 => "the guest may write HSPRG0",
        Privileged::ReturnFromHypervisor => "the guest may use hrfid",
        Privileged::LoadInhibited => "the guest may use lwzcix",
        Privileged::ReadHsrr1 => "the guest may read HSRR1",
    }
}

/// POWER8's guest has no tables for a problem state.
fn problem_state<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    if Processor::this() != Some(Processor::Radix) {
        return Ok(());
    }
    stage.step("the guest's problem state makes a hypercall");
    let done = done_in_real_mode(0);
    stage.run([Op::CallAsProcess(calls::EMPTY), Op::CallAsProcess(calls::EMPTY_FULL)], no_call)?;
    for index in 0..2 {
        let trap = stage.outcome(0, index)?.trap;
        ensure(trap == 0x700, "a hypercall from problem state did not end in a program interrupt")?;
    }
    ensure(done_in_real_mode(0) == done, "a hypercall from problem state was handled")
}

fn endless<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("a guest that makes no call is ended at its limit");
    let ended = stage.guest.run_script([Op::Wait(u64::MAX)], no_call, Duration::from_millis(100));
    match ended {
        Err(Stop::TimedOut) => stage.run([call(calls::EMPTY, &[])], no_call),
        _ => fail("the guest was not ended at its limit"),
    }
}
