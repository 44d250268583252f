//! The running image's own memory.

use portcullis_suite::memory::RunningImage;

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
    /// End of its code and constants.
    static image_constants_end: u8;
}

/// The image itself.
pub(crate) fn image() -> RunningImage {
    // SAFETY: the image is longer than a page, runs in real mode, and stays.
    unsafe { RunningImage::new(&raw const image_start) }
}

/// A number that changes when code or constants of the image do (FNV-1a over doublewords).
pub(crate) fn digest() -> u64 {
    let (start, end) = (&raw const image_start, &raw const image_constants_end);
    let words = (end.addr() - start.addr()) / 8;
    (0..words).fold(0xcbf2_9ce4_8422_2325, |sum, index| {
        // SAFETY: inside the image, whose first byte and end are aligned to doublewords.
        let word = unsafe { start.cast::<u64>().add(index).read_volatile() };
        (sum ^ word).wrapping_mul(0x0100_0000_01b3)
    })
}
