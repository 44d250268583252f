//! Kills: what they are for, how they are sent, and bridges that do not do them.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::thread;

use machine::{GIB, KINDS, Machine, PAGE, POOL_PAGES, QuiesceAndAttach, hardware, spec};
use portcullis_fake::{
    memory::{FakeCache, FakeClock},
    phb::{Hang, PhbEvent, PhbFault, PhbKind, Timing},
};
use portcullis_hal::TimedOut;
use portcullis_iommu::Error;
use portcullis_ppc_tce::{PeNumber, kill::KillRegister};

const RID: u16 = 0x0100;
const DATA: u64 = 0x5000;
/// Sixteen tables.
const BIG: u64 = 32 << 20;

/// A part that hangs, and what the driver says of it.
const HANGS: [(Hang, TimedOut); 3] = [
    (Hang::Slot, TimedOut { register: 0x888, bits: 1 << 56 }),
    (Hang::Kill, TimedOut { register: 0x888, bits: 1 << 56 }),
    (Hang::Sync, TimedOut { register: 0x200, bits: 1 << 62 }),
];

#[test]
fn e27_a_mapping_works_although_the_empty_entry_was_cached() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (context, _claim) = machine.attached(RID);
        machine.store(DATA, 7);
        machine.map(context, 0, DATA, PAGE).expect("a map");
        assert_eq!(machine.read(RID, PAGE), Err(PhbFault::PageFault), "caches the line of both");
        machine.map(context, PAGE, DATA, PAGE).expect("a neighbour");
        assert_eq!(machine.read(RID, PAGE), Ok(7), "{kind:?}");
        assert_eq!(machine.read(RID, 512 * PAGE), Err(PhbFault::PageFault), "caches the missing table");
        machine.map(context, 512 * PAGE, DATA, PAGE).expect("in a new table");
        assert_eq!(machine.read(RID, 512 * PAGE), Ok(7), "{kind:?}");
        machine.assert_obedient();
    }
}

#[test]
fn e27_a_mapping_made_while_a_device_joins_works_in_the_end() {
    let machine = Machine::patient(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let mut claim = machine.claim(&[RID]);
    for round in 0..300 {
        thread::scope(|scope| {
            let (machine, claim) = (&machine, &mut claim);
            scope.spawn(move || {
                claim.quiesce_and_attach(context).expect("an attach");
                let _ = machine.read(RID, 0);
            });
            scope.spawn(move || machine.map(context, 0, DATA, PAGE).expect("a map"));
        });
        assert!(machine.read(RID, 0).is_ok(), "round {round}");
        machine.unmap(context, 0, PAGE).expect("an unmap");
        claim.detach().expect("a detach");
    }
}

#[test]
fn e28_an_unmapped_page_cannot_be_reached_although_it_was_cached() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (context, _claim) = machine.attached(RID);
        machine.map(context, 0, DATA, 4 * PAGE).expect("a map");
        machine.write(RID, 2 * PAGE, 1).expect("mapped");
        assert_eq!(machine.unmap(context, 2 * PAGE, PAGE), Ok(PAGE));
        assert_eq!(machine.write(RID, 2 * PAGE, 2), Err(PhbFault::PageFault), "{kind:?}");
        assert_eq!(machine.load(DATA + 2 * PAGE), 1);
        assert!(machine.read(RID, 3 * PAGE).is_ok());
    }
}

#[test]
fn e28_one_kill_a_pe_serves_a_call_and_none_is_sent_without_a_device() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let kills = |act: &dyn Fn()| {
        let before = machine.phb.kills_written();
        act();
        machine.phb.kills_written() - before
    };
    let map = || machine.map(context, 0, 0, BIG).expect("a map");
    let unmap = || assert_eq!(machine.unmap(context, 0, BIG), Ok(BIG));
    assert_eq!([kills(&map), kills(&unmap)], [0, 0]);
    let mut claim = machine.claim(&[RID, RID + 1]);
    claim.quiesce_and_attach(context).expect("an attach");
    assert_eq!([kills(&map), kills(&unmap)], [2, 2]);
    let nothing = || assert_eq!(machine.unmap(context, 0, BIG), Ok(0));
    assert_eq!(kills(&nothing), 0, "nothing was mapped, so nothing is owed");
    claim.detach().expect("a detach");
    assert_eq!([kills(&map), kills(&unmap)], [0, 0]);
}

#[test]
fn e28_however_many_contexts_came_before_a_context_s_own_devices_are_killed() {
    let machine = Machine::new(PhbKind::Phb4);
    let (kept, mut first) = machine.attached(RID + 1);
    machine.map(kept, 0, DATA, PAGE).expect("a map");
    let mut claim = machine.claim(&[RID]);
    for number in 2..200 {
        let context = machine.context(&spec(2, GIB));
        claim.quiesce_and_attach(context).expect("an attach");
        machine.map(context, 0, DATA, PAGE).expect("a map");
        assert_eq!([machine.read(RID, 0).is_ok(), machine.read(RID + 1, 0).is_ok()], [true, true]);
        let _ = machine.events();
        machine.unmap(context, 0, PAGE).expect("an unmap");
        assert_eq!(machine.events(), [PhbEvent::PeKilled { pe: machine.pe(1) }], "context {number}");
        claim.detach().expect("a detach");
        machine.iommu.destroy_context(context).expect("unused");
    }
    first.detach().expect("a detach");
}

#[test]
fn e29_kills_follow_the_manual_at_any_pace() {
    for kind in KINDS {
        for (slot, kill, sync) in [(0, 1, 1), (0, 20, 1), (20, 1, 1), (1, 1, 30), (9, 9, 9), (30, 30, 30)] {
            let machine = Machine::new(kind);
            machine.phb.set_timing(Timing { slot, kill, sync });
            let context = machine.context(&spec(2, GIB));
            let mut claim = machine.claim(&[RID, RID + 1, RID + 2]);
            claim.quiesce_and_attach(context).expect("an attach");
            for round in 0..5 {
                machine.map(context, 0, DATA, PAGE).expect("a map");
                let reached = [0, 1, 2].map(|number| machine.read(RID + number, 0).is_ok());
                assert_eq!(reached, [true; 3], "{kind:?} round {round}");
                machine.unmap(context, 0, PAGE).expect("an unmap");
                let reached = [0, 1, 2].map(|number| machine.read(RID + number, 0).is_ok());
                assert_eq!(reached, [false; 3], "{kind:?} round {round}");
            }
            machine.assert_obedient();
        }
    }
}

#[test]
fn e29_cpus_that_kill_at_once_do_not_write_over_each_other() {
    for kind in KINDS {
        let (memory, phb) = hardware(kind, POOL_PAGES);
        let config = machine::config(kind);
        let limit = std::time::Duration::from_secs(3600);
        let register = KillRegister::new(phb.clone(), config.generation, limit);
        let (clock, cache) = (FakeClock::default(), FakeCache::new(&memory));
        thread::scope(|scope| {
            for cpu in 0..4 {
                let (register, clock, cache) = (&register, &clock, &cache);
                scope.spawn(move || {
                    for round in 0..100 {
                        let pes = [PeNumber(cpu), PeNumber(cpu + 4 + round % 8)];
                        register.kill_pes(pes.into_iter(), clock, cache).expect("a kill");
                    }
                });
            }
        });
        let events = phb.take_events();
        assert!(!events.iter().any(|event| matches!(event, PhbEvent::Violation { .. })), "{kind:?}");
        assert_eq!(events.len(), 800, "{kind:?}: each kill was done");
    }
}

#[test]
fn e30_a_stale_sync_completion_is_not_taken_for_a_new_one() {
    let machine = Machine::new(PhbKind::Phb5);
    let (context, _claim) = machine.attached(RID);
    machine.map(context, 0, DATA, PAGE).expect("a map: its sync stays complete");
    machine.phb.set_hang(Some(Hang::Sync));
    let hung = Error::Timeout(TimedOut { register: 0x200, bits: 1 << 62 });
    assert_eq!(machine.unmap(context, 0, PAGE), Err(hung));
}

#[test]
fn e31_an_unmap_whose_kill_hangs_ends_and_quarantines_the_bridge() {
    for kind in [PhbKind::Phb4, PhbKind::Phb5] {
        for (hang, missing) in HANGS {
            let machine = Machine::new(kind);
            let (context, mut claim) = machine.attached(RID);
            let other = machine.context(&spec(2, GIB));
            machine.map(context, 0, DATA, PAGE).expect("a map");
            machine.read(RID, 0).expect("mapped");
            let free = machine.free_pages();
            machine.phb.set_hang(Some(hang));
            assert_eq!(machine.unmap(context, 0, PAGE), Err(Error::Timeout(missing)), "{hang:?}");
            machine.phb.set_hang(None);
            assert!(machine.iommu.driver().is_quarantined());
            assert_eq!(machine.map(context, PAGE, DATA, PAGE), Err(Error::Quarantined));
            assert_eq!(machine.map(other, PAGE, DATA, PAGE), Err(Error::Quarantined));
            assert_eq!(machine.claim(&[RID + 1]).quiesce_and_attach(other), Err(Error::Quarantined));
            assert!(claim.detach().is_err());
            assert_eq!(machine.iommu.destroy_context(context), Err(Error::Quarantined));
            assert!(machine.iommu.destroy_context(other).is_err());
            assert_eq!(machine.free_pages(), free, "table pages that may be walked went back");
        }
    }
}

#[test]
fn e31_a_map_whose_kill_hangs_ends_with_the_register() {
    for (hang, missing) in HANGS {
        let machine = Machine::new(PhbKind::Phb4);
        let (context, _claim) = machine.attached(RID);
        machine.phb.set_hang(Some(hang));
        assert_eq!(machine.map(context, 0, DATA, PAGE), Err(Error::Timeout(missing)), "{hang:?}");
        assert!(machine.iommu.driver().is_quarantined());
    }
}

#[test]
fn e31_an_attach_or_detach_whose_kill_hangs_quarantines() {
    for (hang, missing) in HANGS {
        let machine = Machine::new(PhbKind::Phb4);
        let (_, mut claim) = machine.attached(RID);
        machine.phb.set_hang(Some(hang));
        assert_eq!(claim.detach(), Err(Error::Timeout(missing)), "{hang:?}");
        assert_eq!(machine.read(RID, 0), Err(PhbFault::InvalidTve), "the windows are closed all the same");
        assert!(machine.iommu.driver().is_quarantined());
    }
}

#[test]
fn e31_a_second_pe_does_not_write_over_a_kill_that_is_stuck_in_the_register() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let mut claim = machine.claim(&[RID, RID + 1]);
    claim.quiesce_and_attach(context).expect("an attach");
    let _ = machine.events();
    let before = machine.phb.kills_written();
    machine.phb.set_hang(Some(Hang::Slot));
    let stuck = TimedOut { register: 0x210, bits: 7 << 61 };
    assert_eq!(machine.map(context, 0, DATA, PAGE), Err(Error::Timeout(stuck)));
    assert_eq!(machine.phb.kills_written() - before, 1);
    machine.assert_obedient();
}

#[test]
fn e32_a_fenced_bridge_is_told_from_a_slow_one() {
    for (kind, source) in [(PhbKind::Phb3, 0x210), (PhbKind::Phb4, 0x210), (PhbKind::Phb5, 0x210)] {
        let machine = Machine::new(kind);
        let (context, mut claim) = machine.attached(RID);
        machine.map(context, 0, DATA, PAGE).expect("a map");
        machine.phb.fence();
        assert_eq!(machine.unmap(context, 0, PAGE), Err(Error::Hardware { source, code: -1 }), "{kind:?}");
        assert!(machine.iommu.driver().is_quarantined());
        assert!(claim.detach().is_err());
        assert_eq!(machine.iommu.destroy_context(context), Err(Error::Quarantined));
    }
}

#[test]
fn e33_on_phb3_a_kill_is_read_back() {
    // The model does a posted kill at the next read of the register, and at nothing else.
    let machine = Machine::new(PhbKind::Phb3);
    let (context, _claim) = machine.attached(RID);
    machine.map(context, 0, DATA, PAGE).expect("a map");
    machine.read(RID, 0).expect("mapped");
    let _ = machine.events();
    machine.unmap(context, 0, PAGE).expect("an unmap");
    assert_eq!(machine.events(), [PhbEvent::PeKilled { pe: machine.pe(0) }]);
}

#[test]
fn e36_a_context_that_a_pe_still_walks_keeps_its_pages() {
    let machine = Machine::new(PhbKind::Phb4);
    let (context, mut claim) = machine.attached(RID);
    let free = machine.free_pages();
    assert_eq!(machine.iommu.destroy_context(context), Err(Error::InUse { users: 1 }));
    assert_eq!(machine.free_pages(), free);
    claim.detach().expect("a detach");
    machine.iommu.destroy_context(context).expect("nobody walks it");
    assert_eq!(machine.free_pages(), POOL_PAGES - 1);
}
