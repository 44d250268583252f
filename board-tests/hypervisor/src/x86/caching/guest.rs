//! One guest's caching: what its CPUs share, and what each does with it.

use portcullis_hal::footprint::{Cpus, Footprint};
use portcullis_hal::sync::{AtomicU64, Ordering};
use portcullis_iommu::Notice;
use spin::{Mutex, MutexGuard};

use super::{
    attributes::{GuestRegisters, Planner, Rebuild},
    control::{CacheControl, Entry},
    decode::CacheInstruction,
    instruction::{ByNotice, Caches, Counts, NotObeyed, Notices, Obeyed},
    mtrr::{BadMsr, Mtrrs, Run},
};
use crate::x86::npt::NptError;

/// The nested tables of a guest.
pub trait Tables {
    /// Bytes of its memory, which begins at guest-physical 0.
    fn bytes(&self) -> u64;

    /// Gives pages another type. No CPU runs the guest meanwhile.
    ///
    /// # Errors
    /// [`NptError`].
    fn retype(&self, run: Run) -> Result<(), NptError>;
}

/// What the CPUs of a guest share.
#[derive(Debug)]
pub struct Shared {
    /// Where it ran.
    pub footprint: Footprint,
    /// Its cache instructions.
    pub counts: Counts,
    /// Rebuilds of its tables.
    pub rebuilds: AtomicU64,
    /// Those that flushed.
    pub rebuild_flushes: AtomicU64,
    plan: Mutex<Plan>,
}

#[derive(Debug)]
struct Plan {
    planner: Planner,
    mtrrs: Mtrrs,
}

impl Shared {
    /// Of a guest that ran nowhere, whose addresses have so many bits.
    #[must_use]
    pub const fn new(address_bits: u32) -> Self {
        let plan = Plan { planner: Planner::new(), mtrrs: Mtrrs::after_firmware(address_bits) };
        Self {
            footprint: Footprint::new(),
            counts: Counts::new(),
            rebuilds: AtomicU64::new(0),
            rebuild_flushes: AtomicU64::new(0),
            plan: Mutex::new(plan),
        }
    }

    /// Has CPU `cpu`, which is this one, access the guest's memory in the hypervisor's name.
    ///
    /// # Errors
    /// [`NotObeyed::NoSuchCpu`]: nothing was done.
    pub fn access<T>(&self, cpu: usize, act: impl FnOnce() -> T) -> Result<T, NotObeyed> {
        self.footprint.entered(cpu).map_err(NotObeyed::NoSuchCpu)?;
        let result = act();
        self.footprint.left(cpu);
        Ok(result)
    }
}

/// A guest's caching on one CPU, by its notice.
#[derive(Debug)]
pub struct OnCpu<'a, N, C, T> {
    /// What obeys.
    pub by_notice: ByNotice<'a, N, C>,
    /// What all share.
    pub shared: &'a Shared,
    /// The nested tables.
    pub tables: &'a T,
    /// The CPU.
    pub cpu: usize,
}

impl<'a, N: Notices, C: Caches, T: Tables> OnCpu<'a, N, C, T> {
    /// On CPU `cpu`, which is the one that will use it.
    pub const fn new(shared: &'a Shared, tables: &'a T, cpu: usize, notices: N, caches: C) -> Self {
        let by_notice = ByNotice { notices, footprint: &shared.footprint, caches, counts: &shared.counts };
        Self { by_notice, shared, tables, cpu }
    }

    /// The tables are those for this notice, afterwards.
    fn bring_up_to_date(&mut self, plan: &mut Plan, notice: Notice) -> Result<u64, NotObeyed> {
        if let Some(rebuild) = plan.planner.plan(notice, &plan.mtrrs) {
            self.shared.rebuilds.fetch_add(1, Ordering::Relaxed);
            self.rebuild(&rebuild).inspect_err(|_| plan.planner.failed())?;
        }
        Ok(plan.planner.generation())
    }

    /// Under the lock: who left the guest does not get in before the end.
    fn rebuild(&mut self, rebuild: &Rebuild) -> Result<(), NotObeyed> {
        let inside = self.shared.footprint.inside();
        let others: Cpus = inside.iter().filter(|&cpu| cpu != self.cpu).collect();
        self.by_notice.caches.interrupt(others).map_err(|cpus| NotObeyed::Unanswered { cpus })?;
        let mut runs = rebuild.runs(0, self.tables.bytes());
        runs.try_for_each(|run| self.tables.retype(run)).map_err(NotObeyed::Tables)?;
        if rebuild.must_flush {
            self.shared.rebuild_flushes.fetch_add(1, Ordering::Relaxed);
            self.by_notice.flush_for_rebuild()?;
        }
        Ok(())
    }

    fn lock(&mut self) -> Result<MutexGuard<'a, Plan>, NotObeyed> {
        let (shared, mut guard) = (self.shared, None);
        self.by_notice.caches.wait(&mut || {
            guard = shared.plan.try_lock();
            guard.is_some()
        });
        guard.ok_or(NotObeyed::Busy)
    }
}

impl<N: Notices, C: Caches, T: Tables> CacheControl for OnCpu<'_, N, C, T> {
    fn cache_instruction(&mut self, kind: CacheInstruction) -> Result<Obeyed, NotObeyed> {
        self.by_notice.cache_instruction(kind)
    }

    fn enter(&mut self, own: GuestRegisters) -> Result<Entry, NotObeyed> {
        let mut plan = self.lock()?;
        let notice = self.by_notice.notices.notice().map_err(NotObeyed::NoNotice)?;
        let generation = self.bring_up_to_date(&mut plan, notice)?;
        self.shared.footprint.entered(self.cpu).map_err(NotObeyed::NoSuchCpu)?;
        Ok(Entry { hardware: own.under(notice.verdict), generation })
    }

    fn leave(&mut self) {
        self.shared.footprint.left(self.cpu);
    }

    fn read_mtrr(&mut self, msr: u32) -> Result<u64, BadMsr> {
        self.lock().map_err(|_| BadMsr::Register(msr))?.mtrrs.read(msr)
    }

    fn write_mtrr(&mut self, msr: u32, value: u64) -> Result<(), BadMsr> {
        self.lock().map_err(|_| BadMsr::Register(msr))?.mtrrs.write(msr, value)
    }
}
