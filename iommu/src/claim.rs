//! Claims: a guest's right to attach a group.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace};

use crate::{
    context::ContextHandle,
    driver::Driver,
    error::Error,
    group::{GroupId, VmId},
    operate::AtOnce,
    ownership::{Hold, Owner, Proof, Request, Yield},
    pci::{Method, quiesce},
    policy::Iommu,
};

/// The right of one VM to attach a group. The same VM may claim a group several times, for each of its
/// devices; nobody else gets it before the last claim is released.
///
/// Dropping it releases it, too. After a revocation it is stale: every call is refused, and there is
/// nothing left to release.
///
/// A claim is used by one CPU at a time; different claims, also on one group, by any at any time. Whoever
/// comes second to a group that is just being switched gets [`Error::Busy`].
///
/// A group with a new owner is attached only with a proof that its devices forgot the old one:
///
/// ```compile_fail
/// # use portcullis_iommu::{claim::Claim, ContextHandle, Driver};
/// fn attach<D: Driver>(claim: &mut Claim<'_, D, 1, 1>, context: ContextHandle) {
///     claim.attach(context);
/// }
/// ```
///
/// A claim is used up by its release:
///
/// ```compile_fail
/// # use portcullis_iommu::{claim::Claim, Driver};
/// fn twice<D: Driver>(claim: Claim<'_, D, 1, 1>) {
///     let _ = claim.release();
///     let _ = claim.release();
/// }
/// ```
#[must_use = "dropping the last claim blocks and releases its group"]
pub struct Claim<
    'i,
    D: Driver,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize = { crate::session::CPUS },
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    hold: Hold,
}

/// Proof that all devices of a group did no DMA of a former owner any more when it was made. It fits the
/// ownership under which it was made, and no other.
#[derive(Debug)]
#[must_use = "the proof is needed to attach the group"]
pub struct QuiescedGroup {
    group: GroupId,
    tenure: u32,
}

impl QuiescedGroup {
    pub(crate) const fn proof(self) -> Proof {
        Proof::Quiesced { group: self.group, tenure: self.tenure }
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Takes the group for `vm`: its devices are blocked first, then owned. A VM that owns it already gets
    /// one more claim. Any CPU; waits for hardware, without the lock, when the group was free.
    ///
    /// # Errors
    /// [`Error::NotGranted`], [`Error::OwnedBy`], [`Error::OwnedByHost`], [`Error::ReservedRegion`],
    /// [`Error::Busy`], [`Error::Ending`]: nothing changed. [`Error::Quarantined`] or [`Error::Timeout`] when
    /// its hardware does not answer; then the group stays free and blocked.
    pub fn claim(&self, vm: VmId, group: GroupId) -> Result<Claim<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        let hold = self.acquire(Owner::Guest(vm), group)?;
        Ok(Claim::of(self, hold))
    }

    pub(crate) fn acquire(&self, owner: Owner, group: GroupId) -> Result<Hold, Error> {
        match self.run(Request::Acquire { owner, group }, &mut AtOnce)? {
            Yield::Hold(hold) => Ok(hold),
            _ => Err(Error::Busy),
        }
    }

    pub(crate) fn quiesce_all(
        &self,
        hold: Hold,
        config: &impl ConfigSpace,
        clock: &impl Clock,
        method: Method,
        limit: Duration,
    ) -> Result<QuiescedGroup, Error> {
        let members = {
            let control = self.control.lock();
            control.ownership.check(hold)?;
            control.ownership.members(hold.group)?
        };
        for device in members {
            let _proof = quiesce(config, clock, device, method, limit)
                .map_err(|because| Error::NotQuiet { device, because })?;
        }
        Ok(QuiescedGroup { group: hold.group, tenure: hold.tenure })
    }
}

impl<'i, D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Claim<'i, D, GROUPS, CONTEXTS, CPUS>
{
    pub(crate) const fn iommu(&self) -> &'i Iommu<D, GROUPS, CONTEXTS, CPUS> {
        self.iommu
    }

    pub(crate) const fn of(iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>, hold: Hold) -> Self {
        Self { iommu, hold }
    }

    pub(crate) const fn hold(&self) -> Hold {
        self.hold
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.iommu.control.lock().ownership.check(self.hold)
    }

    /// The group that is claimed.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.hold.group
    }

    /// The context that the group is attached to. Any CPU; takes the lock for one look.
    ///
    /// # Errors
    /// [`Error::NotAttached`]; [`Error::Stale`] after a revocation.
    pub fn context(&self) -> Result<ContextHandle, Error> {
        let control = self.iommu.control.lock();
        control.ownership.check(self.hold)?;
        control.ownership.context_of(self.group())?.ok_or(Error::NotAttached { group: self.group() })
    }

    /// Makes every device of the group end its DMA, and proves it. The group is blocked since it was
    /// claimed, so that what a device still does until then reaches nothing. See [`pci::quiesce`](quiesce()) for
    /// what it does, what it does not prove, and how long it takes: `limit` is for each wait, and no lock is
    /// held meanwhile.
    ///
    /// # Errors
    /// [`Error::NotQuiet`], [`Error::Stale`] after a revocation.
    pub fn quiesce(
        &self,
        config: &impl ConfigSpace,
        clock: &impl Clock,
        method: Method,
        limit: Duration,
    ) -> Result<QuiescedGroup, Error> {
        self.iommu.quiesce_all(self.hold, config, clock, method, limit)
    }

    /// Switches the whole group to a context of the same VM, from blocked or from another context. DMA
    /// sees the old context, none, or the new one. Any CPU; waits for hardware, without the lock.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotQuiesced`] when the proof is of another group or ownership,
    /// [`Error::OwnedBy`] for another VM's context, [`Error::Busy`], also when the context had no group and a
    /// [session](crate::Session) of whatever VM does not end soon, or what the driver refuses: nothing changed. [`Error::Timeout`] when hardware did not answer: the group is
    /// quarantined.
    pub fn attach(&mut self, context: ContextHandle, quiesced: QuiescedGroup) -> Result<(), Error> {
        self.switch_with(context, quiesced.proof())
    }

    /// As [`attach`](Self::attach), for a group whose devices were quiesced under this ownership before. Any
    /// CPU; waits for hardware, without the lock.
    ///
    /// # Errors
    /// As [`attach`](Self::attach); [`Error::NotQuiesced`] when the group was never attached.
    pub fn switch(&mut self, context: ContextHandle) -> Result<(), Error> {
        self.switch_with(context, Proof::None)
    }

    fn switch_with(&self, context: ContextHandle, proof: Proof) -> Result<(), Error> {
        self.iommu.run(Request::Attach { hold: self.hold, context, proof }, &mut AtOnce).map(drop)
    }

    /// Blocks the whole group. Any CPU; waits for hardware, without the lock.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`]: nothing changed. [`Error::Timeout`] when hardware did not answer: the
    /// group is quarantined.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.iommu.run(Request::Detach { hold: self.hold }, &mut AtOnce).map(drop)
    }

    /// Gives the claim up; the last one blocks the group and frees it. External users find their
    /// references stale. If another CPU is just adding or removing a device, that one finishes the release.
    /// Any CPU; waits for hardware, without the lock, when it is the last one.
    ///
    /// # Errors
    /// [`Error::Timeout`] when hardware did not answer: the group is given up, but quarantined.
    pub fn release(self) -> Result<(), Error> {
        let given_up = self.give_up();
        // A second release could meet the next claim of the same VM.
        core::mem::forget(self);
        given_up
    }

    fn give_up(&self) -> Result<(), Error> {
        self.iommu.run(Request::Release { hold: self.hold }, &mut AtOnce).map(drop)
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize> Drop
    for Claim<'_, D, GROUPS, CONTEXTS, CPUS>
{
    fn drop(&mut self) {
        // Hardware that did not answer is noted in the group, which stays quarantined.
        let _ = self.give_up();
    }
}
