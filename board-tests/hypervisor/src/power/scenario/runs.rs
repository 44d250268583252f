//! A guest does what its script says; its hypercalls arrive in real mode.

use core::iter::repeat_n;
use core::sync::atomic::{AtomicU64, Ordering};

use portcullis_suite::Failure;

use super::{Machine, Stage, ensure};
use crate::power::{
    frame::{Frame, HANDLER_MASK, HANDLER_MSR, MSR_DR, MSR_HV, MSR_IR, MSR_PR},
    guest::FREE_START,
    guest_call::{done_in_real_mode, handle_nothing_in_real_mode},
    script::{Op, Width, call, calls},
};

/// A number that the scenario's full context knows: nobody else's.
const REPORT: u64 = calls::REPORT;
const ANSWER: u64 = 0x1234_5678_9abc;
const TIMES: u64 = 1000;
const SINGLES: usize = 200;

static HANDLER: AtomicU64 = AtomicU64::new(0);
static CALLER: AtomicU64 = AtomicU64::new(0);

fn full(frame: &mut Frame) {
    HANDLER.store(frame.handler_msr, Ordering::Relaxed);
    CALLER.store(frame.msr, Ordering::Relaxed);
    let [first, second, ..] = frame.arguments();
    let known = frame.opcode() == REPORT && (first, second) == (7, 8);
    frame.set_status(if known { 0 } else { super::H_FUNCTION });
    frame.set_result(ANSWER);
}

/// V01, V02.
pub(super) fn guest_runs<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    accesses(stage)?;
    hypercalls(stage)?;
    repeats(stage)?;
    costs(stage)
}

fn accesses<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("the guest stores to its memory, and loads it again");
    let value = 0x8877_6655_4433_2211;
    let memory = stage.guest.memory();
    stage.run(
        [
            Op::Store(Width::Eight, FREE_START, value),
            Op::Load(Width::Four, FREE_START + 4),
            Op::Load(Width::One, FREE_START + 1),
            Op::Store(Width::One, FREE_START + 7, 0xff),
            Op::Load(Width::Eight, memory.bytes() - 8),
        ],
        full,
    )?;
    ensure(stage.outcome(0, 1)?.status == 0x8877_6655, "a word was not loaded as it was stored")?;
    ensure(stage.outcome(0, 2)?.status == 0x22, "a byte was not loaded as it was stored")?;
    ensure(memory.read(FREE_START) == Some(value | 0xff << 56), "the guest's memory holds something else")?;
    for index in 0..5 {
        ensure(stage.outcome(0, index)?.trap == 0, "an access to the guest's own memory was refused")?;
    }
    Ok(())
}

fn hypercalls<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("hypercalls: one done in real mode, one in the full context, one unknown");
    let before = done_in_real_mode(0);
    stage.run([call(calls::EMPTY, &[]), call(REPORT, &[7, 8]), call(calls::LAST + 4, &[])], full)?;
    let (empty, report, unknown) = (stage.outcome(0, 0)?, stage.outcome(0, 1)?, stage.outcome(0, 2)?);
    ensure((empty.status, empty.extra) == (0, 1), "the empty call has another status")?;
    ensure((report.status, report.result) == (0, ANSWER), "a call was not answered as the handler said")?;
    ensure(unknown.status == super::H_FUNCTION, "an unknown call has another status")?;
    ensure(done_in_real_mode(0) == before + 1, "another number of calls was done in real mode")?;
    let (handler, caller) = (HANDLER.load(Ordering::Relaxed), CALLER.load(Ordering::Relaxed));
    ensure(handler & HANDLER_MASK == HANDLER_MSR, "the handler was entered with another MSR")?;
    ensure(
        caller & (MSR_HV | MSR_PR | MSR_IR | MSR_DR) == 0,
        "the guest was no privileged guest in real mode",
    )
}

fn repeats<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("a thousand hypercalls in real mode, then as many with nothing handled there");
    let script = [Op::Repeat(TIMES), call(calls::EMPTY, &[]), Op::End];
    let before = done_in_real_mode(0);
    stage.run(script, full)?;
    ensure(stage.outcome(0, 1)?.extra == TIMES, "the guest made another number of calls")?;
    ensure(done_in_real_mode(0) == before + TIMES, "a call was not done in real mode")?;
    handle_nothing_in_real_mode(true);
    let ended = stage.run(script, full);
    handle_nothing_in_real_mode(false);
    ended?;
    ensure(stage.outcome(0, 1)?.extra == TIMES, "the guest made another number of calls")?;
    ensure(done_in_real_mode(0) == before + TIMES, "a call was done in real mode against orders")
}

fn costs<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    let real = least(stage, calls::EMPTY)?;
    let whole = least(stage, calls::EMPTY_FULL)?;
    stage.measured("an empty hypercall in real mode, least of 200", real, "ticks");
    stage.measured("an empty hypercall in the full context, least of 200", whole, "ticks");
    Ok(())
}

/// Least ticks of the time base that a call takes the guest.
fn least<M: Machine>(stage: &Stage<'_, M>, opcode: u64) -> Result<u64, Failure> {
    stage.run(repeat_n(call(opcode, &[]), SINGLES), full)?;
    let mut least = u64::MAX;
    for index in 0..SINGLES {
        let outcome = stage.outcome(0, index)?;
        ensure(outcome.status == 0 && outcome.after >= outcome.before, "time went backwards in a call")?;
        least = least.min(outcome.after - outcome.before);
    }
    Ok(least)
}
