//! x86_64: memory-mapped registers, time-stamp counter, cache lines.

use core::{
    arch::x86_64::{__cpuid, _mm_clflush, _mm_mfence, _rdtsc},
    ptr::NonNull,
    time::Duration,
};

use crate::{cache::CacheMaintenance, clock::Clock, register_io::RegisterIo};

/// Registers reached through a mapped, uncached window.
#[derive(Debug)]
pub struct MmioRegisters {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: accesses are volatile loads and stores of device registers, allowed from every CPU.
unsafe impl Send for MmioRegisters {}
// SAFETY: as above.
unsafe impl Sync for MmioRegisters {}

impl MmioRegisters {
    /// The `bytes` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// For the lifetime of the value, the window must be mapped uncached, 8-byte aligned, and hold the
    /// registers of one device and nothing else.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    fn register<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        let inside = end <= self.bytes && offset.is_multiple_of(size_of::<T>());
        // SAFETY: `offset` was just checked to lie inside the window that `new`'s caller vouched for.
        inside.then(|| unsafe { self.base.add(offset).cast() })
    }
}

// SAFETY: `register` refuses what lies outside the window or is misaligned; `new`'s caller vouched for
// the window. Volatile accesses to uncached memory are not reordered by compiler or CPU.
unsafe impl RegisterIo for MmioRegisters {
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: inside the window and aligned.
        self.register(offset).map_or(u32::MAX, |register| unsafe { register.read_volatile() })
    }

    fn write32(&self, offset: usize, value: u32) {
        if let Some(register) = self.register(offset) {
            // SAFETY: inside the window and aligned.
            unsafe { register.write_volatile(value) }
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: inside the window and aligned.
        self.register(offset).map_or(u64::MAX, |register| unsafe { register.read_volatile() })
    }

    fn write64(&self, offset: usize, value: u64) {
        if let Some(register) = self.register(offset) {
            // SAFETY: inside the window and aligned.
            unsafe { register.write_volatile(value) }
        }
    }
}

/// The time-stamp counter as a clock. Needs an invariant, synchronised counter (CPUID 80000007h EDX bit 8).
#[derive(Clone, Copy, Debug)]
pub struct TimeStampClock {
    ticks_per_microsecond: u64,
}

impl TimeStampClock {
    /// A clock whose counter runs at so many ticks a microsecond; at least 1.
    #[must_use]
    pub const fn new(ticks_per_microsecond: u32) -> Self {
        Self {
            ticks_per_microsecond: if ticks_per_microsecond == 0 { 1 } else { ticks_per_microsecond as u64 },
        }
    }

    /// The counter's present value, for calibration.
    #[must_use]
    pub fn ticks() -> u64 {
        // SAFETY: RDTSC exists on every x86_64 CPU and has no effect but its result.
        unsafe { _rdtsc() }
    }
}

impl Clock for TimeStampClock {
    fn now(&self) -> Duration {
        Duration::from_micros(Self::ticks().checked_div(self.ticks_per_microsecond).unwrap_or(0))
    }
}

/// CLFLUSH and MFENCE.
#[derive(Clone, Copy, Debug)]
pub struct CacheLines {
    line_bytes: usize,
}

impl CacheLines {
    /// Asks the CPU for the size of its cache lines (CPUID 01h EBX bits 15..8, in units of 8 bytes).
    #[must_use]
    pub fn detect() -> Self {
        let units = (__cpuid(1).ebx >> 8) as u8;
        Self { line_bytes: usize::from(units.max(1)) * 8 }
    }
}

impl CacheMaintenance for CacheLines {
    fn write_back<T>(&self, memory: &[T]) {
        let start = memory.as_ptr().cast::<u8>();
        let bytes = size_of_val(memory);
        let lead = start.addr() % self.line_bytes;
        self.store_barrier();
        for offset in (0..bytes + lead).step_by(self.line_bytes) {
            // SAFETY: the line holds at least one byte of `memory`, which is mapped; CLFLUSH changes no data.
            unsafe { _mm_clflush(start.wrapping_sub(lead).wrapping_add(offset)) }
        }
        self.store_barrier();
    }

    fn store_barrier(&self) {
        // SAFETY: MFENCE exists on every x86_64 CPU and only orders.
        unsafe { _mm_mfence() }
    }

    #[cfg(target_os = "none")]
    fn write_back_all(&self) {
        // SAFETY: WBINVD changes no data; the crate's users run in ring 0, where it is allowed.
        unsafe { core::arch::asm!("wbinvd", options(nostack, preserves_flags)) }
    }

    /// Under an operating system WBINVD is not allowed: a barrier, for tests only.
    #[cfg(not(target_os = "none"))]
    fn write_back_all(&self) {
        self.store_barrier();
    }
}
