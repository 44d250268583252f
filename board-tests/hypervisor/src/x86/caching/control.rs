//! What the loop that handles a guest's exits asks about caching.

use portcullis_iommu::Coherency;

use super::{
    attributes::{GuestRegisters, HardwareRegisters},
    decode::CacheInstruction,
    instruction::{NotObeyed, Obeyed},
    mtrr::{BadMsr, Mtrrs},
};

/// With what a guest's CPU is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its registers.
    pub hardware: HardwareRegisters,
    /// Of the nested tables: a CPU that entered with another one last forgets the guest's translations.
    pub generation: u64,
}

/// A guest's caching on one CPU. What is provided is for a guest all of whose DMA is coherent for good.
pub trait CacheControl {
    /// Does what `kind` must do, between [`leave`](Self::leave) and [`enter`](Self::enter).
    ///
    /// # Errors
    /// [`NotObeyed`]: stop the guest and tell.
    fn cache_instruction(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed>;

    /// Called with interrupts off, last before the guest runs, which has set `own`. Whoever changes the guest's
    /// notice after that interrupts this CPU.
    ///
    /// # Errors
    /// [`NotObeyed`]: the guest must not run. Nothing is to be left then.
    fn enter(&mut self, own: GuestRegisters) -> Result<Entry, NotObeyed> {
        Ok(Entry { hardware: own.under(Coherency::Coherent), generation: 0 })
    }

    /// Called first when the guest does not run any more.
    fn leave(&mut self) {}

    /// The guest reads an MTRR.
    ///
    /// # Errors
    /// [`BadMsr`]: #GP.
    fn read_mtrr(&mut self, msr: u32) -> Result<u64, BadMsr> {
        WRITE_BACK.read(msr)
    }

    /// The guest writes an MTRR. Where nobody keeps them, only what is so already can be written.
    ///
    /// # Errors
    /// [`BadMsr`]: #GP.
    fn write_mtrr(&mut self, msr: u32, value: u64) -> Result<(), BadMsr> {
        let mut after = WRITE_BACK;
        after.write(msr, value)?;
        if after == WRITE_BACK { Ok(()) } else { Err(BadMsr::Value(value)) }
    }
}

/// All memory is write-back; addresses of 40 bits.
const WRITE_BACK: Mtrrs = Mtrrs::after_firmware(40);

/// For guests without devices: nothing is ever flushed.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCacheControl;

impl CacheControl for NoCacheControl {
    fn cache_instruction(&mut self, _: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        Ok(Obeyed::Skipped)
    }
}
