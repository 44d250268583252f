//! Which bytes are instructions, and which registers they use.

use capstone::{
    Capstone, Endian,
    arch::{
        ArchOperand, BuildsCapstone as _, BuildsCapstoneEndian as _,
        ppc::{ArchMode, PpcOperand},
    },
};

/// What the disassembler says of an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    /// As an assembler would write it.
    pub(super) text: String,
    /// It belongs to the vector, VSX or floating-point facilities.
    pub(super) vector: bool,
    /// It sets r1.
    pub(super) sets_stack: bool,
}

/// The disassembler.
pub(super) struct Disassembler(Capstone);

impl Disassembler {
    /// One for little-endian POWER, 64 bits.
    pub(super) fn new() -> Result<Self, capstone::Error> {
        let builder = Capstone::new().ppc().mode(ArchMode::Mode64).endian(Endian::Little);
        Ok(Self(builder.detail(true).build()?))
    }

    /// `None` if these bytes are no instruction that it knows.
    pub(super) fn decode(&self, word: u32, address: u64) -> Option<Decoded> {
        let list = self.0.disasm_count(&word.to_le_bytes(), address, 1).ok()?;
        let instruction = list.first()?;
        let detail = self.0.insn_detail(instruction).ok()?;
        let registers: Vec<_> =
            detail.arch_detail().operands().iter().filter_map(|operand| self.register(operand)).collect();
        let mnemonic = instruction.mnemonic()?;
        let text = format!("{mnemonic} {}", instruction.op_str().unwrap_or_default()).trim_end().to_owned();
        let vector = is_vector(word) || registers.iter().any(|name| is_vector_register(name));
        let sets_stack = sets_stack(mnemonic, registers.first().map(String::as_str), word >> 16 & 31);
        Some(Decoded { text, vector, sets_stack })
    }

    fn register(&self, operand: &ArchOperand) -> Option<String> {
        let ArchOperand::PpcOperand(PpcOperand::Reg(register)) = operand else { return None };
        self.0.reg_name(*register)
    }
}

/// `f0`, `v0` or `vs0`.
fn is_vector_register(name: &str) -> bool {
    let number = name.strip_prefix("vs").or_else(|| name.strip_prefix(['f', 'v']));
    number.is_some_and(|number| number.parse::<u8>().is_ok())
}

/// The first operand is the result, except of what only reads; with update, the base is one too.
fn sets_stack(mnemonic: &str, first: Option<&str>, base: u32) -> bool {
    let reads = ["st", "cmp", "mt", "tw", "td", "dcb", "icb"].iter().any(|what| mnemonic.starts_with(what));
    let several = ["lq", "lmw", "lsw"].iter().any(|what| mnemonic.starts_with(what));
    let result = !reads && (first == Some("r1") || several && first == Some("r0"));
    let accesses = mnemonic.starts_with('l') || mnemonic.starts_with("st");
    let updates = accesses && (mnemonic.ends_with('u') || mnemonic.ends_with("ux"));
    result || updates && base == 1
}

/// Whether the instruction needs MSR.VEC, VSX or FP, by its opcode alone (Power ISA 3.1, Appendix F): so that a
/// disassembler that names registers in another way hides nothing.
pub(super) const fn is_vector(word: u32) -> bool {
    match word >> 26 {
        // maddhd, maddhdu and maddld are integer instructions among the vector ones.
        4 => !matches!(word & 0x3f, 48 | 49 | 51),
        6 | 48..=55 | 57 | 59..=61 | 63 => true,
        31 => is_indexed_vector(word >> 1 & 0x3ff),
        _ => false,
    }
}

/// By the extended opcode of primary opcode 31.
const fn is_indexed_vector(extended: u32) -> bool {
    let vector = matches!(extended, 6 | 7 | 38 | 39 | 71 | 103 | 135 | 167 | 199 | 231 | 359 | 487);
    let float =
        matches!(extended, 535 | 567 | 599 | 631 | 663 | 695 | 727 | 759 | 791 | 855 | 887 | 919 | 983);
    let load = matches!(
        extended,
        12 | 13
            | 45
            | 76
            | 77
            | 109
            | 268
            | 269
            | 300
            | 301
            | 332
            | 333
            | 364
            | 524
            | 588
            | 780
            | 781
            | 812
            | 813
            | 844
            | 876
    );
    let store = matches!(
        extended,
        140 | 141
            | 173
            | 205
            | 237
            | 396
            | 397
            | 428
            | 429
            | 461
            | 652
            | 716
            | 908
            | 909
            | 940
            | 941
            | 972
            | 1004
    );
    let transfer = matches!(extended, 51 | 115 | 179 | 211 | 243 | 307 | 403 | 435);
    vector || float || load || store || transfer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(word: u32) -> Option<Decoded> {
        Disassembler::new().unwrap().decode(word, 0x2000_1000)
    }

    #[test]
    fn vector_and_float_instructions_are_known_twice() {
        let cases = [
            ("stxvd2x", 0x7c00_2f98),
            ("lxvd2x", 0x7c1b_2e98),
            ("mtvsrd", 0x7c3b_0166),
            ("vaddudm", 0x10e7_d0c0),
            ("lfd", 0xc817_0008),
            ("stfd", 0xda9f_01d0),
            ("xxlxor", 0xf3ff_fcd7),
            ("lvx", 0x7fff_20ce),
            ("lfdx", 0x7c00_bcae),
            ("fadd", 0xfc01_102a),
            ("lxv", 0xf401_0009),
            ("lxsibzx", 0x7c00_261a),
        ];
        for (name, word) in cases {
            assert!(is_vector(word), "{name}, by its opcode");
            let decoded = decode(word).unwrap();
            assert!(decoded.text.starts_with(name) && decoded.vector, "{name}: {decoded:?}");
        }
        assert!(is_vector_register("vs63") && is_vector_register("f1") && is_vector_register("v2"));
        assert!(!is_vector_register("r1") && !is_vector_register("vrsave") && !is_vector_register("cr0"));
    }

    #[test]
    fn integer_instructions_are_not_taken_for_vectors() {
        let cases = [
            ("ld", 0xe869_0050),
            ("stdcx.", 0x7cc3_21ad),
            ("maddld", 0x1064_2973),
            ("isel", 0x7c86_209e),
            ("cmpld", 0x7c2a_5840),
            ("stdcix", 0x7c60_27ea),
            ("ldcix", 0x7c60_26ea),
            ("mfspr", 0x7c7a_4aa6),
        ];
        for (name, word) in cases {
            let decoded = decode(word).unwrap();
            assert!(decoded.text.starts_with(name) && !decoded.vector, "{name}: {decoded:?}");
        }
    }

    #[test]
    fn what_sets_the_stack_pointer_is_seen() {
        for (name, word) in [
            ("stdu r1,-112(r1)", 0xf821_ff91),
            ("addi r1,r1,112", 0x3821_0070),
            ("stdux r1,r1,r0", 0x7c21_016a),
            ("mr r1,r31", 0x7fe1_fb78),
            ("ld r1,0(r1)", 0xe821_0000),
            ("lbzu r5,1(r1)", 0x8ca1_0001),
        ] {
            assert!(decode(word).unwrap().sets_stack, "{name}");
        }
        for (name, word) in [
            ("std r0,16(r1)", 0xf801_0010),
            ("std r1,-8(r1)", 0xf821_fff8),
            ("mr r31,r1", 0x7c3f_0b78),
            ("cmpld r1,r3", 0x7c21_1840),
            ("addi r3,r1,32", 0x3861_0020),
            ("lbzu r5,1(r4)", 0x8ca4_0001),
        ] {
            assert!(!decode(word).unwrap().sets_stack, "{name}");
        }
    }

    #[test]
    fn bytes_that_are_no_instruction_are_refused() {
        assert_eq!(decode(0), None);
        // The first half of a prefixed instruction.
        assert_eq!(decode(0x0600_0000), None);
    }
}
