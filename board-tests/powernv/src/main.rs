//! The test image for POWER machines without a hypervisor below it (powernv): brings one host bridge
//! up, runs one scenario of the suite, and powers off.
//!
//! The scenario is named by `scenario=NAME` on the command line; without one the image only tells what
//! the machine has. Hypervisor real mode, one CPU, no interrupts.

#![no_std]
#![no_main]

mod board;
mod console;
mod entry;
mod firmware;
mod hypercalls;
mod hypervisor;
mod image;
mod little_endian;
mod memory;
mod opal;
mod pci;
mod port;
mod server;
mod trap;
mod tree;

use core::panic::{Location, PanicInfo};

use portcullis_hal::{
    PhysAddr,
    arch::powerpc64::{RealModeRegisters, TimeBaseClock},
};
use portcullis_hypervisor::power::scenario;
use portcullis_suite::{Board, DmaDevice, Event, edu::Edu, nvme::NvmeDevice};

use crate::{
    board::{MEMORY, PowerNv},
    hypervisor::Guests,
    little_endian::LittleEndian,
    pci::{Function, Kind},
    tree::Tree,
};

/// Called by the entry code with the flattened device tree's address.
#[unsafe(no_mangle)]
extern "C" fn image_main(tree: *const u8) -> ! {
    console::begin();
    trap::install();
    match run(tree) {
        Ok(()) => opal::power_off(),
        Err(what) => console::crash(what, 0),
    }
}

/// Brings the machine up and runs the scenario; what is missing, in words.
fn run(tree: *const u8) -> Result<(), &'static str> {
    // SAFETY: the entry code passes on what skiboot left in r3.
    let tree = unsafe { Tree::at(tree) }.ok_or("there is no device tree")?;
    let found = tree.phbs().map(|phb| (phb, pci::bring_up(&phb))).find(|(_, found)| !found.is_empty());
    let (phb, functions) = found.ok_or("no bridge has devices that the suite can drive")?;
    let of_kind = |kind| functions.iter().filter(move |function| function.kind == kind);
    let mut edus =
        of_kind(Kind::Edu).map(|function| Edu::new(function.id, registers_of(function), TimeBaseClock));
    let (first, second) = (edus.next(), edus.next());
    let buffers = MEMORY.buffers();
    let nvme = of_kind(Kind::Nvme).find_map(|function| {
        let registers = LittleEndian(registers_of(function));
        Some(NvmeDevice::new(function.id, registers, TimeBaseClock, buffers.queues()?))
    });
    let devices = [
        first.as_ref().map(|device| device as &dyn DmaDevice),
        second.as_ref().map(|device| device as &dyn DmaDevice),
        nvme.as_ref().map(|device| device as &dyn DmaDevice),
    ];
    // SAFETY: what the device tree says, made once.
    let registers = unsafe { board::registers(&phb) }.ok_or("the bridge has no registers")?;
    let board = PowerNv::bring_up(phb, registers, devices, &buffers).map_err(|error| {
        defmt::error!("bring-up: {}", defmt::Debug2Format(&error));
        "the bridge did not come up"
    })?;
    let guests = Guests::new(&tree, &board, of_kind(Kind::Edu).next());
    act(&board, &guests, tree.option("scenario"))
}

/// The registers of a function's BAR 0.
fn registers_of(function: &Function) -> RealModeRegisters {
    // SAFETY: the image placed the function there and asks for each once; it runs in hypervisor real mode.
    unsafe { RealModeRegisters::new(PhysAddr::new(function.registers), function.bytes) }
}

/// Tells what the machine has, and runs the scenario if one was named.
fn act(board: &PowerNv<'_>, guests: &Guests<'_, '_>, scenario: Option<&str>) -> Result<(), &'static str> {
    board.announce();
    let Some(name) = scenario else {
        list_devices(board);
        return Ok(());
    };
    // SAFETY: hypervisor real mode; the vectors are in place, and nobody else runs guests.
    let with_guests = unsafe { scenario::run(guests, name) };
    let result = with_guests.or_else(|| portcullis_suite::run(board, name));
    if let Err(failure) = result.ok_or("there is no such scenario, or the board lacks devices for it")? {
        defmt::error!("line {=u32}: {}", failure.line, defmt::Debug2Format(&failure.error));
    }
    Ok(())
}

fn list_devices(board: &PowerNv<'_>) {
    for (index, device) in (0..3u8).filter_map(|index| Some((index, board.device(index.into())?))) {
        let requester = device.id().requester.as_u16();
        board.emit(&Event::Device { index, requester, name: device.name() });
    }
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    let what = information.message().as_str().unwrap_or("panic");
    console::crash(what, information.location().map_or(0, Location::line).into())
}
