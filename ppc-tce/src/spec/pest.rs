//! Entries of the PE state table in memory (IODA2 and IODA3, "PEST"): two words a PE, big-endian,
//! written by the bridge when it freezes the PE.

use super::{bit, bits};

/// Word 0: kind of the transaction.
pub const KIND: (u32, u32) = (5, 7);
/// [`KIND`] of a DMA write.
pub const KIND_DMA_WRITE: u64 = 0;
/// [`KIND`] of a DMA read.
pub const KIND_DMA_READ: u64 = 2;
/// Word 0: no TCE for the address.
pub const TCE_PAGE_FAULT: u64 = bit(18);
/// Word 0: the TCE forbids it.
pub const TCE_ACCESS_FAULT: u64 = bit(19);
/// Word 0: Requester ID.
pub const REQUESTER: (u32, u32) = (32, 47);
/// Word 1: the address that failed.
pub const FAILED_ADDRESS: u64 = bits(3, 63);
