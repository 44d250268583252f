//! Numbers of hypercalls: in RAX, with arguments in RDI, RSI and RDX, and the answer in RAX.

/// The program is over: its code. Handled by the vCPU loop, as all up to [`EMPTY`].
pub const EXIT: u64 = 1;
/// An exception came that the program did not expect: its vector, and where.
pub const CRASH: u64 = 2;
/// Does nothing; answers 0.
pub const EMPTY: u64 = 3;
/// A value for the scenario.
pub const REPORT: u64 = 4;
/// The program has come to a step: its number.
pub const STEP: u64 = 5;
