//! What a VM has is ended for it.

use core::{cell::RefCell, time::Duration};

use portcullis_hal::{Access, Iova};
use portcullis_iommu::{ContextHandle, Error, ExternalUser, Trusted, UserId, VmId};

use super::{
    Failure,
    registered::{guest_context, page},
    stage::{LOADER, OTHER_VM, Owned, Stage, VM, ensure},
};
use crate::{
    board::{Board, DmaDevice},
    event::{Effect, Event},
};

const BOTH: Access = Access::READ.union(Access::WRITE);
/// External users: a vCPU core, and a device model of the hypervisor.
const CORE: UserId = UserId(7);
const MODEL: UserId = UserId(8);
/// How long callers behind a gate, and operations of other CPUs, may take.
const LIMIT: Duration = Duration::from_millis(100);

type User<'b, B> = ExternalUser<'b, <B as Board>::Driver, 32, 32>;

/// Who was told that the ownership ends, in order, and whether the device still worked at that moment.
struct Told<'s, 'b, B: Board> {
    stage: &'s Stage<'b, B>,
    context: ContextHandle,
    iova: Iova,
    references: RefCell<[Option<User<'b, B>>; 2]>,
    order: RefCell<heapless::Vec<(UserId, bool), 4>>,
}

impl<B: Board> Told<'_, '_, B> {
    fn hear(&self, user: UserId) {
        self.stage.board.emit(&Event::Notified { user: user.0 });
        let buffer = self.stage.buffer(5);
        let written = buffer.and_then(|buffer| self.stage.write(0, self.context, self.iova, buffer));
        let landed = written.is_ok_and(|effect| effect == Effect::Landed);
        // A fifth call is missed here, and found by the comparison of the others.
        let _ = self.order.borrow_mut().push((user, landed));
        let mut references = self.references.borrow_mut();
        let reference = references.get_mut(user.0.wrapping_sub(CORE.0) as usize).and_then(Option::take);
        drop(reference);
    }
}

/// S23: a revocation tells the external users first, in their order, while the device still works; then the
/// device is blocked, handles and claim are stale, the tables are back, and the old claim does not touch the
/// next owner.
pub(super) fn revoked_device_is_blocked<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let group = stage.group(0)?;
    iommu.grant(VM, group)?;
    iommu.grant(OTHER_VM, group)?;
    let mut claim = stage.claim(0, VM, group)?;
    stage.take_what_stays(&mut claim, 0)?;
    let before = stage.board.table_pages_free();
    let (context, iova) = put_to_work(stage, &mut claim, 0, VM)?;
    let references = [
        Some(claim.refer(CORE)?),
        Some(iommu.refer_to_device(&Trusted::hypervisor(), MODEL, stage.device(0)?.id())?),
    ];
    let told = Told { stage, context, iova, references: RefCell::new(references), order: RefCell::default() };
    stage.step("the hypervisor takes the device away from VM 1");
    iommu.revoke(VM, group, |user| told.hear(user), &stage.board.clock(), LIMIT)?;
    stage.board.emit(&Event::Revoked { requester: stage.requester(0)?, vm: VM.0 });
    ensure(
        told.order.borrow().as_slice() == [(CORE, true), (MODEL, true)],
        "external users were not told first, each once and in order",
    )?;
    ensure(stage.write_blindly(0, iova, stage.buffer(5)?)? == Effect::Blocked, "a revoked device wrote")?;
    ensure(stage.board.table_pages_free() == before, "table pages were lost")?;
    nothing_is_left(stage, &mut claim, context, iova)?;
    let mut next = stage.claim(0, OTHER_VM, group)?;
    let (context, iova) = put_to_work(stage, &mut next, 0, OTHER_VM)?;
    stage.step("VM 1 gives up the claim that it no longer has");
    claim.release()?;
    ensure(
        stage.write(0, context, iova, stage.buffer(5)?)? == Effect::Landed,
        "an old claim's end touched the next owner",
    )
}

/// A mapping at page 0xc0 of a new context, and a write that lands there.
fn put_to_work<'b, B: Board>(
    stage: &Stage<'b, B>,
    claim: &mut Owned<'b, B>,
    index: usize,
    vm: VmId,
) -> Result<(ContextHandle, Iova), Failure> {
    let context = stage.context(vm)?;
    let (iova, buffer) = (stage.at(context, 0xc0)?, 5 + index);
    stage.map(context, iova, buffer, BOTH)?;
    stage.attach(claim, index, context)?;
    let effect = stage.write(index, context, iova, stage.buffer(buffer)?)?;
    ensure(effect == Effect::Landed, "a write missed its page")?;
    Ok((context, iova))
}

/// Every number and right of the VM that was revoked is refused, and its grant still can be withdrawn.
fn nothing_is_left<'b, B: Board>(
    stage: &Stage<'b, B>,
    claim: &mut Owned<'b, B>,
    context: ContextHandle,
    iova: Iova,
) -> Result<(), Failure> {
    let (iommu, group, buffer) = (stage.iommu(), claim.group(), stage.buffer(5)?);
    let stale_context = |error| error == Error::Stale { slot: context.slot() };
    let stale_claim = |error| error == Error::Stale { slot: group.0 };
    stage.refuses(
        "map in the context that is gone",
        iommu.map(context, iova, buffer.extent, BOTH),
        stale_context,
    )?;
    stage.refuses("ask what it can map", iommu.aperture(context), stale_context)?;
    stage.refuses("attach by the old claim", claim.switch(context), stale_claim)?;
    stage.refuses("quiesce by the old claim", stage.quiesce(claim), stale_claim)?;
    stage.refuses("refer by the old claim", claim.refer(CORE).map(drop), stale_claim)?;
    iommu.withdraw_grant(VM, group)?;
    stage.refuses("claim it again", iommu.claim(VM, group), |error| {
        error == Error::NotGranted { vm: VM, group }
    })
}

/// S24: a VM dies with two devices and two contexts, one at work, the other quiesced but not attached, its
/// context leading to registered memory: both devices are blocked, all table pages and the memory are back,
/// and another VM takes both and uses them.
pub(super) fn death_of_a_vm<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let iommu = stage.iommu();
    let (mut working, mut waiting) = (stage.own(0, VM)?, stage.own(1, VM)?);
    let groups = [working.group(), waiting.group()];
    stage.take_what_stays(&mut working, 0)?;
    stage.take_what_stays(&mut waiting, 1)?;
    let before = stage.board.table_pages_free();
    let (context, iova) = put_to_work(stage, &mut working, 0, VM)?;
    let other = guest_context(stage)?;
    let quiesced = stage.quiesce(&waiting)?;
    stage.tell_quiesced(1)?;
    stage.step("VM 1 dies");
    iommu.vm_died(VM, |_| {}, &stage.board.clock(), LIMIT)?;
    stage.board.emit(&Event::Died { vm: VM.0 });
    for index in 0..2 {
        stage.let_master(stage.device(index)?.id());
        stage.board.emit(&Event::Revoked { requester: stage.requester(index)?, vm: VM.0 });
        let effect = stage.write_blindly(index, iova, stage.buffer(5 + index)?)?;
        ensure(effect == Effect::Blocked, "a dead VM's device reached memory")?;
    }
    ensure(stage.board.table_pages_free() == before, "a dead VM kept table pages")?;
    drop(quiesced);
    // Refused as long as the dead VM has it.
    iommu.register_memory(OTHER_VM, page(0)?, stage.buffer(LOADER)?.extent)?;
    for gone in [context, other] {
        stage.refuses("use a dead VM's context", iommu.aperture(gone), |error| {
            error == Error::Stale { slot: gone.slot() }
        })?;
    }
    for (index, group) in (0..).zip(groups) {
        stage.refuses("claim for a dead VM", iommu.claim(VM, group), |error| {
            error == Error::NotGranted { vm: VM, group }
        })?;
        iommu.grant(OTHER_VM, group)?;
        let mut claim = stage.claim(index, OTHER_VM, group)?;
        put_to_work(stage, &mut claim, index, OTHER_VM)?;
    }
    Ok(())
}
