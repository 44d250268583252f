//! Time, and the only way to wait for hardware.

use core::time::Duration;

use crate::sync::spin_loop;

/// Polls without any progress of the clock after which it counts as broken.
const STUCK_CLOCK_POLLS: u32 = 1 << 22;

/// A clock that all CPUs may read at any time.
///
/// It never goes backwards and keeps running in every mode the drivers are called in.
pub trait Clock {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now(&self) -> Duration {
        (**self).now()
    }
}

/// Hardware did not do in time what its manual promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TimedOut {
    /// Byte offset of the register, or of the memory cell, that was polled.
    pub register: u32,
    /// The bits that did not change.
    pub bits: u64,
}

/// Polls until `condition` returns `Some`, at most for `limit`.
///
/// The condition is asked once more after the deadline, so that a CPU that was held up in between
/// reports no false timeout. A clock that stands still ends the wait, too.
///
/// # Errors
/// `missing` when the deadline has passed.
pub fn wait_until<T>(
    clock: &impl Clock,
    limit: Duration,
    missing: TimedOut,
    mut condition: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let start = clock.now();
    let mut last = start;
    let mut still = 0;
    loop {
        let now = clock.now();
        if let Some(value) = condition() {
            return Ok(value);
        }
        still = if now == last { still + 1 } else { 0 };
        last = now;
        if now.saturating_sub(start) >= limit || still >= STUCK_CLOCK_POLLS {
            return Err(missing);
        }
        spin_loop();
    }
}
