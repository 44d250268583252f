//! Hostile calls: picked near every boundary, each judged by the oracle.

mod numbers;
mod pick;
mod tally;

pub use tally::Tally;

use self::pick::{Picker, changes};
use super::{
    call::{Answer, BUSY, Call, HARDWARE, NOT_ENOUGH_RESOURCES, STUFF_TCE, SUCCESS},
    oracle::Oracle,
    port::{Control, Deed, GuestPort, Moment, Offers},
};
use crate::Failure;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Where the numbers begin.
    pub seed: u64,
    /// Calls, besides the ones that look what became of them.
    pub calls: u64,
    /// After so many calls the guest begins anew, with tables that have no level but the root.
    pub anew_every: u64,
    /// After so many calls everything is checked; after each one its status, counts and ends are.
    pub check_every: u64,
}

/// The call after which something was not as the oracle says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Its number, from 0.
    pub number: u64,
    /// What the guest called.
    pub call: Call,
    /// What the oracle says.
    pub expected: Answer,
    /// What came.
    pub found: Answer,
    /// What was wrong.
    pub failure: Failure,
}

/// The guest, and what it should see.
struct Run<'r, P> {
    port: &'r mut P,
    oracle: &'r mut Oracle,
    picker: Picker,
    tally: Tally,
    /// The last call and its answers, for the report.
    last: (Call, Answer, Answer),
}

/// Makes the calls of `plan`, and counts what they came to. `oracle` is overwritten.
///
/// # Errors
/// The first call after which something is not as the oracle says, or a check failed.
pub fn run_hostile<P: GuestPort>(port: &mut P, oracle: &mut Oracle, plan: Plan) -> Result<Tally, Mismatch> {
    let layout = port.layout();
    let picker = Picker::new(plan.seed, layout);
    let nothing = Answer { status: SUCCESS, value: 0 };
    let last = (Call::get(0, 0), nothing, nothing);
    let mut run = Run { port, oracle, picker, tally: Tally::default(), last };
    for number in 0..plan.calls {
        run.step(number, plan).map_err(|failure| run.mismatch(number, failure))?;
    }
    run.end().map_err(|failure| run.mismatch(plan.calls, failure))?;
    Ok(run.tally)
}

/// What a call may come to besides what the oracle says, for a reason that the oracle does not know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hindered {
    Not,
    Starved,
}

#[track_caller]
fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    let line = core::panic::Location::caller().line();
    if condition { Ok(()) } else { Err(Failure { what, error: None, line }) }
}

impl<P: GuestPort> Run<'_, P> {
    fn mismatch(&self, number: u64, failure: Failure) -> Mismatch {
        let (call, expected, found) = self.last;
        Mismatch { number, call, expected, found, failure }
    }

    fn step(&mut self, number: u64, plan: Plan) -> Result<(), Failure> {
        if number.is_multiple_of(plan.anew_every) {
            self.begin_anew()?;
        }
        let (offers, call) = (self.port.offers(), self.picker.call(self.port));
        // A fresh guest lacks tables: then calls need pages most.
        let young = number % plan.anew_every < 16;
        match self.picker.numbers.below(if young { 4 } else { 64 }) {
            0 => self.change_registration()?,
            1..=2 if offers.contains(Offers::STARVE) => self.starved(call)?,
            // H_STUFF_TCE takes its entries a few at a time: what meets it may come before or after.
            3..=6 if offers.contains(Offers::TAKEN) && call.opcode != STUFF_TCE => self.overlapped(call)?,
            _ => self.alone(call, Hindered::Not)?,
        }
        self.look_at(call)?;
        ensure(self.port.counted() == self.oracle.counted(), "other units are counted than are mapped")?;
        if number.is_multiple_of(plan.check_every) { self.port.check() } else { Ok(()) }
    }

    /// A fresh guest; the second device stands behind the window of large pages, through small or large ones.
    fn begin_anew(&mut self) -> Result<(), Failure> {
        self.port.reset()?;
        *self.oracle = Oracle::new(self.port.layout());
        if self.port.offers().contains(Offers::SECOND_DEVICE) {
            let liobn = self.port.layout().coarse().liobn;
            let page_shift = if self.picker.numbers.percent(50) { 12 } else { 16 };
            let connect = Control::Connect { device: 1, liobn, page_shift };
            ensure(self.port.control(connect), "the second device was not connected")?;
            self.oracle.connect(liobn, page_shift);
        }
        Ok(())
    }

    /// What the oracle says of a call.
    fn judge(&mut self, call: Call) -> Answer {
        self.oracle.judge(call, |guest| self.port.read(guest))
    }

    fn commit(&mut self, call: Call) {
        self.oracle.commit(call, |guest| self.port.read(guest));
    }

    /// Makes a call and judges its answer.
    fn alone(&mut self, call: Call, hindered: Hindered) -> Result<(), Failure> {
        let found = self.port.call(call);
        self.settle(call, found, hindered)
    }

    /// Judges an answer, and commits what it says.
    fn settle(&mut self, call: Call, found: Answer, hindered: Hindered) -> Result<(), Failure> {
        let expected = self.judge(call);
        self.last = (call, expected, found);
        self.tally.add(found.status, changes(call));
        let good = expected.status == SUCCESS;
        if good && hindered == Hindered::Starved && found.status == NOT_ENOUGH_RESOURCES {
            return Ok(());
        }
        ensure(found.status == expected.status, "the call came to another status")?;
        ensure(!good || found.value == expected.value, "H_GET_TCE gave another entry")?;
        if good {
            self.commit(call);
        }
        Ok(())
    }

    /// A call while there are no pages for tables.
    fn starved(&mut self, call: Call) -> Result<(), Failure> {
        ensure(self.port.control(Control::Starve(true)), "the hypervisor could not withhold pages")?;
        self.alone(call, Hindered::Starved)?;
        ensure(self.port.control(Control::Starve(false)), "the hypervisor could not give pages back")
    }

    /// A call, while whose entries are taken the second virtual CPU makes another.
    fn overlapped(&mut self, call: Call) -> Result<(), Failure> {
        let inner = self.picker.short_call(call);
        self.port.arrange(Moment::Taken, Deed::Call(inner));
        let found = self.port.call(call);
        match self.port.arranged() {
            Some(answer) if answer.status == BUSY => {
                self.last = (inner, self.judge(inner), answer);
                self.tally.add(BUSY, false);
                ensure(self.meet(call, inner), "H_BUSY although nobody was in the way")?;
            }
            Some(answer) => {
                self.settle(inner, answer, Hindered::Not)?;
                let changed = answer.status == SUCCESS && changes(inner);
                ensure(!changed || !self.meet(call, inner), "two calls changed one entry at once")?;
            }
            None => {}
        }
        self.settle(call, found, Hindered::Not)
    }

    /// Whether two calls name a common entry.
    fn meet(&self, one: Call, other: Call) -> bool {
        let (Some((window, first, count)), Some((its, start, length))) =
            (self.oracle.place(one), self.oracle.place(other))
        else {
            return false;
        };
        window == its && first < start + length && start < first + count
    }

    /// Registers the wild area, or ends that, which is refused exactly while devices reach it.
    fn change_registration(&mut self) -> Result<(), Failure> {
        let wild = self.port.layout().wild();
        if self.oracle.is_registered(wild) {
            let done = self.port.control(Control::Unregister(wild));
            ensure(done != self.oracle.maps(wild), "the end of a registration disagrees with the entries")?;
            if done {
                self.oracle.unregister(wild);
            }
        } else {
            ensure(self.port.control(Control::Register(wild)), "memory could not be registered")?;
            self.oracle.register(wild);
        }
        Ok(())
    }

    /// Looks at the entries at both ends of a call and in its middle, or where a refused one would have begun.
    fn look_at(&mut self, call: Call) -> Result<(), Failure> {
        let [liobn, ioba, _, _] = call.arguments;
        let Some((index, _, count)) = self.oracle.place(call) else { return Ok(()) };
        let Some(window) = self.port.layout().windows().get(index).copied() else { return Ok(()) };
        for number in [0, count / 2, count.saturating_sub(1)] {
            let get = Call::get(liobn, ioba + (number << window.page_shift));
            let (found, expected) = (self.port.call(get), self.judge(get));
            if found.status != expected.status || expected.status == SUCCESS && found != expected {
                self.last = (get, expected, found);
                return ensure(false, "an entry is not what the calls before made of it");
            }
        }
        Ok(())
    }

    /// The whole state, and a last call whose kill is never confirmed.
    fn end(&mut self) -> Result<(), Failure> {
        self.port.check()?;
        if !self.port.offers().contains(Offers::DEAFEN) {
            return Ok(());
        }
        let layout = self.port.layout();
        let (window, page) = (layout.main(), layout.plain().page(3));
        self.alone(Call::put(window.liobn, window.start, page | 3), Hindered::Not)?;
        ensure(self.port.control(Control::Deafen(true)), "the hardware could not be made deaf")?;
        let put = Call::put(window.liobn, window.start, page | 1);
        let found = self.port.call(put);
        self.last = (put, Answer { status: HARDWARE, value: 0 }, found);
        self.tally.add(found.status, true);
        ensure(found.status == HARDWARE, "a kill that was not confirmed went unnoticed")?;
        ensure(self.port.control(Control::Deafen(false)), "the hardware could not be made to hear")
    }
}
