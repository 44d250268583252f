//! A machine of which the optimiser knows nothing.

use core::{hint::black_box, mem::MaybeUninit, ptr::NonNull, time::Duration};

use portcullis_hal::{
    CacheMaintenance, Clock, DmaExtent, DonatedPages, GuestMemory, PagePool, PhysAddr, PhysRange, RegisterIo,
};

/// A number that could be any.
pub(crate) fn unknown<T: Default>() -> T {
    black_box(T::default())
}

/// Registers that read as anything.
pub(crate) struct Registers;

// SAFETY: touches no register: every read is a number out of nowhere, every write goes nowhere.
unsafe impl RegisterIo for Registers {
    fn read32(&self, offset: usize) -> u32 {
        black_box(offset as u32)
    }
    fn write32(&self, offset: usize, value: u32) {
        black_box((offset, value));
    }
    fn read64(&self, offset: usize) -> u64 {
        black_box(offset as u64)
    }
    fn write64(&self, offset: usize, value: u64) {
        black_box((offset, value));
    }
}

/// A clock that shows any time.
#[derive(Clone)]
pub(crate) struct AnyClock;

impl Clock for AnyClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(unknown())
    }
}

/// Caches that do nothing.
pub(crate) struct NoCaches;

impl CacheMaintenance for NoCaches {
    fn write_back<T>(&self, memory: &[T]) {
        black_box(memory.as_ptr());
    }
    fn store_barrier(&self) {}
    fn write_back_all(&self) {}
    fn flush(&self, memory: PhysRange) {
        black_box(memory);
    }
    fn flush_everything(&self) {
        black_box(());
    }
}

/// Guests' memory that reads as anything.
pub(crate) struct AnyMemory;

// SAFETY: touches no memory: every word is a number out of nowhere.
unsafe impl GuestMemory for AnyMemory {
    fn read_words(&self, extent: DmaExtent, words: &mut [u64]) -> bool {
        black_box(extent);
        words.fill_with(unknown);
        unknown::<u8>() == 1
    }
}

/// A pool over memory of unknown place and size.
pub(crate) fn pool() -> Option<PagePool<DonatedPages<'static>>> {
    let start = black_box(NonNull::<MaybeUninit<u64>>::dangling()).cast();
    // SAFETY: the image is never run; as if it were, the memory would be whatever the optimiser cannot know.
    let memory = unsafe { DonatedPages::new(start, PhysAddr::new(unknown()), unknown()) }?;
    PagePool::new(memory).ok()
}

#[cfg(target_arch = "powerpc64")]
mod memory_functions {
    //! What the precompiled `core` expects of its environment on this target.

    macro_rules! memory_function {
        ($($name:ident($($argument:ident),*);)+) => {$(
            // SAFETY: defined once in this image, which is linked without any C library and never run.
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: usize),*) -> usize {
                core::hint::black_box(0 $(+ $argument)*)
            }
        )+};
    }

    memory_function! {
        memcpy(to, from, bytes);
        memmove(to, from, bytes);
        memset(to, byte, bytes);
        memcmp(left, right, bytes);
        bcmp(left, right, bytes);
    }
}
