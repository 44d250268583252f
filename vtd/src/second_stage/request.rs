//! What a caller asks for, checked.

use portcullis_hal::{Access, DmaExtent, Iova, IovaRange};
use portcullis_iommu::Error;

use super::{INTERRUPTS, PAGE, SecondStage, shift, slots::Span};

/// A mapping that was checked: what goes where, and in which pages.
pub(super) struct Request {
    pub(super) span: Span,
    /// Added to an I/O virtual address it gives the physical one.
    pub(super) delta: u64,
    /// Highest level at which both addresses are aligned alike and pages are allowed.
    pub(super) leaf_level: u8,
}

impl Request {
    /// Whether `part`, which one entry of `level` covers, can be a page of that level.
    pub(super) const fn is_page(&self, level: u8, part: Span) -> bool {
        level <= self.leaf_level && part.last - part.first == (1 << shift(level)) - 1
    }

    /// Tables that must be made below an empty entry of `level` for `part` of the range.
    pub(super) const fn tables_below(&self, level: u8, part: Span) -> u64 {
        let (mut count, mut at) = (0, level);
        while at > 1 {
            let shift = shift(at);
            let touched = (part.last >> shift) - (part.first >> shift) + 1;
            let first_whole = (part.first + (1 << shift) - 1) >> shift;
            let whole = ((part.last + 1) >> shift).saturating_sub(first_whole);
            count += if at <= self.leaf_level { touched - whole } else { touched };
            at -= 1;
        }
        count
    }
}

impl SecondStage {
    #[inline]
    pub(super) fn request(&self, iova: Iova, extent: DmaExtent, access: Access) -> Result<Request, Error> {
        let (physical, bytes) = (extent.start().as_u64(), extent.bytes());
        let range = IovaRange::new(iova, bytes).map_err(|_| Error::OutsideAperture { iova, bytes })?;
        let span = self.span(range)?;
        if physical % PAGE != 0 {
            return Err(Error::Misaligned { value: physical });
        }
        // An extent does not wrap, so its last byte is a number.
        if physical + (bytes - 1) > self.last_physical {
            return Err(Error::PhysicalTooWide { address: physical });
        }
        if !access.intersects(Access::all()) {
            return Err(Error::NoAccess);
        }
        let delta = physical.wrapping_sub(span.first);
        let mut leaf_level = 1;
        while leaf_level < self.format.largest_page && delta & ((1 << shift(leaf_level + 1)) - 1) == 0 {
            leaf_level += 1;
        }
        Ok(Request { span, delta, leaf_level })
    }

    /// The range as numbers, if it is aligned and can be mapped.
    #[inline]
    pub(super) fn span(&self, range: IovaRange) -> Result<Span, Error> {
        let (iova, bytes) = (range.start(), range.bytes());
        let (first, last) = (iova.as_u64(), range.last().as_u64());
        if first % PAGE != 0 {
            return Err(Error::Misaligned { value: first });
        }
        if bytes % PAGE != 0 {
            return Err(Error::Misaligned { value: bytes });
        }
        let interrupts = first <= INTERRUPTS.1 && last >= INTERRUPTS.0;
        if last > self.last_address || interrupts {
            return Err(Error::OutsideAperture { iova, bytes });
        }
        Ok(Span { first, last })
    }
}
