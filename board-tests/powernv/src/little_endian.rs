//! Registers of little-endian devices, as most PCI devices are, behind a window for big-endian ones.

use portcullis_hal::RegisterIo;

/// Swaps the bytes of every register.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LittleEndian<R>(pub(crate) R);

// SAFETY: forwards to an implementation that gave the promise.
unsafe impl<R: RegisterIo> RegisterIo for LittleEndian<R> {
    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset).swap_bytes()
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.write32(offset, value.swap_bytes());
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset).swap_bytes()
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.write64(offset, value.swap_bytes());
    }
}
