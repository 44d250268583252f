//! Maps, permissions, unmaps, widths, exhaustion.

use portcullis_hal::{Access, Iova, IovaRange};
use portcullis_iommu::{ContextHandle, Error};

use super::{
    Failure,
    stage::{Owned, PAGE, Stage, VM, ensure, need},
};
use crate::{board::Board, event::Effect};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// Page `number` of `count` spread evenly over the aperture, away from the stage's own pages.
fn spread<B: Board>(
    stage: &Stage<'_, B>,
    context: ContextHandle,
    number: u64,
    count: u64,
) -> Result<Iova, Failure> {
    let range = stage.iommu().aperture(context)?.range;
    let distance = range.bytes() / count / PAGE * PAGE;
    need(range.start().checked_add(number * distance + 16 * PAGE), "an address beyond 64 bits")
}

/// S01: mappings spread over the whole aperture each lead to their own page, both ways.
pub(super) fn scattered_maps<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    for number in 0..6 {
        // Neighbours in I/O virtual space are no neighbours in memory.
        stage.map(context, spread(stage, context, number, 6)?, (number as usize * 5) % 13, BOTH)?;
    }
    for number in 0..6 {
        let (iova, buffer) = (spread(stage, context, number, 6)?, stage.buffer((number as usize * 5) % 13)?);
        ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")?;
        ensure(stage.read(0, context, iova, buffer)? == Effect::Landed, "a read missed its page")?;
    }
    Ok(())
}

/// S02: a read-only page can be read and not written.
pub(super) fn read_only_page<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    one_way(stage, Access::READ, Effect::Landed, Effect::Blocked)
}

/// S03: a write-only page can be written and not read.
pub(super) fn write_only_page<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    one_way(stage, Access::WRITE, Effect::Blocked, Effect::Landed)
}

fn one_way<B: Board>(
    stage: &Stage<'_, B>,
    access: Access,
    read: Effect,
    write: Effect,
) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let (iova, buffer) = (stage.at(context, 0x40)?, stage.buffer(3)?);
    stage.map(context, iova, 3, access)?;
    ensure(stage.read(0, context, iova, buffer)? == read, "reading did not obey the permission")?;
    ensure(stage.write(0, context, iova, buffer)? == write, "writing did not obey the permission")
}

/// S04: one large page reaches its first and its last bytes, and goes as a whole.
pub(super) fn large_page<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    let buffer = need(stage.board.large_buffer(), "the board lacks a large buffer")?;
    let bytes = buffer.extent.bytes();
    let iova =
        need(stage.iommu().aperture(context)?.range.start().checked_add(bytes), "an address beyond 64 bits")?;
    stage.map_buffer(context, iova, buffer, BOTH)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed the large page")?;
    let half = need(IovaRange::new(iova, PAGE).ok(), "an empty range")?;
    stage.refuses("unmap one small page of a large one", stage.iommu().unmap(context, half), |error| {
        matches!(error, Error::SplitsPage { .. })
    })?;
    stage.unmap(context, iova, bytes)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Blocked, "a large page outlived its unmap")
}

/// S05: after an unmap no device of the context reaches the page any more, although hardware had the entry
/// cached; a new mapping at the same address leads to the new page only, and comes only after the unmap.
pub(super) fn unmap_then_dma<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let (mut claim, mut other) = (stage.own(0, VM)?, stage.own(1, VM)?);
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    stage.attach(&mut other, 1, context)?;
    let (iova, old, new) = (stage.at(context, 0x80)?, stage.buffer(4)?, stage.buffer(9)?);
    stage.map(context, iova, 4, BOTH)?;
    for index in 0..2 {
        ensure(stage.write(index, context, iova, old)? == Effect::Landed, "a write missed its page")?;
    }
    stage.refuses("map over a mapping", stage.iommu().map(context, iova, new.extent, BOTH), |error| {
        error == Error::AlreadyMapped { iova }
    })?;
    stage.unmap(context, iova, PAGE)?;
    for index in 0..2 {
        let effect = stage.write(index, context, iova, old)?;
        ensure(effect == Effect::Blocked, "a device reached an unmapped page")?;
    }
    stage.map(context, iova, 9, BOTH)?;
    ensure(stage.write(0, context, iova, new)? == Effect::Landed, "a write missed the new page")?;
    ensure(stage.read(0, context, iova, new)? == Effect::Landed, "a read missed the new page")
}

/// S06: when table pages run out, the call that needed them changed nothing: what was mapped still works,
/// what was not is still blocked, and every page comes back.
pub(super) fn exhaustion_leaves_nothing_half_done<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    const TRIES: u64 = 64;
    let mut claim = stage.own(0, VM)?;
    stage.take_what_stays(&mut claim, 0)?;
    let before = stage.board.table_pages_free();
    let context = stage.context_like(VM, &stage.board.starved_spec())?;
    stage.attach(&mut claim, 0, context)?;
    let (number, iova) = map_until_refused(stage, context, TRIES)?;
    ensure(number > 0, "not even one mapping fitted")?;
    let buffer = stage.buffer(5)?;
    let first = spread(stage, context, 0, TRIES)?;
    ensure(stage.write(0, context, first, buffer)? == Effect::Landed, "an earlier mapping broke")?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Blocked, "a refused map let DMA through")?;
    stage.detach(&mut claim, 0)?;
    stage.iommu().destroy_context(context)?;
    ensure(stage.board.table_pages_free() == before, "table pages were lost")
}

/// Maps pages far from each other until table pages run out: how many fitted, and the refused address.
fn map_until_refused<B: Board>(
    stage: &Stage<'_, B>,
    context: ContextHandle,
    tries: u64,
) -> Result<(u64, Iova), Failure> {
    for number in 0..tries {
        let (iova, free) = (spread(stage, context, number, tries)?, stage.board.table_pages_free());
        let Err(failure) = stage.map(context, iova, 5, BOTH) else { continue };
        let error = failure.error.ok_or(failure)?;
        stage.refuses("map with no table page left", Err::<(), _>(error), |error| {
            matches!(error, Error::NeedPages { .. })
        })?;
        ensure(stage.board.table_pages_free() == free, "a refused map kept table pages")?;
        return Ok((number, iova));
    }
    need(None, "table pages never ran out")
}

/// S07: a context of 39 bits ends there, for calls and for devices.
pub(super) fn width_39<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let (context, beyond) = reach_the_top(stage, &mut claim, 39)?;
    ensure(
        stage.write(0, context, beyond, stage.buffer(6)?)? == Effect::Blocked,
        "DMA beyond the width landed",
    )
}

/// S07: a context of 48 bits reaches that far, and calls beyond are refused.
pub(super) fn width_48<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    reach_the_top(stage, &mut claim, 48).map(|_| ())
}

/// Attaches a context of so many bits, uses its last page, and returns the first address beyond.
fn reach_the_top<'b, B: Board>(
    stage: &Stage<'b, B>,
    claim: &mut Owned<'b, B>,
    bits: u32,
) -> Result<(ContextHandle, Iova), Failure> {
    let context = stage.context(VM)?;
    stage.attach(claim, 0, context)?;
    let end = 1u64 << bits;
    let range = stage.iommu().aperture(context)?.range;
    ensure(range.last().as_u64() == end - 1, "the aperture has another width")?;
    let (last, beyond, buffer) = (Iova::new(end - PAGE), Iova::new(end), stage.buffer(6)?);
    stage.map(context, last, 6, BOTH)?;
    ensure(stage.write(0, context, last, buffer)? == Effect::Landed, "the last page is out of reach")?;
    stage.refuses(
        "map beyond the width",
        stage.iommu().map(context, beyond, buffer.extent, BOTH),
        |error| matches!(error, Error::OutsideAperture { .. }),
    )?;
    Ok((context, beyond))
}
