//! What the vCPU loop needs of a CPU's virtualisation, whoever made it: SVM here, VMX another time.

use super::{cpuid::Answer, exit::Exit};

/// General-purpose registers of a guest. Entry and exit code know the order: the numbers of the architecture, with
/// the stack pointer's place unused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// RAX, RCX, RDX, RBX, unused, RBP, RSI, RDI, R8 to R15.
    pub by_number: [u64; 16],
}

impl Registers {
    /// RAX: the number of a hypercall, and its answer.
    pub const RAX: u8 = 0;
    /// RCX.
    pub const RCX: u8 = 1;
    /// RDX: a hypercall's third argument.
    pub const RDX: u8 = 2;
    /// RBX.
    pub const RBX: u8 = 3;
    /// RSI: a hypercall's second argument.
    pub const RSI: u8 = 6;
    /// RDI: a hypercall's first argument.
    pub const RDI: u8 = 7;

    /// The register with this number; 0 for one that is not there.
    #[must_use]
    pub fn get(&self, number: u8) -> u64 {
        self.by_number.get(usize::from(number)).copied().unwrap_or(0)
    }

    /// Changes the register with this number.
    pub fn set(&mut self, number: u8, value: u64) {
        if let Some(register) = self.by_number.get_mut(usize::from(number)) {
            *register = value;
        }
    }
}

/// Exceptions that the hypervisor raises in guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
}

/// Registers that an instruction of the guest's wants changed, and that not every vendor keeps in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemRegister {
    /// EFER as the guest sees it.
    Efer,
    /// The page attribute table.
    Pat,
    /// CR0.
    Cr0,
    /// CR4.
    Cr4,
}

/// One vCPU on the CPU that runs it.
pub trait Backend {
    /// Lets the guest run until something ends its turn. The general-purpose registers are the guest's before and after.
    /// A physical interrupt ends it, and is pending afterwards.
    fn run(&mut self, registers: &mut Registers) -> Exit;

    /// Takes the vCPU's x87 and vector registers up, before the first of its turns in a row: entry and exit leave them.
    fn take_up(&mut self);

    /// Puts them down, after the last.
    fn put_down(&mut self);

    /// The instruction pointer.
    fn instruction_pointer(&self) -> u64;

    /// Goes on behind the instruction that ended the turn; `None` when its length is not known.
    fn skip_instruction(&mut self) -> Option<()>;

    /// Raises an exception at the instruction that ended the turn.
    fn raise(&mut self, exception: Exception);

    /// A system register, as the guest reads it.
    fn read(&self, register: SystemRegister) -> u64;

    /// Changes a system register to a value that was judged.
    fn write(&mut self, register: SystemRegister, value: u64);

    /// Whether reads of CR0 end a turn.
    fn intercept_cr0_reads(&mut self, intercept: bool);

    /// Makes this CPU forget the guest's translations before its next turn: nested mappings changed.
    fn forget_translations(&mut self);

    /// Whether the guest's kernel ran last, and not a program of it.
    fn is_privileged(&self) -> bool;

    /// What the CPU itself answers to CPUID.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> Answer;
}

/// Where a vCPU begins: 64-bit code with interrupts off. All addresses are the guest's.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub instruction: u64,
    /// End of its stack.
    pub stack: u64,
    /// Its page tables.
    pub tables: u64,
    /// Its global descriptor table: address and last byte. Selectors 8 and 16 are the kernel's code and data.
    pub descriptors: (u64, u32),
    /// Its interrupt descriptor table: address and last byte.
    pub interrupts: (u64, u32),
    /// Its task state segment: address and last byte.
    pub task: (u64, u32),
    /// Base of GS.
    pub own: u64,
}
