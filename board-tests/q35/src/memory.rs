//! The image's memory: what devices and tables use, the image itself, and words as hardware sees them.

use core::ptr;

use portcullis_hal::{
    PhysAddr, PhysRange,
    arch::x86_64::{CacheLines, LinearMap},
};
use portcullis_suite::memory::{ImageMemory, RunningImage};

use crate::cpus;

/// Table pages and buffers.
// SAFETY: a static of an image that runs in an identity map.
pub(crate) static MEMORY: ImageMemory = unsafe { ImageMemory::new() };

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
}

/// End of what is mapped one to one.
const END: u64 = 1 << 32;

/// Cache maintenance through the identity map, by all CPUs that were started.
pub(crate) fn cache_lines() -> Option<CacheLines> {
    let mapped = PhysRange::new(PhysAddr::new(0), END).ok()?;
    // SAFETY: `boot.s` maps all of it one to one, and it stays so.
    let map = unsafe { LinearMap::new(mapped, 0) };
    Some(CacheLines::detect(map, cpus::on_every_cpu))
}

/// The image itself.
pub(crate) fn image() -> RunningImage {
    // SAFETY: the image is longer than a page, mapped one to one, and stays.
    unsafe { RunningImage::new(&raw const image_start) }
}

/// A word of memory as hardware sees it; `None` above what is mapped.
pub(crate) fn word_at(address: u64) -> Option<u64> {
    if address >= END || !address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: mapped one to one, aligned, and read as hardware would: the value may change at any time.
    Some(unsafe { ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() })
}
