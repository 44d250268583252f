//! Whether a guest's own caching attributes count: CR0.CD, the PAT register and the MTRRs.
//!
//! They count only while a device of the guest may go past the caches. Otherwise its memory is write-back whatever
//! it says. On SVM (AMD64 APM volume 2, section 15.25.8) a type is combined of three: that of the guest's tables by
//! the guest's PAT register, that of the nested tables by the host's, and the host's MTRRs. So
//!
//! - the guest's MTRRs are no registers of the machine: they are honoured by the types in the nested tables;
//! - a guest PAT register (`G_PAT` of the VMCB) of eight WB leaves the type to the nested tables alone;
//! - a cleared CR0.CD lets the guest's CPU cache at all. CR0 and PAT accesses are then intercepted, for the guest to
//!   read what it wrote.
//!
//! Registers of devices are uncacheable in the nested tables under every notice, which is never combined to a
//! cached type.

use portcullis_iommu::{Coherency, Notice};

use super::{
    memory_type::{MemoryType, Pat},
    mtrr::{Mtrrs, Run},
};

/// CR0.CD: caches are not filled.
pub const CR0_CACHE_DISABLE: u64 = 1 << 30;
/// CR0.NW: alone, without CD, it is invalid.
pub const CR0_NOT_WRITE_THROUGH: u64 = 1 << 29;

/// What one CPU of the guest has set, and reads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRegisters {
    /// CR0; [valid](is_valid_cr0).
    pub cr0: u64,
    /// The PAT register.
    pub pat: Pat,
}

/// What its VMCB holds instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HardwareRegisters {
    /// CR0.
    pub cr0: u64,
    /// `G_PAT`.
    pub pat: Pat,
    /// CR0 is not the guest's: its reads are to be intercepted as well as its writes, which always are.
    pub cr0_is_shadowed: bool,
}

/// Whether a MOV to CR0 with these caching bits is no #GP. Other bits are not looked at.
#[must_use]
pub const fn is_valid_cr0(cr0: u64) -> bool {
    cr0 & CR0_NOT_WRITE_THROUGH == 0 || cr0 & CR0_CACHE_DISABLE != 0
}

impl GuestRegisters {
    /// What hardware gets under a notice of this verdict.
    #[must_use]
    pub const fn under(self, verdict: Coherency) -> HardwareRegisters {
        match verdict {
            Coherency::NonCoherent { .. } => {
                HardwareRegisters { cr0: self.cr0, pat: self.pat, cr0_is_shadowed: false }
            }
            Coherency::Coherent => {
                // Both bits: NW without CD is an illegal state for VMRUN (section 15.5.1).
                let cr0 = self.cr0 & !(CR0_CACHE_DISABLE | CR0_NOT_WRITE_THROUGH);
                HardwareRegisters { cr0, pat: Pat::ALL_WRITE_BACK, cr0_is_shadowed: cr0 != self.cr0 }
            }
        }
    }
}

/// Where the types of the guest's memory in the nested tables come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// Write-back.
    Forced,
    /// The guest's MTRRs.
    Honoured(Mtrrs),
}

impl Source {
    const fn of(verdict: Coherency, mtrrs: &Mtrrs) -> Self {
        match verdict {
            Coherency::Coherent => Self::Forced,
            Coherency::NonCoherent { .. } => Self::Honoured(*mtrrs),
        }
    }

    fn first_run(&self, start: u64, end: u64) -> Option<Run> {
        match self {
            Self::Forced => (start < end).then_some(Run { start, end, memory_type: MemoryType::WriteBack }),
            Self::Honoured(mtrrs) => mtrrs.first_run(start, end),
        }
    }
}

/// What the nested tables must say, from now on.
///
/// Before the guest runs again on any CPU: all its CPUs are out of it, the tables are changed to
/// [`runs`](Self::runs), and the CPUs on which it ran [flush](Self::must_flush) if they must. Each then forgets the
/// guest's translations before it runs a newer [generation](Self::generation) than last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuild {
    /// Counts rebuilds of this guest, from 1.
    pub generation: u64,
    /// Memory changes between cached and honoured types: lines from before would show old data, or overwrite new.
    /// [`ByNotice::flush_for_rebuild`](super::ByNotice::flush_for_rebuild) does it.
    pub must_flush: bool,
    /// The notice that was obeyed.
    pub notice: Notice,
    source: Source,
}

impl Rebuild {
    /// The guest's memory from `start` to `end` (guest-physical, multiples of 4 KiB, end exclusive) by type. At most
    /// one run for each page, and as many steps.
    pub fn runs(&self, start: u64, end: u64) -> impl Iterator<Item = Run> {
        let (source, mut at) = (self.source, start);
        core::iter::from_fn(move || {
            let run = source.first_run(at, end)?;
            at = run.end;
            Some(run)
        })
    }

    /// The type of device registers that the guest was lent.
    #[must_use]
    pub const fn registers(&self) -> MemoryType {
        MemoryType::Uncacheable
    }
}

/// Keeps one guest's nested tables in step with its notice and its MTRRs. Under a lock of the guest's.
#[derive(Debug, Default)]
pub struct Planner {
    built: Option<Rebuild>,
    has_failed: bool,
}

impl Planner {
    /// For a guest without tables.
    #[must_use]
    pub const fn new() -> Self {
        Self { built: None, has_failed: false }
    }

    /// Whether the tables are those for this notice. Asked last before the guest runs; whoever changes its notice
    /// interrupts the guest's CPUs afterwards, before the device is used.
    #[must_use]
    pub fn is_current(&self, notice: Notice) -> bool {
        !self.has_failed && self.built.is_some_and(|built| built.notice == notice)
    }

    /// Of the last plan; 0 before the first.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        match self.built {
            Some(built) => built.generation,
            None => 0,
        }
    }

    /// The last plan was not, or not wholly, carried out: the next one is a rebuild in any case, with a flush.
    pub const fn failed(&mut self) {
        self.has_failed = true;
    }

    /// What is to be done about the tables before the guest runs: `None` when they are right. It is taken for done.
    ///
    /// There is a rebuild for each notice with another epoch, and for each change of the MTRRs that counts: while
    /// they do not count a guest can cause none.
    pub fn plan(&mut self, notice: Notice, mtrrs: &Mtrrs) -> Option<Rebuild> {
        let source = Source::of(notice.verdict, mtrrs);
        let (before, has_failed) = (self.built, self.has_failed);
        if !has_failed && before.is_some_and(|built| built.notice == notice && built.source == source) {
            return None;
        }
        let was_forced = !has_failed && before.is_none_or(|built| built.source == Source::Forced);
        let generation = before.map_or(0, |built| built.generation).saturating_add(1);
        let must_flush = !(was_forced && source == Source::Forced);
        let rebuild = Rebuild { generation, must_flush, notice, source };
        (self.built, self.has_failed) = (Some(rebuild), false);
        Some(rebuild)
    }
}
