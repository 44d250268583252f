//! The window of a LIOBN: what a guest may name by I/O bus addresses.

use core::num::NonZeroU32;

use portcullis_hal::IoPageSize;

use super::HcallError;

/// What a new LIOBN shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// log2 of the page that one entry of the guest stands for: 12..=34.
    pub page_shift: u8,
    /// First I/O bus address, a multiple of the page.
    pub start: u64,
    /// Bytes: a power of two, at least one page. The last one lies within 64 bits of address.
    pub bytes: u64,
    /// Levels of the tree that keeps what the guest wrote, 1..=5: fewer are faster, more cost less memory while the
    /// window is used sparsely.
    pub view_levels: u8,
    /// Entries that one H_STUFF_TCE may name (PAPR: 512), or `None` for the whole window, as older guests want it.
    pub stuff_cap: Option<NonZeroU32>,
    /// Entries of one H_STUFF_TCE that a single step deals with; a longer one is handed over and goes on in steps.
    pub budget: NonZeroU32,
}

impl WindowSpec {
    /// Checks what a window must be.
    ///
    /// # Errors
    /// [`HcallError::BadPageShift`], [`HcallError::BadWindow`] when the size is no power of two, smaller than a page,
    /// misaligned, or reaches beyond 64 bits.
    pub(super) fn check(&self) -> Result<Window, HcallError> {
        let shift = self.page_shift;
        let page = IoPageSize::from_shift(shift).ok_or(HcallError::BadPageShift { shift })?;
        let (start, bytes) = (self.start, self.bytes);
        let bad = HcallError::BadWindow { start, bytes };
        let aligned = (start | bytes) & (page.bytes() - 1) == 0;
        if !bytes.is_power_of_two() || !aligned || start.checked_add(bytes - 1).is_none() {
            return Err(bad);
        }
        Ok(Window { start, bytes, page_shift: shift })
    }
}

/// A window that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) start: u64,
    pub(super) bytes: u64,
    pub(super) page_shift: u8,
}

impl Window {
    /// Bytes of the guest's page.
    #[inline]
    pub(super) const fn page_bytes(self) -> u64 {
        1 << self.page_shift
    }

    /// Entries of the window.
    #[inline]
    pub(super) const fn entries(self) -> u64 {
        self.bytes >> self.page_shift
    }

    /// The index of the first of `count` entries from `ioba` on, when all of them lie in the window: nothing is added
    /// that could wrap.
    #[inline]
    pub(super) const fn index(self, ioba: u64, count: u64) -> Option<u64> {
        let offset = ioba.wrapping_sub(self.start);
        let index = offset >> self.page_shift;
        // Below the window the offset is larger than any window.
        if ioba < self.start || offset & (self.page_bytes() - 1) != 0 || count > self.entries() {
            return None;
        }
        if index <= self.entries() - count { Some(index) } else { None }
    }

    /// As [`index`](Self::index), of one entry.
    #[inline(always)]
    pub(super) const fn one(self, ioba: u64) -> Option<u64> {
        // Below the window the offset is larger than any window.
        let offset = ioba.wrapping_sub(self.start);
        if offset < self.bytes && self.is_page(offset) { Some(offset >> self.page_shift) } else { None }
    }

    /// Whether a guest's address begins one of its pages.
    #[inline]
    pub(super) const fn is_page(self, address: u64) -> bool {
        address & (self.page_bytes() - 1) == 0
    }

    /// The I/O bus address of the entry at `index`, which lies in the window.
    #[inline]
    pub(super) const fn ioba(self, index: u64) -> u64 {
        self.start.wrapping_add(index << self.page_shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: NonZeroU32 = NonZeroU32::MIN;

    fn spec(page_shift: u8, start: u64, bytes: u64) -> WindowSpec {
        WindowSpec { page_shift, start, bytes, view_levels: 1, stuff_cap: None, budget: BUDGET }
    }

    #[test]
    fn d01_a_window_is_a_power_of_two_of_whole_pages_within_64_bits() {
        let check = |shift, start, bytes| spec(shift, start, bytes).check().map(Window::entries);
        let bad = |start, bytes| Err(HcallError::BadWindow { start, bytes });
        assert_eq!(check(12, 1 << 59, 1 << 30), Ok(1 << 18));
        assert_eq!(check(34, 1 << 34, 1 << 34), Ok(1));
        assert_eq!(check(11, 0, 1 << 30), Err(HcallError::BadPageShift { shift: 11 }));
        assert_eq!(check(35, 0, 1 << 40), Err(HcallError::BadPageShift { shift: 35 }));
        assert_eq!(check(12, 0, 0), bad(0, 0));
        assert_eq!(check(12, 0, 3 << 12), bad(0, 3 << 12));
        assert_eq!(check(16, 0, 1 << 12), bad(0, 1 << 12));
        assert_eq!(check(16, 1 << 12, 1 << 16), bad(1 << 12, 1 << 16));
        assert_eq!(check(12, u64::MAX << 12, 1 << 13), bad(u64::MAX << 12, 1 << 13));
        assert_eq!(check(12, u64::MAX << 12, 1 << 12), Ok(1));
    }

    #[test]
    fn d02_the_whole_count_lies_in_the_window_without_wrapping() {
        let window = spec(12, 0x1_0000, 0x1_0000).check().expect("a window");
        assert_eq!(window.index(0x1_0000, 16), Some(0));
        let one = [0xf000, 0x1_0000, 0x1_0008, 0x1_f000, 0x2_0000].map(|ioba| window.one(ioba));
        assert_eq!(one, [None, Some(0), None, Some(15), None]);
        assert_eq!(window.index(0x1_f000, 1), Some(15));
        assert_eq!(window.index(0x2_0000, 0), Some(16));
        let refused =
            [(0xf000, 1), (0x1_0008, 1), (0x1_f000, 2), (0x2_0000, 1), (0x1_0000, 17), (0x1_0000, u64::MAX)];
        assert!(refused.into_iter().all(|(ioba, count)| window.index(ioba, count).is_none()));
        let top = spec(12, u64::MAX << 12, 1 << 12).check().expect("a window");
        assert_eq!(
            (top.index(u64::MAX << 12, 1), top.index(u64::MAX << 12, 2), top.index(0, 1)),
            (Some(0), None, None)
        );
    }
}
