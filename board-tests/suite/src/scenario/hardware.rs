//! Hardware that stops answering: every wait ends, and nothing is given back that it may still reach.

use portcullis_hal::Access;
use portcullis_iommu::Error;

use super::{
    Failure,
    stage::{PAGE, Stage, VM, ensure, need},
};
use crate::{board::Board, event::Effect};

/// S18: bringing up a unit whose status never changes ends with the register and the bits.
pub(super) fn dead_unit_times_out<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    stage.step("bring up a unit whose status never changes");
    stage.refuses("bring up a dead unit", stage.board.bring_up_dead_unit(), |error| {
        matches!(error, Error::Timeout(_))
    })
}

/// S19: an unmap whose invalidation is never confirmed says so; from then on the hardware is quarantined:
/// contexts keep their tables, and nothing new is attached.
pub(super) fn lost_invalidation_quarantines<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let (mut claim, mut other) = (stage.own(0, VM)?, stage.own(1, VM)?);
    let (context, idle) = (stage.context(VM)?, stage.context(VM)?);
    stage.attach(&mut claim, 0, context)?;
    stage.attach(&mut other, 1, idle)?;
    let (iova, buffer) = (stage.at(context, 0x44)?, stage.buffer(6)?);
    stage.map(context, iova, 6, Access::READ | Access::WRITE)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
    let free = stage.board.table_pages_free();
    stage.board.withhold_completion();
    let range = need(portcullis_hal::IovaRange::new(iova, PAGE).ok(), "an empty range")?;
    stage.refuses("unmap without confirmation", iommu.unmap(context, range), |error| {
        matches!(error, Error::Timeout(_))
    })?;
    stage.refuses(
        "attach to a quarantined unit",
        stage.quiesce_and_attach(&mut other, context),
        |error| matches!(error, Error::Quarantined | Error::Timeout(_)),
    )?;
    ensure(claim.detach().is_err() && other.detach().is_err(), "dead hardware confirmed a block")?;
    stage.refuses("destroy what hardware may still read", iommu.destroy_context(context), |error| {
        error == Error::Quarantined
    })?;
    stage.refuses("destroy what hardware may still have cached", iommu.destroy_context(idle), |error| {
        matches!(error, Error::Quarantined | Error::Timeout(_))
    })?;
    ensure(stage.board.table_pages_free() == free, "pages went back that hardware may still read")
}
