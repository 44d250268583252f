//! `hcall_revoked_while_calling`, `hcall_connected_while_calling`: what the hypervisor does behind a window while two
//! virtual CPUs keep calling there.

use super::{
    call::{BOTH, BUSY, Call, SUCCESS},
    guest::{Guest, Reach, ensure, failure},
    port::{Control, GuestPort, Layout},
    vcpus::{Meeting, Span, TwoVcpus, VCPUS, made},
};
use crate::{Event, Failure};

/// The device that comes and goes; the other one stays.
const DEVICE: usize = 1;
/// How often it does.
const TIMES: u64 = 4;
/// A machine that is busy may run one CPU at a time for a while.
const ATTEMPTS: u64 = 100;
/// Calls of each virtual CPU, and the entries that each keeps changing.
const CALLS: usize = 1000;
const ENTRIES: u64 = 32;
/// An entry that neither of them touches, and its page.
const APART: u64 = 100;
const PAGE: u64 = 26;

/// D62: the ownership of a device is revoked: it reaches nothing, no count and no entry of its tables is left, and the
/// other device's are as the guest wants them.
pub(super) fn revoked<P: TwoVcpus>(port: &mut P) -> Result<(), Failure> {
    port.emit(&Event::Step { text: "a device is revoked while two virtual CPUs keep calling on its window" });
    let mut guest = Guest::new(port);
    rounds(&mut guest, |guest| {
        guest.port.reset()?;
        guest.controls(connect(guest))?;
        let within = during(guest, Control::Revoke { device: DEVICE })?;
        ensure(within.is_some(), "the hypervisor could not revoke a device while guests called")?;
        Ok(within)
    })?;
    guest
        .port
        .emit(&Event::Step { text: "the revoked device reaches nothing, the other one what is mapped" });
    reaches(&mut guest, DEVICE, Reach::NOTHING)?;
    reaches(&mut guest, 0, Reach::ALL)?;
    guest.port.check()
}

/// D61: a device comes to the window, and goes.
pub(super) fn connected<P: TwoVcpus>(port: &mut P) -> Result<(), Failure> {
    port.emit(&Event::Step {
        text: "a device comes and goes while two virtual CPUs keep calling on the window",
    });
    port.reset()?;
    let mut guest = Guest::new(port);
    let connect = connect(&guest);
    rounds(&mut guest, |guest| {
        let Some(came) = during(guest, connect)? else {
            // An entry stayed contended: the hypervisor may try again.
            reaches(guest, DEVICE, Reach::NOTHING)?;
            return Ok(None);
        };
        reaches(guest, DEVICE, Reach::ALL)?;
        let went = during(guest, Control::Disconnect { device: DEVICE })?;
        let went = went.ok_or(failure("the hypervisor could not take a device away while guests called"))?;
        let ([one, other], [one_more, other_more]) = (came, went);
        Ok(Some([one + one_more, other + other_more]))
    })?;
    reaches(&mut guest, DEVICE, Reach::NOTHING)
}

const fn connect<P>(guest: &Guest<'_, P>) -> Control {
    Control::Connect { device: DEVICE, liobn: guest.window.liobn, page_shift: 12 }
}

fn reaches<P: GuestPort>(guest: &mut Guest<'_, P>, device: usize, reach: Reach) -> Result<(), Failure> {
    guest.use_device(device);
    guest.reaches(guest.ioba(APART), guest.plain(PAGE, 0), reach)
}

/// Repeats `round` until it succeeded often enough, and calls of each virtual CPU were under way during it. Not of both at
/// the same time: a host with two CPUs lets one of three stand still.
fn rounds<P: TwoVcpus>(
    guest: &mut Guest<'_, P>,
    round: impl Fn(&mut Guest<'_, P>) -> Result<Option<[u64; VCPUS]>, Failure>,
) -> Result<(), Failure> {
    let (mut times, mut together, [mut ones, mut others]) = (0, 0, [0; VCPUS]);
    for _ in 0..ATTEMPTS {
        if let Some([one, other]) = round(guest)? {
            times += 1;
            together += u64::from(one > 0 && other > 0);
            (ones, others) = (ones + one, others + other);
        }
        if times >= TIMES && ones > 0 && others > 0 {
            guest.port.tell("of the first virtual CPU that were under way meanwhile", ones);
            guest.port.tell("of the second one", others);
            let what = "and of both during the same";
            guest.port.emit(&Event::Measured { what, value: together, unit: "times" });
            return Ok(());
        }
    }
    Err(failure(
        "no call of a virtual CPU was under way meanwhile, or the hypervisor did its part too seldom",
    ))
}

/// Both virtual CPUs call, and the hypervisor does `control`; how many calls of each were under way during that. `None`
/// when it was refused.
fn during<P: TwoVcpus>(guest: &mut Guest<'_, P>, control: Control) -> Result<Option<[u64; VCPUS]>, Failure> {
    guest.set_bench()?;
    let status = guest.put(APART, guest.plain(PAGE, BOTH));
    guest.commits(status)?;
    let pages = guest.plain(0, BOTH);
    guest.write_list(ENTRIES / 2, |number| pages + ((number % 8) << 12));
    let (layout, list) = (guest.layout(), guest.list());
    let work = |vcpu, number| a_call(layout, list, vcpu, number as u64);
    let meeting = Meeting { calls: CALLS, every: CALLS, work: &work };
    let deed = guest.port.both(&meeting, Some(control))?;
    let within = [within(guest.port, 0, deed.span)?, within(guest.port, 1, deed.span)?];
    guest.port.check()?;
    Ok(deed.done.then_some(within))
}

/// Call `number` of a virtual CPU, in entries of its own.
const fn a_call(layout: Layout, list: u64, vcpu: usize, number: u64) -> Call {
    let (window, first) = (layout.main(), vcpu as u64 * ENTRIES);
    let (liobn, all, one) = (window.liobn, window.ioba(first), window.ioba(first + number % ENTRIES));
    let page = layout.plain().page(number % 16);
    match number % 7 {
        0 => Call::indirect(liobn, all, list, ENTRIES / 2),
        2 => Call::stuff(liobn, all, 0, ENTRIES / 4),
        4 => Call::put(liobn, one, page),
        6 => Call::get(liobn, one),
        _ => Call::put(liobn, one, page | BOTH),
    }
}

/// Each call was done, or came to H_BUSY while the hypervisor was at it; how many were under way during that.
fn within<P: TwoVcpus>(port: &P, vcpu: usize, deed: Span) -> Result<u64, Failure> {
    let mut within = 0;
    for number in 0..CALLS {
        let call = made(port, vcpu, number)?;
        let (status, met) = (call.answer.status, call.span.meets(deed));
        ensure(status == SUCCESS || status == BUSY && met, "a call came to another status")?;
        within += u64::from(met);
    }
    Ok(within)
}
