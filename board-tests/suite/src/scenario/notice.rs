//! What a guest's WBINVD must do.

use portcullis_hal::Access;
use portcullis_iommu::{Because, Coherency, ContextHandle, Notice, VmId};

use super::{
    Failure,
    stage::{OTHER_VM, Owned, Stage, VM, ensure},
};
use crate::{
    board::Board,
    event::{Effect, Event},
};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// S27: without snoop control a VM must flush for as long as its device is attached, and no other VM.
pub(super) fn notice_without_snoop_control<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let plain = stage.context(VM)?;
    follows_the_device(stage, &mut claim, plain, Because::NoSnoopControl).map(drop)
}

/// S27: with snoop control the same holds of a context made without it; in an enforcing one WBINVD may do
/// nothing, also where DMA is made coherent later.
pub(super) fn notice_with_snoop_control<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let mut claim = stage.own(0, VM)?;
    let plain = stage.context(VM)?;
    let epoch = follows_the_device(stage, &mut claim, plain, Because::NotEnforced)?;
    let enforcing = stage.context_like(VM, &stage.board.coherent_spec()?)?;
    let late = stage.iommu().create_context(VM, &stage.board.spec())?;
    stage.attach(&mut claim, 0, late)?;
    let mut epoch = expect(stage, VM, non_coherent(Because::NotEnforced), epoch, Epoch::Next)?;
    stage.step("DMA of an empty context is made coherent while its device is attached");
    stage.iommu().enforce_cache_coherency(late)?;
    epoch = expect(stage, VM, Coherency::Coherent, epoch, Epoch::Next)?;
    stage.attach(&mut claim, 0, enforcing)?;
    use_it(stage, enforcing)?;
    epoch = expect(stage, VM, Coherency::Coherent, epoch, Epoch::Same)?;
    stage.attach(&mut claim, 0, plain)?;
    epoch = expect(stage, VM, non_coherent(Because::NotEnforced), epoch, Epoch::Next)?;
    stage.release(claim, 0, VM)?;
    expect(stage, VM, Coherency::Coherent, epoch, Epoch::Next).map(drop)
}

/// S27: on a bus that always is coherent nobody ever must flush.
pub(super) fn notice_on_a_coherent_bus<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let start = stage.iommu().coherency(VM)?.epoch;
    let mut claim = stage.own(0, VM)?;
    let context = stage.context(VM)?;
    stage.attach(&mut claim, 0, context)?;
    use_it(stage, context)?;
    expect(stage, VM, Coherency::Coherent, start, Epoch::Same)?;
    stage.release(claim, 0, VM)?;
    expect(stage, VM, Coherency::Coherent, start, Epoch::Same).map(drop)
}

/// The notice of a VM whose device goes into a context without coherency and leaves it; another VM, which has
/// such a context and a device but not the one in the other, never has to flush. Returns the last epoch.
fn follows_the_device<'b, B: Board>(
    stage: &Stage<'b, B>,
    claim: &mut Owned<'b, B>,
    plain: ContextHandle,
    because: Because,
) -> Result<u32, Failure> {
    let _other = (stage.own(1, OTHER_VM)?, stage.context(OTHER_VM)?);
    let others = stage.iommu().coherency(OTHER_VM)?.epoch;
    let mut epoch = stage.iommu().coherency(VM)?.epoch;
    epoch = expect(stage, VM, Coherency::Coherent, epoch, Epoch::Same)?;
    stage.attach(claim, 0, plain)?;
    epoch = expect(stage, VM, non_coherent(because), epoch, Epoch::Next)?;
    use_it(stage, plain)?;
    expect(stage, OTHER_VM, Coherency::Coherent, others, Epoch::Same)?;
    stage.detach(claim, 0)?;
    epoch = expect(stage, VM, Coherency::Coherent, epoch, Epoch::Next)?;
    expect(stage, OTHER_VM, Coherency::Coherent, others, Epoch::Same)?;
    Ok(epoch)
}

const fn non_coherent(because: Because) -> Coherency {
    Coherency::NonCoherent { because }
}

/// Whether the answer changed since an epoch.
#[derive(Clone, Copy)]
enum Epoch {
    Same,
    Next,
}

fn expect<B: Board>(
    stage: &Stage<'_, B>,
    vm: VmId,
    verdict: Coherency,
    before: u32,
    change: Epoch,
) -> Result<u32, Failure> {
    let epoch = match change {
        Epoch::Same => before,
        Epoch::Next => before.wrapping_add(1),
    };
    let notice = stage.iommu().coherency(vm)?;
    let coherent = notice.verdict == Coherency::Coherent;
    stage.board.emit(&Event::Coherency { vm: vm.0, coherent, epoch: notice.epoch });
    ensure(notice.verdict == verdict, "a notice says something else of WBINVD")?;
    ensure(notice == Notice { verdict, epoch }, "a notice has another number than its changes")?;
    Ok(epoch)
}

fn use_it<B: Board>(stage: &Stage<'_, B>, context: ContextHandle) -> Result<(), Failure> {
    let (iova, buffer) = (stage.at(context, 0xe0)?, stage.buffer(3)?);
    stage.map(context, iova, 3, BOTH)?;
    ensure(stage.write(0, context, iova, buffer)? == Effect::Landed, "a write missed its page")
}
