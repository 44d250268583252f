//! Registers of the host bridge: 64 bits wide, big-endian. Offsets are the same on PHB3, PHB4 and
//! PHB5 (PHB3 and PHB4 functional specifications, "Register descriptions").

use super::{bit, bits};

/// DMA Read/Write Sync: waits until reads that were translated earlier have left the bridge.
pub const DMA_SYNC: usize = 0x200;
/// In [`DMA_SYNC`]: start waiting for reads.
pub const DMA_SYNC_READ_START: u64 = bit(0);
/// In [`DMA_SYNC`]: all earlier reads are done.
pub const DMA_SYNC_READ_COMPLETE: u64 = bit(1);
/// In [`DMA_SYNC`], PHB5 only: all earlier writes are done.
pub const DMA_SYNC_WRITE_COMPLETE: u64 = bit(3);

/// TCE Kill: invalidates cached TCEs. The scope bits read as 0 when the next kill may be written
/// (PHB4, PHB5).
pub const TCE_KILL: usize = 0x210;
/// In [`TCE_KILL`]: every TCE.
pub const TCE_KILL_ALL: u64 = bit(0);
/// In [`TCE_KILL`]: all TCEs of one PE.
pub const TCE_KILL_PE: u64 = bit(1);
/// In [`TCE_KILL`]: one TCE of one PE. Never used: erratum HW560152 drops such kills.
pub const TCE_KILL_ONE: u64 = bit(2);
/// In [`TCE_KILL`]: the PE.
pub const TCE_KILL_PE_NUMBER: u64 = bits(55, 63);
/// In [`TCE_KILL`]: a kill was not queued yet.
pub const TCE_KILL_SCOPE: u64 = TCE_KILL_ALL | TCE_KILL_PE | TCE_KILL_ONE;

/// PHB Control (PHB4, PHB5; PHB3 has other bits there).
pub const CONTROL: usize = 0x810;
/// In [`CONTROL`]: how many TVEs a PE has; 0 stands for two, chosen by address bit 59.
pub const CONTROL_TVT_SELECT: u64 = bits(17, 19);
/// In [`CONTROL`]: the TCE cache line buffer is off, as erratum HW557787 wants it.
pub const CONTROL_LINE_BUFFER_OFF: u64 = bit(21);

/// Quiesce DMA (PHB4, PHB5).
pub const QUIESCE_DMA: usize = 0x888;
/// In [`QUIESCE_DMA`]: queued kills are not finished.
pub const QUIESCE_DMA_KILL_STATUS: u64 = bit(7);

/// What every register reads as once the bridge has fenced itself off.
pub const FENCED: u64 = u64::MAX;
