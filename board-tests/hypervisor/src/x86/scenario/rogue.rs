//! A guest that points its device at what is not its own.

use core::time::Duration;

use portcullis_hal::{Iova, PhysAddr, sync::Ordering};
use portcullis_iommu::GroupId;
use portcullis_suite::{
    Board, DmaDevice, Event, Failure,
    event::{Direction, Effect},
    scenario::stage,
};

use super::{
    LIMIT, Machine, Stage, ended, ensure, load, need, no_call, outcome,
    tenant::{Lent, Tenant},
    turn,
};
use crate::x86::{
    guest::{
        devices::EDU_BYTES,
        layout::{ARGUMENTS, FREE, GUEST_BYTES, IMAGE},
        programs::Program,
        script::{DONE, Op, What},
    },
    memory::GuestMemory,
    svm::Svm,
    vcpu::{Stop, Vcpu},
};

/// What a device reads first, and writes from then on.
const PATTERN: u64 = 0x0bad_f00d_0bad_f00d;
const SOURCE: u64 = FREE;
/// In a guest's own memory.
const OWN: u64 = FREE + 0x1000;
const PAGE: u64 = 4096;
const HALT: Op = Op(What::Halt, 0, 0);
/// What the CPU notes in entries of nested tables.
const ACCESSED_DIRTY: u64 = 3 << 5;
/// How long an operation on the group may hold a quarantine up.
const SOON: Duration = Duration::from_millis(100);

/// X32, X33.
pub(super) fn svm_guest_rogue_dma<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let (machine, policy) = (stage.machine, stage.policy()?);
    let groups = [policy.group(0)?, policy.group(1)?];
    let spec = machine.board().spec();
    let mut rogue = Tenant::new(stage, policy, 0, &spec)?;
    let mut other = Tenant::new(stage, policy, 1, &spec)?;
    let [mine, theirs] = groups;
    let (lent, their_device) = (rogue.lend(0, mine)?, other.lend(1, theirs)?);
    let targets = [rogue.guest.nested_root(), other.guest.memory().address().as_u64()];
    let beyond = targets.iter().all(|target| *target >= GUEST_BYTES);
    ensure(beyond, "the guest has memory of its own where it aims at another's")?;
    load(rogue.guest.memory(), rogue_script(&lent, targets))?;
    load(other.guest.memory(), honest_script(&their_device))?;
    let guests = [&rogue.guest, &other.guest];
    let mut vcpus = stage.vcpus(guests, Program::Script, ARGUMENTS)?;
    let [first, second] = &mut vcpus;
    let mut aim = Aim { machine, policy, index: 0, tenant: &rogue, vcpu: first };
    let mut honest = Aim { machine, policy, index: 1, tenant: &other, vcpu: second };
    honest.own("a guest lets its device write to its own memory")?;
    aim.own("another guest does so, too")?;
    aim.image()?;
    aim.tables()?;
    aim.memory(other.guest.memory())?;
    aim.theft()?;
    aim.quarantined(mine)?;
    honest.own("the other guest's device goes on")?;
    aim.goes_on()?;
    ended(honest.turn())?;
    rogue.take_back(lent)?;
    rogue.dismiss()?;
    other.take_back(their_device)?;
    other.dismiss()
}

/// The rogue's load: behind the beginning, four steps of two operations, the theft's four and a last one.
const LAST: u64 = 2 + 4 * 2 + 4 + 2;

/// Where each step of the rogue ends is a halt.
fn rogue_script<M: Machine>(lent: &Lent<'_, M>, [tables, memory]: [u64; 2]) -> impl Iterator<Item = Op> {
    let write = |iova| [Op(What::EduWrite, registers(lent), iova), HALT];
    let steps = [write(OWN), write(IMAGE), write(tables), write(memory)].into_iter().flatten();
    let [store, fill] = beginning(lent);
    let [pass_on, _] = write(OWN);
    let theft = [Op(What::EduRead, registers(lent), tables), pass_on, fill, HALT];
    let last = [pass_on, HALT, Op(What::Load, SOURCE, 0)];
    [store, fill].into_iter().chain(steps).chain(theft).chain(last)
}

fn honest_script<M: Machine>(lent: &Lent<'_, M>) -> impl Iterator<Item = Op> {
    let write = [Op(What::EduWrite, registers(lent), OWN), HALT];
    beginning(lent).into_iter().chain(write).chain(write)
}

/// Puts the pattern into the device.
fn beginning<M: Machine>(lent: &Lent<'_, M>) -> [Op; 2] {
    [Op(What::Store, SOURCE, PATTERN), Op(What::EduRead, registers(lent), SOURCE)]
}

/// The first entry of a nested table, without what the CPU notes in it.
fn first_entry<M: Machine>(machine: &M, table: u64) -> Option<u64> {
    let entry = machine.pool().table_at(PhysAddr::new(table))?.first()?;
    Some(entry.load(Ordering::Relaxed) & !ACCESSED_DIRTY)
}

fn registers<M: Machine>(lent: &Lent<'_, M>) -> u64 {
    lent.registers.start().as_u64()
}

/// One guest with its device, and what it does next.
struct Aim<'a, 'm, M: Machine> {
    machine: &'m M,
    policy: stage::Stage<'m, M::Board>,
    index: usize,
    tenant: &'a Tenant<'m, M>,
    vcpu: &'a mut Vcpu<Svm<'a>>,
}

impl<M: Machine> Aim<'_, '_, M> {
    fn turn(&mut self) -> Stop {
        turn(self.machine, self.vcpu, &mut self.tenant.exits(), &mut no_call, LIMIT)
    }

    /// Lets the guest go on to its next halt; tells of the write to `iova`, which `landed` judges.
    fn write(&mut self, iova: u64, landed: impl FnOnce() -> bool) -> Result<Effect, Failure> {
        self.go_on(Direction::Write, iova, landed)
    }

    fn go_on(
        &mut self,
        direction: Direction,
        iova: u64,
        landed: impl FnOnce() -> bool,
    ) -> Result<Effect, Failure> {
        self.policy.forget_faults();
        self.policy.forget_events();
        ensure(self.turn() == Stop::Halted, "the guest did not come to its next step")?;
        let effect = if landed() { Effect::Landed } else { Effect::Blocked };
        let device = self.policy.device(self.index)?.id();
        self.policy.tell(device, Iova::new(iova), direction, effect);
        Ok(effect)
    }

    /// A write to the guest's own memory, which must land.
    fn own(&mut self, what: &'static str) -> Result<(), Failure> {
        self.policy.step(what);
        let memory = self.tenant.guest.memory();
        need(memory.write(OWN, 0), "the guest's memory ends")?;
        let effect = self.write(OWN, || memory.read(OWN) == Some(PATTERN))?;
        ensure(effect == Effect::Landed, "a guest's device does not reach its memory")
    }

    /// A write to where the hypervisor's image lies: there the guest has a copy of its own.
    fn image(&mut self) -> Result<(), Failure> {
        self.policy.step("it aims at the address of the hypervisor's image");
        let (memory, digest) = (self.tenant.guest.memory(), self.machine.digest());
        let effect = self.write(IMAGE, || memory.read(IMAGE) == Some(PATTERN))?;
        ensure(effect == Effect::Landed, "a guest's device does not reach the guest's copy")?;
        ensure(self.machine.digest() == digest, "a guest's device changed the hypervisor's image")
    }

    /// A write to the nested tables that confine the guest itself, in the hypervisor's memory.
    fn tables(&mut self) -> Result<(), Failure> {
        self.policy.step("it aims at the hypervisor's memory: the nested tables that confine it");
        let (machine, root) = (self.machine, self.tenant.guest.nested_root());
        let entry = need(first_entry(machine, root), "the tables are not in the pool")?;
        let effect = self.write(root, || first_entry(machine, root) != Some(entry))?;
        ensure(effect == Effect::Blocked, "a guest's device changed the hypervisor's memory")?;
        self.blamed(root)
    }

    /// A write to another guest's memory.
    fn memory(&mut self, other: GuestMemory) -> Result<(), Failure> {
        self.policy.step("it aims at another guest's memory");
        let words = || (0..u64::from(EDU_BYTES)).step_by(8).map(move |at| other.read(at));
        let is_there = || words().any(|word| word == Some(PATTERN));
        ensure(!is_there(), "another guest's memory begins with the pattern")?;
        let iova = other.address().as_u64();
        let effect = self.write(iova, is_there)?;
        ensure(effect == Effect::Blocked, "a guest's device changed another guest's memory")?;
        self.blamed(iova)
    }

    /// A read of the nested tables: what the device then writes to the guest's own memory is not from there.
    fn theft(&mut self) -> Result<(), Failure> {
        self.policy.step("it reads the nested tables");
        let (memory, root) = (self.tenant.guest.memory(), self.tenant.guest.nested_root());
        let entry = need(first_entry(self.machine, root), "the tables are not in the pool")?;
        ensure(entry != 0, "the nested tables are empty")?;
        need(memory.write(OWN, !PATTERN), "the guest's memory ends")?;
        let stolen = || memory.read(OWN).is_none_or(|word| word & !ACCESSED_DIRTY == entry);
        let effect = self.go_on(Direction::Read, root, stolen)?;
        ensure(effect == Effect::Blocked, "a guest's device read the hypervisor's memory")?;
        self.blamed(root)?;
        ensure(memory.read(OWN) != Some(!PATTERN), "the device did not pass on what it read")?;
        let device = self.policy.device(self.index)?.id();
        self.policy.tell(device, Iova::new(OWN), Direction::Write, Effect::Landed);
        Ok(())
    }

    fn blamed(&self, iova: u64) -> Result<(), Failure> {
        let device = self.policy.device(self.index)?.id();
        self.policy.expect_blame(device, Iova::new(iova & !(PAGE - 1)), self.tenant.vm)
    }

    /// Quarantined, the device reaches nothing of the guest's own memory either.
    fn quarantined(&mut self, group: GroupId) -> Result<(), Failure> {
        self.policy.step("quarantine its device");
        self.policy.iommu().quarantine(group, &self.machine.board().clock(), SOON)?;
        let requester = self.policy.requester(self.index)?;
        self.machine.emit(&Event::Detached { requester });
        let memory = self.tenant.guest.memory();
        need(memory.write(OWN, 0), "the guest's memory ends")?;
        let effect = self.write(OWN, || memory.read(OWN) != Some(0))?;
        ensure(effect == Effect::Blocked, "a quarantined device reached its guest's memory")
    }

    /// The guest ends by itself, and the last it loaded is what it stored first.
    fn goes_on(&mut self) -> Result<(), Failure> {
        self.policy.step("the guest goes on without it");
        ended(self.turn())?;
        let last = outcome(self.tenant.guest.memory(), LAST)?;
        ensure(last.vector == DONE && last.value == PATTERN, "the guest lost its memory with its device")
    }
}
