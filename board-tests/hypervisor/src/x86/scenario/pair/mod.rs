//! vCPUs on two CPUs at the same time: how the first CPU has another run one, interrupts it there, and has it forget
//! translations or die.

mod death;
mod devices;
mod driven;
mod handover;
mod overlap;
mod page;
mod shared;

use core::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use portcullis_hal::{Clock, PhysAddr};
use portcullis_suite::Failure;

pub(super) use self::{
    death::svm_guest_dies_under_dma, devices::svm_guests_drive_devices_at_once,
    handover::svm_handover_under_dma, overlap::svm_guests_overlap, shared::svm_two_vcpus_are_confined,
};
use super::{Guest, Machine, Stage, ensure, need};
use crate::x86::{
    backend::{Backend, Exception, Registers, Start, SystemRegister},
    caching::Caches,
    cpuid::Answer,
    exit::Exit,
    guest::programs::Program,
    memory::GuestMemory,
    svm::{Permissions, Svm, SvmCpu},
    vcpu::{Around, Call, NoCacheControl, Stop, TurnLimit, Vcpu},
    vmcb::Vmcb,
};

/// The machine's CPUs, as each of them sees them.
pub trait Cpus: Sync {
    /// Starts the second CPU; `false` when there is none. To be called once.
    fn start(&self) -> bool;
    /// Time, the same on all CPUs.
    fn clock(&self) -> impl Clock;
    /// The timer of the CPU that executes.
    fn limit(&self) -> impl TurnLimit;
    /// Turns SVM on, on the CPU that executes, where no guest runs.
    fn svm(&self) -> Option<SvmCpu>;
    /// Does `there` on the second CPU, with interrupts off there, and `here` on this one meanwhile; returns when both are
    /// over. A second CPU that does not end is the end of the run.
    fn beside(&self, there: &mut (dyn FnMut() + Send), here: &mut dyn FnMut());
    /// The caches of all CPUs.
    fn caches(&self) -> impl Caches;
    /// How often CPU `cpu` flushed for guests.
    fn flushes(&self, cpu: usize) -> u64;
    /// Interrupts the second CPU, and waits until it has taken the interrupt: then it is in no guest, or was since.
    fn interrupt_second(&self) -> bool;
}

/// What another CPU wants of a vCPU before it runs on.
#[derive(Debug, Default)]
pub(super) struct Orders {
    forget: AtomicBool,
    die: AtomicBool,
    forgotten: AtomicU64,
}

impl Orders {
    /// Has the vCPU on the second CPU forget its translations. When this returns it has none left that an entry of the
    /// nested tables taken out before led to.
    pub(super) fn forget(&self, cpus: &impl Cpus) -> Result<(), Failure> {
        self.forget.store(true, Ordering::Release);
        ensure(cpus.interrupt_second(), "the second CPU does not take an interrupt")
    }

    /// Ends the vCPU on the second CPU: when this returns it has executed its last instruction.
    pub(super) fn die(&self, cpus: &impl Cpus) -> Result<(), Failure> {
        self.die.store(true, Ordering::Release);
        ensure(cpus.interrupt_second(), "the second CPU does not take an interrupt")
    }

    /// How often the vCPU was made to forget.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Acquire)
    }
}

/// A vCPU's backend that does what it is ordered. Interrupts are off between its look at the orders and the entry, so
/// an interrupt that tells of one ends the turn at once, and the next begins with a look.
pub(super) struct Ordered<'s> {
    svm: Svm<'s>,
    orders: &'s Orders,
}

impl Backend for Ordered<'_> {
    fn run(&mut self, registers: &mut Registers) -> Exit {
        if self.orders.die.load(Ordering::Acquire) {
            return Exit::Shutdown;
        }
        if self.orders.forget.swap(false, Ordering::AcqRel) {
            self.svm.forget_translations();
            self.orders.forgotten.fetch_add(1, Ordering::AcqRel);
        }
        self.svm.run(registers)
    }

    fn take_up(&mut self) {
        self.svm.take_up();
    }

    fn put_down(&mut self) {
        self.svm.put_down();
    }

    fn instruction_pointer(&self) -> u64 {
        self.svm.instruction_pointer()
    }

    fn skip_instruction(&mut self) -> Option<()> {
        self.svm.skip_instruction()
    }

    fn raise(&mut self, exception: Exception) {
        self.svm.raise(exception);
    }

    fn read(&self, register: SystemRegister) -> u64 {
        self.svm.read(register)
    }

    fn write(&mut self, register: SystemRegister, value: u64) {
        self.svm.write(register, value);
    }

    fn intercept_cr0_reads(&mut self, intercept: bool) {
        self.svm.intercept_cr0_reads(intercept);
    }

    fn forget_translations(&mut self) {
        self.svm.forget_translations();
    }

    fn is_privileged(&self) -> bool {
        self.svm.is_privileged()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> Answer {
        self.svm.cpuid(leaf, subleaf)
    }
}

/// What a vCPU is made of, for the CPU that is to run it.
pub(super) struct Parts<'s> {
    block: &'s mut Vmcb,
    number: u32,
    memory: GuestMemory,
    nested_root: u64,
    permissions: &'static Permissions,
    start: Start,
    registers: Registers,
    orders: &'s Orders,
}

impl<'s> Parts<'s> {
    /// The vCPU, on the CPU that executes.
    pub(super) fn vcpu(self, cpu: &'s SvmCpu) -> Vcpu<Ordered<'s>> {
        let space = (self.memory, self.nested_root);
        // SAFETY: the nested tables lead to the guest's own memory and what was lent to it; all addresses are physical
        // ones; `Stage::parts` gives each control block its own number.
        let svm = unsafe { Svm::new(cpu, self.block, self.permissions, space, self.number, self.start) };
        Vcpu::new(Ordered { svm, orders: self.orders }, self.registers)
    }
}

/// What one vCPU of a pair is to run: of which guest, which of its vCPUs, the program and its argument.
pub(super) struct Task<'s, 'm> {
    pub(super) guest: &'s Guest<'m>,
    pub(super) vcpu: u64,
    pub(super) program: Program,
    pub(super) argument: u64,
}

/// The parts of two vCPUs, the first for this CPU, which is the other value.
pub(super) fn parts<'s, M: Machine>(
    stage: &'s mut Stage<'_, M>,
    tasks: [Task<'_, '_>; 2],
    orders: &'s [Orders; 2],
) -> Result<([Parts<'s>; 2], &'s SvmCpu), Failure> {
    let permissions = stage.machine.permissions();
    let [first, second, ..] = &mut *stage.blocks else {
        return super::fail("there are no two control blocks");
    };
    let [one, other] = tasks;
    let [for_one, for_other] = orders;
    let make = |block, number, task: Task<'_, '_>, orders| {
        let start = need(task.guest.start(task.vcpu).ok(), "there is no such vCPU")?;
        let mut registers = Registers::default();
        registers.set(Registers::RDI, task.program as u64);
        registers.set(Registers::RSI, task.argument);
        let (memory, nested_root) = (task.guest.memory(), task.guest.nested_root());
        Ok::<_, Failure>(Parts { block, number, memory, nested_root, permissions, start, registers, orders })
    };
    Ok(([make(first, 1, one, for_one)?, make(second, 2, other, for_other)?], &stage.cpu))
}

/// Does one thing on the second CPU, which is told its SVM, and another here; the two answers.
pub(super) fn beside<C: Cpus, A: Send, B>(
    cpus: &C,
    there: impl FnOnce(&SvmCpu) -> A + Send,
    here: impl FnOnce() -> B,
) -> Result<(A, B), Failure> {
    let (mut there, mut here) = (Some(there), Some(here));
    let (mut from_there, mut from_here) = (None, None);
    let mut second = || {
        from_there = cpus.svm().and_then(|cpu| there.take().map(|there| there(&cpu)));
    };
    cpus.beside(&mut second, &mut || from_here = here.take().map(|here| here()));
    let from_there = need(from_there, "the second CPU has no SVM with nested paging")?;
    Ok((from_there, need(from_here, "this CPU did nothing")?))
}

/// Runs a vCPU on the CPU that executes.
pub(super) fn turn<C: Cpus>(
    cpus: &C,
    vcpu: &mut Vcpu<Ordered<'_>>,
    hypercall: &mut dyn FnMut(Call) -> u64,
    limit: Duration,
) -> Stop {
    let (clock, mut timer) = (cpus.clock(), cpus.limit());
    let cache = &mut NoCacheControl;
    vcpu.run(&mut Around { clock: &clock, limit: &mut timer, cache, hypercall }, limit)
}

/// Waits for something that another CPU or a device does; `false` when it does not come in time. Interrupts that come
/// meanwhile are taken.
pub(super) fn await_that(cpus: &impl Cpus, limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let clock = cpus.clock();
    let end = clock.now().saturating_add(limit);
    loop {
        cpus.limit().take_interrupts();
        if condition() {
            return true;
        }
        if clock.now() >= end {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Takes memory of a guest's away whose vCPU runs on the second CPU: when this returns it is out of its reach.
pub(super) fn take_back(
    cpus: &impl Cpus,
    guest: &mut Guest<'_>,
    (at, bytes): (PhysAddr, u64),
    orders: &Orders,
) -> Result<(), Failure> {
    ensure(guest.take_back(at, bytes).is_ok(), "it cannot be taken back")?;
    orders.forget(cpus)
}
