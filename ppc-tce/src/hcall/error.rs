//! What can be wrong with a window or a connection.

use portcullis_hal::{IoPageSize, IovaRange};
use portcullis_iommu::{Error, VmId};

use super::slot::{Liobn, PLACES};

/// Why the control plane refused, and the value that was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum HcallError {
    /// A guest's page is 2^12 to 2^34 bytes.
    BadPageShift {
        /// What was asked for.
        shift: u8,
    },
    /// A window is a power of two of whole pages, and ends within 64 bits of address.
    BadWindow {
        /// First address.
        start: u64,
        /// Length.
        bytes: u64,
    },
    /// The VM has a window of that number.
    DuplicateLiobn {
        /// The VM.
        vm: VmId,
        /// The number.
        liobn: Liobn,
    },
    /// The VM has no window of that number.
    UnknownLiobn {
        /// The VM.
        vm: VmId,
        /// The number.
        liobn: Liobn,
    },
    /// There is no room for another window, or behind this one for another hardware table.
    Full {
        /// How many there is room for.
        capacity: usize,
    },
    /// The pages of the hardware table are larger than the guest's.
    IommuPageTooLarge {
        /// Smallest page of the hardware table.
        bytes: u64,
        /// The guest's page.
        guest: IoPageSize,
    },
    /// A page of the guest's is more pages of the hardware table than one call may change in real mode.
    GuestPageTooLarge {
        /// The guest's page.
        guest: IoPageSize,
        /// Smallest page of the hardware table.
        bytes: u64,
    },
    /// The hardware table translates other addresses: it begins elsewhere, or ends before the window.
    OtherWindow {
        /// What the hardware table translates.
        range: IovaRange,
    },
    /// The hardware table stands behind a window already, or is just being taken from it.
    AlreadyConnected {
        /// That window.
        liobn: Liobn,
    },
    /// The hardware table does not stand behind this window.
    NotConnected,
    /// What the guest wrote cannot be put into the hardware table: its memory is not registered any more.
    NotReplayed {
        /// I/O bus address of the entry.
        ioba: u64,
    },
    /// What the policy or the hardware refused.
    Iommu(Error),
}

impl From<Error> for HcallError {
    fn from(error: Error) -> Self {
        Self::Iommu(error)
    }
}

impl HcallError {
    /// Every place behind a window is taken.
    pub(super) const NO_PLACE: Self = Self::Full { capacity: PLACES };
}
