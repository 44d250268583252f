//! Model-specific registers that a guest may read and write by the hypervisor's hand; all others are refused
//! (AMD64 manual, volume 2, appendix A).

use super::backend::SystemRegister;

const EFER: u32 = 0xc000_0080;
const PAT: u32 = 0x277;
const MTRR_CAPABILITIES: u32 = 0xfe;
const MTRR_DEFAULT: u32 = 0x2ff;
/// MTRRs are on, and all memory is written back.
const ALL_WRITE_BACK: u64 = 1 << 11 | 6;

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
    /// Answer with a value.
    Answer(u64),
    /// Go on: what is written is so already.
    Ignore,
    /// Change a system register.
    Change(SystemRegister, u64),
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
        (PAT, Access::Read) => Verdict::Show(SystemRegister::Pat),
        (PAT, Access::Write(value)) if is_pat(value) => Verdict::Change(SystemRegister::Pat, value),
        (MTRR_CAPABILITIES, Access::Read) => Verdict::Answer(0),
        (MTRR_DEFAULT, Access::Read) => Verdict::Answer(ALL_WRITE_BACK),
        (MTRR_DEFAULT, Access::Write(ALL_WRITE_BACK)) => Verdict::Ignore,
        _ => Verdict::Refuse,
    }
}

/// Whether each byte is a memory type that there is (7.8.1).
fn is_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|entry| matches!(entry, 0 | 1 | 4..=7))
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
        let reset = 0x0007_0406_0007_0406;
        assert_eq!(judge(PAT, Access::Write(reset), 0), Verdict::Change(SystemRegister::Pat, reset));
        for bad in [2, 3, 8, 0xff00] {
            assert_eq!(judge(PAT, Access::Write(bad), 0), Verdict::Refuse);
        }
        assert_eq!(judge(MTRR_DEFAULT, Access::Read, 0), Verdict::Answer(0xc06 & !0x400));
        assert_eq!(judge(MTRR_DEFAULT, Access::Write(0), 0), Verdict::Refuse);
        assert_eq!(judge(MTRR_CAPABILITIES, Access::Write(0), 0), Verdict::Refuse);
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
