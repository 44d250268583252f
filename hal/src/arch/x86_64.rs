//! x86_64: memory-mapped registers, time-stamp counter, cache lines.

use core::{
    arch::{
        asm,
        x86_64::{__cpuid, __cpuid_count, _mm_clflush, _mm_mfence, _rdtsc},
    },
    ptr::{NonNull, with_exposed_provenance},
    time::Duration,
};

use super::window::Window;
use crate::{addr::PhysRange, cache::CacheMaintenance, clock::Clock, register_io::RegisterIo};

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

/// Where a range of physical memory is mapped: at one distance for all of it.
#[derive(Clone, Copy, Debug)]
pub struct LinearMap {
    physical: PhysRange,
    /// Virtual address of the first byte.
    base: usize,
}

impl LinearMap {
    /// `physical` as it is mapped from virtual address `base` on; the same number for an identity map.
    ///
    /// # Safety
    /// As long as the value or a copy of it is used, each byte of `physical` must be mapped and readable
    /// there, `base` and the start of `physical` be aligned alike to 4 KiB, and the end lie below 2^64.
    #[must_use]
    pub const unsafe fn new(physical: PhysRange, base: usize) -> Self {
        Self { physical, base }
    }

    /// Where `memory` is mapped, or `None` when some of it is not.
    fn find(&self, memory: PhysRange) -> Option<*const u8> {
        let offset = memory.start().as_u64().wrapping_sub(self.physical.start().as_u64());
        let found = with_exposed_provenance::<u8>(self.base).wrapping_add(offset as usize);
        self.physical.contains(memory).then_some(found)
    }
}

/// CLFLUSHOPT, or CLFLUSH where that is missing, and MFENCE.
#[derive(Clone, Copy, Debug)]
pub struct CacheLines {
    line_bytes: usize,
    /// CPUID 07h EBX bit 23.
    has_optimised_flush: bool,
    memory: LinearMap,
    on_every_cpu: fn(fn()),
}

impl CacheLines {
    /// Asks the CPU for the size of its cache lines (CPUID 01h EBX bits 15..8, in units of 8 bytes).
    ///
    /// `memory` is where lines of DMA memory can be flushed one by one. For memory outside, and
    /// when there are too many ranges, `on_every_cpu` is called: it runs its argument on every CPU, and returns when
    /// all have done so. It is called in the middle of mapping calls, so nobody who waits for one may hold it up.
    #[must_use]
    pub fn detect(memory: LinearMap, on_every_cpu: fn(fn())) -> Self {
        let units = (__cpuid(1).ebx >> 8) as u8;
        let has_optimised_flush = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx >> 23 & 1 != 0;
        Self { line_bytes: usize::from(units.max(1)) * 8, has_optimised_flush, memory, on_every_cpu }
    }

    /// Flushes the lines that hold part of the `bytes` bytes from `start` on, which are mapped.
    fn flush_mapped(&self, start: *const u8, bytes: usize) {
        let lead = start.addr() % self.line_bytes;
        self.store_barrier();
        for offset in (0..bytes.saturating_add(lead)).step_by(self.line_bytes) {
            let line = start.wrapping_sub(lead).wrapping_add(offset);
            if self.has_optimised_flush {
                // SAFETY: the line holds at least one mapped byte; CLFLUSHOPT exists and changes no data.
                unsafe { asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)) }
            } else {
                // SAFETY: the line holds at least one mapped byte; CLFLUSH changes no data.
                unsafe { _mm_clflush(line) }
            }
        }
        self.store_barrier();
    }
}

impl CacheMaintenance for CacheLines {
    fn write_back<T>(&self, memory: &[T]) {
        self.flush_mapped(memory.as_ptr().cast(), size_of_val(memory));
    }

    fn store_barrier(&self) {
        // SAFETY: MFENCE exists on every x86_64 CPU and only orders.
        unsafe { _mm_mfence() }
    }

    fn write_back_all(&self) {
        write_back_all();
    }

    fn flush(&self, memory: PhysRange) {
        match self.memory.find(memory) {
            Some(start) => self.flush_mapped(start, memory.bytes() as usize),
            None => self.flush_everything(),
        }
    }

    fn flush_everything(&self) {
        (self.on_every_cpu)(write_back_all);
    }
}

/// Writes all caches of this CPU back and empties them (WBINVD): what a guest's own WBINVD asks for.
///
/// To be called in ring 0, as elsewhere the instruction faults. Other CPUs' caches keep what they have: this
/// has to run on each CPU that the guest ran on. It takes up to milliseconds, during which no interrupt is taken.
#[cfg(target_os = "none")]
pub fn write_back_all() {
    // SAFETY: WBINVD changes no data; the crate's users run in ring 0, where it is allowed.
    unsafe { asm!("wbinvd", options(nostack, preserves_flags)) }
}

/// Under an operating system WBINVD is not allowed: a barrier, for tests only.
#[cfg(not(target_os = "none"))]
pub fn write_back_all() {
    // SAFETY: MFENCE exists on every x86_64 CPU and only orders.
    unsafe { _mm_mfence() }
}
