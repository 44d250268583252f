//! What the hypervisor does behind a window while guests keep calling there.

use portcullis_hypervisor::power::{
    scenario::{Machine, ensure, fail, present},
    script::{Op, call, calls},
    second::{self, SECOND},
};
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Call, Control, Deed, GuestPort, Moment, Window,
        call::{BOTH, BUSY, SUCCESS},
    },
};

use super::vcpus::{meet, operation};
use crate::{hypervisor::Guests, port::BoardPort};

/// The device that comes and goes; the other one stays.
const DEVICE: usize = 1;
/// How often it does.
const ROUNDS: u64 = 8;
/// A machine that is busy may run one CPU at a time for a while.
const ATTEMPTS: u64 = 100;
/// Operations of vCPU 0: a meeting, calls, the hypervisor's deed, calls.
const BEFORE: usize = 60;
const AFTER: usize = 60;
/// Operations of vCPU 1: a meeting, then calls all the time.
const CALLS: usize = 1000;
/// Entries that each vCPU keeps changing.
const ENTRIES: u64 = 32;
/// 4 KiB pages of the plain area: the meeting place, the list, and what shows whether a device reaches anything.
const MEETING_PAGE: u64 = 28;
const LIST_PAGE: u64 = 30;
const FROM_PAGE: u64 = 26;
const TO_PAGE: u64 = 27;
/// Their entries.
const FROM: u64 = 600;
const TO: u64 = 601;

/// D62: the ownership of a device is revoked.
pub(super) fn revoked(port: &mut BoardPort<'_, '_, '_>, machine: &Guests<'_, '_>) -> Result<(), Failure> {
    port.emit(&Event::Step {
        text: "a device is revoked while a second CPU's guest keeps calling on its window",
    });
    present(second::start(|| machine.start_second()))?;
    let during = rounds(port, |port| {
        port.reset()?;
        connect(port)?;
        let within = during(port, Control::Revoke { device: DEVICE })?;
        ensure(within.is_some(), "the hypervisor could not revoke a device while guests called")?;
        Ok(within)
    })?;
    told(port, during);
    port.emit(&Event::Step { text: "the revoked device reaches nothing, the other one what is mapped" });
    ensure(!reaches(port, DEVICE)?, "a revoked device reached memory")?;
    ensure(reaches(port, 0)?, "the device that was left reached nothing")
}

/// D61: a device comes to a window, and goes.
pub(super) fn connected(port: &mut BoardPort<'_, '_, '_>, machine: &Guests<'_, '_>) -> Result<(), Failure> {
    port.emit(&Event::Step {
        text: "a device comes and goes while a second CPU's guest keeps calling on the window",
    });
    present(second::start(|| machine.start_second()))?;
    port.reset()?;
    let liobn = port.layout().main().liobn;
    let during = rounds(port, |port| {
        let Some(came) = during(port, Control::Connect { device: DEVICE, liobn, page_shift: 12 })? else {
            // An entry stayed contended: the hypervisor may try again.
            ensure(!reaches(port, DEVICE)?, "a device that could not come reached memory")?;
            return Ok(None);
        };
        ensure(reaches(port, DEVICE)?, "a device does not reach what was mapped before it came")?;
        let went = during(port, Control::Disconnect { device: DEVICE })?;
        ensure(went.is_some(), "the hypervisor could not take a device away while guests called")?;
        Ok(went.map(|went| came + went))
    })?;
    told(port, during);
    ensure(!reaches(port, DEVICE)?, "a device that has gone reached memory")
}

/// Repeats `round` until it succeeded often enough, and vCPU 1 had calls finished during it; how many.
fn rounds<'s, 'a, 'b>(
    port: &mut BoardPort<'s, 'a, 'b>,
    round: impl Fn(&mut BoardPort<'s, 'a, 'b>) -> Result<Option<u64>, Failure>,
) -> Result<u64, Failure> {
    let (mut done, mut during) = (0, 0);
    for _ in 0..ATTEMPTS {
        if let Some(within) = round(port)? {
            done += 1;
            during += within;
        }
        if done >= ROUNDS && during > 0 {
            return Ok(during);
        }
    }
    fail("no call of the second vCPU was under way meanwhile, or the hypervisor its own too seldom")
}

fn told(port: &mut BoardPort<'_, '_, '_>, calls: u64) {
    let what = "calls of the second vCPU that were under way meanwhile";
    port.emit(&Event::Measured { what, value: calls, unit: "calls" });
}

fn connect(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    let liobn = port.layout().main().liobn;
    let done = port.control(Control::Connect { device: DEVICE, liobn, page_shift: 12 });
    ensure(done, "the second device was not connected")
}

/// Both vCPUs call, and the hypervisor does `control` on the first one's CPU; how many calls of the second vCPU were
/// under way during that. `None` when it was refused.
fn during(port: &mut BoardPort<'_, '_, '_>, control: Control) -> Result<Option<u64>, Failure> {
    let plain = port.layout().plain();
    (0..2).for_each(|vcpu| port.write(plain.page(MEETING_PAGE) + vcpu * 128, 0));
    (0..ENTRIES)
        .for_each(|number| port.write(plain.page(LIST_PAGE) + number * 8, plain.page(number % 8) | BOTH));
    for (entry, page) in [(FROM, FROM_PAGE), (TO, TO_PAGE)] {
        let window = port.layout().main();
        let put = Call::put(window.liobn, window.ioba(entry), plain.page(page) | BOTH);
        ensure(port.call(put).status == SUCCESS, "a page could not be mapped")?;
    }
    let window = port.layout().main();
    port.arrange(Moment::HandedOver, Deed::Control(control));
    port.run_both(|vcpu| script(window, plain.guest, vcpu))?;
    let done = port.arranged().is_some_and(|answer| answer.status == SUCCESS);
    let within = judge(port)?;
    port.check()?;
    Ok(done.then_some(within))
}

fn script(window: Window, plain: u64, vcpu: usize) -> impl Iterator<Item = Op> {
    let length = 1 + if vcpu == 0 { BEFORE + 1 + AFTER } else { CALLS };
    (0..length).map(move |index| match index {
        0 => meet(plain + (MEETING_PAGE << 12), vcpu, 1),
        index if vcpu == 0 && index == 1 + BEFORE => call(calls::REPORT, &[]),
        index => operation(a_call(window, plain, vcpu, index as u64)),
    })
}

/// Call `number` of a vCPU, in entries of its own.
const fn a_call(window: Window, plain: u64, vcpu: usize, number: u64) -> Call {
    let (liobn, first) = (window.liobn, vcpu as u64 * ENTRIES);
    let (all, one) = (window.ioba(first), window.ioba(first + number % ENTRIES));
    let page = plain + ((number % 16) << 12);
    match number % 7 {
        0 => Call::indirect(liobn, all, plain + (LIST_PAGE << 12), ENTRIES / 2),
        2 => Call::stuff(liobn, all, 0, ENTRIES / 4),
        4 => Call::put(liobn, one, page),
        6 => Call::get(liobn, one),
        _ => Call::put(liobn, one, page | BOTH),
    }
}

/// Each call was done, or came to H_BUSY while the hypervisor was at it; how many were under way during that.
fn judge(port: &BoardPort<'_, '_, '_>) -> Result<u64, Failure> {
    let report = port.outcome(0, 1 + BEFORE)?;
    let [begun, ended] = port.deed();
    let (mut within, mut later) = (0, 0);
    for vcpu in [0, SECOND] {
        let calls = if vcpu == 0 { BEFORE + 1 + AFTER } else { CALLS };
        for index in 1..=calls {
            let call = port.outcome(vcpu, index)?;
            let met = vcpu == SECOND && call.before < report.after && report.before < call.after;
            let status = call.status as i64;
            ensure(status == SUCCESS || status == BUSY && met, "a call came to another status")?;
            within += u64::from(met && begun <= call.after && call.before <= ended);
            later += u64::from(vcpu == SECOND && ended < call.before);
        }
    }
    // Otherwise the hypervisor may have waited for the last call.
    Ok(if later > 0 { within } else { 0 })
}

/// Whether a device copies a word through entries that were mapped before.
fn reaches(port: &mut BoardPort<'_, '_, '_>, device: usize) -> Result<bool, Failure> {
    let (plain, window) = (port.layout().plain(), port.layout().main());
    let word = 0x4d45_414e_0000_0000 | device as u64;
    port.write(plain.page(FROM_PAGE), word);
    port.write(plain.page(TO_PAGE), 0);
    port.copy(device, window.ioba(FROM), window.ioba(TO))?;
    Ok(port.read(plain.page(TO_PAGE)) == word)
}
