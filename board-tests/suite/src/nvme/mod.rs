//! A driver for NVMe controllers: one namespace, one pair of I/O queues, several commands at a time.
//!
//! It keeps nothing outside its value and the memory that it is given, so that a hypervisor can run it as
//! well as a guest. NVM Express Base Specification 1.4: registers 3.1, queues 4.1, commands 4.2, PRP 4.3,
//! completions 4.6, create queue 5.3 and 5.4, identify 5.15, initialization 7.6.1; NVM command set: read and
//! write 6.9 and 6.15.

mod command;
mod device;
mod queue;

use core::time::Duration;

use portcullis_hal::{
    Clock, Iova, RegisterIo, TimedOut,
    sync::{AtomicU32, AtomicU64, Ordering},
    wait_until,
};

use crate::board::{Disk, DmaError, Geometry, SharedBytes};
use command::{
    CREATE_COMPLETION, CREATE_SUBMISSION, Command, IDENTIFY, MAX_BYTES, NAMESPACE, PAGE, READ, WRITE,
};
pub use device::NvmeDevice;
use queue::Queue;
pub use queue::{DEPTH, QUEUE_BYTES};

const CAPABILITIES: usize = 0x00;
const CONFIGURATION: usize = 0x14;
const STATUS: usize = 0x1c;
const ADMIN_QUEUE_SIZES: usize = 0x24;
const ADMIN_SUBMISSION: usize = 0x28;
const ADMIN_COMPLETION: usize = 0x30;

const ENABLE: u32 = 1;
const READY: u32 = 1;
/// Entries of 64 and 16 bytes (fields IOSQES and IOCQES of CC), pages of 4 KiB.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
const CONTIGUOUS: u32 = 1;

/// What Identify is asked for (CNS), and where its answers have what is needed.
const OF_NAMESPACE: u32 = 0;
const OF_CONTROLLER: u32 = 1;
const NAMESPACE_SIZE: usize = 0;
const FORMATTED_SIZE: usize = 26;
const FORMATS: usize = 128;
const MAX_TRANSFER: usize = 77;
const MAX_BLOCK_SHIFT: u8 = 12;

const LIMIT: Duration = Duration::from_secs(10);

/// One NVMe controller. `R` gives its registers as numbers, whatever the byte order of the machine.
///
/// Calls take their turn by themselves: one CPU at a time. After [`DmaError::TimedOut`] commands may still
/// be under way: [`stop`](Disk::stop) ends them, and [`start`](Self::start) begins anew.
pub struct Nvme<'q, R, C> {
    registers: R,
    clock: C,
    memory: &'q dyn SharedBytes,
    /// Where the device finds its queues.
    base: AtomicU64,
    /// Commands sent so far through each queue, and completions taken.
    sent: [AtomicU32; 2],
    taken: [AtomicU32; 2],
}

impl<'q, R: RegisterIo, C: Clock> Nvme<'q, R, C> {
    /// The controller whose BAR 0 is `registers`; `memory` is [`QUEUE_BYTES`] for its queues, which nobody
    /// else uses.
    pub const fn new(registers: R, clock: C, memory: &'q dyn SharedBytes) -> Self {
        Self {
            registers,
            clock,
            memory,
            base: AtomicU64::new(0),
            sent: [const { AtomicU32::new(0) }; 2],
            taken: [const { AtomicU32::new(0) }; 2],
        }
    }

    /// Starts the controller, whose memory for queues it finds at `queues`: page-aligned, to be read and
    /// written.
    ///
    /// # Errors
    /// [`DmaError::TimedOut`], [`DmaError::Refused`]; [`DmaError::TooLong`] when it has no queues of that
    /// many entries.
    pub fn start(&self, queues: Iova) -> Result<(), DmaError> {
        let entries = (self.registers.read64(CAPABILITIES) as u32 & 0xffff) + 1;
        if entries < queue::ENTRIES {
            return Err(DmaError::TooLong { bytes: queue::ENTRIES.into() });
        }
        self.stop()?;
        self.base.store(queues.as_u64(), Ordering::Relaxed);
        self.clear_queues();
        let last = queue::ENTRIES - 1;
        self.registers.write32(ADMIN_QUEUE_SIZES, last << 16 | last);
        self.registers.write64(ADMIN_SUBMISSION, self.device_address(Queue::Admin.submission()));
        self.registers.write64(ADMIN_COMPLETION, self.device_address(Queue::Admin.completion()));
        self.enable(true)?;
        self.create(CREATE_COMPLETION, Queue::Io.completion(), CONTIGUOUS)?;
        self.create(CREATE_SUBMISSION, Queue::Io.submission(), 1 << 16 | CONTIGUOUS)
    }

    fn enable(&self, on: bool) -> Result<(), DmaError> {
        self.registers.write32(CONFIGURATION, if on { ENTRY_SIZES | ENABLE } else { 0 });
        self.wait(|| ((self.registers.read32(STATUS) & READY != 0) == on).then_some(()))
    }

    fn wait<T>(&self, done: impl FnMut() -> Option<T>) -> Result<T, DmaError> {
        let missing = TimedOut { register: STATUS as u32, bits: READY.into() };
        wait_until(&self.clock, LIMIT, missing, done).map_err(|_| DmaError::TimedOut)
    }

    fn create(&self, opcode: u8, offset: u32, flags: u32) -> Result<(), DmaError> {
        let arguments = [(queue::ENTRIES - 1) << 16 | 1, flags, 0];
        let pages = [self.device_address(offset), 0];
        self.execute(Queue::Admin, Command { opcode, pages, arguments, ..Command::default() })
    }

    /// Sends one command, and waits for its completion.
    fn execute(&self, queue: Queue, command: Command) -> Result<(), DmaError> {
        self.submit(queue, command.bytes(0));
        self.ring_submission(queue);
        match self.take(queue)?.status {
            0 => Ok(()),
            status => Err(DmaError::Refused { status }),
        }
    }

    fn ask(&self, what: u32, iova: Iova) -> Result<(), DmaError> {
        let namespace = if what == OF_NAMESPACE { NAMESPACE } else { 0 };
        let (pages, arguments) = ([iova.as_u64(), 0], [what, 0, 0]);
        self.execute(Queue::Admin, Command { opcode: IDENTIFY, namespace, pages, arguments })
    }

    /// Moves whole blocks by as many commands as it takes, several at a time; all have ended when it
    /// returns, unless it [timed out](DmaError::TimedOut).
    fn transfer(&self, opcode: u8, geometry: Geometry, run: Run) -> Result<(), DmaError> {
        let mut pieces = run.pieces(geometry)?;
        let (mut free, mut outcome) = (Numbers::all(), Ok(()));
        loop {
            while let Some((number, piece)) = free.with(&mut pieces) {
                self.submit(Queue::Io, self.data_command(opcode, number, &piece).bytes(number));
            }
            if free.is_all() {
                return outcome;
            }
            self.ring_submission(Queue::Io);
            let completion = self.take(Queue::Io)?;
            free.give_back(completion.identifier);
            if completion.status != 0 {
                outcome = outcome.and(Err(DmaError::Refused { status: completion.status }));
            }
        }
    }

    fn data_command(&self, opcode: u8, number: u16, piece: &Piece) -> Command {
        let mut pages = command::pages(piece.memory, piece.bytes);
        let (first, rest) = (pages.next().unwrap_or(0), pages.clone().count());
        let second = match rest {
            0 => 0,
            1 => pages.next().unwrap_or(0),
            _ => self.write_list(number, pages),
        };
        let (low, high) = (piece.block as u32, (piece.block >> 32) as u32);
        let arguments = [low, high, (piece.blocks - 1) as u32];
        Command { opcode, namespace: NAMESPACE, pages: [first, second], arguments }
    }
}

/// Numbers of commands, each with a list of PRP entries of its own.
struct Numbers(u16);

const _: () = assert!(DEPTH == u16::BITS);

impl Numbers {
    const fn all() -> Self {
        Self(u16::MAX)
    }

    const fn is_all(&self) -> bool {
        self.0 == u16::MAX
    }

    /// The next piece with a number for it, as long as there are both.
    fn with(&mut self, pieces: &mut impl Iterator<Item = Piece>) -> Option<(u16, Piece)> {
        let number = (self.0 != 0).then_some(self.0.trailing_zeros() as u16)?;
        let piece = pieces.next()?;
        self.0 &= self.0 - 1;
        Some((number, piece))
    }

    /// A number that no command has is the device's mistake, and gives nothing back.
    fn give_back(&mut self, number: u16) {
        self.0 |= 1u16.checked_shl(number.into()).unwrap_or(0);
    }
}

/// Blocks that lie in a row, and the memory for them.
struct Run {
    block: u64,
    memory: Iova,
    bytes: u64,
}

/// What one command moves.
struct Piece {
    block: u64,
    blocks: u64,
    memory: Iova,
    bytes: u64,
}

impl Run {
    fn pieces(&self, geometry: Geometry) -> Result<impl Iterator<Item = Piece>, DmaError> {
        let Self { block, memory, bytes } = *self;
        let Geometry { blocks, block_bytes, max_bytes } = geometry;
        command::check(memory, bytes)?;
        let whole = block_bytes.is_power_of_two() && bytes.is_multiple_of(block_bytes);
        let inside = block.checked_add(bytes / block_bytes.max(1)).is_some_and(|end| end <= blocks);
        let most = max_bytes.min(MAX_BYTES);
        if !whole || !inside || most < block_bytes {
            return Err(DmaError::TooLong { bytes });
        }
        let most = most / block_bytes * block_bytes;
        Ok((0..bytes).step_by(most as usize).map(move |offset| {
            let bytes = most.min(bytes - offset);
            let memory = Iova::new(memory.as_u64() + offset);
            Piece { block: block + offset / block_bytes, blocks: bytes / block_bytes, memory, bytes }
        }))
    }
}

impl<R: RegisterIo, C: Clock> Disk for Nvme<'_, R, C> {
    fn identify(&self, iova: Iova, page: &dyn SharedBytes) -> Result<Geometry, DmaError> {
        self.ask(OF_CONTROLLER, iova)?;
        // A power of two of the smallest pages, which are 4 KiB at least; 0 is no limit.
        let most = match page.read(MAX_TRANSFER) {
            0 => u64::MAX,
            shift => PAGE.checked_shl(shift.into()).unwrap_or(u64::MAX),
        };
        self.ask(OF_NAMESPACE, iova)?;
        let byte = |offset| page.read(offset);
        let blocks = u64::from_le_bytes(core::array::from_fn(|index| byte(NAMESPACE_SIZE + index)));
        let format = usize::from(byte(FORMATTED_SIZE) & 0xf);
        let shift = byte(FORMATS + format * 4 + 2);
        if !(9..=MAX_BLOCK_SHIFT).contains(&shift) {
            return Err(DmaError::TooLong { bytes: 1u64.checked_shl(shift.into()).unwrap_or(u64::MAX) });
        }
        Ok(Geometry { blocks, block_bytes: 1 << shift, max_bytes: most })
    }

    fn read(&self, geometry: Geometry, block: u64, memory: Iova, bytes: u64) -> Result<(), DmaError> {
        self.transfer(READ, geometry, Run { block, memory, bytes })
    }

    fn write(&self, geometry: Geometry, block: u64, memory: Iova, bytes: u64) -> Result<(), DmaError> {
        self.transfer(WRITE, geometry, Run { block, memory, bytes })
    }

    fn stop(&self) -> Result<(), DmaError> {
        // Of the controller (CC.EN, 3.1.5): it forgets its queues.
        self.enable(false)
    }
}
