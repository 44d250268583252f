//! External users: a vCPU core or a device model that relies on the context of somebody else's group.

use portcullis_hal::DeviceId;

use crate::{
    claim::Claim,
    context::ContextHandle,
    driver::Driver,
    error::Error,
    group::GroupId,
    operate::AtOnce,
    ownership::{ReferenceNumber, Request, UserId, Yield},
    policy::Iommu,
};

/// A counted reference to the context that a group had when it was taken. As long as it lives, that
/// context's tables stay.
///
/// When the ownership ends, the user is told first, and finds the reference stale from then on. It should
/// drop it soon: until then neither the context dissolves nor the memory of a dead VM is released. Any CPU
/// may use it, several at a time.
#[must_use = "dropping it ends the reference"]
pub struct ExternalUser<
    'i,
    D: Driver,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize = { crate::session::CPUS },
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    number: ReferenceNumber,
}

/// The trusted code of the hypervisor: who has one may refer to any device. Guests and what speaks for
/// them show a [`Claim`] instead.
#[derive(Debug)]
pub struct Trusted(());

impl Trusted {
    /// For code that no guest can direct.
    #[must_use]
    pub const fn hypervisor() -> Self {
        Self(())
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// A reference for `user` by device. Any CPU; takes the lock, and waits for no hardware.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`] without a group, [`Error::NotAttached`] for a group without a context,
    /// [`Error::Full`], [`Error::Busy`], [`Error::Ending`], [`Error::Quarantined`].
    pub fn refer_to_device(
        &self,
        _: &Trusted,
        user: UserId,
        device: DeviceId,
    ) -> Result<ExternalUser<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        let group = self.control.lock().ownership.group_of(device);
        self.refer(user, group.ok_or(Error::UnknownDevice { device })?)
    }

    fn refer(
        &self,
        user: UserId,
        group: GroupId,
    ) -> Result<ExternalUser<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        match self.run(Request::Refer { user, group }, &mut AtOnce)? {
            Yield::Reference(number) => Ok(ExternalUser { iommu: self, number }),
            _ => Err(Error::Busy),
        }
    }
}

impl<'i, D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Claim<'i, D, GROUPS, CONTEXTS, CPUS>
{
    /// A reference for `user`, shown to be entitled by this claim. Any CPU; takes the lock, and waits for no
    /// hardware.
    ///
    /// # Errors
    /// [`Error::Stale`] after a revocation, and as [`Iommu::refer_to_device`].
    pub fn refer(&self, user: UserId) -> Result<ExternalUser<'i, D, GROUPS, CONTEXTS, CPUS>, Error> {
        self.check()?;
        self.iommu().refer(user, self.group())
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    ExternalUser<'_, D, GROUPS, CONTEXTS, CPUS>
{
    /// The context, for mapping calls. Any CPU; takes the lock for one look.
    ///
    /// # Errors
    /// [`Error::Stale`] when the ownership has ended or is about to.
    pub fn context(&self) -> Result<ContextHandle, Error> {
        self.iommu.control.lock().ownership.context_of_reference(self.number)
    }

    /// Ends the reference. The last one to a context whose ownership has ended gives its tables back. Any
    /// CPU; waits for hardware, without the lock, in that case only.
    ///
    /// # Errors
    /// [`Error::Busy`] when a mapping call is still inside that context, [`Error::Timeout`] when hardware did not
    /// confirm: the reference has ended, the tables are kept.
    pub fn release(self) -> Result<(), Error> {
        let ended = self.end();
        // Once is enough.
        core::mem::forget(self);
        ended
    }

    fn end(&self) -> Result<(), Error> {
        self.iommu.run(Request::Unrefer { reference: self.number }, &mut AtOnce).map(drop)
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize> Drop
    for ExternalUser<'_, D, GROUPS, CONTEXTS, CPUS>
{
    fn drop(&mut self) {
        // What could not be given back is kept, and the death of its VM tries again.
        let _ = self.end();
    }
}
