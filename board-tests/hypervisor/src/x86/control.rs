//! Which values of control registers 64-bit code of a guest may write (AMD64 manual, volume 2, 3.1).

use super::{backend::SystemRegister, caching::attributes::is_valid_cr0};

/// `CR0`: protection and paging, which long mode cannot do without.
const CR0_PE_PG: u64 = 1 | 1 << 31;
const CR0_EXTENSION: u64 = 1 << 4;
/// Bits that have a meaning; others of the low half are ignored.
const CR0_DEFINED: u64 = 0xe005_003f;
/// `CR4.PAE`.
const CR4_PAE: u64 = 1 << 5;
/// VME, PVI, TSD, DE, PSE, PAE, MCE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, SMEP, SMAP: what CPUID shows. Not
/// OSXSAVE above all: XCR0 is not switched with the guest, and QEMU 7.2 does not intercept XSETBV.
const CR4_ALLOWED: u64 = 0x7ff | 1 << 11 | 1 << 16 | 1 << 20 | 1 << 21;

/// What the register holds after `value` was written to it; `None` for a value that is refused.
#[must_use]
pub const fn judge(register: SystemRegister, value: u64) -> Option<u64> {
    match register {
        SystemRegister::Cr0 => cr0(value),
        SystemRegister::Cr4 if value & CR4_PAE != 0 && value & !CR4_ALLOWED == 0 => Some(value),
        _ => None,
    }
}

const fn cr0(value: u64) -> Option<u64> {
    let valid = value & CR0_PE_PG == CR0_PE_PG && value >> 32 == 0 && is_valid_cr0(value);
    if valid { Some(value & CR0_DEFINED | CR0_EXTENSION) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x05_a_guest_stays_in_long_mode_and_has_no_state_that_is_not_switched() {
        let cr0 = |value| judge(SystemRegister::Cr0, value);
        assert_eq!(cr0(0x8001_0033), Some(0x8001_0033));
        assert_eq!(cr0(0xc001_0003), Some(0xc001_0013), "caches off; ET is always set");
        for refused in [0x8001_0032, 0x0001_0033, 0xa001_0033, 0x1_8001_0033, 0] {
            assert_eq!(cr0(refused), None, "{refused:#x}");
        }
        let cr4 = |value| judge(SystemRegister::Cr4, value);
        assert_eq!(cr4(0x6a0), Some(0x6a0));
        // PAE off, LA57, VMXE, PCIDE, OSXSAVE, PKE, CET.
        for refused in [
            0x680,
            1 << 12 | 0x20,
            1 << 13 | 0x20,
            1 << 17 | 0x20,
            1 << 18 | 0x20,
            1 << 22 | 0x20,
            1 << 23 | 0x20,
        ] {
            assert_eq!(cr4(refused), None, "{refused:#x}");
        }
        assert_eq!(judge(SystemRegister::Efer, 0x500), None, "by MSR only");
    }
}
