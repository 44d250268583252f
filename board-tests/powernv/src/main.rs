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
mod image;
mod memory;
mod opal;
mod pci;
mod trap;
mod tree;

use core::panic::{Location, PanicInfo};

use portcullis_suite::{Board, DmaDevice, Event};

use crate::{board::PowerNv, tree::Tree};

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
    let found = tree.phbs().map(|phb| (phb, pci::edu_functions(&phb))).find(|(_, edus)| edus.is_full());
    let (phb, edus) = found.ok_or("no bridge has two edu devices")?;
    // SAFETY: what the device tree says, made once.
    let registers = unsafe { board::registers(&phb) };
    // SAFETY: the devices were found behind this bridge, each once.
    let board = unsafe { PowerNv::bring_up(phb, &registers, &edus) }.map_err(|error| {
        defmt::error!("bring-up: {}", defmt::Debug2Format(&error));
        "the bridge did not come up"
    })?;
    board.announce();
    match tree.option("scenario") {
        Some(scenario) => act(&board, scenario),
        None => list_devices(&board),
    }
}

fn act(board: &PowerNv<'_>, scenario: &str) -> Result<(), &'static str> {
    if let Err(failure) = portcullis_suite::run(board, scenario).ok_or("no such scenario")? {
        defmt::error!("line {=u32}: {}", failure.line, defmt::Debug2Format(&failure.error));
    }
    Ok(())
}

fn list_devices(board: &PowerNv<'_>) -> Result<(), &'static str> {
    for (index, device) in (0..2u8).map_while(|index| Some((index, board.device(index.into())?))) {
        let requester = device.id().requester.as_u16();
        board.emit(&Event::Device { index, requester, name: device.name() });
    }
    Ok(())
}

#[panic_handler]
fn panic(information: &PanicInfo<'_>) -> ! {
    let what = information.message().as_str().unwrap_or("panic");
    console::crash(what, information.location().map_or(0, Location::line).into())
}
