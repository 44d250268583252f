//! Why a guest's turn ended (AMD64 manual, volume 2, appendix C).

use super::{
    caching::CacheInstruction,
    instruction::{Instruction, Kind},
};

/// An access that the nested tables do not allow (15.25.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestedFault {
    /// Guest-physical address.
    pub address: u64,
    /// Whether it was to write.
    pub write: bool,
    /// Whether it was to fetch an instruction.
    pub fetch: bool,
    /// Whether the guest's own page tables were read there.
    pub table_walk: bool,
}

/// What ended a guest's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// VMMCALL.
    Hypercall,
    /// CPUID.
    Cpuid,
    /// RDMSR or WRMSR.
    Msr {
        /// Whether WRMSR.
        write: bool,
    },
    /// A port.
    Io {
        /// Which.
        port: u16,
    },
    /// HLT.
    Halt,
    /// WBINVD, WBNOINVD or INVD.
    WriteBackInvalidate(CacheInstruction),
    /// An access beyond what the guest has.
    NestedFault(NestedFault),
    /// VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT or INVLPGA.
    Svm,
    /// MONITOR, MWAIT or XSETBV, which CPUID does not show; RSM.
    Hidden,
    /// RDPMC or a debug register: what this hypervisor lends to no guest.
    NotLent,
    /// A triple fault, or what else resets a machine.
    Shutdown,
    /// A physical interrupt, which is the hypervisor's and still pending.
    Interrupt,
    /// A non-maskable interrupt, still pending.
    NonMaskable,
    /// CR0 is read, into the general-purpose register with this number; `None` by another instruction than MOV. Only
    /// while hardware has another value than the guest.
    Cr0Read {
        /// The register.
        to: Option<u8>,
    },
    /// CR0 is written, from the general-purpose register with this number; `None` by another instruction than MOV.
    Cr0Write {
        /// The register.
        from: Option<u8>,
    },
    /// CR4 is written, likewise.
    Cr4Write {
        /// The register.
        from: Option<u8>,
    },
    /// The VMCB is not a valid one.
    Invalid,
    /// Nothing of the above.
    Unknown(u64),
}

impl Exit {
    /// What an exit code and its two words say. `instruction` is the one that the guest stopped at, where that is known.
    #[must_use]
    pub fn decode(code: u64, info: [u64; 2], instruction: Option<Instruction>) -> Self {
        let [first, second] = info;
        match code {
            0x00 => Self::Cr0Read { to: control_target(instruction, 0) },
            0x10 => Self::Cr0Write { from: control_source(instruction, 0) },
            0x14 => Self::Cr4Write { from: control_source(instruction, 4) },
            0x20..=0x3f | 0x6f => Self::NotLent,
            0x60 => Self::Interrupt,
            0x61 => Self::NonMaskable,
            0x72 => Self::Cpuid,
            0x73 | 0x8a..=0x8d => Self::Hidden,
            0x76 => Self::WriteBackInvalidate(cache_instruction(instruction, CacheInstruction::Invd)),
            0x78 => Self::Halt,
            0x7b => Self::Io { port: (first >> 16) as u16 },
            0x7c => Self::Msr { write: first & 1 != 0 },
            0x7f => Self::Shutdown,
            0x7a | 0x80 | 0x82..=0x86 => Self::Svm,
            0x81 => Self::Hypercall,
            0x89 => Self::WriteBackInvalidate(cache_instruction(instruction, CacheInstruction::Wbinvd)),
            0x400 => Self::NestedFault(NestedFault::decode(first, second)),
            u64::MAX | 0xffff_ffff => Self::Invalid,
            code => Self::Unknown(code),
        }
    }
}

impl Exit {
    /// Whether only a kernel can have caused it: the CPU refuses a program's attempt first (15.7.1, table 15-7), but
    /// QEMU 10.0 reports WBINVD of a program as an exit.
    #[must_use]
    pub const fn needs_privilege(self) -> bool {
        matches!(
            self,
            Self::WriteBackInvalidate(_)
                | Self::Msr { .. }
                | Self::Halt
                | Self::Cr0Read { to: Some(_) }
                | Self::Cr0Write { .. }
                | Self::Cr4Write { .. }
                | Self::NotLent
        )
    }
}

impl NestedFault {
    const fn decode(error: u64, address: u64) -> Self {
        Self { address, write: error & 2 != 0, fetch: error & 0x10 != 0, table_walk: error >> 33 & 1 != 0 }
    }
}

/// QEMU 7.2 reports INVD with WBINVD's code, and both codes cover WBNOINVD: the bytes decide where they are known.
fn cache_instruction(instruction: Option<Instruction>, otherwise: CacheInstruction) -> CacheInstruction {
    match instruction.map(|instruction| instruction.kind) {
        Some(Kind::Cache(kind)) => kind,
        _ => otherwise,
    }
}

fn control_source(instruction: Option<Instruction>, written: u8) -> Option<u8> {
    match instruction?.kind {
        Kind::MoveToControl { control, from } if control == written => Some(from),
        _ => None,
    }
}

fn control_target(instruction: Option<Instruction>, read: u8) -> Option<u8> {
    match instruction?.kind {
        Kind::MoveFromControl { control, to } if control == read => Some(to),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::instruction::decode;

    fn exit(code: u64, bytes: &[u8]) -> Exit {
        Exit::decode(code, [0, 0], decode(bytes))
    }

    #[test]
    fn x09_bytes_decide_which_cache_instruction_it_was() {
        use CacheInstruction::{Invd, Wbinvd, Wbnoinvd};
        assert_eq!(exit(0x89, &[0x0f, 0x08]), Exit::WriteBackInvalidate(Invd));
        assert_eq!(exit(0x89, &[0x0f, 0x09]), Exit::WriteBackInvalidate(Wbinvd));
        assert_eq!(exit(0x89, &[0xf3, 0x0f, 0x09]), Exit::WriteBackInvalidate(Wbnoinvd));
        assert_eq!(exit(0x76, &[0x0f, 0x08]), Exit::WriteBackInvalidate(Invd));
        assert_eq!(exit(0x76, &[]), Exit::WriteBackInvalidate(Invd));
        assert_eq!(exit(0x89, &[0x90]), Exit::WriteBackInvalidate(Wbinvd));
    }

    #[test]
    fn codes_are_those_of_the_manual() {
        let code = |code| Exit::decode(code, [0, 0], None);
        assert_eq!([code(0x81), code(0x72), code(0x78)], [Exit::Hypercall, Exit::Cpuid, Exit::Halt]);
        assert_eq!(
            [code(0x7f), code(0x60), code(0x61)],
            [Exit::Shutdown, Exit::Interrupt, Exit::NonMaskable]
        );
        for svm in [0x80, 0x82, 0x83, 0x84, 0x85, 0x86, 0x7a] {
            assert_eq!(code(svm), Exit::Svm, "{svm:#x}");
        }
        for not_lent in [0x20, 0x2f, 0x30, 0x3f, 0x6f] {
            assert_eq!(code(not_lent), Exit::NotLent, "{not_lent:#x}");
        }
        for hidden in [0x73, 0x8a, 0x8b, 0x8d] {
            assert_eq!(code(hidden), Exit::Hidden, "{hidden:#x}");
        }
        assert_eq!([code(u64::MAX), code(0xffff_ffff)], [Exit::Invalid; 2]);
        assert_eq!(code(0x1234), Exit::Unknown(0x1234));
    }

    #[test]
    fn words_say_port_direction_and_address() {
        let port = Exit::decode(0x7b, [0x0cf8_0041, 0x10_0000], None);
        assert_eq!(port, Exit::Io { port: 0xcf8 });
        assert_eq!(Exit::decode(0x7c, [1, 0], None), Exit::Msr { write: true });
        let fault = NestedFault { address: 0xfed9_0000, write: true, fetch: false, table_walk: false };
        assert_eq!(Exit::decode(0x400, [0x1_0000_0006, 0xfed9_0000], None), Exit::NestedFault(fault));
        let walk = NestedFault { address: 8, write: false, fetch: true, table_walk: true };
        assert_eq!(Exit::decode(0x400, [0x2_0000_0014, 8], None), Exit::NestedFault(walk));
    }

    #[test]
    fn a_control_registers_new_value_is_in_a_register() {
        assert_eq!(exit(0x14, &[0x41, 0x0f, 0x22, 0xe2]), Exit::Cr4Write { from: Some(10) });
        assert_eq!(exit(0x14, &[0x0f, 0x22, 0xc2]), Exit::Cr4Write { from: None });
        assert_eq!(exit(0x10, &[0x0f, 0x22, 0xc3]), Exit::Cr0Write { from: Some(3) });
        assert_eq!(exit(0x10, &[0x0f, 0x22, 0xdb]), Exit::Cr0Write { from: None });
        assert_eq!(exit(0x10, &[0x0f, 0x06]), Exit::Cr0Write { from: None });
        assert_eq!(exit(0x00, &[0x41, 0x0f, 0x20, 0xc2]), Exit::Cr0Read { to: Some(10) });
        assert_eq!(exit(0x00, &[0x0f, 0x01, 0xe0]), Exit::Cr0Read { to: None }, "SMSW");
    }
}
