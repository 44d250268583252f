//! Test image for q35: boots, brings VT-d up, runs one scenario of the suite, and exits.
//!
//! The scenario is named by `scenario=NAME` on the command line; without one the image only tells what
//! the machine has. Identity-mapped; one CPU, whose only interrupts are the timer's while a guest runs, unless a
//! scenario starts the others.

#![no_std]
#![no_main]

mod alarm;
mod board;
mod boot;
mod caches;
mod console;
mod cpus;
mod exit;
mod firmware;
mod guests;
mod interrupts;
mod lapic;
mod limit;
mod memory;
mod pair;
mod pci;
mod second_cpu;
mod startup;
mod timer;
mod traps;
mod walk;

use core::{panic::PanicInfo, ptr, ptr::NonNull, time::Duration};

use heapless::Vec;
use portcullis_hal::arch::x86_64::{MmioRegisters, TimeStampClock};
use portcullis_hypervisor::x86::scenario as guest_scenarios;
use portcullis_suite::{DmaDevice, Event, Failure, bare, edu::Edu, memory::Buffers, nvme::NvmeDevice};
use portcullis_vtd::Dmar;

use crate::{
    board::{Devices, Q35, Registers, UNITS, Units},
    boot::{AcpiRoot, BootInfo},
    exit::{Verdict, exit},
    guests::Guests,
    memory::MEMORY,
};

/// The scenarios that compare with a disk read without translation.
const TIMED: [&str; 2] = ["throughput", "svm_guest_reads_its_disk"];
/// Registers of a unit that this image uses: fault records lie in the first page.
const UNIT_BYTES: u64 = 4096;

#[unsafe(no_mangle)]
extern "C" fn rust_entry(magic: u32, information: u32) -> ! {
    // SAFETY: the first and only call; COM1 belongs to nobody else on a machine without an operating system.
    unsafe { console::start() };
    // SAFETY: the first and only call, on the boot CPU.
    unsafe { traps::install() };
    // SAFETY: `boot.s` passes on what the loader left in EAX and EBX.
    let Some(information) = (unsafe { BootInfo::read(magic, information) }) else {
        give_up("the loader speaks neither PVH nor Multiboot2");
    };
    exit(run(&information).unwrap_or_else(|what| give_up(what)))
}

fn give_up(what: &str) -> ! {
    console::emit(&Event::Crashed { what, at: 0 });
    exit(Verdict::Crashed)
}

/// Finds the devices, their unit, and runs the scenario; what is missing, in words.
fn run(information: &BootInfo) -> Result<Verdict, &'static str> {
    let (clock, buffers) = (timer::calibrated(), MEMORY.buffers());
    let mut edus = pci::edus().filter_map(|function| {
        Some(Edu::new(function.id, registers_at(function.registers, function.bytes)?, clock))
    });
    let (first, second) = (edus.next(), edus.next());
    let nvme = pci::nvmes().find_map(|function| {
        let registers = registers_at(function.registers, function.bytes)?;
        Some(NvmeDevice::new(function.id, registers, clock, buffers.queues()?))
    });
    let devices: Devices<'_> = [
        first.as_ref().map(|device| device as &dyn DmaDevice),
        second.as_ref().map(|device| device as &dyn DmaDevice),
        nvme.as_ref().map(|device| device as &dyn DmaDevice),
    ];
    let root = information.acpi.ok_or("the loader gave no ACPI tables")?;
    // SAFETY: the loader handed `root` over.
    let table = unsafe { firmware::dmar(root) }.map_err(|_| "firmware has no DMAR table")?;
    let dmar = Dmar::parse(table).map_err(|error| {
        defmt::error!("DMAR: {}", error);
        "the DMAR table is broken"
    })?;
    let windows = windows(&dmar)?;
    let registers: Vec<Registers<'_>, UNITS> = windows.iter().map(board::withholding).collect();
    let units = Units { windows: &windows, registers: &registers, dmar };
    let scenario = boot::option(information.command_line, "scenario");
    let bare = if scenario.is_some_and(|name| TIMED.contains(&name)) {
        time_bare_disk(units, &devices, &buffers, clock)?
    } else {
        None
    };
    let board = Q35::bring_up(units, devices, &buffers, clock, bare).map_err(|error| {
        defmt::error!("bring-up: {}", error);
        "a unit did not come up"
    })?;
    act(&board, root, clock, scenario)
}

/// How long the disk takes while no unit translates: DMA is let loose before the hypervisor is in force, so only
/// for the scenario that needs it.
fn time_bare_disk(
    units: Units<'_>,
    devices: &Devices<'_>,
    buffers: &Buffers,
    clock: TimeStampClock,
) -> Result<Option<Duration>, &'static str> {
    let [_, _, Some(disk)] = devices else { return Ok(None) };
    if units.translate() {
        return Ok(None);
    }
    let (answer, target) = buffers.small(0).zip(buffers.large()).ok_or("there are no buffers")?;
    bare::time_disk(*disk, answer, target, &clock).map_err(|_| "the disk does not answer")
}

/// The registers of all units, in the table's order.
fn windows(dmar: &Dmar<'_>) -> Result<Vec<MmioRegisters, UNITS>, &'static str> {
    let mut windows = Vec::new();
    for unit in dmar.units() {
        let window = registers_at(unit.base.as_u64(), UNIT_BYTES).ok_or("a unit is out of reach")?;
        windows.push(window).map_err(|_| "the machine has too many units")?;
    }
    Ok(windows)
}

/// Tells what the machine has, and runs the scenario if one was named.
fn act(
    board: &Q35<'_>,
    root: AcpiRoot,
    clock: TimeStampClock,
    scenario: Option<&str>,
) -> Result<Verdict, &'static str> {
    board.announce();
    let Some(scenario) = scenario else { return Ok(Verdict::Passed) };
    if scenario == second_cpu::NAME {
        return conclude(Some(second_cpu::run(root)));
    }
    if let Some(result) = portcullis_suite::run(board, scenario) {
        return conclude(Some(result));
    }
    let guests = Guests::new(board, clock, root)?;
    // SAFETY: the boot CPU, in an identity map; nobody else runs guests.
    conclude(unsafe { guest_scenarios::run(&guests, scenario) })
}

fn conclude(result: Option<Result<(), Failure>>) -> Result<Verdict, &'static str> {
    match result {
        Some(Ok(())) => Ok(Verdict::Passed),
        Some(Err(failure)) => {
            defmt::error!("line {=u32}: {}", failure.line, failure.error);
            Ok(Verdict::Failed)
        }
        None => Err("there is no such scenario, or the board lacks devices for it"),
    }
}

/// Registers of a unit or a BAR; `None` beyond the identity map.
fn registers_at(address: u64, bytes: u64) -> Option<MmioRegisters> {
    let address = u32::try_from(address).ok()?;
    let base = NonNull::new(ptr::with_exposed_provenance_mut(address as usize))?;
    // SAFETY: firmware put a device's registers there, which on a PC is in the last GiB below 4 GiB: the
    // part of the identity map that is uncached. Each device is asked for once.
    Some(unsafe { MmioRegisters::new(base, bytes as usize) })
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    let what = information.message().as_str().unwrap_or("panic");
    let line = information.location().map_or(0, core::panic::Location::line);
    console::emit_at_last(&Event::Crashed { what, at: line.into() });
    exit(Verdict::Crashed)
}
