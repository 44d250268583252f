//! What an instruction does to the flow of control and to the stack pointer (Power ISA 3.1, Book I,
//! chapters 2 and 3). Field numbers are the manual's: bit 0 is the highest.

/// Where the flow goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next one.
    Next,
    /// To an address.
    Jump(u64),
    /// To an address or to the next one.
    Branch(u64),
    /// To an address, and back to the next one.
    Call(u64),
    /// To the caller, and if there is a condition, to the next one.
    Return { conditional: bool },
    /// To where CTR or TAR points, or LR when it is a call; a call comes back.
    Indirect { call: bool, conditional: bool },
    /// To the program interrupt, and if there is a condition, to the next one.
    Trap { conditional: bool },
    /// To firmware, a hypervisor, or another machine state; perhaps back to the next one.
    Leave { returns: bool },
}

/// What an instruction does to r1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StackChange {
    /// Nothing.
    None,
    /// A frame of that many bytes begins.
    Push(u64),
    /// That many bytes are given back.
    Pop(u64),
}

const fn primary(word: u32) -> u32 {
    word >> 26
}

/// Bits 6 to 10.
const fn first(word: u32) -> u32 {
    word >> 21 & 31
}

/// Bits 11 to 15.
const fn second(word: u32) -> u32 {
    word >> 16 & 31
}

/// Bits 21 to 30: the extended opcode of most forms.
const fn extended(word: u32) -> u32 {
    word >> 1 & 0x3ff
}

const fn immediate(word: u32) -> i64 {
    (word as u16).cast_signed() as i64
}

const fn links(word: u32) -> bool {
    word & 1 != 0
}

/// The target of a branch with this displacement.
const fn target(word: u32, address: u64, displacement: i64) -> u64 {
    let absolute = word & 2 != 0;
    if absolute { displacement.cast_unsigned() } else { address.wrapping_add_signed(displacement) }
}

/// BO says: whatever CR and CTR hold.
const fn always(word: u32) -> bool {
    first(word) & 0b1_0100 == 0b1_0100
}

/// The flow after the instruction `word` at `address`.
pub(super) const fn flow(word: u32, address: u64) -> Flow {
    match primary(word) {
        2 | 3 => trap(word),
        16 => conditional(word, address),
        17 => Flow::Leave { returns: true },
        18 => {
            // 26 bits with sign, the lower two of which are not part of it.
            let displacement = (((word & 0x03ff_fffc) << 6).cast_signed() >> 6) as i64;
            let target = target(word, address, displacement);
            if links(word) { Flow::Call(target) } else { Flow::Jump(target) }
        }
        19 => by_register(word),
        31 => match extended(word) {
            4 | 68 => trap(word),
            // mtmsr, mtmsrd: the machine state is the caller's.
            146 | 178 => Flow::Leave { returns: true },
            _ => Flow::Next,
        },
        _ => Flow::Next,
    }
}

/// A trap whose TO field names no condition is a nop, which orders loads.
const fn trap(word: u32) -> Flow {
    match first(word) {
        0 => Flow::Next,
        to => Flow::Trap { conditional: to != 31 },
    }
}

const fn conditional(word: u32, address: u64) -> Flow {
    // bcl 20,31,.+4 tells the code where it is, and calls nobody (Book I, 2.4).
    if word == 0x429f_0005 {
        return Flow::Next;
    }
    let target = target(word, address, (word as u16 & 0xfffc).cast_signed() as i64);
    match (links(word), always(word)) {
        (true, _) => Flow::Call(target),
        (false, true) => Flow::Jump(target),
        (false, false) => Flow::Branch(target),
    }
}

const fn by_register(word: u32) -> Flow {
    let conditional = !always(word);
    match extended(word) {
        16 if links(word) => Flow::Indirect { call: true, conditional },
        16 => Flow::Return { conditional },
        528 | 560 => Flow::Indirect { call: links(word), conditional },
        // rfid, rfscv, rfebb, hrfid, urfid, stop.
        18 | 82 | 146 | 274 | 306 | 370 => Flow::Leave { returns: false },
        _ => Flow::Next,
    }
}

/// The change of r1 by the two instructions that code uses for it: `stdu rX,-N(r1)`, `addi r1,r1,N`.
pub(super) const fn stack_change(word: u32) -> StackChange {
    match (primary(word), word & 3, immediate(word)) {
        (62, 1, bytes) if second(word) == 1 && bytes < 0 => StackChange::Push((bytes & !3).unsigned_abs()),
        (14, _, bytes) if first(word) == 1 && second(word) == 1 && bytes > 0 => {
            StackChange::Pop(bytes.cast_unsigned())
        }
        _ => StackChange::None,
    }
}

/// How many bytes below r1 an instruction reaches: leaf functions keep data there without a frame of their own
/// (ELFv2 ABI, 2.2.2.4, "Protected zone").
pub(super) const fn below_stack(word: u32) -> u64 {
    let offset = match primary(word) {
        14 | 32..=55 => immediate(word),
        56..=58 | 61 | 62 => immediate(word) & !3,
        _ => return 0,
    };
    if second(word) == 1 && offset < 0 { offset.unsigned_abs() } else { 0 }
}

/// A value that an instruction gives a register, out of another one or out of nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// The sum of a register, if any, and a number.
    Sum(Option<u32>, i64),
    /// A register with bits set.
    Or(u32, u64),
    /// The doubleword at a register's value and a number.
    Load(u32, i64),
}

/// The general register that the instruction sets and its value, for the few that compute the target of a jump.
pub(super) const fn assignment(word: u32) -> Option<(u32, Value)> {
    let base = if second(word) == 0 { None } else { Some(second(word)) };
    match primary(word) {
        14 => Some((first(word), Value::Sum(base, immediate(word)))),
        15 => Some((first(word), Value::Sum(base, immediate(word) << 16))),
        24 => Some((second(word), Value::Or(first(word), word as u64 & 0xffff))),
        58 if word & 3 == 0 => Some((first(word), Value::Load(second(word), immediate(word)))),
        // `mr` is `or` with one source.
        31 if extended(word) == 444 && first(word) == word >> 11 & 31 => {
            Some((second(word), Value::Sum(Some(first(word)), 0)))
        }
        _ => None,
    }
}

/// The general register that `mtctr` reads.
pub(super) const fn counter_source(word: u32) -> Option<u32> {
    // The two halves of the register's number 9 are swapped.
    let counter = word & 0xfc1f_ffff == 0x7c09_03a6;
    if counter { Some(first(word)) } else { None }
}

/// Whether the instruction is a store of a doubleword that changes no register: linkage code saves r2 so.
pub(super) const fn is_plain_store(word: u32) -> bool {
    primary(word) == 62 && word & 3 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0x2000_1000;

    #[test]
    fn branches_lead_where_the_manual_says() {
        let cases = [
            (0x4800_0008, Flow::Jump(AT + 8)),                                 // b .+8
            (0x4bff_fffc, Flow::Jump(AT - 4)),                                 // b .-4
            (0x4800_0011, Flow::Call(AT + 16)),                                // bl .+16
            (0x4800_3003, Flow::Call(0x3000)),                                 // bla 0x3000
            (0x4082_fff8, Flow::Branch(AT - 8)),                               // bne .-8
            (0x4200_fff0, Flow::Branch(AT - 16)),                              // bdnz .-16
            (0x4280_0010, Flow::Jump(AT + 16)),                                // bc 20,0,.+16
            (0x4082_0011, Flow::Call(AT + 16)),                                // bnel .+16
            (0x429f_0005, Flow::Next),                                         // bcl 20,31,.+4
            (0x4800_0005, Flow::Call(AT + 4)), // bl .+4, to a function that follows
            (0x4e80_0020, Flow::Return { conditional: false }), // blr
            (0x4d82_0020, Flow::Return { conditional: true }), // beqlr
            (0x4e80_0021, Flow::Indirect { call: true, conditional: false }), // blrl
            (0x4e80_0420, Flow::Indirect { call: false, conditional: false }), // bctr
            (0x4e80_0421, Flow::Indirect { call: true, conditional: false }), // bctrl
            (0x4d82_0420, Flow::Indirect { call: false, conditional: true }), // beqctr
            (0x4e80_0460, Flow::Indirect { call: false, conditional: false }), // bctar
        ];
        for (word, expected) in cases {
            assert_eq!(flow(word, AT), expected, "{word:#010x}");
        }
    }

    #[test]
    fn traps_and_ways_out_are_seen() {
        let trap = [0x7fe0_0008, 0x0fe0_0000, 0x7c83_2808, 0x7fe0_0088, 0x0883_0000];
        assert!(trap.iter().all(|word| matches!(flow(*word, AT), Flow::Trap { .. })));
        assert_eq!(flow(0x7fe0_0008, AT), Flow::Trap { conditional: false });
        // twi 0,r3,0 and tdi 0,r3,0 order loads and never trap.
        assert_eq!([flow(0x0c03_0000, AT), flow(0x0803_0000, AT)], [Flow::Next; 2]);
        // sc 1, scv 0, rfid, hrfid, mtmsrd, mtmsr, stop.
        let leave =
            [0x4400_0022, 0x4400_0001, 0x4c00_0024, 0x4c00_0224, 0x7d40_0164, 0x7d40_0124, 0x4c00_02e4];
        for word in leave {
            assert!(matches!(flow(word, AT), Flow::Leave { .. }), "{word:#010x}");
        }
        // isync, crand, mfmsr, sync, cmpd.
        for word in [0x4c00_012c, 0x4c00_0202, 0x7d40_00a6, 0x7c00_04ac, 0x7c23_2000] {
            assert_eq!(flow(word, AT), Flow::Next, "{word:#010x}");
        }
    }

    #[test]
    fn frames_are_measured() {
        assert_eq!(stack_change(0xf821_ff91), StackChange::Push(112)); // stdu r1,-112(r1)
        assert_eq!(stack_change(0xf801_ff81), StackChange::Push(128)); // stdu r0,-128(r1)
        assert_eq!(stack_change(0xf821_8001), StackChange::Push(32768));
        assert_eq!(stack_change(0x3821_0070), StackChange::Pop(112)); // addi r1,r1,112
        assert_eq!(stack_change(0xf801_0010), StackChange::None); // std r0,16(r1)
        assert_eq!(stack_change(0xf821_ff90), StackChange::None); // std r1,-112(r1)
        assert_eq!(stack_change(0x3861_0070), StackChange::None); // addi r3,r1,112
    }

    #[test]
    fn data_below_the_stack_pointer_is_measured() {
        assert_eq!(below_stack(0xfbc1_fff0), 16); // std r30,-16(r1)
        assert_eq!(below_stack(0xebe1_fff8), 8); // ld r31,-8(r1)
        assert_eq!(below_stack(0x3861_ffc0), 64); // addi r3,r1,-64
        assert_eq!(below_stack(0x9061_fffd), 3); // stw r3,-3(r1)
        assert_eq!(below_stack(0xf801_0010), 0); // std r0,16(r1)
        assert_eq!(below_stack(0xfbc3_fff0), 0); // std r30,-16(r3)
    }

    #[test]
    fn the_makings_of_a_target_are_read() {
        assert_eq!(assignment(0x3d82_0001), Some((12, Value::Sum(Some(2), 0x1_0000)))); // addis r12,r2,1
        assert_eq!(assignment(0x3d80_2000), Some((12, Value::Sum(None, 0x2000_0000)))); // lis r12,0x2000
        assert_eq!(assignment(0x398c_fff8), Some((12, Value::Sum(Some(12), -8)))); // addi r12,r12,-8
        assert_eq!(assignment(0x618c_1234), Some((12, Value::Or(12, 0x1234)))); // ori r12,r12,0x1234
        assert_eq!(assignment(0xe98c_8008), Some((12, Value::Load(12, -0x7ff8)))); // ld r12,-0x7ff8(r12)
        assert_eq!(assignment(0x7c6c_1b78), Some((12, Value::Sum(Some(3), 0)))); // mr r12,r3
        assert_eq!(assignment(0x7c6c_2378), None); // or r12,r3,r4
        assert_eq!(assignment(0xe98c_8009), None); // ldu
        assert_eq!(counter_source(0x7d89_03a6), Some(12)); // mtctr r12
        assert_eq!(counter_source(0x7d88_03a6), None); // mtlr r12
    }
}
