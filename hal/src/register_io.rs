//! Access to the registers of a device.

/// Registers of one hardware unit, named by byte offset.
///
/// Values are numbers: an implementation for a big-endian device swaps bytes where the CPU differs.
/// Reads and writes reach the device in program order. May be called from any CPU at any time; the
/// drivers serialise what the manual wants serialised.
///
/// # Safety
/// An implementer promises that
/// - every access inside the unit's window reaches that unit's registers and nothing else, and
/// - an access outside the window, or not aligned to its width, touches nothing: such a read returns
///   all ones (what an absent device returns on PCI), such a write is dropped.
///
/// The caller (a driver) owes the unit the protocol of its manual; memory that it names to the unit
/// comes from [`TableMemory`](crate::TableMemory) or [`DmaExtent`](crate::DmaExtent) only.
pub unsafe trait RegisterIo {
    /// Reads the 32-bit register at `offset` bytes.
    fn read32(&self, offset: usize) -> u32;
    /// Writes the 32-bit register at `offset` bytes.
    fn write32(&self, offset: usize, value: u32);
    /// Reads the 64-bit register at `offset` bytes.
    fn read64(&self, offset: usize) -> u64;
    /// Writes the 64-bit register at `offset` bytes.
    fn write64(&self, offset: usize, value: u64);
}

// SAFETY: forwards to an implementation that already gave the promise.
unsafe impl<R: RegisterIo + ?Sized> RegisterIo for &R {
    fn read32(&self, offset: usize) -> u32 {
        (**self).read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        (**self).write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        (**self).read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        (**self).write64(offset, value);
    }
}
