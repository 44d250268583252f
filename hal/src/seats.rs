//! Gates that a CPU goes through without counting, because it has a seat.
//!
//! Each CPU owns a seat with one mark, which says whether it is inside. With one store, which is ordered
//! before its later loads, the CPU is inside *all* gates at once; going through one costs a load.
//! Whoever shuts a gate waits, besides for those who were counted, until every CPU that was inside has
//! left or come again: a grace period. Nobody who came later has found the gate open.
//!
//! ```
//! # use portcullis_hal::seats::Gates;
//! # fn pass(gates: &Gates<(), u32, 4, 2>) -> Option<()> {
//! let mut seat = gates.seat(0)?; // once for each CPU
//! let present = seat.enter();
//! let value: &u32 = present.pass(3)?; // nobody changes it as long as `present` lives
//! # Some(())
//! # }
//! ```

use core::time::Duration;

use const_fn::const_fn;

use crate::{
    array_of,
    clock::{Clock, TimedOut, wait_until},
    gate::{self, Closed, Gate, Inside},
    sync::{AtomicBool, AtomicU64, Ordering, announce, fence, spin_loop},
};

/// How a CPU that is inside must load what a grace period protects: a closed bit, the address of what
/// may go. It may find the value that was there when it came in, or any later one, but none older than
/// what was stored before a grace period that did not wait for it.
pub const LOOK: Ordering =
    if cfg!(all(target_arch = "x86_64", not(loom))) { Ordering::SeqCst } else { Ordering::Acquire };

/// Looks at the mark of one CPU where no clock is at hand: longer than a CPU is inside, unless it hangs.
const LOOKS: u32 = if cfg!(loom) {
    2
} else if cfg!(miri) {
    1 << 8
} else {
    1 << 16
};

/// Odd while the owner of a seat is inside; never the same twice.
#[derive(Debug)]
#[repr(align(128))]
struct Mark {
    mark: AtomicU64,
    taken: AtomicBool,
}

/// The marks of all CPUs.
#[derive(Debug)]
struct Marks<const CPUS: usize>([Mark; CPUS]);

/// `N` values behind gates, each beside something that needs no gate, and seats for `CPUS` CPUs.
///
/// A gate is [entered](GateAt::enter) as [`Gate`] says, by any CPU, or [passed](Present::pass) by the
/// owner of a seat. Both keep exclusive access away.
#[derive(Debug)]
pub struct Gates<B, T, const N: usize, const CPUS: usize> {
    places: [Place<B, T>; N],
    marks: Marks<CPUS>,
}

/// A value behind its gate, and what is beside it.
#[derive(Debug)]
pub struct Place<B, T> {
    beside: B,
    gate: Gate<T>,
}

/// One gate.
#[derive(Debug)]
pub struct GateAt<'g, B, T, const CPUS: usize> {
    place: &'g Place<B, T>,
    marks: &'g Marks<CPUS>,
}

/// The right of one CPU at a time to go in without being counted. Given back on drop.
#[derive(Debug)]
pub struct Seat<'g, B, T, const N: usize, const CPUS: usize> {
    gates: &'g Gates<B, T, N, CPUS>,
    mark: &'g Mark,
}

/// A CPU that is inside, until it is dropped.
#[derive(Debug)]
pub struct Present<'s, 'g, B, T, const N: usize, const CPUS: usize> {
    gates: &'g Gates<B, T, N, CPUS>,
    mark: &'s AtomicU64,
    entered: u64,
}

/// The sole right to a gate that is shut while some may still be inside. Dropping it opens the gate.
#[derive(Debug)]
#[must_use = "dropping it opens the gate again"]
pub struct Closing<'g, T, const CPUS: usize> {
    closing: gate::Closing<'g, T>,
    grace: Grace<'g, CPUS>,
}

/// Who is still waited for: every CPU that was inside when it began, one after the other.
#[derive(Debug)]
struct Grace<'g, const CPUS: usize> {
    marks: &'g Marks<CPUS>,
    cpu: usize,
    /// The odd mark that the CPU had when it was first looked at, or 0.
    seen: u64,
}

impl<B, T> Place<B, T> {
    /// An open gate before `value`, which is reached through [`Gates`] only.
    #[const_fn(cfg(not(loom)))]
    pub const fn new(beside: B, value: T) -> Self {
        Self { beside, gate: Gate::new(value) }
    }

    /// A gate that was kept shut, with nobody inside.
    #[const_fn(cfg(not(loom)))]
    pub const fn kept_shut(beside: B, value: T) -> Self {
        Self { beside, gate: Gate::kept_shut(value) }
    }
}

impl<B, T, const N: usize, const CPUS: usize> Gates<B, T, N, CPUS> {
    /// Gates and seats, with nobody inside and no seat taken.
    #[const_fn(cfg(not(loom)))]
    pub const fn new(places: [Place<B, T>; N]) -> Self {
        Self { places, marks: Marks(array_of![Mark::new(); CPUS]) }
    }

    /// One gate.
    #[inline]
    pub fn at(&self, index: usize) -> Option<GateAt<'_, B, T, CPUS>> {
        self.places.get(index).map(|place| GateAt { place, marks: &self.marks })
    }

    /// The seat of a CPU, or `None` when there is none of that number or it is taken.
    pub fn seat(&self, cpu: usize) -> Option<Seat<'_, B, T, N, CPUS>> {
        let mark = self.marks.0.get(cpu)?;
        let taken = mark.taken.swap(true, Ordering::Acquire);
        (!taken).then_some(())?;
        Some(Seat { gates: self, mark })
    }

    /// Waits until every CPU that is inside now has left, at most for `limit`. What the caller stored
    /// before is found by everybody who comes in later and [`LOOK`]s.
    ///
    /// # Errors
    /// [`TimedOut`], with the number of a CPU that is still inside for its bits.
    pub fn outlast(&self, clock: &impl Clock, limit: Duration) -> Result<(), TimedOut> {
        Grace::begin(&self.marks).outlast(clock, limit)
    }

    /// As [`outlast`](Self::outlast), for a bounded number of looks; `false` when somebody is still inside.
    pub fn outlast_soon(&self) -> bool {
        Grace::begin(&self.marks).outlast_soon()
    }
}

impl Mark {
    #[const_fn(cfg(not(loom)))]
    const fn new() -> Self {
        Self { mark: AtomicU64::new(0), taken: AtomicBool::new(false) }
    }
}

impl<'g, B, T, const CPUS: usize> GateAt<'g, B, T, CPUS> {
    /// What needs no gate.
    #[inline]
    #[must_use]
    pub const fn beside(&self) -> &'g B {
        &self.place.beside
    }

    /// Enters, counted, or `None` while the gate is shut.
    #[inline]
    #[must_use]
    pub fn enter(&self) -> Option<Inside<'g, T>> {
        self.place.gate.enter()
    }

    /// Closes an open gate, or `None` while anybody is counted inside or it is shut. Waits a bounded time
    /// for those who have seats; when one does not leave, the gate opens again.
    pub fn close(&self) -> Option<Closed<'g, T>> {
        let mut closing = self.begin(self.place.gate.shut_unused()?);
        closing.grace.outlast_soon().then(|| closing.closing.drained())
    }

    /// Shuts the gate at once, whoever is inside, or takes up one that was left shut. `None` while another
    /// caller has shut or closed it.
    pub fn shut(&self) -> Option<Closing<'g, T, CPUS>> {
        Some(self.begin(self.place.gate.shut()?))
    }

    fn begin(&self, closing: gate::Closing<'g, T>) -> Closing<'g, T, CPUS> {
        Closing { closing, grace: Grace::begin(self.marks) }
    }
}

impl<'g, T, const CPUS: usize> Closing<'g, T, CPUS> {
    /// Waits until nobody is inside, at most for `limit`. A gate that was drained before and kept shut is so
    /// at once.
    ///
    /// # Errors
    /// The right itself when the deadline has passed: the gate is still shut.
    pub fn drain(mut self, clock: &impl Clock, limit: Duration) -> Result<Closed<'g, T>, Self> {
        let begun = clock.now();
        if !self.closing.was_drained() && self.grace.outlast(clock, limit).is_err() {
            return Err(self);
        }
        let left = limit.saturating_sub(clock.now().saturating_sub(begun));
        let Self { closing, grace } = self;
        closing.drain(clock, left).map_err(|closing| Self { closing, grace })
    }

    /// As [`drain`](Self::drain), without a clock: asks once for those who were counted, and waits for
    /// those who have seats as [`GateAt::close`] does.
    ///
    /// # Errors
    /// As [`drain`](Self::drain).
    pub fn drain_soon(mut self) -> Result<Closed<'g, T>, Self> {
        let drained = self.closing.is_drained();
        if drained && (self.closing.was_drained() || self.grace.outlast_soon()) {
            return Ok(self.closing.drained());
        }
        Err(self)
    }

    /// Leaves the gate shut when the right ends. [`GateAt::shut`] takes it up again.
    pub fn keep_shut(self) {
        self.closing.keep_shut();
    }
}

impl<'g, const CPUS: usize> Grace<'g, CPUS> {
    /// Whoever comes in from now on finds what was stored before.
    fn begin(marks: &'g Marks<CPUS>) -> Self {
        fence(Ordering::SeqCst);
        Self { marks, cpu: 0, seen: 0 }
    }

    /// Whether everybody has left; goes on where it was.
    fn is_over(&mut self) -> bool {
        while let Some(mark) = self.marks.0.get(self.cpu) {
            let now = mark.mark.load(Ordering::Acquire);
            let same = self.seen == 0 || self.seen == now;
            if now & 1 != 0 && same {
                self.seen = now;
                return false;
            }
            self.seen = 0;
            self.cpu = self.cpu.saturating_add(1);
        }
        true
    }

    fn outlast(&mut self, clock: &impl Clock, limit: Duration) -> Result<(), TimedOut> {
        let inside = TimedOut { register: 0, bits: 1 };
        wait_until(clock, limit, inside, || self.is_over().then_some(()))
            .map_err(|timed_out| TimedOut { bits: self.cpu as u64, ..timed_out })
    }

    fn outlast_soon(&mut self) -> bool {
        for _ in 0..LOOKS {
            if self.is_over() {
                return true;
            }
            spin_loop();
        }
        self.is_over()
    }
}

impl<'g, B, T, const N: usize, const CPUS: usize> Seat<'g, B, T, N, CPUS> {
    /// Goes in; waits for nobody. One locked operation or full barrier, however many gates are passed.
    #[inline]
    pub fn enter(&mut self) -> Present<'_, 'g, B, T, N, CPUS> {
        let mark = &self.mark.mark;
        // Nobody else writes it.
        let entered = mark.load(Ordering::Relaxed) | 1;
        announce(mark, entered);
        Present { gates: self.gates, mark, entered }
    }
}

impl<'g, B, T, const N: usize, const CPUS: usize> Present<'_, 'g, B, T, N, CPUS> {
    /// What is beside a gate.
    #[inline]
    #[must_use]
    pub fn beside(&self, index: usize) -> Option<&'g B> {
        self.gates.places.get(index).map(|place| &place.beside)
    }

    /// Goes through a gate, or `None` while it is shut or when there is no such gate.
    #[inline]
    #[must_use]
    pub fn pass(&self, index: usize) -> Option<&T> {
        self.look(index)?.1
    }

    /// What is beside a gate, and what is [behind it](Self::pass).
    #[inline]
    #[must_use]
    pub fn look(&self, index: usize) -> Option<(&'g B, Option<&T>)> {
        let place = self.gates.places.get(index)?;
        // SAFETY: `GateAt` gives exclusive access only after a grace period: it shuts the gate, orders that
        // before its loads of the marks, and waits for each CPU whose mark is odd. Our mark was stored before
        // this load, which finds the gate open. So it saw our mark, and waits until we are dropped.
        let behind = unsafe { place.gate.pass(LOOK) };
        Some((&place.beside, behind))
    }
}

impl<B, T, const N: usize, const CPUS: usize> Drop for Present<'_, '_, B, T, N, CPUS> {
    #[inline]
    fn drop(&mut self) {
        self.mark.store(self.entered.wrapping_add(1), Ordering::Release);
    }
}

impl<B, T, const N: usize, const CPUS: usize> Drop for Seat<'_, B, T, N, CPUS> {
    fn drop(&mut self) {
        self.mark.taken.store(false, Ordering::Release);
    }
}
