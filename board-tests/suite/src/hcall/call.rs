//! Calls as a guest makes them: numbers of the *Linux on Power Architecture Reference* ("TCE Access hcall()s",
//! "Multi-TCE"), written down once more so that the judge does not rest on what it judges.

/// H_GET_TCE(liobn, ioba): the entry comes back in r4.
pub const GET_TCE: u64 = 0x1c;
/// H_PUT_TCE(liobn, ioba, tce).
pub const PUT_TCE: u64 = 0x20;
/// H_STUFF_TCE(liobn, ioba, value, count).
pub const STUFF_TCE: u64 = 0x138;
/// H_PUT_TCE_INDIRECT(liobn, ioba, address of the list, count).
pub const PUT_TCE_INDIRECT: u64 = 0x13c;

/// A call of another family (H_ENTER), which these handlers do not know.
pub const OTHER: u64 = 0x8;

/// H_SUCCESS.
pub const SUCCESS: i64 = 0;
/// H_BUSY.
pub const BUSY: i64 = 1;
/// H_HARDWARE.
pub const HARDWARE: i64 = -1;
/// H_FUNCTION.
pub const FUNCTION: i64 = -2;
/// H_PARAMETER.
pub const PARAMETER: i64 = -4;
/// H_NOT_ENOUGH_RESOURCES.
pub const NOT_ENOUGH_RESOURCES: i64 = -44;

/// Entries of one list.
pub const LIST_ENTRIES: u64 = 512;

/// The device may read.
pub const READ: u64 = 1;
/// The device may write.
pub const WRITE: u64 = 2;
/// Both.
pub const BOTH: u64 = READ | WRITE;

/// One call: r3, then r4 to r7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub opcode: u64,
    /// With what.
    pub arguments: [u64; 4],
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// r3.
    pub status: i64,
    /// r4: after H_GET_TCE the entry.
    pub value: u64,
}

impl Call {
    /// H_PUT_TCE.
    #[must_use]
    pub const fn put(liobn: u64, ioba: u64, tce: u64) -> Self {
        Self { opcode: PUT_TCE, arguments: [liobn, ioba, tce, 0] }
    }

    /// H_GET_TCE.
    #[must_use]
    pub const fn get(liobn: u64, ioba: u64) -> Self {
        Self { opcode: GET_TCE, arguments: [liobn, ioba, 0, 0] }
    }

    /// H_STUFF_TCE.
    #[must_use]
    pub const fn stuff(liobn: u64, ioba: u64, value: u64, count: u64) -> Self {
        Self { opcode: STUFF_TCE, arguments: [liobn, ioba, value, count] }
    }

    /// H_PUT_TCE_INDIRECT.
    #[must_use]
    pub const fn indirect(liobn: u64, ioba: u64, list: u64, count: u64) -> Self {
        Self { opcode: PUT_TCE_INDIRECT, arguments: [liobn, ioba, list, count] }
    }
}

/// A status in words.
#[must_use]
pub const fn describe(status: i64) -> &'static str {
    match status {
        SUCCESS => "H_SUCCESS",
        BUSY => "H_BUSY",
        HARDWARE => "H_HARDWARE",
        FUNCTION => "H_FUNCTION",
        PARAMETER => "H_PARAMETER",
        NOT_ENOUGH_RESOURCES => "H_NOT_ENOUGH_RESOURCES",
        _ => "a status that no contract names",
    }
}
