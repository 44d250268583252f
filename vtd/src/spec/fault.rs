//! Fault recording registers of 128 bits (manual, section 11.4.7.6) and reasons (chapter 7).

use portcullis_hal::{Access, RequesterId};

/// Bytes of one record.
pub const RECORD_BYTES: usize = 16;
/// Byte offset of the high half in a record.
pub const HIGH_HALF: usize = 8;
/// Byte offset of the 32-bit word in a record that holds F, and F in that word: written 1 to clear.
pub const TOP_WORD: usize = 12;
/// F in the top word.
pub const TOP_WORD_FAULT: u32 = 1 << 31;

/// The high half of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHigh(pub u64);

impl RecordHigh {
    /// The record holds a fault (F, bit 127 of the record).
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 >> 63 != 0
    }

    /// What was asked for: T1 (bit 126) and T2 (bit 92); an atomic operation reads and writes.
    #[must_use]
    pub const fn access(self) -> Access {
        match (self.0 >> 62 & 1, self.0 >> 28 & 1) {
            (0, _) => Access::WRITE,
            (_, 0) => Access::READ,
            _ => Access::all(),
        }
    }

    /// Fault reason (FR, bits 103:96).
    #[must_use]
    pub const fn reason(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// Source (SID, bits 79:64).
    #[must_use]
    pub const fn requester(self) -> RequesterId {
        RequesterId::new(self.0 as u16)
    }
}

/// The page that was asked for: bits 63:12 of the record (FI).
#[must_use]
pub const fn faulting_page(low: u64) -> u64 {
    low & !0xfff
}

/// The root entry is not present (chapter 7, LRT.2).
pub const ROOT_NOT_PRESENT: u8 = 0x1;
/// The context entry is not present (LCT.2).
pub const CONTEXT_NOT_PRESENT: u8 = 0x2;
/// The context entry holds a width or type that hardware refuses (LCT.4).
pub const CONTEXT_INVALID: u8 = 0x3;
/// The address is wider than the context (LGN.1).
pub const BEYOND_WIDTH: u8 = 0x4;
/// Write without permission (LGN.2).
pub const WRITE_DENIED: u8 = 0x5;
/// Read without permission (LGN.3).
pub const READ_DENIED: u8 = 0x6;
/// A second-stage table could not be read (LSL.1).
pub const PAGING_ENTRY_UNREADABLE: u8 = 0x7;
/// The root table could not be read (LRT.1).
pub const ROOT_UNREADABLE: u8 = 0x8;
/// The context table could not be read (LCT.1).
pub const CONTEXT_UNREADABLE: u8 = 0x9;
/// Reserved bits in a root entry (LRT.3).
pub const ROOT_RESERVED: u8 = 0xa;
/// Reserved bits in a context entry (LCT.3).
pub const CONTEXT_RESERVED: u8 = 0xb;
/// Reserved bits in a second-stage entry (LSL.2).
pub const PAGING_ENTRY_RESERVED: u8 = 0xc;
/// Reasons of interrupt requests (interrupt remapping, chapter 7).
pub const INTERRUPT_REASONS: core::ops::RangeInclusive<u8> = 0x20..=0x2f;
