//! The controller as a device of the suite, which copies.

use portcullis_hal::{Clock, DeviceId, Iova, RegisterIo};

use super::{Nvme, Run, command};
use crate::board::{Buffer, Disk, DmaDevice, DmaError, Geometry};

/// Blocks as nearly every drive has them: a suite's device is not asked.
const PLAIN: Geometry = Geometry { blocks: u64::MAX, block_bytes: 512, max_bytes: command::PAGE };

/// An NVMe controller that copies: what it takes from memory goes to the first blocks of namespace 1, and
/// comes from there.
pub struct NvmeDevice<'q, R, C> {
    id: DeviceId,
    queues: Buffer<'q>,
    controller: Nvme<'q, R, C>,
}

impl<'q, R: RegisterIo, C: Clock> NvmeDevice<'q, R, C> {
    /// The controller whose BAR 0 is `registers`; `queues` is [`QUEUE_BYTES`](super::QUEUE_BYTES) of memory.
    pub const fn new(id: DeviceId, registers: R, clock: C, queues: Buffer<'q>) -> Self {
        Self { id, queues, controller: Nvme::new(registers, clock, queues.bytes) }
    }

    fn copy(&self, opcode: u8, memory: Iova, bytes: u32) -> Result<(), DmaError> {
        let bytes = u64::from(bytes).next_multiple_of(PLAIN.block_bytes).max(PLAIN.block_bytes);
        if bytes > PLAIN.max_bytes {
            return Err(DmaError::TooLong { bytes });
        }
        match self.controller.transfer(opcode, PLAIN, Run { block: 0, memory, bytes }) {
            // A controller may notice that it was blocked, or not: data tells.
            Err(DmaError::Refused { .. }) => Ok(()),
            done => done,
        }
    }
}

impl<R: RegisterIo, C: Clock> DmaDevice for NvmeDevice<'_, R, C> {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> &'static str {
        "nvme"
    }

    fn queues(&self) -> Option<Buffer<'_>> {
        Some(self.queues)
    }

    fn disk(&self) -> Option<&dyn Disk> {
        Some(&self.controller)
    }

    fn start(&self, queues: Iova) -> Result<(), DmaError> {
        self.controller.start(queues)
    }

    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.copy(command::WRITE, iova, bytes)
    }

    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.copy(command::READ, iova, bytes)
    }
}
