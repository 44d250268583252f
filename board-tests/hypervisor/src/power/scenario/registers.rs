//! A guest's registers survive its hypercalls.

use core::{arch::global_asm, iter::repeat_n};

use portcullis_suite::Failure;

use super::{Machine, Stage, ensure};
use crate::power::{
    frame::Frame,
    script::{Op, calls},
};

const CALLS: usize = 64;

// Overwrites the vector-scalar registers that a call may change.
global_asm!(
    ".section .text.hv_spoil, \"ax\"",
    ".global hv_spoil_vectors",
    "hv_spoil_vectors:",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48,49,50,51",
    "xxlxor \\n, \\n, \\n",
    ".endr",
    "blr",
);

unsafe extern "C" {
    fn hv_spoil_vectors();
}

/// Answers after it has used vector registers; a call with a first argument of 1 finds r5 changed.
fn full(frame: &mut Frame) {
    // SAFETY: changes only what a call may change (64-bit ELF V2 ABI 2.2.1); the full context has the units on.
    unsafe { hv_spoil_vectors() }
    let [first, ..] = frame.arguments();
    if first == 1 {
        let [_, _, _, _, _, r5, ..] = &mut frame.gpr;
        *r5 = !*r5;
    }
    frame.set_status(0);
}

/// V03.
pub(super) fn guest_registers_survive<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    stage.step("patterns in all registers of the guest, compared after hypercalls in real mode");
    unchanged(stage, calls::EMPTY)?;
    stage.step("the same with hypercalls in the full context, which uses vector registers");
    unchanged(stage, calls::REPORT)?;
    stage.step("a register that the hypervisor changes is noticed");
    stage.run([poisoned(calls::REPORT, 1)], full)?;
    ensure(stage.outcome(0, 0)?.extra == 1, "the guest did not notice exactly the changed register")
}

fn unchanged<M: Machine>(stage: &Stage<'_, M>, opcode: u64) -> Result<(), Failure> {
    stage.run(repeat_n(poisoned(opcode, 0), CALLS), full)?;
    for index in 0..CALLS {
        let outcome = stage.outcome(0, index)?;
        ensure(outcome.trap == 0 && outcome.after != 0, "a call was not made")?;
        ensure(outcome.status == 0, "a call has another status")?;
        ensure(outcome.extra == 0, "a call changed registers of the guest")?;
    }
    Ok(())
}

const fn poisoned(opcode: u64, first: u64) -> Op {
    Op::PoisonedCall([opcode, first, 2, 3, 4, 5, 6, 7, 8])
}
