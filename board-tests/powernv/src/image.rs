//! The running image's own memory.

/// Bytes in the first page.
const PAGE_BYTES: usize = 4096;

use portcullis_hal::PhysAddr;

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
}

/// Physical address of the image's first page.
pub(crate) fn start() -> PhysAddr {
    PhysAddr::new((&raw const image_start).addr() as u64)
}

/// A byte of that page as memory holds it now; 0 beyond it.
pub(crate) fn byte(offset: usize) -> u8 {
    if offset >= PAGE_BYTES {
        return 0;
    }
    // SAFETY: inside the image's first page.
    unsafe { (&raw const image_start).add(offset).read_volatile() }
}
