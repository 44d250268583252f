//! An NVMe controller as a device that copies: one namespace, one pair of queues, one command at a time.
//!
//! NVM Express Base Specification 1.4: registers 3.1, queues 4.1, create queue 5.3 and 5.4; NVM command
//! set: read and write 6.9 and 6.15.

use core::time::Duration;

use portcullis_hal::{
    Clock, DeviceId, Iova, RegisterIo, TimedOut,
    sync::{AtomicU32, AtomicU64, Ordering},
    wait_until,
};

use crate::board::{Buffer, DmaDevice, DmaError};

const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1c;
const ADMIN_QUEUE_SIZES: usize = 0x24;
const ADMIN_SUBMISSION: usize = 0x28;
const ADMIN_COMPLETION: usize = 0x30;
const DOORBELLS: usize = 0x1000;

const ENABLE: u32 = 1;
const READY: u32 = 1;
/// Entries of 64 and 16 bytes (fields IOSQES and IOCQES of CC), pages of 4 KiB.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;

const CREATE_SUBMISSION: u8 = 0x01;
const CREATE_COMPLETION: u8 = 0x05;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const CONTIGUOUS: u32 = 1;
const NAMESPACE: u32 = 1;

const ENTRIES: u32 = 8;
const COMMAND_BYTES: u32 = 64;
const COMPLETION_BYTES: u32 = 16;
/// Where the phase tag is in a completion.
const PHASE_BYTE: u32 = 14;
const BLOCK_BYTES: u32 = 512;
const PAGE: u32 = 4096;
/// Bytes of memory that the four queues take: a page each.
pub const QUEUE_BYTES: u64 = 4 * PAGE as u64;
const LIMIT: Duration = Duration::from_secs(10);

/// The admin queues, and the ones that copy.
#[derive(Clone, Copy)]
enum Queue {
    Admin,
    Copy,
}

/// One NVMe controller. `R` gives its registers as numbers, whatever the byte order of the machine.
///
/// What it copies from memory goes to the first blocks of namespace 1, and comes from there.
pub struct Nvme<'q, R, C> {
    id: DeviceId,
    registers: R,
    clock: C,
    queues: Buffer<'q>,
    /// Where the device finds its queues.
    base: AtomicU64,
    /// Commands sent so far through each queue.
    sent: [AtomicU32; 2],
}

impl<'q, R: RegisterIo, C: Clock> Nvme<'q, R, C> {
    /// The controller whose BAR 0 is `registers`; `queues` is [`QUEUE_BYTES`] of memory for its queues.
    pub const fn new(id: DeviceId, registers: R, clock: C, queues: Buffer<'q>) -> Self {
        let sent = [AtomicU32::new(0), AtomicU32::new(0)];
        Self { id, registers, clock, queues, base: AtomicU64::new(0), sent }
    }

    fn wait(&self, register: usize, done: impl Fn() -> bool) -> Result<(), DmaError> {
        let missing = TimedOut { register: register as u32, bits: 1 };
        wait_until(&self.clock, LIMIT, missing, || done().then_some(())).map_err(|_| DmaError::TimedOut)
    }

    fn enable(&self, on: bool) -> Result<(), DmaError> {
        self.registers.write32(CONFIGURATION, if on { ENTRY_SIZES | ENABLE } else { 0 });
        self.wait(STATUS, || (self.registers.read32(STATUS) & READY != 0) == on)
    }

    /// Device address of page `page` of the queues.
    fn queue_page(&self, page: u32) -> u64 {
        self.base.load(Ordering::Relaxed).wrapping_add(u64::from(page * PAGE))
    }

    /// Sends one command and waits for its completion, whatever its status says.
    fn execute(&self, queue: Queue, command: [u32; 16]) -> Result<(), DmaError> {
        let number = queue as u32;
        let sent = self.sent.get(queue as usize).map_or(0, |sent| sent.fetch_add(1, Ordering::Relaxed));
        let (slot, round) = (sent % ENTRIES, sent / ENTRIES);
        let entry = number * 2 * PAGE + slot * COMMAND_BYTES;
        for (offset, byte) in (entry..).zip(command.iter().flat_map(|word| word.to_le_bytes())) {
            self.queues.bytes.write(offset as usize, byte);
        }
        let next = (slot + 1) % ENTRIES;
        self.ring(number * 2, next);
        let completion = (number * 2 + 1) * PAGE + slot * COMPLETION_BYTES + PHASE_BYTE;
        // The phase tag flips with each round through the queue, and memory began as zero.
        let phase = (round as u8 & 1) ^ 1;
        self.wait(DOORBELLS, || self.queues.bytes.read(completion as usize) & 1 == phase)?;
        self.ring(number * 2 + 1, next);
        Ok(())
    }

    fn ring(&self, doorbell: u32, value: u32) {
        let stride = 4 << (self.registers.read64(CAPABILITIES) >> 32 & 0xf);
        self.registers.write32(DOORBELLS + doorbell as usize * stride, value);
    }

    fn create(&self, opcode: u8, page: u32, flags: u32) -> Result<(), DmaError> {
        let mut command = Command::new(opcode, 0, self.queue_page(page));
        command.arguments = [(ENTRIES - 1) << 16 | 1, flags, 0];
        self.execute(Queue::Admin, command.words())
    }

    fn copy(&self, opcode: u8, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        if bytes > PAGE {
            return Err(DmaError::TooLong { bytes });
        }
        let mut command = Command::new(opcode, NAMESPACE, iova.as_u64());
        command.arguments = [0, 0, bytes.div_ceil(BLOCK_BYTES).max(1) - 1];
        self.execute(Queue::Copy, command.words())
    }
}

/// The fields of a command that are not zero.
struct Command {
    opcode: u8,
    namespace: u32,
    page: u64,
    arguments: [u32; 3],
}

impl Command {
    const fn new(opcode: u8, namespace: u32, page: u64) -> Self {
        Self { opcode, namespace, page, arguments: [0; 3] }
    }

    const fn words(&self) -> [u32; 16] {
        let [ten, eleven, twelve] = self.arguments;
        let (low, high) = (self.page as u32, (self.page >> 32) as u32);
        let opcode = self.opcode as u32;
        [opcode, self.namespace, 0, 0, 0, 0, low, high, 0, 0, ten, eleven, twelve, 0, 0, 0]
    }
}

impl<R: RegisterIo, C: Clock> DmaDevice for Nvme<'_, R, C> {
    fn id(&self) -> DeviceId {
        self.id
    }

    fn name(&self) -> &'static str {
        "nvme"
    }

    fn queues(&self) -> Option<Buffer<'_>> {
        Some(self.queues)
    }

    fn start(&self, queues: Iova) -> Result<(), DmaError> {
        self.enable(false)?;
        self.base.store(queues.as_u64(), Ordering::Relaxed);
        self.registers.write32(ADMIN_QUEUE_SIZES, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.registers.write64(ADMIN_SUBMISSION, self.queue_page(0));
        self.registers.write64(ADMIN_COMPLETION, self.queue_page(1));
        self.enable(true)?;
        self.create(CREATE_COMPLETION, 3, CONTIGUOUS)?;
        self.create(CREATE_SUBMISSION, 2, 1 << 16 | CONTIGUOUS)
    }

    fn read_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.copy(WRITE, iova, bytes)
    }

    fn write_memory(&self, iova: Iova, bytes: u32) -> Result<(), DmaError> {
        self.copy(READ, iova, bytes)
    }
}
