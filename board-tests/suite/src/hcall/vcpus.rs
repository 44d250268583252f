//! `hcall_two_vcpus`: two virtual CPUs on CPUs of their own call at once.

use super::{
    call::{Answer, BOTH, BUSY, Call, GET_TCE, PUT_TCE, PUT_TCE_INDIRECT, READ, SUCCESS},
    guest::{Guest, ensure, failure},
    port::{Control, GuestPort, Layout},
};
use crate::{Event, Failure};

/// A port whose virtual CPUs run on two CPUs at once, beside the hypervisor's.
pub trait TwoVcpus: GuestPort {
    /// Both virtual CPUs make the calls of `meeting`. What is to be done meanwhile, the hypervisor does on a third CPU
    /// from the moment on when both are at call [`Meeting::begin`]; what is refused, it tries again while they call.
    ///
    /// # Errors
    /// A virtual CPU did not come to its end in time.
    fn both(&mut self, meeting: &Meeting<'_>, meanwhile: Option<Control>) -> Result<Meanwhile, Failure>;

    /// Call `number` of a virtual CPU in the last meeting.
    fn made(&self, vcpu: usize, number: usize) -> Option<Made>;
}

/// What two virtual CPUs do at once.
#[derive(Clone, Copy)]
pub struct Meeting<'w> {
    /// Calls of each, at most 1000.
    pub calls: usize,
    /// Before each so many calls they wait for each other.
    pub every: usize,
    /// What a virtual CPU calls as its call of this number.
    pub work: &'w (dyn Fn(usize, usize) -> Call + Sync),
}

impl Meeting<'_> {
    /// Before this call a virtual CPU waits until what is to be done meanwhile begins.
    #[must_use]
    pub const fn begin(&self) -> usize {
        self.calls / 10
    }

    /// Before this one until it is over, so that calls come after it, however long it took.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.calls - self.begin()
    }
}

/// What a virtual CPU called, what that came to, and when.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// The call.
    pub call: Call,
    /// Its answer.
    pub answer: Answer,
    /// When it was under way.
    pub span: Span,
}

/// Two moments of a clock that all CPUs share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// When it began.
    pub begun: u64,
    /// When it ended.
    pub ended: u64,
}

/// What the hypervisor did meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meanwhile {
    /// When, from its first attempt on.
    pub span: Span,
    /// Whether it did: it may refuse.
    pub done: bool,
}

impl Span {
    /// Whether some moment is in both.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.begun < other.ended && other.begun < self.ended
    }
}

impl Meanwhile {
    /// Tries something, while `more` permits another try, until it is done; `now` is the clock. A device that comes to
    /// a window where guests call may find some entry contended, and then comes again.
    pub fn attempt(
        now: impl Fn() -> u64,
        mut attempt: impl FnMut() -> bool,
        mut more: impl FnMut() -> bool,
    ) -> Self {
        let begun = now();
        loop {
            let done = attempt();
            if done || !more() {
                return Self { span: Span { begun, ended: now() }, done };
            }
        }
    }
}

/// Virtual CPUs.
pub const VCPUS: usize = 2;
/// How often they meet, and how often at most: a machine that is busy may run one CPU at a time for a while.
const TIMES: u64 = 8;
const ATTEMPTS: u64 = 20;
/// Rounds of a meeting, and calls of a round.
const ROUNDS: usize = 64;
const CALLS: usize = 12;
/// Entries that a round uses.
const MANY: u64 = 16;
/// The first entry that both use, others in each round, and the first one of their own.
const SHARED: u64 = 4;
const OWN: u64 = 600;
/// 4 KiB page of the plain area with the first one's list, which the other's follows.
const LIST_PAGE: u64 = 29;

/// Two virtual CPUs change the same entries at once, and entries of their own: counts are the live entries, hardware
/// holds what the view says, and nothing stays taken.
pub(super) fn two_vcpus<P: TwoVcpus>(port: &mut P) -> Result<(), Failure> {
    port.emit(&Event::Step {
        text: "two virtual CPUs map and unmap at once, in entries of their own and in common ones",
    });
    let (layout, mut tally) = (port.layout(), Tally::default());
    let work = |vcpu, number| a_call(layout, vcpu, number);
    for attempt in 1..=ATTEMPTS {
        port.reset()?;
        write_lists(port);
        port.both(&Meeting { calls: ROUNDS * CALLS, every: CALLS, work: &work }, None)?;
        tally.add(port)?;
        owned_entries(port)?;
        port.check()?;
        nothing_is_taken(port)?;
        if attempt >= TIMES && tally.together > 0 {
            tally.tell(port);
            return Ok(());
        }
    }
    Err(failure("no two calls that map were under way at the same time"))
}

/// What virtual CPU `vcpu` maps with call `number` of a round; the other one never maps that.
const fn tce(layout: Layout, vcpu: usize, number: usize) -> u64 {
    let permissions = if number.is_multiple_of(2) { BOTH } else { READ };
    layout.plain().page((vcpu * CALLS + number % CALLS) as u64) | permissions
}

const fn list(layout: Layout, vcpu: usize) -> u64 {
    layout.plain().page(LIST_PAGE + vcpu as u64)
}

fn write_lists<P: GuestPort>(port: &mut P) {
    let layout = port.layout();
    for (vcpu, number) in (0..VCPUS).flat_map(|vcpu| (0..MANY).map(move |number| (vcpu, number))) {
        port.write(list(layout, vcpu) + number * 8, tce(layout, vcpu, number as usize));
    }
}

const fn is_shared(round: usize) -> bool {
    round.is_multiple_of(2)
}

const fn own_entry(vcpu: usize) -> u64 {
    OWN + vcpu as u64 * MANY
}

/// Every way to change an entry. In every other round both use the same entries, which nobody uses afterwards, so that
/// what went wrong there is found in the end. They do not make the same calls at the same time: one ends with a single
/// entry, the other with its list.
const fn a_call(layout: Layout, vcpu: usize, number: usize) -> Call {
    let (round, number) = (number / CALLS, (number + vcpu * 8) % CALLS);
    let first = if is_shared(round) { SHARED + round as u64 / 2 * MANY } else { own_entry(vcpu) };
    let (window, list) = (layout.main(), list(layout, vcpu));
    let (liobn, at) = (window.liobn, window.ioba(first));
    match number {
        1 | 5 => Call::get(liobn, window.ioba(first + round as u64 % MANY)),
        2 => Call::stuff(liobn, window.ioba(first + 1), 0, 5),
        3 => Call::indirect(liobn, window.ioba(first + 4), list, MANY - 4),
        7 | 10 => Call::indirect(liobn, at, list, MANY),
        8 => Call::stuff(liobn, at, 8, MANY),
        9 => Call::put(liobn, window.ioba(first + 3), 0),
        _ => Call::put(liobn, window.ioba(first + place(number)), tce(layout, vcpu, number)),
    }
}

/// Which of the entries a single one goes to.
const fn place(number: usize) -> u64 {
    number as u64 * 5 % MANY
}

/// After the last round, which is in entries of its own, each finds there what its calls alone made of them: its list,
/// and what the first one's last call changed.
fn owned_entries<P: GuestPort>(port: &mut P) -> Result<(), Failure> {
    let (layout, last) = (port.layout(), CALLS - 1);
    for (vcpu, number) in (0..VCPUS).flat_map(|vcpu| (0..MANY).map(move |number| (vcpu, number))) {
        let writer = if vcpu == 0 && place(last) == number { last } else { number as usize };
        let ioba = layout.main().ioba(own_entry(vcpu) + number);
        let found = port.call(Call::get(layout.main().liobn, ioba)).value;
        ensure(
            found == tce(layout, vcpu, writer),
            "an entry of one virtual CPU is not what that made of it",
        )?;
    }
    Ok(())
}

/// Everything can be unmapped.
fn nothing_is_taken<P: GuestPort>(port: &mut P) -> Result<(), Failure> {
    let mut guest = Guest::new(port);
    for (first, count) in [(SHARED, ROUNDS as u64 / 2 * MANY), (OWN, VCPUS as u64 * MANY)] {
        let status = guest.stuff(first, 0, count);
        ensure(status != BUSY, "an entry stayed taken when both had ended")?;
        guest.commits(status)?;
    }
    guest.counts(0)?;
    guest.port.check()
}

/// What the calls of all meetings came to.
#[derive(Default)]
struct Tally {
    calls: u64,
    busy: u64,
    together: u64,
}

impl Tally {
    /// Looks at every call of both.
    fn add<P: TwoVcpus>(&mut self, port: &P) -> Result<(), Failure> {
        for (vcpu, number) in (0..VCPUS).flat_map(|vcpu| (0..ROUNDS * CALLS).map(move |n| (vcpu, n))) {
            self.judge(port.layout(), &made(port, vcpu, number)?, number / CALLS)?;
        }
        for round in 0..ROUNDS {
            self.together += pairs(port, round * CALLS)?;
        }
        Ok(())
    }

    /// A call ends with H_SUCCESS, or H_BUSY in an entry that both use; nobody finds what nobody wrote.
    fn judge(&mut self, layout: Layout, made: &Made, round: usize) -> Result<(), Failure> {
        let Answer { status, value } = made.answer;
        self.calls += 1;
        self.busy += u64::from(status == BUSY);
        let expected = status == SUCCESS || status == BUSY && is_shared(round);
        ensure(expected, "a call came to another status")?;
        let mut mapped = (0..VCPUS).flat_map(|vcpu| (0..CALLS).map(move |number| tce(layout, vcpu, number)));
        let known = status != SUCCESS || matches!(value, 0 | 8) || mapped.any(|tce| tce == value);
        ensure(made.call.opcode != GET_TCE || known, "H_GET_TCE gave what nobody wrote")
    }

    fn tell<P: GuestPort>(&self, port: &mut P) {
        port.tell("of two virtual CPUs at once", self.calls);
        port.tell("of them came to H_BUSY", self.busy);
        let what = "pairs of them that mapped were under way at the same time";
        port.emit(&Event::Measured { what, value: self.together, unit: "pairs" });
    }
}

/// A call of the last meeting.
pub(super) fn made<P: TwoVcpus>(port: &P, vcpu: usize, number: usize) -> Result<Made, Failure> {
    port.made(vcpu, number).ok_or(failure("a call was lost"))
}

/// How many pairs of calls of a round that mapped were under way at the same time.
fn pairs<P: TwoVcpus>(port: &P, first: usize) -> Result<u64, Failure> {
    let mut pairs = 0;
    for one in first..first + CALLS {
        let one = made(port, 0, one)?;
        for other in first..first + CALLS {
            let other = made(port, 1, other)?;
            pairs += u64::from(mapped(&one) && mapped(&other) && one.span.meets(other.span));
        }
    }
    Ok(pairs)
}

const fn mapped(made: &Made) -> bool {
    matches!(made.call.opcode, PUT_TCE | PUT_TCE_INDIRECT) && made.answer.status == SUCCESS
}
