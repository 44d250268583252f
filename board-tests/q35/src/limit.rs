//! The end of a guest's turn: this CPU's alarm.

use core::time::Duration;

use portcullis_hypervisor::x86::vcpu::TurnLimit;

use crate::{
    alarm,
    cpus::{self, Lost},
    interrupts,
};

/// The alarm of the CPU that executes.
#[derive(Debug)]
pub(crate) struct Limit;

impl Limit {
    /// Prepares the boot CPU's local APIC, and with it the alarms of all CPUs. To be called once.
    ///
    /// # Errors
    /// [`Lost::Apic`]: a guest could not be ended.
    pub(crate) fn prepare() -> Result<(), Lost> {
        cpus::take_first()?;
        alarm::install();
        Ok(())
    }
}

impl TurnLimit for Limit {
    fn arm(&mut self, left: Duration) {
        // Refused only without a local APIC, and then no guest runs.
        let _ = alarm::arm(left);
    }

    fn take_interrupts(&mut self) {
        let _ = interrupts::take_pending();
    }

    fn disarm(&mut self) {
        alarm::disarm();
        self.take_interrupts();
    }
}
