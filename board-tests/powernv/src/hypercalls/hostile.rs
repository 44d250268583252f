//! A guest that means harm.

use core::cell::Cell;

use portcullis_hypervisor::power::scenario::ensure;
use portcullis_suite::{
    Event, Failure,
    hcall::{
        Call, GuestPort, Layout, Oracle,
        call::{BOTH, FUNCTION, OTHER, PARAMETER, SUCCESS, describe},
        hostile::{Mismatch, Plan, run_hostile},
        port::FOREIGN_LIOBN,
    },
};
use spin::Mutex;

use crate::port::{BoardPort, LAYOUT};

/// Hostile calls of one run: a board makes some thousands a second.
const PLAN: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 500, check_every: 250 };
/// Calls in a hundred that must commit, or nothing was tried.
const COMMITTED: u64 = 30;

/// What the guest should see: too large for a stack.
static ORACLE: Mutex<Oracle> = Mutex::new(Oracle::new(LAYOUT));

/// Some calls that anybody would try first, each refused; then ten thousand near every boundary.
pub(super) fn hostile(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    port.reset()?;
    port.emit(&Event::Step { text: "a guest that means harm maps one good page, and then tries others" });
    let (window, plain) = (port.layout().main(), port.layout().plain());
    ensure(
        port.call(Call::put(window.liobn, window.start, plain.guest | BOTH)).status == SUCCESS,
        "a good call failed",
    )?;
    for (what, call, status) in attempts(port.layout()) {
        ensure(port.call(call).status == status, "a hostile call came to another status")?;
        port.emit(&Event::Refused { what, why: describe(status) });
    }
    ensure(port.counted() == 1, "a refused call mapped something, or took something away")?;
    port.check()?;
    many(port)
}

/// What each attempt is, the call, and what it comes to.
fn attempts(layout: Layout) -> [(&'static str, Call, i64); 13] {
    let (window, topmost) = (layout.main(), layout.topmost());
    let (good, wild) = (layout.plain().guest | BOTH, layout.wild().guest);
    let (liobn, first, end) = (window.liobn, window.start, window.ioba(window.entries));
    // Where the hypervisor's image lies.
    let image = 0x2000_0000 | BOTH;
    let all = u64::MAX;
    [
        ("map memory of its own that is not registered", Call::put(liobn, first, wild | BOTH), PARAMETER),
        ("map the hypervisor's image", Call::put(liobn, first, image), PARAMETER),
        ("map the end of the address space", Call::put(liobn, first, all & !0xffc), PARAMETER),
        ("map half a page too far", Call::put(liobn, first, good | 0x800), PARAMETER),
        ("map behind the end of its window", Call::put(liobn, end, good), PARAMETER),
        ("map between two entries", Call::put(liobn, first + 8, good), PARAMETER),
        ("map for another VM", Call::put(FOREIGN_LIOBN, first, good), PARAMETER),
        ("map by a LIOBN of 33 bits", Call::put(liobn | 1 << 32, first, good), PARAMETER),
        ("a list of 513 entries", Call::indirect(liobn, first, layout.plain().guest, 513), PARAMETER),
        ("a list in memory that is not registered", Call::indirect(liobn, first, wild, 1), PARAMETER),
        ("clear entries until the count wraps", Call::stuff(topmost.liobn, topmost.start, 0, all), PARAMETER),
        ("clear with a permission", Call::stuff(liobn, first, good, 1), PARAMETER),
        ("a call that nobody knows", Call { opcode: OTHER, arguments: [liobn, first, good, 1] }, FUNCTION),
    ]
}

/// Ten thousand calls, each judged by an oracle.
fn many(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
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
