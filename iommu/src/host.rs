//! The hypervisor's own drivers.

use core::time::Duration;

use portcullis_hal::{Clock, ConfigSpace};

use crate::{
    claim::QuiescedGroup,
    context::ContextHandle,
    driver::Driver,
    error::Error,
    group::GroupId,
    operate::AtOnce,
    ownership::{Hold, Owner, Proof, Request},
    pci::Method,
    policy::Iommu,
};

/// Whether a host driver lets its device do DMA. It says so when it binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum DmaUse {
    /// It does.
    Dma,
    /// Never: a stub, or what passes the device through to a guest. It counts neither way.
    None,
}

/// A host driver on a device of a group. As long as one that does DMA lives, no guest gets the group.
///
/// Dropping it unbinds, too; the last one blocks the group.
#[must_use = "dropping the last one blocks and frees its group"]
pub struct HostBinding<
    'i,
    D: Driver,
    const GROUPS: usize,
    const CONTEXTS: usize,
    const CPUS: usize = { crate::session::CPUS },
> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS, CPUS>,
    group: GroupId,
    hold: Option<Hold>,
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Binds a host driver to a device of `group`.
    ///
    /// # Errors
    /// [`Error::OwnedBy`] a guest, if the driver does DMA; [`Error::UnknownGroup`], [`Error::Busy`],
    /// [`Error::Quarantined`]. Nothing changed.
    pub fn bind_host(
        &self,
        group: GroupId,
        dma: DmaUse,
    ) -> Result<HostBinding<'_, D, GROUPS, CONTEXTS, CPUS>, Error> {
        let hold = match dma {
            DmaUse::Dma => Some(self.acquire(Owner::Host, group)?),
            DmaUse::None => {
                self.control.lock().ownership.tenancy(group)?;
                None
            }
        };
        Ok(HostBinding { iommu: self, group, hold })
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    HostBinding<'_, D, GROUPS, CONTEXTS, CPUS>
{
    /// The group.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }

    /// Makes every device of the group end its DMA, as [`Claim::quiesce`](crate::Claim::quiesce) does.
    ///
    /// # Errors
    /// [`Error::NotQuiet`]; [`Error::NotAttached`] for a driver that does no DMA.
    pub fn quiesce(
        &self,
        config: &impl ConfigSpace,
        clock: &impl Clock,
        method: Method,
        limit: Duration,
    ) -> Result<QuiescedGroup, Error> {
        self.iommu.quiesce_all(self.held()?, config, clock, method, limit)
    }

    /// Switches the whole group to a [host context](Iommu::create_host_context).
    ///
    /// # Errors
    /// As [`Claim::attach`](crate::Claim::attach); [`Error::NotAttached`] for a driver that does no DMA.
    pub fn attach(&mut self, context: ContextHandle, quiesced: QuiescedGroup) -> Result<(), Error> {
        self.switch_with(context, quiesced.proof())
    }

    /// As [`attach`](Self::attach), once the group was attached under the host's ownership.
    ///
    /// # Errors
    /// As [`Claim::switch`](crate::Claim::switch).
    pub fn switch(&mut self, context: ContextHandle) -> Result<(), Error> {
        self.switch_with(context, Proof::None)
    }

    /// Unbinds; the last driver blocks the group and frees it.
    ///
    /// # Errors
    /// [`Error::Timeout`] when hardware did not answer: the group is free, but quarantined.
    pub fn unbind(self) -> Result<(), Error> {
        let given_up = self.give_up();
        // Once is enough.
        core::mem::forget(self);
        given_up
    }

    fn held(&self) -> Result<Hold, Error> {
        self.hold.ok_or(Error::NotAttached { group: self.group })
    }

    fn switch_with(&self, context: ContextHandle, proof: Proof) -> Result<(), Error> {
        self.iommu.run(Request::Attach { hold: self.held()?, context, proof }, &mut AtOnce).map(drop)
    }

    fn give_up(&self) -> Result<(), Error> {
        let Some(hold) = self.hold else { return Ok(()) };
        self.iommu.run(Request::Release { hold }, &mut AtOnce).map(drop)
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize> Drop
    for HostBinding<'_, D, GROUPS, CONTEXTS, CPUS>
{
    fn drop(&mut self) {
        // Hardware that did not answer is noted in the group, which stays quarantined.
        let _ = self.give_up();
    }
}
