//! Freezes and the faults that they become.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::sync::atomic::Ordering;

use machine::{GIB, KINDS, Machine, PAGE, QuiesceAndAttach, device, extent, spec};
use portcullis_fake::phb::{PhbFault, PhbKind};
use portcullis_hal::{Access, Iova};
use portcullis_iommu::{Fault, FaultReason};

const RID: u16 = 0x0100;
const DATA: u64 = 0x5000;

fn fault(rid: u16, iova: u64, access: Access) -> Fault {
    let reason = if access == Access::WRITE { FaultReason::WriteDenied } else { FaultReason::ReadDenied };
    Fault { device: device(rid), iova: Some(Iova::new(iova)), access, reason }
}

#[test]
fn e34_a_frozen_pe_is_reported_once_and_goes_on() {
    for kind in KINDS {
        let machine = Machine::new(kind);
        let (context, _claim) = machine.attached(RID);
        let iommu = &machine.iommu;
        iommu.map(context, Iova::new(0), extent(DATA, PAGE), Access::READ).expect("a map");
        assert_eq!(iommu.take_fault(), None);

        let write = machine.phb.dma_write(RID, 0x123, &[1]);
        assert_eq!(write, Err(PhbFault::AccessFault));
        assert_eq!(machine.phb.dma_read(RID, 0, &mut [0]), Err(PhbFault::Frozen));
        assert_eq!(iommu.take_fault(), Some(fault(RID, 0, Access::WRITE)));
        assert_eq!(iommu.take_fault(), None);
        assert_eq!(machine.phb.dma_read(RID, 0, &mut [0]), Ok(()), "it goes on");

        let read = machine.phb.dma_read(RID, 0x7_7abc, &mut [0]);
        assert_eq!(read, Err(PhbFault::PageFault));
        assert_eq!(iommu.take_fault(), Some(fault(RID, 0x7_7000, Access::READ)));
    }
}

#[test]
fn e34_a_blocked_device_is_reported_by_its_address_in_either_half() {
    let machine = Machine::new(PhbKind::Phb4);
    let (_, mut claim) = machine.attached(RID);
    claim.detach().expect("a detach");
    for iova in [0x5000, (1 << 59) | 0x5000] {
        assert_eq!(machine.phb.dma_write(RID, iova, &[1]), Err(PhbFault::InvalidTve));
        assert_eq!(machine.iommu.take_fault(), Some(fault(RID, iova, Access::WRITE)));
    }
}

#[test]
fn e34_a_freeze_outlives_a_switch_until_it_is_taken() {
    let machine = Machine::new(PhbKind::Phb4);
    let (context, mut claim) = machine.attached(RID);
    machine.map(context, 0, DATA, PAGE).expect("a map");
    assert!(machine.phb.dma_read(RID, PAGE, &mut [0]).is_err());
    let other = machine.context(&spec(2, GIB));
    machine.map(other, 0, DATA, PAGE).expect("a map");
    claim.quiesce_and_attach(other).expect("a switch");
    assert_eq!(machine.phb.dma_read(RID, 0, &mut [0]), Err(PhbFault::Frozen));
    assert_eq!(machine.iommu.take_fault(), Some(fault(RID, PAGE, Access::READ)));
    assert_eq!(machine.phb.dma_read(RID, 0, &mut [0]), Ok(()));
}

#[test]
fn e35_a_busy_faulter_hides_nobody() {
    let machine = Machine::new(PhbKind::Phb4);
    let context = machine.context(&spec(2, GIB));
    let rids = [RID, RID + 1, RID + 2];
    let claims: Vec<_> = rids
        .map(|rid| {
            let mut claim = machine.claim(&[rid]);
            claim.quiesce_and_attach(context).expect("an attach");
            claim
        })
        .into();
    assert_eq!(claims.len(), 3);
    for rid in rids {
        assert!(machine.phb.dma_read(rid, PAGE, &mut [0]).is_err());
    }
    let mut reported = Vec::new();
    for _ in 0..3 {
        reported.push(machine.iommu.take_fault().expect("a fault").device);
        assert!(machine.phb.dma_read(RID, PAGE, &mut [0]).is_err(), "the first one does it again");
    }
    assert_eq!(reported, rids.map(device));
}

#[test]
fn e35_a_freeze_without_a_record_has_no_address() {
    let machine = Machine::new(PhbKind::Phb4);
    let (_, _claim) = machine.attached(RID);
    assert!(machine.phb.dma_read(RID, PAGE, &mut [0]).is_err());
    machine.blind.store(true, Ordering::Relaxed);
    let bare = Fault {
        device: device(RID),
        iova: None,
        access: Access::empty(),
        reason: FaultReason::Other { code: 0 },
    };
    assert_eq!(machine.iommu.take_fault(), Some(bare));
    assert_eq!(machine.phb.dma_read(RID, PAGE, &mut [0]), Err(PhbFault::PageFault), "it went on");
}
