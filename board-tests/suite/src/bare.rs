//! A disk that is read with nothing in between: what translation is measured against.

use core::time::Duration;

use portcullis_hal::{Clock, Iova};

use crate::board::{Buffer, Disk, DmaDevice, DmaError, Geometry};

/// Bytes that are read in one go: several commands of the largest size.
pub const CHUNK: u64 = 256 << 10;
/// How often the whole disk is read each way when it is timed.
pub const ROUNDS: u64 = 8;

/// Reads the whole disk to what lies at `memory`, piece by piece.
///
/// # Errors
/// [`DmaError`].
pub fn read_all(disk: &dyn Disk, geometry: Geometry, memory: Iova) -> Result<(), DmaError> {
    for offset in (0..geometry.bytes()).step_by(CHUNK as usize) {
        let bytes = CHUNK.min(geometry.bytes() - offset);
        disk.read(geometry, offset / geometry.block_bytes, Iova::new(memory.as_u64() + offset), bytes)?;
    }
    Ok(())
}

/// The shortest time in which a disk is read to `target` by physical addresses, and stopped afterwards. For a
/// board whose IOMMU does not translate yet; `None` when the device is no disk, or one larger than `target`.
///
/// # Errors
/// [`DmaError`].
pub fn time_disk(
    device: &dyn DmaDevice,
    answer: Buffer<'_>,
    target: Buffer<'_>,
    clock: &impl Clock,
) -> Result<Option<Duration>, DmaError> {
    let Some((queues, disk)) = device.queues().zip(device.disk()) else { return Ok(None) };
    let address = |buffer: Buffer<'_>| Iova::new(buffer.extent.start().as_u64());
    device.start(address(queues))?;
    let geometry = disk.identify(address(answer), answer.bytes)?;
    if geometry.bytes() > target.extent.bytes() {
        return Ok(None);
    }
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = clock.now();
        read_all(disk, geometry, address(target))?;
        best = best.min(clock.now().saturating_sub(start));
    }
    disk.stop()?;
    Ok(Some(best))
}
