//! A device that aims at the hypervisor: its owner is blamed, and on request it is put out of action.

use core::time::Duration;

use portcullis_hal::{Access, Iova};
use portcullis_iommu::Error;

use super::{
    Failure,
    stage::{OTHER_VM, PAGE, Stage, VM, ensure, need},
};
use crate::{
    board::{Board, DmaDevice},
    event::{Effect, Event},
};

const BOTH: Access = Access::READ.union(Access::WRITE);
/// How long an operation on the group may hold a quarantine up.
const LIMIT: Duration = Duration::from_millis(100);

/// S30: DMA into the hypervisor's image is blocked, and the log names the VM that owns the device. Quarantined, the
/// device reaches nothing of its owner's either, and nobody attaches it; another VM's device goes on. Readmitted
/// and quiesced anew, it works.
pub(super) fn rogue_is_blamed_and_quarantined<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let (mut rogue, mut other) = (stage.own(0, VM)?, stage.own(1, OTHER_VM)?);
    let (context, theirs) = (stage.context(VM)?, stage.context(OTHER_VM)?);
    stage.attach(&mut rogue, 0, context)?;
    stage.attach(&mut other, 1, theirs)?;
    let (iova, mine, their) = (stage.at(context, 0x40)?, stage.buffer(3)?, stage.buffer(4)?);
    stage.map(context, iova, 3, BOTH)?;
    stage.map(theirs, iova, 4, BOTH)?;
    let (device, image) = (stage.device(0)?.id(), Iova::new(stage.board.image().as_u64()));
    ensure(stage.write(0, context, iova, mine)? == Effect::Landed, "a write missed its page")?;
    stage.forget_faults();
    stage.forget_events();
    stage.step("aim a write at the hypervisor's own image");
    ensure(
        stage.write_over_image(0, context, image)? == Effect::Blocked,
        "a write reached the hypervisor's image",
    )?;
    stage.expect_blame(device, Iova::new(image.as_u64() & !(PAGE - 1)), VM)?;
    stage.step("quarantine the device");
    let group = need(stage.iommu().group_of(device), "the device is in no group")?;
    stage.iommu().quarantine(group, &stage.board.clock(), LIMIT)?;
    let requester = stage.requester(0)?;
    stage.board.emit(&Event::Detached { requester });
    ensure(stage.write_blindly(0, iova, mine)? == Effect::Blocked, "a quarantined device reached memory")?;
    stage.refuses("attach a quarantined device", stage.quiesce_and_attach(&mut rogue, context), |error| {
        error == Error::Quarantined
    })?;
    ensure(stage.write(1, theirs, iova, their)? == Effect::Landed, "the other VM's device was stopped, too")?;
    stage.iommu().readmit(group)?;
    ensure(stage.write_blindly(0, iova, mine)? == Effect::Blocked, "a device came back by itself")?;
    stage.attach(&mut rogue, 0, context)?;
    ensure(stage.write(0, context, iova, mine)? == Effect::Landed, "a readmitted device missed its page")
}
