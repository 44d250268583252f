//! The program that reads a disk: it drives the NVMe controller that was lent to it, by DMA to its own memory.

use portcullis_hal::Iova;
use portcullis_suite::{
    DmaError,
    bare::{ROUNDS, read_all},
    board::Disk,
    checksum::Checksum,
    nvme::{Nvme, QUEUE_BYTES},
};

use super::{
    devices::{CLOCK, Shared, registers},
    hypercall::{exit, report, step},
    layout::{FREE, GUEST_BYTES},
};

/// A timed read of the whole disk begins.
pub const BEGINS: u64 = 1;
/// It is over.
pub const ENDS: u64 = 2;
/// Where the disk is read to.
pub const DATA: u64 = FREE + (1 << 20);
const QUEUES: u64 = FREE;
const ANSWER: u64 = FREE + QUEUE_BYTES;
const PAGE: u64 = 4096;
/// Exit code: the disk does not answer, or is too large.
const NO_DISK: u64 = 1;

/// Reads the disk whose registers the two words at `arguments` name, first address and length. Reports its
/// checksum and its length; then reads it again and again, with a step before and after each time.
pub(super) fn run(arguments: u64) {
    let words: *const u64 = core::ptr::with_exposed_provenance(arguments as usize);
    // SAFETY: in the guest's memory, where the hypervisor put them before the guest began.
    let (at, bytes) = unsafe { (words.read_volatile(), words.add(1).read_volatile()) };
    if read(at, bytes).is_none_or(|done| done.is_err()) {
        exit(NO_DISK);
    }
}

fn read(at: u64, bytes: u64) -> Option<Result<(), DmaError>> {
    // SAFETY: behind the image's copy, in the guest's memory; the three do not overlap.
    let [queues, answer, data] = unsafe {
        [
            Shared::new(QUEUES, QUEUE_BYTES)?,
            Shared::new(ANSWER, PAGE)?,
            Shared::new(DATA, GUEST_BYTES - DATA)?,
        ]
    };
    let controller = Nvme::new(registers(at, bytes)?, CLOCK, &queues);
    Some(controller.start(Iova::new(QUEUES)).and_then(|()| all(&controller, &answer, &data)))
}

fn all(disk: &dyn Disk, answer: &Shared, data: &Shared) -> Result<(), DmaError> {
    let geometry = disk.identify(Iova::new(ANSWER), answer)?;
    let (bytes, memory) = (geometry.bytes(), Iova::new(DATA));
    if bytes > GUEST_BYTES - DATA {
        return Err(DmaError::TooLong { bytes });
    }
    read_all(disk, geometry, memory)?;
    let mut sum = Checksum::new();
    sum.update_from(data, bytes as usize);
    report(sum.value().into());
    report(sum.bytes());
    for _ in 0..ROUNDS {
        step(BEGINS);
        read_all(disk, geometry, memory)?;
        step(ENDS);
    }
    disk.stop()
}
