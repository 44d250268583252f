//! A device's registers in a guest's hands: mapped where the processor can, by hypercall otherwise.

use core::sync::atomic::{AtomicU64, Ordering};

use portcullis_hal::{PhysAddr, RegisterIo, arch::powerpc64::RealModeRegisters};

use super::{
    frame::Frame,
    script::{Op, Width, call, calls, is_register},
};

/// Status of a hypercall that was done (H_SUCCESS of the LoPAPR, 14.4.2).
const H_SUCCESS: u64 = 0;
/// Status of a hypercall with a wrong argument (H_PARAMETER).
const H_PARAMETER: u64 = -4i64 as u64;

/// What the guest may reach by hypercall; no bytes: nothing.
static PROXY_START: AtomicU64 = AtomicU64::new(0);
static PROXY_BYTES: AtomicU64 = AtomicU64::new(0);

/// How the guest reaches the registers it was lent. They are big-endian, as those of QEMU's edu are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lent {
    /// They lie at this guest real address.
    Mapped(u64),
    /// The guest asks the hypervisor for each access.
    ByProxy,
}

impl Lent {
    /// Reads the register at `offset`.
    #[must_use]
    pub fn load(self, width: Width, offset: u64) -> Op {
        match self {
            Self::Mapped(at) => Op::Load(width, at.wrapping_add(offset)),
            Self::ByProxy => call(calls::READ_REGISTER, &[offset, width as u64]),
        }
    }

    /// Writes the register at `offset`.
    #[must_use]
    pub fn store(self, width: Width, offset: u64, value: u64) -> Op {
        match self {
            Self::Mapped(at) => Op::Store(width, at.wrapping_add(offset), swapped(width, value)),
            Self::ByProxy => call(calls::WRITE_REGISTER, &[offset, width as u64, value]),
        }
    }

    /// The value that a [`load`](Self::load) brought.
    #[must_use]
    pub const fn loaded(self, width: Width, outcome: &super::script::Record) -> u64 {
        match self {
            Self::Mapped(_) => swapped(width, outcome.status),
            Self::ByProxy => outcome.result,
        }
    }
}

/// The guest is little-endian.
const fn swapped(width: Width, value: u64) -> u64 {
    match width {
        Width::One => value,
        Width::Four => (value as u32).swap_bytes() as u64,
        Width::Eight => value.swap_bytes(),
    }
}

/// Lets the guest's hypercalls reach these registers, and no others.
pub(super) fn allow_proxy(registers: PhysAddr, bytes: u64) {
    PROXY_START.store(registers.as_u64(), Ordering::Relaxed);
    PROXY_BYTES.store(bytes, Ordering::Release);
}

/// Answers READ_REGISTER and WRITE_REGISTER, in the full context.
pub(super) fn answer(frame: &mut Frame) {
    let bytes = PROXY_BYTES.load(Ordering::Acquire);
    let [offset, width, value, ..] = frame.arguments();
    if !is_register(offset, width, bytes) {
        frame.set_status(H_PARAMETER);
        return;
    }
    let start = PhysAddr::new(PROXY_START.load(Ordering::Relaxed));
    // SAFETY: registers that were lent to the guest; the full context is in hypervisor real mode.
    let registers = unsafe { RealModeRegisters::new(start, bytes as usize) };
    let offset = offset as usize;
    match (frame.opcode(), width) {
        (calls::READ_REGISTER, 4) => frame.set_result(registers.read32(offset).into()),
        (calls::READ_REGISTER, _) => frame.set_result(registers.read64(offset)),
        (_, 4) => registers.write32(offset, value as u32),
        _ => registers.write64(offset, value),
    }
    frame.set_status(H_SUCCESS);
}
