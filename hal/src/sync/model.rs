//! What runs under the model checker.

extern crate std;

use core::sync::atomic::Ordering;
use std::sync::PoisonError;

pub use loom::{
    cell::UnsafeCell,
    hint::spin_loop,
    sync::{
        MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, fence},
    },
};

/// Stores `value` before all later loads. The checker orders barriers, but no single accesses.
pub fn announce(mark: &AtomicU64, value: u64) {
    mark.store(value, Ordering::Release);
    fence(Ordering::SeqCst);
}

/// The checker's lock with the interface of the one that runs on the machine: no poisoning.
#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// An open lock around `value`.
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, or `None` while another holds it.
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}
