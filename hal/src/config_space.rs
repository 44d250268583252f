//! Access to the configuration space of PCI functions.

use crate::addr::DeviceId;

/// Configuration space, a register named by function and byte offset (PCI Express 6.0, 7.2).
///
/// Values are numbers: little-endian as on the bus, whatever the CPU is. `offset` is a multiple of 4
/// below 4096. A read returns all ones, and a write goes nowhere, where no function answers, where the
/// means of access does not reach (offset 256 and above by I/O ports), and for any other offset.
///
/// Both methods may be called from any CPU at any time: an implementation by index and data registers
/// takes its own lock around the pair. A write has reached the function when the method returns.
/// To read a register, change it and write it back is two calls; who else may change that register is the
/// caller's to know.
///
/// The trait is safe: what a function does once it is misprogrammed is bounded by the IOMMU, not by
/// Rust.
pub trait ConfigSpace {
    /// Reads the 32-bit register at `offset` bytes.
    fn read32(&self, device: DeviceId, offset: u16) -> u32;
    /// Writes the 32-bit register at `offset` bytes.
    fn write32(&self, device: DeviceId, offset: u16, value: u32);
}

impl<C: ConfigSpace + ?Sized> ConfigSpace for &C {
    fn read32(&self, device: DeviceId, offset: u16) -> u32 {
        (**self).read32(device, offset)
    }
    fn write32(&self, device: DeviceId, offset: u16, value: u32) {
        (**self).write32(device, offset, value);
    }
}
