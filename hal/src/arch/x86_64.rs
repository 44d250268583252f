//! x86_64: memory-mapped registers, time-stamp counter, cache lines.

use core::{
    arch::x86_64::{__cpuid, _mm_clflush, _mm_mfence, _rdtsc},
    ptr::NonNull,
    time::Duration,
};

use super::window::Window;
use crate::{cache::CacheMaintenance, clock::Clock, register_io::RegisterIo};

/// Little-endian registers reached through a mapped, uncached window.
#[derive(Debug)]
pub struct MmioRegisters(Window);

impl MmioRegisters {
    /// The `bytes` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// For the lifetime of the value, the window must be mapped uncached, 8-byte aligned, and hold the
    /// registers of one device and nothing else.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        // SAFETY: the caller promises what the window asks for.
        Self(unsafe { Window::new(base, bytes) })
    }
}

// SAFETY: the window refuses what lies outside it or is misaligned, and `new`'s caller vouched for it.
// Volatile accesses to uncached memory are not reordered by compiler or CPU.
unsafe impl RegisterIo for MmioRegisters {
    fn read32(&self, offset: usize) -> u32 {
        self.0.read(offset).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.write(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        self.0.read(offset).unwrap_or(u64::MAX)
    }

    fn write64(&self, offset: usize, value: u64) {
        self.0.write(offset, value);
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
