//! One remapping unit: its capabilities and its commands.

use core::time::Duration;

use portcullis_hal::{
    Clock, RegisterIo, TimedOut,
    sync::{AtomicBool, Mutex, Ordering},
    wait_until,
};
use portcullis_iommu::Error;

use crate::spec::registers::{
    CAP, CCMD, CCMD_PENDING, Capability, ECAP, ExtendedCapability, FECTL, FECTL_INTERRUPT_MASK, FSTS,
    FaultStatus, GCMD, GSTS, Global, PMEN, PMEN_ENABLE, PMEN_STATUS, RTADDR, VER,
};

/// What a command does to its bit, and what the status must show afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Off,
    On,
}

/// A unit whose registers answer.
#[derive(Debug)]
pub(crate) struct Unit<R, C> {
    pub(crate) registers: R,
    pub(crate) clock: C,
    pub(crate) timeout: Duration,
    pub(crate) capability: Capability,
    pub(crate) extended: ExtendedCapability,
    /// Held while a command is under way: one at a time (manual, 11.4.4.1).
    command: Mutex<()>,
    quarantined: AtomicBool,
}

impl<R: RegisterIo, C: Clock> Unit<R, C> {
    /// Asks the unit what it can; changes nothing.
    ///
    /// # Errors
    /// [`Error::Hardware`] names the register that reads as all ones, or that lacks what this driver
    /// needs: queued invalidation and a table depth.
    pub(crate) fn probe(registers: R, clock: C, timeout: Duration) -> Result<Self, Error> {
        if registers.read32(VER) == u32::MAX {
            return Err(refused(VER, u64::MAX));
        }
        let (capability, extended) = (registers.read64(CAP), registers.read64(ECAP));
        let (capability, extended) = (Capability(capability), ExtendedCapability(extended));
        let depths = (3..=5).any(|levels| capability.supports_levels(levels));
        if capability.0 == u64::MAX || !depths {
            return Err(refused(CAP, capability.0));
        }
        if extended.0 == u64::MAX || !extended.queued_invalidation() {
            return Err(refused(ECAP, extended.0));
        }
        let (command, quarantined) = (Mutex::new(()), AtomicBool::new(false));
        Ok(Self { registers, clock, timeout, capability, extended, command, quarantined })
    }

    /// [`Error::Quarantined`] once the unit has failed to answer.
    #[inline]
    pub(crate) fn check_alive(&self) -> Result<(), Error> {
        if self.quarantined.load(Ordering::Acquire) { Err(Error::Quarantined) } else { Ok(()) }
    }

    /// Notes that the unit cannot be trusted any more; returns the error that said so.
    pub(crate) fn quarantine(&self, error: Error) -> Error {
        self.quarantined.store(true, Ordering::Release);
        error
    }

    /// Whether a bit of the global status is set.
    pub(crate) fn is_on(&self, bit: Global) -> bool {
        self.registers.read32(GSTS) & bit.bits() != 0
    }

    /// Changes one bit and waits until its status is `until`.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn command(&self, bit: Global, to: Switch, until: Switch) -> Result<(), Error> {
        let _one_at_a_time = self.command.lock();
        let status = Global::from_bits_retain(self.registers.read32(GSTS));
        let mut value = status.difference(Global::ONE_SHOT);
        value.set(bit, to == Switch::On);
        self.registers.write32(GCMD, value.bits());
        self.wait_for(GSTS, bit.bits(), until)
    }

    /// Sets the root table pointer to legacy mode tables at `root` (manual, 11.4.5, 6.6).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn set_root_table(&self, root: u64) -> Result<(), Error> {
        self.registers.write64(RTADDR, root);
        self.command(Global::ROOT_TABLE, Switch::On, Switch::On)
    }

    /// Flushes the write buffer where the unit has one (manual, 6.8).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn flush_write_buffer(&self) -> Result<(), Error> {
        if !self.capability.needs_write_buffer_flush() {
            return Ok(());
        }
        self.command(Global::WRITE_BUFFER_FLUSH, Switch::On, Switch::Off)
    }

    /// Ends the protected memory regions that firmware may have left on (manual, 11.4.8).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn disable_protected_memory(&self) -> Result<(), Error> {
        if !self.capability.has_protected_memory() {
            return Ok(());
        }
        let protection = self.registers.read32(PMEN);
        if protection & (PMEN_ENABLE | PMEN_STATUS) == 0 {
            return Ok(());
        }
        self.registers.write32(PMEN, protection & !PMEN_ENABLE);
        self.wait_for(PMEN, PMEN_STATUS, Switch::Off)
    }

    /// Masks the fault interrupt, clears old errors, and lets a register-based invalidation end.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn settle(&self) -> Result<(), Error> {
        self.registers.write32(FECTL, FECTL_INTERRUPT_MASK);
        let missing = TimedOut { register: CCMD as u32, bits: CCMD_PENDING };
        let idle = || (self.registers.read64(CCMD) & CCMD_PENDING == 0).then_some(());
        wait_until(&self.clock, self.timeout, missing, idle)?;
        self.registers.write32(FSTS, FaultStatus::QUEUE_ERRORS.bits());
        Ok(())
    }

    /// Waits until bits of a 32-bit register are as expected. All ones is what an absent unit returns.
    fn wait_for(&self, register: usize, bits: u32, until: Switch) -> Result<(), Error> {
        let missing = TimedOut { register: register as u32, bits: bits.into() };
        wait_until(&self.clock, self.timeout, missing, || {
            let value = self.registers.read32(register);
            let is_set = value & bits != 0;
            (value != u32::MAX && is_set == (until == Switch::On)).then_some(())
        })?;
        Ok(())
    }
}

/// What a register said that this driver cannot work with.
fn refused(register: usize, value: u64) -> Error {
    Error::Hardware { source: register as u32, code: value as i64 }
}
