//! A guest's memory: a block that the image donates.

use core::{arch::asm, ptr::NonNull};

use portcullis_hal::{DmaExtent, PhysAddr, PhysRange};

use super::GUEST_BYTES;

/// Bytes that `dcbz` makes zeros on POWER8, POWER9 and POWER10.
const CACHE_LINE: usize = 128;

/// The memory of one guest, guest real address 0 first. Reached by volatile accesses only, since the guest and
/// devices do the same.
#[derive(Clone, Copy, Debug)]
pub struct GuestMemory {
    start: NonNull<u8>,
}

// SAFETY: every access is volatile and inside memory donated for good.
unsafe impl Send for GuestMemory {}
// SAFETY: as above.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// `None` unless `start` is aligned to [`GUEST_BYTES`], as POWER8's RMOR wants it.
    ///
    /// # Safety
    /// [`GUEST_BYTES`] bytes from `start` must be nobody else's for ever, and be there where the CPU's addresses
    /// are real addresses.
    #[must_use]
    pub unsafe fn new(start: NonNull<u8>) -> Option<Self> {
        (start.addr().get() as u64).is_multiple_of(GUEST_BYTES).then_some(Self { start })
    }

    /// Real address of the first byte.
    #[must_use]
    pub fn address(self) -> PhysAddr {
        PhysAddr::new(self.start.addr().get() as u64)
    }

    /// How many bytes there are.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        GUEST_BYTES
    }

    /// The right to point the guest's devices at it.
    #[must_use]
    pub fn extent(self) -> Option<DmaExtent> {
        let range = PhysRange::new(self.address(), GUEST_BYTES).ok()?;
        // SAFETY: donated for good, for volatile accesses and nothing else; the hypervisor trusts nothing in it.
        Some(unsafe { DmaExtent::new(range) })
    }

    /// The doubleword at guest real address `at`, in this CPU's byte order; `None` when it is misaligned or outside.
    #[must_use]
    pub fn read(self, at: u64) -> Option<u64> {
        // SAFETY: inside the guest's memory and aligned; volatile because the guest writes there.
        Some(unsafe { self.word(at)?.read_volatile() })
    }

    /// Writes the doubleword at guest real address `at`; `None`, and no effect, when it is misaligned or outside.
    pub fn write(self, at: u64, value: u64) -> Option<()> {
        // SAFETY: inside the guest's memory and aligned; volatile because the guest reads there.
        unsafe { self.word(at)?.write_volatile(value) }
        Some(())
    }

    fn word(self, at: u64) -> Option<NonNull<u64>> {
        let inside = at.is_multiple_of(8) && at <= GUEST_BYTES - 8;
        // SAFETY: inside the block.
        inside.then(|| unsafe { self.start.add(at as usize).cast() })
    }

    /// Makes all of it zeros.
    pub(super) fn clear(self) {
        for line in (0..GUEST_BYTES).step_by(CACHE_LINE) {
            let address = self.start.addr().get() as u64 + line;
            // SAFETY: zeroes one line, inside the block.
            unsafe { asm!("dcbz 0, {address}", address = in(reg) address, options(nostack)) }
        }
    }
}
