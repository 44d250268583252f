//! One function's configuration space, and the end of its DMA.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace, DeviceId, TimedOut, wait_until};

use super::{capabilities::Capabilities, quiesce::QuiesceError};

/// Command in the lower half, Status above it. Status bits are cleared by ones: zeros leave them alone.
pub(super) const COMMAND: u16 = 0x04;
pub(super) const BUS_MASTER_ENABLE: u32 = 1 << 2;
const HEADER_TYPE: u16 = 0x0c;
const DEVICE_CONTROL: u16 = 0x08;
const TRANSACTIONS_PENDING: u32 = 1 << 21;
const AF_CONTROL: u16 = 0x04;
const AF_TRANSACTIONS_PENDING: u32 = 1 << 8;
const ABSENT: u32 = u32::MAX;

/// A function that answers.
pub(super) struct Function<'c, C> {
    config: &'c C,
    device: DeviceId,
    pub(super) capabilities: Capabilities,
}

impl<'c, C: ConfigSpace> Function<'c, C> {
    /// Looks the function up, and changes nothing.
    ///
    /// # Errors
    /// `Absent`, `NotAnEndpoint`, `BadCapability`.
    pub(super) fn find(config: &'c C, device: DeviceId) -> Result<Self, QuiesceError> {
        // Not the Vendor ID: that of a virtual function reads as all ones (9.3.4.1.1).
        if config.read32(device, COMMAND) == ABSENT {
            return Err(QuiesceError::Absent);
        }
        let header_type = (config.read32(device, HEADER_TYPE) >> 16) as u8 & 0x7f;
        if header_type != 0 {
            return Err(QuiesceError::NotAnEndpoint { header_type });
        }
        let capabilities = Capabilities::of(config, device)?;
        Ok(Self { config, device, capabilities })
    }

    pub(super) fn read(&self, offset: u16) -> u32 {
        self.config.read32(self.device, offset)
    }

    pub(super) fn write(&self, offset: u16, value: u32) {
        self.config.write32(self.device, offset, value);
    }

    /// Whether it answers requests to its configuration space.
    pub(super) fn answers(&self) -> bool {
        self.read(COMMAND) != ABSENT
    }

    /// Turns bus mastering off and waits until nothing is under way.
    ///
    /// # Errors
    /// `Absent`, `BusMasterStuck`, `Pending`.
    pub(super) fn stop(&self, clock: &impl Clock, limit: Duration) -> Result<(), QuiesceError> {
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !BUS_MASTER_ENABLE);
        self.check_silent()?;
        self.drain(clock, limit)?;
        // The answer to this read pushes ahead what the function had posted.
        self.check_silent()
    }

    /// # Errors
    /// `Absent`, `BusMasterStuck`.
    pub(super) fn check_silent(&self) -> Result<(), QuiesceError> {
        match self.read(COMMAND) {
            ABSENT => Err(QuiesceError::Absent),
            command if command & BUS_MASTER_ENABLE != 0 => {
                Err(QuiesceError::BusMasterStuck { command: command as u16 })
            }
            _ => Ok(()),
        }
    }

    /// Waits until no request awaits a completion.
    ///
    /// # Errors
    /// `Pending`.
    pub(super) fn drain(&self, clock: &impl Clock, limit: Duration) -> Result<(), QuiesceError> {
        let Some((register, bit)) = self.pending() else { return Ok(()) };
        let missing = TimedOut { register: register.into(), bits: bit.into() };
        wait_until(clock, limit, missing, || (self.read(register) & bit == 0).then_some(()))
            .map_err(QuiesceError::Pending)
    }

    /// The register and the bit that say whether requests await completions.
    fn pending(&self) -> Option<(u16, u32)> {
        let capabilities = self.capabilities;
        let express = capabilities.express.map(|at| (at + DEVICE_CONTROL, TRANSACTIONS_PENDING));
        express.or(capabilities.advanced_features.map(|at| (at + AF_CONTROL, AF_TRANSACTIONS_PENDING)))
    }
}
