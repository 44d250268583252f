//! Who owns a device, from one owner to the next.

use core::time::Duration;

use portcullis_hal::Access;
use portcullis_iommu::{Because, Coherency, Error};

use super::{
    Failure,
    stage::{OTHER_VM, Stage, VM, ensure},
};
use crate::{board::Board, event::Effect};

const BOTH: Access = Access::READ.union(Access::WRITE);
/// How long callers may take to leave a context that is revoked.
const LIMIT: Duration = Duration::from_millis(100);

/// S21: a revoked device reaches nothing, its claim and its context are stale, the tables come back, and
/// the next owner can have it.
pub(super) fn revoked_device_is_blocked<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let (iova, buffer) = (stage.at(context, 0x60)?, stage.buffer(3)?);
    stage.map(context, iova, 3, BOTH)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    let pages = stage.board.table_pages_free();
    stage.step("revoke the device");
    stage.iommu().revoke(VM, claim.group(), |_| {}, &stage.board.clock(), LIMIT)?;
    stage.blocked(0)?;
    ensure(stage.write_blindly(0, iova, buffer)? == Effect::Blocked, "a revoked device reached memory")?;
    ensure(matches!(claim.switch(context), Err(Error::Stale { .. })), "a revoked claim attached")?;
    stage.refuses(
        "map after a revocation",
        stage.iommu().map(context, iova, buffer.extent, BOTH),
        |error| error == Error::Stale { slot: context.slot() },
    )?;
    ensure(stage.board.table_pages_free() > pages, "table pages did not come back")?;
    stage.iommu().grant(OTHER_VM, claim.group())?;
    stage.iommu().claim(OTHER_VM, claim.group())?.release()?;
    Ok(())
}

/// S22: from one VM to the next, a device that was left running reaches the new owner's memory at no
/// moment; it is attached only once it was quiesced.
pub(super) fn hand_over<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let (group, context) = (claim.group(), stage.context(VM)?);
    stage.attach(&mut claim, 0, context)?;
    let iova = stage.at(context, 0x61)?;
    stage.map(context, iova, 4, BOTH)?;
    ensure(stage.write(0, context, iova, stage.buffer(4)?)? == Effect::Landed, "a write missed its page")?;
    stage.iommu().grant(OTHER_VM, group)?;
    let (next, theirs) = (stage.context(OTHER_VM)?, stage.buffer(5)?);
    stage.map(next, iova, 5, BOTH)?;
    let unreached = |moment| ensure(stage.write_blindly(0, iova, theirs)? == Effect::Blocked, moment);
    claim.release()?;
    stage.blocked(0)?;
    unreached("reached the next owner's memory after the release")?;
    let mut claim = stage.iommu().claim(OTHER_VM, group)?;
    unreached("reached the next owner's memory after its claim")?;
    ensure(claim.switch(next) == Err(Error::NotQuiesced { group }), "attached without being quiesced")?;
    unreached("reached the next owner's memory after a refused attach")?;
    stage.attach(&mut claim, 0, next)?;
    let spared = stage.write_spares(0, next, iova, theirs, stage.buffer(4)?)?;
    ensure(spared, "the device did not come with its new owner alone")
}

/// S23: when a VM dies none of its devices reaches anything any more, its tables come back, and it gets
/// nothing new.
pub(super) fn death_of_a_vm<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let (mut first, mut second) = (stage.own(0, VM)?, stage.own(1, VM)?);
    let (one, other) = (stage.context(VM)?, stage.context(VM)?);
    stage.attach(&mut first, 0, one)?;
    stage.attach(&mut second, 1, other)?;
    let iova = stage.at(one, 0x62)?;
    stage.map(one, iova, 6, BOTH)?;
    stage.map(other, iova, 7, BOTH)?;
    ensure(stage.write(0, one, iova, stage.buffer(6)?)? == Effect::Landed, "device 0 missed its page")?;
    ensure(stage.write(1, other, iova, stage.buffer(7)?)? == Effect::Landed, "device 1 missed its page")?;
    let pages = stage.board.table_pages_free();
    stage.step("the VM dies");
    stage.iommu().vm_died(VM, |_| {}, &stage.board.clock(), LIMIT)?;
    for (index, buffer) in [(0, 6), (1, 7)] {
        stage.blocked(index)?;
        let effect = stage.write_blindly(index, iova, stage.buffer(buffer)?)?;
        ensure(effect == Effect::Blocked, "a dead VM's device reached memory")?;
    }
    ensure(stage.board.table_pages_free() > pages, "table pages did not come back")?;
    let group = first.group();
    stage.refuses("claim by a dead VM", stage.iommu().claim(VM, group).map(drop), |error| {
        error == Error::NotGranted { vm: VM, group }
    })
}

/// S24: the verdict on a VM's WBINVD follows the contexts of its groups, with a new epoch each time.
pub(super) fn flushes_follow_contexts<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let (plain, enforcing) = (stage.context(VM)?, stage.context_like(VM, &stage.board.coherent_spec()?)?);
    let (iova, buffer) = (stage.at(plain, 0x63)?, stage.buffer(8)?);
    let before = stage.iommu().coherency(VM)?;
    ensure(before.verdict == Coherency::Coherent, "flushes without a device")?;
    stage.attach(&mut claim, 0, plain)?;
    let flushing = stage.iommu().coherency(VM)?;
    let because = Because::NotEnforced;
    ensure(flushing.verdict == Coherency::NonCoherent { because }, "no flush in a plain context")?;
    stage.map(plain, iova, 8, BOTH)?;
    ensure(stage.write(0, plain, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    stage.attach(&mut claim, 0, enforcing)?;
    let after = stage.iommu().coherency(VM)?;
    ensure(after.verdict == Coherency::Coherent, "flushes in an enforcing context")?;
    ensure(before.epoch < flushing.epoch && flushing.epoch < after.epoch, "an epoch came twice")
}
