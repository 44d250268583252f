//! A register window that a scenario can make lie.

use portcullis_hal::{
    RegisterIo,
    sync::{AtomicBool, Ordering},
};

/// Forwards to real registers until told to withhold: from then on reads of the status register at
/// `status` return what it held then (or a value of the scenario's), and writes to the doorbell at `doorbell` are dropped.
#[derive(Debug)]
pub struct Withholding<R> {
    registers: R,
    status: usize,
    doorbell: usize,
    withheld: AtomicBool,
    frozen: portcullis_hal::sync::AtomicU64,
}

impl<R: RegisterIo> Withholding<R> {
    /// Wraps `registers`; `status` and `doorbell` are byte offsets.
    pub const fn new(registers: R, status: usize, doorbell: usize) -> Self {
        Self {
            registers,
            status,
            doorbell,
            withheld: AtomicBool::new(false),
            frozen: portcullis_hal::sync::AtomicU64::new(0),
        }
    }

    /// Freezes the status register as the 32-bit register it is, and drops the doorbell.
    pub fn withhold32(&self) {
        self.frozen.store(self.registers.read32(self.status).into(), Ordering::Relaxed);
        self.withheld.store(true, Ordering::Relaxed);
    }

    /// The same for a 64-bit status register.
    pub fn withhold64(&self) {
        self.withhold64_as(self.registers.read64(self.status));
    }

    /// The same for a 64-bit register whose idle value is no sign of life: from now on it reads as
    /// `status`.
    pub fn withhold64_as(&self, status: u64) {
        self.frozen.store(status, Ordering::Relaxed);
        self.withheld.store(true, Ordering::Relaxed);
    }

    fn withholds(&self, offset: usize, register: usize) -> bool {
        offset == register && self.withheld.load(Ordering::Relaxed)
    }
}

// SAFETY: forwards to an implementation that gave the promise, or touches nothing.
unsafe impl<R: RegisterIo> RegisterIo for Withholding<R> {
    fn read32(&self, offset: usize) -> u32 {
        let value = self.registers.read32(offset);
        if self.withholds(offset, self.status) { self.frozen.load(Ordering::Relaxed) as u32 } else { value }
    }

    fn write32(&self, offset: usize, value: u32) {
        if !self.withholds(offset, self.doorbell) {
            self.registers.write32(offset, value);
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let value = self.registers.read64(offset);
        if self.withholds(offset, self.status) { self.frozen.load(Ordering::Relaxed) } else { value }
    }

    fn write64(&self, offset: usize, value: u64) {
        if !self.withholds(offset, self.doorbell) {
            self.registers.write64(offset, value);
        }
    }
}
