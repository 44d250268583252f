//! Which cache instruction lies at a guest's instruction pointer, and how long it is.
//!
//! Needed where hardware saves neither: without the next-instruction pointer of SVM's NRIP feature, and where INVD
//! is reported as WBINVD. The bytes may have changed since the exit: another CPU of the guest writes them.

/// Longest instruction, in bytes (AMD64 APM volume 3, section 1.1).
pub const LONGEST: usize = 15;

/// An instruction on all of a CPU's caches (AMD64 APM volume 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheInstruction {
    /// `0F 09`: write back and drop.
    Wbinvd,
    /// `F3 0F 09`: write back and keep. WBINVD on a CPU without it.
    Wbnoinvd,
    /// `0F 08`: drop what was not written back.
    Invd,
}

/// How the bytes of an instruction are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 64-bit mode, where `40` to `4F` are REX prefixes.
    Bits64,
    /// Any other mode, where they are instructions.
    Bits16Or32,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The instruction.
    pub kind: CacheInstruction,
    /// Its bytes, prefixes included: 2 to [`LONGEST`].
    pub length: usize,
}

/// Why nothing was found. None of these can be what caused the exit: the guest changed the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDecoded {
    /// The byte at `at` begins no cache instruction, or the pair there is another opcode.
    Other {
        /// Offset of the byte.
        at: usize,
    },
    /// The prefixes leave no room for an opcode within [`LONGEST`] bytes.
    TooLong,
    /// All bytes that could be read are prefixes or half an opcode.
    Truncated,
}

const ESCAPE: u8 = 0x0f;
const INVD: u8 = 0x08;
const WBINVD: u8 = 0x09;
const REPEAT_NOT_ZERO: u8 = 0xf2;
const REPEAT: u8 = 0xf3;

/// Segment, operand size and address size: they change nothing here. LOCK is not among them: it makes the
/// instruction invalid.
const fn is_idle_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x66 | 0x67)
}

const fn is_prefix(byte: u8) -> bool {
    is_idle_prefix(byte) || matches!(byte, REPEAT | REPEAT_NOT_ZERO)
}

/// Reads the instruction at the beginning of `bytes`: what could be read at the guest's instruction pointer, of
/// which no more than [`LONGEST`] are looked at.
///
/// `F3` before `0F 09` makes it WBNOINVD. With `F2` as well it is taken for WBINVD, which does what both do.
///
/// # Errors
/// [`NotDecoded`]: the guest is to be given the exception of an invalid instruction, or run again.
pub fn decode(bytes: &[u8], width: Width) -> Result<Decoded, NotDecoded> {
    let bytes = bytes.get(..LONGEST).unwrap_or(bytes);
    let is_whole = bytes.len() == LONGEST;
    let none_left = if is_whole { NotDecoded::TooLong } else { NotDecoded::Truncated };
    let is_rex = |byte: u8| width == Width::Bits64 && byte & 0xf0 == 0x40;

    let prefixes = bytes.iter().take_while(|&&byte| is_prefix(byte) || is_rex(byte)).count();
    let (before, rest) = bytes.split_at_checked(prefixes).ok_or(none_left)?;
    match *rest {
        [] | [ESCAPE] => Err(none_left),
        [ESCAPE, opcode @ (INVD | WBINVD), ..] => {
            Ok(Decoded { kind: kind(opcode, before), length: prefixes.saturating_add(2) })
        }
        _ => Err(NotDecoded::Other { at: prefixes }),
    }
}

fn kind(opcode: u8, prefixes: &[u8]) -> CacheInstruction {
    if opcode == INVD {
        return CacheInstruction::Invd;
    }
    if prefixes.contains(&REPEAT) && !prefixes.contains(&REPEAT_NOT_ZERO) {
        CacheInstruction::Wbnoinvd
    } else {
        CacheInstruction::Wbinvd
    }
}
