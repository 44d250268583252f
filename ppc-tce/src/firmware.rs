//! What the driver asks of the platform's firmware: OPAL on a real machine.

use portcullis_hal::{IoPageSize, PhysAddr, RequesterId};
use portcullis_iommu::Error;

/// Number of a partitionable endpoint of one bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PeNumber(pub u16);

/// One of the two windows of a PE: address bit 59 chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum WindowNumber {
    /// Addresses with bit 59 (value 2^59) clear.
    Zero,
    /// Addresses with it set.
    One,
}

impl WindowNumber {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Zero, Self::One];

    /// The number that OPAL calls want: index of the TVE in the whole bridge.
    #[must_use]
    pub const fn id(self, pe: PeNumber) -> u32 {
        pe.0 as u32 * 2 + self as u32
    }
}

/// The tables that a TVE points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRoot {
    /// Real address of the first level, aligned to `level_bytes`.
    pub address: PhysAddr,
    /// Levels, 1..=5.
    pub levels: u8,
    /// Bytes of one table of every level, a power of two from 4096.
    pub level_bytes: u64,
    /// IOMMU page size.
    pub page_size: IoPageSize,
}

/// Firmware refused a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FirmwareError {
    /// Number of the call (OPAL token).
    pub call: u32,
    /// What it returned (OPAL status, negative).
    pub status: i64,
}

impl FirmwareError {
    /// Judges what call `call` returned: 0 is success, everything else is not.
    ///
    /// # Errors
    /// The status, unless it is 0.
    pub const fn check(call: u32, status: i64) -> Result<(), Self> {
        if status == 0 { Ok(()) } else { Err(Self { call, status }) }
    }
}

impl From<FirmwareError> for Error {
    fn from(error: FirmwareError) -> Self {
        Self::Hardware { source: error.call, code: error.status }
    }
}

/// The two words of a PE's entry in the PE state table, as numbers; 0 where firmware cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PestEntry(pub [u64; 2]);

/// Firmware calls for one host bridge.
///
/// The driver calls these from its control plane only, one at a time, never from a mapping call and
/// never in real mode of a guest exit: firmware takes locks of its own and knows no deadline. An
/// implementation owes the bridge's own `ibm,opal-phbid` and must not kill TCEs: the driver owns that
/// register.
pub trait Firmware {
    /// Puts one function into a PE (OPAL_PCI_SET_PE, 31: compare bus, device and function, action 1),
    /// ending its membership in any other.
    ///
    /// # Errors
    /// What firmware returned; the function stays where it was.
    fn set_pe(&self, device: RequesterId, pe: PeNumber) -> Result<(), FirmwareError>;

    /// Points a window of a PE to tables (OPAL_PCI_MAP_PE_DMA_WINDOW, 44), replacing what was there.
    ///
    /// # Errors
    /// What firmware returned; the window stays as it was.
    fn map_pe_dma_window(
        &self,
        pe: PeNumber,
        window: WindowNumber,
        table: TableRoot,
    ) -> Result<(), FirmwareError>;

    /// Makes a window of a PE refuse all DMA, translated or bypassing (the same call with 0 for
    /// levels, table, bytes and page size).
    ///
    /// # Errors
    /// What firmware returned; the window stays as it was.
    fn unmap_pe_dma_window(&self, pe: PeNumber, window: WindowNumber) -> Result<(), FirmwareError>;

    /// Whether the bridge has frozen the PE's DMA after an error (OPAL_PCI_EEH_FREEZE_STATUS, 23), and
    /// then its entry in the PE state table (`ibm,opal-pest-table` at 16 · PE bytes), or zeros.
    ///
    /// # Errors
    /// What firmware returned.
    fn frozen(&self, pe: PeNumber) -> Result<Option<PestEntry>, FirmwareError>;

    /// Lets a frozen PE go on (OPAL_PCI_EEH_FREEZE_CLEAR, 26: all).
    ///
    /// # Errors
    /// What firmware returned.
    fn clear_freeze(&self, pe: PeNumber) -> Result<(), FirmwareError>;
}

impl<F: Firmware + ?Sized> Firmware for &F {
    fn set_pe(&self, device: RequesterId, pe: PeNumber) -> Result<(), FirmwareError> {
        (**self).set_pe(device, pe)
    }
    fn map_pe_dma_window(
        &self,
        pe: PeNumber,
        window: WindowNumber,
        table: TableRoot,
    ) -> Result<(), FirmwareError> {
        (**self).map_pe_dma_window(pe, window, table)
    }
    fn unmap_pe_dma_window(&self, pe: PeNumber, window: WindowNumber) -> Result<(), FirmwareError> {
        (**self).unmap_pe_dma_window(pe, window)
    }
    fn frozen(&self, pe: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        (**self).frozen(pe)
    }
    fn clear_freeze(&self, pe: PeNumber) -> Result<(), FirmwareError> {
        (**self).clear_freeze(pe)
    }
}
