//! Two guests at the same time, each on a CPU.

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use portcullis_suite::{Event, Failure};

use super::{Cpus, Parts, Task, await_that, beside, parts, turn};
use crate::x86::{
    guest::{
        calls,
        layout::ARGUMENTS,
        meets::{self, Record},
        programs::Program,
    },
    memory::GuestMemory,
    scenario::{LIMIT, Machine, Stage, ended, ensure, need},
    svm::SvmCpu,
    vcpu::{Call, Counts, Stop, UNKNOWN_CALL},
};

/// How long one guest waits for the other in a round.
const PATIENCE: Duration = Duration::from_secs(5);
/// CPUIDs that each guest executes in a round, in its argument: of its number there are no two alike.
const CPUIDS: [u64; 2] = [1, 3];

/// Where two guests meet: the last round that each has come to.
#[derive(Default)]
struct Meeting {
    rounds: [AtomicU64; 2],
}

impl Meeting {
    /// Guest `index` has come to `round`: waits for the other one, whose memory must tell of the same round or of the next.
    fn come(&self, cpus: &impl Cpus, index: usize, round: u64, other: GuestMemory) -> u64 {
        let [Some(mine), Some(theirs)] = [self.rounds.get(index), self.rounds.get(1 - index)] else {
            return meets::LOST;
        };
        mine.store(round, Ordering::Release);
        if !await_that(cpus, PATIENCE, || theirs.load(Ordering::Acquire) >= round) {
            return meets::LOST;
        }
        match meets::read(other, Record::Round) {
            Some(seen) if seen == round || seen == round + 1 => meets::MET,
            _ => meets::LOST,
        }
    }
}

/// X40.
pub(in super::super) fn svm_guests_overlap<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let machine = stage.machine;
    let (cpus, digest) = (machine.cpus(), machine.digest());
    ensure(cpus.start(), "there is no second CPU")?;
    let guests = [stage.guest(0)?, stage.guest(1)?];
    let memories = guests.each_ref().map(|guest| guest.memory());
    for (memory, cpuids) in memories.into_iter().zip(CPUIDS) {
        need(meets::prepare(memory, cpuids), "the arguments do not fit")?;
    }
    stage.step("two guests run on two CPUs, and each waits for the other again and again");
    let [one, other] = &guests;
    let task = |guest| Task { guest, vcpu: 0, program: Program::Meets, argument: ARGUMENTS };
    let (orders, meeting) = (Default::default(), Meeting::default());
    let ([here, there], cpu) = parts(stage, [task(one), task(other)], &orders)?;
    let [first, second] = memories;
    let began = machine.clock().now();
    let results = beside(
        cpus,
        |cpu| meet(cpus, cpu, there, &meeting, 1, first),
        || meet(cpus, cpu, here, &meeting, 0, second),
    )?;
    let took = machine.clock().now().saturating_sub(began).as_micros() as u64;
    let results: [(Stop, Counts); 2] = [results.1, results.0];
    for ((stop, counts), cpuids) in results.into_iter().zip(CPUIDS) {
        ended(stop)?;
        // A report, a call with patterns in all registers; and the end.
        ensure(counts.hypercalls == 2 * meets::ROUNDS + 1, "another number of hypercalls arrived")?;
        ensure(counts.cpuid == cpuids * meets::ROUNDS, "a guest has exits of the other's")?;
    }
    judge(memories)?;
    machine.emit(&Event::Measured { what: "200 meetings of two guests", value: took, unit: "us" });
    ensure(machine.digest() == digest, "the hypervisor's image has changed")
}

/// Runs one of the two, on the CPU that executes.
fn meet<C: Cpus>(
    cpus: &C,
    cpu: &SvmCpu,
    parts: Parts<'_>,
    meeting: &Meeting,
    index: usize,
    other: GuestMemory,
) -> (Stop, Counts) {
    let mut vcpu = parts.vcpu(cpu);
    let stop = turn(
        cpus,
        &mut vcpu,
        &mut |Call { number, arguments: [round, ..] }| match number {
            calls::REPORT => meeting.come(cpus, index, round, other),
            _ => UNKNOWN_CALL,
        },
        6 * LIMIT,
    );
    (stop, vcpu.counts())
}

/// What the two wrote down.
fn judge(memories: [GuestMemory; 2]) -> Result<(), Failure> {
    let read = |memory, record| need(meets::read(memory, record), "a record is not there");
    let [one, other] = memories;
    for memory in memories {
        ensure(read(memory, Record::Changed)? == 0, "a register of a guest changed while another one ran")?;
        ensure(read(memory, Record::Round)? == meets::ROUNDS, "a guest came to another round")?;
    }
    let begins = [read(one, Record::Begin)?, read(other, Record::Begin)?];
    let ends = [read(one, Record::End)?, read(other, Record::End)?];
    ensure(begins.iter().max() < ends.iter().min(), "the guests did not run at the same time")
}
