//! Snoop control: DMA that a device cannot make incoherent.

use portcullis_hal::{Access, Iova};
use portcullis_iommu::{ContextHandle, Error};

use super::{
    Failure,
    stage::{Stage, VM, ensure},
};
use crate::{
    board::{Board, DmaDevice},
    event::Effect,
};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// S15: an enforcing context has the snoop bit on every leaf, another one on none; DMA lands in both.
pub(super) fn snoop_on_every_leaf<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let device = stage.device(0)?.id();
    let enforcing = stage.context_like(VM, &stage.board.coherent_spec()?)?;
    let plain = stage.context(VM)?;
    for (context, snoops) in [(enforcing, true), (plain, false)] {
        stage.attach(&mut claim, 0, context)?;
        for page in [0x10, 0x11, 0x300] {
            let iova = stage.at(context, page)?;
            stage.map(context, iova, page as usize % 8, BOTH)?;
            ensure(
                stage.board.leaf_has_snoop(device, iova) == Some(snoops),
                "a leaf has the wrong snoop bit",
            )?;
        }
        let iova = stage.at(context, 0x300)?;
        ensure(
            stage.write(0, context, iova, stage.buffer(0)?)? == Effect::Landed,
            "a write missed its page",
        )?;
    }
    stage.iommu().enforce_cache_coherency(enforcing)?;
    Ok(())
}

/// S16: coherency cannot be had once mappings without it exist, and can before.
pub(super) fn snoop_refused_after_mappings<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let mut claim = stage.own(0, VM)?;
    let late = stage.context(VM)?;
    stage.attach(&mut claim, 0, late)?;
    stage.refuses("enforce coherency after mappings", iommu.enforce_cache_coherency(late), |error| {
        error == Error::HasMappings
    })?;
    leaf_is_plain(stage, late)?;
    let early = iommu.create_context(VM, &stage.board.spec())?;
    iommu.enforce_cache_coherency(early)?;
    stage.attach(&mut claim, 0, early)?;
    let iova = stage.at(early, 0x20)?;
    stage.map(early, iova, 3, BOTH)?;
    let device = stage.device(0)?.id();
    ensure(stage.board.leaf_has_snoop(device, iova) == Some(true), "a leaf lacks the snoop bit")
}

/// S17: without snoop control nobody is told that DMA is coherent, and no reserved bit is set.
pub(super) fn snoop_refused_without_control<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    stage.refuses("make a coherent context", stage.board.coherent_spec(), |error| {
        error == Error::NoSnoopControl
    })?;
    let empty = stage.iommu().create_context(VM, &stage.board.spec())?;
    stage.refuses("enforce coherency", stage.iommu().enforce_cache_coherency(empty), |error| {
        error == Error::NoSnoopControl
    })?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    leaf_is_plain(stage, context)
}

fn leaf_is_plain<B: Board>(stage: &Stage<'_, B>, context: ContextHandle) -> Result<(), Failure> {
    let iova: Iova = stage.at(context, 0x21)?;
    stage.map(context, iova, 4, BOTH)?;
    let device = stage.device(0)?.id();
    ensure(stage.board.leaf_has_snoop(device, iova) == Some(false), "a leaf has the snoop bit")?;
    ensure(stage.write(0, context, iova, stage.buffer(4)?)? == Effect::Landed, "a write missed its page")
}
