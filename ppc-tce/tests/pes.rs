//! Bring-up, PEs, and switches between contexts, with firmware that fails at every call.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{
    DEVICES, GIB, KINDS, Machine, PAGE, POOL_PAGES, QuiesceAndAttach, VM, bring_up, config, device, hardware,
    spec,
};
use portcullis_fake::phb::{Hang, PhbEvent, PhbFault, PhbKind};
use portcullis_hal::{DeviceId, RequesterId, Segment};
use portcullis_iommu::Error;
use portcullis_ppc_tce::{Config, PeNumber};

const RID: u16 = 0x0100;
const DATA: u64 = 0x5000;
/// Bypass of window 0: no levels, no table, bounds all of memory.
const SOME_TVE: u64 = 0x0001_0001;
/// What firmware's hardware error becomes.
const REFUSED: i64 = -6;
const LINE_BUFFER_OFF: u64 = 1 << (63 - 21);

#[test]
fn e20_bring_up_closes_what_an_earlier_system_left() {
    for kind in KINDS {
        let (memory, phb) = hardware(kind, POOL_PAGES);
        let opal = phb.opal();
        assert_eq!(opal.set_pe(5, u64::from(RID)), 0);
        assert_eq!(opal.map_pe_dma_window(5, 10, 1, 0x1000, 0x1000, PAGE), 0);
        assert!(memory.write(0x1000, &(DATA | 3).to_be_bytes()));
        phb.dma_read(RID, 0, &mut [0]).expect("the old system's mapping");
        opal.set_tve(2 * (kind.pes() - 1) + 1, SOME_TVE);
        let _ = phb.take_events();
        bring_up(&memory, &phb, config(kind), POOL_PAGES).expect("the driver comes up");
        assert_eq!(phb.cached_lines(5), 0);
        assert_eq!(phb.dma_read(RID, 0, &mut [0]), Err(PhbFault::InvalidTve));
        let events = phb.take_events();
        let closed = |pe, window| events.contains(&PhbEvent::WindowUnset { pe, window });
        assert!((0..kind.pes()).all(|pe| closed(pe, 0) && closed(pe, 1)), "{kind:?}");
        assert_eq!(events.last(), Some(&PhbEvent::AllKilled), "the kill comes after the last window");
    }
}

#[test]
fn e21_bring_up_refuses_pe_counts_that_the_bridge_cannot_have() {
    for kind in KINDS {
        let (memory, phb) = hardware(kind, POOL_PAGES);
        let good = config(kind);
        for pe_count in [0, 1, kind.pes() + 1, u16::MAX] {
            let refused = bring_up(&memory, &phb, Config { pe_count, ..good }, POOL_PAGES).err();
            assert_eq!(refused, Some(Error::Unsupported { value: u64::from(pe_count) }));
        }
        let reserved = Config { reserved_pe: PeNumber(kind.pes()), ..good };
        assert!(bring_up(&memory, &phb, reserved, POOL_PAGES).is_err());
        assert!(phb.take_events().is_empty(), "a refused bring-up touched the bridge");
    }
}

#[test]
fn e21_bring_up_refuses_a_line_buffer_that_is_on_and_other_numbers_of_tves() {
    for kind in KINDS {
        for bad in [0, LINE_BUFFER_OFF | 1 << (63 - 19), LINE_BUFFER_OFF | 1 << (63 - 17)] {
            let (memory, phb) = hardware(kind, POOL_PAGES);
            phb.set_control(bad);
            let refused = bring_up(&memory, &phb, config(kind), POOL_PAGES).err();
            let wrong = Some(Error::Hardware { source: 0x810, code: bad as i64 });
            assert_eq!(refused, if kind == PhbKind::Phb3 { None } else { wrong }, "{kind:?} {bad:#x}");
        }
    }
}

#[test]
fn e21_bring_up_of_a_fenced_or_hanging_bridge_ends_with_the_register() {
    for kind in KINDS {
        let (memory, phb) = hardware(kind, POOL_PAGES);
        phb.fence();
        let source = if kind == PhbKind::Phb3 { 0x210 } else { 0x810 };
        let fenced = Error::Hardware { source, code: -1 };
        assert_eq!(bring_up(&memory, &phb, config(kind), POOL_PAGES).err(), Some(fenced));
    }
    let (memory, phb) = hardware(PhbKind::Phb4, POOL_PAGES);
    phb.set_hang(Some(Hang::Kill));
    let Some(Error::Timeout(missing)) = bring_up(&memory, &phb, config(PhbKind::Phb4), POOL_PAGES).err()
    else {
        panic!("a bring-up whose kill hangs went on");
    };
    assert_eq!((missing.register, missing.bits), (0x888, 1 << 56));
}

#[test]
fn e22_each_device_gets_a_pe_of_its_own_for_good() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let context = machine.context(&spec(2, GIB));
        let mut claims: Vec<_> = (0..DEVICES as u16).map(|number| machine.claim(&[RID + number])).collect();
        for claim in &mut claims {
            claim.quiesce_and_attach(context).expect("an attach");
            claim.detach().expect("a detach");
            claim.quiesce_and_attach(context).expect("an attach again");
        }
        let pes: Vec<_> = machine
            .events()
            .into_iter()
            .filter_map(|event| if let PhbEvent::PeSet { pe, .. } = event { Some(pe) } else { None })
            .collect();
        let expected: Vec<_> = (0..DEVICES as u16).map(|number| machine.pe(number)).collect();
        assert_eq!(pes, expected);
        assert!(!pes.contains(&kind.reserved_pe()));
        let mut late = machine.claim(&[0x0900]);
        let none_left = Error::OutOfNumbers { limit: DEVICES as u32 };
        assert_eq!(late.quiesce_and_attach(context), Err(none_left));
        assert!(machine.events().is_empty(), "a refused attach touched the bridge");
    }
}

#[test]
fn e22_pes_run_out_at_the_bridge_s_own_number() {
    let (memory, phb) = hardware(PhbKind::Phb4, POOL_PAGES);
    let few = Config { pe_count: 3, reserved_pe: PeNumber(1), ..config(PhbKind::Phb4) };
    let driver = bring_up(&memory, &phb, few, POOL_PAGES).expect("the driver comes up");
    let iommu: machine::Policy = portcullis_iommu::Iommu::new(driver);
    let _ = phb.take_events();
    let context = iommu.create_context(VM, &spec(2, GIB)).expect("a context");
    let attach = |rid| {
        let group = iommu.add_group(&[device(rid)]).expect("a group");
        iommu.grant(VM, group).expect("a grant");
        iommu.claim(VM, group).expect("a claim").quiesce_and_attach(context)
    };
    assert_eq!([attach(1), attach(2)], [Ok(()), Ok(())]);
    assert_eq!(attach(3), Err(Error::OutOfNumbers { limit: 2 }));
    let events = phb.take_events();
    assert!([(1, 0), (2, 2)].iter().all(|&(rid, pe)| events.contains(&PhbEvent::PeSet { rid, pe })));
}

#[test]
fn e23_a_device_of_another_bridge_is_refused_and_blocking_it_needs_nothing() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let foreign = DeviceId { segment: Segment(7), requester: RequesterId::new(RID) };
    let group = machine.iommu.add_group(&[device(RID), foreign]).expect("a group");
    machine.iommu.grant(VM, group).expect("a grant");
    let kills = machine.phb.kills_written();
    let mut claim = machine.iommu.claim(VM, group).expect("a claim blocks what was never seen");
    assert_eq!(claim.quiesce_and_attach(context), Err(Error::NotBehindUnit { device: foreign }));
    assert_eq!(machine.phb.kills_written(), kills);
    assert_eq!(machine.read(RID, 0), Err(PhbFault::InvalidTve));
}

/// Attaches a first context, then switches to a second one while the `n`th call fails. Whether it did.
fn switch_with_failing_call(n: u64) -> bool {
    let machine = Machine::new(PhbKind::Phb4);
    let (old, new) = (machine.context(&spec(2, GIB)), machine.context(&spec(2, GIB)));
    machine.store(DATA, 1);
    machine.store(2 * DATA, 2);
    machine.map(old, 0, DATA, PAGE).expect("a map");
    machine.map(new, 0, 2 * DATA, PAGE).expect("a map");
    let mut claim = machine.claim(&[RID, RID + 1]);
    claim.quiesce_and_attach(old).expect("an attach");
    assert_eq!(machine.read(RID, 0), Ok(1));
    machine.phb.opal().fail_call(n);
    let switched = claim.quiesce_and_attach(new);
    let reached = [machine.read(RID, 0), machine.read(RID + 1, 0)];
    match switched {
        Ok(()) => assert_eq!(reached, [Ok(2), Ok(2)]),
        Err(error) => {
            assert_eq!(error, Error::Hardware { source: 44, code: REFUSED });
            assert!(!reached.contains(&Ok(2)), "call {n}: {reached:?}");
            let gone = machine.iommu.destroy_context(old);
            assert!(gone.is_err(), "a context that may be reached was destroyed");
            assert_eq!(claim.quiesce_and_attach(old), Err(Error::Quarantined));
        }
    }
    switched.is_err()
}

#[test]
fn e24_whichever_call_of_a_switch_fails_no_device_reaches_the_new_context() {
    let failed = (1..=8).filter(|&n| switch_with_failing_call(n)).collect::<Vec<_>>();
    // Four calls close two windows of two devices, two open one each.
    assert_eq!(failed, [1, 2, 3, 4, 5, 6]);
}

#[test]
fn e24_a_window_that_firmware_will_not_open_leaves_all_members_blocked() {
    for n in [5, 6] {
        let machine = Machine::new(PhbKind::Phb4);
        let context = machine.context(&spec(2, GIB));
        machine.map(context, 0, DATA, PAGE).expect("a map");
        let mut claim = machine.claim(&[RID, RID + 1]);
        claim.quiesce_and_attach(context).expect("an attach");
        claim.detach().expect("a detach");
        machine.phb.opal().fail_call(n);
        assert!(claim.quiesce_and_attach(context).is_err());
        let blocked = Err(PhbFault::InvalidTve);
        assert_eq!([machine.read(RID, 0), machine.read(RID + 1, 0)], [blocked, blocked]);
        assert!(!machine.iommu.driver().is_quarantined(), "everything was confirmed");
        assert_eq!([machine.pe(0), machine.pe(1)].map(|pe| machine.phb.cached_lines(pe)), [0, 0]);
    }
}

#[test]
fn e24_a_window_that_firmware_will_not_close_quarantines_the_bridge() {
    for n in 1..=2 {
        let machine = Machine::new(PhbKind::Phb4);
        let (context, mut claim) = machine.attached(RID);
        machine.phb.opal().fail_call(n);
        assert_eq!(claim.detach(), Err(Error::Hardware { source: 44, code: REFUSED }));
        assert!(machine.iommu.driver().is_quarantined());
        let free = machine.free_pages();
        assert_eq!(machine.iommu.destroy_context(context), Err(Error::Quarantined));
        assert_eq!(machine.free_pages(), free);
    }
}

#[test]
fn e24_a_device_that_gets_no_pe_changes_nothing() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let mut claim = machine.claim(&[RID, RID + 1]);
    for n in [1, 2] {
        machine.phb.opal().fail_call(n);
        assert_eq!(claim.quiesce_and_attach(context), Err(Error::Hardware { source: 31, code: REFUSED }));
        assert_eq!(machine.read(RID, 0), Err(PhbFault::InvalidTve));
    }
    claim.quiesce_and_attach(context).expect("firmware is well again");
    assert_eq!(machine.events().iter().filter(|event| matches!(event, PhbEvent::PeSet { .. })).count(), 2);
}

#[test]
fn e25_all_members_of_a_group_join_and_each_is_killed() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    machine.map(context, 0, DATA, PAGE).expect("a map");
    machine.store(DATA, 9);
    let members = [RID, RID + 1, RID + 2];
    let mut claim = machine.claim(&members);
    claim.quiesce_and_attach(context).expect("an attach");
    assert!(members.iter().all(|&rid| machine.read(rid, 0) == Ok(9)));
    let _ = machine.events();
    machine.unmap(context, 0, PAGE).expect("an unmap");
    let killed: Vec<_> = (0..3).map(|number| PhbEvent::PeKilled { pe: machine.pe(number) }).collect();
    assert_eq!(machine.events(), killed);
    assert!(members.iter().all(|&rid| machine.read(rid, 0) == Err(PhbFault::PageFault)));
}

#[test]
fn e26_after_a_switch_only_the_new_tables_are_seen() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (old, new) = (machine.context(&spec(2, GIB)), machine.context(&spec(3, GIB)));
        machine.store(DATA, 1);
        machine.store(2 * DATA, 2);
        machine.map(old, 0, DATA, PAGE).expect("a map");
        machine.map(old, PAGE, DATA, PAGE).expect("a map");
        machine.map(new, 0, 2 * DATA, PAGE).expect("a map");
        let mut claim = machine.claim(&[RID]);
        claim.quiesce_and_attach(old).expect("an attach");
        assert_eq!([machine.read(RID, 0), machine.read(RID, PAGE)], [Ok(1), Ok(1)]);
        claim.quiesce_and_attach(new).expect("a switch");
        assert_eq!([machine.read(RID, 0), machine.read(RID, PAGE)], [Ok(2), Err(PhbFault::PageFault)]);
        machine.iommu.destroy_context(old).expect("nobody uses it");
        claim.detach().expect("a detach");
        assert_eq!(machine.read(RID, 0), Err(PhbFault::InvalidTve));
        assert_eq!(machine.phb.cached_lines(machine.pe(0)), 0);
    }
}
