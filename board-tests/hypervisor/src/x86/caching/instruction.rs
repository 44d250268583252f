//! What a guest's cache instruction does: nothing, or a real flush.

use core::sync::atomic::{AtomicU64, Ordering};

use portcullis_hal::footprint::{Cpus, Flush, Footprint, NoSuchCpu};
use portcullis_iommu::{Coherency, Error as NoNotice, Notice};

use super::decode::CacheInstruction;
use crate::x86::npt::NptError;

/// The guest's notice, as [`Iommu::coherency`](portcullis_iommu::Iommu::coherency) gives it.
pub trait Notices {
    /// The notice that stands now.
    ///
    /// # Errors
    /// The VM is not known.
    fn notice(&self) -> Result<Notice, NoNotice>;
}

impl<F: Fn() -> Result<Notice, NoNotice>> Notices for F {
    fn notice(&self) -> Result<Notice, NoNotice> {
        self()
    }
}

/// The machine's caches.
pub trait Caches {
    /// Has each of `cpus` do `flush`, this one too if it is among them, and waits until all have, or until a limit
    /// of its own. Meanwhile it does what other CPUs ask of this one: two guests, or two CPUs of one, may flush at
    /// the same time.
    ///
    /// # Errors
    /// Those that did not answer.
    fn flush(&mut self, flush: Flush, cpus: Cpus) -> Result<(), Cpus>;

    /// Has each of `cpus`, this one not among them, leave the guest that it may be in. It may enter it again at once.
    ///
    /// # Errors
    /// Those that did not answer.
    fn interrupt(&mut self, cpus: Cpus) -> Result<(), Cpus>;

    /// Waits until `ready` says so, or until a limit of its own, and does meanwhile what other CPUs ask of this one.
    /// `ready` is asked at least once.
    fn wait(&mut self, ready: &mut dyn FnMut() -> bool);
}

/// What was done for a guest's instruction. It is over, and the guest goes on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obeyed {
    /// Nothing, since no device of the guest goes past the caches.
    Skipped,
    /// These CPUs flushed: all on which the guest ran since their last time.
    Flushed(Cpus),
}

/// Why it was not done. The guest must not go on: it would take memory for written back that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotObeyed {
    /// These CPUs did not flush in time.
    Unanswered {
        /// Their numbers.
        cpus: Cpus,
    },
    /// There is no notice for such a VM.
    NoNotice(NoNotice),
    /// The nested tables cannot be brought in step.
    Tables(NptError),
    /// The guest cannot run on this CPU, which nobody could tell to flush.
    NoSuchCpu(NoSuchCpu),
    /// Another CPU of the guest is not done with the nested tables in time.
    Busy,
}

/// How often something was done, by kind of instruction.
#[derive(Debug, Default)]
pub struct ByKind([AtomicU64; 3]);

impl ByKind {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 3])
    }

    const fn of(&self, kind: CacheInstruction) -> &AtomicU64 {
        let [wbinvd, wbnoinvd, invd] = &self.0;
        match kind {
            CacheInstruction::Wbinvd => wbinvd,
            CacheInstruction::Wbnoinvd => wbnoinvd,
            CacheInstruction::Invd => invd,
        }
    }

    fn add(&self, kind: CacheInstruction) {
        self.of(kind).fetch_add(1, Ordering::Relaxed);
    }

    /// For one kind.
    #[must_use]
    pub fn count(&self, kind: CacheInstruction) -> u64 {
        self.of(kind).load(Ordering::Relaxed)
    }

    /// For all kinds.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).fold(0, u64::saturating_add)
    }
}

/// What became of a guest's instructions. Any CPU adds, any reads.
#[derive(Debug, Default)]
pub struct Counts {
    /// Skipped.
    pub skipped: ByKind,
    /// Flushed, whether or not a CPU had lines of the guest.
    pub flushed: ByKind,
    /// Not done for want of an answer or of a notice.
    pub failed: ByKind,
    /// Of those flushed: they would have been skipped by a notice that changed meanwhile.
    pub overtaken: AtomicU64,
}

impl Counts {
    /// All zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            skipped: ByKind::new(),
            flushed: ByKind::new(),
            failed: ByKind::new(),
            overtaken: AtomicU64::new(0),
        }
    }
}

/// Obeys notices for one guest, on one of its CPUs.
#[derive(Debug)]
pub struct ByNotice<'a, N, C> {
    /// Where notices come from.
    pub notices: N,
    /// Where the guest ran.
    pub footprint: &'a Footprint,
    /// What flushes.
    pub caches: C,
    /// What is told of it.
    pub counts: &'a Counts,
}

impl<N: Notices, C: Caches> ByNotice<'_, N, C> {
    /// Does what `kind` must do for the guest, in the name of the CPU that it left with [`Footprint::left`].
    ///
    /// # Errors
    /// [`NotObeyed`]: stop the guest and tell.
    pub fn cache_instruction(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        let outcome = self.obey(kind);
        match outcome {
            Ok(Obeyed::Skipped) => self.counts.skipped.add(kind),
            Ok(Obeyed::Flushed(_)) => self.counts.flushed.add(kind),
            Err(_) => self.counts.failed.add(kind),
        }
        outcome
    }

    /// What [`Rebuild::must_flush`](super::Rebuild::must_flush) asks for, when the tables are changed. No instruction
    /// is counted. Gives the CPUs that did it.
    ///
    /// # Errors
    /// [`NotObeyed::Unanswered`]: the guest must not run with the new tables.
    pub fn flush_for_rebuild(&mut self) -> Result<Cpus, NotObeyed> {
        self.flush(Flush::WriteBackInvalidate)
    }

    /// Two notices at most: a flush is right under any, so if one that lets off does not stand still, there is
    /// nothing to be won by a third, and whoever changes notices cannot keep this CPU busy.
    ///
    /// A `Coherent` one with another epoch counts as a change: a device went past the caches in between.
    fn obey(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        let notice = self.notice()?;
        if notice.verdict == Coherency::Coherent {
            if self.notice()? == notice {
                return Ok(Obeyed::Skipped);
            }
            self.counts.overtaken.fetch_add(1, Ordering::Relaxed);
        }
        self.flush(hardware_flush(kind)).map(Obeyed::Flushed)
    }

    fn notice(&self) -> Result<Notice, NotObeyed> {
        self.notices.notice().map_err(NotObeyed::NoNotice)
    }

    fn flush(&mut self, flush: Flush) -> Result<Cpus, NotObeyed> {
        let open = self.footprint.open(flush);
        if !open.cpus().is_empty() {
            self.caches.flush(flush, open.cpus()).map_err(|cpus| NotObeyed::Unanswered { cpus })?;
        }
        self.footprint.close(&open);
        Ok(open.cpus())
    }
}

/// A real INVD would drop what others have not written back yet, the hypervisor included.
const fn hardware_flush(kind: CacheInstruction) -> Flush {
    match kind {
        CacheInstruction::Wbinvd | CacheInstruction::Invd => Flush::WriteBackInvalidate,
        CacheInstruction::Wbnoinvd => Flush::WriteBack,
    }
}
