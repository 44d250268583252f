//! Lent devices, and memory shared with them, as the guest reaches them: at the addresses that the hypervisor names.

use core::ptr::{NonNull, with_exposed_provenance_mut};

use portcullis_hal::{
    DeviceId, Iova, RequesterId, Segment,
    arch::x86_64::{MmioRegisters, TimeStampClock},
};
use portcullis_suite::{DmaDevice, DmaError, board::SharedBytes, edu::Edu};

/// Bytes that an edu device copies at a time.
pub const EDU_BYTES: u32 = 256;
/// Length of an edu device's registers.
const EDU_REGISTERS: u64 = 1 << 20;
/// Deadlines of drivers get longer on a slower counter; who waits for the guest has a limit anyway.
pub(super) const CLOCK: TimeStampClock = TimeStampClock::new(2000);
/// Guests are not told who their devices are.
const ANY: DeviceId = DeviceId { segment: Segment(0), requester: RequesterId::new(0) };

/// Registers that were lent at `at`.
pub(super) fn registers(at: u64, bytes: u64) -> Option<MmioRegisters> {
    let base = NonNull::new(with_exposed_provenance_mut(at as usize))?;
    // SAFETY: the guest's tables map device memory one to one and uncached; what is not lent makes it exit.
    Some(unsafe { MmioRegisters::new(base, bytes as usize) })
}

/// Lets the edu device whose registers are at `at` copy from and to memory.
pub(super) fn edu(at: u64, act: impl FnOnce(&dyn DmaDevice) -> Result<(), DmaError>) -> Result<(), DmaError> {
    let registers = registers(at, EDU_REGISTERS).ok_or(DmaError::Misaligned { iova: Iova::new(at) })?;
    act(&Edu::new(ANY, registers, CLOCK))
}

/// A part of the guest's memory that devices reach, too.
pub(super) struct Shared {
    start: NonNull<u8>,
    bytes: usize,
}

impl Shared {
    /// The memory at `at`.
    ///
    /// # Safety
    /// It must be in the guest's memory, where nothing of the image's copy is.
    pub(super) unsafe fn new(at: u64, bytes: u64) -> Option<Self> {
        Some(Self { start: NonNull::new(with_exposed_provenance_mut(at as usize))?, bytes: bytes as usize })
    }
}

impl SharedBytes for Shared {
    fn read(&self, offset: usize) -> u8 {
        // SAFETY: inside memory that `new`'s caller vouched for.
        if offset < self.bytes { unsafe { self.start.add(offset).read_volatile() } } else { 0 }
    }

    fn write(&self, offset: usize, value: u8) {
        if offset < self.bytes {
            // SAFETY: inside memory that `new`'s caller vouched for.
            unsafe { self.start.add(offset).write_volatile(value) }
        }
    }
}
