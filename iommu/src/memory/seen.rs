//! Registered memory as sessions look at it: without counting.

use portcullis_hal::{DmaExtent, DmaParts, GuestPhysAddr, GuestPhysRange, IoPageSize};

use super::{RegisteredMemory, region, tokens::UNIT};
use crate::{error::Error, group::VmId};

/// A region of registered memory, found by a session. No region ends while a session lives that found it open.
#[derive(Clone, Copy, Debug)]
pub struct SeenRegion<'a> {
    /// The session that found it.
    session: &'a VmId,
    /// Where it begins for the guest.
    guest: u64,
    extent: DmaExtent,
    slot: u32,
}

/// Host memory behind a guest range inside one region. No region ends while a session lives that found
/// it open.
#[derive(Clone, Copy, Debug)]
pub struct RegionPart<'a> {
    /// The session that found it.
    session: &'a VmId,
    extent: DmaExtent,
    /// All addresses and the length of the region, or-ed.
    alignment: u64,
    slot: u32,
}

impl<'a> SeenRegion<'a> {
    /// Slot of the region: a hint for the next look.
    #[inline]
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// All of it.
    #[inline]
    #[must_use]
    pub const fn whole(&self) -> RegionPart<'a> {
        self.of(self.extent)
    }

    /// The host memory behind a guest range in whole 4 KiB pages, if all of it lies in the region: nothing is looked up.
    #[inline(always)]
    #[must_use]
    pub const fn part(&self, guest: GuestPhysRange) -> Option<RegionPart<'a>> {
        if !guest.is_aligned(IoPageSize::SIZE_4K) {
            return None;
        }
        match self.extent_of(guest.start(), guest.bytes()) {
            Some(extent) => Some(self.of(extent)),
            None => None,
        }
    }

    /// The host memory behind `bytes` bytes of the guest's, if all of it lies in the region.
    #[inline(always)]
    pub(crate) const fn extent_of(&self, guest: GuestPhysAddr, bytes: u64) -> Option<DmaExtent> {
        self.extent.part(self.offset_of(guest), bytes)
    }

    /// How far an address is into the region; below it that is more than any region is long.
    #[inline(always)]
    pub(crate) const fn offset_of(&self, guest: GuestPhysAddr) -> u64 {
        guest.as_u64().wrapping_sub(self.guest)
    }

    /// Its parts of so many bytes, or `None` when it is shorter.
    #[inline(always)]
    pub(crate) const fn parts(&self, bytes: u64) -> Option<DmaParts> {
        self.extent.parts(bytes)
    }

    /// Whether this session found it.
    #[inline]
    pub(crate) fn is_of(&self, session: &VmId) -> bool {
        core::ptr::eq(self.session, session)
    }

    /// Whether all of `bytes` bytes of the guest's from `guest` on lie in the region.
    #[inline(always)]
    #[must_use]
    pub const fn holds(&self, guest: GuestPhysAddr, bytes: u64) -> bool {
        self.extent_of(guest, bytes).is_some()
    }

    #[inline(always)]
    const fn of(&self, extent: DmaExtent) -> RegionPart<'a> {
        let alignment = region::alignment(self.guest, self.extent);
        RegionPart { session: self.session, extent, alignment, slot: self.slot }
    }
}

impl RegionPart<'_> {
    /// Slot of the region: a hint for the next [`Session::memory`](crate::Session::memory), and a number for
    /// people.
    #[inline]
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// The host memory.
    #[inline]
    #[must_use]
    pub const fn extent(&self) -> DmaExtent {
        self.extent
    }

    /// Whether the whole region is made of pages of so many bytes, a power of two.
    #[inline]
    #[must_use]
    pub const fn fits_pages_of(&self, bytes: u64) -> bool {
        self.alignment & bytes.wrapping_sub(1) == 0
    }

    /// Whether it is one page of so many bytes, a power of two.
    #[inline(always)]
    pub(crate) const fn is_page_of(&self, bytes: u64) -> bool {
        self.extent.bytes() == bytes && self.extent.start().as_u64() & bytes.wrapping_sub(1) == 0
    }

    /// The largest page of the region.
    #[must_use]
    pub fn page_size(&self) -> IoPageSize {
        region::page_size(self.alignment)
    }

    /// Whether this session found it.
    #[inline]
    pub(crate) fn is_of(&self, session: &VmId) -> bool {
        core::ptr::eq(self.session, session)
    }
}

impl<const N: usize, const CPUS: usize> RegisteredMemory<N, CPUS> {
    /// Finds the region that holds `guest` for a session of `vm`, in slot `hint` or in another. Those of
    /// `found`, a bit for each slot, were found by the session before.
    #[inline(always)]
    pub(crate) fn look<'a>(
        &'a self,
        hint: u32,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Result<SeenRegion<'a>, Error> {
        match self.look_at(hint, found, vm, guest) {
            Some(region) => Ok(region),
            None => self.look_anywhere(found, vm, guest),
        }
    }

    #[cold]
    #[inline(never)]
    fn look_anywhere<'a>(
        &'a self,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Result<SeenRegion<'a>, Error> {
        let start = guest.start();
        if let Some(value) = [start.as_u64(), guest.bytes()].into_iter().find(|value| value % UNIT != 0) {
            return Err(Error::Misaligned { value });
        }
        self.find(*vm, start, |slot| self.look_at(slot, found, vm, guest))
            .ok_or_else(|| self.why_not(*vm, guest))
    }

    /// The page that begins at `guest`, if it is in the region in slot `slot`, which is open and made of such pages.
    #[inline(always)]
    pub(crate) fn page_at<'a>(
        &'a self,
        slot: u32,
        vm: &'a VmId,
        guest: GuestPhysAddr,
        size: IoPageSize,
    ) -> Option<RegionPart<'a>> {
        let (start, extent) = self.regions.get(slot as usize)?.look(false, *vm)?;
        let alignment = region::alignment(start, extent);
        if (alignment | guest.as_u64()) & (size.bytes() - 1) != 0 {
            return None;
        }
        // Below the region the offset is larger than any region.
        let extent = extent.part(guest.as_u64().wrapping_sub(start), size.bytes())?;
        Some(RegionPart { session: vm, extent, alignment, slot })
    }

    /// The region in slot `slot`, if it holds `guest`.
    #[inline(always)]
    pub(crate) fn look_at<'a>(
        &'a self,
        slot: u32,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Option<SeenRegion<'a>> {
        let again = found >> (slot % u64::BITS) & 1 != 0;
        let (start, extent) = self.regions.get(slot as usize)?.look(again, *vm)?;
        let region = SeenRegion { session: vm, guest: start, extent, slot };
        region.part(guest).is_some().then_some(region)
    }
}
