//! AMD's virtualisation: guests by VMRUN (AMD64 manual, volume 2, chapter 15).

use core::{
    arch::{asm, global_asm, x86_64::__cpuid_count},
    cell::UnsafeCell,
    marker::PhantomData,
};

use x86_64::registers::{
    control::{Cr4, Cr4Flags},
    model_specific::Msr,
};

use super::{
    backend::{Backend, Exception, Registers, Start, SystemRegister},
    caching::Pat,
    cpuid::Answer,
    exit::Exit,
    instruction::{self, Instruction, MAX_BYTES},
    memory::GuestMemory,
    msr,
    vmcb::{
        ALL_DEBUG_REGISTERS, CR0_CR4_WRITE, CR0_READ, Clean, EFER_SVME, FLUSH_ALL, Intercepts1, Intercepts2,
        NESTED_PAGING, Segment, V_INTR_MASKING, Vmcb, exception_event, interrupted_event,
    },
};

global_asm!(include_str!("run.s"));

const EFER: u32 = 0xc000_0080;
const VM_CR: u32 = 0xc001_0114;
const VM_HSAVE_PA: u32 = 0xc001_0117;
/// `VM_CR.SVMDIS`: firmware turned SVM off.
const SVM_DISABLED: u64 = 1 << 4;
const EFER_NO_EXECUTE: u64 = 1 << 11;
/// `EFER` of a guest in long mode: LME, LMA.
const LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// PG, WP, NE, ET, MP, PE.
const GUEST_CR0: u64 = 0x8001_0033;
/// PAE, OSFXSR, OSXMMEXCPT.
const GUEST_CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
/// DR6 and DR7 after reset.
const RESET_DEBUG: [u64; 2] = [0xffff_0ff0, 0x400];
/// Bit 1 of the flags is always set.
const FLAGS: u64 = 2;
const CODE: Segment = Segment { selector: 8, attributes: 0xa9b, limit: u32::MAX, base: 0 };
const DATA: Segment = Segment { selector: 16, attributes: 0xc93, limit: u32::MAX, base: 0 };
const TASK_ATTRIBUTES: u16 = 0x8b;

unsafe extern "C" {
    fn x86_svm_run(vmcb: *mut Vmcb, own: *mut Vmcb, registers: *mut Registers);
}

/// What one CPU keeps of its own while a guest runs on it: made for a `static`.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct CpuArea {
    /// What VMRUN saves: no software reads it (15.30.4).
    saved: UnsafeCell<[u8; 4096]>,
    /// What VMSAVE saves.
    own: UnsafeCell<Vmcb>,
}

// SAFETY: an area is used by the CPU that enabled SVM with it, and by no other (promised to `SvmCpu::enable`).
unsafe impl Sync for CpuArea {}

impl CpuArea {
    /// All zeros.
    #[must_use]
    pub const fn new() -> Self {
        Self { saved: UnsafeCell::new([0; 4096]), own: UnsafeCell::new(Vmcb::zeroed()) }
    }
}

impl Default for CpuArea {
    fn default() -> Self {
        Self::new()
    }
}

/// Why this CPU runs no guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSvm {
    /// It has no SVM, or firmware turned it off.
    NoSvm,
    /// It has no nested paging.
    NoNestedPaging,
}

/// This CPU with SVM turned on. Stays on its CPU: neither `Send` nor `Sync`.
#[derive(Debug)]
pub struct SvmCpu {
    area: &'static CpuArea,
    here: PhantomData<*mut ()>,
}

impl SvmCpu {
    /// Turns SVM on.
    ///
    /// # Errors
    /// [`NoSvm`].
    ///
    /// # Safety
    /// At privilege level 0, where addresses are physical ones, with an area that no other CPU has; on one CPU always
    /// with the same, and only one value of it is used at a time.
    pub unsafe fn enable(area: &'static CpuArea) -> Result<Self, NoSvm> {
        if __cpuid_count(0x8000_0001, 0).ecx & 1 << 2 == 0 {
            return Err(NoSvm::NoSvm);
        }
        // SAFETY: a CPU with SVM has these MSRs; pages that are not executed are used by the nested tables.
        unsafe {
            if Msr::new(VM_CR).read() & SVM_DISABLED != 0 {
                return Err(NoSvm::NoSvm);
            }
            if __cpuid_count(0x8000_000a, 0).edx & 1 == 0 {
                return Err(NoSvm::NoNestedPaging);
            }
            let mut efer = Msr::new(EFER);
            let value = efer.read() | EFER_SVME | EFER_NO_EXECUTE;
            efer.write(value);
            // FXSAVE saves vector registers only with it.
            Cr4::update(|flags| *flags |= Cr4Flags::OSFXSR);
            Msr::new(VM_HSAVE_PA).write(area.saved.get().addr() as u64);
        }
        Ok(Self { area, here: PhantomData })
    }
}

/// Which ports and MSRs guests reach without an exit: no port, and MSRs that entry and exit switch. Made for a
/// `static`; one for all guests.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Permissions {
    ports: [u8; 3 * 4096],
    msrs: [u8; 2 * 4096],
}

impl Permissions {
    /// All exits.
    #[must_use]
    pub const fn new() -> Self {
        let mut msrs = [0xff; 2 * 4096];
        let mut range = 0;
        while range < msr::SWITCHED.len() {
            #[expect(clippy::indexing_slicing, reason = "at compile time")]
            let (mut number, last) = (*msr::SWITCHED[range].start(), *msr::SWITCHED[range].end());
            while number <= last {
                if let Some((byte, bits)) = msr::permission_bits(number) {
                    #[expect(clippy::indexing_slicing, reason = "at compile time")]
                    {
                        msrs[byte] &= !bits;
                    }
                }
                number += 1;
            }
            range += 1;
        }
        Self { ports: [0xff; 3 * 4096], msrs }
    }
}

impl Default for Permissions {
    fn default() -> Self {
        Self::new()
    }
}

/// x87 and vector registers as FXSAVE has them (11.4.4).
#[derive(Debug)]
#[repr(C, align(16))]
struct Vectors([u64; 64]);

impl Vectors {
    /// As after reset: all exceptions masked.
    const fn new() -> Self {
        const CONTROL: u64 = 0x37f;
        const VECTOR_CONTROL: u64 = 0x1f80;
        let mut words = [0; 64];
        words[0] = CONTROL;
        words[3] = VECTOR_CONTROL;
        Self(words)
    }
}

/// One vCPU, on the CPU that runs it.
#[derive(Debug)]
pub struct Svm<'a> {
    vectors: Vectors,
    cpu: &'a SvmCpu,
    vmcb: &'a mut Vmcb,
    memory: GuestMemory,
}

impl<'a> Svm<'a> {
    /// A vCPU that begins at `start`, whose guest-physical addresses `nested_root` translates.
    ///
    /// # Safety
    /// The nested tables must lead to nothing but what the guest may reach, as long as it runs; `vmcb` and
    /// `permissions` must lie where physical addresses are the same; `number`, from 1 on, is no other vCPU's.
    pub unsafe fn new(
        cpu: &'a SvmCpu,
        vmcb: &'a mut Vmcb,
        permissions: &'static Permissions,
        (memory, nested_root): (GuestMemory, u64),
        number: u32,
        start: Start,
    ) -> Self {
        *vmcb = Vmcb::zeroed();
        let control = &mut vmcb.control;
        control.cr_intercepts = CR0_CR4_WRITE;
        control.dr_intercepts = ALL_DEBUG_REGISTERS;
        control.intercepts1 = Intercepts1::all();
        control.intercepts2 = Intercepts2::all();
        control.io_permissions = (&raw const permissions.ports).addr() as u64;
        control.msr_permissions = (&raw const permissions.msrs).addr() as u64;
        control.asid = number;
        control.tlb_control = FLUSH_ALL;
        control.interrupt_control = V_INTR_MASKING;
        control.nested_control = NESTED_PAGING;
        control.nested_cr3 = nested_root;
        begin(vmcb, start);
        Self { vectors: Vectors::new(), cpu, vmcb, memory }
    }

    /// The instruction that the guest stopped at.
    fn instruction(&self) -> Option<Instruction> {
        let mut bytes = [0; MAX_BYTES];
        let got = self.memory.fetch(self.vmcb.save.cr3, self.vmcb.save.rip, &mut bytes);
        instruction::decode(bytes.get(..got)?)
    }
}

/// The registers of a vCPU that has not run yet.
fn begin(vmcb: &mut Vmcb, start: Start) {
    let table = |(base, limit)| Segment { base, limit, ..Segment::default() };
    let save = &mut vmcb.save;
    let own = Segment { base: start.own, ..DATA };
    save.segments = [DATA, CODE, DATA, DATA, DATA, own];
    save.gdtr = table(start.descriptors);
    save.idtr = table(start.interrupts);
    save.tr = Segment { attributes: TASK_ATTRIBUTES, ..table(start.task) };
    save.efer = LONG_MODE | EFER_SVME;
    (save.cr0, save.cr3, save.cr4) = (GUEST_CR0, start.tables, GUEST_CR4);
    [save.dr6, save.dr7] = RESET_DEBUG;
    (save.rflags, save.rip, save.rsp) = (FLAGS, start.instruction, start.stack);
    save.pat = Pat::RESET.value();
}

impl Backend for Svm<'_> {
    fn run(&mut self, registers: &mut Registers) -> Exit {
        self.vmcb.control.clean = Clean::empty();
        self.vmcb.control.next_rip = 0;
        self.vmcb.save.rax = registers.get(Registers::RAX);
        // SAFETY: SVM is on, on this CPU, with this area; the VMCB's guest reaches its own memory and nothing else
        // (promised to `new`), and the code keeps what the calling convention keeps.
        unsafe { x86_svm_run(self.vmcb, self.cpu.area.own.get(), registers) }
        registers.set(Registers::RAX, self.vmcb.save.rax);
        self.vmcb.control.tlb_control = 0;
        self.vmcb.control.event_injection = interrupted_event(self.vmcb.control.exit_interrupt_info);
        let control = &self.vmcb.control;
        let told_by_bytes = matches!(control.exit_code, 0x00 | 0x10 | 0x14 | 0x76 | 0x89);
        let instruction = if told_by_bytes { self.instruction() } else { None };
        Exit::decode(control.exit_code, [control.exit_info1, control.exit_info2], instruction)
    }

    fn take_up(&mut self) {
        // SAFETY: the hypervisor is built without these registers; the area has their form.
        unsafe {
            asm!("fxrstor64 [{area}]", area = in(reg) &raw const self.vectors.0, options(nostack, readonly))
        }
    }

    fn put_down(&mut self) {
        // SAFETY: as above; the area is as long as it must be, and aligned.
        unsafe { asm!("fxsave64 [{area}]", area = in(reg) &raw mut self.vectors.0, options(nostack)) }
    }

    fn instruction_pointer(&self) -> u64 {
        self.vmcb.save.rip
    }

    fn skip_instruction(&mut self) -> Option<()> {
        let next = match self.vmcb.control.next_rip {
            0 => self.vmcb.save.rip.wrapping_add(self.instruction()?.length),
            next => next,
        };
        self.vmcb.save.rip = next;
        self.vmcb.control.interrupt_shadow = 0;
        Some(())
    }

    fn raise(&mut self, exception: Exception) {
        self.vmcb.control.event_injection = match exception {
            Exception::InvalidOpcode => exception_event(6, None),
            Exception::GeneralProtection => exception_event(13, Some(0)),
        };
    }

    fn read(&self, register: SystemRegister) -> u64 {
        match register {
            SystemRegister::Efer => self.vmcb.save.efer & !EFER_SVME,
            SystemRegister::Pat => self.vmcb.save.pat,
            SystemRegister::Cr0 => self.vmcb.save.cr0,
            SystemRegister::Cr4 => self.vmcb.save.cr4,
        }
    }

    fn write(&mut self, register: SystemRegister, value: u64) {
        match register {
            SystemRegister::Efer => self.vmcb.save.efer = value | EFER_SVME,
            SystemRegister::Pat => self.vmcb.save.pat = value,
            SystemRegister::Cr0 => self.vmcb.save.cr0 = value,
            SystemRegister::Cr4 => self.vmcb.save.cr4 = value,
        }
        // What the guest's own tables mean may change with it.
        self.forget_translations();
    }

    fn intercept_cr0_reads(&mut self, intercept: bool) {
        let always = CR0_CR4_WRITE;
        self.vmcb.control.cr_intercepts = if intercept { always | CR0_READ } else { always };
    }

    fn forget_translations(&mut self) {
        self.vmcb.control.tlb_control = FLUSH_ALL;
    }

    fn is_privileged(&self) -> bool {
        self.vmcb.save.cpl == 0
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> Answer {
        let own = __cpuid_count(leaf, subleaf);
        [own.eax, own.ebx, own.ecx, own.edx]
    }
}
