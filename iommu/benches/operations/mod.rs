//! The operations that are timed and counted, each over a set-up of its own.
#![allow(unreachable_pub, missing_docs, reason = "two programs share it")]

mod idle;

use std::{hint::black_box, time::Duration};

use idle::Idle;
use portcullis_fake::{memory::FakeClock, obedient::ObedientFunctions};
use portcullis_hal::{
    Access, DeviceId, DmaExtent, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, RequesterId, Segment,
};
use portcullis_iommu::{
    Claim, ContextHandle, GroupId, Handle, HandleTable, Iommu, REGIONS, Rights, VmId, pci::Method,
};

/// All of them. `-full` is the same with every table as full as it gets.
pub const OPERATIONS: [&str; 13] = [
    "claim-release",
    "claim-release-full",
    "attach",
    "attach-full",
    "map-unmap",
    "map-guest-unmap",
    "map-guest-unmap-full",
    "look-up",
    "look-up-full",
    "with-claim",
    "with-claim-full",
    "notice",
    "notice-full",
];

const GROUPS: u64 = 32;
const HANDLES: usize = 1024;
const PAGE: u64 = 4096;
/// Bytes of each registered region.
const REGION: u64 = 1 << 20;

type Policy = Iommu<Idle, { GROUPS as usize }, { GROUPS as usize }>;
type Owned<'i> = Claim<'i, Idle, { GROUPS as usize }, { GROUPS as usize }>;
type Table = HandleTable<HANDLES>;

/// How often an operation is carried out, and what is noted of it.
pub trait Repeat {
    /// Calls `act` with numbers that differ from call to call.
    fn repeat(self, act: impl FnMut(u64));
}

/// Carries an operation out.
pub fn perform(operation: &str, how: impl Repeat) -> Result<(), &'static str> {
    match operation {
        "claim-release" => claim_release(1, how),
        "claim-release-full" => claim_release(GROUPS, how),
        "attach" => attach(1, how),
        "attach-full" => attach(GROUPS - 1, how),
        "map-unmap" => map_unmap(how),
        "map-guest-unmap" => map_guest_unmap(1, how),
        "map-guest-unmap-full" => map_guest_unmap(REGIONS as u64, how),
        "look-up" => look_up(1, how),
        "look-up-full" => look_up(HANDLES as u64, how),
        "with-claim" => with_claim(1, how),
        "with-claim-full" => with_claim(GROUPS, how),
        "notice" => notice(1, how),
        "notice-full" => notice(GROUPS, how),
        _ => return Err("no such operation"),
    }
    Ok(())
}

/// One of so many groups; the others are owned by VMs of their own.
fn claim_release(groups: u64, how: impl Repeat) {
    let iommu = policy(groups);
    let owned: Vec<_> = (1..groups).map(|number| attached(&iommu, number)).collect();
    how.repeat(|_| {
        let claim = iommu.claim(black_box(VmId(0)), black_box(GroupId(0))).expect("a claim");
        claim.release().expect("a release");
    });
    drop(owned);
}

/// The last of so many groups, to and fro between two contexts of its VM.
fn attach(groups: u64, how: impl Repeat) {
    let iommu = policy(groups);
    let mut owned: Vec<_> = (0..groups).map(|number| attached(&iommu, number)).collect();
    let another = iommu.create_context(VmId(groups as u32 - 1), &()).expect("a context");
    let (claim, context) = owned.last_mut().expect("one at least");
    let contexts = [*context, another];
    how.repeat(|step| claim.switch(contexts[(step + 1) as usize % 2]).expect("a switch"));
}

/// A page, by its extent.
fn map_unmap(how: impl Repeat) {
    let iommu = policy(1);
    let context = iommu.create_context(VmId(0), &()).expect("a context");
    let page = extent(0, PAGE);
    how.repeat(|step| {
        let range = IovaRange::new(Iova::new(step % REGION * PAGE), PAGE).expect("a range");
        iommu.map(context, range.start(), black_box(page), Access::all()).expect("a map");
        black_box(iommu.unmap(context, range).expect("an unmap"));
    });
}

/// A page of registered memory, in another one of the regions each time.
fn map_guest_unmap(regions: u64, how: impl Repeat) {
    let iommu = policy(1);
    for number in 0..regions {
        let range = guest(number * REGION, REGION);
        iommu.register_memory(VmId(0), range, extent(number * REGION, REGION)).expect("a region");
    }
    let context = iommu.create_context(VmId(0), &()).expect("a context");
    how.repeat(|step| {
        let range = IovaRange::new(Iova::new(step % REGION * PAGE), PAGE).expect("a range");
        let page = guest(step % regions * REGION, PAGE);
        iommu.map_guest(context, range.start(), page, Access::all()).expect("a map");
        black_box(iommu.unmap(context, range).expect("an unmap"));
    });
}

/// The number of a context, in a table with so many.
fn look_up(handles: u64, how: impl Repeat) {
    let (iommu, table) = (policy(1), Table::new(VmId(0), 0x1234_5678));
    let context = iommu.create_context(VmId(0), &()).expect("a context");
    let numbers: Vec<_> =
        (0..handles).map(|_| table.insert_context(context, Rights::all()).expect("room").as_raw()).collect();
    how.repeat(|step| {
        let handle = Handle::from_raw(numbers[(step % handles) as usize]);
        black_box(table.look_up(black_box(VmId(0)), handle, Rights::CHANGE).expect("a context"));
    });
}

/// The number of a claim, and whether it still holds.
fn with_claim(groups: u64, how: impl Repeat) {
    let (iommu, table) = (policy(groups), Table::new(VmId(0), 0x1234_5678));
    let stored = |number| {
        let group = GroupId(number as u32);
        iommu.grant(VmId(0), group).expect("a grant");
        let claim = iommu.claim(VmId(0), group).expect("a claim");
        claim.store(&table, Rights::all()).map_err(|(error, _)| error).expect("room").as_raw()
    };
    let numbers: Vec<_> = (0..groups).map(stored).collect();
    how.repeat(|step| {
        let handle = Handle::from_raw(numbers[(step % groups) as usize]);
        let group = iommu.with_claim(&table, VmId(0), handle, Rights::CHANGE, |claim| Ok(claim.group()));
        black_box(group.expect("a claim"));
    });
}

/// What the WBINVD of each VM must do, all of which own a non-coherent group.
fn notice(vms: u64, how: impl Repeat) {
    let iommu = policy(vms);
    let owned: Vec<_> = (0..vms).map(|number| attached(&iommu, number)).collect();
    how.repeat(|step| {
        black_box(iommu.coherency(VmId((step % vms) as u32)).expect("a VM"));
    });
    drop(owned);
}

/// So many groups of one device, each granted to the VM of the same number.
fn policy(groups: u64) -> Policy {
    let iommu = Policy::new(Idle);
    for number in 0..groups as u16 {
        let device = DeviceId { segment: Segment(0), requester: RequesterId::new(number) };
        let group = iommu.add_group(&[device]).expect("a group");
        iommu.grant(VmId(number.into()), group).expect("a grant");
    }
    iommu
}

/// A group, owned by its VM and attached to a context.
fn attached(iommu: &Policy, number: u64) -> (Owned<'_>, ContextHandle) {
    let vm = VmId(number as u32);
    let context = iommu.create_context(vm, &()).expect("a context");
    let mut claim = iommu.claim(vm, GroupId(number as u32)).expect("a claim");
    let limit = Duration::from_millis(1);
    let quiesced = claim.quiesce(&ObedientFunctions, &FakeClock::default(), Method::BusMasterOff, limit);
    claim.attach(context, quiesced.expect("quiet")).expect("an attach");
    (claim, context)
}

fn guest(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).expect("a range")
}

fn extent(offset: u64, bytes: u64) -> DmaExtent {
    portcullis_fake::dma::extent((1 << 32) + offset, bytes)
}
