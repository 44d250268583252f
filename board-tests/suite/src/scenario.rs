//! The scenarios, by name.

use bitflags::bitflags;
use portcullis_iommu::Error;

use crate::{
    board::{Board, DmaError},
    event::Event,
};

bitflags! {
    /// What a scenario needs of the board; a board's description says what it offers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Requires: u32 {
        /// VT-d.
        const VTD = 1;
        /// TCE tables.
        const TCE = 1 << 1;
        /// Units with snoop control.
        const SNOOP_CONTROL = 1 << 2;
        /// Units without snoop control (and with second-stage tables whose SNP bit is checked).
        const NO_SNOOP_CONTROL = 1 << 3;
        /// The IOMMU reports blocked transactions to software.
        const FAULT_LOG = 1 << 4;
        /// Second-stage tables of 48 bits.
        const WIDTH_48 = 1 << 5;
        /// Second-stage tables of 39 bits.
        const WIDTH_39 = 1 << 6;
        /// An NVMe controller.
        const NVME = 1 << 7;
    }
}

/// One scenario.
pub struct Scenario<B> {
    /// Its name: lower case, words joined by underscores.
    pub name: &'static str,
    /// Ids of the promises that it shows.
    pub promises: &'static [&'static str],
    /// What it needs.
    pub requires: Requires,
    /// Runs it.
    pub run: fn(&B) -> Result<(), Failure>,
}

/// Why a scenario failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was not as promised.
    pub what: &'static str,
    /// The error behind it, if a call failed.
    pub error: Option<Error>,
    /// Line in the suite.
    pub line: u32,
}

impl From<Error> for Failure {
    #[track_caller]
    fn from(error: Error) -> Self {
        Self { what: "a call failed", error: Some(error), line: core::panic::Location::caller().line() }
    }
}

impl From<DmaError> for Failure {
    #[track_caller]
    fn from(_: DmaError) -> Self {
        Self {
            what: "the device did not end its transfer",
            error: None,
            line: core::panic::Location::caller().line(),
        }
    }
}

/// All scenarios, whatever board they need.
#[must_use]
pub fn scenarios<B: Board>() -> &'static [Scenario<B>] {
    &[]
}

/// Runs the scenario with this name and emits how it went; `None` when there is none.
pub fn run<B: Board + 'static>(board: &B, name: &str) -> Option<Result<(), Failure>> {
    let scenario = scenarios::<B>().iter().find(|scenario| scenario.name == name)?;
    board.emit(&Event::Begin { scenario: scenario.name });
    let result = (scenario.run)(board);
    match &result {
        Ok(()) => board.emit(&Event::Passed { scenario: scenario.name }),
        Err(failure) => {
            board.emit(&Event::Failed { scenario: scenario.name, what: failure.what, line: failure.line })
        }
    }
    Some(result)
}
