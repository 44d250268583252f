//! Scenarios in which a guest maps its own DMA: contract D on this board.

use core::cell::Cell;

use portcullis_hal::{PhysAddr, arch::powerpc64::RealMemory};
use portcullis_hypervisor::power::{guest::Guest, virtual_mode};
use portcullis_iommu::Error;
use portcullis_ppc_tce::hcall::Hypercalls;
use portcullis_suite::{
    Board, Event, Failure,
    hcall::{
        GuestPort, Oracle, RULES,
        hostile::{Mismatch, Plan, run_hostile},
        run_rule, stand,
    },
};
use spin::Mutex;

use crate::{
    board::{MEMORY, PowerNv},
    port::{BoardPort, LAYOUT},
    server::Server,
};

/// Hostile calls of one run: a board makes some thousands a second.
const HOSTILE: Plan = Plan { seed: 0x5eed, calls: 10_000, anew_every: 500, check_every: 250 };
/// Calls in a hundred that must commit, or nothing was tried.
const COMMITTED: u64 = 30;

/// What the guest should see: too large for a stack.
static ORACLE: Mutex<Oracle> = Mutex::new(Oracle::new(LAYOUT));

/// Runs the scenario with this name; `None` when there is none.
pub(crate) fn act(board: &PowerNv<'_>, guest: Guest, name: &str) -> Option<Result<(), Failure>> {
    Some(match name {
        "hcall_rules" => with_port(board, guest, true, rules),
        "hcall_rules_in_virtual_mode" => {
            in_virtual_mode(board, guest, |board, guest| with_port(board, guest, false, rules))
        }
        "hcall_hostile_guest" => with_port(board, guest, true, hostile),
        _ => return None,
    })
}

/// Serves the guest's hypercalls while `act` has it make them.
fn with_port(
    board: &PowerNv<'_>,
    guest: Guest,
    real_mode: bool,
    act: impl FnOnce(&mut BoardPort<'_, '_, '_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let memory = guest.memory();
    let end = PhysAddr::new(memory.address().as_u64().saturating_add(memory.bytes()));
    // SAFETY: the board's memory begins at 0 and the guest's is part of it; where the full context translates, it
    // maps all of that one to one.
    let memory = unsafe { RealMemory::new(end) };
    let pool = MEMORY.view_pool().ok_or(Error::NeedPages { count: 1 })?;
    let server = Server::new(Hypercalls::new(board.iommu(), pool, memory), board.iommu(), stand::VM)?;
    server.at_work(|| act(&mut BoardPort::new(board, guest, &server, real_mode)?))
}

/// Has the full context translate addresses meanwhile, where the processor can.
fn in_virtual_mode<'b>(
    board: &PowerNv<'b>,
    guest: Guest,
    act: impl FnOnce(&PowerNv<'b>, Guest) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // SAFETY: hypervisor real mode; the link script puts the image in the first GiB; no vCPU has its turn.
    let translating = unsafe { virtual_mode::switch_on(&guest, &[board.registers_at()]) };
    board.emit(&Event::Step {
        text: match translating {
            Some(()) => "the full context handles every call with address translation on",
            None => "the full context handles every call, in real mode: this processor has no radix tables",
        },
    });
    let result = act(board, guest);
    virtual_mode::switch_off();
    result
}

/// Every rule that the board can show.
fn rules(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    let offers = port.offers();
    for rule in RULES.iter().filter(|rule| offers.contains(rule.needs)) {
        port.emit(&Event::Step { text: rule.name });
        run_rule(port, rule)?;
    }
    let finished = port.finished();
    port.emit(&Event::Measured {
        what: "calls that real mode finished",
        value: finished.real,
        unit: "calls",
    });
    port.emit(&Event::Measured {
        what: "calls that the full context finished",
        value: finished.handed_over,
        unit: "calls",
    });
    Ok(())
}

/// Ten thousand calls near every boundary.
fn hostile(port: &mut BoardPort<'_, '_, '_>) -> Result<(), Failure> {
    port.emit(&Event::Step { text: "the guest makes ten thousand hostile calls, each judged by an oracle" });
    let told = Cell::new(None);
    let tally = run_hostile(port, &mut ORACLE.lock(), HOSTILE).map_err(|mismatch| {
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

#[track_caller]
fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    let line = core::panic::Location::caller().line();
    if condition { Ok(()) } else { Err(Failure { what, error: None, line }) }
}
