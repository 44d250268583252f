//! The model does what it is for: it caches, freezes, checks bounds, loses and delays.

use portcullis_hal::{PhysAddr, RegisterIo};

use super::{FakePhb, Hang, PhbEvent, PhbFault, PhbKind};
use crate::memory::FakeMemory;

const RID: u16 = 0x0100;
const PE: u16 = 3;
const KILL_PE: u64 = 1 << 62;
const PAGE: u64 = 0x1000;

/// A bridge whose PE 3 has a one-level table of 4 KiB pages at 0x1000; memory starts at 0.
fn bridge(kind: PhbKind) -> (FakePhb, FakeMemory) {
    let memory = FakeMemory::coherent(PhysAddr::new(0), 64);
    let phb = FakePhb::new(kind, &memory);
    assert_eq!(phb.opal().set_pe(u64::from(PE), u64::from(RID)), 0);
    assert_eq!(phb.opal().map_pe_dma_window(u64::from(PE), PE * 2, 1, 0x1000, 0x1000, PAGE), 0);
    (phb, memory)
}

fn set_tce(memory: &FakeMemory, index: u64, tce: u64) {
    assert!(memory.write(0x1000 + index * 8, &tce.to_be_bytes()));
}

fn read(phb: &FakePhb, address: u64) -> Result<(), PhbFault> {
    let fault = phb.dma_read(RID, address, &mut [0; 4]);
    assert_eq!(phb.opal().freeze_clear(PE), 0);
    fault
}

/// Kills and waits as the manual has it.
fn kill(phb: &FakePhb) {
    phb.write64(0x210, KILL_PE | u64::from(PE));
    while phb.read64(0x210) >> 61 != 0 || phb.read64(0x888) != 0 {}
}

#[test]
fn stale_entries_are_used_until_they_are_killed() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 2, 0x8000 | 3);
    phb.dma_write(RID, 2 * PAGE, &[7]).expect("mapped");
    set_tce(&memory, 2, 0);
    phb.dma_write(RID, 2 * PAGE + 1, &[8]).expect("still cached");
    kill(&phb);
    assert_eq!(phb.dma_write(RID, 2 * PAGE, &[9]), Err(PhbFault::PageFault));
    assert_eq!(memory.read64(0x8000), Some(0x0807));
}

#[test]
fn an_empty_neighbour_is_cached_beside_a_valid_entry() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 2, 0x8000 | 3);
    assert_eq!(read(&phb, 2 * PAGE), Ok(()));
    set_tce(&memory, 3, 0x9000 | 3);
    assert_eq!(read(&phb, 3 * PAGE), Err(PhbFault::PageFault));
    kill(&phb);
    assert_eq!(read(&phb, 3 * PAGE), Ok(()));
}

#[test]
fn a_kill_acts_only_when_it_is_finished() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 0, 0x8000 | 3);
    assert_eq!(read(&phb, 0), Ok(()));
    phb.write64(0x210, KILL_PE | u64::from(PE));
    assert_eq!(phb.cached_lines(PE), 1);
    kill(&phb);
    assert_eq!(phb.cached_lines(PE), 0);
}

#[test]
fn a_second_kill_in_a_busy_register_is_lost() {
    let (phb, _) = bridge(PhbKind::Phb4);
    let _ = phb.take_events();
    phb.write64(0x210, KILL_PE | 1);
    phb.write64(0x210, KILL_PE | 2);
    for _ in 0..20 {
        phb.read64(0x888);
    }
    let events = phb.take_events();
    assert!(matches!(events[..], [PhbEvent::Violation { .. }, PhbEvent::PeKilled { pe: 1 }]));
}

#[test]
fn kills_of_single_pages_are_dropped() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 0, 0x8000 | 3);
    assert_eq!(read(&phb, 0), Ok(()));
    phb.write64(0x210, 1 << 61 | u64::from(PE));
    for _ in 0..20 {
        phb.read64(0x888);
    }
    assert_eq!((phb.read64(0x888), phb.cached_lines(PE)), (0, 1));
}

#[test]
fn the_first_error_freezes_the_pe_and_is_recorded() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 0, 0x8000 | 1);
    assert_eq!(phb.dma_write(RID, 0x10, &[1]), Err(PhbFault::AccessFault));
    assert_eq!(phb.dma_read(RID, 0, &mut [0]), Err(PhbFault::Frozen));
    let words = phb.opal().freeze_status(PE).expect("frozen");
    assert_eq!(words[0], 1 << 63 | 1 << 44 | u64::from(RID) << 16);
    assert_eq!(words[1], 0x10);
    assert_eq!(phb.opal().freeze_clear(PE), 0);
    assert_eq!(phb.dma_read(RID, 0, &mut [0]), Ok(()));
}

#[test]
fn windows_end_where_their_tables_end() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 0, 0x8000 | 3);
    assert_eq!(read(&phb, 512 * PAGE), Err(PhbFault::BeyondWindow));
    assert_eq!(read(&phb, 1 << 59), Err(PhbFault::InvalidTve));
    assert_eq!(read(&phb, 1 << 60), Err(PhbFault::NotDma));
}

#[test]
fn reserved_bits_and_wide_addresses_are_refused() {
    for (kind, bad) in
        [(PhbKind::Phb4, 0x8004 | 3), (PhbKind::Phb4, 1 << 56 | 3), (PhbKind::Phb3, 1 << 50 | 3)]
    {
        let (phb, memory) = bridge(kind);
        set_tce(&memory, 0, bad);
        assert_eq!(read(&phb, 0), Err(PhbFault::BadTce), "{bad:#x}");
    }
}

#[test]
fn a_fenced_bridge_reads_as_all_ones_and_stops_dma() {
    let (phb, memory) = bridge(PhbKind::Phb4);
    set_tce(&memory, 0, 0x8000 | 3);
    phb.fence();
    assert_eq!(phb.read64(0x888), u64::MAX);
    assert_eq!(phb.dma_read(RID, 0, &mut [0]), Err(PhbFault::Fenced));
}

#[test]
fn a_hung_part_stays_hung() {
    for (hang, offset, bit) in [(Hang::Slot, 0x210, 62), (Hang::Kill, 0x888, 56)] {
        let (phb, _) = bridge(PhbKind::Phb4);
        phb.set_hang(Some(hang));
        phb.write64(0x210, KILL_PE | 1);
        for _ in 0..100 {
            assert_eq!(phb.read64(offset) >> bit & 1, 1, "{hang:?}");
        }
    }
}

#[test]
fn phb5_keeps_a_stale_completion_until_one_is_written_to_it() {
    let (phb, _) = bridge(PhbKind::Phb5);
    let complete = |phb: &FakePhb| phb.read64(0x200) >> 62 & 1 == 1;
    phb.write64(0x200, 1 << 63);
    while !complete(&phb) {}
    phb.write64(0x200, 1 << 63);
    assert!(complete(&phb));
    phb.write64(0x200, 1 << 63 | 1 << 62);
    assert!(!complete(&phb));
}
