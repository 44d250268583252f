//! Registered guest memory: devices are pointed at guest addresses, and what they reach is not given back.

use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova};
use portcullis_iommu::{ContextHandle, Error, RegionHandle};

use super::{
    Failure,
    stage::{LOADER, OTHER_VM, PAGE, Stage, UNLOADER, VM, ensure, need},
};
use crate::{board::Board, event::Effect};

const BOTH: Access = Access::READ.union(Access::WRITE);
/// Where guests have the page of this scenario.
const GUEST: u64 = 0x8000_0000;

/// S25: DMA lands in registered memory by guest address; the memory is not given back while it is mapped, the
/// refusal says how often it is, and after the last unmap it is out of reach and goes.
pub(super) fn registered_memory<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let mut claim = stage.own(0, VM)?;
    let context = guest_context(stage)?;
    let buffer = stage.buffer(5)?;
    let region = iommu.register_memory(VM, page(GUEST)?, buffer.extent)?;
    let (first, second) = (stage.at(context, 0xf0)?, stage.at(context, 0xf1)?);
    map(stage, context, first, GUEST, 5, BOTH)?;
    map(stage, context, second, GUEST, 5, Access::WRITE)?;
    stage.attach(&mut claim, 0, context)?;
    for iova in [first, second] {
        ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    }
    refused_ranges(stage, context, region)?;
    for (iova, pages) in [(first, 2), (second, 1)] {
        stage.refuses("unregister what is mapped", iommu.unregister_memory(VM, region), |error| {
            error == Error::StillMapped { pages }
        })?;
        ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a refusal took a mapping away")?;
        stage.unmap(context, iova, PAGE)?;
        ensure(
            stage.write(0, context, iova, buffer)? == Effect::Blocked,
            "a device reached an unmapped page",
        )?;
    }
    iommu.unregister_memory(VM, region)?;
    stage.step("nothing leads there any more: the memory is unregistered");
    not_registered(stage, "map what is unregistered", context, first, page(GUEST)?)?;
    stage.refuses("unregister twice", iommu.unregister_memory(VM, region), |error| {
        error == Error::Stale { slot: region.slot() }
    })?;
    let next = iommu.register_memory(OTHER_VM, page(GUEST)?, buffer.extent)?;
    ensure(
        stage.write(0, context, first, buffer)? == Effect::Blocked,
        "a device reached the next VM's memory",
    )?;
    Ok(iommu.unregister_memory(OTHER_VM, next)?)
}

/// What is not wholly inside a region of the context's own VM is not mapped, nor ended by others.
fn refused_ranges<B: Board>(
    stage: &Stage<'_, B>,
    context: ContextHandle,
    region: RegionHandle,
) -> Result<(), Failure> {
    let (iommu, iova) = (stage.iommu(), stage.at(context, 0xf8)?);
    let beyond = need(GuestPhysRange::new(GuestPhysAddr::new(GUEST), 2 * PAGE).ok(), "an empty range")?;
    not_registered(stage, "map what was never registered", context, iova, page(GUEST + PAGE)?)?;
    not_registered(stage, "map beyond the region", context, iova, beyond)?;
    for (other, refusal) in [
        (iommu.create_context(OTHER_VM, &stage.board.spec())?, Error::NotRegistered { guest: page(GUEST)? }),
        (iommu.create_host_context(&stage.board.spec())?, Error::OwnedByHost { drivers: 0 }),
    ] {
        let mapped = iommu.map_guest(other, stage.at(other, 0xf8)?, page(GUEST)?, BOTH);
        stage.refuses("map what another VM registered", mapped, |error| error == refusal)?;
        iommu.destroy_context(other)?;
    }
    stage.refuses("unregister for another VM", iommu.unregister_memory(OTHER_VM, region), |error| {
        error == Error::OwnedBy { owner: VM }
    })?;
    let again = iommu.register_memory(OTHER_VM, page(GUEST)?, stage.buffer(5)?.extent);
    stage.refuses("register what another VM has", again, |error| error == Error::Overlaps { region })?;
    let bare = iommu.map(context, iova, stage.buffer(6)?.extent, BOTH);
    stage.refuses("map memory that is not registered", bare, |error| error == Error::OtherBacking)
}

fn not_registered<B: Board>(
    stage: &Stage<'_, B>,
    what: &'static str,
    context: ContextHandle,
    iova: Iova,
    guest: GuestPhysRange,
) -> Result<(), Failure> {
    let mapped = stage.iommu().map_guest(context, iova, guest, BOTH);
    stage.refuses(what, mapped, |error| error == Error::NotRegistered { guest })?;
    ensure(stage.iommu().iova_to_phys(context, iova)?.is_none(), "a refused map left an entry")
}

/// A context of [`VM`] with the pages that transfers are checked through, of registered memory too.
pub(super) fn guest_context<B: Board>(stage: &Stage<'_, B>) -> Result<ContextHandle, Failure> {
    let context = stage.iommu().create_context(VM, &stage.board.spec())?;
    let pages =
        [(LOADER, stage.loader(context)?, Access::READ), (UNLOADER, stage.unloader(context)?, Access::WRITE)];
    for (index, iova, access) in pages {
        let guest = index as u64 * PAGE;
        stage.iommu().register_memory(VM, page(guest)?, stage.buffer(index)?.extent)?;
        map(stage, context, iova, guest, index, access)?;
    }
    Ok(context)
}

/// Maps the guest's page at `guest`, behind which buffer `index` is.
fn map<B: Board>(
    stage: &Stage<'_, B>,
    context: ContextHandle,
    iova: Iova,
    guest: u64,
    index: usize,
    access: Access,
) -> Result<(), Failure> {
    stage.iommu().map_guest(context, iova, page(guest)?, access)?;
    stage.tell_mapped(context, iova, stage.buffer(index)?.extent, access)
}

/// The guest's page at `guest`.
pub(super) fn page(guest: u64) -> Result<GuestPhysRange, Failure> {
    need(GuestPhysRange::new(GuestPhysAddr::new(guest), PAGE).ok(), "an empty range")
}
