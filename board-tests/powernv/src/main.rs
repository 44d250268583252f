//! The test image for POWER machines without a hypervisor below it (powernv).

#![no_std]
#![no_main]

mod entry;
mod memory;
mod opal;

/// Called by the entry code with the flattened device tree's address.
#[unsafe(no_mangle)]
extern "C" fn image_main(_tree: *const u8) -> ! {
    opal::console_write(b"hello from portcullis\n");
    opal::power_off()
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    opal::power_off()
}
