//! Test image for q35: boots, brings VT-d up, runs one scenario of the suite, and exits.
//!
//! The scenario is named by `scenario=NAME` on the command line; without one the image only tells what
//! the machine has. Identity-mapped, one CPU, no interrupts.

#![no_std]
#![no_main]

mod board;
mod boot;
mod console;
mod exit;
mod firmware;
mod memory;
mod pci;
mod timer;
mod traps;
mod walk;

use core::{panic::PanicInfo, ptr, ptr::NonNull};

use portcullis_hal::{
    DeviceId,
    arch::x86_64::{MmioRegisters, TimeStampClock},
};
use portcullis_suite::{Event, edu::Edu};
use portcullis_vtd::{Dmar, UnitConfig, dmar::Drhd};

use crate::{
    board::Q35,
    boot::BootInfo,
    exit::{Verdict, exit},
};

/// Registers of a unit that this image uses: fault records lie in the first page.
const UNIT_BYTES: usize = 4096;

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

/// Brings the machine up and runs the scenario; what is missing, in words.
fn run(information: &BootInfo) -> Result<Verdict, &'static str> {
    let clock = timer::calibrated();
    let devices = devices(clock);
    let root = information.acpi.ok_or("the loader gave no ACPI tables")?;
    // SAFETY: the loader handed `root` over.
    let table = unsafe { firmware::dmar(root) }.map_err(|_| "firmware has no DMAR table")?;
    let dmar = Dmar::parse(table).map_err(|error| {
        defmt::error!("DMAR: {}", error);
        "the DMAR table is broken"
    })?;
    let first = board::ids(&devices).next().ok_or("no edu device was found")?;
    let unit = dmar.unit_of(first, &pci::buses_behind).ok_or("no unit translates for the devices")?;
    if !board::ids(&devices).all(|device| shares_unit(&dmar, &unit, device)) {
        return Err("the devices are behind different units");
    }
    let window = unit_registers(&unit).ok_or("the unit's registers are out of reach")?;
    let registers = board::withholding(&window);
    let mut config = UnitConfig::new(unit.segment);
    config.host_address_bits = dmar.host_address_bits();
    // SAFETY: the only call.
    let board = unsafe { Q35::bring_up(&window, &registers, devices, clock, config) }.map_err(|error| {
        defmt::error!("bring-up: {}", error);
        "the unit did not come up"
    })?;
    board.announce();
    let Some(scenario) = boot::option(information.command_line, "scenario") else {
        return Ok(Verdict::Passed);
    };
    match portcullis_suite::run(&board, scenario) {
        Some(Ok(())) => Ok(Verdict::Passed),
        Some(Err(failure)) => {
            defmt::error!("line {=u32}: {}", failure.line, failure.error);
            Ok(Verdict::Failed)
        }
        None => Err("there is no such scenario, or the board lacks two devices"),
    }
}

fn devices(clock: TimeStampClock) -> [Option<Edu<MmioRegisters, TimeStampClock>>; 2] {
    let mut found = pci::edu_functions();
    [(); 2].map(|()| {
        let edu = found.next()?;
        let base = NonNull::new(ptr::with_exposed_provenance_mut(edu.registers as usize))?;
        // SAFETY: the device's BAR 0, in the uncached part of the identity map; each function is found once.
        let registers = unsafe { MmioRegisters::new(base, edu.bytes as usize) };
        Some(Edu::new(edu.id, registers, clock))
    })
}

fn shares_unit(dmar: &Dmar<'_>, unit: &Drhd<'_>, device: DeviceId) -> bool {
    dmar.unit_of(device, &pci::buses_behind).is_some_and(|other| other.base == unit.base)
}

fn unit_registers(unit: &Drhd<'_>) -> Option<MmioRegisters> {
    let base = u32::try_from(unit.base.as_u64()).ok()?;
    let base = NonNull::new(ptr::with_exposed_provenance_mut(base as usize))?;
    // SAFETY: the DMAR table names the place of the unit's registers, which is in the uncached part of the
    // identity map on every PC; the table's checksum held.
    Some(unsafe { MmioRegisters::new(base, UNIT_BYTES) })
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    let what = information.message().as_str().unwrap_or("panic");
    let line = information.location().map_or(0, core::panic::Location::line);
    console::emit_at_last(&Event::Crashed { what, at: line.into() });
    exit(Verdict::Crashed)
}
