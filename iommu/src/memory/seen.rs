//! Registered memory as sessions look at it: without counting.

use portcullis_hal::{DmaExtent, GuestPhysRange, IoPageSize};

use super::{RegisteredMemory, region, tokens::UNIT};
use crate::{error::Error, group::VmId};

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
    /// Finds the memory behind `guest` for a session of `vm`, in the region in slot `hint` or in another. Those of
    /// `found`, a bit for each slot, were found by the session before.
    #[inline(always)]
    pub(crate) fn look<'a>(
        &'a self,
        hint: u32,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Result<RegionPart<'a>, Error> {
        match self.look_at(hint, found, vm, guest) {
            Some(part) => Ok(part),
            None => self.look_anywhere(found, vm, guest),
        }
    }

    #[inline(never)]
    fn look_anywhere<'a>(
        &'a self,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Result<RegionPart<'a>, Error> {
        let start = guest.start();
        if let Some(value) = [start.as_u64(), guest.bytes()].into_iter().find(|value| value % UNIT != 0) {
            return Err(Error::Misaligned { value });
        }
        self.find(*vm, start, |slot| self.look_at(slot, found, vm, guest))
            .ok_or_else(|| self.why_not(*vm, guest))
    }

    #[inline(always)]
    fn look_at<'a>(
        &'a self,
        slot: u32,
        found: u64,
        vm: &'a VmId,
        guest: GuestPhysRange,
    ) -> Option<RegionPart<'a>> {
        if !guest.is_aligned(IoPageSize::SIZE_4K) {
            return None;
        }
        let again = found >> (slot % u64::BITS) & 1 != 0;
        let (extent, alignment) = self.regions.get(slot as usize)?.look(again, *vm, guest)?;
        Some(RegionPart { session: vm, extent, alignment, slot })
    }
}
