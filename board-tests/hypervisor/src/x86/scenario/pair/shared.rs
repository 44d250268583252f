//! One guest with two vCPUs, on two CPUs at the same time.

use core::time::Duration;

use portcullis_hal::PhysAddr;
use portcullis_suite::{Event, Failure};

use super::{Cpus, Orders, Parts, Task, await_that, beside, parts, take_back, turn};
use crate::x86::{
    exit::NestedFault,
    guest::{
        layout::{FREE, GUEST_BYTES},
        programs::Program,
        script::{self, DONE, GENERAL_PROTECTION, Op, What},
    },
    memory::GuestMemory,
    npt::LARGE,
    scenario::{
        LIMIT, Machine, Stage,
        confined::{MSRS, OUTSIDE},
        ensure, need, no_call, outcome,
    },
    state,
    svm::SvmCpu,
    vcpu::{Stop, Vcpu},
};

/// The first record of each vCPU's script.
const RECORDS: [u64; 2] = [0, 300];
/// How often each tries everything.
const TIMES: u64 = 4;
/// Loads, stores and jumps beyond the memory; then reads and writes of MSRs.
const ACCESSES: u64 = 3 * (OUTSIDE.len() as u64 + 2);
const ATTEMPTS: u64 = ACCESSES + 2 * (MSRS.len() as u64 - 1);
/// The page that is taken back: a large one, as the nested tables have it.
const TAKEN: u64 = 12 << 20;
/// How long memory is looked at after it was taken back.
const LOOK: Duration = Duration::from_millis(50);

/// X41.
pub(in super::super) fn svm_two_vcpus_are_confined<M: Machine>(
    stage: &mut Stage<'_, M>,
) -> Result<(), Failure> {
    ensure(stage.machine.cpus().start(), "there is no second CPU")?;
    let (digest, controls) = (stage.machine.digest(), state::controls());
    attempts(stage)?;
    retraction(stage)?;
    ensure(state::controls() == controls, "the guest changed a register of the hypervisor")?;
    ensure(stage.machine.digest() == digest, "the hypervisor's image has changed")
}

/// All that a guest tries to get out: memory beyond its own and of others, VT-d's and the local APIC's registers (with
/// the command that would reset or start a CPU), and MSRs, with x2APIC's among them.
fn script(others: u64) -> impl Iterator<Item = Op> {
    let places = move || OUTSIDE.into_iter().chain([GUEST_BYTES, others]);
    let accesses = [What::Store, What::Load, What::Jump]
        .into_iter()
        .flat_map(move |what| places().map(move |at| Op(what, at, 0xc_4500)));
    // Not EFER, the first: a guest may write what it has there.
    let msrs = || MSRS.into_iter().skip(1);
    let reads = msrs().map(|number| Op(What::ReadMsr, number, 0));
    let writes = msrs().map(|number| Op(What::WriteMsr, number, 0xc_4500));
    accesses.chain(reads).chain(writes)
}

fn attempts<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("two vCPUs of one guest try to get out, at the same time");
    let cpus = stage.machine.cpus();
    let others = stage.guest(1)?.memory().address().as_u64();
    ensure(others >= GUEST_BYTES, "the other guest's memory has an address that this one has, too")?;
    let guest = stage.guest(0)?;
    let memory = guest.memory();
    for first in RECORDS {
        let script = (0..TIMES).flat_map(|_| script(others));
        need(script::load_from(memory, first, script), "the script does not fit")?;
    }
    let orders = Default::default();
    let ([here, there], cpu) = parts(stage, [0, 1].map(|vcpu| run_script(&guest, vcpu)), &orders)?;
    let told = beside(cpus, |cpu| carry_out(cpus, cpu, there), || carry_out(cpus, cpu, here))?;
    for told in [told.0, told.1] {
        ensure(told == Some(TIMES * ACCESSES), "an access beyond the guest's memory was not told")?;
    }
    for first in RECORDS {
        for index in first..first + TIMES * ATTEMPTS {
            let outcome = outcome(memory, index)?;
            ensure(outcome.vector == GENERAL_PROTECTION, "an attempt to get out was not refused")?;
            ensure(outcome.value == 0, "a refused attempt brought a value")?;
        }
        let after = script::outcome(memory, first + TIMES * ATTEMPTS);
        ensure(after.is_some_and(|after| after.vector != DONE), "more was done than the script says")?;
    }
    Ok(())
}

/// A vCPU of a guest that carries its own script out.
fn run_script<'s, 'm>(guest: &'s super::Guest<'m>, vcpu: u64) -> Task<'s, 'm> {
    let first = RECORDS.into_iter().nth(vcpu as usize).and_then(script::record);
    Task { guest, vcpu, program: Program::Script, argument: first.unwrap_or(u64::MAX) }
}

/// Runs a script on the CPU that executes, and refuses all that faults; how much did. `None` unless it came to its end and
/// left the CPU's registers alone.
fn carry_out<C: Cpus>(cpus: &C, cpu: &SvmCpu, parts: Parts<'_>) -> Option<u64> {
    let controls = state::controls();
    let mut vcpu = parts.vcpu(cpu);
    for faults in 0..=TIMES * ACCESSES {
        match turn(cpus, &mut vcpu, &mut no_call, LIMIT) {
            Stop::Fault(NestedFault { address, .. }) if address >= GUEST_BYTES => vcpu.refuse(),
            Stop::Ended(0) => return (state::controls() == controls).then_some(faults),
            _ => return None,
        }
    }
    None
}

/// Memory that one vCPU stores to all the time is taken back, as is known at the latest when that returns.
fn retraction<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    stage.step("a page is taken back while a vCPU on the second CPU stores to it");
    let cpus = stage.machine.cpus();
    let mut guest = stage.guest(0)?;
    let memory = guest.memory();
    let task = |vcpu, argument| Task { guest: &guest, vcpu, program: Program::Counts, argument };
    let orders: [Orders; 2] = Default::default();
    let [_, order] = &orders;
    let tasks = [task(0, FREE), task(1, TAKEN)];
    let ([_, there], _) = parts(stage, tasks, &orders)?;
    let (stop, here) = beside(
        cpus,
        |cpu| {
            let mut vcpu: Vcpu<_> = there.vcpu(cpu);
            turn(cpus, &mut vcpu, &mut no_call, LIMIT)
        },
        || withdraw(cpus, &mut guest, memory, order),
    )?;
    let (took, seen) = here?;
    let fault = NestedFault { address: TAKEN, write: true, fetch: false, table_walk: false };
    ensure(stop == Stop::Fault(fault), "the vCPU reaches a page that was taken back")?;
    ensure(order.forgotten() == 1, "the second CPU did not forget its translations")?;
    ensure(seen != 0 && memory.read(TAKEN) == Some(seen), "a page changed after it was taken back")?;
    let what = "until a page is out of reach of a vCPU that runs";
    stage.machine.emit(&Event::Measured { what, value: took, unit: "us" });
    Ok(())
}

/// Takes the page back as soon as it is stored to; how long that took, and what it holds then, for good.
fn withdraw<C: Cpus>(
    cpus: &C,
    guest: &mut super::Guest<'_>,
    memory: GuestMemory,
    order: &Orders,
) -> Result<(u64, u64), Failure> {
    use portcullis_hal::Clock;
    let rises = || memory.read(TAKEN).is_some_and(|value| value > 1000);
    ensure(await_that(cpus, LIMIT, rises), "the vCPU does not store")?;
    let before = cpus.clock().now();
    take_back(cpus, guest, (PhysAddr::new(TAKEN), LARGE), order)?;
    let took = cpus.clock().now().saturating_sub(before).as_micros() as u64;
    let seen = need(memory.read(TAKEN), "there is no such page")?;
    let changed = await_that(cpus, LOOK, || memory.read(TAKEN) != Some(seen));
    ensure(!changed, "a page changed after it was taken back")?;
    Ok((took, seen))
}
