//! The hypervisor's own scenarios.

mod confined;
mod device;
mod overlap;
mod registers;
mod runs;
mod translated;

use core::time::Duration;

use portcullis_hal::PhysAddr;
use portcullis_suite::{Event, Failure, Scenario};

use super::{
    frame::Frame,
    guest::{FullContext, Guest, Stop},
    memory::GuestMemory,
    script::{Op, Record},
    secondary::Lost,
};
pub use crate::verdict::{ensure, fail, need};

/// How long a script may take: QEMU may stand still for a while.
pub const LIMIT: Duration = Duration::from_secs(10);
/// Status of a hypercall that nobody knows (H_FUNCTION of the LoPAPR, 14.4.2).
const H_FUNCTION: u64 = -2i64 as u64;

/// What the scenarios need of the image around them.
pub trait Machine {
    /// Tells the host.
    fn emit(&self, event: &Event<'_>);
    /// Memory for the guest. The same each time.
    fn guest_memory(&self) -> Option<GuestMemory>;
    /// Where the first edu's registers lie, and how many bytes they are.
    fn device_registers(&self) -> Option<(PhysAddr, u64)>;
    /// Asks firmware to start CPU `index`, counted from the first one on, which is 0, at `hv_secondary`.
    ///
    /// # Errors
    /// Firmware's status.
    fn start_cpu(&self, index: usize) -> Result<(), i64>;
    /// A number that changes when the image's code or constants do.
    fn digest(&self) -> u64;
    /// Runs a scenario that needs the image's own hypercalls; `None` when there is none of that name.
    fn act(&self, guest: Guest, name: &str) -> Option<Result<(), Failure>>;
}

/// Runs the scenario with this name and tells how it went; `None` when there is none.
///
/// # Safety
/// In hypervisor real mode, after [`install`](super::vectors::install), while no guest runs.
pub unsafe fn run<M: Machine>(machine: &M, name: &str) -> Option<Result<(), Failure>> {
    let Scenario { name: scenario, .. } = crate::SCENARIOS.iter().find(|scenario| scenario.name == name)?;
    machine.emit(&Event::Begin { scenario });
    // SAFETY: as for this function.
    let result = unsafe { act(machine, scenario) };
    match result {
        Ok(()) => machine.emit(&Event::Passed { scenario }),
        Err(Failure { what, line, .. }) => machine.emit(&Event::Failed { scenario, what, line }),
    }
    Some(result)
}

/// # Safety
/// As for [`run`].
unsafe fn act<M: Machine>(machine: &M, name: &str) -> Result<(), Failure> {
    let memory = need(machine.guest_memory(), "there is no memory for a guest")?;
    // SAFETY: as for this function.
    let guest = need(unsafe { Guest::new(memory) }, "this processor is not known")?;
    let stage = Stage { machine, guest };
    match name {
        "guest_runs" => runs::guest_runs(&stage),
        "guest_registers_survive" => registers::guest_registers_survive(&stage),
        "guest_is_confined" => confined::guest_is_confined(&stage),
        "guest_is_served_in_virtual_mode" => translated::guest_is_served_in_virtual_mode(&stage),
        "guest_drives_a_device" => device::guest_drives_a_device(&stage),
        "two_vcpus_overlap" => overlap::two_vcpus_overlap(&stage),
        _ => machine
            .act(guest, name)
            .unwrap_or_else(|| fail("the catalogue names a scenario that is not there")),
    }
}

/// A guest with a scenario on it.
struct Stage<'m, M> {
    machine: &'m M,
    guest: Guest,
}

impl<M: Machine> Stage<'_, M> {
    fn step(&self, text: &'static str) {
        self.machine.emit(&Event::Step { text });
    }

    fn measured(&self, what: &'static str, value: u64, unit: &'static str) {
        self.machine.emit(&Event::Measured { what, value, unit });
    }

    /// Has vCPU 0 carry out a script to its end.
    #[track_caller]
    fn run(&self, script: impl IntoIterator<Item = Op>, full: FullContext) -> Result<(), Failure> {
        stopped(self.guest.run_script(script, full, LIMIT))
    }

    #[track_caller]
    fn outcome(&self, vcpu: usize, index: usize) -> Result<Record, Failure> {
        need(self.guest.outcome(vcpu, index), "a script has fewer operations")
    }
}

/// Knows no hypercall.
fn no_call(frame: &mut Frame) {
    frame.set_status(H_FUNCTION);
}

/// What came of a guest's turn.
///
/// # Errors
/// A turn that did not end with its script, as a failure.
#[track_caller]
pub fn stopped<T>(ended: Result<T, Stop>) -> Result<T, Failure> {
    match ended {
        Ok(value) => Ok(value),
        Err(Stop::TimedOut) => fail("the guest did not end its script in time"),
        Err(Stop::NoSuchScript | Stop::Busy) => fail("the script cannot be run"),
        Err(Stop::Interrupt { .. }) => fail("an unexpected interrupt ended the guest"),
    }
}

/// What came of an order to another CPU.
///
/// # Errors
/// A CPU that did not come, as a failure.
#[track_caller]
pub fn present<T>(result: Result<T, Lost>) -> Result<T, Failure> {
    match result {
        Ok(value) => Ok(value),
        Err(Lost::Refused(_)) => fail("firmware does not start a further CPU"),
        Err(Lost::Silent) => fail("a further CPU does not answer"),
        Err(Lost::Crashed { .. }) => fail("a further CPU ran into an interrupt"),
    }
}
