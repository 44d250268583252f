//! OPAL's PCI calls, as the driver wants them.

use core::ptr::with_exposed_provenance;

use portcullis_hal::RequesterId;
use portcullis_ppc_tce::{Firmware, FirmwareError, PeNumber, PestEntry, TableRoot, WindowNumber};

use crate::{opal, tree::Phb};

const EEH_FREEZE_STATUS: u32 = 23;
const EEH_FREEZE_CLEAR: u32 = 26;
const SET_PE: u32 = 31;
const MAP_PE_DMA_WINDOW: u32 = 44;
/// In SET_PE: compare all bits of the bus number.
const ALL_BUS_BITS: u64 = 7;
/// In SET_PE: map, rather than unmap.
const MAP: u64 = 1;
/// In EEH_FREEZE_STATUS: DMA is frozen.
const DMA_FROZEN: u8 = 2;
/// In EEH_FREEZE_CLEAR: MMIO and DMA.
const CLEAR_ALL: u64 = 3;

/// The calls for one bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpalPci {
    phb: u64,
    pest: Option<u64>,
}

impl OpalPci {
    pub(crate) const fn new(phb: &Phb) -> Self {
        Self { phb: phb.id, pest: phb.pest }
    }

    /// A call that takes the bridge, five more numbers, and no pointer.
    fn call(&self, token: u32, [a, b, c, d, e, f]: [u64; 6]) -> Result<(), FirmwareError> {
        // SAFETY: these calls take no pointers; tables are read by the bridge only.
        let status = unsafe { opal::call(token.into(), [self.phb, a, b, c, d, e, f]) };
        FirmwareError::check(token, status)
    }

    /// The PE state table is big-endian memory that the bridge writes.
    fn pest_entry(&self, pe: PeNumber) -> PestEntry {
        let Some(table) = self.pest else { return PestEntry::default() };
        let entry = with_exposed_provenance::<u64>(table as usize).wrapping_add(usize::from(pe.0) * 2);
        // SAFETY: real mode; firmware says that the table has an entry for each PE, aligned to 16 bytes.
        PestEntry([entry, entry.wrapping_add(1)].map(|word| u64::from_be(unsafe { word.read_volatile() })))
    }
}

impl Firmware for OpalPci {
    fn set_pe(&self, device: RequesterId, pe: PeNumber) -> Result<(), FirmwareError> {
        let (exactly, device) = (1, device.as_u16().into());
        self.call(SET_PE, [pe.0.into(), device, ALL_BUS_BITS, exactly, exactly, MAP])
    }

    fn map_pe_dma_window(
        &self,
        pe: PeNumber,
        window: WindowNumber,
        table: TableRoot,
    ) -> Result<(), FirmwareError> {
        let (address, page) = (table.address.as_u64(), table.page_size.bytes());
        let window = window.id(pe).into();
        self.call(
            MAP_PE_DMA_WINDOW,
            [pe.0.into(), window, table.levels.into(), address, table.level_bytes, page],
        )
    }

    fn unmap_pe_dma_window(&self, pe: PeNumber, window: WindowNumber) -> Result<(), FirmwareError> {
        self.call(MAP_PE_DMA_WINDOW, [pe.0.into(), window.id(pe).into(), 0, 0, 0, 0])
    }

    fn frozen(&self, pe: PeNumber) -> Result<Option<PestEntry>, FirmwareError> {
        let (mut state, mut kind) = (0u8, 0u16);
        let (state_at, kind_at) = ((&raw mut state).addr() as u64, (&raw mut kind).addr() as u64);
        let arguments = [self.phb, pe.0.into(), state_at, kind_at, 0, 0, 0];
        // SAFETY: firmware writes `state` and `kind` and nothing else.
        let status = unsafe { opal::call(EEH_FREEZE_STATUS.into(), arguments) };
        FirmwareError::check(EEH_FREEZE_STATUS, status)?;
        // SAFETY: `state` is initialised; volatile because firmware may have changed it.
        let state = unsafe { (&raw const state).read_volatile() };
        Ok((state & DMA_FROZEN != 0).then(|| self.pest_entry(pe)))
    }

    fn clear_freeze(&self, pe: PeNumber) -> Result<(), FirmwareError> {
        self.call(EEH_FREEZE_CLEAR, [pe.0.into(), CLEAR_ALL, 0, 0, 0, 0])
    }
}
