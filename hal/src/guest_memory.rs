//! Reading a guest's memory.

use crate::dma::DmaExtent;

/// How the CPU reads memory of guests, which the guests may change at any moment.
///
/// # Safety
/// An implementer promises that reading is defined for every [`DmaExtent`], whoever writes there meanwhile: each word
/// by one access that the compiler neither repeats nor leaves out, and by no Rust reference. An extent is a plain value
/// and may name memory that was given back since: then it reads whatever is there, or refuses.
pub unsafe trait GuestMemory {
    /// Fills `words` with the first 8-byte words of the extent, each read exactly once, with their bytes as they stand
    /// in memory; `false`, and `words` partly written, when the extent is shorter, misaligned or not memory.
    ///
    /// Any CPU, at any time; waits for nobody; as many steps as there are words.
    fn read_words(&self, extent: DmaExtent, words: &mut [u64]) -> bool;
}
