//! A guest as a VM of the policy: its memory, a context that leads to all of it, devices that were lent to it, and the
//! way back.

use portcullis_hal::{Access, GuestPhysAddr, GuestPhysRange, Iova, IovaRange, PhysRange};
use portcullis_iommu::{ContextHandle, Driver, GroupId, RegionHandle, VmId};
use portcullis_suite::{
    Board, Event, Failure,
    scenario::stage::{self, Owned},
};

use super::{Guest, Machine, Stage, caches, ensure, need};
use crate::x86::caching::{Shared, control::CacheControl};

const BOTH: Access = Access::READ.union(Access::WRITE);

/// A guest that the policy knows. Its devices find its memory where the guest does.
pub struct Tenant<'m, M: Machine> {
    /// The guest.
    pub guest: Guest<'m>,
    /// Its number at the policy.
    pub vm: VmId,
    /// Where its devices are attached: leads to its memory, one to one.
    pub context: ContextHandle,
    /// Its memory at the policy.
    pub region: RegionHandle,
    caching: Shared,
    machine: &'m M,
    policy: stage::Stage<'m, M::Board>,
}

/// A device that a guest drives.
pub struct Lent<'m, M: Machine> {
    /// The VM's claim on it.
    pub claim: Owned<'m, M::Board>,
    /// Which of the board's.
    pub index: usize,
    /// Its registers, which the guest finds at the same address.
    pub registers: PhysRange,
}

/// How a context of the board is made.
pub type Spec<M> = <<<M as Machine>::Board as Board>::Driver as Driver>::Spec;

impl<'m, M: Machine> Tenant<'m, M> {
    /// Guest `index`, as new, which is VM `index` + 1; with a context made like `spec`.
    ///
    /// # Errors
    /// What is missing, or what the policy refuses.
    pub fn new(
        stage: &Stage<'m, M>,
        policy: stage::Stage<'m, M::Board>,
        index: usize,
        spec: &Spec<M>,
    ) -> Result<Self, Failure> {
        Self::numbered(stage, policy, index, VmId(index as u32 + 1), spec)
    }

    /// The same with another number at the policy: one that gets the memory of guest `index`, which is no more.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn numbered(
        stage: &Stage<'m, M>,
        policy: stage::Stage<'m, M::Board>,
        index: usize,
        vm: VmId,
        spec: &Spec<M>,
    ) -> Result<Self, Failure> {
        let guest = stage.guest(index)?;
        let extent = need(guest.memory().extent(), "the guest has no memory")?;
        let memory = guest_range(extent.bytes())?;
        let iommu = policy.iommu();
        let region = iommu.register_memory(vm, memory, extent)?;
        let context = iommu.create_context(vm, spec)?;
        iommu.map_guest(context, Iova::new(0), memory, BOTH)?;
        policy.tell_mapped(context, Iova::new(0), extent, BOTH)?;
        Ok(Self { guest, vm, context, region, caching: caches::shared(), machine: stage.machine, policy })
    }

    /// What its cache instructions and caching attributes do on the boot CPU.
    pub fn exits(&self) -> impl CacheControl + '_ {
        caches::on_boot_cpu(self.machine, &self.caching, &self.guest, self.vm)
    }

    /// Claims device `index`, which is in `group`, for the guest, attaches it, and lends its registers.
    ///
    /// # Errors
    /// What is missing, or what the policy refuses.
    pub fn lend(&mut self, index: usize, group: GroupId) -> Result<Lent<'m, M>, Failure> {
        let registers = need(self.machine.registers(index), "the board lacks a device's registers")?;
        self.policy.iommu().grant(self.vm, group)?;
        let mut claim = self.policy.claim(index, self.vm, group)?;
        self.policy.attach(&mut claim, index, self.context)?;
        let lent = self.guest.lend(registers.start(), registers.bytes());
        ensure(lent.is_ok(), "the registers cannot be lent")?;
        Ok(Lent { claim, index, registers })
    }

    /// Takes a device back: its registers first, then its way to memory. No vCPU of the guest may run meanwhile, and
    /// each must forget its translations before its next turn.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn take_back(&mut self, lent: Lent<'m, M>) -> Result<(), Failure> {
        let Lent { mut claim, index, registers } = lent;
        let taken = self.guest.take_back(registers.start(), registers.bytes());
        ensure(taken.is_ok(), "the registers cannot be taken back")?;
        self.policy.detach(&mut claim, index)?;
        let group = claim.group();
        self.policy.release(claim, index, self.vm)?;
        Ok(self.policy.iommu().withdraw_grant(self.vm, group)?)
    }

    /// Ends the guest, whose devices were taken back: nothing leads to its memory any more.
    ///
    /// # Errors
    /// What the policy refuses.
    pub fn dismiss(self) -> Result<(), Failure> {
        let (iommu, bytes) = (self.policy.iommu(), self.guest.memory().bytes());
        let all = need(IovaRange::new(Iova::new(0), bytes).ok(), "an empty range")?;
        ensure(iommu.unmap(self.context, all)? == bytes, "unmap counted other bytes than were mapped")?;
        let context = self.context.slot();
        self.policy.board.emit(&Event::Unmapped { context, iova: 0, bytes });
        iommu.destroy_context(self.context)?;
        Ok(iommu.unregister_memory(self.vm, self.region)?)
    }
}

/// A guest's memory in its own addresses.
fn guest_range(bytes: u64) -> Result<GuestPhysRange, Failure> {
    need(GuestPhysRange::new(GuestPhysAddr::new(0), bytes).ok(), "the guest has no memory")
}
