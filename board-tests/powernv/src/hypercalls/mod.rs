//! Scenarios in which a guest maps its own DMA: contract D on this board.

mod cost;
mod driver;
mod hostile;
mod meanwhile;
mod rules;
mod vcpus;

use portcullis_hal::{PhysAddr, arch::powerpc64::RealMemory};
use portcullis_hypervisor::power::{guest::Guest, virtual_mode};
use portcullis_iommu::Error;
use portcullis_ppc_tce::hcall::Hypercalls;
use portcullis_suite::{
    Board, Event, Failure,
    hcall::{Topic, stand},
};

use self::rules::{rules, rules_in_virtual_mode};
use crate::{
    board::{MEMORY, PowerNv},
    hypervisor::Guests,
    port::BoardPort,
    server::Server,
};

/// Runs the scenario with this name; `None` when there is none.
pub(crate) fn act(machine: &Guests<'_, '_>, guest: Guest, name: &str) -> Option<Result<(), Failure>> {
    let board = machine.board();
    Some(match name {
        "hcall_rules" => rules(board, guest, Topic::Calls),
        "hcall_device_rules" => rules(board, guest, Topic::Device),
        "hcall_connection_rules" => rules(board, guest, Topic::Connections),
        "hcall_rules_in_virtual_mode" => rules_in_virtual_mode(board, guest, Topic::Calls),
        "hcall_device_rules_in_virtual_mode" => rules_in_virtual_mode(board, guest, Topic::Device),
        "hcall_connection_rules_in_virtual_mode" => rules_in_virtual_mode(board, guest, Topic::Connections),
        "hcall_driver" => with_port(board, guest, true, |port| driver::driver(port, machine)),
        "hcall_two_vcpus" => with_port(board, guest, true, |port| vcpus::two_vcpus(port, machine)),
        "hcall_revoked_while_calling" => {
            with_port(board, guest, true, |port| meanwhile::revoked(port, machine))
        }
        "hcall_connected_while_calling" => {
            with_port(board, guest, true, |port| meanwhile::connected(port, machine))
        }
        "hcall_cost" => with_port(board, guest, true, cost::cost),
        "hcall_hostile_guest" => with_port(board, guest, true, hostile::hostile),
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
