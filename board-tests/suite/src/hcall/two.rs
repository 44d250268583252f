//! `hcall_two_vcpus`, `hcall_revoked_while_calling`: two virtual CPUs on two CPUs call at once.

use super::{
    call::{BOTH, BUSY, Call, READ, SUCCESS},
    guest::{Guest, Reach},
    port::{Control, GuestPort},
    scenario::{ensure, tell},
};
use crate::{Event, Failure};

/// A port whose virtual CPUs run on two CPUs at once.
pub trait TwoVcpus: GuestPort {
    /// Each virtual CPU makes its calls in order, at least so many rounds of them, both at once. What is to be done
    /// meanwhile, the hypervisor does when both have been calling for a while.
    ///
    /// # Errors
    /// A virtual CPU did not come to its end in time, or what was to be done meanwhile was refused.
    fn both(&mut self, work: [&[Call]; 2], rounds: u32, meanwhile: Option<Control>) -> Result<Met, Failure>;
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Calls of both that came to H_SUCCESS.
    pub success: u64,
    /// That came to H_BUSY.
    pub busy: u64,
    /// That came to anything else.
    pub other: u64,
    /// Calls of one that were under way while the other one's was.
    pub overlapped: u64,
}

impl Met {
    const fn calls(self) -> u64 {
        self.success + self.busy + self.other
    }

    const fn add(&mut self, more: Self) {
        self.success += more.success;
        self.busy += more.busy;
        self.other += more.other;
        self.overlapped += more.overlapped;
    }
}

/// How often both virtual CPUs begin, and rounds of each then: in between they are still, and everything is looked at.
const MEETINGS: u32 = 60;
const ROUNDS: u32 = 12;
/// Rounds of each while a device is revoked.
const LONG: u32 = 500;
/// First of the entries at which they meet, and how many these are.
const FIRST: u64 = 250;
const COUNT: u64 = 12;
/// An entry that neither of them touches.
const APART: u64 = 100;

/// What one virtual CPU calls: every way to change an entry, at entries that the other one changes too.
fn work<P: GuestPort>(guest: &Guest<'_, P>, page: u64) -> [Call; 8] {
    let (liobn, at) = (guest.window.liobn, |number| guest.ioba(FIRST + number));
    let tce = guest.plain(page, BOTH);
    [
        Call::put(liobn, at(2), tce),
        guest.indirect_call(FIRST, COUNT),
        Call::put(liobn, at(3), 0),
        Call::stuff(liobn, at(1), 0, 5),
        Call::put(liobn, at(2), guest.plain(page + 1, READ)),
        guest.indirect_call(FIRST + 4, COUNT - 4),
        Call::stuff(liobn, at(0), 8, COUNT),
        Call::put(liobn, at(11), tce),
    ]
}

/// Both virtual CPUs at work; each call must have ended as if it were alone, or with H_BUSY.
fn meet<P: TwoVcpus>(
    guest: &mut Guest<'_, P>,
    rounds: u32,
    meanwhile: Option<Control>,
) -> Result<Met, Failure> {
    let page = guest.plain(8, BOTH);
    guest.write_list(COUNT, |number| page + (number << 12));
    let (one, other) = (work(guest, 2), work(guest, 4));
    let met = guest.port.both([&one, &other], rounds, meanwhile)?;
    let least = u64::from(rounds) * (one.len() + other.len()) as u64;
    ensure(met.calls() >= least, "a call was lost")?;
    ensure(met.other == 0, "a call came to neither H_SUCCESS nor H_BUSY")?;
    Ok(met)
}

/// Tells how the two met; they must have.
fn told<P: TwoVcpus>(guest: &mut Guest<'_, P>, met: Met) -> Result<(), Failure> {
    tell(guest.port, "of two virtual CPUs", met.calls());
    tell(guest.port, "of them under way while another one was", met.overlapped);
    tell(guest.port, "of them came to H_BUSY", met.busy);
    ensure(met.overlapped > 0, "the two virtual CPUs never called at once")
}

/// Entries that permit something, of those at which the two meet.
fn live<P: GuestPort>(guest: &mut Guest<'_, P>) -> Result<u64, Failure> {
    let mut live = 0;
    for number in 0..COUNT {
        let answer = guest.call(Call::get(guest.window.liobn, guest.ioba(FIRST + number)));
        ensure(answer.status == SUCCESS, "H_GET_TCE was refused")?;
        live += u64::from(answer.value & BOTH != 0);
    }
    Ok(live)
}

/// Two virtual CPUs change the same entries at once: counts are the live entries, hardware holds what the view says, and
/// nothing stays taken.
///
/// # Errors
/// What was not as the contract says.
pub fn two_vcpus<P: TwoVcpus>(port: &mut P) -> Result<(), Failure> {
    port.reset()?;
    let mut guest = Guest::new(port);
    guest.port.emit(&Event::Step { text: "two virtual CPUs change the same entries at once" });
    let mut met = Met::default();
    for _ in 0..MEETINGS {
        met.add(meet(&mut guest, ROUNDS, None)?);
        let live = live(&mut guest)?;
        guest.counts(live)?;
        (0..COUNT).try_for_each(|number| guest.port.check_entry(guest.window, FIRST + number))?;
    }
    told(&mut guest, met)?;
    guest.port.check()?;
    // No entry stayed taken, and none is forgotten.
    let status = guest.stuff(FIRST, 0, COUNT);
    ensure(status != BUSY, "an entry stayed taken when both had ended")?;
    guest.commits(status)?;
    guest.counts(0)?;
    guest.port.check()
}

/// A device is revoked while two virtual CPUs keep calling: no count and no entry of its tables is left, and the other
/// device's are as the guest wants them.
///
/// # Errors
/// What was not as the contract says.
pub fn revoked_while_calling<P: TwoVcpus>(port: &mut P) -> Result<(), Failure> {
    port.reset()?;
    let mut guest = Guest::new(port);
    let liobn = guest.window.liobn;
    guest.controls(Control::Connect { device: 1, liobn, page_shift: 12 })?;
    guest.set_bench()?;
    let page = guest.plain(1, 0);
    let status = guest.put(APART, page | BOTH);
    guest.commits(status)?;
    guest.use_device(1);
    guest.reaches(guest.ioba(APART), page, Reach::ALL)?;
    guest.port.emit(&Event::Step { text: "a device is revoked while two virtual CPUs keep calling" });
    let met = meet(&mut guest, LONG, Some(Control::Revoke { device: 1 }))?;
    told(&mut guest, met)?;
    guest.reaches(guest.ioba(APART), page, Reach::NOTHING)?;
    guest.use_device(0);
    guest.reaches(guest.ioba(APART), page, Reach::ALL)?;
    let live = live(&mut guest)?;
    guest.counts(live + 2)?;
    guest.port.check()
}
