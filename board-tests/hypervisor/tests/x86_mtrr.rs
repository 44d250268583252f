#![allow(missing_docs, reason = "tests document themselves by their names")]

mod reference;

use portcullis_hypervisor::x86::caching::{
    MemoryType::{self, Uncacheable, WriteBack, WriteCombining, WriteProtected, WriteThrough},
    Mtrrs, Pat,
    mtrr::{BadMsr, CAPABILITIES_MSR, DEFAULT_TYPE_MSR, FIRST_VARIABLE_MSR, Run, VARIABLE},
};
use proptest::{collection::vec, prelude::*, sample::select};
use reference::run;

const BITS: u32 = 40;
const VALID: u64 = 1 << 11;
const ENABLE: u64 = 1 << 11;
const PAGE: u64 = 4096;
const ADDRESSES: u64 = (1 << BITS) - PAGE;

fn base(pair: u32) -> u32 {
    FIRST_VARIABLE_MSR + 2 * pair
}

/// Enabled, write-back, with these ranges: address, mask of the address, type.
fn with(ranges: &[(u64, u64, u64)]) -> Mtrrs {
    let mut mtrrs = Mtrrs::after_firmware(BITS);
    for (pair, &(address, mask, memory_type)) in (0..).zip(ranges) {
        mtrrs.write(base(pair), address | memory_type).unwrap();
        mtrrs.write(base(pair) + 1, mask | VALID).unwrap();
    }
    mtrrs
}

/// The mask of a range of so many bytes.
fn bytes(size: u64) -> u64 {
    ADDRESSES & !(size - 1)
}

fn runs(mtrrs: &Mtrrs, mut start: u64, end: u64) -> Vec<Run> {
    let mut found = Vec::new();
    while let Some(run) = mtrrs.first_run(start, end) {
        start = run.end;
        found.push(run);
    }
    found
}

#[test]
fn x22_a_guest_reads_back_what_it_wrote() {
    let mut mtrrs = Mtrrs::reset(BITS);
    assert_eq!(mtrrs.read(CAPABILITIES_MSR), Ok(1 << 10 | 8), "write-combining, and 8 pairs");
    for (msr, value) in (FIRST_VARIABLE_MSR..).zip((0..2 * VARIABLE as u64).map(|at| at << 20)) {
        assert_eq!(mtrrs.read(msr), Ok(0));
        mtrrs.write(msr, value).unwrap();
        assert_eq!(mtrrs.read(msr), Ok(value));
    }
    mtrrs.write(DEFAULT_TYPE_MSR, ENABLE | 6).unwrap();
    assert_eq!(mtrrs.read(DEFAULT_TYPE_MSR), Ok(ENABLE | 6));
    assert_eq!(Mtrrs::after_firmware(BITS).read(DEFAULT_TYPE_MSR), Ok(ENABLE | 6));
}

#[test]
fn x22_there_are_no_other_registers() {
    let fixed = [0x250, 0x258, 0x259, 0x268, 0x26f];
    let beside = [0x1ff, base(8), base(8) + 1, 0x2fe, 0x300, 0, u32::MAX];
    let mut mtrrs = Mtrrs::reset(BITS);
    for msr in fixed.into_iter().chain(beside) {
        assert!(!Mtrrs::has(msr));
        assert_eq!(mtrrs.read(msr), Err(BadMsr::Register(msr)));
        assert_eq!(mtrrs.write(msr, 0), Err(BadMsr::Register(msr)));
    }
    assert!(Mtrrs::has(CAPABILITIES_MSR));
    assert_eq!(mtrrs.write(CAPABILITIES_MSR, 0), Err(BadMsr::Register(CAPABILITIES_MSR)));
}

#[test]
fn x22_reserved_bits_and_types_are_refused() {
    let mut mtrrs = Mtrrs::reset(BITS);
    for (msr, allowed) in [
        (DEFAULT_TYPE_MSR, ENABLE),
        (base(3), ADDRESSES),
        (base(3) + 1, ADDRESSES | VALID),
        (base(7) + 1, ADDRESSES | VALID),
    ] {
        let has_type = msr & 1 == 0 || msr == DEFAULT_TYPE_MSR;
        for bit in (0..64).map(|bit| 1u64 << bit) {
            let is_allowed = allowed & bit != 0 || has_type && [1, 4].contains(&bit);
            let expected = if is_allowed { Ok(()) } else { Err(BadMsr::Value(bit)) };
            assert_eq!(mtrrs.write(msr, bit), expected, "{msr:#x} {bit:#x}");
        }
        if has_type {
            let accepted: Vec<u64> = (0..256).filter(|&value| mtrrs.write(msr, value).is_ok()).collect();
            assert_eq!(accepted, [0, 1, 4, 5, 6]);
        }
    }
    let before = mtrrs;
    assert_eq!(mtrrs.write(base(0), 2), Err(BadMsr::Value(2)));
    assert_eq!(mtrrs, before);
}

#[test]
fn x22_a_pat_register_holds_eight_types() {
    for (shift, value) in (0..64).step_by(8).flat_map(|shift| (0..256).map(move |value| (shift, value))) {
        let whole = Pat::RESET.value() & !(0xff << shift) | value << shift;
        let expected = [0, 1, 4, 5, 6, 7].contains(&value).then_some(whole);
        assert_eq!(Pat::new(whole).map(Pat::value), expected);
    }
    assert_eq!(Pat::new(Pat::ALL_WRITE_BACK.value()), Some(Pat::ALL_WRITE_BACK));
}

#[test]
fn x22_a_type_that_the_pat_register_lacks_is_uncacheable() {
    let index = |memory_type| Pat::RESET.index_of(memory_type);
    assert_eq!([WriteBack, WriteThrough, Uncacheable].map(index), [Some(0), Some(1), Some(3)]);
    assert_eq!([WriteCombining, WriteProtected].map(index), [Some(3), Some(3)]);
    assert_eq!(Pat::ALL_WRITE_BACK.index_of(WriteCombining), None, "never a weaker one");
}

#[test]
fn x22_ranges_give_types() {
    let mtrrs = with(&[(0x10_0000, bytes(0x10_0000), 0), (0x40_0000, bytes(0x20_0000), 1)]);
    let expected = [
        (0, 0x10_0000, WriteBack),
        (0x10_0000, 0x20_0000, Uncacheable),
        (0x20_0000, 0x40_0000, WriteBack),
        (0x40_0000, 0x60_0000, WriteCombining),
        (0x60_0000, 0x100_0000, WriteBack),
    ]
    .map(|(start, end, memory_type)| Run { start, end, memory_type });
    assert_eq!(runs(&mtrrs, 0, 0x100_0000), expected);
    let one = with(&[]).first_run(PAGE, 1 << 39);
    assert_eq!(one, Some(Run { start: PAGE, end: 1 << 39, memory_type: WriteBack }));
    assert_eq!(with(&[]).first_run(PAGE, PAGE), None);
}

#[test]
fn x22_while_disabled_all_is_uncacheable() {
    let mut mtrrs = with(&[(0, bytes(PAGE), 6)]);
    mtrrs.write(DEFAULT_TYPE_MSR, 6).unwrap();
    assert_eq!([0, PAGE].map(|at| mtrrs.type_at(at)), [Uncacheable; 2]);
    assert_eq!(Mtrrs::reset(BITS).type_at(0), Uncacheable);
}

#[test]
fn x22_overlapping_ranges_give_the_stricter_type() {
    let of = |types: &[u64]| {
        let ranges: Vec<_> = types.iter().map(|&memory_type| (0, bytes(PAGE), memory_type)).collect();
        with(&ranges).type_at(0)
    };
    assert_eq!(of(&[6, 0]), Uncacheable);
    assert_eq!(of(&[6, 4]), WriteThrough);
    assert_eq!(of(&[4, 6, 6]), WriteThrough);
    assert_eq!(of(&[1, 1]), WriteCombining);
    assert_eq!(of(&[1, 6]), Uncacheable, "undefined");
    assert_eq!(of(&[5, 4]), Uncacheable, "undefined");
}

/// What the manual says of one page, register by register.
fn by_definition(mtrrs: &Mtrrs, address: u64) -> MemoryType {
    let default = mtrrs.read(DEFAULT_TYPE_MSR).unwrap();
    let mut types: Vec<u64> = Vec::new();
    for pair in 0..VARIABLE as u32 {
        let (base, mask) = (mtrrs.read(base(pair)).unwrap(), mtrrs.read(base(pair) + 1).unwrap());
        if mask & VALID != 0 && (12..64).all(|bit| mask >> bit & 1 == 0 || (address ^ base) >> bit & 1 == 0) {
            types.push(base & 0xff);
        }
    }
    if types.is_empty() {
        types.push(default & 0xff);
    }
    types.sort_unstable();
    types.dedup();
    match (default & ENABLE, types.as_slice()) {
        (0, _) => Uncacheable,
        (_, [4, 6]) => WriteThrough,
        (_, &[one]) => MemoryType::from_mtrr(one as u8).unwrap(),
        _ => Uncacheable,
    }
}

/// Writes of a guest, of which some are refused. Few addresses, so that ranges overlap; some masks have holes.
fn writes() -> impl Strategy<Value = Vec<(u32, u64)>> {
    let bits = (0..32u32, any::<u64>()).prop_map(|(pages, bits)| bits & 0x3f << 12 & !((1 << pages) - 1));
    let memory_type = prop_oneof![9 => select(vec![0u64, 1, 4, 5, 6]), 1 => 0..9u64];
    let mask = (0..8u32, 0..8u64)
        .prop_map(|(pages, hole)| ADDRESSES & !((PAGE << pages) - 1) & !(hole << 14) | VALID);
    let pair = 0..VARIABLE as u32;
    let write = prop_oneof![
        4 => (pair.clone(), bits, memory_type.clone()).prop_map(|(pair, bits, kind)| (base(pair), bits | kind)),
        4 => (pair, mask).prop_map(|(pair, mask)| (base(pair) + 1, mask)),
        1 => memory_type.prop_map(|kind| (DEFAULT_TYPE_MSR, ENABLE | kind)),
        1 => (0x1f0..0x310u32, any::<u64>()),
    ];
    vec(write, 0..24)
}

#[test]
fn x22_types_are_those_of_the_manual_and_runs_leave_none_out() {
    let end = 64 * PAGE;
    run(1_000, writes(), |writes| {
        let mut mtrrs = Mtrrs::after_firmware(BITS);
        for (msr, value) in writes {
            let (before, outcome) = (mtrrs, mtrrs.write(msr, value));
            let is_right = if outcome.is_ok() { mtrrs.read(msr) == Ok(value) } else { mtrrs == before };
            prop_assert!(is_right, "{msr:#x} {value:#x}");
        }
        let mut at = 0;
        for (index, run) in runs(&mtrrs, 0, end).iter().enumerate() {
            prop_assert!(run.start == at && run.end > at && run.end <= end, "{index}: {run:?}");
            for page in (run.start..run.end).step_by(PAGE as usize) {
                prop_assert_eq!(by_definition(&mtrrs, page), run.memory_type);
                prop_assert_eq!(mtrrs.type_at(page + 8), run.memory_type);
            }
            at = run.end;
        }
        prop_assert_eq!(at, end);
        let joined = runs(&mtrrs, 0, end).windows(2).all(|pair| pair[0].memory_type != pair[1].memory_type);
        prop_assert!(joined, "neighbours of one type are one run");
        Ok(())
    });
}
