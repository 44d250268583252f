//! The scenarios with guests on x86.

mod caches;
mod confined;
mod disk;
mod limit;
pub mod pair;
mod rogue;
mod runs;
pub mod tenant;

use core::time::Duration;

use portcullis_hal::{Clock, DonatedPages, PagePool, PhysRange};
use portcullis_suite::{Board, Event, Failure, Scenario, scenario::stage};

use self::pair::Cpus;
use super::{
    backend::Registers,
    caching::{CacheInstruction, NotObeyed, Obeyed},
    guest::{
        entry,
        layout::ARGUMENTS,
        programs::Program,
        script::{self, Op, Outcome},
    },
    memory::GuestMemory,
    svm::{Permissions, Svm, SvmCpu},
    vcpu::{Around, CacheControl, Call, Stop, TurnLimit, UNKNOWN_CALL, Vcpu},
    vm::{Image, Vm},
    vmcb::Vmcb,
};
pub use crate::verdict::{ensure, fail, need};

/// How long a program may take: QEMU may stand still for a while.
pub const LIMIT: Duration = Duration::from_secs(10);

/// What the scenarios need of the image around them.
pub trait Machine {
    /// The machine as the suite knows it.
    type Board: Board;
    /// Its policy and its devices.
    fn board(&self) -> &Self::Board;
    /// Its CPUs.
    type Cpus: Cpus;
    /// All of them.
    fn cpus(&self) -> &Self::Cpus;
    /// Where the registers of the board's device `index` are: whole pages.
    fn registers(&self, index: usize) -> Option<PhysRange>;
    /// Tells the host.
    fn emit(&self, event: &Event<'_>);
    /// Time.
    fn clock(&self) -> &dyn Clock;
    /// This CPU's timer.
    fn limit(&self) -> impl TurnLimit;
    /// Turns SVM on, on this CPU; `None` without it.
    fn svm(&self) -> Option<SvmCpu>;
    /// Memory of guest `index`; the same each time.
    fn guest_memory(&self, index: usize) -> Option<GuestMemory>;
    /// Control blocks of vCPUs; `None` the second time.
    fn control_blocks(&self) -> Option<&'static mut [Vmcb]>;
    /// Which MSRs and ports guests reach.
    fn permissions(&self) -> &'static Permissions;
    /// Pages for nested tables.
    fn pool(&self) -> &PagePool<DonatedPages<'static>>;
    /// First word of the image and how many of its words come from its file.
    fn image(&self) -> (*const u64, usize);
    /// A number that changes when the image's code or constants do.
    fn digest(&self) -> u64;
    /// Runs a scenario of the image's own; `None` when there is none of that name.
    fn act(&self, name: &str) -> Option<Result<(), Failure>>;
}

/// Runs the scenario with this name and tells how it went; `None` when there is none.
///
/// # Safety
/// At privilege level 0, with physical addresses the same, while nobody else runs guests.
pub unsafe fn run<M: Machine>(machine: &M, name: &str) -> Option<Result<(), Failure>> {
    let Scenario { name: scenario, .. } = crate::SCENARIOS.iter().find(|scenario| scenario.name == name)?;
    machine.emit(&Event::Begin { scenario });
    let result = act(machine, scenario);
    match result {
        Ok(()) => machine.emit(&Event::Passed { scenario }),
        Err(Failure { what, line, .. }) => machine.emit(&Event::Failed { scenario, what, line }),
    }
    Some(result)
}

fn act<M: Machine>(machine: &M, name: &str) -> Result<(), Failure> {
    match name {
        "svm_guest_runs" => runs::svm_guest_runs(&mut Stage::new(machine)?),
        "svm_guest_is_confined" => confined::svm_guest_is_confined(&mut Stage::new(machine)?),
        "svm_guest_is_ended_at_its_limit" => {
            limit::svm_guest_is_ended_at_its_limit(&mut Stage::new(machine)?)
        }
        "svm_wbinvd_by_notice" => caches::svm_wbinvd_by_notice(&mut Stage::new(machine)?),
        "svm_memory_types_by_notice" => caches::svm_memory_types_by_notice(&mut Stage::new(machine)?),
        "svm_guest_reads_its_disk" => disk::svm_guest_reads_its_disk(&mut Stage::new(machine)?),
        "svm_guest_rogue_dma" => rogue::svm_guest_rogue_dma(&mut Stage::new(machine)?),
        "svm_guests_overlap" => pair::svm_guests_overlap(&mut Stage::new(machine)?),
        "svm_guests_drive_devices_at_once" => {
            pair::svm_guests_drive_devices_at_once(&mut Stage::new(machine)?)
        }
        "svm_two_vcpus_are_confined" => pair::svm_two_vcpus_are_confined(&mut Stage::new(machine)?),
        "svm_handover_under_dma" => pair::svm_handover_under_dma(&mut Stage::new(machine)?),
        "svm_guest_dies_under_dma" => pair::svm_guest_dies_under_dma(&mut Stage::new(machine)?),
        _ => machine.act(name).unwrap_or_else(|| fail("the catalogue names a scenario that is not there")),
    }
}

/// A CPU that runs guests, and what they need.
pub struct Stage<'m, M> {
    /// The image around.
    pub machine: &'m M,
    cpu: SvmCpu,
    blocks: &'static mut [Vmcb],
}

/// A guest of a [`Stage`].
pub type Guest<'m> = Vm<'m, DonatedPages<'static>>;

impl<'m, M: Machine> Stage<'m, M> {
    /// Turns SVM on.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn new(machine: &'m M) -> Result<Self, Failure> {
        let cpu = need(machine.svm(), "this CPU has no SVM with nested paging")?;
        let blocks = need(machine.control_blocks(), "the control blocks are taken")?;
        Ok(Self { machine, cpu, blocks })
    }

    /// The policy and the devices, about which the host is told.
    ///
    /// # Errors
    /// The board has not enough devices.
    pub fn policy(&self) -> Result<stage::Stage<'m, M::Board>, Failure> {
        need(stage::Stage::new(self.machine.board()), "the board lacks devices")
    }

    /// Says what comes.
    pub fn step(&self, text: &'static str) {
        self.machine.emit(&Event::Step { text });
    }

    /// Guest `index`, as new.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn guest(&self, index: usize) -> Result<Guest<'m>, Failure> {
        let memory = need(self.machine.guest_memory(index), "there is no memory for a guest")?;
        let (start, words) = self.machine.image();
        let image = Image { start, words, entry: entry::first_instruction(), traps: entry::traps() };
        // SAFETY: the machine vouches for the image's words.
        need(unsafe { Vm::new(self.machine.pool(), memory, &image) }.ok(), "the guest cannot be made")
    }

    /// vCPU 0 of a guest, before the first instruction of a program, with `argument`.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn vcpu<'s>(
        &'s mut self,
        guest: &'s Guest<'m>,
        program: Program,
        argument: u64,
    ) -> Result<Vcpu<Svm<'s>>, Failure> {
        let block = need(self.blocks.first_mut(), "there is no control block")?;
        begin(self.machine, &self.cpu, (block, 1), guest, program, argument)
    }

    /// The same of two guests that take turns.
    ///
    /// # Errors
    /// What is missing, in words.
    pub fn vcpus<'s>(
        &'s mut self,
        [one, other]: [&'s Guest<'m>; 2],
        program: Program,
        argument: u64,
    ) -> Result<[Vcpu<Svm<'s>>; 2], Failure> {
        let [first, second, ..] = &mut *self.blocks else { return fail("there are no two control blocks") };
        let first = begin(self.machine, &self.cpu, (first, 1), one, program, argument)?;
        Ok([first, begin(self.machine, &self.cpu, (second, 2), other, program, argument)?])
    }
}

/// vCPU 0 of a guest, with a control block and a number in the TLB that no other vCPU has.
fn begin<'s, M: Machine>(
    machine: &M,
    cpu: &'s SvmCpu,
    (block, number): (&'s mut Vmcb, u32),
    guest: &Guest<'_>,
    program: Program,
    argument: u64,
) -> Result<Vcpu<Svm<'s>>, Failure> {
    let start = need(guest.start(0).ok(), "there is no such vCPU")?;
    let space = (guest.memory(), guest.nested_root());
    // SAFETY: the nested tables lead to the guest's own memory and what was lent to it; all addresses are physical
    // ones; the callers' numbers differ.
    let backend = unsafe { Svm::new(cpu, block, machine.permissions(), space, number, start) };
    let mut registers = Registers::default();
    registers.set(Registers::RDI, program as u64);
    registers.set(Registers::RSI, argument);
    Ok(Vcpu::new(backend, registers))
}

/// Runs a vCPU with these hypercalls, and counts its cache instructions.
pub fn turn<M: Machine>(
    machine: &M,
    vcpu: &mut Vcpu<Svm<'_>>,
    cache: &mut dyn CacheControl,
    hypercall: &mut dyn FnMut(Call) -> u64,
    limit: Duration,
) -> Stop {
    let mut around = Around { clock: machine.clock(), limit: &mut machine.limit(), cache, hypercall };
    vcpu.run(&mut around, limit)
}

/// Knows no hypercall.
pub const fn no_call(_: Call) -> u64 {
    UNKNOWN_CALL
}

/// Notes the last cache instruction.
#[derive(Clone, Copy, Debug, Default)]
struct Noted(Option<CacheInstruction>);

impl CacheControl for Noted {
    fn cache_instruction(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        self.0 = Some(kind);
        Ok(Obeyed::Skipped)
    }
}

/// Puts a script in place.
#[track_caller]
fn load(memory: GuestMemory, script: impl IntoIterator<Item = Op>) -> Result<u64, Failure> {
    need(script::load(memory, script), "the script does not fit")?;
    Ok(ARGUMENTS)
}

#[track_caller]
fn outcome(memory: GuestMemory, index: u64) -> Result<Outcome, Failure> {
    need(script::outcome(memory, index), "a script has fewer operations")
}

/// Succeeds when the program ended by itself.
///
/// # Errors
/// Why it did not, as a failure.
#[track_caller]
pub fn ended(stop: Stop) -> Result<(), Failure> {
    match stop {
        Stop::Ended(0) => Ok(()),
        Stop::Ended(_) => fail("the guest's program ended with another code"),
        Stop::Crashed { .. } => fail("the guest ran into an exception"),
        Stop::Halted => fail("the guest halted"),
        Stop::Fault(_) => fail("the guest reached for what it has not"),
        Stop::Shutdown => fail("the guest is dead"),
        Stop::TimedOut => fail("the guest did not end in time"),
        Stop::NotObeyed(_) => fail("what the guest relies on about caches was not done"),
        Stop::Failed(_) => fail("an exit came that no guest should cause"),
    }
}
