//! All scenarios that an image can run: the suite's, and those with guests.

use portcullis_suite::Scenario;

/// All scenarios, whatever board they need.
pub(crate) fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    portcullis_suite::SCENARIOS.iter().chain(portcullis_hypervisor::SCENARIOS)
}
