//! A gate: many may be inside, or it is shut and one may change what is behind it.
//!
//! A reference that can be revoked is a gate around `generation + value`: the holder names the
//! generation, enters, and compares behind the gate. Revocation shuts the gate first, so that nobody new
//! comes in, then drains it under a deadline, then changes what is behind it:
//!
//! ```
//! # use portcullis_hal::{Clock, TimedOut, gate::Gate};
//! # use core::time::Duration;
//! # struct Device { generation: u32 }
//! # fn revoke(gate: &Gate<Device>, clock: &impl Clock) -> Result<(), &'static str> {
//! let closing = gate.shut().ok_or("another CPU is at it")?;
//! match closing.drain(clock, Duration::from_millis(10)) {
//!     Ok(mut closed) => closed.generation += 1, // and the gate opens for holders of the new one
//!     Err(closing) => {
//!         closing.keep_shut(); // or drop it, and the gate is open as before
//!         return Err("somebody is still inside");
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use core::{
    mem,
    ops::{Deref, DerefMut},
    time::Duration,
};

use const_fn::const_fn;

use crate::{
    clock::{Clock, TimedOut, wait_until},
    sync::{AtomicU32, Ordering, UnsafeCell},
};

/// Set while nobody may come in.
const SHUT: u32 = 1 << 31;
/// Set while somebody holds the right to open a gate that is shut; never without [`SHUT`].
const HELD: u32 = 1 << 30;
/// Set once nobody is inside a gate that is shut; never without [`SHUT`]. Who is counted from then on is
/// about to go away.
const DRAINED: u32 = 1 << 29;
/// The bits that count who is inside, entries that are about to go away included.
const INSIDE: u32 = DRAINED - 1;
/// More than any machine has CPUs, with room for entries that are about to go away.
const MOST_INSIDE: u32 = 1 << 28;

/// A value behind a gate.
///
/// The data plane [enters](Gate::enter): shared access, never waits. The control plane gets exclusive
/// access, in one of two ways: [`close`](Gate::close) succeeds only if nobody is inside;
/// [`shut`](Gate::shut) keeps everybody out from now on, and [`Closing::drain`] waits, under a deadline,
/// for those inside to leave. Any CPU may call any of them at any time, also in real mode.
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

/// The sole right to a gate that is shut while some may still be inside.
///
/// Dropping it opens the gate again.
#[derive(Debug)]
#[must_use = "dropping it opens the gate again"]
pub struct Closing<'g, T> {
    gate: &'g Gate<T>,
}

/// Exclusive access to what is behind a closed gate, until it is dropped and the gate opens.
#[derive(Debug)]
pub struct Closed<'g, T> {
    gate: &'g Gate<T>,
}

impl<T> Gate<T> {
    /// An open gate with nobody inside.
    #[const_fn(cfg(not(loom)))]
    pub const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// A gate that was kept shut, with nobody inside: [`shut`](Self::shut) takes it up.
    #[const_fn(cfg(not(loom)))]
    pub const fn kept_shut(value: T) -> Self {
        Self { state: AtomicU32::new(SHUT | DRAINED), value: UnsafeCell::new(value) }
    }

    /// Enters, or `None` while the gate is shut.
    #[inline]
    pub fn enter(&self) -> Option<Inside<'_, T>> {
        // Whoever knows that the gate is shut leaves the count alone: else callers that keep trying could
        // hold up the drain for ever.
        if self.state.load(Ordering::Relaxed) & SHUT != 0 {
            return None;
        }
        let before = self.state.fetch_add(1, Ordering::Acquire);
        if before & SHUT == 0 && before < MOST_INSIDE {
            return Some(Inside { gate: self });
        }
        self.state.fetch_sub(1, Ordering::Relaxed);
        None
    }

    /// Closes an open gate, or `None` while anybody is inside or it is shut.
    pub fn close(&self) -> Option<Closed<'_, T>> {
        self.shut_unused().map(Closing::drained)
    }

    /// Shuts an open gate, or `None` while anybody is inside or it is shut.
    pub(crate) fn shut_unused(&self) -> Option<Closing<'_, T>> {
        self.state.compare_exchange(0, SHUT | HELD, Ordering::Acquire, Ordering::Relaxed).ok()?;
        Some(Closing { gate: self })
    }

    /// Goes through without being counted, or `None` while the gate is shut.
    ///
    /// # Safety
    /// Whoever gets exclusive access waits for the caller, as long as the reference lives, if this finds
    /// the gate open.
    #[inline]
    pub(crate) unsafe fn pass(&self, look: Ordering) -> Option<&T> {
        if self.state.load(look) & SHUT != 0 {
            return None;
        }
        // SAFETY: the gate was open, so no exclusive access exists: opening it released what was written
        // before. None begins, as the caller vouches.
        Some(self.value.with(|value| unsafe { &*value }))
    }

    /// Shuts the gate at once, whoever is inside, or takes up one that was left shut. Each CPU that is
    /// just entering may still be counted once, and goes away without having been let in.
    ///
    /// `None` while another caller has shut or closed it; the gate is then as that caller wants it.
    pub fn shut(&self) -> Option<Closing<'_, T>> {
        let before = self.state.fetch_or(SHUT | HELD, Ordering::Acquire);
        (before & HELD == 0).then(|| Closing { gate: self })
    }

    /// Gives up the right to a gate that is shut. Those inside are still counted: only `bits` are ours.
    fn yield_right(&self, bits: u32) {
        self.state.fetch_and(!bits, Ordering::Release);
    }
}

impl<'g, T> Closing<'g, T> {
    /// How many are inside, entries that are about to go away included.
    #[must_use]
    pub fn inside(&self) -> u32 {
        self.gate.state.load(Ordering::Acquire) & INSIDE
    }

    /// Whether the gate was drained and kept shut since.
    pub(crate) fn was_drained(&self) -> bool {
        self.gate.state.load(Ordering::Acquire) & DRAINED != 0
    }

    /// The caller has seen that nobody is inside.
    pub(crate) fn drained(self) -> Closed<'g, T> {
        let gate = self.gate;
        gate.state.fetch_or(DRAINED, Ordering::Relaxed);
        mem::forget(self);
        Closed { gate }
    }

    /// Whether nobody is inside, now or when the gate that was kept shut since was last drained.
    pub(crate) fn is_drained(&self) -> bool {
        let state = self.gate.state.load(Ordering::Acquire);
        state & DRAINED != 0 || state & INSIDE == 0
    }

    /// Waits until nobody is inside, at most for `limit`; asks once for a `limit` of zero. A gate that was
    /// drained before and kept shut is so at once, whoever is just turning away.
    ///
    /// # Errors
    /// The right itself when the deadline has passed: the gate is still shut. The caller drains again,
    /// [keeps it shut](Self::keep_shut), or drops the right and so opens it.
    pub fn drain(self, clock: &impl Clock, limit: Duration) -> Result<Closed<'g, T>, Self> {
        let unnamed = TimedOut { register: 0, bits: INSIDE.into() };
        match wait_until(clock, limit, unnamed, || self.is_drained().then_some(())) {
            Ok(()) => Ok(self.drained()),
            Err(_) => Err(self),
        }
    }

    /// Leaves the gate shut when the right ends: what revocation needs. [`Gate::shut`] takes it up again.
    pub fn keep_shut(self) {
        self.gate.yield_right(HELD);
        mem::forget(self);
    }
}

impl<T> Closed<'_, T> {
    /// Leaves the gate shut when exclusive access ends. [`Gate::shut`] takes it up again.
    pub fn keep_shut(self) {
        self.gate.yield_right(HELD);
        mem::forget(self);
    }
}

impl<T> Deref for Inside<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this entry is counted and came before the gate was shut, so no exclusive access exists:
        // it begins when the count is zero or was so since the gate lets nobody in.
        self.gate.value.with(|value| unsafe { &*value })
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.gate.state.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Drop for Closing<'_, T> {
    fn drop(&mut self) {
        self.gate.yield_right(SHUT | HELD | DRAINED);
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: as for `deref_mut`.
        self.gate.value.with(|value| unsafe { &*value })
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: nobody was inside after the gate was shut, and it lets nobody in until this value, which
        // alone may open it, is dropped.
        self.gate.value.with_mut(|value| unsafe { &mut *value })
    }
}

impl<T> Drop for Closed<'_, T> {
    fn drop(&mut self) {
        self.gate.yield_right(SHUT | HELD | DRAINED);
    }
}
