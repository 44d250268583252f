//! In whose caches a guest may have lines: the CPUs it ran on since their last flush for it.

use const_fn::const_fn;

use crate::{
    array_of,
    sync::{AtomicU64, Ordering},
};

/// CPU numbers are below. One for the model checker, which tracks every word.
pub const MAX_CPUS: usize = if cfg!(loom) { 1 } else { 64 };

/// Some CPUs, by number. A plain value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cpus(u64);

impl Cpus {
    /// None.
    pub const NONE: Self = Self(0);

    /// These and `cpu`; a number from [`MAX_CPUS`] on is left out.
    #[must_use]
    pub const fn with(self, cpu: usize) -> Self {
        if cpu < MAX_CPUS { Self(self.0 | 1 << cpu) } else { self }
    }

    /// Whether `cpu` is among them.
    #[must_use]
    pub const fn contains(self, cpu: usize) -> bool {
        cpu < MAX_CPUS && self.0 >> cpu & 1 == 1
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Their numbers, rising.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..MAX_CPUS).filter(move |&cpu| self.contains(cpu))
    }
}

impl FromIterator<usize> for Cpus {
    fn from_iter<I: IntoIterator<Item = usize>>(numbers: I) -> Self {
        numbers.into_iter().fold(Self::NONE, Self::with)
    }
}

/// What CPUs do to their caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flush {
    /// WBINVD.
    WriteBackInvalidate,
    /// WBNOINVD, or WBINVD on a CPU without it.
    WriteBack,
}

/// A CPU number that there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NoSuchCpu {
    /// The number.
    pub cpu: usize,
}

/// Counts a guest's stays on one CPU.
#[derive(Debug)]
struct Stays {
    /// Ended so far.
    ended: AtomicU64,
    /// Ended when the last WBINVD that is known to be done was asked for.
    dropped: AtomicU64,
    /// The same for the last write-back of either kind.
    written: AtomicU64,
}

impl Stays {
    #[const_fn(cfg(not(loom)))]
    const fn new() -> Self {
        Self { ended: AtomicU64::new(0), dropped: AtomicU64::new(0), written: AtomicU64::new(0) }
    }

    fn flushed(&self, flush: Flush) -> u64 {
        match flush {
            Flush::WriteBackInvalidate => self.dropped.load(Ordering::SeqCst),
            Flush::WriteBack => self.written.load(Ordering::SeqCst),
        }
    }
}

/// Where one guest ran. Shared by all its CPUs, without a lock.
///
/// Each tells [`entered`](Self::entered) before it runs the guest and [`left`](Self::left) after. Who has to
/// flush [asks](Self::open) which CPUs, has them do it, and then [closes](Self::close) what was asked for. A stay
/// that was under way when that was asked, or began later, stays open: it may bring lines into the cache behind the
/// flush. Until a flush is known to be done, others that want one ask the same CPUs again: none takes another's
/// unfinished flush for its own.
///
/// The same two calls go around what the hypervisor itself stores in the guest's memory.
#[derive(Debug)]
pub struct Footprint {
    inside: AtomicU64,
    stays: [Stays; MAX_CPUS],
}

/// CPUs that were asked to flush, and how many stays that covers on each. Not to be made by hand.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    flush: Flush,
    cpus: Cpus,
    ended: [u64; MAX_CPUS],
}

impl Open {
    /// The CPUs that have to flush.
    #[must_use]
    pub const fn cpus(&self) -> Cpus {
        self.cpus
    }
}

impl Footprint {
    /// Of a guest that ran nowhere.
    #[const_fn(cfg(not(loom)))]
    #[must_use]
    pub const fn new() -> Self {
        Self { inside: AtomicU64::new(0), stays: array_of![Stays::new(); MAX_CPUS] }
    }

    /// Called on `cpu` with interrupts off, last before it runs the guest.
    ///
    /// # Errors
    /// [`NoSuchCpu`]: the guest must not run there, since nobody could tell that CPU to flush.
    pub fn entered(&self, cpu: usize) -> Result<(), NoSuchCpu> {
        self.stays.get(cpu).ok_or(NoSuchCpu { cpu })?;
        self.inside.fetch_or(1 << cpu, Ordering::SeqCst);
        Ok(())
    }

    /// Called on `cpu` when the guest does not run there any more, before anything is done for the guest.
    pub fn left(&self, cpu: usize) {
        let Some(stays) = self.stays.get(cpu) else { return };
        // First: else a flush that is asked for between the two would miss this stay.
        stays.ended.fetch_add(1, Ordering::SeqCst);
        self.inside.fetch_and(!(1 << cpu), Ordering::SeqCst);
    }

    /// The CPUs that are in the guest, as far as told: [`entered`](Self::entered), and not left.
    #[must_use]
    pub fn inside(&self) -> Cpus {
        Cpus(self.inside.load(Ordering::SeqCst))
    }

    /// Which CPUs must do `flush`, so that nothing the guest did until now remains.
    #[must_use]
    pub fn open(&self, flush: Flush) -> Open {
        // First, for the reason given in `left`.
        let inside = Cpus(self.inside.load(Ordering::SeqCst));
        let mut open = Open { flush, cpus: inside, ended: [0; MAX_CPUS] };
        for (cpu, (stays, ended)) in self.stays.iter().zip(&mut open.ended).enumerate() {
            *ended = stays.ended.load(Ordering::SeqCst);
            if stays.flushed(flush) < *ended {
                open.cpus = open.cpus.with(cpu);
            }
        }
        open
    }

    /// All CPUs of `open` have done it.
    pub fn close(&self, open: &Open) {
        for (stays, &ended) in self.stays.iter().zip(&open.ended) {
            stays.written.fetch_max(ended, Ordering::SeqCst);
            if open.flush == Flush::WriteBackInvalidate {
                stays.dropped.fetch_max(ended, Ordering::SeqCst);
            }
        }
    }
}

impl Default for Footprint {
    fn default() -> Self {
        Self::new()
    }
}
