//! What hardware reports of a device's DMA.

use portcullis_hal::{Access, DeviceId, Iova};

/// One blocked transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Fault {
    /// Who did it.
    pub device: DeviceId,
    /// Where to, when hardware knows; the low 12 bits are 0.
    pub iova: Option<Iova>,
    /// What the device wanted: [`Access::READ`] or [`Access::WRITE`].
    pub access: Access,
    /// Why it was blocked.
    pub reason: FaultReason,
}

/// Why a transaction was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FaultReason {
    /// The device is in no context.
    NoContext,
    /// The device's context entry is one that hardware refuses.
    BadContext {
        /// Reason code of the hardware.
        code: u8,
    },
    /// The address is wider than the context.
    BeyondWidth,
    /// No entry, or one that forbids reading.
    ReadDenied,
    /// No entry, or one that forbids writing.
    WriteDenied,
    /// An entry has a bit set that hardware reserves.
    ReservedBit,
    /// Hardware could not read its own tables.
    TableUnreadable,
    /// Another reason.
    Other {
        /// Reason code of the hardware.
        code: u8,
    },
}
