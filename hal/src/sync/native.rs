//! What runs on the machine.

use core::sync::atomic::Ordering;
pub use core::{
    hint::spin_loop,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence},
};

pub use spin::{Mutex, MutexGuard};

/// Stores `value`, which no other CPU writes, so that every CPU sees it before this one's later loads
/// are made, as far as those are [`LOOK`](crate::seats::LOOK)s.
#[inline]
pub fn announce(mark: &AtomicU64, value: u64) {
    if cfg!(target_arch = "x86_64") {
        // Cheaper than a store and a barrier there, and a full barrier itself.
        mark.swap(value, Ordering::SeqCst);
    } else {
        mark.store(value, Ordering::Release);
        fence(Ordering::SeqCst);
    }
}

/// A value that may be changed through a shared reference, by code which proves that nobody else uses it.
#[derive(Debug)]
#[repr(transparent)]
pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Lends the address for reading; a model checker takes the call as a read.
    #[inline]
    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Lends the address for writing; a model checker takes the call as a write.
    #[inline]
    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
