//! A device goes from one VM to the next.

use portcullis_hal::Access;
use portcullis_iommu::Error;

use super::{
    Failure,
    stage::{OTHER_VM, Stage, VM, ensure},
    watch::Watch,
};
use crate::{
    board::{Board, DmaDevice},
    event::Effect,
};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// S21: a device that VM 1 left running reaches no memory of VM 1 once it is released, and none of VM 2
/// before VM 2 lets it: looked at between and during all steps of the hand-over.
pub(super) fn hand_over<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let group = stage.group(0)?;
    iommu.grant(VM, group)?;
    iommu.grant(OTHER_VM, group)?;
    let mut claim = stage.claim(0, VM, group)?;
    let old = stage.context(VM)?;
    let (iova, theirs, ours) = (stage.at(old, 0xa0)?, stage.buffer(4)?, stage.buffer(9)?);
    stage.map(old, iova, 4, BOTH)?;
    stage.attach(&mut claim, 0, old)?;
    ensure(stage.write(0, old, iova, theirs)? == Effect::Landed, "a write missed VM 1's page")?;
    let watch = Watch::new(stage, iova, [theirs, ours]);
    watch.refill();
    stage.step("VM 1 gives its device up in the middle of a transfer, and leaves it running");
    watch.during(|| {
        watch.until(|| Ok(claim.release()?))?;
        stage.tell_released(0, VM)
    })?;
    watch.during(|| Ok(iommu.destroy_context(old)?))?;
    stage.step("VM 2 takes it, with its own page at the same address");
    let mut claim = watch.during(|| stage.claim(0, OTHER_VM, group))?;
    let new = watch.during(|| stage.context(OTHER_VM))?;
    ensure(stage.at(new, 0xa0)? == iova, "the two contexts begin at different addresses")?;
    watch.during(|| stage.map(new, iova, 9, BOTH))?;
    let quiesced = watch.during(|| {
        let quiesced = stage.quiesce(&claim)?;
        stage.tell_quiesced(0)?;
        Ok(quiesced)
    })?;
    ensure(!stage.masters(0)?, "a quiesced device may master the bus")?;
    watch.during(|| {
        claim.attach(new, quiesced)?;
        stage.tell_attached(0, new)
    })?;
    stage.let_master(stage.device(0)?.id());
    ensure(watch.is_untouched(), "an old order of the device reached memory")?;
    let later = stage.at(new, 0xa1)?;
    stage.map(new, later, 10, BOTH)?;
    ensure(stage.write_spares(0, new, iova, ours, theirs)?, "VM 2's device missed VM 2's page")?;
    ensure(stage.write_spares(0, new, later, stage.buffer(10)?, theirs)?, "a write missed a later page")
}

/// S22: who attaches first shows that the device is quiet, for this very ownership; then bus mastering is off.
pub(super) fn attach_needs_a_fresh_proof<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let neighbour = stage.own(1, VM)?;
    let group = stage.group(0)?;
    stage.iommu().grant(VM, group)?;
    let not_quiesced = |error| error == Error::NotQuiesced { group };
    let mut claim = stage.claim(0, VM, group)?;
    let context = stage.context(VM)?;
    stage.let_master(stage.device(0)?.id());
    stage.refuses("attach a device that may be at work", claim.switch(context), not_quiesced)?;
    let of_another = stage.quiesce(&neighbour)?;
    stage.refuses("attach with another group's proof", claim.attach(context, of_another), not_quiesced)?;
    let old = stage.quiesce(&claim)?;
    ensure(!stage.masters(0)?, "a quiesced device may master the bus")?;
    stage.tell_quiesced(0)?;
    stage.release(claim, 0, VM)?;
    let mut claim = stage.claim(0, VM, group)?;
    stage.let_master(stage.device(0)?.id());
    stage.refuses("attach with the proof of an earlier claim", claim.attach(context, old), not_quiesced)?;
    let (iova, buffer) = (stage.at(context, 0xb0)?, stage.buffer(5)?);
    stage.map(context, iova, 5, BOTH)?;
    ensure(stage.write_blindly(0, iova, buffer)? == Effect::Blocked, "a refused attach let DMA through")?;
    let quiesced = stage.quiesce(&claim)?;
    claim.attach(context, quiesced)?;
    stage.tell_attached(0, context)?;
    let watch = Watch::new(stage, iova, [buffer, stage.buffer(6)?]);
    watch.refill();
    stage.step("bus mastering is still off");
    watch.during(|| ensure(!stage.masters(0)?, "attaching turned bus mastering on"))?;
    stage.let_master(stage.device(0)?.id());
    ensure(stage.masters(0)?, "bus mastering stays off")?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")
}
