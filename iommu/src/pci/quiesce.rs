//! Proof that a function does no DMA any more: what it was told before, nobody else shall pay for.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace, DeviceId, TimedOut};

use super::{function::Function, reset};

/// How a function is made to end its DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Method {
    /// Function-level reset, by the PCI Express capability (6.6.2) or by Advanced Features (ECN of 2006):
    /// the function forgets what it was told to do.
    FunctionLevelReset,
    /// Bus mastering off, and what was under way has ended. The function keeps its orders: whoever turns
    /// bus mastering on lets it go on with them. So first reset it by means of its own.
    BusMasterOff,
}

/// Proof that a function stopped its DMA when [`quiesce`] returned. It cannot be copied, nor made
/// elsewhere:
///
/// ```compile_fail
/// use portcullis_iommu::pci::Quiesced;
/// fn twice(proof: Quiesced) -> (Quiesced, Quiesced) {
///     (proof.clone(), proof)
/// }
/// ```
/// ```compile_fail
/// use portcullis_iommu::pci::{Method, Quiesced};
/// fn forge(device: portcullis_hal::DeviceId) -> Quiesced {
///     Quiesced { device, method: Method::BusMasterOff }
/// }
/// ```
///
/// What it does not prove:
///
/// - that the function obeys. All that is known about it is what it says in its configuration space; a
///   function that says "bus mastering off, nothing pending" and goes on writing is held by the IOMMU's
///   tables alone. So is one with DMA that ignores its configuration space.
/// - that it stays so. Bus mastering can be turned on by whoever reaches the configuration space: no guest
///   may, from before [`quiesce`] until the new owner is attached.
/// - anything about other functions of the device, or that translations in the device's own cache (ATS)
///   are gone: those are invalidated by the driver of the IOMMU when the function is attached.
/// - that the function forgot secrets of its former owner. A function-level reset should see to registers
///   (6.6.2); memory on the device may survive it.
#[derive(Debug)]
#[must_use = "the proof is needed to attach the function to its next owner"]
pub struct Quiesced {
    device: DeviceId,
    method: Method,
}

impl Quiesced {
    /// The function that this is about.
    #[must_use]
    pub const fn device(&self) -> DeviceId {
        self.device
    }

    /// What was done to it.
    #[must_use]
    pub const fn method(&self) -> Method {
        self.method
    }
}

/// Why there is no proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum QuiesceError {
    /// No function answers there.
    Absent,
    /// A bridge forwards the DMA of others, and has no function-level reset.
    NotAnEndpoint {
        /// Its header type, without the multi-function bit.
        header_type: u8,
    },
    /// The list of capabilities leads out of its space or in circles, or a capability does not fit.
    BadCapability {
        /// Where it goes wrong.
        offset: u16,
    },
    /// The function has no function-level reset.
    NoReset,
    /// Bus mastering stays on, or came on again.
    BusMasterStuck {
        /// The Command register.
        command: u16,
    },
    /// Transactions were still pending at the deadline. Bus mastering is off; no reset was started,
    /// since completions that arrive after it could be taken for others (6.6.2).
    Pending(TimedOut),
    /// After the reset the function did not come back in time.
    NoAnswer(TimedOut),
    /// The clock stands still, so that the time a reset takes cannot be waited for.
    ClockStopped,
    /// After the reset a register did not take the value that it had before.
    NotRestored {
        /// Byte offset of the register.
        offset: u16,
    },
}

/// Makes a function end its DMA, and proves it.
///
/// Both methods first turn bus mastering off (7.5.1.1.3) and wait until the function says that none of
/// its requests awaits a completion (7.5.3.5, Transactions Pending; or the bit of Advanced Features).
/// A read of its configuration space then pushes ahead what it had posted (2.4.1). A conventional function
/// without such a bit is done as soon as it has answered: it cannot split its transactions.
/// A function-level reset follows if asked for: the function gets the 100 ms of 6.6.2, must then show
/// its identity again, and gets back its header (BARs, Command without bus mastering), Device Control and ACS
/// Control, so that it decodes the same addresses and isolates as before. Interrupts, ATS, PASID and virtual
/// functions of its own stay off.
///
/// Each wait on the function ends after `limit` at the latest: with the reset, three waits and 100 ms.
/// At most about 1200 accesses beside those that wait. The function should be in D0. One call at a
/// time for a function, and nobody else may write its configuration space meanwhile.
///
/// # Errors
/// [`QuiesceError`]. Bus mastering is then off, unless the error is `Absent`, `NotAnEndpoint`,
/// `BadCapability` or `NoReset`, which are found before anything is written, or `BusMasterStuck`.
pub fn quiesce(
    config: &impl ConfigSpace,
    clock: &impl Clock,
    device: DeviceId,
    method: Method,
    limit: Duration,
) -> Result<Quiesced, QuiesceError> {
    let function = Function::find(config, device)?;
    match method {
        Method::BusMasterOff => function.stop(clock, limit)?,
        Method::FunctionLevelReset => {
            let trigger = reset::Trigger::of(&function).ok_or(QuiesceError::NoReset)?;
            function.stop(clock, limit)?;
            reset::reset(&function, trigger, clock, limit)?;
        }
    }
    Ok(Quiesced { device, method })
}
