//! Scenarios in which a guest maps its own DMA: contract D on this board.

mod cost;

use portcullis_hal::{PhysAddr, arch::powerpc64::RealMemory};
use portcullis_hypervisor::power::{guest::Guest, scenario::fail, virtual_mode};
use portcullis_iommu::Error;
use portcullis_ppc_tce::hcall::Hypercalls;
use portcullis_suite::{
    Board, Event, Failure,
    hcall::{Oracle, scenario, stand},
};
use spin::Mutex;

use crate::{
    board::{MEMORY, PowerNv},
    hypervisor::Guests,
    port::{BoardPort, LAYOUT},
    server::Server,
};

/// What a hostile guest should see: too large for a stack.
static ORACLE: Mutex<Oracle> = Mutex::new(Oracle::new(LAYOUT));

/// Runs the scenario with this name, one of the suite's or [`cost`]; with `_in_virtual_mode` at its end by the full
/// context alone. `None` when there is none.
pub(crate) fn act(machine: &Guests<'_, '_>, guest: Guest, name: &str) -> Option<Result<(), Failure>> {
    if name == "hcall_cost" {
        return Some(with_port(machine, guest, true, cost::cost));
    }
    let virtual_mode = name.strip_suffix("_in_virtual_mode");
    let name = scenario::NAMES.into_iter().find(|known| *known == virtual_mode.unwrap_or(name))?;
    let run = |port: &mut BoardPort<'_, '_, '_>| {
        if name == "hcall_driver" {
            port.lend_device()?;
        }
        let run = scenario::run(port, &mut ORACLE.lock(), name);
        run.unwrap_or_else(|| fail("the suite lacks a scenario"))
    };
    Some(match virtual_mode {
        None => with_port(machine, guest, true, run),
        Some(_) => in_virtual_mode(machine.board(), &guest, || with_port(machine, guest, false, run)),
    })
}

/// Serves the guest's hypercalls while `act` has it make them.
fn with_port(
    machine: &Guests<'_, '_>,
    guest: Guest,
    real_mode: bool,
    act: impl FnOnce(&mut BoardPort<'_, '_, '_>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (board, memory) = (machine.board(), guest.memory());
    let end = PhysAddr::new(memory.address().as_u64().saturating_add(memory.bytes()));
    // SAFETY: the board's memory begins at 0 and the guest's is part of it; where the full context translates, it
    // maps all of that one to one.
    let memory = unsafe { RealMemory::new(end) };
    let pool = MEMORY.view_pool().ok_or(Error::NeedPages { count: 1 })?;
    let server = Server::new(Hypercalls::new(board.iommu(), pool, memory), board.iommu(), stand::VM)?;
    server.at_work(|| act(&mut BoardPort::new(machine, guest, &server, real_mode)?))
}

/// Has the full context translate addresses meanwhile, where the processor can.
fn in_virtual_mode(
    board: &PowerNv<'_>,
    guest: &Guest,
    act: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    // SAFETY: hypervisor real mode; the link script puts the image in the first GiB; no vCPU has its turn.
    let translating = unsafe { virtual_mode::switch_on(guest, &[board.registers_at()]) };
    board.emit(&Event::Step {
        text: match translating {
            Some(()) => "the full context handles every call with address translation on",
            None => "the full context handles every call, in real mode: this processor has no radix tables",
        },
    });
    let result = act();
    virtual_mode::switch_off();
    result
}
