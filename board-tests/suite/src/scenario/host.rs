//! The hypervisor's own drivers beside guests.

use portcullis_hal::Access;
use portcullis_iommu::{DmaUse, Error, pci::Method};

use super::{
    Failure,
    attach::QUIESCE_LIMIT,
    stage::{Stage, VM, ensure},
};
use crate::{
    board::{Board, DmaDevice},
    event::{Effect, Event},
};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// S26: a host driver that does DMA gets no group of a guest, and a guest none of the host; one that does no
/// DMA counts neither way. A host driver's device reaches what its context maps, and nothing once the last
/// driver is gone.
pub(super) fn host_drivers_and_guests_exclude_each_other<B: Board>(
    stage: &Stage<'_, B>,
) -> Result<(), Failure> {
    guest_keeps_its_group(stage)?;
    host_keeps_its_group(stage)
}

fn guest_keeps_its_group<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let group = stage.group(0)?;
    iommu.grant(VM, group)?;
    let stub = iommu.bind_host(group, DmaUse::None)?;
    stage.step("a stub driver is bound; it does no DMA, so that VM 1 may claim the group");
    let mut claim = stage.claim(0, VM, group)?;
    let context = stage.context(VM)?;
    let (iova, buffer) = (stage.at(context, 0xd0)?, stage.buffer(5)?);
    stage.map(context, iova, 5, BOTH)?;
    stage.attach(&mut claim, 0, context)?;
    let bound = iommu.bind_host(group, DmaUse::Dma);
    stage
        .refuses("bind a host driver that does DMA", bound, |error| error == Error::OwnedBy { owner: VM })?;
    let second = iommu.bind_host(group, DmaUse::None)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    stub.unbind()?;
    second.unbind()?;
    ensure(
        stage.write(0, context, iova, buffer)? == Effect::Landed,
        "the end of a stub driver touched the guest's device",
    )
}

fn host_keeps_its_group<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    const INDEX: usize = 1;
    let (iommu, board) = (stage.iommu(), stage.board);
    let group = stage.group(INDEX)?;
    iommu.grant(VM, group)?;
    stage.step("two host drivers that do DMA are bound to the other group, and a stub");
    let mut first = iommu.bind_host(group, DmaUse::Dma)?;
    let second = iommu.bind_host(group, DmaUse::Dma)?;
    let stub = iommu.bind_host(group, DmaUse::None)?;
    stage.refuses("claim what host drivers use", iommu.claim(VM, group), |error| {
        error == Error::OwnedByHost { drivers: 2 }
    })?;
    let context = stage.host_context()?;
    let (iova, buffer) = (stage.at(context, 0xd1)?, stage.buffer(6)?);
    stage.map(context, iova, 6, BOTH)?;
    let quiesced =
        first.quiesce(&board.config_space(), &board.clock(), Method::BusMasterOff, QUIESCE_LIMIT)?;
    first.attach(context, quiesced)?;
    stage.let_master(stage.device(INDEX)?.id());
    stage.tell_attached(INDEX, context)?;
    ensure(stage.write(INDEX, context, iova, buffer)? == Effect::Landed, "a host driver's write was lost")?;
    first.unbind()?;
    ensure(
        stage.write(INDEX, context, iova, buffer)? == Effect::Landed,
        "a driver's end took the device from the other driver",
    )?;
    stage.refuses("claim what a host driver uses", iommu.claim(VM, group), |error| {
        error == Error::OwnedByHost { drivers: 1 }
    })?;
    second.unbind()?;
    board.emit(&Event::Detached { requester: stage.requester(INDEX)? });
    let effect = stage.write_blindly(INDEX, iova, buffer)?;
    ensure(effect == Effect::Blocked, "a device without a driver reached the host's memory")?;
    stage.claim(INDEX, VM, group)?.release()?;
    Ok(stub.unbind()?)
}
