//! The DMAR table, written by firmware that may be wrong or worse.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use portcullis_hal::{DeviceId, PhysAddr, RequesterId, Segment};
use portcullis_iommu::ownership::Harm;
use portcullis_vtd::{
    Dmar, DmarError,
    dmar::{BusRange, ScopeKind},
};

const HEADER: usize = 48;
const NAMED: u64 = 0xfed9_0000;
const INCLUDE_ALL: u64 = 0xfed9_1000;
const OTHER_SEGMENT: u64 = 0xfed9_2000;

/// A table of structures, with header and checksum.
fn table(structures: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..4].copy_from_slice(b"DMAR");
    bytes[36] = 38;
    bytes[37] = 1;
    bytes.extend(structures.concat());
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[9] = 0;
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[9] = sum.wrapping_neg();
    bytes
}

fn structure(kind: u16, fixed: &[u8], scopes: &[Vec<u8>]) -> Vec<u8> {
    let body = [fixed.to_vec(), scopes.concat()].concat();
    let length = (body.len() + 4) as u16;
    [kind.to_le_bytes().to_vec(), length.to_le_bytes().to_vec(), body].concat()
}

fn drhd(flags: u8, segment: u16, base: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let fixed = [vec![flags, 0], segment.to_le_bytes().to_vec(), base.to_le_bytes().to_vec()];
    structure(0, &fixed.concat(), scopes)
}

fn rmrr(first: u64, last: u64, scopes: &[Vec<u8>]) -> Vec<u8> {
    let fixed = [vec![0; 4], first.to_le_bytes().to_vec(), last.to_le_bytes().to_vec()];
    structure(1, &fixed.concat(), scopes)
}

fn scope(kind: u8, bus: u8, path: &[(u8, u8)]) -> Vec<u8> {
    let steps: Vec<u8> = path.iter().flat_map(|&(device, function)| [device, function]).collect();
    [vec![kind, 6 + steps.len() as u8, 0, 0, 7, bus], steps].concat()
}

/// Bridge 00:1c.0 leads to buses 3 to 5; bridge 03:00.0 to bus 4.
fn bridges(bridge: DeviceId) -> Option<BusRange> {
    match (bridge.segment.0, bridge.requester.as_u16()) {
        (0, 0x00e0) => Some(BusRange { secondary: 3, subordinate: 5 }),
        (0, 0x0300) => Some(BusRange { secondary: 4, subordinate: 4 }),
        _ => None,
    }
}

/// A graphics unit, a unit for all else, one of another segment, and a region of a USB controller.
fn usual() -> Vec<u8> {
    table(&[
        drhd(0, 0, NAMED, &[scope(1, 0, &[(2, 0)]), scope(2, 0, &[(0x1c, 0)])]),
        drhd(1, 0, INCLUDE_ALL, &[scope(3, 0xf0, &[(0x1f, 0)])]),
        drhd(1, 1, OTHER_SEGMENT, &[]),
        rmrr(0x7000_0000, 0x7000_1fff, &[scope(1, 0, &[(0x14, 0)])]),
        structure(9, &[1, 2, 3, 4], &[]),
    ])
}

fn device(segment: u16, requester: u16) -> DeviceId {
    DeviceId { segment: Segment(segment), requester: RequesterId::new(requester) }
}

/// Asks a table everything that it can be asked.
fn look_at_all(dmar: &Dmar<'_>) -> usize {
    let asked = device(0, 0x0420);
    let mut seen = usize::from(dmar.host_address_bits()) + usize::from(dmar.interrupt_remapping());
    for unit in dmar.units() {
        seen += usize::from(unit.covers(asked, &bridges));
        seen += unit.scopes().filter_map(|scope| scope.resolve(unit.segment, &bridges)).count();
    }
    for region in dmar.reserved_regions() {
        seen += usize::from(region.covers(asked, &bridges)) + region.scopes().count();
    }
    seen + usize::from(dmar.unit_of(asked, &bridges).is_some())
}

#[test]
fn f01_signature_length_and_checksum_must_be_right() {
    let good = usual();
    assert_eq!(Dmar::parse(&good).unwrap().host_address_bits(), 39);
    assert!(Dmar::parse(&good).unwrap().interrupt_remapping());
    let mut bytes = good.clone();
    bytes[0] = b'X';
    assert_eq!(Dmar::parse(&seal(bytes)).unwrap_err(), DmarError::BadSignature { found: *b"XMAR" });
    let mut bytes = good.clone();
    bytes[20] = bytes[20].wrapping_add(3);
    assert_eq!(Dmar::parse(&bytes).unwrap_err(), DmarError::BadChecksum { sum: 3 });
    let mut bytes = good.clone();
    bytes[4..8].copy_from_slice(&47_u32.to_le_bytes());
    assert_eq!(Dmar::parse(&bytes).unwrap_err(), DmarError::BadLength { offset: 0, length: 47 });
    let mut bytes = good.clone();
    bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let needs = u32::MAX as usize;
    assert_eq!(Dmar::parse(&bytes).unwrap_err(), DmarError::Truncated { offset: 0, needs });
    let longer = [good, vec![0xff; 100]].concat();
    assert_eq!(Dmar::parse(&longer).unwrap().units().count(), 3, "bytes after the table are not its own");
}

#[test]
fn f02_a_table_that_is_cut_short_is_refused() {
    let good = usual();
    for length in 0..good.len() {
        let needs = if length < HEADER { HEADER } else { good.len() };
        let truncated = DmarError::Truncated { offset: 0, needs };
        assert_eq!(Dmar::parse(&good[..length]).unwrap_err(), truncated, "{length} bytes");
    }
    let mut inside = 0;
    for length in HEADER + 1..good.len() {
        let mut bytes = good[..length].to_vec();
        bytes[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        // A cut between two structures leaves a shorter, valid table.
        match Dmar::parse(&seal(bytes)) {
            Ok(dmar) => assert!(dmar.units().count() + dmar.reserved_regions().count() <= 4),
            Err(DmarError::Truncated { offset, .. }) => {
                assert!((HEADER..length).contains(&offset));
                inside += 1;
            }
            Err(other) => panic!("{length} bytes: {other:?}"),
        }
    }
    assert_eq!(inside, good.len() - HEADER - 1 - 4, "all cuts but the four between structures");
}

#[test]
fn f02_any_changed_byte_gives_an_error_or_a_table() {
    let good = usual();
    let (mut refused, mut accepted) = (0, 0);
    for place in 0..good.len() {
        for value in 0..=u8::MAX {
            let mut bytes = good.clone();
            bytes[place] = value;
            let changed = value != good[place];
            assert_eq!(Dmar::parse(&bytes).is_err(), changed, "the checksum tells");
            match Dmar::parse(&seal(bytes)) {
                Ok(dmar) => {
                    accepted += 1;
                    assert!(look_at_all(&dmar) < 300);
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > 5000 && accepted > 5000, "{refused} refused, {accepted} accepted");
}

#[test]
fn f03_lengths_that_lie_are_refused_with_their_offset() {
    let good = usual();
    let with = |place: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[place] = value;
        Dmar::parse(&seal(bytes)).unwrap_err()
    };
    let (unit, scope) = (HEADER, HEADER + 16);
    for length in 0..4 {
        let bad = DmarError::BadLength { offset: unit, length: length.into() };
        assert_eq!(with(unit + 2, length), bad, "no progress is possible");
    }
    assert_eq!(with(unit + 2, 15), DmarError::BadLength { offset: unit, length: 15 });
    let beyond = DmarError::Truncated { offset: unit, needs: 0xff20 };
    assert_eq!(with(unit + 3, 0xff), beyond);
    for length in [0, 1, 5, 6, 7] {
        let bad = DmarError::BadLength { offset: scope, length: length.into() };
        assert_eq!(with(scope + 1, length), bad, "a scope without one whole step");
    }
    assert_eq!(with(scope + 1, 17), DmarError::Truncated { offset: scope, needs: 17 });
}

#[test]
fn f03_impossible_registers_regions_and_paths_are_refused() {
    let refused = |structure: Vec<u8>| Dmar::parse(&table(&[structure])).unwrap_err();
    let offset = HEADER;
    for base in [0, 0xfed9_0800] {
        assert_eq!(refused(drhd(1, 0, base, &[])), DmarError::BadRegisterBase { offset });
    }
    for (first, last) in [(0x1000, 0xfff), (0x2000, 0x1fff), (0x800, 0x17ff), (0x1000, 0x1ffe), (0, u64::MAX)]
    {
        assert_eq!(refused(rmrr(first, last, &[])), DmarError::BadRegion { offset }, "{first:#x}..{last:#x}");
    }
    for step in [(32, 0), (0, 8)] {
        let bad = DmarError::BadPath { offset: HEADER + 16 };
        assert_eq!(refused(drhd(0, 0, NAMED, &[scope(1, 0, &[step])])), bad);
    }
}

#[test]
fn f04_the_unit_that_names_a_device_goes_before_the_one_that_includes_all() {
    let bytes = usual();
    let dmar = Dmar::parse(&bytes).unwrap();
    let base = |segment, requester| {
        dmar.unit_of(device(segment, requester), &bridges).map(|unit| unit.base.as_u64())
    };
    assert_eq!(base(0, 0x0010), Some(NAMED), "named itself");
    assert_eq!(base(0, 0x00e0), Some(NAMED), "a bridge that is named");
    assert_eq!(base(0, 0x0500), Some(NAMED), "behind a named bridge");
    assert_eq!(base(0, 0x0600), Some(INCLUDE_ALL), "on a bus that is not behind it");
    assert_eq!(base(0, 0x0018), Some(INCLUDE_ALL));
    assert_eq!(base(1, 0x0010), Some(OTHER_SEGMENT));
    assert_eq!(base(2, 0x0010), None, "a segment without a unit");
    let kinds: Vec<_> = dmar.units().flat_map(|unit| unit.scopes()).map(|scope| scope.kind).collect();
    assert_eq!(kinds, [ScopeKind::Endpoint, ScopeKind::Bridge, ScopeKind::IoApic]);
}

#[test]
fn f04_paths_lead_through_bridges_and_regions_are_found_by_device() {
    let path = [(0x1c, 0), (0, 0), (5, 1)];
    let bytes = table(&[
        drhd(0, 0, NAMED, &[scope(1, 0, &path), scope(1, 0, &[(9, 0), (0, 0)])]),
        rmrr(0x7000_0000, 0x7000_1fff, &[scope(1, 0, &[(0x14, 0)])]),
    ]);
    let dmar = Dmar::parse(&bytes).unwrap();
    let unit = dmar.units().next().unwrap();
    let ends: Vec<_> = unit.scopes().map(|scope| scope.resolve(Segment(0), &bridges)).collect();
    assert_eq!(ends, [Some(RequesterId::new(0x0429)), None], "00:09.0 is no bridge");
    assert!(unit.names(device(0, 0x0429), &bridges));
    let region = dmar.reserved_regions().next().unwrap();
    assert_eq!((region.range.start(), region.range.bytes()), (PhysAddr::new(0x7000_0000), 0x2000));
    assert!(region.covers(device(0, 0x00a0), &bridges));
    assert!(!region.covers(device(0, 0x00a1), &bridges));
    assert!(!region.covers(device(1, 0x00a0), &bridges));
    let reserved =
        |asked| dmar.reserved_for(asked, &bridges).map(|found| (found.device, found.range, found.harm));
    let asked = device(0, 0x00a0);
    assert!(reserved(asked).eq([(asked, region.range, Harm::Needed)]));
    assert_eq!(reserved(device(0, 0x00a1)).count(), 0);
}
