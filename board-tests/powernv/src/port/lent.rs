//! A guest that has a device in its own hands: what it writes, reads and has copied, it does by its own instructions in
//! HV = 0.

use portcullis_hal::{Iova, RegisterIo, arch::powerpc64::TimeBaseClock};
use portcullis_hypervisor::power::{
    registers::Lent,
    script::{Op, Width},
};
use portcullis_suite::{DmaDevice, Failure, edu::Edu};

use super::{BoardPort, WORD};

impl BoardPort<'_, '_, '_> {
    /// The guest loads a big-endian word.
    pub(super) fn load(&self, guest: u64) -> Result<u64, Failure> {
        self.run([Op::Load(Width::Eight, guest)])?;
        Ok(u64::from_be(self.outcome(0, 0)?.status))
    }

    /// The guest stores it.
    pub(super) fn store(&self, guest: u64, word: u64) -> Result<(), Failure> {
        self.run([Op::Store(Width::Eight, guest, word.to_be())])
    }

    /// The guest has its device fetch a word and deliver it.
    pub(super) fn copy_by_guest(
        &self,
        lent: Lent,
        device: &dyn DmaDevice,
        from: u64,
        to: u64,
    ) -> Result<(), Failure> {
        let edu = Edu::new(device.id(), Registers { port: self, lent }, TimeBaseClock);
        edu.read_memory(Iova::new(from), WORD)?;
        Ok(edu.write_memory(Iova::new(to), WORD)?)
    }
}

/// Registers as the guest reaches them.
struct Registers<'p, 's, 'a, 'b> {
    port: &'p BoardPort<'s, 'a, 'b>,
    lent: Lent,
}

impl Registers<'_, '_, '_, '_> {
    /// All ones when the guest did not come back, as of a device that is gone.
    fn load(&self, width: Width, offset: usize) -> u64 {
        let loaded = self.port.run([self.lent.load(width, offset as u64)]);
        let outcome = loaded.and_then(|()| self.port.outcome(0, 0));
        outcome.map_or(u64::MAX, |outcome| self.lent.loaded(width, &outcome))
    }

    fn store(&self, width: Width, offset: usize, value: u64) {
        // A device that does not get its orders does not do them, which is found out.
        let _ = self.port.run([self.lent.store(width, offset as u64, value)]);
    }
}

// SAFETY: the registers of one edu, which were lent to the guest; beyond them the guest's access traps or is refused, and
// touches nothing. Only `Edu` uses this, which stays within them.
unsafe impl RegisterIo for Registers<'_, '_, '_, '_> {
    fn read32(&self, offset: usize) -> u32 {
        self.load(Width::Four, offset) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.store(Width::Four, offset, value.into());
    }

    fn read64(&self, offset: usize) -> u64 {
        self.load(Width::Eight, offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.store(Width::Eight, offset, value);
    }
}
