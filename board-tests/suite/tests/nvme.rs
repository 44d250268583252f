//! The NVMe driver against a modelled controller, which finds everything by the addresses that it is told.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::cell::{Cell, RefCell};

use portcullis_fake::memory::FakeClock;
use portcullis_hal::{Iova, RegisterIo};
use portcullis_suite::{
    DmaError,
    board::{Disk, Geometry, SharedBytes},
    nvme::{DEPTH, Nvme, QUEUE_BYTES},
};

/// Where the controller finds the queues, and the data.
const QUEUES: u64 = 0x5000_0000;
const DATA: u64 = 0x1_2000_0000;
const DATA_BYTES: usize = 2 << 20;
const BLOCK: usize = 512;
const BLOCKS: usize = 2048;
/// LBA out of range.
const BAD_LBA: u16 = 0x80;

struct Memory(RefCell<Vec<u8>>);

impl Memory {
    fn new(bytes: usize) -> Self {
        Self(RefCell::new(vec![0; bytes]))
    }
}

impl SharedBytes for Memory {
    fn read(&self, offset: usize) -> u8 {
        self.0.borrow()[offset]
    }
    fn write(&self, offset: usize, value: u8) {
        self.0.borrow_mut()[offset] = value;
    }
}

/// A queue pair as the controller sees it.
#[derive(Clone, Copy, Default)]
struct Pair {
    submission: u64,
    completion: u64,
    entries: u32,
    head: u32,
    tail: u32,
    completed: u32,
}

/// A controller that ends the commands of one doorbell in reverse order.
struct Controller {
    queues: Memory,
    data: Memory,
    disk: RefCell<Vec<u8>>,
    pairs: RefCell<[Pair; 2]>,
    configuration: Cell<u32>,
    most_at_once: Cell<u32>,
    /// Rings until the controller falls silent.
    patience: Cell<u32>,
}

impl Controller {
    fn new() -> Self {
        let disk = (0..BLOCKS * BLOCK).map(|byte| (byte * 31 + byte / 509) as u8).collect();
        Self {
            queues: Memory::new(QUEUE_BYTES as usize),
            data: Memory::new(DATA_BYTES),
            disk: RefCell::new(disk),
            pairs: RefCell::default(),
            configuration: Cell::new(0),
            most_at_once: Cell::new(0),
            patience: Cell::new(u32::MAX),
        }
    }

    /// The memory that holds a device address.
    fn place(&self, address: u64) -> (&Memory, usize) {
        match address.checked_sub(DATA) {
            Some(offset) => (&self.data, offset as usize),
            None => (&self.queues, address.checked_sub(QUEUES).expect("an address it was told") as usize),
        }
    }

    fn load<const N: usize>(&self, address: u64) -> [u8; N] {
        let (memory, offset) = self.place(address);
        std::array::from_fn(|index| memory.read(offset + index))
    }

    fn word(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.load(address))
    }

    /// Addresses of each byte run of a transfer (PRP entries, 4.3).
    fn runs(&self, prp: [u64; 2], bytes: usize) -> Vec<(u64, usize)> {
        let first = bytes.min(4096 - (prp[0] & 0xfff) as usize);
        let (mut runs, mut left, mut entry) = (vec![(prp[0], first)], bytes - first, prp[1]);
        let listed = left > 4096;
        while left > 0 {
            let page = if listed { self.word(entry) } else { entry };
            assert_eq!(page & 0xfff, 0, "only the first entry has an offset");
            runs.push((page, left.min(4096)));
            left -= left.min(4096);
            entry += 8;
        }
        runs
    }

    fn execute(&self, queue: usize, command: u64) -> u16 {
        let opcode = self.load::<1>(command)[0];
        let (prp, ten, twelve) = (
            [self.word(command + 24), self.word(command + 32)],
            self.word(command + 40),
            self.word(command + 48),
        );
        match (queue, opcode) {
            (0, 0x06) => self.identify(prp[0], ten as u32),
            (0, 0x05) => {
                self.create(|pair| (pair.completion, pair.entries) = (prp[0], (ten as u32 >> 16) + 1))
            }
            (0, 0x01) => self.create(|pair| pair.submission = prp[0]),
            (1, 0x01 | 0x02) => {
                return self.transfer(opcode == 0x01, prp, ten as usize, (twelve as usize & 0xffff) + 1);
            }
            _ => panic!("queue {queue}, opcode {opcode:#x}"),
        }
        0
    }

    fn create(&self, change: impl FnOnce(&mut Pair)) {
        change(&mut self.pairs.borrow_mut()[1]);
    }

    fn identify(&self, page: u64, what: u32) {
        let (memory, start) = self.place(page);
        match what {
            1 => memory.write(start + 77, 4),
            _ => {
                let blocks = (BLOCKS as u64).to_le_bytes();
                blocks.iter().enumerate().for_each(|(index, byte)| memory.write(start + index, *byte));
                memory.write(start + 26, 1);
                memory.write(start + 128 + 4 + 2, 9);
            }
        }
    }

    fn transfer(&self, to_disk: bool, prp: [u64; 2], block: usize, blocks: usize) -> u16 {
        if block + blocks > BLOCKS {
            return BAD_LBA;
        }
        let mut at = block * BLOCK;
        for (address, bytes) in self.runs(prp, blocks * BLOCK) {
            let ((memory, offset), mut disk) = (self.place(address), self.disk.borrow_mut());
            for index in 0..bytes {
                match to_disk {
                    true => disk[at + index] = memory.read(offset + index),
                    false => memory.write(offset + index, disk[at + index]),
                }
            }
            at += bytes;
        }
        0
    }

    fn ring(&self, queue: usize, tail: u32) {
        if self.patience.replace(self.patience.get().saturating_sub(1)) == 0 {
            return;
        }
        let mut pair = self.pairs.borrow()[queue];
        pair.tail = tail;
        let mut commands = Vec::new();
        while pair.head != pair.tail {
            commands.push(pair.submission + u64::from(pair.head) * 64);
            pair.head = (pair.head + 1) % pair.entries;
        }
        self.most_at_once.set(self.most_at_once.get().max(commands.len() as u32));
        for command in commands.into_iter().rev() {
            let identifier = self.load::<4>(command)[2..].to_vec();
            let status = self.execute(queue, command) << 1 | (pair.completed / pair.entries) as u16 & 1 ^ 1;
            let (memory, offset) =
                self.place(pair.completion + u64::from(pair.completed % pair.entries) * 16);
            let tail = [identifier[0], identifier[1], status as u8, (status >> 8) as u8];
            tail.iter().enumerate().for_each(|(index, byte)| memory.write(offset + 12 + index, *byte));
            pair.completed += 1;
        }
        let created = self.pairs.borrow()[1];
        self.pairs.borrow_mut()[queue] = pair;
        if queue == 0 {
            self.pairs.borrow_mut()[1] = created;
        }
    }
}

// SAFETY: nothing but the model's own state is touched.
unsafe impl RegisterIo for &Controller {
    fn read32(&self, offset: usize) -> u32 {
        match offset {
            0x1c => self.configuration.get() & 1,
            _ => panic!("read of register {offset:#x}"),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        match offset {
            0x14 => {
                self.configuration.set(value);
                let [admin, _] = *self.pairs.borrow();
                let admin = Pair {
                    submission: admin.submission,
                    completion: admin.completion,
                    entries: admin.entries,
                    ..Pair::default()
                };
                *self.pairs.borrow_mut() = [admin, Pair::default()];
            }
            0x24 => self.pairs.borrow_mut()[0].entries = (value & 0xffff) + 1,
            // A stride of 8 bytes: submission doorbells are every 16.
            0x1000.. if (offset - 0x1000).is_multiple_of(16) => self.ring((offset - 0x1000) / 16, value),
            _ => {}
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        assert_eq!(offset, 0, "only the capabilities are read so");
        1 << 32 | 0x3ff
    }

    fn write64(&self, offset: usize, value: u64) {
        let pair = &mut self.pairs.borrow_mut()[0];
        match offset {
            0x28 => pair.submission = value,
            0x30 => pair.completion = value,
            _ => panic!("write of register {offset:#x}"),
        }
    }
}

fn with_disk(act: impl FnOnce(&Controller, &Nvme<'_, &Controller, FakeClock>, Geometry)) {
    let controller = Controller::new();
    let nvme = Nvme::new(&controller, FakeClock::default(), &controller.queues);
    nvme.start(Iova::new(QUEUES)).expect("a controller that starts");
    let geometry = nvme.identify(Iova::new(DATA), &controller.data).expect("a geometry");
    act(&controller, &nvme, geometry);
}

#[test]
fn the_geometry_is_what_the_controller_says() {
    with_disk(|_, _, geometry| {
        let expected = Geometry { blocks: BLOCKS as u64, block_bytes: 512, max_bytes: 64 << 10 };
        assert_eq!(geometry, expected);
        assert_eq!(geometry.bytes(), (BLOCKS * BLOCK) as u64);
    });
}

#[test]
fn a_whole_disk_arrives_with_several_commands_under_way() {
    for offset in [0, 4, 0x200, 0xffc] {
        with_disk(|controller, nvme, geometry| {
            // Often enough that every queue goes round several times.
            for _ in 0..6 {
                controller.data.0.borrow_mut().fill(0);
                nvme.read(geometry, 0, Iova::new(DATA + offset), geometry.bytes()).expect("a read");
                let (data, disk) = (controller.data.0.borrow(), controller.disk.borrow());
                let start = offset as usize;
                assert!(data[start..start + disk.len()] == disk[..], "offset {offset:#x}");
                assert!(data[start + disk.len()..].iter().all(|byte| *byte == 0), "more than asked for");
            }
            assert_eq!(controller.most_at_once.get(), DEPTH);
        });
    }
}

#[test]
fn what_is_written_is_read_again() {
    with_disk(|controller, nvme, geometry| {
        let before = controller.disk.borrow().clone();
        let pattern = |index: usize| (index * 7 + index / 251) as u8;
        (0..200 * BLOCK).for_each(|index| controller.data.write(index, pattern(index)));
        nvme.write(geometry, 300, Iova::new(DATA), 200 * BLOCK as u64).expect("a write");
        let disk = controller.disk.borrow();
        let (start, end) = (300 * BLOCK, 500 * BLOCK);
        assert!((start..end).all(|index| disk[index] == pattern(index - start)));
        assert!(disk[..start] == before[..start] && disk[end..] == before[end..], "other blocks changed");
    });
}

#[test]
fn refused_commands_are_told_and_all_others_end() {
    with_disk(|controller, nvme, geometry| {
        let claims_more = Geometry { blocks: 2 * geometry.blocks, ..geometry };
        let first = geometry.blocks - 256;
        let read = nvme.read(claims_more, first, Iova::new(DATA), 256 << 10);
        assert_eq!(read, Err(DmaError::Refused { status: BAD_LBA }));
        let arrived = controller.data.0.borrow()[..256 * BLOCK].to_vec();
        assert!(arrived == controller.disk.borrow()[first as usize * BLOCK..], "commands that were in range");
        nvme.read(geometry, 0, Iova::new(DATA), 4096).expect("the next read");
    });
}

#[test]
fn what_no_command_can_tell_is_refused_before_it_is_sent() {
    with_disk(|controller, nvme, geometry| {
        controller.most_at_once.set(0);
        let read = |block, memory, bytes| nvme.read(geometry, block, Iova::new(memory), bytes);
        assert_eq!(read(0, DATA + 2, 512), Err(DmaError::Misaligned { iova: Iova::new(DATA + 2) }));
        assert_eq!(read(0, DATA, 513), Err(DmaError::TooLong { bytes: 513 }));
        assert_eq!(read(geometry.blocks, DATA, 512), Err(DmaError::TooLong { bytes: 512 }));
        assert_eq!(read(u64::MAX, DATA, 512), Err(DmaError::TooLong { bytes: 512 }));
        assert_eq!(controller.most_at_once.get(), 0);
    });
}

#[test]
fn a_silent_controller_ends_the_wait_and_can_be_started_anew() {
    with_disk(|controller, nvme, geometry| {
        controller.patience.set(0);
        assert_eq!(nvme.read(geometry, 0, Iova::new(DATA), 1 << 20), Err(DmaError::TimedOut));
        controller.patience.set(u32::MAX);
        nvme.stop().expect("a reset");
        nvme.start(Iova::new(QUEUES)).expect("a second start");
        nvme.read(geometry, 0, Iova::new(DATA), 1 << 20).expect("a read");
    });
}
