//! TCE kill: making the bridge forget translations.
//!
//! The driver owns the kill register: its own lock is the only one around it, so firmware's kill call
//! must never be used beside it. Erratum HW560152 (PHB4, PHB5): a kill of single pages may be dropped
//! when the bridge's queue is backed up; so every kill here is that of a whole PE, or of everything.

use core::time::Duration;

use const_fn::const_fn;
use portcullis_hal::{CacheMaintenance, Clock, RegisterIo, TimedOut, sync::Mutex, wait_until};
use portcullis_iommu::Error;

use crate::{
    firmware::PeNumber,
    generation::{Generation, KillCompletion, LineBuffer, SyncRestart},
    spec::registers::{
        CONTROL, CONTROL_LINE_BUFFER_OFF, CONTROL_TVT_SELECT, DMA_SYNC, DMA_SYNC_READ_COMPLETE,
        DMA_SYNC_READ_START, DMA_SYNC_WRITE_COMPLETE, FENCED, QUIESCE_DMA, QUIESCE_DMA_KILL_STATUS, TCE_KILL,
        TCE_KILL_ALL, TCE_KILL_PE, TCE_KILL_PE_NUMBER, TCE_KILL_SCOPE,
    },
};

/// Single waits of others that a CPU lets pass before it gives the register up. A bridge that hangs is
/// noticed by the CPU that waits for it, after one limit; this bound is for a CPU that never comes back.
const OWNERS_BEFORE_US: u32 = 64;

/// The kill register of one bridge. May be used from any CPU at any time: kills are serialised.
#[derive(Debug)]
pub struct KillRegister<R> {
    registers: R,
    generation: Generation,
    limit: Duration,
    owner: Mutex<()>,
}

impl<R: RegisterIo> KillRegister<R> {
    /// Takes the registers of one bridge of this generation. Each single wait ends after `limit`.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new(registers: R, generation: Generation, limit: Duration) -> Self {
        Self { registers, generation, limit, owner: Mutex::new(()) }
    }

    /// Checks what firmware owes the kills: two TVEs a PE, and the line buffer of erratum HW557787 off.
    ///
    /// # Errors
    /// [`Error::Hardware`] with PHB Control and its value (all ones: the bridge is fenced).
    pub fn check_set_up(&self) -> Result<(), Error> {
        if self.generation.line_buffer() == LineBuffer::Absent {
            return Ok(());
        }
        let value = self.read(CONTROL)?;
        if value & (CONTROL_TVT_SELECT | CONTROL_LINE_BUFFER_OFF) == CONTROL_LINE_BUFFER_OFF {
            return Ok(());
        }
        Err(Error::Hardware { source: CONTROL as u32, code: value as i64 })
    }

    /// Kills all TCEs of these PEs and waits until the bridge has confirmed it and earlier translated
    /// reads are done. Orders the caller's stores to tables before.
    ///
    /// # Errors
    /// [`Error::Timeout`] with register and bits that did not change; [`Error::Hardware`] with the
    /// register that read as all ones: the bridge is fenced. In both cases the TCEs may still be cached.
    pub fn kill_pes(
        &self,
        pes: impl Iterator<Item = PeNumber>,
        clock: &impl Clock,
        cache: &impl CacheMaintenance,
    ) -> Result<(), Error> {
        let command = |pe: PeNumber| TCE_KILL_PE | u64::from(pe.0) & TCE_KILL_PE_NUMBER;
        self.kill(pes.map(command), clock, cache)
    }

    /// Kills every TCE of the bridge, like [`kill_pes`](Self::kill_pes).
    ///
    /// # Errors
    /// As for [`kill_pes`](Self::kill_pes).
    pub fn kill_all(&self, clock: &impl Clock, cache: &impl CacheMaintenance) -> Result<(), Error> {
        self.kill(core::iter::once(TCE_KILL_ALL), clock, cache)
    }

    fn kill(
        &self,
        commands: impl Iterator<Item = u64>,
        clock: &impl Clock,
        cache: &impl CacheMaintenance,
    ) -> Result<(), Error> {
        cache.store_barrier();
        let held = TimedOut { register: TCE_KILL as u32, bits: 0 };
        let limit = self.limit.saturating_mul(OWNERS_BEFORE_US);
        let _owner = wait_until(clock, limit, held, || self.owner.try_lock())?;
        for command in commands {
            self.send(command, clock)?;
        }
        match self.generation.kill_completion() {
            KillCompletion::ReadBack => Ok(()),
            KillCompletion::Status => self.finish(clock),
        }
    }

    /// Writes one kill when the bridge can take it. Reading each back keeps PHB3, which has no status, from
    /// being sent a second one before the first has arrived.
    fn send(&self, command: u64, clock: &impl Clock) -> Result<(), Error> {
        match self.generation.kill_completion() {
            KillCompletion::ReadBack => {
                self.registers.write64(TCE_KILL, command);
                self.read(TCE_KILL).map(|_| ())
            }
            KillCompletion::Status => {
                self.wait(clock, TCE_KILL, TCE_KILL_SCOPE, 0)?;
                self.registers.write64(TCE_KILL, command);
                Ok(())
            }
        }
    }

    /// Starts the sync beside the kill, then waits for both.
    fn finish(&self, clock: &impl Clock) -> Result<(), Error> {
        let stale = match self.generation.sync_restart() {
            SyncRestart::StartClears => 0,
            SyncRestart::WriteBack => {
                self.read(DMA_SYNC)? & (DMA_SYNC_READ_COMPLETE | DMA_SYNC_WRITE_COMPLETE)
            }
        };
        self.registers.write64(DMA_SYNC, DMA_SYNC_READ_START | stale);
        self.wait(clock, QUIESCE_DMA, QUIESCE_DMA_KILL_STATUS, 0)?;
        self.wait(clock, DMA_SYNC, DMA_SYNC_READ_COMPLETE, DMA_SYNC_READ_COMPLETE)
    }

    /// Waits until the bits of `mask` read as `wanted`, or the bridge as fenced.
    fn wait(&self, clock: &impl Clock, register: usize, mask: u64, wanted: u64) -> Result<(), Error> {
        let missing = TimedOut { register: register as u32, bits: mask };
        wait_until(clock, self.limit, missing, || match self.read(register) {
            Ok(value) if value & mask != wanted => None,
            settled => Some(settled.map(|_| ())),
        })?
    }

    fn read(&self, register: usize) -> Result<u64, Error> {
        match self.registers.read64(register) {
            FENCED => Err(Error::Hardware { source: register as u32, code: FENCED as i64 }),
            value => Ok(value),
        }
    }
}
