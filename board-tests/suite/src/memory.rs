//! Static memory of an image without an operating system: table pages and buffers for devices.
//!
//! The image runs where physical and virtual addresses are the same.

use core::{
    cell::UnsafeCell,
    mem::offset_of,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering},
};

use portcullis_hal::{DmaExtent, DonatedPages, PagePool, PhysAddr, PhysRange};

use crate::{
    board::{Buffer, SharedBytes},
    nvme,
};

/// Bytes in a small buffer.
pub const BUFFER_BYTES: usize = 4096;
const BUFFERS: usize = 16;
const QUEUE_BYTES: usize = nvme::QUEUE_BYTES as usize;
const LARGE_BYTES: usize = 2 << 20;
const POOL_PAGES: usize = 256;
const SPARE_PAGES: usize = 16;
/// Pages in which hypercalls keep what guests wrote.
const VIEW_PAGES: usize = 64;

/// The layout: the large buffer first, because it needs the largest alignment.
#[repr(C, align(0x20_0000))]
struct Layout {
    large: [u8; LARGE_BYTES],
    buffers: [[u8; BUFFER_BYTES]; BUFFERS],
    queues: [u8; QUEUE_BYTES],
    pool: [[u64; 512]; POOL_PAGES],
    spare: [[u64; 512]; SPARE_PAGES],
    views: [[u64; 512]; VIEW_PAGES],
}

/// Memory for one image, to be a `static`: zeroed by the entry code, never reached by Rust references
/// except to atomics.
pub struct ImageMemory {
    layout: UnsafeCell<Layout>,
    pool_taken: AtomicBool,
    spare_taken: AtomicBool,
    views_taken: AtomicBool,
}

// SAFETY: only raw pointers into it are made, each to a part with one purpose; a pool is given out once.
unsafe impl Sync for ImageMemory {}

impl ImageMemory {
    /// All zeros.
    ///
    /// # Safety
    /// The value must be a `static` of an image whose physical and virtual addresses are the same.
    #[must_use]
    pub const unsafe fn new() -> Self {
        let layout = Layout {
            large: [0; LARGE_BYTES],
            buffers: [[0; BUFFER_BYTES]; BUFFERS],
            queues: [0; QUEUE_BYTES],
            pool: [[0; 512]; POOL_PAGES],
            spare: [[0; 512]; SPARE_PAGES],
            views: [[0; 512]; VIEW_PAGES],
        };
        Self {
            layout: UnsafeCell::new(layout),
            pool_taken: AtomicBool::new(false),
            spare_taken: AtomicBool::new(false),
            views_taken: AtomicBool::new(false),
        }
    }

    /// The pool of table pages; `None` the second time.
    #[must_use]
    pub fn pool(&'static self) -> Option<PagePool<DonatedPages<'static>>> {
        // SAFETY: a live static; no reference is made.
        let start = unsafe { &raw mut (*self.layout.get()).pool };
        donate(start.cast(), POOL_PAGES, &self.pool_taken)
    }

    /// A small pool, for a second try at the same hardware; `None` the second time.
    #[must_use]
    pub fn spare_pool(&'static self) -> Option<PagePool<DonatedPages<'static>>> {
        // SAFETY: a live static; no reference is made.
        let start = unsafe { &raw mut (*self.layout.get()).spare };
        donate(start.cast(), SPARE_PAGES, &self.spare_taken)
    }

    /// A pool that no hardware walks: for what hypercalls keep; `None` the second time.
    #[must_use]
    pub fn view_pool(&'static self) -> Option<PagePool<DonatedPages<'static>>> {
        // SAFETY: a live static; no reference is made.
        let start = unsafe { &raw mut (*self.layout.get()).views };
        donate(start.cast(), VIEW_PAGES, &self.views_taken)
    }

    /// The buffers for devices.
    #[must_use]
    pub fn buffers(&'static self) -> Buffers {
        // An `UnsafeCell` has the layout of what it holds, and lends it to be written.
        Buffers::of(NonNull::from(&self.layout).cast())
    }
}

fn donate(start: *mut u64, pages: usize, taken: &AtomicBool) -> Option<PagePool<DonatedPages<'static>>> {
    if taken.swap(true, Ordering::Relaxed) {
        return None;
    }
    let start = NonNull::new(start)?;
    let base = PhysAddr::new(start.addr().get() as u64);
    // SAFETY: static, zeroed memory, physical = virtual (promised to `ImageMemory::new`), given out once.
    PagePool::new(unsafe { DonatedPages::new(start, base, pages) }?).ok()
}

/// Bytes of a buffer, as CPU and device share them.
#[derive(Clone, Copy, Debug)]
struct Bytes {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: every access is volatile and inside static memory made for it.
unsafe impl Sync for Bytes {}

impl SharedBytes for Bytes {
    fn read(&self, offset: usize) -> u8 {
        // SAFETY: inside the buffer.
        if offset < self.len { unsafe { self.start.add(offset).read_volatile() } } else { 0 }
    }

    fn write(&self, offset: usize, value: u8) {
        if offset < self.len {
            // SAFETY: inside the buffer.
            unsafe { self.start.add(offset).write_volatile(value) }
        }
    }
}

/// The buffers of an image.
#[derive(Debug)]
pub struct Buffers {
    small: [Bytes; BUFFERS],
    large: Bytes,
    queues: Bytes,
}

impl Buffers {
    /// The buffers of a live static.
    fn of(layout: NonNull<Layout>) -> Self {
        let bytes = |offset, len| {
            // SAFETY: inside the static; no reference is made.
            Bytes { start: unsafe { layout.cast::<u8>().add(offset) }, len }
        };
        let small = |index| bytes(offset_of!(Layout, buffers) + index * BUFFER_BYTES, BUFFER_BYTES);
        Self {
            small: core::array::from_fn(small),
            large: bytes(offset_of!(Layout, large), LARGE_BYTES),
            queues: bytes(offset_of!(Layout, queues), QUEUE_BYTES),
        }
    }

    /// Small buffer `index`: see [`Board::buffer`](crate::Board::buffer).
    #[must_use]
    pub fn small(&self, index: usize) -> Option<Buffer<'_>> {
        self.small.get(index).and_then(lend)
    }

    /// The buffer of 2 MiB, aligned to that.
    #[must_use]
    pub fn large(&self) -> Option<Buffer<'_>> {
        lend(&self.large)
    }

    /// Memory for the command queues of one device.
    #[must_use]
    pub fn queues(&self) -> Option<Buffer<'_>> {
        lend(&self.queues)
    }
}

/// A buffer with the right to point devices at it.
fn lend(bytes: &Bytes) -> Option<Buffer<'_>> {
    let start = PhysAddr::new(bytes.start.addr().get() as u64);
    let range = PhysRange::new(start, bytes.len as u64).ok()?;
    // SAFETY: static memory, physical = virtual, that holds bytes for volatile access and nothing else.
    let extent = unsafe { DmaExtent::new(range) };
    Some(Buffer { extent, bytes })
}

/// The running image's own first page, at which scenarios aim DMA that must not arrive.
#[derive(Clone, Copy, Debug)]
pub struct RunningImage {
    start: *const u8,
}

impl RunningImage {
    /// The image that begins at `start`.
    ///
    /// # Safety
    /// One page from `start` must stay readable, and physical and virtual addresses must be the same.
    #[must_use]
    pub const unsafe fn new(start: *const u8) -> Self {
        Self { start }
    }

    /// Physical address of the first byte.
    #[must_use]
    pub fn address(self) -> PhysAddr {
        PhysAddr::new(self.start.addr() as u64)
    }

    /// Byte `offset` as memory holds it now; 0 beyond the page.
    #[must_use]
    pub fn byte(self, offset: usize) -> u8 {
        // SAFETY: inside the page that `new`'s caller vouched for.
        if offset < BUFFER_BYTES { unsafe { self.start.add(offset).read_volatile() } } else { 0 }
    }
}
