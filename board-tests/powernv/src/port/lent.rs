//! A guest that has a device in its own hands: what it writes, reads and has copied, it does by its own instructions in
//! HV = 0.

use portcullis_hypervisor::power::{
    registers::Lent,
    scenario::fail,
    script::{Op, Width},
};
use portcullis_suite::Failure;

use super::BoardPort;

/// edu's registers, and what they take (QEMU, `docs/specs/edu`).
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const COMMAND_START: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
const BUFFER: u64 = 0x4_0000;
/// 20 ms of the time base: edu takes 100 ms for a transfer.
const PAUSE_TICKS: u64 = 20 * 512_000;
/// So many pauses, and the device counts as lost.
const PAUSES: usize = 250;

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
    pub(super) fn copy_by_guest(&self, lent: Lent, from: u64, to: u64) -> Result<(), Failure> {
        self.transfer(lent, from, BUFFER, 0)?;
        self.transfer(lent, BUFFER, to, COMMAND_TO_MEMORY)
    }

    /// The guest programs the device, and asks from time to time whether it is done.
    fn transfer(&self, lent: Lent, source: u64, destination: u64, direction: u64) -> Result<(), Failure> {
        self.run([
            lent.store(Width::Eight, DMA_SOURCE, source),
            lent.store(Width::Eight, DMA_DESTINATION, destination),
            lent.store(Width::Eight, DMA_COUNT, super::WORD.into()),
            lent.store(Width::Eight, DMA_COMMAND, COMMAND_START | direction),
        ])?;
        for _ in 0..PAUSES {
            self.run([Op::Wait(PAUSE_TICKS), lent.load(Width::Eight, DMA_COMMAND)])?;
            let command = lent.loaded(Width::Eight, &self.outcome(0, 1)?);
            if command & COMMAND_START == 0 {
                return Ok(());
            }
        }
        fail("the guest's device did not end its transfer")
    }
}
