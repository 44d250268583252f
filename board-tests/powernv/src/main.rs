//! The test image for POWER machines without a hypervisor below it (powernv).

#![no_std]
#![no_main]

mod console;
mod entry;
mod memory;
mod opal;
mod trap;

use portcullis_suite::Event;

/// Called by the entry code with the flattened device tree's address.
#[unsafe(no_mangle)]
extern "C" fn image_main(_tree: *const u8) -> ! {
    console::begin();
    trap::install();
    console::emit(&Event::Ready { iommu: "PHB4", snoop_control: None, address_bits: 39 });
    opal::power_off()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let what = info.message().as_str().unwrap_or("panic");
    console::crash(what, info.location().map_or(0, |location| location.line().into()))
}
