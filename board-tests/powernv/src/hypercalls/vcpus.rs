//! Two vCPUs on two CPUs make TCE hypercalls at the same time.

use portcullis_hypervisor::power::{
    guest_call::done_in_real_mode,
    scenario::{Machine, ensure, fail, present},
    script::{Op, Record, call},
    second::{self, SECOND},
};
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Call, GuestPort, Window,
        call::{BOTH, BUSY, GET_TCE, PUT_TCE, PUT_TCE_INDIRECT, READ, SUCCESS},
    },
};

use crate::{hypervisor::Guests, port::BoardPort};

const VCPUS: usize = 2;
const ROUNDS: usize = 64;
/// H_PUT_TCE twice, H_GET_TCE, H_PUT_TCE_INDIRECT, H_GET_TCE, H_STUFF_TCE; twice a round.
const CALLS: usize = 12;
/// A meeting, then the calls.
const ROUND: usize = 1 + CALLS;
const LENGTH: usize = ROUNDS * ROUND;
/// How often both carry out their scripts.
const TIMES: usize = 12;
/// How often at most: a machine that is busy may run one CPU at a time for a while.
const ATTEMPTS: usize = 20;
/// Two seconds.
const MEETING_TICKS: u64 = 2 * 512_000_000;
/// Entries of a list, and of an H_STUFF_TCE.
const MANY: u64 = 16;
/// The first entry that both vCPUs use, others in each round, and the first one of their own.
const SHARED: u64 = 4;
const OWN: u64 = 600;
/// 4 KiB pages of the plain area: the vCPUs' meeting place, and the first one's list, which the other's follows.
const MEETING_PAGE: u64 = 28;
const LIST_PAGE: u64 = 29;

/// D60.
pub(super) fn two_vcpus(port: &mut BoardPort<'_, '_, '_>, machine: &Guests<'_, '_>) -> Result<(), Failure> {
    port.emit(&Event::Step {
        text: "two vCPUs map and unmap at once, in entries of their own and in common ones",
    });
    present(second::start(|| machine.start_second()))?;
    let mut tally = Tally::default();
    for attempt in 1..=ATTEMPTS {
        port.reset()?;
        write_lists(port);
        let before = [0, SECOND].map(done_in_real_mode);
        let (window, plain) = (port.layout().main(), port.layout().plain().guest);
        port.run_both(|vcpu| script(window, plain, vcpu))?;
        tally.add(port, before)?;
        owned_entries(port)?;
        port.check()?;
        if attempt >= TIMES && tally.together > 0 {
            tally.tell(port);
            return Ok(());
        }
    }
    fail("no two calls that map were under way at the same time")
}

/// Makes both wait for each other, once for each `value` from 1 on.
pub(super) fn meet(page: u64, vcpu: usize, value: u64) -> Op {
    let place = |vcpu: usize| page + vcpu as u64 * 128;
    Op::Meet { own: place(vcpu), other: place(1 - vcpu), value, ticks: MEETING_TICKS }
}

/// The call as an operation of a script.
pub(super) fn operation(made: Call) -> Op {
    call(made.opcode, &made.arguments)
}

/// What vCPU `vcpu` maps with call `number` of a round; no other vCPU maps that.
const fn tce(plain: u64, vcpu: usize, number: usize) -> u64 {
    let page = (vcpu * CALLS + number % CALLS) as u64;
    plain + (page << 12) + if number.is_multiple_of(2) { BOTH } else { READ }
}

/// The first entry that a vCPU uses in a round: in every other one the same as the other vCPU, which nobody uses
/// afterwards, so that what went wrong there is found in the end.
const fn first_entry(vcpu: usize, round: usize) -> u64 {
    if is_shared(round) { SHARED + round as u64 / 2 * MANY } else { own_entry(vcpu) }
}

const fn is_shared(round: usize) -> bool {
    round.is_multiple_of(2)
}

const fn own_entry(vcpu: usize) -> u64 {
    OWN + vcpu as u64 * MANY
}

fn script(window: Window, plain: u64, vcpu: usize) -> impl Iterator<Item = Op> {
    (0..LENGTH).map(move |index| {
        let (round, number) = (index / ROUND, index % ROUND);
        match number.checked_sub(1) {
            None => meet(plain + (MEETING_PAGE << 12), vcpu, round as u64 + 1),
            Some(number) => operation(a_call(window, plain, vcpu, round, number)),
        }
    })
}

/// Call `number` of a round. The vCPUs do not make the same calls at the same time: one ends with a single entry, the
/// other with a list.
fn a_call(window: Window, plain: u64, vcpu: usize, round: usize, number: usize) -> Call {
    let (liobn, first) = (window.liobn, first_entry(vcpu, round));
    let list = plain + ((LIST_PAGE + vcpu as u64) << 12);
    let number = (number + vcpu * (CALLS - 2)) % CALLS;
    match number % 6 {
        2 | 4 => Call::get(liobn, window.ioba(first + round as u64 % MANY)),
        3 => Call::indirect(liobn, window.ioba(first), list, MANY),
        5 if number < 6 => Call::stuff(liobn, window.ioba(first), 0, MANY),
        _ => Call::put(liobn, window.ioba(first + place(number)), tce(plain, vcpu, number)),
    }
}

/// Which of the entries a single one goes to.
const fn place(number: usize) -> u64 {
    number as u64 * 5 % MANY
}

fn write_lists(port: &mut BoardPort<'_, '_, '_>) {
    let plain = port.layout().plain();
    for vcpu in 0..VCPUS {
        port.write(plain.page(MEETING_PAGE) + vcpu as u64 * 128, 0);
        for number in 0..MANY {
            let at = plain.page(LIST_PAGE + vcpu as u64) + number * 8;
            port.write(at, tce(plain.guest, vcpu, number as usize));
        }
    }
}

/// After the last round, which is in entries of its own, each vCPU finds there what its calls alone made of them: its
/// list, and what the first vCPU's last call changed.
fn owned_entries(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    let (window, plain) = (port.layout().main(), port.layout().plain().guest);
    for (vcpu, number) in (0..VCPUS).flat_map(|vcpu| (0..MANY).map(move |number| (vcpu, number))) {
        let last = CALLS - 1;
        let writer = if vcpu == 0 && place(last) == number { last } else { number as usize };
        let found = port.call(Call::get(window.liobn, window.ioba(own_entry(vcpu) + number))).value;
        ensure(found == tce(plain, vcpu, writer), "an entry of one vCPU is not what that made of it")?;
    }
    Ok(())
}

/// What the calls of all attempts came to.
#[derive(Default)]
struct Tally {
    calls: u64,
    busy: u64,
    real: u64,
    together: u64,
}

impl Tally {
    /// Looks at every call of both scripts.
    fn add(&mut self, port: &BoardPort<'_, '_, '_>, before: [u64; VCPUS]) -> Result<(), Failure> {
        for (vcpu, before) in before.into_iter().enumerate() {
            self.real += done_in_real_mode(vcpu) - before;
            for index in 0..LENGTH {
                let record = port.outcome(vcpu, index)?;
                if index % ROUND == 0 {
                    ensure(record.status == 0, "a vCPU did not come to a meeting")?;
                } else {
                    self.judge(port, &record, index / ROUND)?;
                }
            }
        }
        for index in (0..ROUNDS).map(|round| round * ROUND) {
            self.together += pairs(port, index)?;
        }
        Ok(())
    }

    /// A call ends with H_SUCCESS, or H_BUSY in an entry that both use; nobody finds what nobody wrote.
    fn judge(&mut self, port: &BoardPort<'_, '_, '_>, record: &Record, round: usize) -> Result<(), Failure> {
        self.calls += 1;
        let status = record.status as i64;
        self.busy += u64::from(status == BUSY);
        ensure(status == SUCCESS || status == BUSY && is_shared(round), "a call came to another status")?;
        let [opcode, ..] = record.arguments;
        let plain = port.layout().plain().guest;
        let mut written = (0..VCPUS).flat_map(|vcpu| (0..CALLS).map(move |number| tce(plain, vcpu, number)));
        let known = opcode != GET_TCE || record.result == 0 || written.any(|tce| tce == record.result);
        ensure(known, "H_GET_TCE gave what nobody wrote")
    }

    fn tell(&self, port: &mut BoardPort<'_, '_, '_>) {
        for (what, value, unit) in [
            ("calls of two vCPUs at once", self.calls, "calls"),
            ("of them finished in real mode", self.real, "calls"),
            ("of them came to H_BUSY", self.busy, "calls"),
            ("pairs of them that mapped were under way at the same time", self.together, "pairs"),
        ] {
            port.emit(&Event::Measured { what, value, unit });
        }
    }
}

/// How many pairs of calls of a round that mapped were under way at the same time.
fn pairs(port: &BoardPort<'_, '_, '_>, meeting: usize) -> Result<u64, Failure> {
    let mut pairs = 0;
    for mine in 1..ROUND {
        let mine = port.outcome(0, meeting + mine)?;
        for theirs in 1..ROUND {
            let theirs = port.outcome(SECOND, meeting + theirs)?;
            let at_once = mine.before < theirs.after && theirs.before < mine.after;
            pairs += u64::from(at_once && mapped(&mine) && mapped(&theirs));
        }
    }
    Ok(pairs)
}

const fn mapped(record: &Record) -> bool {
    let [opcode, ..] = record.arguments;
    matches!(opcode, PUT_TCE | PUT_TCE_INDIRECT) && record.status as i64 == SUCCESS
}
