//! One context behind several units: invalidation on each of them, and units that die.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use machine::{
    DATA, LARGE, PAGE, QuiesceAndAttach, VM, device,
    several::{
        BRIDGED, DEVICES, GRAPHICS, GroupClaim, Policy, REST, Several, UNITS, attach, context, map, own,
        unmap,
    },
};
use portcullis_fake::end::End;
use portcullis_fake::vtd::{Knobs, VtdConfig};
use portcullis_iommu::Error;
use portcullis_vtd::ContextSpec;

fn is_timeout<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::Timeout(_))), "{result:?}");
}

#[test]
fn f44_an_unmap_invalidates_on_each_unit_of_the_context_and_on_no_other() {
    // One unit without page-selective invalidation: each is told what it can do.
    let coarse = VtdConfig { page_selective: None, ..VtdConfig::default() };
    let machine = Several::with(BRIDGED, coarse);
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let _claims = [attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED)];
    map(&iommu, shared, 0, DATA).unwrap();
    for unit in [GRAPHICS, BRIDGED] {
        machine.write(unit, 0, 1).unwrap();
        let _ = machine.invalidations(unit);
    }
    unmap(&iommu, shared, 0).unwrap();
    let granularity =
        |unit| machine.invalidations(unit).iter().map(|(low, _)| low >> 4 & 3).collect::<Vec<_>>();
    assert_eq!([GRAPHICS, BRIDGED, REST].map(granularity), [vec![3], vec![2], vec![]]);
    assert!(machine.write(GRAPHICS, 0, 2).is_err() && machine.write(BRIDGED, 0, 2).is_err());
    assert_eq!(machine.byte(DATA), 1);
}

#[test]
fn f44_a_unit_that_the_context_has_left_is_not_asked_any_more() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let (_graphics, mut bridged) = (attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED));
    map(&iommu, shared, 0, DATA).unwrap();
    machine.write(BRIDGED, 0, 1).unwrap();
    bridged.detach().unwrap();
    let _ = machine.invalidations(BRIDGED);
    unmap(&iommu, shared, 0).unwrap();
    assert_eq!(machine.invalidations(BRIDGED), []);
    // Back again it finds nothing that it had cached.
    bridged.quiesce_and_attach(shared).unwrap();
    assert!(machine.write(BRIDGED, 0, 2).is_err());
}

#[test]
fn f44_dma_under_way_behind_each_unit_has_landed_when_an_unmap_returns() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let _claims = [attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED)];
    map(&iommu, shared, 0, DATA).unwrap();
    for unit in [GRAPHICS, BRIDGED] {
        let device = DEVICES[unit];
        machine.units[unit].dma_write_posted(device, 0, &[7]).unwrap();
    }
    unmap(&iommu, shared, 0).unwrap();
    assert!([GRAPHICS, BRIDGED].iter().all(|&unit| machine.units[unit].posted().is_empty()));
}

#[test]
fn f44_new_mappings_are_told_to_each_unit_that_wants_to_know() {
    let mut configs = [VtdConfig::default(); UNITS];
    configs[GRAPHICS].caching_mode = true;
    configs[BRIDGED].write_buffer = true;
    let machine = Several::new(configs);
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let _claims: Vec<_> = (0..UNITS).map(|unit| attach(&iommu, shared, unit)).collect();
    for iova in [0, PAGE, LARGE] {
        assert!((0..UNITS).all(|unit| machine.write(unit, iova, 1).is_err()), "nothing there yet");
        map(&iommu, shared, iova, DATA).unwrap();
        for unit in 0..UNITS {
            machine.write(unit, iova, 1).expect("the unit has heard of it");
        }
        unmap(&iommu, shared, iova).unwrap();
        assert!((0..UNITS).all(|unit| machine.write(unit, iova, 2).is_err()));
    }
}

#[test]
fn f44_who_attaches_while_another_unmaps_finds_nothing_that_was_unmapped() {
    const ROUNDS: usize = if cfg!(miri) { 5 } else { 300 };
    let mut machine = Several::usual();
    // The model's time is counted in looks at it: a CPU that waits for a lock must not run out of it.
    machine.timeout = Duration::from_secs(1000);
    let iommu = machine.iommu();
    let shared = context(&iommu);
    let (mut bridged, done) = (own(&iommu, VM, BRIDGED), AtomicBool::new(false));
    thread::scope(|scope| {
        // Also when a round fails.
        let _end = End(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bridged.quiesce_and_attach(shared).unwrap();
                bridged.detach().unwrap();
            }
        });
        for _ in 0..ROUNDS {
            map(&iommu, shared, 0, DATA).unwrap();
            let _ = machine.write(BRIDGED, 0, 1);
            unmap(&iommu, shared, 0).unwrap();
            assert!(machine.write(BRIDGED, 0, 2).is_err());
        }
    });
    assert_ne!(machine.byte(DATA), 2);
}

#[test]
fn f45_an_invalidation_that_one_unit_loses_is_not_finished() {
    let hang: fn(&mut Knobs) = |knobs| knobs.hang_queue = true;
    let lose: fn(&mut Knobs) = |knobs| knobs.drop_waits = true;
    for (misbehaviour, dead) in [(hang, GRAPHICS), (lose, GRAPHICS), (hang, BRIDGED), (lose, BRIDGED)] {
        let alive = if dead == GRAPHICS { BRIDGED } else { GRAPHICS };
        let machine = Several::usual();
        let iommu = machine.iommu();
        let shared = context(&iommu);
        let claims = [attach(&iommu, shared, GRAPHICS), attach(&iommu, shared, BRIDGED)];
        map(&iommu, shared, 0, DATA).unwrap();
        machine.write(alive, 0, 1).unwrap();
        machine.misbehave(dead, misbehaviour);
        is_timeout(unmap(&iommu, shared, 0));
        assert!(machine.write(alive, 0, 2).is_err(), "the other unit was told all the same");
        machine.misbehave(dead, |knobs| *knobs = Knobs::default());
        assert_eq!(map(&iommu, shared, PAGE, DATA), Err(Error::Quarantined));
        assert_eq!(unmap(&iommu, shared, 0), Err(Error::Quarantined));
        let free = iommu.driver().pool().free_pages();
        for claim in claims {
            let _ = claim.release();
        }
        assert_eq!(iommu.destroy_context(shared), Err(Error::Quarantined));
        assert_eq!(iommu.driver().pool().free_pages(), free, "its pages are kept");
    }
}

#[test]
fn f45_a_dead_unit_leaves_the_others_at_work() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let (ours, theirs, moving) = (context(&iommu), context(&iommu), context(&iommu));
    let (mut graphics, mut bridged) = (attach(&iommu, ours, GRAPHICS), attach(&iommu, theirs, BRIDGED));
    let mut rest = own(&iommu, VM, REST);
    // What was behind the unit and has left is nothing to it.
    graphics.switch(moving).unwrap();
    graphics.switch(ours).unwrap();
    map(&iommu, ours, 0, DATA).unwrap();
    machine.misbehave(GRAPHICS, |knobs| knobs.hang_queue = true);
    is_timeout(unmap(&iommu, ours, 0));

    map(&iommu, theirs, 0, DATA + PAGE).unwrap();
    machine.write(BRIDGED, 0, 5).unwrap();
    unmap(&iommu, theirs, 0).unwrap();
    assert!(machine.write(BRIDGED, 0, 6).is_err());
    rest.quiesce_and_attach(theirs).unwrap();
    bridged.detach().unwrap();
    bridged.switch(theirs).unwrap();
    rest.switch(moving).unwrap();
    map(&iommu, moving, 0, DATA + PAGE).unwrap();
    machine.write(REST, 0, 7).unwrap();
    rest.release().unwrap();
    let free = iommu.driver().pool().free_pages();
    iommu.destroy_context(moving).unwrap();
    assert_eq!(iommu.driver().pool().free_pages(), free + 3, "its tables come back");
    iommu.create_context(VM, &ContextSpec::new(39)).expect("for the units that are left");

    assert_eq!(graphics.switch(theirs), Err(Error::Quarantined));
    assert!(graphics.release().is_err());
    assert_eq!(iommu.destroy_context(ours), Err(Error::Quarantined));
}

#[test]
fn f45_an_attach_that_a_unit_does_not_confirm_is_blocked_and_leaves_the_others() {
    let machine = Several::with(GRAPHICS, VtdConfig { caching_mode: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let (shared, mut graphics) = (context(&iommu), own(&iommu, VM, GRAPHICS));
    let bridged = attach(&iommu, shared, BRIDGED);
    machine.misbehave(GRAPHICS, |knobs| knobs.drop_waits = true);
    is_timeout(graphics.quiesce_and_attach(shared));
    map(&iommu, shared, 0, DATA).expect_err("the dead unit may have cached that the device is in it");
    assert!(machine.write(GRAPHICS, 0, 1).is_err());
    bridged.release().unwrap();
    assert!(graphics.release().is_err());
}

#[test]
fn f45_when_no_unit_is_left_nothing_new_is_made() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let (spare, shared) = (context(&iommu), context(&iommu));
    let _claims: Vec<_> = (0..UNITS).map(|unit| attach(&iommu, shared, unit)).collect();
    map(&iommu, shared, 0, DATA).unwrap();
    (0..UNITS).for_each(|unit| machine.misbehave(unit, |knobs| knobs.absent = true));
    is_timeout(unmap(&iommu, shared, 0));
    assert_eq!(map(&iommu, spare, 0, DATA), Err(Error::Quarantined));
    assert_eq!(iommu.create_context(VM, &ContextSpec::new(39)), Err(Error::Quarantined));
}

/// A claim on a group with a device behind each of two units.
fn own_both(iommu: &Policy) -> GroupClaim<'_> {
    let group = iommu.add_group(&[GRAPHICS, BRIDGED].map(|unit| device(DEVICES[unit]))).unwrap();
    iommu.grant(VM, group).unwrap();
    iommu.claim(VM, group).unwrap()
}

#[test]
fn f38_a_group_across_units_is_switched_whole() {
    let machine = Several::usual();
    let iommu = machine.iommu();
    let (first, second) = (context(&iommu), context(&iommu));
    let mut claim = own_both(&iommu);
    claim.quiesce_and_attach(first).unwrap();
    map(&iommu, first, 0, DATA).unwrap();
    map(&iommu, second, 0, DATA + PAGE).unwrap();
    for unit in [GRAPHICS, BRIDGED] {
        machine.write(unit, 0, 1).unwrap();
    }
    claim.switch(second).unwrap();
    for unit in [GRAPHICS, BRIDGED] {
        machine.write(unit, 0, 2).unwrap();
    }
    assert_eq!((machine.byte(DATA), machine.byte(DATA + PAGE)), (1, 2));
    claim.detach().unwrap();
    assert!([GRAPHICS, BRIDGED].iter().all(|&unit| machine.write(unit, 0, 3).is_err()));
    iommu.destroy_context(first).unwrap();
    iommu.destroy_context(second).unwrap();
}

#[test]
fn f45_a_group_across_units_is_blocked_whole_when_one_unit_fails() {
    // The unit wants to hear of a new context entry, and does not confirm that it has.
    let machine = Several::with(BRIDGED, VtdConfig { caching_mode: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let shared = context(&iommu);
    map(&iommu, shared, 0, DATA).unwrap();
    let mut claim = own_both(&iommu);
    machine.misbehave(BRIDGED, |knobs| knobs.hang_queue = true);
    is_timeout(claim.quiesce_and_attach(shared));
    for unit in [GRAPHICS, BRIDGED] {
        assert!(machine.write(unit, 0, 1).is_err());
    }
    assert_eq!(machine.byte(DATA), 0);
}
