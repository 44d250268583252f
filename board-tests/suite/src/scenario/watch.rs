//! A device that is left running while its group changes hands: memory is looked at all the while.

use core::time::Duration;

use portcullis_hal::{Iova, TimedOut, wait_until};

pub use super::transfer::is_untouched;
use super::{
    Failure,
    stage::{Stage, ensure},
    transfer::{BYTES, SENTINEL, fill},
};
use crate::{
    board::{Board, Buffer, DmaDevice, DmaError},
    event::{Direction, Effect, Event},
};

/// A device may take 100 ms for a transfer, on a loaded host many times that.
const LIMIT: Duration = Duration::from_secs(5);

/// Device 0, which writes to `iova` again and again, and memory that it must not reach.
pub struct Watch<'s, 'b, B: Board> {
    stage: &'s Stage<'b, B>,
    iova: Iova,
    memory: [Buffer<'b>; 2],
}

impl<'s, 'b, B: Board> Watch<'s, 'b, B> {
    /// Nothing is written or looked at yet.
    #[must_use]
    pub fn new(stage: &'s Stage<'b, B>, iova: Iova, memory: [Buffer<'b>; 2]) -> Self {
        Self { stage, iova, memory }
    }

    /// Makes every write from now on visible.
    pub fn refill(&self) {
        self.memory.iter().for_each(|buffer| fill(*buffer, |_| SENTINEL));
    }

    /// Whether nothing was written since [`refill`](Self::refill).
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.memory.iter().all(|buffer| is_untouched(*buffer))
    }

    /// Does `step` while the device writes; from its end on, nothing may arrive.
    ///
    /// # Errors
    /// The step's, or something arrived.
    pub fn during<T>(&self, step: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.stage.device(0)?.begin_write(self.iova, BYTES)?;
        let value = step()?;
        let effect = self.finish()?;
        if self.stage.masters(0)? {
            self.stage.tell(self.stage.device(0)?.id(), self.iova, Direction::Write, effect);
        } else if effect == Effect::Blocked {
            let requester = self.stage.requester(0)?;
            self.stage.board.emit(&Event::Silent { requester, iova: self.iova.as_u64() });
        }
        ensure(effect == Effect::Blocked, "a device that was left running reached memory")?;
        Ok(value)
    }

    /// Does `end`, after which nothing may arrive any more; what arrived before it returned is told as landed.
    ///
    /// # Errors
    /// The end's.
    pub fn until(&self, end: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        end()?;
        if !self.is_untouched() {
            self.stage.tell(self.stage.device(0)?.id(), self.iova, Direction::Write, Effect::Landed);
        }
        self.refill();
        Ok(())
    }

    /// Lets the device finish its write, and looks at memory until it has. A write that is over already is
    /// done once more.
    fn finish(&self) -> Result<Effect, Failure> {
        let device = self.stage.device(0)?;
        if !device.is_busy() {
            device.begin_write(self.iova, BYTES)?;
        }
        let never = TimedOut { register: 0, bits: 0 };
        wait_until(&self.stage.board.clock(), LIMIT, never, || {
            let over = !device.is_busy();
            match self.is_untouched() {
                false => Some(Effect::Landed),
                true => over.then_some(Effect::Blocked),
            }
        })
        .map_err(|_| DmaError::TimedOut.into())
    }
}
