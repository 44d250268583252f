//! QEMU's `edu` device: a teaching device with a DMA engine and a 4 KiB buffer.

use core::time::Duration;

use portcullis_hal::{Clock, DeviceId, Iova, RegisterIo, TimedOut, wait_until};

use crate::board::{DmaDevice, DmaError};

const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const COMMAND_START: u64 = 1;
const COMMAND_TO_MEMORY: u64 = 2;
/// Where the device's own buffer lies in its address space.
const BUFFER: u64 = 0x4_0000;
/// One transfer takes 100 ms; a loaded host may need many times that.
const TRANSFER_LIMIT: Duration = Duration::from_secs(5);
/// A transfer of all 4096 bytes makes QEMU 7.2 abort.
const MAX_BYTES: u32 = 4095;

/// One edu device. `R` gives its registers as numbers, whatever the byte order of the machine.
#[derive(Debug)]
pub struct Edu<R, C> {
    id: DeviceId,
    registers: R,
    clock: C,
}

impl<R: RegisterIo, C: Clock> Edu<R, C> {
    /// The device whose BAR 0 is `registers`.
    pub const fn new(id: DeviceId, registers: R, clock: C) -> Self {
        Self { id, registers, clock }
    }

    fn begin(&self, source: u64, destination: u64, bytes: u32, direction: u64) -> Result<(), DmaError> {
        if bytes > MAX_BYTES {
            return Err(DmaError::TooLong { bytes: bytes.into() });
        }
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_DESTINATION, destination);
        self.registers.write64(DMA_COUNT, bytes.into());
        self.registers.write64(DMA_COMMAND, COMMAND_START | direction);
        Ok(())
    }

    fn transfer(&self, source: u64, destination: u64, bytes: u32, direction: u64) -> Result<(), DmaError> {
        self.begin(source, destination, bytes, direction)?;
        let missing = TimedOut { register: DMA_COMMAND as u32, bits: COMMAND_START };
        wait_until(&self.clock, TRANSFER_LIMIT, missing, || (!self.is_running()).then_some(()))
            .map_err(|_| DmaError::TimedOut)
    }

    fn is_running(&self) -> bool {
        self.registers.read64(DMA_COMMAND) & COMMAND_START != 0
    }
}

impl<R: RegisterIo, C: Clock> DmaDevice for Edu<R, C> {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> &'static str {
        "edu"
    }

    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.transfer(iova.as_u64(), BUFFER, bytes, 0)
    }

    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.transfer(BUFFER, iova.as_u64(), bytes, COMMAND_TO_MEMORY)
    }
    fn begin_write(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.begin(BUFFER, iova.as_u64(), bytes, COMMAND_TO_MEMORY)
    }

    fn is_busy(&self) -> bool {
        self.is_running()
    }
}
