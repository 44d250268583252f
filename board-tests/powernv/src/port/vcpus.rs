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
/// Where the hypervisor says how far it is with what it does meanwhile.
const HYPERVISOR: u64 = MEETING_PLACE + VCPUS as u64 * LINE;
/// Where nobody looks.
const NOBODY: u64 = HYPERVISOR + LINE;
const BEGUN: u64 = 1;
const ENDED: u64 = 2;
/// Five seconds: a machine that is busy lets a CPU stand still for long.
const MEETING_TICKS: u64 = 5 * 512_000_000;

/// Now, in ticks of the time base.
fn now() -> u64 {
    let nanoseconds = TimeBaseClock.now().as_nanos() as u64;
    // 512 ticks are 1000 ns; what was rounded away is less than a tick.
    (nanoseconds * 64).div_ceil(125)
}

/// Where a vCPU waits between its calls.
#[derive(Clone, Copy)]
pub(super) struct Stops {
    /// For the other one: before each so many calls.
    every: usize,
    /// For the hypervisor to begin and to end: before these calls.
    held: Option<[usize; 2]>,
}

impl Stops {
    /// No stop.
    pub(super) const NONE: Self = Self { every: usize::MAX, held: None };

    /// Place of a call in its vCPU's script.
    fn place(self, number: usize) -> usize {
        let held = self.held.map_or(0, |held| held.iter().filter(|stop| **stop <= number).count());
        number + number / self.every + 1 + held
    }

    /// What a vCPU waits for before a call.
    fn before(self, vcpu: usize, number: usize) -> impl Iterator<Item = Op> {
        let place = |vcpu: usize| MEETING_PLACE + vcpu as u64 * LINE;
        let wait = |own, other, value| Op::Meet { own, other, value, ticks: MEETING_TICKS };
        let (every, [begin, end]) = (self.every, self.held.unwrap_or([usize::MAX; 2]));
        let other = number
            .is_multiple_of(every)
            .then(|| wait(place(vcpu), place(1 - vcpu), (number / every) as u64 + 1));
        let begun = (number == begin).then(|| wait(NOBODY, HYPERVISOR, BEGUN));
        let ended = (number == end).then(|| wait(NOBODY, HYPERVISOR, ENDED));
        other.into_iter().chain(begun).chain(ended)
    }

    /// Meetings, and calls in between.
    fn script<'w>(self, meeting: &'w Meeting<'w>, vcpu: usize) -> impl Iterator<Item = Op> + 'w {
        (0..meeting.calls).flat_map(move |number| {
            self.before(vcpu, number).chain([operation((meeting.work)(vcpu, number))])
        })
    }

    /// Whether each vCPU has made this call.
    fn have_made(self, guest: Guest, number: usize) -> bool {
        let place = self.place(number);
        CPUS.into_iter().all(|cpu| guest.outcome(cpu, place).is_some_and(|record| record.after > 0))
    }
}

impl BoardPort<'_, '_, '_> {
    /// Does it when both vCPUs wait for it.
    fn meanwhile(&mut self, meeting: &Meeting<'_>, control: Control) -> Meanwhile {
        let (guest, stops) = (self.guest, self.stops);
        let (begun, last) = (TimeBaseClock.now(), meeting.begin().saturating_sub(1));
        while !stops.have_made(guest, last) && TimeBaseClock.now().saturating_sub(begun) < LIMIT {
            spin_loop();
        }
        let tell = |progress| guest.memory().write(HYPERVISOR, progress);
        let _ = tell(BEGUN);
        let more = || !stops.have_made(guest, meeting.end().saturating_sub(1));
        let meanwhile = Meanwhile::attempt(now, || self.control(control), more);
        let _ = tell(ENDED);
        meanwhile
    }

    /// Whether both vCPUs came to all meetings: what is no call is one.
    fn have_met(&self, meeting: &Meeting<'_>) -> Result<(), Failure> {
        let call = operation((meeting.work)(0, 0)).record().op;
        for index in 0..self.stops.place(meeting.calls) {
            for cpu in CPUS {
                let record = self.outcome(cpu, index)?;
                ensure(record.op == call || record.status == 0, "a vCPU did not come to a meeting")?;
            }
        }
        Ok(())
    }
}

impl TwoVcpus for BoardPort<'_, '_, '_> {
    fn both(&mut self, meeting: &Meeting<'_>, meanwhile: Option<Control>) -> Result<Meanwhile, Failure> {
        (0..=VCPUS as u64).for_each(|place| self.write(MEETING_PLACE + place * LINE, 0));
        let held = meanwhile.map(|_| [meeting.begin(), meeting.end()]);
        let stops = Stops { every: meeting.every, held };
        self.stops = stops;
        for cpu in CPUS {
            present(secondary::start(cpu, || self.machine.start_cpu(cpu)))?;
        }
        let (guest, before) = (self.guest, CPUS.map(done_in_real_mode));
        let one = stopped(guest.load(SECOND, stops.script(meeting, 0)))?;
        let other = stopped(guest.load(THIRD, stops.script(meeting, 1)))?;
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
        let real: u64 =
            CPUS.into_iter().zip(before).map(|(cpu, before)| done_in_real_mode(cpu) - before).sum();
        self.finished.real += real;
        self.finished.handed_over += (VCPUS * meeting.calls) as u64 - real;
        Ok(meanwhile.unwrap_or_default())
    }

    fn made(&self, vcpu: usize, number: usize) -> Option<Made> {
        let record = self.guest.outcome(*CPUS.get(vcpu)?, self.stops.place(number))?;
        let [opcode, a, b, c, d, ..] = record.arguments;
        Some(Made {
            call: Call { opcode, arguments: [a, b, c, d] },
            answer: Answer { status: record.status as i64, value: record.result },
            span: Span { begun: record.before, ended: record.after },
        })
    }
}
