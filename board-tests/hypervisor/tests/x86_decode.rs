#![allow(missing_docs, reason = "tests document themselves by their names")]

mod reference;

use portcullis_hypervisor::x86::caching::decode::{
    CacheInstruction::{self, Invd, Wbinvd, Wbnoinvd},
    Decoded, LONGEST, NotDecoded, Width, decode,
};
use proptest::{collection::vec, prelude::*, sample::select};
use reference::run;

const LEGACY: &[u8] = &[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf2, 0xf3];
const LOCK: u8 = 0xf0;

fn found(bytes: &[u8]) -> Option<(CacheInstruction, usize)> {
    decode(bytes, Width::Bits64).ok().map(|Decoded { kind, length }| (kind, length))
}

#[test]
fn x15_three_instructions_are_told_apart() {
    assert_eq!(found(&[0x0f, 0x09]), Some((Wbinvd, 2)));
    assert_eq!(found(&[0xf3, 0x0f, 0x09]), Some((Wbnoinvd, 3)));
    assert_eq!(found(&[0x0f, 0x08]), Some((Invd, 2)));
    assert_eq!(found(&[0xf3, 0x0f, 0x08, 0x90]), Some((Invd, 3)));
    assert_eq!(found(&[0xf3, 0x66, 0x48, 0x0f, 0x09]), Some((Wbnoinvd, 5)));
    assert_eq!(found(&[0xf3, 0xf2, 0x0f, 0x09]), Some((Wbinvd, 4)), "it does what both do");
}

#[test]
fn x15_what_is_none_is_refused() {
    let refused = |bytes: &[u8]| decode(bytes, Width::Bits64).unwrap_err();
    assert_eq!(refused(&[]), NotDecoded::Truncated);
    assert_eq!(refused(&[0x66, 0x0f]), NotDecoded::Truncated);
    assert_eq!(refused(&[0x66; 14]), NotDecoded::Truncated);
    assert_eq!(refused(&[0x66; 15]), NotDecoded::TooLong);
    assert_eq!(refused(&[&[0x66; 14][..], &[0x0f, 0x09]].concat()), NotDecoded::TooLong);
    assert_eq!(refused(&[LOCK, 0x0f, 0x09]), NotDecoded::Other { at: 0 });
    assert_eq!(refused(&[0x66, 0x0f, 0x0b]), NotDecoded::Other { at: 1 });
    assert_eq!(found(&[&[0x66; 13][..], &[0x0f, 0x09]].concat()), Some((Wbinvd, 15)));
}

#[test]
fn x15_rex_is_a_prefix_in_64_bit_mode_only() {
    for rex in 0x40..=0x4f {
        assert_eq!(found(&[rex, 0x0f, 0x09]), Some((Wbinvd, 3)));
        assert_eq!(decode(&[rex, 0x0f, 0x09], Width::Bits16Or32), Err(NotDecoded::Other { at: 0 }));
    }
}

/// By definition: the shortest beginning of at most 15 bytes that is prefixes and then an opcode.
fn by_definition(bytes: &[u8], width: Width) -> Option<(CacheInstruction, usize)> {
    let is_prefix =
        |byte: &u8| LEGACY.contains(byte) || (0x40..0x50).contains(byte) && width == Width::Bits64;
    (2..=bytes.len().min(LONGEST)).find_map(|length| {
        let (prefixes, opcode) = bytes[..length].split_at(length - 2);
        if !prefixes.iter().all(is_prefix) {
            return None;
        }
        let repeats: Vec<u8> = prefixes.iter().copied().filter(|byte| byte & 0xfe == 0xf2).collect();
        let is_repeated = !repeats.is_empty() && repeats.iter().all(|&byte| byte == 0xf3);
        match opcode {
            [0x0f, 0x08] => Some((Invd, length)),
            [0x0f, 0x09] if is_repeated => Some((Wbnoinvd, length)),
            [0x0f, 0x09] => Some((Wbinvd, length)),
            _ => None,
        }
    })
}

/// Mostly what is nearly a cache instruction.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let likely =
        select([LEGACY, &[0x0f, 0x0f, 0x0f, 0x08, 0x08, 0x09, 0x09, 0x09, 0x48, LOCK, 0x40]].concat());
    vec(prop_oneof![8 => likely, 1 => any::<u8>()], 0..24)
}

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    (vec(select(LEGACY), 0..16), select(vec![0x08, 0x09, 0x09]), vec(any::<u8>(), 0..4))
        .prop_map(|(prefixes, opcode, behind)| [&prefixes[..], &[0x0f, opcode], &behind].concat())
}

#[test]
fn x15_decodes_as_defined() {
    let inputs = (prop_oneof![bytes(), instruction()], select(vec![Width::Bits64, Width::Bits16Or32]));
    run(5_000, inputs, |(bytes, width)| {
        let decoded = decode(&bytes, width);
        let found = decoded.ok().map(|Decoded { kind, length }| (kind, length));
        prop_assert_eq!(found, by_definition(&bytes, width));
        let is_short = bytes.len() < LONGEST;
        prop_assert!(is_short || decoded != Err(NotDecoded::Truncated), "more bytes would change nothing");
        Ok(())
    });
}
