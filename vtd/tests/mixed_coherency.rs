//! What a guest's WBINVD must do where one unit has snoop control and another has not.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{
    DATA, QuiesceAndAttach, VM,
    several::{BRIDGED, GRAPHICS, Policy, REST, Several, own},
};
use portcullis_fake::vtd::VtdConfig;
use portcullis_hal::{Access, Iova};
use portcullis_iommu::{Because, Coherency as Verdict, ContextHandle, Error, VmId};
use portcullis_vtd::{Coherency, ContextSpec, UnitSet};

const OTHER: VmId = VmId(2);
const PLAIN: Verdict = Verdict::NonCoherent { because: Because::NoSnoopControl };

fn machine() -> Several {
    Several::with(GRAPHICS, VtdConfig { snoop_control: false, ..VtdConfig::default() })
}

fn notice(iommu: &Policy, vm: VmId) -> (Verdict, u32) {
    let notice = iommu.coherency(vm).unwrap();
    (notice.verdict, notice.epoch)
}

fn make(iommu: &Policy, vm: VmId, coherency: Coherency) -> ContextHandle {
    iommu.create_context(vm, &ContextSpec { coherency, ..ContextSpec::new(39) }).unwrap()
}

fn enforced(iommu: &Policy, vm: VmId) -> ContextHandle {
    make(iommu, vm, Coherency::Enforced(iommu.driver().snoop_control().unwrap()))
}

#[test]
fn n10_only_a_group_in_the_context_of_the_unit_without_snoop_control_counts() {
    let machine = machine();
    let iommu = machine.iommu();
    let (coherent, plain) = (enforced(&iommu, VM), make(&iommu, VM, Coherency::IfPossible));
    let (mut graphics, mut bridged) = (own(&iommu, VM, GRAPHICS), own(&iommu, VM, BRIDGED));
    let mut others = own(&iommu, OTHER, REST);
    others.quiesce_and_attach(enforced(&iommu, OTHER)).unwrap();
    bridged.quiesce_and_attach(coherent).unwrap();
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 0));
    graphics.quiesce_and_attach(plain).unwrap();
    assert_eq!(notice(&iommu, VM), (PLAIN, 1));
    assert_eq!(notice(&iommu, OTHER), (Verdict::Coherent, 0), "whose groups are in no such context");
    bridged.detach().unwrap();
    assert_eq!(notice(&iommu, VM), (PLAIN, 1));
    graphics.detach().unwrap();
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 2));
    bridged.switch(coherent).unwrap();
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 2));
}

#[test]
fn n10_an_attach_that_is_refused_for_want_of_snoop_control_leaves_the_notice() {
    let machine = machine();
    let iommu = machine.iommu();
    let coherent = enforced(&iommu, VM);
    let mut graphics = own(&iommu, VM, GRAPHICS);
    assert_eq!(graphics.quiesce_and_attach(coherent), Err(Error::NoSnoopControl));
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 0));
    let plain = make(&iommu, VM, Coherency::IfPossible);
    assert_eq!(iommu.enforce_cache_coherency(plain), Ok(()), "no device is in it yet");
    assert_eq!(graphics.quiesce_and_attach(plain), Err(Error::NoSnoopControl));
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 0));
}

#[test]
fn n10_the_reason_is_the_unit_or_the_context() {
    let machine = machine();
    let iommu = machine.iommu();
    let able = UnitSet::NONE.with(BRIDGED).with(REST);
    let cases = [
        (Coherency::IfPossible, UnitSet::ALL, PLAIN),
        (Coherency::IfPossible, able, Verdict::Coherent),
        (Coherency::Device, UnitSet::ALL, PLAIN),
        (Coherency::Device, able, Verdict::NonCoherent { because: Because::NotEnforced }),
    ];
    let mut bridged = own(&iommu, VM, BRIDGED);
    for (coherency, units, verdict) in cases {
        let spec = ContextSpec { coherency, units, ..ContextSpec::new(39) };
        let context = iommu.create_context(VM, &spec).unwrap();
        bridged.quiesce_and_attach(context).unwrap();
        assert_eq!(notice(&iommu, VM).0, verdict, "{spec:?}");
        bridged.detach().unwrap();
        iommu.destroy_context(context).unwrap();
    }
}

#[test]
fn n10_a_context_for_both_units_is_not_coherent_for_either() {
    let machine = machine();
    let iommu = machine.iommu();
    let shared = make(&iommu, VM, Coherency::IfPossible);
    let (mut graphics, mut bridged) = (own(&iommu, VM, GRAPHICS), own(&iommu, VM, BRIDGED));
    bridged.quiesce_and_attach(shared).unwrap();
    graphics.quiesce_and_attach(shared).unwrap();
    assert_eq!(notice(&iommu, VM), (PLAIN, 1));
    iommu.map(shared, Iova::new(0), machine::extent(DATA, 4096), Access::WRITE).unwrap();
    machine.write(GRAPHICS, 0, 1).expect("no reserved bit");
    graphics.release().unwrap();
    assert_eq!(notice(&iommu, VM), (PLAIN, 1), "the other group is still in it");
    assert_eq!(iommu.enforce_cache_coherency(shared), Err(Error::HasMappings));
    bridged.release().unwrap();
    assert_eq!(notice(&iommu, VM), (Verdict::Coherent, 2));
}
