//! A disk that is read through the tables: all of it, not without its mapping, and how fast.

use portcullis_hal::{Access, Clock, Iova, IovaRange};
use portcullis_iommu::{ContextHandle, FaultReason};

use super::{
    Failure,
    stage::{Owned, PAGE, Stage, VM, ensure, need},
};
use crate::{
    bare::{CHUNK, ROUNDS, read_all},
    board::{Board, Buffer, Disk, DmaDevice, DmaError, Geometry},
    checksum::Checksum,
    event::{DISK, Direction, Effect, Event},
};

const BOTH: Access = Access::READ.union(Access::WRITE);
/// The device that is a disk.
const INDEX: usize = 2;
/// What memory holds where nothing was read to.
const UNREAD: u8 = 0xa5;

/// A disk at work in a context, with a large buffer to read to.
struct Reader<'s, 'b, B: Board> {
    stage: &'s Stage<'b, B>,
    _claim: Owned<'b, B>,
    context: ContextHandle,
    disk: &'b dyn Disk,
    geometry: Geometry,
    buffer: Buffer<'b>,
}

impl<'s, 'b, B: Board> Reader<'s, 'b, B> {
    /// Starts the disk, whose queues lie in the context as data does.
    fn start(stage: &'s Stage<'b, B>) -> Result<Self, Failure> {
        let mut claim = stage.own(INDEX, VM)?;
        let context = stage.context(VM)?;
        stage.attach(&mut claim, INDEX, context)?;
        let device = stage.device(INDEX)?;
        let queues = need(device.queues(), "the third device has no queues")?;
        let at = stage.at(context, 0x100)?;
        stage.map_buffer(context, at, queues, BOTH)?;
        device.start(at)?;
        let disk = need(device.disk(), "the third device is no disk")?;
        let (page, answer) = (stage.at(context, 0x120)?, stage.buffer(8)?);
        stage.map(context, page, 8, Access::WRITE)?;
        let geometry = disk.identify(page, answer.bytes)?;
        stage.unmap(context, page, PAGE)?;
        let buffer = need(stage.board.large_buffer(), "the board lacks a large buffer")?;
        ensure(
            geometry.bytes() >= 2 * CHUNK && geometry.bytes() <= buffer.extent.bytes(),
            "the disk is smaller or larger than the buffer allows",
        )?;
        Ok(Self { stage, _claim: claim, context, disk, geometry, buffer })
    }

    /// An address that is a multiple of the buffer's length, plus `beyond`.
    fn window(&self, beyond: u64) -> Result<Iova, Failure> {
        let start = self.stage.iommu().aperture(self.context)?.range.start();
        need(start.checked_add(self.buffer.extent.bytes() + beyond), "an address beyond 64 bits")
    }

    /// Maps the buffer at `iova` for what the disk does to it.
    fn map(&self, iova: Iova) -> Result<(), Failure> {
        self.stage.map_buffer(self.context, iova, self.buffer, Access::WRITE)
    }

    fn unmap(&self, iova: Iova) -> Result<(), Failure> {
        self.stage.unmap(self.context, iova, self.buffer.extent.bytes())
    }

    /// Reads `bytes` bytes of the disk, from `offset` on, to that place in the buffer mapped at `iova`.
    fn read(&self, iova: Iova, offset: u64, bytes: u64) -> Result<(), DmaError> {
        let block = offset / self.geometry.block_bytes;
        self.disk.read(self.geometry, block, Iova::new(iova.as_u64() + offset), bytes)
    }

    fn read_all(&self, iova: Iova) -> Result<(), Failure> {
        Ok(read_all(self.disk, self.geometry, iova)?)
    }

    /// Reads the whole disk into a buffer that was [forgotten](Self::forget), and tells of each piece.
    fn read_and_tell(&self, iova: Iova) -> Result<(), Failure> {
        for offset in (0..self.geometry.bytes()).step_by(CHUNK as usize) {
            let length = CHUNK.min(self.geometry.bytes() - offset);
            self.read(iova, offset, length)?;
            let pages = (offset..offset + length).step_by(PAGE as usize);
            let effect = if pages.into_iter().all(|page| self.has_arrived(page)) {
                Effect::Landed
            } else {
                Effect::Garbled
            };
            self.tell_transfer(Iova::new(iova.as_u64() + offset), effect)?;
            ensure(effect == Effect::Landed, "part of the disk did not arrive")?;
        }
        Ok(())
    }

    /// Whether something was read to that page of the buffer.
    fn has_arrived(&self, page: u64) -> bool {
        (page..page + PAGE).any(|offset| self.buffer.bytes.read(offset as usize) != UNREAD)
    }

    /// Fills the buffer with what the disk, most likely, does not hold.
    fn forget(&self) {
        (0..self.geometry.bytes() as usize).for_each(|offset| self.buffer.bytes.write(offset, UNREAD));
    }

    /// What the buffer holds, as far as the disk reaches.
    fn sum(&self) -> Checksum {
        let mut sum = Checksum::new();
        sum.update_from(self.buffer.bytes, self.geometry.bytes() as usize);
        sum
    }

    fn tell_checksum(&self, sum: &Checksum) {
        let (value, bytes) = (sum.value(), sum.bytes());
        self.stage.board.emit(&Event::Checksum { what: DISK, value, bytes });
    }

    fn tell_transfer(&self, iova: Iova, effect: Effect) -> Result<(), Failure> {
        let (requester, bytes) = (self.stage.requester(INDEX)?, CHUNK as u32);
        let direction = Direction::Write;
        self.stage.board.emit(&Event::Dma { requester, iova: iova.as_u64(), bytes, direction, effect });
        Ok(())
    }

    /// Microseconds that it takes to `read`.
    fn time(&self, read: impl FnOnce() -> Result<(), Failure>) -> Result<u64, Failure> {
        let clock = self.stage.board.clock();
        let start = clock.now();
        read()?;
        Ok((clock.now().saturating_sub(start).as_micros() as u64).max(1))
    }
}

/// S28: a whole disk is read through the tables, and its checksum is the one that the host knows. With the
/// mapping taken away in the middle, nothing more arrives, the fault names the device and the address, and
/// the log the owner; mapped again, all of it arrives.
pub(super) fn disk_is_read_through_tables<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let reader = Reader::start(stage)?;
    let iova = reader.window(PAGE)?;
    reader.map(iova)?;
    reader.forget();
    stage.step("read the whole disk through the IOMMU");
    reader.read_and_tell(iova)?;
    let whole = reader.sum();
    reader.tell_checksum(&whole);
    reader.forget();
    stage.step("take the mapping away in the middle");
    reader.read(iova, 0, CHUNK)?;
    reader.tell_transfer(iova, Effect::Landed)?;
    reader.unmap(iova)?;
    stage.forget_faults();
    stage.forget_events();
    read_without_mapping(&reader, Iova::new(iova.as_u64() + CHUNK))?;
    ensure(reader.sum().value() != whole.value(), "the disk was read without a mapping")?;
    reader.map(iova)?;
    reader.forget();
    stage.step("map it again, and read all of it");
    reader.read_and_tell(iova)?;
    let again = reader.sum();
    reader.tell_checksum(&again);
    ensure(again.value() == whole.value(), "the disk reads otherwise the second time")
}

/// Lets the disk read its second piece to where nothing is mapped.
fn read_without_mapping<B: Board>(reader: &Reader<'_, '_, B>, aimed: Iova) -> Result<(), Failure> {
    let stage = reader.stage;
    match reader.read(Iova::new(aimed.as_u64() - CHUNK), CHUNK, CHUNK) {
        // A controller may notice.
        Ok(()) | Err(DmaError::Refused { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let fault = need(stage.board.take_fault(), "a blocked read of the disk was not reported")?;
    let untouched = (CHUNK..2 * CHUNK).all(|offset| reader.buffer.bytes.read(offset as usize) == UNREAD);
    ensure(untouched, "data arrived without a mapping")?;
    reader.tell_transfer(aimed, Effect::Blocked)?;
    stage.tell_fault(fault);
    let page = need(fault.iova, "the report names no address")?;
    let piece = aimed.as_u64()..aimed.as_u64() + CHUNK;
    ensure(piece.contains(&page.as_u64()), "the report names another address")?;
    ensure(fault.device == stage.device(INDEX)?.id(), "the report names another requester")?;
    ensure(fault.reason == FaultReason::WriteDenied, "the report names another reason")?;
    stage.expect_blame(fault.device, page, VM)
}

/// S29: how fast a disk is read through small pages, through small pages that are mapped and unmapped for
/// each read, and through one large page; and without translation, where the board could measure that before the
/// IOMMU was brought up. Of each, the best of several rounds counts.
pub(super) fn throughput<B: Board>(stage: &Stage<'_, B>) -> Result<(), Failure> {
    let reader = Reader::start(stage)?;
    // Small pages only: the address is no multiple of a large one. The two do not touch.
    let (small, large) = (reader.window(reader.buffer.extent.bytes() + PAGE)?, reader.window(0)?);
    let [mut through_small, mut strict, mut through_large] = [u64::MAX; 3];
    stage.step("read the disk through small pages, mapped once and mapped for each read, and a large one");
    for _ in 0..ROUNDS {
        through_small = through_small.min(time_mapped(&reader, small)?);
        strict = strict.min(reader.time(|| read_strictly(&reader, small))?);
        through_large = through_large.min(time_mapped(&reader, large)?);
    }
    let measured = |what, value, unit| stage.board.emit(&Event::Measured { what, value, unit });
    let speed = |microseconds: u64| (reader.geometry.bytes() * 1_000_000 / microseconds) >> 10;
    measured("disk read through small pages", speed(through_small), "KiB a second");
    measured("disk read, mapped and unmapped each time", speed(strict), "KiB a second");
    measured("disk read through one large page", speed(through_large), "KiB a second");
    if let Some(time) = stage.board.bare_disk_time() {
        let bare = (time.as_micros() as u64).max(1);
        measured("disk read without translation", speed(bare), "KiB a second");
        measured("small pages against no translation", bare * 100 / through_small, "percent of its speed");
        measured("the large page against no translation", bare * 100 / through_large, "percent of its speed");
    }
    measured(
        "small pages against the large one",
        through_large * 100 / through_small,
        "percent of its speed",
    );
    measured("mapped each time against the large one", through_large * 100 / strict, "percent of its speed");
    Ok(())
}

/// Time for the whole disk, with the buffer mapped at `iova` before and all the while; what arrived is told.
fn time_mapped<B: Board>(reader: &Reader<'_, '_, B>, iova: Iova) -> Result<u64, Failure> {
    reader.map(iova)?;
    reader.forget();
    reader.read_all(iova)?;
    reader.tell_transfer(iova, Effect::Landed)?;
    reader.tell_checksum(&reader.sum());
    // The second time hardware knows the mapping.
    let time = reader.time(|| reader.read_all(iova))?;
    reader.unmap(iova)?;
    Ok(time)
}

/// Reads the whole disk, with each piece mapped for its read alone.
fn read_strictly<B: Board>(reader: &Reader<'_, '_, B>, iova: Iova) -> Result<(), Failure> {
    let (iommu, bytes) = (reader.stage.iommu(), reader.geometry.bytes());
    for offset in (0..bytes).step_by(CHUNK as usize) {
        let length = CHUNK.min(bytes - offset);
        let part = need(reader.buffer.extent.part(offset, length), "no part of the buffer")?;
        let at = Iova::new(iova.as_u64() + offset);
        iommu.map(reader.context, at, part, Access::WRITE)?;
        reader.read(iova, offset, length)?;
        let range = need(IovaRange::new(at, length).ok(), "an empty range")?;
        ensure(iommu.unmap(reader.context, range)? == length, "unmap counted other bytes than were mapped")?;
    }
    Ok(())
}
