//! Transfers: let a device copy, look at the data, and tell the host.

use portcullis_hal::{Access, DeviceId, Iova};
use portcullis_iommu::{ContextHandle, Fault};

use super::{
    Failure,
    stage::{LOADER, Stage, UNLOADER},
    words::describe_fault,
};
use crate::{
    board::{Board, Buffer, DmaDevice},
    event::{Direction, Effect, Event},
};

/// Bytes in most transfers.
pub(super) const BYTES: u32 = 256;
/// What buffers hold until a device writes to them.
pub(super) const SENTINEL: u8 = 0x5a;

impl<'b, B: Board> Stage<'b, B> {
    /// Lets device `index`, in `context`, write a fresh pattern to `iova`, where buffer `target` lies (or
    /// would lie), and says what happened to it.
    pub(super) fn write(
        &self,
        index: usize,
        context: ContextHandle,
        iova: Iova,
        target: Buffer<'b>,
    ) -> Result<Effect, Failure> {
        let (device, seed) = (self.device(index)?, seed_of(iova, index));
        fill(self.buffer(LOADER)?, |offset| pattern(seed, offset));
        fill(target, |_| SENTINEL);
        device.read_memory(self.loader(context)?, BYTES)?;
        self.forget_faults();
        device.write_memory(iova, BYTES)?;
        let effect = judge(target, |byte, offset| byte == pattern(seed, offset), |byte| byte == SENTINEL);
        self.tell(device.id(), iova, Direction::Write, effect);
        Ok(effect)
    }

    /// The same, where `target` lies in the device's own context; and whether `bystander`, which lies there
    /// in another context, stayed as it was.
    pub(super) fn write_spares(
        &self,
        index: usize,
        context: ContextHandle,
        iova: Iova,
        target: Buffer<'b>,
        bystander: Buffer<'b>,
    ) -> Result<bool, Failure> {
        fill(bystander, |_| SENTINEL);
        let landed = self.write(index, context, iova, target)? == Effect::Landed;
        Ok(landed && is_untouched(bystander))
    }

    /// Lets device `index`, which is in no context, write to `iova`, where buffer `target` would lie.
    pub(super) fn write_blindly(
        &self,
        index: usize,
        iova: Iova,
        target: Buffer<'b>,
    ) -> Result<Effect, Failure> {
        let device = self.device(index)?;
        fill(target, |_| SENTINEL);
        self.forget_faults();
        device.write_memory(iova, BYTES)?;
        let effect = judge(target, |byte, _| byte != SENTINEL, |byte| byte == SENTINEL);
        self.tell(device.id(), iova, Direction::Write, effect);
        Ok(effect)
    }

    /// Lets device `index`, in `context`, write a fresh pattern to `iova`, the address of the image's first
    /// page, whose bytes must stay as they are.
    pub(super) fn write_over_image(
        &self,
        index: usize,
        context: ContextHandle,
        iova: Iova,
    ) -> Result<Effect, Failure> {
        let (device, seed) = (self.device(index)?, seed_of(iova, index));
        let before: [u8; BYTES as usize] = core::array::from_fn(|offset| self.board.image_byte(offset));
        fill(self.buffer(LOADER)?, |offset| pattern(seed, offset));
        device.read_memory(self.loader(context)?, BYTES)?;
        self.forget_faults();
        device.write_memory(iova, BYTES)?;
        let same = before.iter().enumerate().all(|(offset, byte)| self.board.image_byte(offset) == *byte);
        let effect = if same { Effect::Blocked } else { Effect::Landed };
        self.tell(device.id(), iova, Direction::Write, effect);
        Ok(effect)
    }

    /// Lets device `index`, in `context`, read a fresh pattern from `iova`, where buffer `source` lies (or
    /// would lie), and says whether it got it.
    pub(super) fn read(
        &self,
        index: usize,
        context: ContextHandle,
        iova: Iova,
        source: Buffer<'b>,
    ) -> Result<Effect, Failure> {
        let (device, seed) = (self.device(index)?, seed_of(iova, index));
        let unloaded = self.buffer(UNLOADER)?;
        fill(self.buffer(LOADER)?, |_| SENTINEL);
        fill(source, |offset| pattern(seed, offset));
        device.read_memory(self.loader(context)?, BYTES)?;
        self.forget_faults();
        device.read_memory(iova, BYTES)?;
        let fault = self.board.take_fault();
        fill(unloaded, |_| !SENTINEL);
        device.write_memory(self.unloader(context)?, BYTES)?;
        // A refused read leaves the device with its old data, or with what an absent target answers.
        let refused = |byte| matches!(byte, SENTINEL | 0 | 0xff);
        let effect = judge(unloaded, |byte, offset| byte == pattern(seed, offset), refused);
        self.tell_with(device.id(), iova, Direction::Read, effect, fault);
        Ok(effect)
    }

    /// Takes all faults that hardware has recorded.
    pub fn forget_faults(&self) {
        // Bounded: hardware that makes up faults without end must not hang the suite.
        for _ in 0..64 {
            if self.board.take_fault().is_none() {
                return;
            }
        }
    }

    /// Tells what a device's transfer did.
    pub fn tell(&self, device: DeviceId, iova: Iova, direction: Direction, effect: Effect) {
        let fault = self.board.take_fault();
        self.tell_with(device, iova, direction, effect, fault);
    }

    fn tell_with(
        &self,
        device: DeviceId,
        iova: Iova,
        direction: Direction,
        effect: Effect,
        fault: Option<Fault>,
    ) {
        let requester = device.requester.as_u16();
        self.board.emit(&Event::Dma { requester, iova: iova.as_u64(), bytes: BYTES, direction, effect });
        if let Some(fault) = fault {
            self.tell_fault(fault);
        }
    }

    /// Tells of a fault.
    pub fn tell_fault(&self, fault: Fault) {
        self.board.emit(&Event::Fault {
            requester: fault.device.requester.as_u16(),
            iova: fault.iova.map(Iova::as_u64),
            direction: if fault.access == Access::READ { Direction::Read } else { Direction::Write },
            reason: describe_fault(fault.reason),
        });
    }
}

/// Never 0, 0xff or the sentinel, so that no refused transfer looks like a landed one.
fn pattern(seed: u8, offset: usize) -> u8 {
    let value = seed.wrapping_add((offset as u8).wrapping_mul(37));
    if matches!(value, 0 | 0xff | SENTINEL) { 0x42 } else { value }
}

fn seed_of(iova: Iova, index: usize) -> u8 {
    ((iova.as_u64() >> 12) as u8).wrapping_mul(29).wrapping_add(index as u8).wrapping_add(7)
}

pub(super) fn fill(buffer: Buffer<'_>, byte: impl Fn(usize) -> u8) {
    for offset in 0..BYTES as usize {
        buffer.bytes.write(offset, byte(offset));
    }
}

/// Whether nothing was written to a buffer since it was filled to be watched.
#[must_use]
pub fn is_untouched(buffer: Buffer<'_>) -> bool {
    (0..BYTES as usize).all(|offset| buffer.bytes.read(offset) == SENTINEL)
}

fn judge(buffer: Buffer<'_>, landed: impl Fn(u8, usize) -> bool, untouched: impl Fn(u8) -> bool) -> Effect {
    let bytes = || (0..BYTES as usize).map(|offset| (buffer.bytes.read(offset), offset));
    if bytes().all(|(byte, offset)| landed(byte, offset)) {
        Effect::Landed
    } else if bytes().all(|(byte, _)| untouched(byte)) {
        Effect::Blocked
    } else {
        Effect::Garbled
    }
}
