//! Windows of a PE: what its TVEs point to. A change of a TVE owes a kill of the PE.

use portcullis_iommu::Error;

use crate::firmware::{Firmware, PeNumber, TableRoot, WindowNumber};

/// Points one window of a PE to tables, replacing what it had.
pub(crate) fn set(
    firmware: &impl Firmware,
    pe: PeNumber,
    window: WindowNumber,
    table: TableRoot,
) -> Result<(), Error> {
    Ok(firmware.map_pe_dma_window(pe, window, table)?)
}

/// Closes both windows of a PE, bypass included. Goes on after an error, and returns the first.
pub(crate) fn unset_all(firmware: &impl Firmware, pe: PeNumber) -> Result<(), Error> {
    let close = |window| firmware.unmap_pe_dma_window(pe, window);
    let [zero, one] = WindowNumber::ALL.map(close);
    zero?;
    Ok(one?)
}
