//! Who reaches what: nobody beyond grant, claim, context and mapping.

use portcullis_hal::{Access, Iova};
use portcullis_iommu::{Error, FaultReason};

use super::{
    Failure,
    stage::{OTHER_VM, Stage, VM, ensure, need},
    transfer::BYTES,
};
use crate::{
    board::{Board, DmaDevice},
    event::Effect,
};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// S08: an address without a mapping is closed, both ways.
pub(super) fn unmapped_is_blocked<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let (iova, buffer) = (stage.at(context, 0x33)?, stage.buffer(2)?);
    ensure(stage.write(0, context, iova, buffer)? == Effect::Blocked, "a write to nowhere landed")?;
    ensure(stage.read(0, context, iova, buffer)? == Effect::Blocked, "a read from nowhere landed")
}

/// S09: a device that aims at the hypervisor's own image by its physical address does not reach it.
pub(super) fn hypervisor_image_is_blocked<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let image = Iova::new(stage.board.image().as_u64());
    ensure(stage.iommu().iova_to_phys(context, image)?.is_none(), "the image is mapped")?;
    stage.step("aim a write at the hypervisor's own image");
    ensure(
        stage.write_over_image(0, context, image)? == Effect::Blocked,
        "a write reached the hypervisor's image",
    )?;
    stage.step("aim a write at the hypervisor's data");
    let buffer = stage.buffer(7)?;
    let aimed = Iova::new(buffer.extent.start().as_u64());
    ensure(
        stage.write(0, context, aimed, buffer)? == Effect::Blocked,
        "a write reached the hypervisor's data",
    )
}

/// S10: a blocked write is reported with requester, address and reason.
pub(super) fn blocked_dma_is_reported<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let (device, iova) = (stage.device(0)?, stage.at(context, 0x51)?);
    for access in [Access::WRITE, Access::READ] {
        stage.forget_faults();
        match access {
            Access::READ => device.read_memory(iova, BYTES)?,
            _ => device.write_memory(iova, BYTES)?,
        }
        let fault = need(stage.board.take_fault(), "a blocked transfer was not reported")?;
        ensure(fault.device == device.id(), "the report names another requester")?;
        ensure(fault.iova == Some(iova), "the report names another address")?;
        ensure(fault.access == access, "the report names another direction")?;
        let reason = if access == Access::READ { FaultReason::ReadDenied } else { FaultReason::WriteDenied };
        ensure(fault.reason == reason, "the report names another reason")?;
    }
    ensure(stage.write(0, context, iova, stage.buffer(1)?)? == Effect::Blocked, "a write to nowhere landed")
}

/// S11: without a grant no claim, and one owner at a time; a device that nobody owns reaches nothing.
pub(super) fn claim_needs_a_grant<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let group = stage.group(0)?;
    let buffer = stage.buffer(8)?;
    let aimed = Iova::new(buffer.extent.start().as_u64());
    ensure(stage.write_blindly(0, aimed, buffer)? == Effect::Blocked, "an unowned device reached memory")?;
    stage.refuses("claim without a grant", iommu.claim(VM, group), |error| {
        error == Error::NotGranted { vm: VM, group }
    })?;
    iommu.grant(VM, group)?;
    iommu.grant(OTHER_VM, group)?;
    let claim = iommu.claim(VM, group)?;
    stage.refuses("claim another VM's group", iommu.claim(OTHER_VM, group), |error| {
        error == Error::OwnedBy { owner: VM }
    })?;
    claim.release()?;
    let mut claim = iommu.claim(OTHER_VM, group)?;
    let context = stage.context(VM)?;
    stage.refuses(
        "attach to another VM's context",
        stage.quiesce_and_attach(&mut claim, context),
        |error| error == Error::OwnedBy { owner: VM },
    )?;
    ensure(
        stage.write_blindly(0, aimed, buffer)? == Effect::Blocked,
        "a claimed, unattached device reached memory",
    )
}

/// S12: two devices at the same address in two contexts reach each their own page and not the other's.
pub(super) fn two_contexts_are_separate<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let (mut first, mut second) = (stage.own(0, VM)?, stage.own(1, OTHER_VM)?);
    let (mine, theirs) = (stage.context(VM)?, stage.context(OTHER_VM)?);
    stage.attach(&mut first, 0, mine)?;
    stage.attach(&mut second, 1, theirs)?;
    let shared = stage.at(mine, 0x60)?;
    stage.map(mine, shared, 10, BOTH)?;
    stage.map(theirs, shared, 11, BOTH)?;
    ensure(stage.write(0, mine, shared, stage.buffer(10)?)? == Effect::Landed, "device 0 missed its page")?;
    ensure(stage.write(1, theirs, shared, stage.buffer(11)?)? == Effect::Landed, "device 1 missed its page")?;
    let (one, two) = (stage.buffer(10)?, stage.buffer(11)?);
    ensure(stage.write_spares(0, mine, shared, one, two)?, "device 0 reached VM 2's page")?;
    ensure(stage.write_spares(1, theirs, shared, two, one)?, "device 1 reached VM 1's page")?;
    let own = stage.at(mine, 0x61)?;
    stage.map(mine, own, 12, BOTH)?;
    ensure(
        stage.read(0, mine, own, stage.buffer(12)?)? == Effect::Landed,
        "device 0 missed its second page",
    )?;
    ensure(stage.read(1, theirs, own, stage.buffer(12)?)? == Effect::Blocked, "device 1 used VM 1's mapping")
}

/// S13: a switched device sees the new context only, although hardware had the old one cached; the old
/// handle is refused although its slot is used again.
pub(super) fn context_switch<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let (old, new) = (stage.context(VM)?, stage.context(VM)?);
    let iova = stage.at(old, 0x70)?;
    stage.map(old, iova, 1, BOTH)?;
    stage.map(new, iova, 2, BOTH)?;
    stage.attach(&mut claim, 0, old)?;
    ensure(stage.write(0, old, iova, stage.buffer(1)?)? == Effect::Landed, "a write missed the old context")?;
    stage.refuses("destroy a context in use", stage.iommu().destroy_context(old), |error| {
        error == Error::InUse { users: 1 }
    })?;
    stage.attach(&mut claim, 0, new)?;
    ensure(stage.write(0, new, iova, stage.buffer(2)?)? == Effect::Landed, "a write missed the new context")?;
    ensure(
        stage.write_spares(0, new, iova, stage.buffer(2)?, stage.buffer(1)?)?,
        "a write reached the old context",
    )?;
    stage.iommu().destroy_context(old)?;
    let next = stage.context(VM)?;
    ensure(next.slot() == old.slot(), "the slot was not used again")?;
    stage.refuses(
        "map through a stale handle",
        stage.iommu().map(old, iova, stage.buffer(1)?.extent, BOTH),
        |error| error == Error::Stale { slot: old.slot() },
    )
}

/// S14: a device that was left running is blocked once its owner has given it up.
pub(super) fn released_device_is_blocked<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let (iova, buffer) = (stage.at(context, 0x90)?, stage.buffer(5)?);
    stage.map(context, iova, 5, BOTH)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    stage.detach(&mut claim, 0)?;
    ensure(stage.write_blindly(0, iova, buffer)? == Effect::Blocked, "a detached device reached memory")?;
    stage.attach(&mut claim, 0, context)?;
    ensure(
        stage.write(0, context, iova, buffer)? == Effect::Landed,
        "a write missed its page after a return",
    )?;
    stage.release(claim, 0, VM)?;
    ensure(stage.write_blindly(0, iova, buffer)? == Effect::Blocked, "a released device reached memory")
}

/// S20: a device that keeps command queues in memory works through its context, queues and data alike;
/// what is unmapped it does not reach.
pub(super) fn queues_and_data_are_translated<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    const INDEX: usize = 2;
    let mut claim = stage.own(INDEX, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, INDEX, context)?;
    let device = stage.device(INDEX)?;
    let queues = need(device.queues(), "the third device has no queues")?;
    let at = stage.at(context, 0x100)?;
    stage.map_buffer(context, at, queues, BOTH)?;
    stage.step("start a device whose command queues are reached through the IOMMU");
    device.start(at)?;
    let (iova, buffer) = (stage.at(context, 0x123)?, stage.buffer(8)?);
    stage.map(context, iova, 8, BOTH)?;
    ensure(stage.write(INDEX, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    ensure(stage.read(INDEX, context, iova, buffer)? == Effect::Landed, "a read missed its page")?;
    stage.unmap(context, iova, buffer.extent.bytes())?;
    ensure(stage.write(INDEX, context, iova, buffer)? == Effect::Blocked, "a device reached an unmapped page")
}
