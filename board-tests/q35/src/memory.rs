//! The image's memory: what devices and tables use, the image itself, and words as hardware sees them.

use core::ptr;

use portcullis_hal::PhysAddr;
use portcullis_suite::memory::{BUFFER_BYTES, ImageMemory};

/// Table pages and buffers.
// SAFETY: a static of an image that runs in an identity map.
pub(crate) static MEMORY: ImageMemory = unsafe { ImageMemory::new() };

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
}

/// Physical address of the image's first page.
pub(crate) fn image() -> PhysAddr {
    PhysAddr::new((&raw const image_start).addr() as u64)
}

/// A byte of that page.
pub(crate) fn image_byte(offset: usize) -> u8 {
    if offset >= BUFFER_BYTES {
        return 0;
    }
    // SAFETY: inside the image's first page, which is longer than that; read as memory holds it now.
    unsafe { (&raw const image_start).add(offset).read_volatile() }
}

/// A word of memory as hardware sees it; `None` above what is mapped.
pub(crate) fn word_at(address: u64) -> Option<u64> {
    if address >= 1 << 32 || !address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: mapped one to one, aligned, and read as hardware would: the value may change at any time.
    Some(unsafe { ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() })
}
