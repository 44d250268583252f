//! The virtual machine control block (AMD64 Architecture Programmer's Manual, volume 2, appendix B).

use core::mem::offset_of;

use bitflags::bitflags;

bitflags! {
    /// What ends a guest's turn: offset 0xc, instructions and interrupts.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts1: u32 {
        /// Physical interrupts.
        const INTR = 1;
        /// Non-maskable interrupts.
        const NMI = 1 << 1;
        /// INIT.
        const INIT = 1 << 3;
        /// RDPMC.
        const RDPMC = 1 << 15;
        /// CPUID.
        const CPUID = 1 << 18;
        /// RSM.
        const RSM = 1 << 19;
        /// INVD.
        const INVD = 1 << 22;
        /// HLT.
        const HLT = 1 << 24;
        /// INVLPGA.
        const INVLPGA = 1 << 26;
        /// Ports with a bit in the map of ports.
        const IO = 1 << 27;
        /// MSRs with a bit in the map of MSRs.
        const MSR = 1 << 28;
        /// Task switches.
        const TASK_SWITCH = 1 << 29;
        /// FERR freezes.
        const FERR_FREEZE = 1 << 30;
        /// Shutdown, as a triple fault ends in.
        const SHUTDOWN = 1 << 31;
    }

    /// What ends a guest's turn: offset 0x10, instructions.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercepts2: u32 {
        /// VMRUN: a VMCB without it is not valid.
        const VMRUN = 1;
        /// VMMCALL: hypercalls.
        const VMMCALL = 1 << 1;
        /// VMLOAD.
        const VMLOAD = 1 << 2;
        /// VMSAVE.
        const VMSAVE = 1 << 3;
        /// STGI.
        const STGI = 1 << 4;
        /// CLGI.
        const CLGI = 1 << 5;
        /// SKINIT.
        const SKINIT = 1 << 6;
        /// WBINVD and WBNOINVD.
        const WBINVD = 1 << 9;
        /// MONITOR.
        const MONITOR = 1 << 10;
        /// MWAIT, whether armed or not.
        const MWAIT = 1 << 11;
        /// XSETBV: XCR0 is not switched with the guest.
        const XSETBV = 1 << 13;
    }

    /// What memory of the VMCB the CPU may still know: offset 0xc0 (15.15.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Clean: u32 {
        /// Nothing has changed but what is always read.
        const ALL = 0x3ff;
    }
}

/// CR0 or CR4 is written: bits of the intercepts of control registers (offset 0).
pub const CR0_CR4_WRITE: u32 = 1 << 16 | 1 << 20;
/// CR0 is read, likewise.
pub const CR0_READ: u32 = 1;
/// All debug registers, read and written (offset 4): DR0 to DR3 are not switched with the guest.
pub const ALL_DEBUG_REGISTERS: u32 = u32::MAX;
/// `V_INTR_MASKING` (offset 0x60): the hypervisor's IF decides about physical interrupts, not the guest's.
pub const V_INTR_MASKING: u64 = 1 << 24;
/// `NP_ENABLE` (offset 0x90): nested paging.
pub const NESTED_PAGING: u64 = 1;
/// `TLB_CONTROL` (offset 0x5c): forget every translation of every guest.
pub const FLUSH_ALL: u8 = 1;
/// `EFER.SVME`: must be set in a guest's EFER as well (15.5.1).
pub const EFER_SVME: u64 = 1 << 12;

/// The control area: the first 0x400 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Control {
    /// Control registers whose reading (low half) or writing (high half) ends the turn.
    pub cr_intercepts: u32,
    /// The same of debug registers.
    pub dr_intercepts: u32,
    /// Exceptions, by vector.
    pub exception_intercepts: u32,
    /// See [`Intercepts1`].
    pub intercepts1: Intercepts1,
    /// See [`Intercepts2`].
    pub intercepts2: Intercepts2,
    reserved_014: [u8; 0x2c],
    /// Physical address of the map of ports: 12 KiB.
    pub io_permissions: u64,
    /// Physical address of the map of MSRs: 8 KiB.
    pub msr_permissions: u64,
    /// Added to the time-stamp counter.
    pub tsc_offset: u64,
    /// The guest's number in the TLB; not 0.
    pub asid: u32,
    /// What the TLB is to forget on the next entry.
    pub tlb_control: u8,
    reserved_05d: [u8; 3],
    /// Virtual interrupts.
    pub interrupt_control: u64,
    /// Whether the guest is in an interrupt shadow.
    pub interrupt_shadow: u64,
    /// Why the turn ended.
    pub exit_code: u64,
    /// More about it.
    pub exit_info1: u64,
    /// More about it.
    pub exit_info2: u64,
    /// The event whose delivery the exit interrupted.
    pub exit_interrupt_info: u64,
    /// See [`NESTED_PAGING`].
    pub nested_control: u64,
    reserved_098: [u8; 0x10],
    /// The event to deliver on entry.
    pub event_injection: u64,
    /// Physical address of the nested tables.
    pub nested_cr3: u64,
    reserved_0b8: u64,
    /// What is as the CPU knows it.
    pub clean: Clean,
    reserved_0c4: u32,
    /// Address of the next instruction, where the CPU saves it (CPUID `Fn8000_000A_EDX[NRIPS]`); else 0.
    pub next_rip: u64,
    reserved_0d0: [u8; 0x330],
}

/// A segment register, with what it stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Index into the descriptor table.
    pub selector: u16,
    /// Bits 8 to 15 and 20 to 23 of the descriptor's upper word, joined.
    pub attributes: u16,
    /// Last byte.
    pub limit: u32,
    /// First byte.
    pub base: u64,
}

/// The state-save area: 0x400 to 0x698; the rest of the page is not used.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Save {
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [Segment; 6],
    /// The global descriptor table.
    pub gdtr: Segment,
    /// The local descriptor table.
    pub ldtr: Segment,
    /// The interrupt descriptor table.
    pub idtr: Segment,
    /// The task register.
    pub tr: Segment,
    reserved_4a0: [u8; 0x2b],
    /// Current privilege level.
    pub cpl: u8,
    reserved_4cc: u32,
    /// Extended features.
    pub efer: u64,
    reserved_4d8: [u8; 0x70],
    /// CR4.
    pub cr4: u64,
    /// CR3: the guest's own tables, in its own addresses.
    pub cr3: u64,
    /// CR0.
    pub cr0: u64,
    /// DR7.
    pub dr7: u64,
    /// DR6.
    pub dr6: u64,
    /// Flags.
    pub rflags: u64,
    /// Instruction pointer.
    pub rip: u64,
    reserved_580: [u8; 0x58],
    /// Stack pointer.
    pub rsp: u64,
    reserved_5e0: [u8; 0x18],
    /// RAX: the one general-purpose register that entry and exit switch.
    pub rax: u64,
    /// STAR, LSTAR, CSTAR, SFMASK, KernelGSBase, SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP.
    pub system_calls: [u64; 8],
    /// Address of the last page fault.
    pub cr2: u64,
    reserved_648: [u8; 0x20],
    /// The guest's page attribute table.
    pub pat: u64,
    /// Debug control, and the last branches and interrupts.
    pub debug: [u64; 5],
    reserved_698: [u8; 0x968],
}

/// The whole block: one page.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4096))]
pub struct Vmcb {
    /// How the guest runs, and why it stopped.
    pub control: Control,
    /// Its registers.
    pub save: Save,
}

macro_rules! lies_at {
    ($($of:ident { $($field:ident: $offset:literal),+ })+) => {
        $($(const _: () = assert!(offset_of!(Vmcb, $of.$field) == $offset, "appendix B");)+)+
    };
}

lies_at! {
    control {
        cr_intercepts: 0, exception_intercepts: 8, intercepts1: 0xc, intercepts2: 0x10, io_permissions: 0x40,
        msr_permissions: 0x48, tsc_offset: 0x50, asid: 0x58, tlb_control: 0x5c, interrupt_control: 0x60,
        interrupt_shadow: 0x68, exit_code: 0x70, exit_info1: 0x78, exit_info2: 0x80, exit_interrupt_info: 0x88,
        nested_control: 0x90, event_injection: 0xa8, nested_cr3: 0xb0, clean: 0xc0, next_rip: 0xc8
    }
    save {
        segments: 0x400, gdtr: 0x460, ldtr: 0x470, idtr: 0x480, tr: 0x490, cpl: 0x4cb, efer: 0x4d0, cr4: 0x548,
        cr3: 0x550, cr0: 0x558, dr7: 0x560, dr6: 0x568, rflags: 0x570, rip: 0x578, rsp: 0x5d8, rax: 0x5f8,
        system_calls: 0x600, cr2: 0x640, pat: 0x668, debug: 0x670
    }
}

const _: () = assert!(size_of::<Vmcb>() == 4096, "one page");

impl Vmcb {
    /// All zeros: what a static begins as.
    #[must_use]
    pub const fn zeroed() -> Self {
        const NONE: Segment = Segment { selector: 0, attributes: 0, limit: 0, base: 0 };
        Self {
            control: Control {
                cr_intercepts: 0,
                dr_intercepts: 0,
                exception_intercepts: 0,
                intercepts1: Intercepts1::empty(),
                intercepts2: Intercepts2::empty(),
                reserved_014: [0; 0x2c],
                io_permissions: 0,
                msr_permissions: 0,
                tsc_offset: 0,
                asid: 0,
                tlb_control: 0,
                reserved_05d: [0; 3],
                interrupt_control: 0,
                interrupt_shadow: 0,
                exit_code: 0,
                exit_info1: 0,
                exit_info2: 0,
                exit_interrupt_info: 0,
                nested_control: 0,
                reserved_098: [0; 0x10],
                event_injection: 0,
                nested_cr3: 0,
                reserved_0b8: 0,
                clean: Clean::empty(),
                reserved_0c4: 0,
                next_rip: 0,
                reserved_0d0: [0; 0x330],
            },
            save: Save {
                segments: [NONE; 6],
                gdtr: NONE,
                ldtr: NONE,
                idtr: NONE,
                tr: NONE,
                reserved_4a0: [0; 0x2b],
                cpl: 0,
                reserved_4cc: 0,
                efer: 0,
                reserved_4d8: [0; 0x70],
                cr4: 0,
                cr3: 0,
                cr0: 0,
                dr7: 0,
                dr6: 0,
                rflags: 0,
                rip: 0,
                reserved_580: [0; 0x58],
                rsp: 0,
                reserved_5e0: [0; 0x18],
                rax: 0,
                system_calls: [0; 8],
                cr2: 0,
                reserved_648: [0; 0x20],
                pat: 0,
                debug: [0; 5],
                reserved_698: [0; 0x968],
            },
        }
    }
}

/// The word that delivers exception `vector` on entry (`EVENTINJ`, 15.20), with an error code if it has one.
#[must_use]
pub const fn exception_event(vector: u8, error_code: Option<u32>) -> u64 {
    const VALID: u64 = 1 << 31;
    const EXCEPTION: u64 = 3 << 8;
    const HAS_ERROR_CODE: u64 = 1 << 11;
    let event = VALID | EXCEPTION | vector as u64;
    match error_code {
        Some(code) => event | HAS_ERROR_CODE | (code as u64) << 32,
        None => event,
    }
}

/// What of an event whose delivery an exit interrupted (`EXITINTINFO`, 15.7.2) is to be delivered again: interrupts and
/// exceptions. The guest executes an INT again by itself.
#[must_use]
pub const fn interrupted_event(info: u64) -> u64 {
    const VALID: u64 = 1 << 31;
    let software = matches!((info >> 8 & 7, info & 0xff), (4, _) | (3, 3 | 4));
    if info & VALID != 0 && !software { info } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_those_of_the_manual() {
        assert_eq!(exception_event(6, None), 0x8000_0306);
        assert_eq!(exception_event(13, Some(0)), 0x8000_0b0d);
        assert_eq!(exception_event(14, Some(7)), 0x7_8000_0b0e);
    }

    #[test]
    fn an_event_that_was_interrupted_comes_again_unless_the_guest_repeats_it() {
        let fault = exception_event(14, Some(2));
        assert_eq!(interrupted_event(fault), fault);
        assert_eq!(interrupted_event(0x8000_0030), 0x8000_0030, "an interrupt");
        for none in [0, fault & !(1 << 31), 0x8000_0480, 0x8000_0303, 0x8000_0304] {
            assert_eq!(interrupted_event(none), 0, "{none:#x}");
        }
    }

    #[test]
    fn intercepts_stand_where_the_manual_has_them() {
        let first = Intercepts1::INTR | Intercepts1::MSR | Intercepts1::SHUTDOWN;
        assert_eq!(first.bits(), 0x9000_0001);
        let every_svm_instruction = Intercepts2::from_bits_truncate(0x7f);
        assert_eq!(every_svm_instruction.bits(), 0x7f);
        assert_eq!(Intercepts2::WBINVD.bits(), 0x200);
    }
}
