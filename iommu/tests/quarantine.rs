//! Devices that did what they may not: whose they are, and how they are set aside.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod recorder;

use core::time::Duration;

use portcullis_hal::{Access, Clock, Iova};
use portcullis_iommu::{Error, Event, Fault, FaultReason, ownership::Owner};
use recorder::{DEAD, Did, OTHER, QuiesceAndAttach, VM, attached, device, granted, policy};

const LIMIT: Duration = Duration::from_millis(5);

/// A clock that goes on by a millisecond each time it is read.
#[derive(Default)]
struct Ticking(core::cell::Cell<u64>);

impl Clock for Ticking {
    fn now(&self) -> Duration {
        self.0.set(self.0.get() + 1);
        Duration::from_millis(self.0.get())
    }
}

#[test]
fn a21_a_group_is_set_aside_under_its_owner_and_stays_blocked() {
    let iommu = policy();
    let group = granted(&iommu, &[1, 2]);
    let (mut claim, context) = attached(&iommu, group);
    iommu.driver().took();
    iommu.quarantine(group, &Ticking::default(), LIMIT).expect("a quarantine");
    assert_eq!(iommu.driver().took(), [Did::Block]);
    assert_eq!(claim.switch(context), Err(Error::Quarantined));
    assert_eq!(claim.quiesce_and_attach(context), Err(Error::Quarantined));
    assert_eq!(iommu.claim(VM, group).err(), Some(Error::Quarantined));
    assert_eq!(iommu.add_device(group, device(3)), Err(Error::Quarantined));
    assert_eq!(iommu.driver().took(), [], "a refused call touched hardware");
    iommu.destroy_context(context).expect("nobody uses the context any more");
    claim.release().expect("the owner may go");
    iommu.grant(OTHER, group).expect("a grant");
    assert_eq!(
        iommu.claim(OTHER, group).err(),
        Some(Error::Quarantined),
        "the end of an owner changes nothing"
    );
}

#[test]
fn a21_readmitted_it_needs_a_new_proof_before_it_is_attached() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (mut claim, context) = attached(&iommu, group);
    iommu.quarantine(group, &Ticking::default(), LIMIT).expect("a quarantine");
    iommu.driver().took();
    iommu.readmit(group).expect("a return");
    assert_eq!(iommu.driver().took(), [], "a return attaches nothing");
    assert_eq!(claim.switch(context), Err(Error::NotQuiesced { group }));
    claim.quiesce_and_attach(context).expect("an attach");
}

#[test]
fn a21_the_log_tells_of_both() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (_claim, _) = attached(&iommu, group);
    while iommu.take_event().is_some() {}
    iommu.quarantine(group, &Ticking::default(), LIMIT).expect("a quarantine");
    iommu.readmit(group).expect("a return");
    let told: Vec<_> = core::iter::from_fn(|| iommu.take_event()).collect();
    assert_eq!(told, [Event::Blocked { group }, Event::SetAside { group }, Event::Readmitted { group }]);
}

#[test]
fn a21_hardware_that_does_not_answer_is_never_readmitted() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let (_claim, context) = attached(&iommu, group);
    iommu.driver().0.borrow_mut().dead = true;
    assert_eq!(iommu.quarantine(group, &Ticking::default(), LIMIT), Err(DEAD));
    iommu.driver().0.borrow_mut().dead = false;
    assert_eq!(iommu.readmit(group), Err(Error::Quarantined));
    assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined), "its tables may still be read");
    assert_eq!(iommu.quarantine(group, &Ticking::default(), LIMIT), Err(Error::Quarantined));
}

#[test]
fn a22_a_fault_is_logged_with_the_owner_of_its_device() {
    let iommu = policy();
    let group = granted(&iommu, &[1]);
    let fault = Fault {
        device: device(1),
        iova: Some(Iova::new(0x5000)),
        access: Access::WRITE,
        reason: FaultReason::WriteDenied,
    };
    let blamed = |owner| {
        iommu.driver().0.borrow_mut().faults.push(fault);
        while iommu.take_event().is_some() {}
        assert_eq!(iommu.take_fault(), Some(fault));
        assert_eq!(iommu.take_event(), Some(Event::Fault { fault, owner }));
    };
    blamed(None);
    let (claim, _) = attached(&iommu, group);
    blamed(Some(Owner::Guest(VM)));
    iommu.quarantine(group, &Ticking::default(), LIMIT).expect("a quarantine");
    blamed(Some(Owner::Guest(VM)));
    claim.release().expect("a release");
    blamed(None);
}
