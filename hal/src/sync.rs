//! The only door to atomics and locks: a model checker's can take their place here.

pub use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

pub use spin::{Mutex, MutexGuard};
