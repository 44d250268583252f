//! Security contexts of this driver: one window, one tree of tables.

use portcullis_hal::{IoPageSize, Iova, IovaRange, PagePool, PhysAddr, TableMemory};
use portcullis_iommu::{Aperture, Error, Leaf, PageSizes};

use crate::{
    firmware::WindowNumber,
    generation::Generation,
    geometry::{Geometry, WINDOW_BITS},
    spec::tce::Tce,
    table::{Entries, Table},
};

/// Writes to these addresses are MSIs on every bridge and are never translated.
const MSI_32: (u64, u64) = (0xffff_0000, 0xffff_ffff);

/// What a new context shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextSpec {
    /// IOMMU page size, one that the bridge's generation has.
    pub page_size: IoPageSize,
    /// First address that can be mapped, a multiple of the page size: below 2^59 in window 0 of the PE,
    /// from 2^59 in window 1.
    pub window_start: Iova,
    /// Bytes that can be mapped: a power of two, at least one page.
    pub window_bytes: u64,
    /// Levels of tables, 1..=5.
    pub levels: u8,
    /// 4 KiB table pages that the context may take in all, or `None` for as many as the pool has.
    pub page_limit: Option<u32>,
}

impl ContextSpec {
    /// Which window of a PE this is, and the shape of its tables. A TVE translates from the start of its
    /// half of the address space, so tables cover what lies below `window_start`, too; missing levels
    /// there cost nothing.
    pub(crate) fn check(&self, generation: Generation) -> Result<(IovaRange, WindowNumber, Geometry), Error> {
        let supported = generation.page_sizes().contains(PageSizes::from_bits_retain(self.page_size.bytes()));
        if !supported {
            return Err(Error::Unsupported { value: u64::from(self.page_size.shift()) });
        }
        let (start, bytes) = (self.window_start, self.window_bytes);
        let outside = Error::OutsideAperture { iova: start, bytes };
        if !bytes.is_power_of_two() {
            return Err(Error::Unsupported { value: bytes });
        }
        let window = IovaRange::new(start, bytes).map_err(|_| outside)?;
        if !window.is_aligned(self.page_size) {
            return Err(Error::Misaligned { value: start.as_u64() | bytes });
        }
        let number = match (start.as_u64() >> WINDOW_BITS, window.last().as_u64() >> WINDOW_BITS) {
            (0, 0) => WindowNumber::Zero,
            (1, 1) => WindowNumber::One,
            _ => return Err(outside),
        };
        let covered = offset_in_window(window.last()) + 1;
        Ok((window, number, Geometry::covering(self.page_size, self.levels, covered)?))
    }
}

/// Tables of one context.
#[derive(Debug)]
pub struct Context {
    /// Never reused, never 0.
    pub(crate) id: u64,
    pub(crate) table: Table,
    pub(crate) range: IovaRange,
    pub(crate) window: WindowNumber,
    /// Index of the entry for the start of the window.
    first_entry: u64,
    /// Bits of an address inside its page.
    page_mask: u64,
    /// Bytes of whole pages from the start of the window before the first MSI.
    plain_bytes: u64,
}

impl Context {
    pub(crate) fn new(id: u64, table: Table, range: IovaRange, window: WindowNumber) -> Self {
        let page_size = table.geometry().page_size();
        let first_entry = offset_in_window(range.start()) >> page_size.shift();
        let page_mask = page_size.bytes() - 1;
        let plain_bytes = plain_bytes(range) & !page_mask;
        Self { id, table, range, window, first_entry, page_mask, plain_bytes }
    }

    /// What can be mapped.
    pub(crate) fn aperture(&self) -> Aperture {
        let page_sizes = PageSizes::from_bits_retain(self.page_size().bytes());
        Aperture { range: self.range, page_sizes }
    }

    /// 4 KiB table pages that the context holds now.
    #[must_use]
    pub fn table_pages(&self) -> u32 {
        self.table.pages()
    }

    /// Maps into the tables; what is in the way is named by its address, not by its place in the window.
    #[inline(always)]
    pub(crate) fn map<M: TableMemory>(
        &self,
        pool: &PagePool<M>,
        entries: Entries,
        tce: Tce,
    ) -> Result<(), Error> {
        self.table.map(pool, entries, tce).map_err(|error| match error {
            Error::AlreadyMapped { iova } => {
                let half = self.range.start().as_u64() & !((1 << WINDOW_BITS) - 1);
                Error::AlreadyMapped { iova: Iova::new(half | iova.as_u64()) }
            }
            other => other,
        })
    }

    pub(crate) const fn page_size(&self) -> IoPageSize {
        self.table.geometry().page_size()
    }

    /// The index of the entry for an address in the aperture.
    #[inline]
    pub(crate) const fn index(&self, iova: Iova) -> u64 {
        offset_in_window(iova) >> self.page_size().shift()
    }

    /// Bytes of the page of one entry.
    #[inline]
    pub(crate) const fn page_bytes(&self) -> u64 {
        self.page_mask + 1
    }

    /// The entries of the last-level table that holds the one for `iova`, as far as they are those of the window before
    /// the first MSI; `None` where `iova` is not there, or the table is missing.
    pub(crate) fn leaf<M: TableMemory>(&self, pool: &PagePool<M>, iova: Iova) -> Option<Leaf> {
        let offset = iova.as_u64().wrapping_sub(self.range.start().as_u64());
        if offset >= self.plain_bytes {
            return None;
        }
        let (page_size, page_shift) = (self.page_size(), self.page_size().shift());
        let leaf = self.table.leaf_place(pool, self.first_entry + (offset >> page_shift))?;
        let end = self.first_entry + (self.plain_bytes >> page_shift);
        let leaf = leaf.within(self.first_entry, end)?;
        let start = self.range.start().as_u64() + ((leaf.first - self.first_entry) << page_shift);
        Some(Leaf { start: Iova::new(start), bytes: leaf.count << page_shift, page_size, place: leaf.place })
    }

    /// The entries of a range that can be mapped, to memory from `page` on. What lies in the window lies in the tree, too: its
    /// geometry was made to cover the window.
    #[inline(always)]
    pub(crate) fn entries(&self, iova: Iova, bytes: u64, page: PhysAddr) -> Result<Entries, Error> {
        if (iova.as_u64() | bytes | page.as_u64()) & self.page_mask != 0 {
            return Err(self.misaligned([iova.as_u64(), bytes, page.as_u64()]));
        }
        // Below the window the offset is larger than any window.
        let offset = iova.as_u64().wrapping_sub(self.range.start().as_u64());
        let more = bytes.wrapping_sub(1);
        if self.plain_bytes <= more || self.plain_bytes - more <= offset {
            self.check_beyond_plain(iova, bytes)?;
        }
        let first = self.first_entry + (offset >> self.page_size().shift());
        Ok(Entries::inside(first, first + (more >> self.page_size().shift())))
    }

    /// The entries of a range that is to be emptied: those of MSIs, too, which never led anywhere.
    #[inline]
    pub(crate) fn entries_to_empty(&self, iova: Iova, bytes: u64) -> Result<Entries, Error> {
        match self.entries(iova, bytes, PhysAddr::new(0)) {
            Err(Error::OutsideAperture { .. }) => self.entries_around_msi(iova, bytes),
            found => found,
        }
    }

    #[cold]
    fn entries_around_msi(&self, iova: Iova, bytes: u64) -> Result<Entries, Error> {
        let range = IovaRange::new(iova, bytes).ok().filter(|&range| self.range.contains(range));
        let range = range.ok_or(Error::OutsideAperture { iova, bytes })?;
        Ok(Entries::inside(self.index(range.start()), self.index(range.last())))
    }

    #[cold]
    fn misaligned(&self, numbers: [u64; 3]) -> Error {
        let wrong = numbers.into_iter().find(|number| number & self.page_mask != 0);
        Error::Misaligned { value: wrong.unwrap_or_default() }
    }

    /// Checks what does not end before the first MSI.
    #[inline(never)]
    fn check_beyond_plain(&self, iova: Iova, bytes: u64) -> Result<(), Error> {
        match IovaRange::new(iova, bytes) {
            Ok(range) if self.range.contains(range) && !holds_msi(range) => Ok(()),
            _ => Err(Error::OutsideAperture { iova, bytes }),
        }
    }
}

/// Bytes of a window before its first MSI.
fn plain_bytes(window: IovaRange) -> u64 {
    match MSI_32.0.checked_sub(window.start().as_u64()) {
        Some(before) => before.min(window.bytes()),
        None if window.start().as_u64() > MSI_32.1 => window.bytes(),
        None => 0,
    }
}

#[inline]
const fn offset_in_window(iova: Iova) -> u64 {
    iova.as_u64() & ((1 << WINDOW_BITS) - 1)
}

const fn holds_msi(range: IovaRange) -> bool {
    range.start().as_u64() <= MSI_32.1 && MSI_32.0 <= range.last().as_u64()
}
