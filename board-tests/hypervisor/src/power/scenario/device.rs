//! A guest uses the registers of a device that it was lent.

use portcullis_suite::Failure;

use super::{Machine, Stage, ensure, need, no_call};
use crate::power::{
    registers::Lent,
    script::{Op, Width, call, calls},
    tables::REGISTERS_AT,
};

/// edu's identification register, and what it holds there in all versions (QEMU, `docs/specs/edu`).
const IDENTIFICATION: u64 = 0;
const IS_EDU: u64 = 0xed;
/// edu's liveness check: reads as the complement of what was written.
const LIVENESS: u64 = 4;
const WRITTEN: u64 = 0x1234_5678;

/// V07.
pub(super) fn guest_drives_a_device<M: Machine>(stage: &Stage<'_, M>) -> Result<(), Failure> {
    let (registers, bytes) = need(stage.machine.device_registers(), "the board has no device to lend")?;
    // SAFETY: the device is nobody else's in this scenario.
    let lent = unsafe { stage.guest.lend_registers(registers, bytes) };
    let lent = need(lent, "the registers are not whole pages")?;
    stage.step(match lent {
        Lent::Mapped(_) => "the guest reads and writes a device's registers, which are mapped for it",
        Lent::ByProxy => "the guest reads and writes a device's registers by hypercall",
    });
    stage.run(
        [
            lent.load(Width::Four, IDENTIFICATION),
            lent.store(Width::Four, LIVENESS, WRITTEN),
            lent.load(Width::Four, LIVENESS),
        ],
        no_call,
    )?;
    let identification = lent.loaded(Width::Four, &stage.outcome(0, 0)?);
    ensure(identification & 0xff == IS_EDU, "the guest does not find the device")?;
    let liveness = lent.loaded(Width::Four, &stage.outcome(0, 2)?);
    ensure(liveness == WRITTEN ^ 0xffff_ffff, "the device does not do what the guest wrote")?;
    beyond(stage, lent, bytes)
}

/// What follows the registers is not lent.
fn beyond<M: Machine>(stage: &Stage<'_, M>, lent: Lent, bytes: u64) -> Result<(), Failure> {
    stage.step("the guest reads beyond the registers");
    let proxy = call(calls::READ_REGISTER, &[bytes, 4]);
    let script: [Op; 2] = [lent.load(Width::Four, bytes), proxy];
    stage.run(script, no_call)?;
    let (direct, proxy) = (stage.outcome(0, 0)?, stage.outcome(0, 1)?);
    if lent != Lent::ByProxy {
        stage.run([Op::Jump(REGISTERS_AT)], no_call)?;
        ensure(stage.outcome(0, 0)?.trap == 0xe20, "the guest executes a device's registers")?;
    }
    ensure(direct.trap != 0 || lent == Lent::ByProxy, "the guest reads beyond the device's registers")?;
    ensure(proxy.status != 0, "the hypervisor reads beyond the device's registers for the guest")
}
