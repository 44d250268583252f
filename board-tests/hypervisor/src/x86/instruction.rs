//! How long an intercepted instruction is, and which one it is: CPUs without `NRIPS` tell neither
//! (AMD64 manual, volume 2, 15.7.1; encodings of volume 3, chapter 1 and appendix A).

use super::caching::decode::{self as cache, CacheInstruction, Width};

/// Most bytes of an instruction.
pub const MAX_BYTES: usize = cache::LONGEST;

/// An instruction that a guest stopped at, as far as intercepts need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Its bytes, prefixes and all.
    pub length: u64,
    /// Which one.
    pub kind: Kind,
}

/// Instructions whose bytes tell more than their exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On whole caches.
    Cache(CacheInstruction),
    /// MOV to a control register: the general-purpose register that holds the value, by number.
    MoveToControl {
        /// The control register.
        control: u8,
        /// The general-purpose register.
        from: u8,
    },
    /// MOV from a control register: the general-purpose register that gets the value, by number.
    MoveFromControl {
        /// The control register.
        control: u8,
        /// The general-purpose register.
        to: u8,
    },
    /// One of which only the length matters.
    Other,
}

/// Finds the instruction in the bytes that the guest's instruction pointer leads to; `None` for one that no intercept
/// is about, or when bytes are missing. It is 64-bit code.
#[must_use]
pub fn decode(bytes: &[u8]) -> Option<Instruction> {
    if let Ok(found) = cache::decode(bytes, Width::Bits64) {
        return Some(Instruction { length: found.length as u64, kind: Kind::Cache(found.kind) });
    }
    let prefixes = bytes.iter().take(MAX_BYTES).take_while(|byte| is_legacy_prefix(**byte)).count();
    let rest = bytes.get(prefixes..)?;
    let (rex, opcode) = match rest {
        [rex @ 0x40..=0x4f, opcode @ ..] => (Some(*rex), opcode),
        opcode => (None, opcode),
    };
    let (length, kind) = match opcode {
        [0x0f, 0x20, modrm, ..] => {
            let (control, to) = registers(*modrm, rex.unwrap_or(0));
            (3, Kind::MoveFromControl { control, to })
        }
        [0x0f, 0x22, modrm, ..] => {
            let (control, from) = registers(*modrm, rex.unwrap_or(0));
            (3, Kind::MoveToControl { control, from })
        }
        // The group of VMRUN, VMMCALL, INVLPGA, XSETBV, MONITOR, MWAIT.
        [0x0f, 0x01, 0xc0..=0xff, ..] => (3, Kind::Other),
        // WRMSR, RDMSR, RDPMC, RSM, CPUID; moves of debug registers.
        [0x0f, 0x30 | 0x32 | 0x33 | 0xa2 | 0xaa, ..] => (2, Kind::Other),
        [0x0f, 0x21 | 0x23, _, ..] => (3, Kind::Other),
        [0xf4, ..] => (1, Kind::Other),
        _ => return None,
    };
    Some(Instruction { length: (prefixes + usize::from(rex.is_some()) + length) as u64, kind })
}

const fn is_legacy_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// The control register, which REX.R extends, and the general-purpose one, which REX.B does.
const fn registers(modrm: u8, rex: u8) -> (u8, u8) {
    (modrm >> 3 & 7 | (rex & 4) << 1, modrm & 7 | (rex & 1) << 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Option<(u64, Kind)> {
        decode(bytes).map(|instruction| (instruction.length, instruction.kind))
    }

    #[test]
    fn the_value_for_a_control_register_is_found() {
        let to_cr0 = |from| Kind::MoveToControl { control: 0, from };
        assert_eq!(decoded(&[0x0f, 0x22, 0xc0]), Some((3, to_cr0(0))));
        assert_eq!(decoded(&[0x0f, 0x22, 0xc7]), Some((3, to_cr0(7))));
        assert_eq!(decoded(&[0x41, 0x0f, 0x22, 0xc7]), Some((4, to_cr0(15))));
        assert_eq!(
            decoded(&[0x44, 0x0f, 0x22, 0xc1]),
            Some((4, Kind::MoveToControl { control: 8, from: 1 }))
        );
    }

    #[test]
    fn the_place_for_a_control_registers_value_is_found() {
        let from_cr0 = |to| Kind::MoveFromControl { control: 0, to };
        assert_eq!(decoded(&[0x0f, 0x20, 0xc3]), Some((3, from_cr0(3))));
        assert_eq!(decoded(&[0x41, 0x0f, 0x20, 0xc7]), Some((4, from_cr0(15))));
    }

    #[test]
    fn lengths_count_prefixes() {
        assert_eq!(decoded(&[0x0f, 0xa2, 0x90]), Some((2, Kind::Other)));
        assert_eq!(decoded(&[0x0f, 0x01, 0xd9]), Some((3, Kind::Other)));
        assert_eq!(decoded(&[0x48, 0x0f, 0x32]), Some((3, Kind::Other)));
        assert_eq!(decoded(&[0x2e, 0xf4]), Some((2, Kind::Other)));
        assert_eq!(decoded(&[0x66, 0x0f, 0x09]), Some((3, Kind::Cache(CacheInstruction::Wbinvd))));
    }

    #[test]
    fn what_no_intercept_is_about_is_not_guessed() {
        for bytes in [
            &[][..],
            &[0x0f],
            &[0x0f, 0x22],
            &[0x90],
            &[0xf3; 20],
            &[0x0f, 0x01, 0x10],
            &[0x48, 0x48, 0xf4],
            &[0xf0, 0x0f, 0x09],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:x?}");
        }
    }
}
