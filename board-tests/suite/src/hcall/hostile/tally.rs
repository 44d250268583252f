//! What the calls came to.

use crate::hcall::{
    call::{BUSY, FUNCTION, HARDWARE, NOT_ENOUGH_RESOURCES, PARAMETER, SUCCESS},
    port::Offers,
};

/// How often each status came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All calls.
    pub calls: u64,
    /// Those that changed entries, or were done because nothing was to change.
    pub committed: u64,
    /// H_SUCCESS.
    pub success: u64,
    /// H_BUSY.
    pub busy: u64,
    /// H_HARDWARE.
    pub hardware: u64,
    /// H_FUNCTION.
    pub function: u64,
    /// H_PARAMETER.
    pub parameter: u64,
    /// H_NOT_ENOUGH_RESOURCES.
    pub not_enough_resources: u64,
}

impl Tally {
    pub(super) const fn add(&mut self, status: i64, changes: bool) {
        self.calls += 1;
        match status {
            SUCCESS => {
                self.success += 1;
                self.committed += changes as u64;
            }
            BUSY => self.busy += 1,
            HARDWARE => self.hardware += 1,
            FUNCTION => self.function += 1,
            PARAMETER => self.parameter += 1,
            NOT_ENOUGH_RESOURCES => self.not_enough_resources += 1,
            _ => {}
        }
    }

    /// Whether each status came that a port with these offers can show.
    #[must_use]
    pub const fn reached_all(&self, offers: Offers) -> bool {
        let always = self.success > 0 && self.function > 0 && self.parameter > 0;
        always
            && (self.not_enough_resources > 0 || !offers.contains(Offers::STARVE))
            && (self.busy > 0 || !offers.contains(Offers::TAKEN))
            && (self.hardware > 0 || !offers.contains(Offers::DEAFEN))
    }

    /// Calls in a hundred that committed.
    #[must_use]
    pub const fn percent_committed(&self) -> u64 {
        match (self.committed * 100).checked_div(self.calls) {
            Some(percent) => percent,
            None => 0,
        }
    }
}
