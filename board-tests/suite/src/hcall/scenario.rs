//! What a board with such a guest shows: each of these is one scenario.

use super::{
    hostile::{Plan, run_hostile},
    oracle::Oracle,
    port::{GuestPort, Offers},
    rules::{RULES, run_rule},
};
use crate::{Event, Failure};

/// Hostile calls that a board makes, in pieces that each begin with a fresh guest.
pub const BOARD_PLAN: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 1000, check_every: 250 };

/// Calls of a hundred that must have committed, so that hostile calls are no mere refusals.
const ENOUGH: u64 = 30;

#[track_caller]
pub(super) fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    let line = core::panic::Location::caller().line();
    if condition { Ok(()) } else { Err(Failure { what, error: None, line }) }
}

/// `hcall_rules`, `hcall_rules_virtual`: every rule that the port can show, a step each.
///
/// # Errors
/// The first rule that does not hold.
pub fn rules<P: GuestPort>(port: &mut P) -> Result<(), Failure> {
    let offers = port.offers();
    for rule in RULES.iter().filter(|rule| offers.contains(rule.needs)) {
        port.emit(&Event::Step { text: rule.text });
        run_rule(port, rule)?;
    }
    let finished = port.finished();
    tell(port, "finished in real mode", finished.real);
    tell(port, "handed over to virtual mode", finished.handed_over);
    Ok(())
}

/// Tells a number of calls.
pub(super) fn tell<P: GuestPort>(port: &mut P, what: &'static str, value: u64) {
    port.emit(&Event::Measured { what, value, unit: "calls" });
}

/// `hcall_hostile`: [`BOARD_PLAN`], judged by `oracle`, which is overwritten.
///
/// # Errors
/// The first call that the oracle does not agree with; a status that never came; too many refusals.
pub fn hostile<P: GuestPort>(port: &mut P, oracle: &mut Oracle) -> Result<(), Failure> {
    port.emit(&Event::Step { text: "hostile calls, each judged by an oracle" });
    let before = port.finished().handed_over;
    let tally = run_hostile(port, oracle, BOARD_PLAN).map_err(|mismatch| mismatch.failure)?;
    let handed_over = port.finished().handed_over - before;
    tell(port, "hostile", tally.calls);
    tell(port, "of them committed", tally.committed);
    tell(port, "refused with H_PARAMETER", tally.parameter);
    tell(port, "handed over to virtual mode", handed_over);
    ensure(tally.reached_all(port.offers()), "a status that a call can come to was never seen")?;
    ensure(tally.percent_committed() >= ENOUGH, "too few of the calls committed")?;
    let mostly = handed_over < tally.calls / 2 || !port.offers().contains(Offers::HANDED_OVER);
    ensure(mostly, "most calls were handed over")
}
