//! Guests whose caches obey their notice.

mod attributes;
mod instructions;

use core::arch::x86_64::__cpuid_count;

use portcullis_iommu::{Coherency, Notice, VmId};
use portcullis_suite::{Board, Failure};

pub(super) use self::{attributes::svm_memory_types_by_notice, instructions::svm_wbinvd_by_notice};
use super::{
    Guest, LIMIT, Machine, Stage, ended, ensure, need, no_call,
    pair::{Cpus, Task, beside, parts},
    turn,
};
use crate::x86::{
    caching::{Caches, OnCpu, Shared, control::CacheControl},
    guest::{
        layout::{ARGUMENTS, FREE},
        programs::Program,
        script::{self, Op, What},
    },
    vcpu::{Around, Call},
};

/// This CPU, and the other one.
const BOOT: usize = 0;
const SECOND: usize = 1;
/// First record of the second vCPU's script.
const SECOND_RECORD: u64 = 64;

/// What the CPUs of a guest share about caching, before it has run.
pub(super) fn shared() -> Shared {
    Shared::new(__cpuid_count(0x8000_0008, 0).eax & 0xff)
}

/// What handles the exits of guest `vm` on the boot CPU, by the notice of the policy.
pub(super) fn on_boot_cpu<'a, M: Machine>(
    machine: &'a M,
    shared: &'a Shared,
    guest: &'a Guest<'_>,
    vm: VmId,
) -> impl CacheControl + 'a {
    let notices = move || machine.board().iommu().coherency(vm);
    OnCpu::new(shared, guest, BOOT, notices, machine.cpus().caches())
}

/// A guest, and what its CPUs share about caching.
struct Ward<'m> {
    guest: Guest<'m>,
    vm: VmId,
    shared: Shared,
}

impl<'m> Ward<'m> {
    /// Guest `index`, as new, which is VM `index` + 1.
    fn new<M: Machine>(stage: &Stage<'m, M>, index: usize) -> Result<Self, Failure> {
        let shared = shared();
        let guest = need(shared.access(BOOT, || stage.guest(index)).ok(), "there is no CPU 0")??;
        Ok(Self { guest, vm: VmId(index as u32 + 1), shared })
    }

    fn notice<M: Machine>(&self, machine: &M) -> Result<Notice, Failure> {
        Ok(machine.board().iommu().coherency(self.vm)?)
    }

    /// Fails unless the notice is this one.
    #[track_caller]
    fn expect<M: Machine>(&self, machine: &M, verdict: Coherency, epoch: u32) -> Result<(), Failure> {
        ensure(self.notice(machine)? == Notice { verdict, epoch }, "the notice is another one")
    }

    /// Whoever changed the notice has the guest's CPUs look at it.
    fn notice_changed<M: Machine>(&self, machine: &M) -> Result<(), Failure> {
        let inside = self.shared.footprint.inside();
        ensure(machine.cpus().caches().interrupt(inside).is_ok(), "a CPU takes no interrupt")
    }

    /// Puts a script in place in the hypervisor's name.
    fn load(&self, first: u64, ops: &[Op]) -> Result<u64, Failure> {
        let memory = self.guest.memory();
        let load = || script::load_from(memory, first, ops.iter().copied());
        need(self.shared.access(BOOT, load).ok().flatten(), "the script does not fit")?;
        need(script::record(first), "the script does not fit")
    }

    /// What handles the guest's exits on this CPU.
    fn exits<'a, M: Machine>(&'a self, machine: &'a M) -> impl CacheControl + 'a {
        on_boot_cpu(machine, &self.shared, &self.guest, self.vm)
    }

    /// Has a fresh vCPU carry a script out on this CPU.
    fn runs_here<M: Machine>(
        &self,
        stage: &mut Stage<'m, M>,
        ops: &[Op],
        hypercall: &mut dyn FnMut(Call) -> u64,
    ) -> Result<(), Failure> {
        self.load(0, ops)?;
        let machine = stage.machine;
        let mut vcpu = stage.vcpu(&self.guest, Program::Script, ARGUMENTS)?;
        ended(turn(machine, &mut vcpu, &mut self.exits(machine), hypercall, LIMIT))
    }

    /// Has one store something on the second CPU. The notice does not change meanwhile.
    fn runs_on_second<M: Machine>(&self, stage: &mut Stage<'m, M>) -> Result<(), Failure> {
        let notice = self.notice(stage.machine)?;
        let at = self.load(SECOND_RECORD, &[Op(What::Store, FREE + 64, 1)])?;
        let task = |vcpu, argument| Task { guest: &self.guest, vcpu, program: Program::Script, argument };
        let (cpus, orders) = (stage.machine.cpus(), Default::default());
        let ([_, there], _) = parts(stage, [task(0, ARGUMENTS), task(1, at)], &orders)?;
        let (shared, guest) = (&self.shared, &self.guest);
        let run = |cpu: &_| {
            let cache = &mut OnCpu::new(shared, guest, SECOND, || Ok(notice), cpus.caches());
            let (clock, limit) = (cpus.clock(), &mut cpus.limit());
            let mut around = Around { clock: &clock, limit, cache, hypercall: &mut no_call };
            there.vcpu(cpu).run(&mut around, LIMIT)
        };
        ended(beside(cpus, run, || ())?.0)
    }
}
