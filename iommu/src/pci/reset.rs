//! Function-level reset, and the registers that it must not change for good.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace, TimedOut, wait_until};

use super::{
    capabilities::Capabilities,
    function::{BUS_MASTER_ENABLE, COMMAND, Function},
    quiesce::QuiesceError,
};

/// What a function may take for its reset (6.6.2; the same in the Advanced Features ECN).
const RESET_TIME: Duration = Duration::from_millis(100);

const IDENTITY: u16 = 0x00;
const DEVICE_CAPABILITIES: u16 = 0x04;
const RESET_CAPABLE: u32 = 1 << 28;
const DEVICE_CONTROL: u16 = 0x08;
const INITIATE_RESET: u32 = 1 << 15;
const DEVICE_CONTROL_2: u16 = 0x28;
const AF_CAPABLE: u32 = 1 << 24 | 1 << 25;
const AF_CONTROL: u16 = 0x04;
const AF_INITIATE_RESET: u32 = 1;
const ACS_CONTROL: u16 = 0x04;
const LOWER_HALF: u32 = 0xffff;

/// The register that starts the reset.
#[derive(Clone, Copy)]
pub(super) struct Trigger {
    register: u16,
    bit: u32,
}

impl Trigger {
    /// `None` if the function has no function-level reset.
    pub(super) fn of(function: &Function<'_, impl ConfigSpace>) -> Option<Self> {
        let Capabilities { express, advanced_features, .. } = function.capabilities;
        let express = express
            .filter(|at| function.read(at + DEVICE_CAPABILITIES) & RESET_CAPABLE != 0)
            .map(|at| Self { register: at + DEVICE_CONTROL, bit: INITIATE_RESET });
        let advanced_features = || {
            advanced_features
                .filter(|&at| function.read(at) & AF_CAPABLE == AF_CAPABLE)
                .map(|at| Self { register: at + AF_CONTROL, bit: AF_INITIATE_RESET })
        };
        express.or_else(advanced_features)
    }
}

/// Resets a function that is silent. It comes back silent, with its registers as before.
///
/// # Errors
/// `ClockStopped`, `NoAnswer`, `Pending`, `NotRestored`, `Absent`, `BusMasterStuck`.
pub(super) fn reset(
    function: &Function<'_, impl ConfigSpace>,
    trigger: Trigger,
    clock: &impl Clock,
    limit: Duration,
) -> Result<(), QuiesceError> {
    let identity = function.read(IDENTITY);
    let saved = Saved::of(function);
    let control = function.read(trigger.register) & LOWER_HALF;
    function.write(trigger.register, control | trigger.bit);
    let missing = TimedOut { register: trigger.register.into(), bits: trigger.bit.into() };
    wait_for_reset(clock, missing)?;
    // While it is not ready, its identity is that of Request Retry Status, or all ones (2.3.1).
    let missing = TimedOut { register: IDENTITY.into(), bits: identity.into() };
    wait_until(clock, limit, missing, || {
        (function.read(IDENTITY) == identity && function.answers()).then_some(())
    })
    .map_err(QuiesceError::NoAnswer)?;
    function.check_silent()?;
    function.drain(clock, limit)?;
    saved.restore(function)?;
    function.check_silent()
}

fn wait_for_reset(clock: &impl Clock, missing: TimedOut) -> Result<(), QuiesceError> {
    let start = clock.now();
    let over = || (clock.now().saturating_sub(start) >= RESET_TIME).then_some(());
    wait_until(clock, RESET_TIME, missing, over).map_err(|_| QuiesceError::ClockStopped)
}

/// A register, the bits of it that software sets, and what they were.
#[derive(Clone, Copy)]
struct Register {
    offset: u16,
    mask: u32,
    value: u32,
}

/// What must be as before, in the order in which it is put back: the Command register is last, so that
/// nothing is decoded at addresses in between.
struct Saved([Option<Register>; 13]);

impl Saved {
    fn of(function: &Function<'_, impl ConfigSpace>) -> Self {
        let save = |offset, mask| Some(Register { offset, mask, value: function.read(offset) & mask });
        let capabilities = function.capabilities;
        Self([
            // Cache line size and latency timer; the self-test above them stays as it is.
            save(0x0c, LOWER_HALF),
            save(0x10, u32::MAX),
            save(0x14, u32::MAX),
            save(0x18, u32::MAX),
            save(0x1c, u32::MAX),
            save(0x20, u32::MAX),
            save(0x24, u32::MAX),
            save(0x30, u32::MAX),
            // Interrupt line.
            save(0x3c, 0xff),
            // Bits of Device Status are cleared by ones.
            capabilities.express.and_then(|at| save(at + DEVICE_CONTROL, LOWER_HALF & !INITIATE_RESET)),
            capabilities.express_2.and_then(|at| save(at + DEVICE_CONTROL_2, LOWER_HALF)),
            capabilities.acs.and_then(|at| save(at + ACS_CONTROL, u32::MAX)),
            save(COMMAND, LOWER_HALF & !BUS_MASTER_ENABLE),
        ])
    }

    fn restore(&self, function: &Function<'_, impl ConfigSpace>) -> Result<(), QuiesceError> {
        for Register { offset, mask, value } in self.0.iter().flatten().copied() {
            function.write(offset, value);
            if function.read(offset) & mask != value {
                return Err(QuiesceError::NotRestored { offset });
            }
        }
        Ok(())
    }
}
