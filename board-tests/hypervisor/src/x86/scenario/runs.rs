//! A guest does what its program says; its hypercalls arrive.

use portcullis_suite::{Event, Failure};

use super::{LIMIT, Machine, Stage, ended, ensure, turn};
use crate::x86::{
    guest::{calls, layout::FREE, programs::Program},
    state,
    vcpu::{Call, NoCacheControl, UNKNOWN_CALL},
};

const VALUE: u64 = 0x8877_6655_4433_2211;
/// What a report is answered with, beside its value.
const ANSWER: u64 = 0x1234_5678_0000_0000;
/// Hypercalls that the program makes beside its reports: a thousand, one with patterns in all registers, and 200
/// that are measured.
const EMPTY_CALLS: u64 = 1000 + 1 + 200;
const REPORTS: usize = 6;

/// X01, X02.
pub(super) fn svm_guest_runs<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let machine = stage.machine;
    let guest = stage.guest(0)?;
    let (digest, controls) = (machine.digest(), state::controls());
    stage.step("the guest stores, loads, and makes hypercalls");
    let mut reports = Reports::default();
    let mut vcpu = stage.vcpu(&guest, Program::Runs, FREE)?;
    ended(turn(machine, &mut vcpu, &mut NoCacheControl, &mut |call| reports.answer(call), LIMIT))?;
    let counts = vcpu.counts();
    let [loaded, seven, answer, empty, changed, ticks] = reports.values;
    ensure(reports.count == REPORTS, "the guest made another number of reports")?;
    ensure(loaded == VALUE >> 32 | !VALUE << 32, "a word was not loaded as it was stored")?;
    ensure(guest.memory().read(FREE) == Some(VALUE), "the guest's memory holds something else")?;
    ensure((seven, answer) == (7, ANSWER | 7), "a hypercall was not answered as the handler said")?;
    ensure(empty == 1000, "an empty call has another answer")?;
    ensure(changed == 0, "a register of the guest changed in a hypercall")?;
    let calls = EMPTY_CALLS + REPORTS as u64 + 1;
    ensure(counts.hypercalls == calls, "another number of hypercalls arrived")?;
    ensure(state::controls() == controls, "a register of the hypervisor changed")?;
    ensure(machine.digest() == digest, "the hypervisor's image has changed")?;
    let what = "an empty hypercall by VMMCALL, least of 200";
    machine.emit(&Event::Measured { what, value: ticks, unit: "ticks" });
    Ok(())
}

/// What the guest reported.
#[derive(Default)]
struct Reports {
    values: [u64; REPORTS],
    count: usize,
}

impl Reports {
    fn answer(&mut self, call: Call) -> u64 {
        let [value, ..] = call.arguments;
        if call.number != calls::REPORT {
            return UNKNOWN_CALL;
        }
        self.values.get_mut(self.count).into_iter().for_each(|place| *place = value);
        self.count += 1;
        ANSWER | value
    }
}
