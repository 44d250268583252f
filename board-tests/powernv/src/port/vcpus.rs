//! Two vCPUs on the second and the third CPU, beside the hypervisor on the first one.

use core::hint::spin_loop;

use portcullis_hal::{Clock, arch::powerpc64::TimeBaseClock};
use portcullis_hypervisor::power::{
    guest::Guest,
    guest_call::done_in_real_mode,
    scenario::{LIMIT, Machine, ensure, present, stopped},
    script::Op,
    secondary::{self, SECOND, THIRD},
};
use portcullis_suite::{
    Failure,
    hcall::{
        Answer, Call, Control, GuestPort,
        port::MEMORY_BYTES,
        vcpus::{Made, Meanwhile, Meeting, Span, TwoVcpus, VCPUS},
    },
};

use super::{BoardPort, LAYOUT, operation};
use crate::server;

/// The CPU of each vCPU.
const CPUS: [usize; VCPUS] = [SECOND, THIRD];
/// Guest address where they say that they have come, each in a cache line of its own.
const MEETING_PLACE: u64 = LAYOUT.memory + MEMORY_BYTES;
const LINE: u64 = 128;
/// Two seconds.
const MEETING_TICKS: u64 = 2 * 512_000_000;
/// Calls after which a vCPU has been calling for a while, and after which it is too late.
const WHILE: usize = 60;
const LATE: usize = 500;

/// Now, in ticks of the time base.
fn now() -> u64 {
    let nanoseconds = TimeBaseClock.now().as_nanos() as u64;
    // 512 ticks are 1000 ns; what was rounded away is less than a tick.
    (nanoseconds * 64).div_ceil(125)
}

/// Place of a call in its vCPU's script.
const fn place(every: usize, number: usize) -> usize {
    number + number / every + 1
}

/// Meetings, and calls in between.
fn script<'w>(meeting: &'w Meeting<'w>, vcpu: usize) -> impl Iterator<Item = Op> + 'w {
    (0..meeting.calls).flat_map(move |number| {
        let met = number.is_multiple_of(meeting.every).then(|| meet(vcpu, number / meeting.every));
        met.into_iter().chain([operation((meeting.work)(vcpu, number))])
    })
}

const fn meet(vcpu: usize, before: usize) -> Op {
    let (own, other) = (MEETING_PLACE + vcpu as u64 * LINE, MEETING_PLACE + (1 - vcpu as u64) * LINE);
    Op::Meet { own, other, value: before as u64 + 1, ticks: MEETING_TICKS }
}

/// Whether each vCPU has made so many calls.
fn have_made(guest: Guest, meeting: &Meeting<'_>, calls: usize) -> bool {
    let made = |cpu| guest.outcome(cpu, place(meeting.every, calls)).is_some_and(|record| record.after > 0);
    CPUS.into_iter().all(made)
}

impl BoardPort<'_, '_, '_> {
    /// Does it when both vCPUs have been calling for a while.
    fn meanwhile(&mut self, meeting: &Meeting<'_>, control: Control) -> Meanwhile {
        let begun = TimeBaseClock.now();
        while !have_made(self.guest, meeting, WHILE) && TimeBaseClock.now().saturating_sub(begun) < LIMIT {
            spin_loop();
        }
        let guest = self.guest;
        Meanwhile::attempt(now, || self.control(control), || !have_made(guest, meeting, LATE))
    }

    /// Whether both came to all meetings.
    fn have_met(&self, meeting: &Meeting<'_>) -> Result<(), Failure> {
        for number in (0..meeting.calls).step_by(meeting.every) {
            for cpu in CPUS {
                let came = self.outcome(cpu, place(meeting.every, number) - 1)?;
                ensure(came.status == 0, "a vCPU did not come to a meeting")?;
            }
        }
        Ok(())
    }
}

impl TwoVcpus for BoardPort<'_, '_, '_> {
    fn both(&mut self, meeting: &Meeting<'_>, meanwhile: Option<Control>) -> Result<Meanwhile, Failure> {
        (0..VCPUS as u64).for_each(|vcpu| self.write(MEETING_PLACE + vcpu * LINE, 0));
        for cpu in CPUS {
            present(secondary::start(cpu, || self.machine.start_cpu(cpu)))?;
        }
        let (guest, before) = (self.guest, CPUS.map(done_in_real_mode));
        let one = stopped(guest.load(SECOND, script(meeting, 0)))?;
        let other = stopped(guest.load(THIRD, script(meeting, 1)))?;
        let full = server::full_context;
        let ran = secondary::run_beside(SECOND, guest, one, full, LIMIT, || {
            secondary::run_beside(THIRD, guest, other, full, LIMIT, || {
                meanwhile.map(|control| self.meanwhile(meeting, control))
            })
        });
        let (one, other) = present(ran)?;
        let (other, meanwhile) = present(other)?;
        stopped(one)?;
        stopped(other)?;
        self.have_met(meeting)?;
        self.met_every = meeting.every;
        let real: u64 =
            CPUS.into_iter().zip(before).map(|(cpu, before)| done_in_real_mode(cpu) - before).sum();
        self.finished.real += real;
        self.finished.handed_over += (VCPUS * meeting.calls) as u64 - real;
        Ok(meanwhile.unwrap_or_default())
    }

    fn made(&self, vcpu: usize, number: usize) -> Option<Made> {
        let record = self.guest.outcome(*CPUS.get(vcpu)?, place(self.met_every, number))?;
        let [opcode, a, b, c, d, ..] = record.arguments;
        Some(Made {
            call: Call { opcode, arguments: [a, b, c, d] },
            answer: Answer { status: record.status as i64, value: record.result },
            span: Span { begun: record.before, ended: record.after },
        })
    }
}
