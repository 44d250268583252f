//! A guest drives a disk that was lent to it.

use core::time::Duration;

use portcullis_hal::Clock;
use portcullis_suite::{
    Board, Event, Failure,
    bare::ROUNDS,
    event::{DISK, Direction, Effect},
};

use super::{LIMIT, Machine, Stage, ended, ensure, load, need, tenant::Tenant, turn};
use crate::x86::{
    guest::{
        calls,
        disk::{BEGINS, DATA, ENDS},
        layout::ARGUMENTS,
        programs::Program,
        script::{Op, What},
    },
    vcpu::{Call, Stop, UNKNOWN_CALL},
};

/// The board's disk.
const INDEX: usize = 2;

/// X30, X31.
pub(super) fn svm_guest_reads_its_disk<M: Machine>(stage: &mut Stage<'_, M>) -> Result<(), Failure> {
    let (machine, policy) = (stage.machine, stage.policy()?);
    let (board, digest) = (machine.board(), machine.digest());
    let group = policy.group(INDEX)?;
    let spec = board.coherent_spec().unwrap_or_else(|_| board.spec());
    let mut tenant = Tenant::new(stage, policy, 0, &spec)?;
    let lent = tenant.lend(INDEX, group)?;
    let (registers, memory) = (lent.registers, tenant.guest.memory());
    need(memory.write(ARGUMENTS, registers.start().as_u64()), "no room for arguments")?;
    need(memory.write(ARGUMENTS + 8, registers.bytes()), "no room for arguments")?;
    stage.step("the guest reads its disk by DMA, and adds it up");
    let mut told = Told::default();
    let mut vcpu = stage.vcpu(&tenant.guest, Program::Disk, ARGUMENTS)?;
    let mut answer = |call| told.answer(call, machine.clock());
    ended(turn(machine, &mut vcpu, &mut tenant.exits(), &mut answer, LIMIT))?;
    let counts = vcpu.counts();
    let [value, bytes] = told.values;
    ensure(told.count == 2, "the guest made another number of reports")?;
    ensure(counts.faults == 0, "the guest exited for its own device")?;
    let (requester, iova) = (policy.requester(INDEX)?, DATA);
    let (direction, effect) = (Direction::Write, Effect::Landed);
    machine.emit(&Event::Dma { requester, iova, bytes: bytes as u32, direction, effect });
    machine.emit(&Event::Checksum { what: DISK, value: value as u32, bytes });
    ensure(told.rounds == ROUNDS, "the guest did not read its disk again")?;
    tell_speed(machine, told.best, bytes);
    stage.step("take the disk back");
    tenant.take_back(lent)?;
    is_out_of_reach(stage, &tenant, registers.start().as_u64())?;
    tenant.dismiss()?;
    ensure(machine.digest() == digest, "the hypervisor's image has changed")
}

/// The guest does not reach registers that were taken back.
fn is_out_of_reach<'m, M: Machine>(
    stage: &mut Stage<'m, M>,
    tenant: &Tenant<'m, M>,
    at: u64,
) -> Result<(), Failure> {
    let machine = stage.machine;
    let script = load(tenant.guest.memory(), [Op(What::Load, at, 0)])?;
    let mut vcpu = stage.vcpu(&tenant.guest, Program::Script, script)?;
    let stop = turn(machine, &mut vcpu, &mut tenant.exits(), &mut super::no_call, LIMIT);
    let is_there = matches!(stop, Stop::Fault(fault) if fault.address == at);
    ensure(is_there, "the guest reaches registers that were taken back")
}

/// X31: how fast the guest was, and the hypervisor without translation before.
fn tell_speed<M: Machine>(machine: &M, best: Duration, bytes: u64) {
    let measured = |what, value, unit| machine.emit(&Event::Measured { what, value, unit });
    let time = (best.as_micros() as u64).max(1);
    measured("disk read by its guest", (bytes * 1_000_000 / time) >> 10, "KiB a second");
    if let Some(bare) = machine.board().bare_disk_time() {
        let bare = (bare.as_micros() as u64).max(1);
        measured("disk read without translation", (bytes * 1_000_000 / bare) >> 10, "KiB a second");
        measured("the guest against no translation", bare * 100 / time, "percent of its speed");
    }
}

/// What the guest told: two values, and the shortest of its rounds.
struct Told {
    values: [u64; 2],
    count: usize,
    begin: Duration,
    best: Duration,
    rounds: u64,
}

impl Default for Told {
    fn default() -> Self {
        Self { values: [0; 2], count: 0, begin: Duration::ZERO, best: Duration::MAX, rounds: 0 }
    }
}

impl Told {
    fn answer(&mut self, call: Call, clock: &dyn Clock) -> u64 {
        let [value, ..] = call.arguments;
        match (call.number, value) {
            (calls::REPORT, _) => {
                self.values.iter_mut().skip(self.count).take(1).for_each(|place| *place = value);
                self.count += 1;
            }
            (calls::STEP, BEGINS) => self.begin = clock.now(),
            (calls::STEP, ENDS) => {
                self.best = self.best.min(clock.now().saturating_sub(self.begin));
                self.rounds += 1;
            }
            _ => return UNKNOWN_CALL,
        }
        0
    }
}
