//! What rules do again and again with a port: call, expect, look through the device.

use super::{
    call::{Answer, BOTH, Call, PARAMETER, READ, SUCCESS, WRITE, describe},
    port::{Area, Control, Deed, GuestPort, Layout, Moment, Offers, Window},
};
use crate::{Event, Failure};

/// 4 KiB page of the plain area through which devices show what they reach.
const BENCH: u64 = 31;
/// The one that lists are written to.
const LIST: u64 = 30;
/// What memory holds that nobody has written to since the last look.
const STALE: u64 = 0x5741_4954_0000_0000;

/// Fails with the line of the caller unless `condition` holds.
#[track_caller]
pub(super) fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(failure(what)) }
}

/// A failure at the line of the caller.
#[track_caller]
pub(super) const fn failure(what: &'static str) -> Failure {
    Failure { what, error: None, line: core::panic::Location::caller().line() }
}

/// A guest at work on one window, and a device behind it.
pub(super) struct Guest<'p, P> {
    pub(super) port: &'p mut P,
    pub(super) window: Window,
    device: usize,
    word: u64,
    /// What was refused last: the same again and again is told once.
    told: &'static str,
}

/// What a device reaches through an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) reads: bool,
    pub(super) writes: bool,
}

impl Reach {
    pub(super) const NOTHING: Self = Self { reads: false, writes: false };
    pub(super) const ALL: Self = Self { reads: true, writes: true };
}

impl<'p, P: GuestPort> Guest<'p, P> {
    /// A guest that uses [`Layout::main`] and device 0.
    pub(super) fn new(port: &'p mut P) -> Self {
        let window = port.layout().main();
        Self { port, window, device: 0, word: 0x1000, told: "" }
    }

    pub(super) fn layout(&self) -> Layout {
        self.port.layout()
    }

    /// Goes on with another window.
    pub(super) fn use_window(&mut self, window: Window) {
        self.window = window;
    }

    /// Looks through another device from now on.
    pub(super) fn use_device(&mut self, device: usize) {
        self.device = device;
    }

    /// I/O bus address of an entry of the window.
    pub(super) fn ioba(&self, entry: u64) -> u64 {
        self.window.ioba(entry)
    }

    /// 4 KiB page `number` of the plain area with permissions.
    pub(super) fn plain(&self, number: u64, permissions: u64) -> u64 {
        self.layout().plain().page(number) | permissions
    }

    pub(super) fn list(&self) -> u64 {
        self.layout().plain().page(LIST)
    }

    pub(super) fn call(&mut self, call: Call) -> Answer {
        self.port.call(call)
    }

    pub(super) fn put(&mut self, entry: u64, tce: u64) -> i64 {
        let call = Call::put(self.window.liobn, self.ioba(entry), tce);
        self.port.call(call).status
    }

    pub(super) fn stuff(&mut self, entry: u64, value: u64, count: u64) -> i64 {
        let call = Call::stuff(self.window.liobn, self.ioba(entry), value, count);
        self.port.call(call).status
    }

    /// Writes a list of `count` entries and makes the call with it.
    pub(super) fn indirect(&mut self, entry: u64, count: u64, tce: impl Fn(u64) -> u64) -> i64 {
        self.write_list(count, tce);
        self.port.call(self.indirect_call(entry, count)).status
    }

    pub(super) fn indirect_call(&self, entry: u64, count: u64) -> Call {
        Call::indirect(self.window.liobn, self.ioba(entry), self.list(), count)
    }

    pub(super) fn write_list(&mut self, count: u64, tce: impl Fn(u64) -> u64) {
        let list = self.list();
        for number in 0..count {
            self.port.write(list + number * 8, tce(number));
        }
    }

    /// The call succeeds.
    #[track_caller]
    pub(super) fn commits(&mut self, status: i64) -> Result<(), Failure> {
        ensure(status == SUCCESS, describe_unexpected(status))
    }

    /// H_GET_TCE finds `tce`.
    #[track_caller]
    pub(super) fn holds(&mut self, entry: u64, tce: u64) -> Result<(), Failure> {
        let answer = self.port.call(Call::get(self.window.liobn, self.ioba(entry)));
        ensure(answer.status == SUCCESS, describe_unexpected(answer.status))?;
        ensure(answer.value == tce, "H_GET_TCE gives another entry than the guest wrote")
    }

    /// H_GET_TCE finds `tce(number)` in each of `count` entries.
    #[track_caller]
    pub(super) fn holds_each(
        &mut self,
        entry: u64,
        count: u64,
        tce: impl Fn(u64) -> u64,
    ) -> Result<(), Failure> {
        (0..count).try_for_each(|number| self.holds(entry + number, tce(number)))
    }

    /// The call is refused with this status, and told so.
    #[track_caller]
    pub(super) fn refuses(&mut self, what: &'static str, call: Call, status: i64) -> Result<(), Failure> {
        let answer = self.port.call(call);
        self.was_refused(what, answer.status, status)
    }

    #[track_caller]
    pub(super) fn was_refused(&mut self, what: &'static str, found: i64, status: i64) -> Result<(), Failure> {
        ensure(found != SUCCESS, "a call succeeded that must be refused")?;
        ensure(found == status, describe_unexpected(found))?;
        self.tell_refused(what, describe(status));
        Ok(())
    }

    fn tell_refused(&mut self, what: &'static str, why: &'static str) {
        if self.told != what {
            self.told = what;
            self.port.emit(&Event::Refused { what, why });
        }
    }

    /// H_PUT_TCE is refused with H_PARAMETER, and the entry stays as it is.
    #[track_caller]
    pub(super) fn refuses_put(&mut self, what: &'static str, entry: u64, tce: u64) -> Result<(), Failure> {
        let get = Call::get(self.window.liobn, self.ioba(entry));
        let before = self.port.call(get);
        let put = Call::put(self.window.liobn, self.ioba(entry), tce);
        self.refuses(what, put, PARAMETER)?;
        ensure(self.port.call(get) == before, "a refused call changed the entry")
    }

    #[track_caller]
    pub(super) fn counts(&mut self, units: u64) -> Result<(), Failure> {
        ensure(self.port.counted() == units, "other units are counted as mapped than devices can reach")
    }

    #[track_caller]
    pub(super) fn controls(&mut self, control: Control) -> Result<(), Failure> {
        ensure(self.port.control(control), "the hypervisor refused what a rule asked of it")
    }

    #[track_caller]
    pub(super) fn refuses_control(&mut self, what: &'static str, control: Control) -> Result<(), Failure> {
        ensure(!self.port.control(control), "the hypervisor did what it must refuse")?;
        self.tell_refused(what, "the hypervisor refuses");
        Ok(())
    }

    /// Makes a call during which `deed` is done.
    #[track_caller]
    pub(super) fn call_while(
        &mut self,
        call: Call,
        moment: Moment,
        deed: Deed,
    ) -> Result<(Answer, Answer), Failure> {
        self.port.arrange(moment, deed);
        let answer = self.port.call(call);
        let arranged = self.port.arranged();
        Ok((answer, arranged.ok_or(failure("the moment that the rule waited for did not come"))?))
    }

    /// Maps the page through which devices show what they reach, in the window's last entry. It is counted.
    #[track_caller]
    pub(super) fn set_bench(&mut self) -> Result<(), Failure> {
        let page = self.plain(BENCH, 0) & !(self.window.page_bytes() - 1);
        let status = self.put(self.window.entries - 1, page | BOTH);
        self.commits(status)
    }

    /// I/O bus address of the bench.
    fn bench(&self) -> u64 {
        let offset = self.plain(BENCH, 0) & (self.window.page_bytes() - 1);
        self.ioba(self.window.entries - 1) + offset
    }

    /// What the device reaches of the word at `guest` through `ioba`.
    pub(super) fn reach(&mut self, ioba: u64, guest: u64) -> Result<Reach, Failure> {
        let (bench, page) = (self.bench(), self.plain(BENCH, 0));
        let (written, asked) = (self.fresh(), self.fresh());
        self.port.write(guest, written);
        self.port.write(page, STALE);
        self.port.copy(self.device, ioba, bench)?;
        let reads = self.port.read(page) == written;
        self.port.write(page, asked);
        self.port.copy(self.device, bench, ioba)?;
        Ok(Reach { reads, writes: self.port.read(guest) == asked })
    }

    /// The device reaches exactly `reach` of a 4 KiB page through an entry, at its first and its last word; a slow one
    /// at its last.
    #[track_caller]
    pub(super) fn reaches(&mut self, ioba: u64, page: u64, reach: Reach) -> Result<(), Failure> {
        let places = if self.is_slow() { &[0xff8][..] } else { &[0, 0xff8] };
        for offset in places {
            let found = self.reach(ioba + offset, page + offset)?;
            ensure(found.reads <= reach.reads, "the device read what it must not reach")?;
            ensure(found.writes <= reach.writes, "the device wrote what it must not reach")?;
            ensure(found == reach, "the device did not reach what was mapped for it")?;
        }
        Ok(())
    }

    /// Whether devices are so slow that a look through them has to be short.
    pub(super) fn is_slow(&self) -> bool {
        self.port.offers().contains(Offers::SLOW_DEVICE)
    }

    /// A word that was in use nowhere.
    fn fresh(&mut self) -> u64 {
        self.word += 1;
        0x574f_5244_0000_0000 | self.word
    }

    /// An area's registration ends, or is refused.
    pub(super) fn unregisters(&mut self, area: Area) -> bool {
        self.port.control(Control::Unregister(area))
    }
}

/// What a device may do by these permission bits.
pub(super) const fn reach_of(permissions: u64) -> Reach {
    Reach { reads: permissions & READ != 0, writes: permissions & WRITE != 0 }
}

/// A status where another was expected.
const fn describe_unexpected(status: i64) -> &'static str {
    use super::call::{BUSY, FUNCTION, HARDWARE, NOT_ENOUGH_RESOURCES};
    match status {
        BUSY => "the call came to H_BUSY",
        HARDWARE => "the call came to H_HARDWARE",
        FUNCTION => "the call came to H_FUNCTION",
        PARAMETER => "the call came to H_PARAMETER",
        NOT_ENOUGH_RESOURCES => "the call came to H_NOT_ENOUGH_RESOURCES",
        _ => "the call came to a status that no contract names",
    }
}
