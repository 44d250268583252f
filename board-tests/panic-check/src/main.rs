//! An image that links only if no panic is reachable from the public API of the libraries.
//!
//! The panic handler calls a function that exists nowhere. After whole-program optimisation the linker
//! drops the handler, unless some path still leads to it: then the link fails. The image is never run.

#![no_std]
#![no_main]

mod hcall;
mod machine;
mod pci;
mod policy;
mod tce;
mod vtd;

unsafe extern "C" {
    /// Defined nowhere: a reference that survives optimisation fails the link.
    safe fn portcullis_panic_is_reachable() -> !;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    portcullis_panic_is_reachable()
}

/// Instantiates everything with values that the optimiser cannot know.
#[unsafe(no_mangle)]
extern "C" fn exercise() {
    vtd::exercise();
    tce::exercise();
    pci::exercise();
    #[cfg(feature = "planted-panic")]
    assert!(machine::unknown::<u64>() != 3, "planted");
}
