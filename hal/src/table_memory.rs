//! Memory that the hypervisor donates for hardware tables.

use core::{marker::PhantomData, ptr::NonNull};

use crate::{addr::PhysAddr, sync::AtomicU64};

/// Bytes in one page of donated memory.
pub const TABLE_PAGE_BYTES: u64 = 4096;
/// 64-bit cells in one page of donated memory.
pub const TABLE_PAGE_CELLS: usize = 512;

/// One physically contiguous region of donated memory, as cells that CPU and hardware share.
///
/// A page is an index into the region, so a stale index is a logic fault and never undefined
/// behaviour. Cells hold the bytes as hardware sees them: the driver converts the byte order.
/// May be used from any CPU at any time: every access is atomic.
///
/// # Safety
/// An implementer promises that
/// - `cells()` always returns the same region, a multiple of [`TABLE_PAGE_CELLS`] long, which lives
///   and stays mapped as long as the hardware that was told of it may read it;
/// - cell `i` is the memory at `base() + 8 * i`, `base()` is 4 KiB aligned and the region does not
///   wrap around the end of the address space;
/// - nothing else uses the memory: neither Rust references outside this trait nor other hardware.
pub unsafe trait TableMemory {
    /// All cells of the region.
    fn cells(&self) -> &[AtomicU64];

    /// Physical address of the first cell.
    fn base(&self) -> PhysAddr;

    /// Number of 4 KiB pages.
    fn page_count(&self) -> usize {
        self.cells().len() / TABLE_PAGE_CELLS
    }

    /// The cells of `pages` pages from page `first`, or `None` outside the region.
    #[inline]
    fn pages(&self, first: usize, pages: usize) -> Option<&[AtomicU64]> {
        let start = first.checked_mul(TABLE_PAGE_CELLS)?;
        let end = start.checked_add(pages.checked_mul(TABLE_PAGE_CELLS)?)?;
        self.cells().get(start..end)
    }

    /// Physical address of page `page`; saturates for an index outside the region.
    #[inline]
    fn page_address(&self, page: usize) -> PhysAddr {
        PhysAddr::new(self.base().as_u64().saturating_add((page as u64).saturating_mul(TABLE_PAGE_BYTES)))
    }

    /// The page that holds `address`, or `None` outside the region.
    #[inline]
    fn page_at(&self, address: PhysAddr) -> Option<usize> {
        let offset = address.as_u64().checked_sub(self.base().as_u64())?;
        let page = usize::try_from(offset / TABLE_PAGE_BYTES).ok()?;
        (page < self.page_count()).then_some(page)
    }
}

// SAFETY: forwards to an implementation that already gave the promise.
unsafe impl<M: TableMemory + ?Sized> TableMemory for &M {
    fn cells(&self) -> &[AtomicU64] {
        (**self).cells()
    }
    fn base(&self) -> PhysAddr {
        (**self).base()
    }
}

/// Donated memory that the CPU reaches by an ordinary pointer.
#[derive(Debug)]
pub struct DonatedPages<'m> {
    cells: NonNull<AtomicU64>,
    len: usize,
    base: PhysAddr,
    memory: PhantomData<&'m [AtomicU64]>,
}

// SAFETY: the only access is through atomics, which are `Sync`.
unsafe impl Send for DonatedPages<'_> {}
// SAFETY: as above.
unsafe impl Sync for DonatedPages<'_> {}

impl DonatedPages<'_> {
    /// Takes `pages` pages of memory at `start`, whose physical address is `base`.
    ///
    /// Returns `None` when `start` or `base` is not 4 KiB aligned, or the region wraps; and under the
    /// model checker, whose atomics are no plain words.
    ///
    /// # Safety
    /// For the lifetime of the value, and until no hardware reads the tables any more, the memory must
    /// be mapped, initialised, physically contiguous from `base`, and used by nobody else.
    #[must_use]
    pub unsafe fn new(start: NonNull<u64>, base: PhysAddr, pages: usize) -> Option<Self> {
        let bytes = pages.checked_mul(4096)?;
        base.checked_add(bytes as u64)?;
        start.addr().checked_add(bytes)?;
        let plain = size_of::<AtomicU64>() == size_of::<u64>();
        let aligned =
            start.addr().get().is_multiple_of(4096) && base.as_u64().is_multiple_of(TABLE_PAGE_BYTES);
        (plain && aligned).then_some(Self { cells: start.cast(), len: bytes / 8, base, memory: PhantomData })
    }
}

// SAFETY: `new` took the promises from its caller and checked alignment and wrap-around.
unsafe impl TableMemory for DonatedPages<'_> {
    #[inline]
    fn cells(&self) -> &[AtomicU64] {
        // SAFETY: `new`'s caller vouched for `len` mapped, initialised cells that nobody else uses, and
        // `AtomicU64` has the layout of `u64`.
        unsafe { core::slice::from_raw_parts(self.cells.as_ptr(), self.len) }
    }

    #[inline]
    fn base(&self) -> PhysAddr {
        self.base
    }
}
