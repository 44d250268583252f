//! Model-specific registers that a guest may read and write by the hypervisor's hand; all others are refused
//! (AMD64 manual, volume 2, appendix A).

use super::{
    backend::SystemRegister,
    caching::{Mtrrs, Pat},
};

const EFER: u32 = 0xc000_0080;

/// `EFER`: SYSCALL, and pages that are not executed: what a guest may change.
const EFER_CHANGEABLE: u64 = 1 | 1 << 11;
/// `EFER`: long mode enabled and active, which 64-bit code cannot change (14.8).
const EFER_FIXED: u64 = 1 << 8 | 1 << 10;

/// What a guest asks of an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read it.
    Read,
    /// To write this value.
    Write(u64),
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Answer with a system register.
    Show(SystemRegister),
    /// Change a system register.
    Change(SystemRegister, u64),
    /// Answer with the PAT register that the guest set.
    ShowPat,
    /// It sets this one.
    ChangePat(Pat),
    /// One of the MTRRs: they judge for themselves.
    Mtrr,
    /// #GP(0).
    Refuse,
}

/// Judges an access to an MSR that the guest does not reach itself; `efer` is its EFER as it sees it.
#[must_use]
pub fn judge(number: u32, access: Access, efer: u64) -> Verdict {
    match (number, access) {
        (EFER, Access::Read) => Verdict::Show(SystemRegister::Efer),
        (EFER, Access::Write(value)) if value & !EFER_CHANGEABLE == efer & EFER_FIXED => {
            Verdict::Change(SystemRegister::Efer, value)
        }
        (Pat::MSR, Access::Read) => Verdict::ShowPat,
        (Pat::MSR, Access::Write(value)) => Pat::new(value).map_or(Verdict::Refuse, Verdict::ChangePat),
        _ if Mtrrs::has(number) => Verdict::Mtrr,
        _ => Verdict::Refuse,
    }
}

/// MSRs that a guest reaches itself, since entry and exit switch them: SYSENTER's, STAR to SFMASK, the bases of FS and
/// GS and what SWAPGS exchanges.
pub const SWITCHED: [core::ops::RangeInclusive<u32>; 3] =
    [0x174..=0x176, 0xc000_0081..=0xc000_0084, 0xc000_0100..=0xc000_0102];

/// Byte and bits of an MSR in the map of MSRs (15.11); `None` for one that always exits.
#[must_use]
pub const fn permission_bits(number: u32) -> Option<(usize, u8)> {
    let (area, index) = match number {
        0..=0x1fff => (0, number),
        0xc000_0000..=0xc000_1fff => (0x800, number - 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, number - 0xc001_0000),
        _ => return None,
    };
    Some((area + (index / 4) as usize, 3 << (index % 4 * 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG_MODE: u64 = 0x500;
    const SVME: u64 = 1 << 12;

    #[test]
    fn x05_a_guest_cannot_turn_svm_on_or_reach_the_hypervisors_msrs() {
        for value in [LONG_MODE | SVME, SVME, 0, 0x100, LONG_MODE | 1 << 13, LONG_MODE | 1 << 14] {
            assert_eq!(judge(EFER, Access::Write(value), LONG_MODE), Verdict::Refuse, "{value:#x}");
        }
        // VM_CR, VM_HSAVE_PA, APIC_BASE, x2APIC, SMM_BASE, microcode.
        for number in
            [0xc001_0114, 0xc001_0117, 0x1b, 0x800, 0x830, 0x8ff, 0xc001_0111, 0xc001_0020, u32::MAX]
        {
            assert_eq!(judge(number, Access::Read, LONG_MODE), Verdict::Refuse, "{number:#x}");
            assert_eq!(judge(number, Access::Write(0), LONG_MODE), Verdict::Refuse, "{number:#x}");
        }
    }

    #[test]
    fn what_is_emulated_is_judged() {
        let no_execute = LONG_MODE | 1 << 11;
        let change = Verdict::Change(SystemRegister::Efer, no_execute);
        assert_eq!(judge(EFER, Access::Write(no_execute), LONG_MODE), change);
        assert_eq!(judge(EFER, Access::Read, LONG_MODE), Verdict::Show(SystemRegister::Efer));
        assert_eq!(judge(Pat::MSR, Access::Read, 0), Verdict::ShowPat);
        let reset = Access::Write(Pat::RESET.value());
        assert_eq!(judge(Pat::MSR, reset, 0), Verdict::ChangePat(Pat::RESET));
        assert_eq!(judge(Pat::MSR, Access::Write(2), 0), Verdict::Refuse);
        for number in [0xfe, 0x200, 0x20f, 0x2ff] {
            assert_eq!(judge(number, Access::Read, 0), Verdict::Mtrr, "{number:#x}");
        }
        assert_eq!(judge(0x250, Access::Read, 0), Verdict::Refuse, "a fixed range");
    }

    #[test]
    fn each_msr_has_two_bits_in_the_map() {
        assert_eq!(permission_bits(0), Some((0, 3)));
        assert_eq!(permission_bits(0x176), Some((0x5d, 0x30)));
        assert_eq!(permission_bits(0xc000_0080), Some((0x820, 3)));
        assert_eq!(permission_bits(0xc001_0117), Some((0x1045, 0xc0)));
        assert_eq!((permission_bits(0x2000), permission_bits(0xc001_2000)), (None, None));
    }
}
