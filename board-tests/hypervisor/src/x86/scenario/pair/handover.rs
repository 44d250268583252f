//! A device goes from one guest to another while it does DMA.

use portcullis_hal::{Iova, PhysRange};
use portcullis_suite::{
    Board, DmaDevice, Event, Failure,
    scenario::{stage::Stage as Policy, watch::Watch},
};

use super::{
    Cpus, Orders, Task, await_that, beside,
    driven::{self, Looks, pattern},
    page::Target,
    parts, take_back,
};
use crate::x86::{
    guest::{
        dma::{self, ARRIVAL, TARGET},
        layout::ARGUMENTS,
        programs::Program,
    },
    scenario::{
        Guest, LIMIT, Machine, Stage, ended, ensure, need, no_call,
        tenant::{Lent, Tenant},
        turn,
    },
    vcpu::Stop,
};

/// The device that changes hands.
const DEVICE: usize = 0;

/// X42.
pub(in super::super) fn svm_handover_under_dma<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let machine = stage.machine;
    let cpus = machine.cpus();
    ensure(cpus.start(), "there is no second CPU")?;
    let (policy, spec) = (stage.policy()?, machine.board().spec());
    let group = policy.group(DEVICE)?;
    let mut one = Tenant::new(stage, policy, 0, &spec)?;
    let mut other = Tenant::new(stage, policy, 1, &spec)?;
    let lent = one.lend(DEVICE, group)?;
    let memories = [one.guest.memory(), other.guest.memory()];
    for (index, memory) in memories.into_iter().enumerate() {
        driven::prepare(memory, lent.registers, index)?;
    }
    let targets = memories.map(Target);
    let [ours, theirs] = &targets;
    let watch = Watch::new(&policy, Iova::new(TARGET), [ours.buffer()?, theirs.buffer()?]);
    let (orders, looks): ([Orders; 2], _) = (Default::default(), Looks::default());
    stage.step("VM 1 has its device write to its memory, on the second CPU");
    let ([_, there], _) = parts(stage, [floods(&one.guest), floods(&one.guest)], &orders)?;
    let clean = || is_clean(&targets);
    let (stop, handed) = beside(
        cpus,
        |cpu| driven::run_and_look(cpus, cpu, there, &looks, clean),
        || {
            let [_, order] = &orders;
            let handed = driven::is_at_work(cpus, ours.0, 0).and_then(|()| {
                hand_over::<M>((cpus, &policy), (&mut one, order), lent, &other, (&watch, &looks))
            });
            looks.end();
            handed
        },
    )?;
    let lent = handed?;
    ensure(is_lost(stop, lent.registers), "VM 1 reaches the registers of a device that it has no more")?;
    let [looked, hits] = looks.seen();
    machine.emit(&Event::Measured { what: "looks of the second CPU", value: looked, unit: "" });
    ensure(looked > 100, "the second CPU did not look")?;
    ensure(hits == 0, "DMA that VM 1 had ordered reached memory after the end of its ownership")?;
    let lending = other.guest.lend(lent.registers.start(), lent.registers.bytes());
    ensure(lending.is_ok(), "the registers cannot be lent")?;
    uses(stage, &other)?;
    ensure(watch_one(ours), "VM 2's device wrote to VM 1's memory")?;
    other.take_back(lent)?;
    other.dismiss()?;
    policy.iommu().withdraw_grant(one.vm, group)?;
    one.dismiss()
}

/// Has the guest's device write for ever.
pub(super) const fn floods<'s, 'm>(guest: &'s Guest<'m>) -> Task<'s, 'm> {
    Task { guest, vcpu: 0, program: Program::Floods, argument: ARGUMENTS }
}

/// Neither page was written since the watch began.
fn is_clean(targets: &[Target; 2]) -> bool {
    targets.iter().all(watch_one)
}

fn watch_one(target: &Target) -> bool {
    target.buffer().is_ok_and(portcullis_suite::scenario::watch::is_untouched)
}

/// Whether a guest stopped because its device's registers are gone.
fn is_lost(stop: Stop, registers: PhysRange) -> bool {
    matches!(stop, Stop::Fault(fault)
        if (registers.start().as_u64()..registers.start().as_u64() + registers.bytes()).contains(&fault.address))
}

/// Takes the device from VM 1, whose vCPU runs, and gives it to VM 2, while it writes during each of the steps. Returns
/// with bus mastering on, when no order of VM 1's is left in the device.
fn hand_over<'m, M: Machine>(
    (cpus, policy): (&M::Cpus, &Policy<'m, M::Board>),
    (one, order): (&mut Tenant<'m, M>, &Orders),
    lent: Lent<'m, M>,
    other: &Tenant<'m, M>,
    (watch, looks): (&Watch<'_, '_, M::Board>, &Looks),
) -> Result<Lent<'m, M>, Failure> {
    let Lent { claim, index, registers } = lent;
    let (vm, group) = (one.vm, claim.group());
    policy.step("its registers are taken back, and its claim ends in the middle of a transfer");
    let theirs = Target(other.guest.memory());
    watch.refill();
    take_back(cpus, &mut one.guest, (registers.start(), registers.bytes()), order)?;
    keep_busy(policy)?;
    claim.release()?;
    ensure(watch_one(&theirs), "VM 1's device wrote to VM 2's memory")?;
    watch.refill();
    looks.close();
    policy.tell_released(index, vm)?;
    drain(cpus, policy)?;
    ensure(watch.is_untouched(), "a transfer of VM 1's came to memory after the end of its claim")?;
    policy.step("VM 2 takes it, with its own memory at the same addresses");
    policy.iommu().grant(other.vm, group)?;
    let mut claim = watch.during(|| policy.claim(index, other.vm, group))?;
    let quiesced = watch.during(|| {
        let quiesced = policy.quiesce(&claim)?;
        policy.tell_quiesced(index)?;
        Ok(quiesced)
    })?;
    watch.during(|| {
        claim.attach(other.context, quiesced)?;
        policy.tell_attached(index, other.context)
    })?;
    policy.let_master(policy.device(index)?.id());
    ensure(watch.is_untouched(), "an old order of the device reached memory")?;
    Ok(Lent { claim, index, registers })
}

/// Has the device do once more what its guest had it do, if it happens to be idle.
pub(super) fn keep_busy<B: Board>(policy: &Policy<'_, B>) -> Result<(), Failure> {
    let device = policy.device(DEVICE)?;
    if !device.is_busy() {
        device.begin_write(Iova::new(ARRIVAL), dma::BYTES)?;
    }
    Ok(())
}

/// Waits until the device has come to the end of what its guest ordered.
pub(super) fn drain<B: Board>(cpus: &impl Cpus, policy: &Policy<'_, B>) -> Result<(), Failure> {
    let device = policy.device(DEVICE)?;
    ensure(await_that(cpus, LIMIT, || !device.is_busy()), "the device does not end its transfer")
}

/// A guest drives the device that it was lent, on this CPU, and finds in its memory what it had the device write.
pub(super) fn uses<'m, M: Machine>(stage: &mut Stage<'m, M>, tenant: &Tenant<'m, M>) -> Result<(), Failure> {
    stage.step("the device's new guest uses it");
    let (machine, memory) = (stage.machine, tenant.guest.memory());
    let mut vcpu = stage.vcpu(&tenant.guest, Program::Copies, ARGUMENTS)?;
    ended(turn(machine, &mut vcpu, &mut tenant.exits(), &mut no_call, LIMIT))?;
    let source = need(memory.read(dma::SOURCE), "there is no source")?;
    ensure(source == pattern(1), "the guest's source changed")?;
    ensure(dma::has_arrived(memory, source), "the device's new guest cannot use it")
}
