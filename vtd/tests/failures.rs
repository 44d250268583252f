//! Hardware that reports errors, hangs, loses what it was told, or disappears.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use machine::{
    DATA, DEVICE, FAR, Guest, LARGE, Machine, NEIGHBOUR, PAGE, QuiesceAndAttach, VM, device, spec,
};
use portcullis_fake::vtd::{Knobs, Reason, VtdConfig};
use portcullis_hal::{Access, Iova, RegisterIo, TimedOut};
use portcullis_iommu::{Error, Fault, FaultReason};

const FSTS: usize = 0x34;
const IQE: i64 = 1 << 4;
const WRITE_DENIED: Reason = Reason(5);

fn is_timeout_of<T: std::fmt::Debug>(result: Result<T, Error>, register: u32) {
    let Err(Error::Timeout(TimedOut { register: seen, .. })) = result else { panic!("{result:?}") };
    assert_eq!(seen, register);
}

#[test]
fn f28_a_refused_descriptor_is_replaced_and_the_batch_submitted_again() {
    for refused in [1, 2] {
        let machine = Machine::usual();
        let iommu = machine.iommu();
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, PAGE).unwrap();
        machine.write(0, 1).unwrap();
        machine.unit.misbehave(|knobs| knobs.refuse_descriptors = refused);
        assert_eq!(guest.unmap(0, PAGE), Ok(PAGE));
        assert_eq!(machine.write(0, 2), Err(WRITE_DENIED));
        assert_eq!(i64::from(machine.unit.registers().read32(FSTS)) & IQE, 0);
        guest.map(0, DATA, PAGE).unwrap();
        machine.write(0, 3).expect("the unit goes on");
    }
}

#[test]
fn f28_an_error_of_the_queue_that_stays_quarantines() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.unit.misbehave(|knobs| knobs.refuse_descriptors = 3);
    assert_eq!(guest.unmap(0, PAGE), Err(Error::Hardware { source: FSTS as u32, code: IQE }));
    assert_eq!(guest.map(0, DATA, PAGE), Err(Error::Quarantined));
}

#[test]
fn f28_a_refused_context_invalidation_blocks_all_the_same() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    machine.unit.misbehave(|knobs| knobs.refuse_descriptors = 1);
    guest.claim.detach().unwrap();
    assert_eq!(machine.write(0, 2), Err(Reason(2)));
}

#[test]
fn f29_waits_that_a_time_out_error_aborted_are_submitted_again() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.write(0, 1).unwrap();
    machine.unit.misbehave(|knobs| knobs.time_out_once = true);
    assert_eq!(guest.unmap(0, PAGE), Ok(PAGE));
    assert_eq!(machine.write(0, 2), Err(WRITE_DENIED));
    assert_eq!(machine.unit.registers().read32(FSTS) & 1 << 6, 0);
}

#[test]
fn f30_an_invalidation_that_is_never_confirmed_quarantines() {
    let hang: fn(&mut Knobs) = |knobs| knobs.hang_queue = true;
    let lose: fn(&mut Knobs) = |knobs| knobs.drop_waits = true;
    for misbehaviour in [hang, lose] {
        let machine = Machine::usual();
        let iommu = machine.iommu();
        let mut guest = Guest::new(&iommu);
        let free_group = iommu.add_group(&[device(NEIGHBOUR)]).unwrap();
        iommu.grant(VM, free_group).unwrap();
        let spare = iommu.create_context(VM, &spec(39)).unwrap();
        guest.map(0, DATA, 2 * PAGE).unwrap();
        let free = guest.free_pages();
        machine.unit.misbehave(misbehaviour);
        is_timeout_of(guest.unmap(0, PAGE), 0x80);
        // What comes too late changes nothing.
        machine.unit.misbehave(|knobs| *knobs = Knobs::default());
        let _ = machine.unit.registers().read32(FSTS);
        assert_eq!(guest.unmap(PAGE, PAGE), Err(Error::Quarantined));
        assert_eq!(guest.map(LARGE, DATA, PAGE), Err(Error::Quarantined));
        assert_eq!(iommu.create_context(VM, &spec(39)), Err(Error::Quarantined));
        assert_eq!(iommu.enforce_cache_coherency(spare), Err(Error::Quarantined));
        assert_eq!(iommu.claim(VM, free_group).map(drop), Err(Error::Quarantined));
        assert_eq!(guest.claim.quiesce_and_attach(spare), Err(Error::Quarantined));
        iommu.destroy_context(spare).expect("the unit never heard of it");
        let context = guest.context;
        assert_eq!(guest.claim.release(), Err(Error::Quarantined));
        assert_eq!(iommu.destroy_context(context), Err(Error::Quarantined));
        assert_eq!(iommu.driver().pool().free_pages(), free + 1, "only its root comes back");
    }
}

#[test]
fn f30_a_context_whose_last_flush_is_not_confirmed_keeps_its_pages() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let Guest { context, mut claim, .. } = {
        let guest = Guest::new(&iommu);
        guest.map(0, DATA, PAGE).unwrap();
        guest
    };
    claim.detach().unwrap();
    let free = iommu.driver().pool().free_pages();
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    is_timeout_of(iommu.destroy_context(context), 0x80);
    assert_eq!(iommu.driver().pool().free_pages(), free);
}

#[test]
fn f30_blocking_on_a_dead_unit_still_clears_the_entries() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let mut guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    is_timeout_of(guest.claim.detach(), 0x80);
    assert_eq!(machine.write(0, 1), Err(Reason(2)), "the unit had not cached the entry");
}

#[test]
fn f30_a_write_buffer_that_hangs_quarantines() {
    let machine = Machine::new(VtdConfig { write_buffer: true, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.unit.misbehave(|knobs| knobs.hang_status = 1 << 27);
    is_timeout_of(guest.unmap(0, PAGE), 0x1c);
    assert_eq!(guest.unmap(0, PAGE), Err(Error::Quarantined));
}

#[test]
fn f31_what_an_earlier_wait_wrote_confirms_nothing() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, 2 * PAGE).unwrap();
    machine.write(PAGE, 1).unwrap();
    assert_eq!(guest.unmap(0, PAGE), Ok(PAGE), "its number stays in the status cell");
    machine.unit.misbehave(|knobs| knobs.hang_queue = true);
    is_timeout_of(guest.unmap(PAGE, PAGE), 0x80);
}

#[test]
fn f32_a_unit_that_disappears_is_no_success_and_no_fault() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map(0, DATA, PAGE).unwrap();
    machine.unit.misbehave(|knobs| knobs.absent = true);
    assert_eq!(iommu.take_fault(), None);
    is_timeout_of(guest.unmap(0, PAGE), 0x80);
    assert_eq!(guest.unmap(0, PAGE), Err(Error::Quarantined));
    assert_eq!(iommu.take_fault(), None);
    let buffered = Machine::new(VtdConfig { write_buffer: true, ..VtdConfig::default() });
    let iommu = buffered.iommu();
    let guest = Guest::new(&iommu);
    buffered.unit.misbehave(|knobs| knobs.absent = true);
    is_timeout_of(guest.map(0, DATA, PAGE), 0x1c);
}

/// A fault of a device, as the policy shall see it.
fn fault(requester: u16, iova: u64, access: Access, reason: FaultReason) -> Option<Fault> {
    Some(Fault { device: device(requester), iova: Some(Iova::new(iova)), access, reason })
}

#[test]
fn f33_faults_are_reported_once_with_all_that_hardware_knows() {
    let machine = Machine::new(VtdConfig { fault_records: 4, ..VtdConfig::default() });
    let iommu = machine.iommu();
    let guest = Guest::new(&iommu);
    guest.map_for(0, DATA, PAGE, Access::READ).unwrap();
    guest.map_for(PAGE, DATA, PAGE, Access::WRITE).unwrap();
    assert_eq!(iommu.take_fault(), None);
    let neighbour = |iova| machine.unit.dma_read(NEIGHBOUR, iova, &mut [0]);
    let (read, write) = (Access::READ, Access::WRITE);
    // Around the ring of four records twice.
    for _ in 0..3 {
        assert!(machine.write(0x123, 1).is_err());
        assert!(neighbour(0x5678).is_err());
        assert!(machine.unit.dma_write(FAR, 0, &[1]).is_err());
        assert_eq!(iommu.take_fault(), fault(DEVICE, 0, write, FaultReason::WriteDenied));
        assert!(machine.read(PAGE).is_err());
        // The newest record is where the oldest was that is taken by now.
        assert!(machine.unit.dma_write(FAR + 1, 0, &[1]).is_err());
        assert_eq!(iommu.take_fault(), fault(NEIGHBOUR, 0x5000, read, FaultReason::NoContext));
        assert_eq!(iommu.take_fault(), fault(FAR, 0, write, FaultReason::NoContext));
        assert_eq!(iommu.take_fault(), fault(DEVICE, PAGE, read, FaultReason::ReadDenied));
        assert_eq!(iommu.take_fault(), fault(FAR + 1, 0, write, FaultReason::NoContext));
        assert_eq!(iommu.take_fault(), None);
        assert!(machine.write(1 << 39, 1).is_err());
        assert_eq!(iommu.take_fault(), fault(DEVICE, 1 << 39, write, FaultReason::BeyondWidth));
    }
}

#[test]
fn f33_recording_goes_on_after_an_overflow() {
    let machine = Machine::usual();
    let iommu = machine.iommu();
    let blocked = |requester| machine.unit.dma_write(requester, 0, &[1]).unwrap_err();
    blocked(DEVICE);
    blocked(NEIGHBOUR);
    assert_eq!(machine.unit.registers().read32(FSTS) & 1, 1, "one record, two faults");
    assert_eq!(iommu.take_fault().map(|fault| fault.device), Some(device(DEVICE)));
    assert_eq!(machine.unit.registers().read32(FSTS) & 3, 0);
    blocked(NEIGHBOUR);
    assert_eq!(iommu.take_fault().map(|fault| fault.device), Some(device(NEIGHBOUR)));
    assert_eq!(iommu.take_fault(), None);
}
