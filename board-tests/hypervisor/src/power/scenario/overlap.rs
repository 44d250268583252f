//! Two vCPUs on two CPUs make hypercalls at the same time.

use portcullis_suite::Failure;

use super::{LIMIT, Machine, Stage, ensure, fail, need, no_call, present, stopped};
use crate::power::{
    guest::FREE_START,
    guest_call::done_in_real_mode,
    script::{Op, Record, call, calls},
    secondary::{self, SECOND},
};

const ROUNDS: usize = 20;
const CALLS: usize = 20;
/// A machine that is busy may run one CPU at a time for a while.
const ATTEMPTS: usize = 20;
/// A meeting, then the calls.
const ROUND: usize = 1 + CALLS;
const LENGTH: usize = ROUNDS * ROUND + 1;
/// Two seconds.
const MEETING_TICKS: u64 = 2 * 512_000_000;
/// Where a vCPU says that it has come, each in a cache line of its own.
const CAME: [u64; 2] = [FREE_START, FREE_START + 128];

/// V06.
pub(super) fn two_vcpus_overlap<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("a second CPU starts, and both run the guest: they meet, then call, round after round");
    present(secondary::start(SECOND, || stage.machine.start_cpu(SECOND)))?;
    for _ in 0..ATTEMPTS {
        let together = attempt(stage)?;
        if together > 0 {
            stage.measured("calls of two vCPUs that were under way at the same time", together, "pairs");
            return Ok(());
        }
    }
    fail("no two calls were under way at the same time")
}

/// Both vCPUs' scripts; how many pairs of calls were under way at the same time.
fn attempt<M: Machine>(stage: &Stage<'_, M>) -> Result<u64, Failure> {
    for came in CAME {
        need(stage.guest.memory().write(came, 0), "the guest's memory is too small")?;
    }
    let done = [done_in_real_mode(0), done_in_real_mode(SECOND)];
    let [own, other] = CAME;
    let loaded = stopped(stage.guest.load(SECOND, script(other, own)))?;
    let (theirs, ours) = present(secondary::run_beside(SECOND, stage.guest, loaded, no_call, LIMIT, || {
        stage.guest.run_script(script(own, other), no_call, LIMIT)
    }))?;
    stopped(ours)?;
    stopped(theirs)?;
    for (vcpu, before) in done.into_iter().enumerate() {
        let made = done_in_real_mode(vcpu) - before;
        ensure(made == (ROUNDS * CALLS) as u64, "a vCPU's calls were not all done on its CPU")?;
    }
    let mut together = 0;
    for round in 0..ROUNDS {
        inside(stage, round, 0, SECOND)?;
        inside(stage, round, SECOND, 0)?;
        together += overlaps(stage, round)?;
    }
    Ok(together)
}

fn script(own: u64, other: u64) -> impl Iterator<Item = Op> {
    (0..LENGTH).map(move |index| {
        if index % ROUND == 0 {
            Op::Meet { own, other, value: (index / ROUND + 1) as u64, ticks: MEETING_TICKS }
        } else {
            call(calls::EMPTY, &[])
        }
    })
}

/// All calls of `vcpu` in this round lie between the other's coming to the meeting before it and its leaving the
/// meeting after it.
fn inside<M: Machine>(stage: &Stage<'_, M>, round: usize, vcpu: usize, other: usize) -> Result<(), Failure> {
    let came = stage.outcome(other, round * ROUND)?;
    let left = stage.outcome(other, (round + 1) * ROUND)?;
    ensure(came.status == 0 && left.status == 0, "a vCPU did not come to a meeting")?;
    for index in 0..CALLS {
        let call = a_call(stage, round, vcpu, index)?;
        ensure(call.status == 0, "a call has another status")?;
        ensure(came.before <= call.before && call.after <= left.after, "a call was made out of its round")?;
    }
    Ok(())
}

/// How many pairs of calls of this round were under way at the same time.
fn overlaps<M: Machine>(stage: &Stage<'_, M>, round: usize) -> Result<u64, Failure> {
    let mut pairs = 0;
    for mine in 0..CALLS {
        let mine = a_call(stage, round, 0, mine)?;
        for theirs in 0..CALLS {
            let theirs = a_call(stage, round, SECOND, theirs)?;
            pairs += u64::from(mine.before < theirs.after && theirs.before < mine.after);
        }
    }
    Ok(pairs)
}

fn a_call<M: Machine>(
    stage: &Stage<'_, M>,
    round: usize,
    vcpu: usize,
    index: usize,
) -> Result<Record, Failure> {
    stage.outcome(vcpu, round * ROUND + 1 + index)
}
