//! The only door to atomics, locks and shared cells: under `--cfg loom` the model checker's take their
//! place.
//!
//! `loom` then runs a test through every interleaving and every value that the memory model lets a load
//! return, and reports each access to an [`UnsafeCell`] that races. Its types cannot be made at compile
//! time, so that constructors are `const` only without the cfg (`#[const_fn(cfg(not(loom)))]`), and
//! arrays are made by [`array_of!`](crate::array_of).

#[cfg(loom)]
mod model;
#[cfg(not(loom))]
mod native;

#[cfg(loom)]
pub use model::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, UnsafeCell, announce, fence, spin_loop,
};
#[cfg(not(loom))]
pub use native::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Mutex, MutexGuard, UnsafeCell, announce, fence, spin_loop,
};

pub use core::sync::atomic::Ordering;

/// An array of `count` values, each made by its own evaluation of `element`: at compile time where the
/// values allow it, as those of [`sync`](crate::sync) do unless a model checker's have taken their place.
#[cfg(not(loom))]
#[macro_export]
macro_rules! array_of {
    ($element:expr; $count:expr) => {
        [const { $element }; $count]
    };
}

/// An array of `count` values, each made by its own evaluation of `element`.
#[cfg(loom)]
#[macro_export]
macro_rules! array_of {
    ($element:expr; $count:expr) => {
        ::core::array::from_fn::<_, { $count }, _>(|_| $element)
    };
}
