//! A guest that means harm.

use core::cell::Cell;

use portcullis_suite::{
    Event, Failure,
    hcall::{
        GuestPort, Oracle,
        hostile::{Mismatch, Plan, run_hostile},
    },
};
use spin::Mutex;

use super::ensure;
use crate::port::{BoardPort, LAYOUT};

/// Hostile calls of one run: a board makes some thousands a second.
const PLAN: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 500, check_every: 250 };
/// Calls in a hundred that must commit, or nothing was tried.
const COMMITTED: u64 = 30;

/// What the guest should see: too large for a stack.
static ORACLE: Mutex<Oracle> = Mutex::new(Oracle::new(LAYOUT));

/// Ten thousand calls near every boundary.
pub(super) fn hostile(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    port.emit(&Event::Step { text: "the guest makes ten thousand hostile calls, each judged by an oracle" });
    let told = Cell::new(None);
    let tally = run_hostile(port, &mut ORACLE.lock(), PLAN).map_err(|mismatch| {
        told.set(Some(mismatch));
        mismatch.failure
    });
    if let Some(Mismatch { number, call, expected, found, .. }) = told.get() {
        defmt::error!(
            "hostile call {=u64}: {} should come to {}, came to {}",
            number,
            defmt::Debug2Format(&call),
            defmt::Debug2Format(&expected),
            defmt::Debug2Format(&found)
        );
    }
    let tally = tally?;
    for (what, value) in [
        ("calls that committed", tally.committed),
        ("H_SUCCESS", tally.success),
        ("H_PARAMETER", tally.parameter),
        ("H_FUNCTION", tally.function),
        ("H_HARDWARE", tally.hardware),
    ] {
        port.emit(&Event::Measured { what, value, unit: "calls" });
    }
    ensure(tally.reached_all(port.offers()), "a status that the board can show was never reached")?;
    ensure(tally.percent_committed() >= COMMITTED, "too few of the hostile calls committed")
}
