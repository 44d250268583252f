//! A mapped window of device registers, for every architecture that reaches them by ordinary accesses.

use core::ptr::NonNull;

/// Volatile access to the registers of one device, as the bytes lie there.
#[derive(Debug)]
pub(super) struct Window {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: accesses are volatile loads and stores of device registers, allowed from every CPU.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// The `bytes` bytes of registers mapped at `base`.
    ///
    /// # Safety
    /// For the lifetime of the value, the window must be mapped for device access, 8-byte aligned, and
    /// hold the registers of one device and nothing else.
    pub(super) const unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    fn register<T>(&self, offset: usize) -> Option<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>())?;
        let inside = end <= self.bytes && offset.is_multiple_of(size_of::<T>());
        // SAFETY: `offset` was just checked to lie inside the window that `new`'s caller vouched for.
        inside.then(|| unsafe { self.base.add(offset).cast() })
    }

    /// The register at `offset`, or `None` outside the window or misaligned.
    pub(super) fn read<T: Register>(&self, offset: usize) -> Option<T> {
        // SAFETY: inside the window and aligned; any bit pattern is a `T`.
        self.register(offset).map(|register| unsafe { register.read_volatile() })
    }

    /// Writes the register at `offset`; nothing outside the window or misaligned.
    pub(super) fn write<T: Register>(&self, offset: usize, value: T) {
        if let Some(register) = self.register(offset) {
            // SAFETY: inside the window and aligned.
            unsafe { register.write_volatile(value) }
        }
    }
}

/// What a register can be: a plain number.
pub(super) trait Register: Copy {}

impl Register for u32 {}
impl Register for u64 {}
