//! A guest that makes no call is ended at its limit.

use core::time::Duration;

use portcullis_suite::{Event, Failure};

use super::{LIMIT, Machine, Stage, ended, ensure, load, no_call, turn};
use crate::x86::{
    guest::{
        programs::Program,
        script::{Op, What},
    },
    vcpu::{NoCacheControl, Stop},
};

const SHORT: Duration = Duration::from_millis(100);
/// How late the end may come on a machine that stands still for a while.
const LATE: Duration = Duration::from_secs(5);

/// X07.
pub(super) fn svm_guest_is_ended_at_its_limit<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let machine = stage.machine;
    let clock = machine.clock();
    let guest = stage.guest(0)?;
    stage.step("a guest goes round for ever");
    let script = load(guest.memory(), [Op(What::Spin, 0, 0)])?;
    let mut vcpu = stage.vcpu(&guest, Program::Script, script)?;
    for _ in 0..2 {
        let before = clock.now();
        let stop = turn(machine, &mut vcpu, &mut NoCacheControl, &mut no_call, SHORT);
        let took = clock.now().saturating_sub(before);
        ensure(stop == Stop::TimedOut, "the guest was not ended at its limit")?;
        ensure(took >= SHORT && took < SHORT + LATE, "the limit came at another time")?;
        let (what, value) = ("a guest with a limit of 100 ms was ended after", took.as_micros() as u64);
        machine.emit(&Event::Measured { what, value, unit: "us" });
    }
    ensure(vcpu.counts().interrupts >= 2, "no interrupt ended the turn")?;
    stage.step("another guest runs in its place");
    let other = stage.guest(1)?;
    let script = load(other.memory(), [Op(What::Load, 0, 0)])?;
    let mut vcpu = stage.vcpu(&other, Program::Script, script)?;
    ended(turn(machine, &mut vcpu, &mut NoCacheControl, &mut no_call, LIMIT))
}
