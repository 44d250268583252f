//! What scenarios do again and again: map, let a device copy, look at the data, and tell the host.

use portcullis_hal::{Access, DeviceId, Iova, IovaRange};
use portcullis_iommu::{Claim, ContextHandle, Driver, Error, Fault, FaultReason, GroupId, Iommu, VmId};

use super::Failure;
use crate::{
    board::{Board, Buffer, DmaDevice},
    event::{Direction, Effect, Event},
};

/// Bytes in most transfers.
pub(super) const BYTES: u32 = 256;
/// Bytes in an IOMMU page of the suite's contexts.
pub(super) const PAGE: u64 = 4096;
/// The VM that most scenarios act for.
pub(super) const VM: VmId = VmId(1);
/// One that must not get in its way.
pub(super) const OTHER_VM: VmId = VmId(2);

/// The buffer whose data devices are loaded with; scenarios use the others.
const LOADER: usize = 15;
/// The buffer that a device's own buffer is written out to.
const UNLOADER: usize = 14;

pub(super) type Owned<'b, B> = Claim<'b, <B as Board>::Driver, 32, 32>;
type Spec<B> = <<B as Board>::Driver as Driver>::Spec;

/// A board with a scenario on it.
pub(super) struct Stage<'b, B: Board> {
    pub(super) board: &'b B,
}

/// Fails the scenario, with the line of the caller, unless `condition` holds.
#[track_caller]
pub(super) fn ensure(condition: bool, what: &'static str) -> Result<(), Failure> {
    let line = core::panic::Location::caller().line();
    if condition { Ok(()) } else { Err(Failure { what, error: None, line }) }
}

/// The value, or a failure with the line of the caller.
#[track_caller]
pub(super) fn need<T>(value: Option<T>, what: &'static str) -> Result<T, Failure> {
    let line = core::panic::Location::caller().line();
    value.ok_or(Failure { what, error: None, line })
}

impl<'b, B: Board> Stage<'b, B> {
    /// `None` when the board lacks two devices or sixteen buffers.
    pub(super) fn new(board: &'b B) -> Option<Self> {
        board.device(1)?;
        for (index, device) in (0..=2u8).filter_map(|index| Some((index, board.device(index.into())?))) {
            let requester = device.id().requester.as_u16();
            board.emit(&Event::Device { index, requester, name: device.name() });
        }
        board.buffer(LOADER)?;
        Some(Self { board })
    }

    pub(super) fn iommu(&self) -> &'b Iommu<B::Driver> {
        self.board.iommu()
    }

    pub(super) fn step(&self, text: &'static str) {
        self.board.emit(&Event::Step { text });
    }

    pub(super) fn device(&self, index: usize) -> Result<&'b B::Device, Failure> {
        need(self.board.device(index), "the board lacks a device")
    }

    pub(super) fn buffer(&self, index: usize) -> Result<Buffer<'b>, Failure> {
        need(self.board.buffer(index), "the board lacks a buffer")
    }

    /// Registers device `index` as a group of its own.
    pub(super) fn group(&self, index: usize) -> Result<GroupId, Failure> {
        Ok(self.iommu().add_group(&[self.device(index)?.id()])?)
    }

    /// Registers device `index`, grants it to `vm` and claims it.
    pub(super) fn own(&self, index: usize, vm: VmId) -> Result<Owned<'b, B>, Failure> {
        let group = self.group(index)?;
        self.iommu().grant(vm, group)?;
        Ok(self.iommu().claim(vm, group)?)
    }

    /// A context with the page at [`loader`](Self::loader) and the one at
    /// [`unloader`](Self::unloader), through which transfers are checked.
    pub(super) fn context(&self, vm: VmId) -> Result<ContextHandle, Failure> {
        self.context_like(vm, &self.board.spec())
    }

    pub(super) fn context_like(&self, vm: VmId, spec: &Spec<B>) -> Result<ContextHandle, Failure> {
        let context = self.iommu().create_context(vm, spec)?;
        self.map(context, self.loader(context)?, LOADER, Access::READ)?;
        self.map(context, self.unloader(context)?, UNLOADER, Access::WRITE)?;
        Ok(context)
    }

    fn loader(&self, context: ContextHandle) -> Result<Iova, Failure> {
        self.at(context, 1)
    }

    fn unloader(&self, context: ContextHandle) -> Result<Iova, Failure> {
        self.at(context, 2)
    }

    /// Page `page` of the context's aperture.
    pub(super) fn at(&self, context: ContextHandle, page: u64) -> Result<Iova, Failure> {
        let aperture = self.iommu().aperture(context)?;
        need(aperture.range.start().checked_add(page * PAGE), "an address beyond 64 bits")
    }

    /// Maps buffer `index` at `iova` and checks that a look-up finds it there.
    pub(super) fn map(
        &self,
        context: ContextHandle,
        iova: Iova,
        index: usize,
        access: Access,
    ) -> Result<(), Failure> {
        self.map_buffer(context, iova, self.buffer(index)?, access)
    }

    pub(super) fn map_buffer(
        &self,
        context: ContextHandle,
        iova: Iova,
        buffer: Buffer<'b>,
        access: Access,
    ) -> Result<(), Failure> {
        let extent = buffer.extent;
        self.iommu().map(context, iova, extent, access)?;
        self.board.emit(&Event::Mapped {
            context: context.slot(),
            iova: iova.as_u64(),
            phys: extent.start().as_u64(),
            bytes: extent.bytes(),
            access: access.bits(),
        });
        let found = self.iommu().iova_to_phys(context, iova)?;
        ensure(found == Some((extent.start(), access)), "a look-up does not find what was mapped")
    }

    pub(super) fn unmap(&self, context: ContextHandle, iova: Iova, bytes: u64) -> Result<(), Failure> {
        let range = need(IovaRange::new(iova, bytes).ok(), "an empty range")?;
        let unmapped = self.iommu().unmap(context, range)?;
        ensure(unmapped == bytes, "unmap counted other bytes than were mapped")?;
        self.board.emit(&Event::Unmapped { context: context.slot(), iova: iova.as_u64(), bytes });
        ensure(self.iommu().iova_to_phys(context, iova)?.is_none(), "a look-up finds what was unmapped")
    }

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
        Ok(landed && judge(bystander, |_, _| false, |byte| byte == SENTINEL) == Effect::Blocked)
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

    pub(super) fn forget_faults(&self) {
        // Bounded: hardware that makes up faults without end must not hang the suite.
        for _ in 0..64 {
            if self.board.take_fault().is_none() {
                return;
            }
        }
    }

    fn tell(&self, device: DeviceId, iova: Iova, direction: Direction, effect: Effect) {
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
            self.board.emit(&Event::Fault {
                requester: fault.device.requester.as_u16(),
                iova: fault.iova.map(Iova::as_u64),
                direction: if fault.access == Access::READ { Direction::Read } else { Direction::Write },
                reason: describe_fault(fault.reason),
            });
        }
    }

    /// Fails unless `result` is the error `expected`.
    #[track_caller]
    pub(super) fn refuses<T>(
        &self,
        what: &'static str,
        result: Result<T, Error>,
        expected: impl FnOnce(Error) -> bool,
    ) -> Result<(), Failure> {
        let line = core::panic::Location::caller().line();
        match result {
            Err(error) if expected(error) => {
                self.board.emit(&Event::Refused { what, why: describe(error) });
                Ok(())
            }
            Err(error) => Err(Failure { what: describe(error), error: Some(error), line }),
            Ok(_) => Err(Failure { what: "a call succeeded that must be refused", error: None, line }),
        }
    }
}

const SENTINEL: u8 = 0x5a;

/// Never 0, 0xff or the sentinel, so that no refused transfer looks like a landed one.
fn pattern(seed: u8, offset: usize) -> u8 {
    let value = seed.wrapping_add((offset as u8).wrapping_mul(37));
    if matches!(value, 0 | 0xff | SENTINEL) { 0x42 } else { value }
}

fn seed_of(iova: Iova, index: usize) -> u8 {
    ((iova.as_u64() >> 12) as u8).wrapping_mul(29).wrapping_add(index as u8).wrapping_add(7)
}

fn fill(buffer: Buffer<'_>, byte: impl Fn(usize) -> u8) {
    for offset in 0..BYTES as usize {
        buffer.bytes.write(offset, byte(offset));
    }
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

/// An error in words.
pub(super) const fn describe(error: Error) -> &'static str {
    match error {
        Error::NotGranted { .. } => "the group was not granted to that VM",
        Error::OwnedBy { .. } => "another owner has it",
        Error::Stale { .. } => "the context handle is stale",
        Error::InUse { .. } => "the context is still in use",
        Error::Quarantined => "its hardware is quarantined",
        Error::OutsideAperture { .. } => "the range lies outside the aperture",
        Error::AlreadyMapped { .. } => "something is mapped there",
        Error::NeedPages { .. } => "table pages ran out",
        Error::NoSnoopControl => "a unit has no snoop control",
        Error::HasMappings => "mappings without snoop control exist",
        Error::Timeout(_) => "hardware did not answer in time",
        Error::Hardware { .. } => "hardware or firmware reported an error",
        Error::Misaligned { .. } => "an address or length is misaligned",
        Error::Unsupported { .. } => "hardware does not offer that",
        Error::Busy => "another CPU holds it",
        Error::NotBehindUnit { .. } => "the device is not behind this unit",
        _ => "the call was refused",
    }
}

const fn describe_fault(reason: FaultReason) -> &'static str {
    match reason {
        FaultReason::NoContext => "the device is in no context",
        FaultReason::BadContext { .. } => "the context entry is invalid",
        FaultReason::BeyondWidth => "the address is wider than the context",
        FaultReason::ReadDenied => "no mapping allows reading there",
        FaultReason::WriteDenied => "no mapping allows writing there",
        FaultReason::ReservedBit => "a reserved bit is set in an entry",
        FaultReason::TableUnreadable => "the tables could not be read",
        _ => "another reason",
    }
}
