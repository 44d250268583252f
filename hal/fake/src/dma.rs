//! Memory of a machine that does not exist, as a target of DMA.

use portcullis_hal::{DmaExtent, PhysAddr, PhysRange};

/// Memory that a device may be pointed at, whether a `FakeMemory` lies there or nothing: `bytes` bytes at
/// physical address `address`.
///
/// # Panics
/// When no [`PhysRange`] has this address and length.
#[inline]
#[must_use]
pub fn extent(address: u64, bytes: u64) -> DmaExtent {
    let range = PhysRange::new(PhysAddr::new(address), bytes).expect("whole bytes below 2^64");
    // SAFETY: the address is of a machine that does not exist: only a model's device reaches it, and finds
    // the atomic cells of a `FakeMemory` or nothing there.
    unsafe { DmaExtent::new(range) }
}
