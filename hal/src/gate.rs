//! A gate: many may be inside, or it is closed and one may change what is behind it. Nobody waits.

use core::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
};

use crate::sync::{AtomicU32, Ordering};

/// Set while closed. Entries that meet it go away again at once.
const CLOSED: u32 = 1 << 31;
/// More than any machine has CPUs, with room for entries that are about to go away.
const MOST_INSIDE: u32 = 1 << 30;

/// A value behind a gate.
///
/// The data plane [enters](Gate::enter): one atomic addition, shared access. The control plane
/// [closes](Gate::close) when nobody is inside: exclusive access. Both may be tried from any CPU at any
/// time, also in real mode; neither waits.
#[derive(Debug)]
pub struct Gate<T> {
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: shared access needs `T: Sync`, and closing moves exclusive access between CPUs: `T: Send`.
unsafe impl<T: Send + Sync> Sync for Gate<T> {}

/// Shared access to what is behind a gate, until it is dropped.
#[derive(Debug)]
pub struct Inside<'g, T> {
    gate: &'g Gate<T>,
}

/// Exclusive access to what is behind a closed gate, until it is dropped and the gate opens.
#[derive(Debug)]
pub struct Closed<'g, T> {
    gate: &'g Gate<T>,
}

impl<T> Gate<T> {
    /// An open gate with nobody inside.
    pub const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Enters, or `None` while the gate is closed.
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_, T>> {
        let before = self.state.fetch_add(1, Ordering::Acquire);
        if before & CLOSED == 0 && before < MOST_INSIDE {
            return Some(Inside { gate: self });
        }
        self.state.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Closes, or `None` while anybody is inside or it is closed already.
    pub fn close(&self) -> Option<Closed<'_, T>> {
        self.state.compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Closed { gate: self })
    }
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this entry is counted, so `close` cannot succeed and no exclusive access exists: a
        // closed gate lets nobody in.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.gate.state.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: as for `deref_mut`.
        unsafe { &*self.gate.value.get() }
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the gate was closed from the state in which nobody was inside, and it lets nobody in
        // until this value, which alone may open it, is dropped.
        unsafe { &mut *self.gate.value.get() }
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        // Entries that are about to go away are still counted: only the bit is ours.
        self.gate.state.fetch_and(!CLOSED, Ordering::Release);
    }
}
