//! The two pairs of queues in memory, and their doorbells.

use portcullis_hal::{
    Clock, RegisterIo,
    sync::{Ordering, fence},
};

use super::{
    CAPABILITIES, Nvme,
    command::{COMMAND_BYTES, COMPLETION_BYTES, Completion, LIST_BYTES, PAGE},
};
use crate::board::DmaError;

/// Entries of each queue.
pub(super) const ENTRIES: u32 = 32;
/// Most commands that are under way at a time; each has a list of PRP entries.
pub const DEPTH: u32 = 16;
/// Bytes of memory that the queues and lists take: a page for each queue, lists behind the commands.
pub const QUEUE_BYTES: u64 = 4 * PAGE;

const DOORBELLS: usize = 0x1000;
/// Where the lists are: behind the entries of the I/O submission queue.
const LISTS: u32 = Queue::Io.submission() + ENTRIES * COMMAND_BYTES;
/// Where command identifier, phase tag and status are in a completion.
const TAIL: u32 = 12;

const _: () = assert!(DEPTH < ENTRIES && LISTS + DEPTH * LIST_BYTES <= Queue::Io.completion());

/// The admin queues, and the ones that move data.
#[derive(Clone, Copy)]
pub(super) enum Queue {
    Admin,
    Io,
}

impl Queue {
    /// Offset of its submission queue in memory.
    pub(super) const fn submission(self) -> u32 {
        self as u32 * 2 * PAGE as u32
    }

    /// Offset of its completion queue.
    pub(super) const fn completion(self) -> u32 {
        self.submission() + PAGE as u32
    }
}

impl<R: RegisterIo, C: Clock> Nvme<'_, R, C> {
    /// Where the device finds what lies at `offset` of the memory for queues.
    pub(super) fn device_address(&self, offset: u32) -> u64 {
        self.base.load(Ordering::Relaxed).wrapping_add(offset.into())
    }

    /// Empty queues: phase tags begin as 0 (4.6).
    pub(super) fn clear_queues(&self) {
        for queue in [Queue::Admin, Queue::Io] {
            let start = queue.completion();
            (start..start + ENTRIES * COMPLETION_BYTES).for_each(|at| self.memory.write(at as usize, 0));
            for counter in [&self.sent, &self.taken].into_iter().filter_map(|c| c.get(queue as usize)) {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Puts a command into its queue, which has room for it; the device does not know yet.
    pub(super) fn submit(&self, queue: Queue, command: [u8; COMMAND_BYTES as usize]) {
        let sent = self.sent.get(queue as usize).map_or(0, |sent| sent.fetch_add(1, Ordering::Relaxed));
        let entry = queue.submission() + sent % ENTRIES * COMMAND_BYTES;
        self.store(entry, command);
    }

    /// Tells the device of the commands that were put into a queue.
    pub(super) fn ring_submission(&self, queue: Queue) {
        let sent = self.sent.get(queue as usize).map_or(0, |sent| sent.load(Ordering::Relaxed));
        self.ring(queue as u32 * 2, sent % ENTRIES);
    }

    /// Waits for the next completion and takes it out of its queue.
    pub(super) fn take(&self, queue: Queue) -> Result<Completion, DmaError> {
        let counter = self.taken.get(queue as usize).ok_or(DmaError::TimedOut)?;
        let taken = counter.load(Ordering::Relaxed);
        let entry = queue.completion() + taken % ENTRIES * COMPLETION_BYTES + TAIL;
        // The phase tag flips with each round through the queue.
        let phase = (taken / ENTRIES) as u8 & 1 ^ 1;
        let read = |offset: u32| self.memory.read((entry + offset) as usize);
        self.wait(|| (read(2) & 1 == phase).then_some(()))?;
        // The rest of the entry, and the data, were written before the tag.
        fence(Ordering::Acquire);
        let completion = Completion::new([read(0), read(1), read(2), read(3)]);
        counter.store(taken.wrapping_add(1), Ordering::Relaxed);
        self.ring(queue as u32 * 2 + 1, taken.wrapping_add(1) % ENTRIES);
        Ok(completion)
    }

    /// Writes the list of PRP entries of command `number`; returns where the device finds it.
    pub(super) fn write_list(&self, number: u16, pages: impl Iterator<Item = u64>) -> u64 {
        let list = LISTS + u32::from(number) % DEPTH * LIST_BYTES;
        self.store(list, pages.take(LIST_BYTES as usize / 8).flat_map(u64::to_le_bytes));
        self.device_address(list)
    }

    fn store(&self, start: u32, bytes: impl IntoIterator<Item = u8>) {
        for (offset, byte) in (start..).zip(bytes) {
            self.memory.write(offset as usize, byte);
        }
    }

    fn ring(&self, doorbell: u32, value: u32) {
        let stride = 4 << (self.registers.read64(CAPABILITIES) >> 32 & 0xf);
        self.registers.write32(DOORBELLS + doorbell as usize * stride, value);
    }
}
