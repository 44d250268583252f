//! A device that takes its commands from a queue in memory, through the IOMMU.

use std::cell::Cell;

use portcullis_hal::{DeviceId, Iova};
use portcullis_suite::{
    Buffer, DmaDevice, DmaError,
    board::{Disk, Geometry, SharedBytes},
};

use crate::{
    device::{Bus, ModelDevice},
    machine::Piece,
};

/// Commands of 32 bytes in the first half of the queue's page, a byte for each completion in the second.
const SLOTS: usize = 16;
const COMMAND_BYTES: usize = 32;
const COMPLETIONS: usize = 2048;

/// Bytes in a block of the device as a disk, and blocks.
const BLOCK: u64 = 512;
const BLOCKS: u64 = 1024;

/// What the device holds as a disk: no block is like another.
pub fn content() -> Vec<u8> {
    let words = (0..BLOCKS * BLOCK / 8).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.flat_map(u64::to_le_bytes).collect()
}

#[derive(Clone, Copy)]
enum Opcode {
    Nothing,
    ReadMemory,
    WriteMemory,
}

/// Both ends of the queue: the driver, which writes commands by CPU, and the device, which does all by DMA.
pub struct QueueDevice<B> {
    engine: ModelDevice<B>,
    bus: B,
    queue: Piece,
    base: Cell<Option<u64>>,
    sent: Cell<u8>,
}

impl<B: Bus> QueueDevice<B> {
    /// A device that finds its commands in `queue` once it is started.
    pub fn new(engine: ModelDevice<B>, bus: &B, queue: Piece) -> Self {
        Self { engine, bus: bus.clone(), queue, base: Cell::new(None), sent: Cell::new(0) }
    }

    /// Sends one command and looks for its completion.
    fn execute(&self, opcode: Opcode, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        let base = self.base.get().ok_or(DmaError::TimedOut)?;
        let number = self.sent.get().wrapping_add(1).max(1);
        self.sent.set(number);
        let slot = usize::from(number) % SLOTS;
        let words = [opcode as u64, iova.as_u64(), bytes.into(), number.into()];
        for (offset, byte) in words.iter().flat_map(|word| word.to_le_bytes()).enumerate() {
            self.queue.write(slot * COMMAND_BYTES + offset, byte);
        }
        self.serve(base, slot)?;
        let completed = self.queue.read(COMPLETIONS + slot) == number;
        if completed { Ok(()) } else { Err(DmaError::TimedOut) }
    }

    /// What the device does when its doorbell rings: it knows only the slot.
    fn serve(&self, base: u64, slot: usize) -> Result<(), DmaError> {
        let requester = self.id().requester.as_u16();
        let mut command = [0; COMMAND_BYTES];
        if !self.bus.read(requester, base + (slot * COMMAND_BYTES) as u64, &mut command) {
            return Ok(());
        }
        let word = |index: usize| {
            let bytes = command[index * 8..index * 8 + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let (iova, bytes) = (Iova::new(word(1)), word(2) as u32);
        match word(0) {
            opcode if opcode == Opcode::ReadMemory as u64 => self.engine.read_memory(iova, bytes)?,
            opcode if opcode == Opcode::WriteMemory as u64 => self.engine.write_memory(iova, bytes)?,
            _ => {}
        }
        self.bus.write(requester, base + (COMPLETIONS + slot) as u64, &[word(3) as u8]);
        Ok(())
    }
}

impl<B: Bus> DmaDevice for QueueDevice<B> {
    fn id(&self) -> DeviceId {
        self.engine.id()
    }

    fn name(&self) -> &'static str {
        "modelled queue device"
    }

    fn queues(&self) -> Option<Buffer<'_>> {
        Some(self.queue.as_buffer())
    }

    fn disk(&self) -> Option<&dyn Disk> {
        Some(self)
    }

    fn start(&self, queues: Iova) -> Result<(), DmaError> {
        self.base.set(Some(queues.as_u64()));
        self.execute(Opcode::Nothing, Iova::new(0), 0)
    }

    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.execute(Opcode::ReadMemory, iova, bytes)
    }

    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.execute(Opcode::WriteMemory, iova, bytes)
    }
}

impl<B: Bus> Disk for QueueDevice<B> {
    fn identify(&self, _: Iova, _: &dyn SharedBytes) -> Result<Geometry, DmaError> {
        Ok(Geometry { blocks: BLOCKS, block_bytes: BLOCK, max_bytes: u64::MAX })
    }

    fn read(&self, _: Geometry, block: u64, memory: Iova, bytes: u64) -> Result<(), DmaError> {
        let start = (block * BLOCK) as usize;
        self.engine.write_pages(memory, &content()[start..start + bytes as usize]);
        Ok(())
    }

    fn write(&self, _: Geometry, _: u64, _: Iova, bytes: u64) -> Result<(), DmaError> {
        Err(DmaError::TooLong { bytes })
    }

    fn stop(&self) -> Result<(), DmaError> {
        self.base.set(None);
        Ok(())
    }
}
