//! A guest dies while its device does DMA: of a triple fault, and by the hypervisor's will while it runs.

use core::time::Duration;

use portcullis_hal::Iova;
use portcullis_iommu::{GroupId, VmId};
use portcullis_suite::{
    Board, Event, Failure,
    scenario::{stage::Stage as Policy, watch::Watch},
};

use super::{
    Cpus, Orders, Parts, Task, await_that, beside, driven,
    handover::{drain, floods, keep_busy, uses},
    page::Target,
    parts, turn,
};
use crate::x86::{
    guest::{
        dma::{self, TARGET},
        layout::{ARGUMENTS, FREE},
        programs::Program,
        script::{Op, What},
    },
    memory::GuestMemory,
    scenario::{
        Guest, LIMIT, Machine, Stage, ended, ensure, load, no_call,
        tenant::{Spec, Tenant},
    },
    svm::SvmCpu,
    vcpu::Stop,
};

const DEVICE: usize = 0;
/// The VM that gets a dead one's memory.
const HEIR: VmId = VmId(3);
/// How long operations of other CPUs may take before a VM is ended for them.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long memory of a guest that was killed is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How VM 1 dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Death {
    TripleFault,
    Killed,
}

/// X43.
pub(in super::super) fn svm_guest_dies_under_dma<M: Machine>(
    stage: &mut Stage<'_, M>,
) -> Result<(), Failure> {
    let machine = stage.machine;
    ensure(machine.cpus().start(), "there is no second CPU")?;
    let (policy, spec, digest) = (stage.policy()?, machine.board().spec(), machine.digest());
    let group = policy.group(DEVICE)?;
    let mut other = Tenant::new(stage, policy, 1, &spec)?;
    for death in [Death::TripleFault, Death::Killed] {
        dies(stage, policy, &spec, (group, &other.guest), death)?;
    }
    stage.step("the device goes to VM 2");
    let lent = other.lend(DEVICE, group)?;
    driven::prepare(other.guest.memory(), lent.registers, 1)?;
    uses(stage, &other)?;
    other.take_back(lent)?;
    other.dismiss()?;
    ensure(machine.digest() == digest, "the hypervisor's image has changed")
}

/// VM 1 gets the device, dies, and its memory goes to another guest.
fn dies<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    policy: Policy<'m, M::Board>,
    spec: &Spec<M>,
    (group, other): (GroupId, &Guest<'m>),
    death: Death,
) -> Result<(), Failure> {
    let mut one = Tenant::new(stage, policy, 0, spec)?;
    let lent = one.lend(DEVICE, group)?;
    driven::prepare(one.guest.memory(), lent.registers, 0)?;
    let targets = [Target(one.guest.memory()), Target(other.memory())];
    let [ours, theirs] = &targets;
    theirs.renew();
    let watch = Watch::new(&policy, Iova::new(TARGET), [ours.buffer()?, theirs.buffer()?]);
    match death {
        Death::TripleFault => falls(stage, &one.guest, other)?,
        Death::Killed => is_killed(stage, &one.guest)?,
    }
    keep_busy(&policy)?;
    policy.iommu().vm_died(one.vm, |_| (), &policy.board.clock(), PATIENCE)?;
    ensure(theirs.is_new(), "DMA of VM 1's device reached VM 2")?;
    watch.refill();
    policy.board.emit(&Event::Died { vm: one.vm.0 });
    policy.board.emit(&Event::Revoked { requester: policy.requester(DEVICE)?, vm: one.vm.0 });
    drain(stage.machine.cpus(), &policy)?;
    ensure(watch.is_untouched(), "a transfer of a dead guest's reached memory")?;
    watch.during(|| Ok(()))?;
    drop((lent, one));
    inherit(stage, policy, spec, (&watch, ours))?;
    lives(stage, other)
}

/// Another guest gets the dead one's memory, while the device still writes where that was.
fn inherit<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    policy: Policy<'m, M::Board>,
    spec: &Spec<M>,
    (watch, target): (&Watch<'_, '_, M::Board>, &Target),
) -> Result<(), Failure> {
    stage.step("its memory goes to VM 3, while the device writes");
    keep_busy(&policy)?;
    let heir = Tenant::numbered(stage, policy, 0, HEIR, spec)?;
    drain(stage.machine.cpus(), &policy)?;
    ensure(target.is_new(), "DMA of a dead guest reached the memory of another one")?;
    watch.refill();
    watch.during(|| lives(stage, &heir.guest))?;
    heir.dismiss()
}

/// A guest does what it is told, on this CPU.
fn lives<'m, M: Machine>(stage: &mut Stage<'m, M>, guest: &Guest<'m>) -> Result<(), Failure> {
    let machine = stage.machine;
    let script = load(guest.memory(), [Op(What::Load, FREE, 0)])?;
    let mut vcpu = stage.vcpu(guest, Program::Script, script)?;
    let cache = &mut crate::x86::vcpu::NoCacheControl;
    ended(crate::x86::scenario::turn(machine, &mut vcpu, cache, &mut no_call, LIMIT))
}

/// The guest has its device write, and dies of a triple fault; another one runs on this CPU meanwhile.
fn falls<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    guest: &Guest<'m>,
    other: &Guest<'m>,
) -> Result<(), Failure> {
    stage.step("VM 1 dies of a triple fault on the second CPU, its device in the middle of a transfer");
    let cpus = stage.machine.cpus();
    let argument = load(other.memory(), [Op(What::Load, FREE, 0)])?;
    let alive = Task { guest: other, vcpu: 0, program: Program::Script, argument };
    let dying = Task { guest, vcpu: 0, program: Program::DiesUnderDma, argument: ARGUMENTS };
    let orders: [Orders; 2] = Default::default();
    let ([here, there], cpu) = parts(stage, [alive, dying], &orders)?;
    let (stops, stop) = beside(
        cpus,
        |cpu| run_twice(cpus, cpu, there),
        || turn(cpus, &mut here.vcpu(cpu), &mut no_call, LIMIT),
    )?;
    ended(stop)?;
    ensure(stops == [Stop::Shutdown; 2], "a triple fault did not end the guest, or it ran again")?;
    ensure(dma::writes(guest.memory()) == 1, "the guest did not have its device write")
}

/// The hypervisor ends the guest while it runs and its device writes.
fn is_killed<M: Machine>(stage: &mut Stage<'_, M>, guest: &Guest<'_>) -> Result<(), Failure> {
    stage.step("the hypervisor ends VM 1, which runs on the second CPU");
    let cpus = stage.machine.cpus();
    let orders: [Orders; 2] = Default::default();
    let ([_, there], _) = parts(stage, [floods(guest), floods(guest)], &orders)?;
    let [_, order] = &orders;
    let (stops, killed) =
        beside(cpus, |cpu| run_twice(cpus, cpu, there), || kill(cpus, guest.memory(), order))?;
    killed?;
    ensure(stops == [Stop::Shutdown; 2], "a guest that was killed stopped otherwise, or ran again")
}

fn run_twice<C: Cpus>(cpus: &C, cpu: &SvmCpu, parts: Parts<'_>) -> [Stop; 2] {
    let mut vcpu = parts.vcpu(cpu);
    [2 * LIMIT, LOOK].map(|limit| turn(cpus, &mut vcpu, &mut no_call, limit))
}

fn kill<C: Cpus>(cpus: &C, memory: GuestMemory, order: &Orders) -> Result<(), Failure> {
    driven::is_at_work(cpus, memory, 0)?;
    order.die(cpus)?;
    let last = dma::writes(memory);
    let runs = await_that(cpus, LOOK, || dma::writes(memory) != last);
    ensure(!runs, "a guest that was killed still executes")
}
