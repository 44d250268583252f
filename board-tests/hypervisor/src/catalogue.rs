//! What the test hypervisor can show, for the host that boots it.

use portcullis_suite::{Requires, Scenario};

macro_rules! catalogue {
    ($($name:ident shows [$($promise:literal),+];)+) => {
        /// All scenarios with guests.
        pub const SCENARIOS: &[Scenario] = &[$(
            Scenario { name: stringify!($name), promises: &[$($promise),+], requires: Requires::GUEST },
        )+];
    };
}

catalogue! {
    guest_runs shows ["V01", "V02"];
    guest_registers_survive shows ["V03"];
    guest_is_confined shows ["V04", "V05"];
    two_vcpus_overlap shows ["V06"];
    guest_drives_a_device shows ["V07"];
}
