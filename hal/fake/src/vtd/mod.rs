//! A VT-d remapping unit in legacy mode, written from the manual (*Intel Virtualization Technology for
//! Directed I/O, Architecture Specification*, revision 4.x).
//!
//! Its context cache, paging-structure cache and IOTLB really cache: what software does not invalidate
//! stays in use. It can be slow, hang, lose commands and be absent; it notes every breach of protocol
//! that hardware would not survive or not report.

mod config;
mod dmar;
mod fault;
mod queue;
mod registers;
mod state;
mod walk;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portcullis_hal::RegisterIo;

pub use config::VtdConfig;
pub use dmar::{DmarRegion, DmarScope, DmarUnit, dmar, dmar_with_one_unit};
pub use state::{Knobs, Posted, Reason};

use crate::memory::FakeMemory;
use state::State;

/// Commands that units were given (GCMD), in their order, each with the name of its unit.
pub type Commands = Arc<Mutex<Vec<(usize, u32)>>>;

/// One unit in front of a [`FakeMemory`]. Clones are the same unit; any thread may use any of them.
#[derive(Clone, Debug)]
pub struct FakeVtd {
    state: Arc<Mutex<State>>,
}

impl FakeVtd {
    /// A unit after reset: no translation, every transaction passes.
    #[must_use]
    pub fn new(memory: FakeMemory, config: VtdConfig) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(memory, config))) }
    }

    /// Goes on after a test that died inside: what it drops on the way out still needs the model.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unit's registers.
    #[must_use]
    pub fn registers(&self) -> FakeVtdRegisters {
        FakeVtdRegisters { unit: self.clone() }
    }

    /// Notes the unit's commands from now on, among those of other units.
    pub fn note_commands(&self, name: usize, commands: &Commands) {
        self.lock().notes = Some((name, commands.clone()));
    }

    /// Changes how the unit misbehaves.
    pub fn misbehave(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.lock().knobs);
    }

    /// A device reads memory.
    ///
    /// # Errors
    /// Why the unit blocked it; bytes before the blocked page have arrived.
    pub fn dma_read(&self, requester: u16, iova: u64, bytes: &mut [u8]) -> Result<(), Reason> {
        self.lock().dma_read(requester, iova, bytes)
    }

    /// A device writes memory.
    ///
    /// # Errors
    /// Why the unit blocked it; bytes before the blocked page have landed.
    pub fn dma_write(&self, requester: u16, iova: u64, bytes: &[u8]) -> Result<(), Reason> {
        self.lock().dma_write(requester, iova, bytes)
    }

    /// A device writes memory; the unit translates now, and the data is still on its way.
    ///
    /// # Errors
    /// Why the unit blocked it.
    pub fn dma_write_posted(&self, requester: u16, iova: u64, bytes: &[u8]) -> Result<(), Reason> {
        self.lock().dma_write_posted(requester, iova, bytes)
    }

    /// Lets data that was on its way arrive.
    pub fn land_posted(&self) {
        self.lock().land_posted(None);
    }

    /// Writes that are still on their way.
    #[must_use]
    pub fn posted(&self) -> Vec<Posted> {
        self.lock().posted.clone()
    }

    /// Takes the notes of what software did against the manual.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().violations)
    }

    /// Descriptors that the queue has carried out since the last call, as (low, high).
    #[must_use]
    pub fn take_descriptors(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.lock().descriptors)
    }

    /// Whether DMA is translated now.
    #[must_use]
    pub fn translates(&self) -> bool {
        self.lock().translates()
    }
}

/// Registers of a [`FakeVtd`].
#[derive(Clone, Debug)]
pub struct FakeVtdRegisters {
    unit: FakeVtd,
}

// SAFETY: every access goes to the model's own state; no memory is touched but the model's.
unsafe impl RegisterIo for FakeVtdRegisters {
    fn read32(&self, offset: usize) -> u32 {
        self.unit.lock().read(offset, 4) as u32
    }

    fn write32(&self, offset: usize, value: u32) {
        self.unit.lock().write(offset, 4, value.into());
    }

    fn read64(&self, offset: usize) -> u64 {
        self.unit.lock().read(offset, 8)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.unit.lock().write(offset, 8, value);
    }
}
