//! The running image's own memory.

use portcullis_suite::memory::RunningImage;

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
}

/// The image itself.
pub(crate) fn image() -> RunningImage {
    // SAFETY: the image is longer than a page, runs in real mode, and stays.
    unsafe { RunningImage::new(&raw const image_start) }
}
