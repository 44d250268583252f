//! POWER: cache-inhibited access in real mode, ordinary access in virtual mode, the time base.

use core::{
    arch::asm,
    ptr::{NonNull, with_exposed_provenance_mut},
    time::Duration,
};

use super::window::Window;
use crate::{
    addr::{PhysAddr, PhysRange},
    cache::CacheMaintenance,
    clock::Clock,
    dma::DmaExtent,
    guest_memory::GuestMemory,
    register_io::RegisterIo,
};

/// Big-endian registers of a host bridge, reached in hypervisor real mode (MSR[DR] = 0) by the
/// cache-inhibited loads and stores (Power ISA, Book III, "Load/Store Caching Inhibited Indexed").
#[derive(Clone, Copy, Debug)]
pub struct RealModeRegisters {
    base: u64,
    bytes: usize,
}

impl RealModeRegisters {
    /// The `bytes` bytes of registers at physical address `base`.
    ///
    /// # Safety
    /// Only used with HV = 1 and DR = 0. The window must hold the registers of one device and nothing else.
    #[must_use]
    pub const unsafe fn new(base: PhysAddr, bytes: usize) -> Self {
        Self { base: base.as_u64(), bytes }
    }

    fn register(&self, offset: usize, width: usize) -> Option<u64> {
        let end = offset.checked_add(width)?;
        (end <= self.bytes && offset.is_multiple_of(width)).then_some(self.base.checked_add(offset as u64)?)
    }
}

// SAFETY: `register` refuses what lies outside the window or is misaligned; cache-inhibited accesses to
// the same guarded storage are performed in program order, and `sync` orders them after memory.
unsafe impl RegisterIo for RealModeRegisters {
    fn read32(&self, offset: usize) -> u32 {
        let Some(address) = self.register(offset, 4) else { return u32::MAX };
        let value: u64;
        // SAFETY: inside the window; the load has no effect on memory of ours.
        unsafe {
            asm!("sync", "lwzcix {v}, 0, {a}", "twi 0, {v}, 0", "isync",
                 v = out(reg) value, a = in(reg_nonzero) address, options(nostack, preserves_flags));
        }
        u32::from_be(value as u32)
    }

    fn write32(&self, offset: usize, value: u32) {
        let Some(address) = self.register(offset, 4) else { return };
        // SAFETY: inside the window, which `new`'s caller vouched to be a device.
        unsafe {
            asm!("sync", "stwcix {v}, 0, {a}", v = in(reg) u64::from(value.to_be()), a = in(reg_nonzero) address,
                 options(nostack, preserves_flags));
        }
    }

    fn read64(&self, offset: usize) -> u64 {
        let Some(address) = self.register(offset, 8) else { return u64::MAX };
        let value: u64;
        // SAFETY: inside the window; the load has no effect on memory of ours.
        unsafe {
            asm!("sync", "ldcix {v}, 0, {a}", "twi 0, {v}, 0", "isync",
                 v = out(reg) value, a = in(reg_nonzero) address, options(nostack, preserves_flags));
        }
        u64::from_be(value)
    }

    fn write64(&self, offset: usize, value: u64) {
        let Some(address) = self.register(offset, 8) else { return };
        // SAFETY: inside the window, which `new`'s caller vouched to be a device.
        unsafe {
            asm!("sync", "stdcix {v}, 0, {a}", v = in(reg) value.to_be(), a = in(reg_nonzero) address,
                 options(nostack, preserves_flags));
        }
    }
}

/// Big-endian registers of a host bridge, reached in virtual mode through a guarded, cache-inhibited mapping.
#[derive(Debug)]
pub struct MappedRegisters(Window);

impl MappedRegisters {
    /// The `bytes` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// For the lifetime of the value, the window must be mapped guarded and cache-inhibited, 8-byte
    /// aligned, and hold the registers of one device and nothing else.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        // SAFETY: the caller promises what the window asks for.
        Self(unsafe { Window::new(base, bytes) })
    }
}

// SAFETY: the window refuses what lies outside it or is misaligned; `sync` orders memory before the access.
unsafe impl RegisterIo for MappedRegisters {
    fn read32(&self, offset: usize) -> u32 {
        full_barrier();
        u32::from_be(self.0.read(offset).unwrap_or(u32::MAX))
    }

    fn write32(&self, offset: usize, value: u32) {
        full_barrier();
        self.0.write(offset, value.to_be());
    }

    fn read64(&self, offset: usize) -> u64 {
        full_barrier();
        u64::from_be(self.0.read(offset).unwrap_or(u64::MAX))
    }

    fn write64(&self, offset: usize, value: u64) {
        full_barrier();
        self.0.write(offset, value.to_be());
    }
}

/// Big-endian registers of a host bridge, reached in whichever mode the CPU is: by hypercalls in real mode and in the
/// hypervisor's full context alike.
#[derive(Debug)]
pub struct EitherModeRegisters {
    real: RealModeRegisters,
    mapped: MappedRegisters,
}

impl EitherModeRegisters {
    /// The `bytes` bytes of registers at physical address `base`; `None` for address 0.
    ///
    /// # Safety
    /// Only used with HV = 1; with DR = 1 only while the registers are mapped at their own address, guarded and
    /// cache-inhibited. The window must be 8-byte aligned and hold the registers of one device and nothing else.
    #[must_use]
    pub unsafe fn new(base: PhysAddr, bytes: usize) -> Option<Self> {
        let start = NonNull::new(with_exposed_provenance_mut(base.as_u64() as usize))?;
        // SAFETY: the caller promises what both ask for; each is used in its own mode.
        Some(unsafe {
            Self { real: RealModeRegisters::new(base, bytes), mapped: MappedRegisters::new(start, bytes) }
        })
    }
}

/// Whether data accesses are translated (MSR[DR]; Power ISA, Book III, "Machine State Register").
fn is_translating() -> bool {
    let state: u64;
    // SAFETY: reads MSR, which has no effect but its result.
    unsafe { asm!("mfmsr {s}", s = out(reg) state, options(nostack, nomem, preserves_flags)) }
    state & 1 << 4 != 0
}

// SAFETY: both refuse what lies outside the window or is misaligned, and order the access after memory.
unsafe impl RegisterIo for EitherModeRegisters {
    fn read32(&self, offset: usize) -> u32 {
        if is_translating() { self.mapped.read32(offset) } else { self.real.read32(offset) }
    }

    fn write32(&self, offset: usize, value: u32) {
        if is_translating() { self.mapped.write32(offset, value) } else { self.real.write32(offset, value) }
    }

    fn read64(&self, offset: usize) -> u64 {
        if is_translating() { self.mapped.read64(offset) } else { self.real.read64(offset) }
    }

    fn write64(&self, offset: usize, value: u64) {
        if is_translating() { self.mapped.write64(offset, value) } else { self.real.write64(offset, value) }
    }
}

/// The time base as a clock: 512 MHz on POWER8 and later (Power ISA, Book II, "Time Base").
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeBaseClock;

impl TimeBaseClock {
    /// Ticks a microsecond.
    const TICKS_PER_MICROSECOND: u64 = 512;

    /// The time base's present value.
    #[must_use]
    pub fn ticks() -> u64 {
        let value: u64;
        // SAFETY: reading the time base (SPR 268) has no effect but its result.
        unsafe { asm!("mfspr {v}, 268", v = out(reg) value, options(nostack, nomem, preserves_flags)) }
        value
    }
}

impl Clock for TimeBaseClock {
    fn now(&self) -> Duration {
        Duration::from_micros(Self::ticks() / Self::TICKS_PER_MICROSECOND)
    }
}

/// Guests' memory by real address: in real mode, or where real addresses are mapped one to one.
#[derive(Clone, Copy, Debug)]
pub struct RealMemory {
    end: u64,
}

impl RealMemory {
    /// Real memory below `end`, in bytes.
    ///
    /// # Safety
    /// All of it must be memory that the CPU may load from without a fault, whenever the value is used: in hypervisor
    /// real mode, or with real addresses mapped one to one.
    #[must_use]
    pub const unsafe fn new(end: PhysAddr) -> Self {
        Self { end: end.as_u64() }
    }
}

// SAFETY: each word is loaded by one instruction of its own, which Rust's rules about references and races do not
// concern, and which cannot fault: `new`'s caller vouched for all memory below `end`.
unsafe impl GuestMemory for RealMemory {
    fn read_words(&self, extent: DmaExtent, words: &mut [u64]) -> bool {
        let start = extent.start().as_u64();
        let last = start.wrapping_add(extent.bytes() - 1);
        let wanted = size_of_val(words) as u64;
        if last >= self.end || wanted > extent.bytes() || !start.is_multiple_of(8) {
            return false;
        }
        for (index, word) in words.iter_mut().enumerate() {
            let address = start.wrapping_add(index as u64 * 8);
            // SAFETY: inside memory, as was checked; the load changes nothing.
            unsafe {
                asm!("ld {v}, 0({a})", v = out(reg) *word, a = in(reg_nonzero) address,
                     options(nostack, readonly, preserves_flags));
            }
        }
        true
    }
}

/// POWER host bridges snoop the caches: only order is owed.
#[derive(Clone, Copy, Debug, Default)]
pub struct CoherentCaches;

impl CacheMaintenance for CoherentCaches {
    fn write_back<T>(&self, _memory: &[T]) {
        full_barrier();
    }

    fn store_barrier(&self) {
        full_barrier();
    }

    fn write_back_all(&self) {
        full_barrier();
    }

    fn flush(&self, _memory: PhysRange) {
        full_barrier();
    }

    fn flush_everything(&self) {
        full_barrier();
    }
}

fn full_barrier() {
    // SAFETY: `sync` only orders.
    unsafe { asm!("sync", options(nostack, preserves_flags)) }
}
