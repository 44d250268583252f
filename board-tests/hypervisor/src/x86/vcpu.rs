//! A vCPU's turns, one after the other, and what becomes of each exit.

use core::time::Duration;

use portcullis_hal::Clock;

use super::{
    backend::{Backend, Exception, Registers, SystemRegister},
    caching::{CacheInstruction, Entry, GuestRegisters, HardwareRegisters, NotObeyed, Pat},
    control, cpuid,
    exit::{Exit, NestedFault},
    guest::calls,
    msr::{self, Access, Verdict},
};

pub use super::caching::{CacheControl, NoCacheControl};

/// The timer that ends a guest's turn.
pub trait TurnLimit {
    /// Lets a physical interrupt come after `left`, or earlier.
    fn arm(&mut self, left: Duration);
    /// Takes every pending interrupt.
    fn take_interrupts(&mut self);
    /// Lets none come any more.
    fn disarm(&mut self);
}

/// A hypercall: what the guest has in RAX, and in RDI, RSI, RDX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub number: u64,
    /// With what.
    pub arguments: [u64; 3],
}

/// The stack pointer's number: no register that the loop has.
const STACK: u8 = 4;

/// Answer to a hypercall that nobody knows.
pub const UNKNOWN_CALL: u64 = u64::MAX;

/// What a guest's exits need.
pub struct Around<'a> {
    /// Time.
    pub clock: &'a dyn Clock,
    /// The timer.
    pub limit: &'a mut dyn TurnLimit,
    /// Cache instructions, memory types, and where the guest runs.
    pub cache: &'a mut dyn CacheControl,
    /// Hypercalls beyond those of the loop itself; the answer goes to RAX.
    pub hypercall: &'a mut dyn FnMut(Call) -> u64,
}

/// Why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest says that it is done, with this code.
    Ended(u64),
    /// The guest ran into an exception that it did not expect: its vector and where.
    Crashed {
        /// Which.
        vector: u64,
        /// Guest-virtual address of the instruction.
        at: u64,
    },
    /// HLT: nothing would ever wake it. It can go on behind it.
    Halted,
    /// It reached for what it has not. It can go on after [`Vcpu::refuse`].
    Fault(NestedFault),
    /// It is dead: a triple fault.
    Shutdown,
    /// It did not end within its limit. It can go on.
    TimedOut,
    /// Something about caches was not done that the guest relies on. It can go on when that can be done.
    NotObeyed(NotObeyed),
    /// An exit that no guest should cause.
    Failed(Exit),
}

/// How often each kind of exit came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Hypercalls.
    pub hypercalls: u64,
    /// CPUID.
    pub cpuid: u64,
    /// RDMSR and WRMSR.
    pub msr: u64,
    /// Ports.
    pub io: u64,
    /// HLT.
    pub halts: u64,
    /// WBINVD.
    pub wbinvd: u64,
    /// WBNOINVD.
    pub wbnoinvd: u64,
    /// INVD.
    pub invd: u64,
    /// Nested faults.
    pub faults: u64,
    /// Instructions of SVM, hidden ones, and what is not lent.
    pub refused: u64,
    /// Physical interrupts.
    pub interrupts: u64,
    /// CR0 or CR4 written.
    pub control_writes: u64,
    /// CR0 read while hardware has another value.
    pub control_reads: u64,
    /// Shutdowns, and what should not be.
    pub other: u64,
}

/// One vCPU: its registers, and what became of it so far.
#[derive(Debug)]
pub struct Vcpu<B> {
    /// How it runs.
    pub backend: B,
    /// Its general-purpose registers.
    pub registers: Registers,
    /// What the guest set about caching.
    own: GuestRegisters,
    /// What hardware got instead.
    given: HardwareRegisters,
    /// Of the nested tables that it ran with last.
    generation: u64,
    counts: Counts,
    dead: bool,
}

impl<B: Backend> Vcpu<B> {
    /// A vCPU whose first registers these are.
    pub fn new(backend: B, registers: Registers) -> Self {
        const NONE: Counts = Counts {
            hypercalls: 0,
            cpuid: 0,
            msr: 0,
            io: 0,
            halts: 0,
            wbinvd: 0,
            wbnoinvd: 0,
            invd: 0,
            faults: 0,
            refused: 0,
            interrupts: 0,
            control_writes: 0,
            control_reads: 0,
            other: 0,
        };
        let pat = Pat::new(backend.read(SystemRegister::Pat)).unwrap_or_default();
        let own = GuestRegisters { cr0: backend.read(SystemRegister::Cr0), pat };
        let given = HardwareRegisters { cr0: own.cr0, pat: own.pat, cr0_is_shadowed: false };
        Self { backend, registers, own, given, generation: 0, counts: NONE, dead: false }
    }

    /// Exits so far.
    #[must_use]
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Runs the guest until something stops it, `limit` at the latest. A dead one stays dead.
    pub fn run(&mut self, around: &mut Around<'_>, limit: Duration) -> Stop {
        if self.dead {
            return Stop::Shutdown;
        }
        let end = around.clock.now().saturating_add(limit);
        self.backend.take_up();
        around.limit.arm(limit);
        let stop = loop {
            let exit = match around.cache.enter(self.own) {
                Ok(entry) => self.turn(entry),
                Err(error) => break Stop::NotObeyed(error),
            };
            around.cache.leave();
            if let Some(stop) = self.handle(exit, around) {
                break stop;
            }
            let left = end.saturating_sub(around.clock.now());
            if left.is_zero() {
                break Stop::TimedOut;
            }
            if exit == Exit::Interrupt {
                around.limit.arm(left);
            }
        };
        around.limit.disarm();
        self.backend.put_down();
        self.dead = matches!(stop, Stop::Shutdown);
        stop
    }

    fn turn(&mut self, Entry { hardware, generation }: Entry) -> Exit {
        if self.given != hardware {
            self.backend.write(SystemRegister::Cr0, hardware.cr0);
            self.backend.write(SystemRegister::Pat, hardware.pat.value());
            self.backend.intercept_cr0_reads(hardware.cr0_is_shadowed);
            self.given = hardware;
        }
        if self.generation != generation {
            self.backend.forget_translations();
            self.generation = generation;
        }
        self.backend.run(&mut self.registers)
    }

    /// Raises #GP at the instruction that the vCPU stopped at.
    pub fn refuse(&mut self) {
        self.backend.raise(Exception::GeneralProtection);
    }

    /// Does what an exit asks for; `Some` when the guest cannot just go on.
    fn handle(&mut self, exit: Exit, around: &mut Around<'_>) -> Option<Stop> {
        if exit.needs_privilege() && !self.backend.is_privileged() {
            self.counts.refused += 1;
            return self.raise(Exception::GeneralProtection);
        }
        *self.counter(exit) += 1;
        match exit {
            Exit::Hypercall => self.hypercall(around),
            Exit::Cpuid => self.cpuid(),
            Exit::Msr { write } => self.msr(write, around.cache),
            Exit::WriteBackInvalidate(kind) => match around.cache.cache_instruction(kind) {
                Ok(_) => self.skip(),
                Err(error) => Some(Stop::NotObeyed(error)),
            },
            Exit::Cr0Read { to } => self.show_cr0(to),
            Exit::Cr0Write { from } => self.control(SystemRegister::Cr0, from),
            Exit::Cr4Write { from } => self.control(SystemRegister::Cr4, from),
            Exit::Io { .. } | Exit::NotLent => self.raise(Exception::GeneralProtection),
            Exit::Svm | Exit::Hidden => self.raise(Exception::InvalidOpcode),
            Exit::Interrupt => {
                around.limit.take_interrupts();
                None
            }
            Exit::NonMaskable => None,
            Exit::Halt => Some(self.skip().unwrap_or(Stop::Halted)),
            Exit::NestedFault(fault) => Some(Stop::Fault(fault)),
            Exit::Shutdown => Some(Stop::Shutdown),
            Exit::Invalid | Exit::Unknown(_) => Some(Stop::Failed(exit)),
        }
    }

    const fn counter(&mut self, exit: Exit) -> &mut u64 {
        let counts = &mut self.counts;
        match exit {
            Exit::Hypercall => &mut counts.hypercalls,
            Exit::Cpuid => &mut counts.cpuid,
            Exit::Msr { .. } => &mut counts.msr,
            Exit::Io { .. } => &mut counts.io,
            Exit::Halt => &mut counts.halts,
            Exit::WriteBackInvalidate(CacheInstruction::Wbinvd) => &mut counts.wbinvd,
            Exit::WriteBackInvalidate(CacheInstruction::Wbnoinvd) => &mut counts.wbnoinvd,
            Exit::WriteBackInvalidate(CacheInstruction::Invd) => &mut counts.invd,
            Exit::NestedFault(_) => &mut counts.faults,
            Exit::Svm | Exit::Hidden | Exit::NotLent => &mut counts.refused,
            Exit::Interrupt => &mut counts.interrupts,
            Exit::Cr0Read { .. } => &mut counts.control_reads,
            Exit::Cr0Write { .. } | Exit::Cr4Write { .. } => &mut counts.control_writes,
            Exit::NonMaskable | Exit::Shutdown | Exit::Invalid | Exit::Unknown(_) => &mut counts.other,
        }
    }

    /// A guest's program has no calls: only its kernel.
    fn hypercall(&mut self, around: &mut Around<'_>) -> Option<Stop> {
        if !self.backend.is_privileged() {
            return self.raise(Exception::InvalidOpcode);
        }
        let register = |number| self.registers.get(number);
        let number = register(Registers::RAX);
        let arguments = [register(Registers::RDI), register(Registers::RSI), register(Registers::RDX)];
        let [first, second, _] = arguments;
        match number {
            calls::EXIT => return Some(Stop::Ended(first)),
            calls::CRASH => return Some(Stop::Crashed { vector: first, at: second }),
            calls::EMPTY => self.registers.set(Registers::RAX, 0),
            _ => self.registers.set(Registers::RAX, (around.hypercall)(Call { number, arguments })),
        }
        self.skip()
    }

    fn cpuid(&mut self) -> Option<Stop> {
        let (leaf, subleaf) = (self.low(Registers::RAX), self.low(Registers::RCX));
        let answer = cpuid::answer(leaf, self.backend.cpuid(leaf, subleaf));
        let to = [Registers::RAX, Registers::RBX, Registers::RCX, Registers::RDX];
        to.into_iter().zip(answer).for_each(|(register, value)| self.registers.set(register, value.into()));
        self.skip()
    }

    fn msr(&mut self, write: bool, cache: &mut dyn CacheControl) -> Option<Stop> {
        let value = u64::from(self.low(Registers::RDX)) << 32 | u64::from(self.low(Registers::RAX));
        let access = if write { Access::Write(value) } else { Access::Read };
        let efer = self.backend.read(SystemRegister::Efer);
        let number = self.low(Registers::RCX);
        match msr::judge(number, access, efer) {
            Verdict::Refuse => return self.raise(Exception::GeneralProtection),
            Verdict::Change(register, value) => self.backend.write(register, value),
            Verdict::Show(register) => self.answer_msr(self.backend.read(register)),
            Verdict::ShowPat => self.answer_msr(self.own.pat.value()),
            Verdict::ChangePat(pat) => self.own.pat = pat,
            Verdict::Mtrr => return self.mtrr(number, access, cache),
        }
        self.skip()
    }

    fn mtrr(&mut self, number: u32, access: Access, cache: &mut dyn CacheControl) -> Option<Stop> {
        let done = match access {
            Access::Read => cache.read_mtrr(number).map(|value| self.answer_msr(value)),
            Access::Write(value) => cache.write_mtrr(number, value),
        };
        match done {
            Ok(()) => self.skip(),
            Err(_) => self.raise(Exception::GeneralProtection),
        }
    }

    fn answer_msr(&mut self, value: u64) {
        self.registers.set(Registers::RAX, value & 0xffff_ffff);
        self.registers.set(Registers::RDX, value >> 32);
    }

    /// The guest reads what it wrote. SMSW is refused.
    fn show_cr0(&mut self, to: Option<u8>) -> Option<Stop> {
        match to.filter(|to| *to != STACK) {
            Some(to) => self.registers.set(to, self.own.cr0),
            None => return self.raise(Exception::GeneralProtection),
        }
        self.skip()
    }

    /// Writes a control register in the guest's place.
    fn control(&mut self, register: SystemRegister, from: Option<u8>) -> Option<Stop> {
        let value = from.filter(|from| *from != STACK).map(|from| self.registers.get(from));
        match value.and_then(|value| control::judge(register, value)) {
            Some(value) if register == SystemRegister::Cr0 => self.own.cr0 = value,
            Some(value) => self.backend.write(register, value),
            None => return self.raise(Exception::GeneralProtection),
        }
        self.skip()
    }

    fn low(&self, register: u8) -> u32 {
        self.registers.get(register) as u32
    }

    fn raise(&mut self, exception: Exception) -> Option<Stop> {
        self.backend.raise(exception);
        None
    }

    /// Goes on behind the instruction; one that changed under the guest's own hands is not found again.
    fn skip(&mut self) -> Option<Stop> {
        match self.backend.skip_instruction() {
            Some(()) => None,
            None => self.raise(Exception::GeneralProtection),
        }
    }
}

#[cfg(test)]
mod tests;
