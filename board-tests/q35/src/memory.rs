//! The image's memory: donated table pages, buffers for devices, and the image itself.

use core::{
    cell::UnsafeCell,
    ptr::{self, NonNull},
};

use portcullis_hal::{DmaExtent, DonatedPages, PagePool, PhysAddr, PhysRange};
use portcullis_suite::{Buffer, board::SharedBytes};

/// Bytes in a buffer.
pub(crate) const BUFFER_BYTES: usize = 4096;
const BUFFERS: usize = 16;
const LARGE_BYTES: usize = 2 << 20;
const POOL_PAGES: usize = 256;
const SPARE_PAGES: usize = 16;

/// Static memory that is never reached by Rust references, except to atomics.
#[repr(C, align(0x200000))]
struct Memory {
    large: [u8; LARGE_BYTES],
    buffers: [[u8; BUFFER_BYTES]; BUFFERS],
    pool: [[u64; 512]; POOL_PAGES],
    spare: [[u64; 512]; SPARE_PAGES],
}

struct Static(UnsafeCell<Memory>);

// SAFETY: only raw pointers into it are made, each to a part with one purpose.
unsafe impl Sync for Static {}

static MEMORY: Static = Static(UnsafeCell::new(Memory {
    large: [0; LARGE_BYTES],
    buffers: [[0; BUFFER_BYTES]; BUFFERS],
    pool: [[0; 512]; POOL_PAGES],
    spare: [[0; 512]; SPARE_PAGES],
}));

unsafe extern "C" {
    /// First byte of the image, from the link script.
    static image_start: u8;
}

/// Bytes of a buffer, as CPU and device share them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bytes {
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

/// Where the parts of [`MEMORY`] are.
#[derive(Debug)]
pub(crate) struct Buffers {
    small: [Bytes; BUFFERS],
    large: Bytes,
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let memory = MEMORY.0.get();
        // SAFETY: `memory` points to a live static; no reference is made.
        let (large, small) = unsafe { (&raw mut (*memory).large, &raw mut (*memory).buffers) };
        let buffer = |start: *mut u8, len| Bytes { start: NonNull::new(start).unwrap_or(NonNull::dangling()), len };
        let first: *mut u8 = small.cast();
        Self {
            small: core::array::from_fn(|index| buffer(first.wrapping_add(index * BUFFER_BYTES), BUFFER_BYTES)),
            large: buffer(large.cast(), LARGE_BYTES),
        }
    }

    pub(crate) fn small(&self, index: usize) -> Option<Buffer<'_>> {
        self.small.get(index).and_then(lend)
    }

    pub(crate) fn large(&self) -> Option<Buffer<'_>> {
        lend(&self.large)
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

/// The pool of table pages.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn pool() -> Option<PagePool<DonatedPages<'static>>> {
    // SAFETY: a live static; no reference is made; used for this pool only, says the caller.
    unsafe { donate((&raw mut (*MEMORY.0.get()).pool).cast(), POOL_PAGES) }
}

/// Another pool, for a second try at the same hardware.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn spare_pool() -> Option<PagePool<DonatedPages<'static>>> {
    // SAFETY: as above.
    unsafe { donate((&raw mut (*MEMORY.0.get()).spare).cast(), SPARE_PAGES) }
}

/// # Safety
/// `start` must point to so many pages of static memory that nobody else uses.
unsafe fn donate(start: *mut u64, pages: usize) -> Option<PagePool<DonatedPages<'static>>> {
    let start = NonNull::new(start)?;
    let base = PhysAddr::new(start.addr().get() as u64);
    // SAFETY: static, zeroed memory, physical = virtual, for one user, says the caller.
    PagePool::new(unsafe { DonatedPages::new(start, base, pages) }?).ok()
}

/// Physical address of the image's first page.
pub(crate) fn image() -> PhysAddr {
    PhysAddr::new((&raw const image_start).addr() as u64)
}

/// A byte of that page.
pub(crate) fn image_byte(offset: usize) -> u8 {
    if offset >= BUFFER_BYTES {
        return 0;
    }
    // SAFETY: inside the image's first page, which is longer than that; read as memory holds it now.
    unsafe { (&raw const image_start).add(offset).read_volatile() }
}

/// A word of memory as hardware sees it; `None` above what is mapped.
pub(crate) fn word_at(address: u64) -> Option<u64> {
    if address >= 1 << 32 || !address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: mapped one to one, aligned, and read as hardware would: the value may change at any time.
    Some(unsafe { ptr::with_exposed_provenance::<u64>(address as usize).read_volatile() })
}
