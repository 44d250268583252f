//! Two guests at the same time, each on a CPU and with a device.

use core::time::Duration;

use portcullis_hal::Clock;
use portcullis_suite::{Board, Event, Failure};

use super::{Cpus, Parts, Task, beside, driven, driven::pattern, parts, turn};
use crate::x86::{
    guest::{dma, layout::ARGUMENTS, programs::Program},
    scenario::{LIMIT, Machine, Stage, ended, ensure, no_call, tenant::Tenant},
    svm::SvmCpu,
    vcpu::Stop,
};

/// How a guest's turn ended, when it began, and when it was over.
type Turn = (Stop, [Duration; 2]);

/// X44.
pub(in super::super) fn svm_guests_drive_devices_at_once<M: Machine>(
    stage: &mut Stage<'_, M>,
) -> Result<(), Failure> {
    let machine = stage.machine;
    let cpus = machine.cpus();
    ensure(cpus.start(), "there is no second CPU")?;
    let (policy, spec) = (stage.policy()?, machine.board().spec());
    let mut one = Tenant::new(stage, policy, 0, &spec)?;
    let mut other = Tenant::new(stage, policy, 1, &spec)?;
    let lent = [one.lend(0, policy.group(0)?)?, other.lend(1, policy.group(1)?)?];
    let memories = [one.guest.memory(), other.guest.memory()];
    for (index, (memory, lent)) in memories.into_iter().zip(&lent).enumerate() {
        driven::prepare(memory, lent.registers, index)?;
    }
    stage.step("two guests on two CPUs have their devices copy, at the same addresses, at the same time");
    let task = |guest| Task { guest, vcpu: 0, program: Program::Copies, argument: ARGUMENTS };
    let orders = Default::default();
    let ([here, there], cpu) = parts(stage, [task(&one.guest), task(&other.guest)], &orders)?;
    let (second, first) = beside(cpus, |cpu| timed(cpus, cpu, there), || timed(cpus, cpu, here))?;
    let together = overlap(first.1, second.1);
    ended(first.0)?;
    ended(second.0)?;
    ensure(!together.is_zero(), "the guests did not run at the same time")?;
    let (value, what) = (together.as_micros() as u64, "time in which both guests had their devices copy");
    machine.emit(&Event::Measured { what, value, unit: "us" });
    for (index, memory) in memories.into_iter().enumerate() {
        ensure(dma::has_arrived(memory, pattern(index)), "a guest's device did not copy in its own memory")?;
    }
    let [ours, theirs] = lent;
    one.take_back(ours)?;
    other.take_back(theirs)?;
    one.dismiss()?;
    other.dismiss()
}

/// Runs one of the two, on the CPU that executes.
fn timed<C: Cpus>(cpus: &C, cpu: &SvmCpu, parts: Parts<'_>) -> Turn {
    let began = cpus.clock().now();
    let stop = turn(cpus, &mut parts.vcpu(cpu), &mut no_call, LIMIT);
    (stop, [began, cpus.clock().now()])
}

/// How long both turns went on.
fn overlap([began, ended]: [Duration; 2], [also_began, also_ended]: [Duration; 2]) -> Duration {
    ended.min(also_ended).saturating_sub(began.max(also_began))
}
