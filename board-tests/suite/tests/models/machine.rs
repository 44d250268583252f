//! What every model board has: memory with an image, buffers and table pages, and a trace of events.

use std::{cell::RefCell, rc::Rc, time::Duration};

use portcullis_fake::memory::{FakeClock, FakeMemory};
use portcullis_hal::{DmaExtent, PagePool, PhysAddr};
use portcullis_suite::{
    Buffer, Event,
    board::SharedBytes,
    event::{MAX_EVENT_BYTES, encode},
};

/// How long a wait for the models may take on the fake clock.
pub const PATIENCE: Duration = Duration::from_millis(2);

const PAGE: u64 = 4096;
const BASE: u64 = 0x20_0000;
const IMAGE: usize = 0;
const BUFFERS: usize = 16;
const BUFFER_COUNT: usize = 16;
const TABLES: usize = 64;
const TABLE_PAGES: usize = 128;
const SPARE_TABLES: usize = 256;
const SPARE_TABLE_PAGES: usize = 16;
/// Commands for a device that takes them from memory.
const QUEUE: usize = 321;
/// A table that some earlier system left behind.
const LEFTOVER: usize = 320;
const LARGE: usize = 512;
const LARGE_PAGES: usize = 512;
/// Beyond all of the above; nobody is ever given it.
const GUARD: usize = 1024;
const ALL_PAGES: usize = 1040;
/// What the image and the memory that belongs to nobody hold.
const UNTOUCHED: u8 = 0xc3;

/// Memory and time of one machine, and what was said about it.
pub struct Machine {
    pub memory: FakeMemory,
    pub clock: FakeClock,
    pub trace: Trace,
    buffers: Vec<Piece>,
    large: Piece,
}

/// Events in order, as they would travel to a host. Clones are the same trace.
pub type Trace = Rc<RefCell<Vec<Vec<u8>>>>;

impl Machine {
    /// A machine whose table walkers see each store at once, or only what was written back or drained.
    pub fn new(at_once: bool, trace: Trace) -> Self {
        let base = PhysAddr::new(BASE);
        let memory = if at_once {
            FakeMemory::coherent(base, ALL_PAGES)
        } else {
            FakeMemory::incoherent(base, ALL_PAGES)
        };
        for page in untouchable() {
            assert!(memory.write(address(page).as_u64(), &[UNTOUCHED; PAGE as usize]));
        }
        let buffers = (BUFFERS..BUFFERS + BUFFER_COUNT).map(|page| Piece::new(&memory, page, 1)).collect();
        let large = Piece::new(&memory, LARGE, LARGE_PAGES);
        Self { memory, clock: FakeClock::default(), trace, buffers, large }
    }

    /// The pages that a driver is given.
    pub fn pool(&self) -> PagePool<FakeMemory> {
        PagePool::new(self.memory.part(TABLES, TABLE_PAGES)).expect("a region with pages to hand out")
    }

    /// A few pages for a second driver beside the first.
    pub fn spare_pool(&self) -> PagePool<FakeMemory> {
        PagePool::new(self.memory.part(SPARE_TABLES, SPARE_TABLE_PAGES)).expect("a region with pages")
    }

    /// A page for a table that some earlier system left behind.
    pub fn leftover_table(&self) -> PhysAddr {
        address(LEFTOVER)
    }

    /// A page for a device's command queue.
    pub fn queue(&self) -> Piece {
        Piece::new(&self.memory, QUEUE, 1)
    }

    pub fn buffer(&self, index: usize) -> Option<Buffer<'_>> {
        self.buffers.get(index).map(Piece::as_buffer)
    }

    pub fn large_buffer(&self) -> Buffer<'_> {
        self.large.as_buffer()
    }

    pub fn image(&self) -> PhysAddr {
        address(IMAGE)
    }

    pub fn image_byte(&self, offset: usize) -> u8 {
        byte_at(&self.memory, self.image().as_u64() + offset as u64)
    }

    pub fn emit(&self, event: &Event<'_>) {
        let mut bytes = [0; MAX_EVENT_BYTES];
        let encoded = encode(event, &mut bytes).expect("an event that fits");
        self.trace.borrow_mut().push(encoded.to_vec());
    }

    /// Physical addresses of pages that belong to no device and were changed.
    pub fn damaged_pages(&self) -> Vec<PhysAddr> {
        let mut bytes = [0; PAGE as usize];
        let mut damaged = |page: &usize| {
            assert!(self.memory.read(address(*page).as_u64(), &mut bytes), "the page is memory");
            bytes.iter().any(|&byte| byte != UNTOUCHED)
        };
        untouchable().filter(|page| damaged(page)).map(address).collect()
    }
}

/// The image, and pages between and behind what is in use.
fn untouchable() -> impl Iterator<Item = usize> {
    (IMAGE..BUFFERS).chain(BUFFERS + BUFFER_COUNT..TABLES).chain(GUARD..ALL_PAGES)
}

fn address(page: usize) -> PhysAddr {
    PhysAddr::new(BASE + page as u64 * PAGE)
}

fn byte_at(memory: &FakeMemory, address: u64) -> u8 {
    let mut byte = [0];
    assert!(memory.read(address, &mut byte), "{address:#x} is memory");
    byte[0]
}

/// A piece of memory that devices may be pointed at.
pub struct Piece {
    memory: FakeMemory,
    extent: DmaExtent,
}

impl Piece {
    fn new(memory: &FakeMemory, first_page: usize, pages: usize) -> Self {
        Self { memory: memory.clone(), extent: memory.extent(first_page, pages) }
    }

    pub fn as_buffer(&self) -> Buffer<'_> {
        Buffer { extent: self.extent, bytes: self }
    }

    fn place(&self, offset: usize) -> Option<u64> {
        let inside = (offset as u64) < self.extent.bytes();
        inside.then(|| self.extent.start().as_u64() + offset as u64)
    }
}

impl SharedBytes for Piece {
    fn read(&self, offset: usize) -> u8 {
        self.place(offset).map_or(0, |address| byte_at(&self.memory, address))
    }

    fn write(&self, offset: usize, value: u8) {
        if let Some(address) = self.place(offset) {
            assert!(self.memory.write(address, &[value]), "{address:#x} is memory");
        }
    }
}
