//! Ending what a VM has, whether it wants to or not.

use core::time::Duration;

use portcullis_hal::Clock;

use crate::{
    driver::Driver,
    error::Error,
    event::Event,
    group::{GroupId, VmId},
    operate::{Hands, Patient},
    ownership::{Request, UserId},
    policy::Iommu,
};

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Ends the ownership of `group` by `vm`. First every external user is told, in the order of their
    /// references, by `notify`; then the gate of the context is shut, drained, the devices are blocked and
    /// the context dissolves, unless other groups of the VM use it. Claims are stale afterwards; the grant
    /// stays. `notify` is called without a lock held and may end references.
    ///
    /// It ends whatever happens: an operation of another CPU on the group and callers behind the gate get
    /// `limit` each, hardware what its driver allows.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::NotOwner`], [`Error::OwnedBy`], [`Error::OwnedByHost`],
    /// [`Error::Ending`], and [`Error::Busy`] if another CPU's operation did not end in time: nothing changed.
    /// Otherwise the ownership has ended, and an error says why the context is kept, shut:
    /// [`Error::InUse`] references to it live, [`Error::Busy`] a caller is inside, [`Error::Timeout`] hardware did
    /// not answer.
    pub fn revoke(
        &self,
        vm: VmId,
        group: GroupId,
        notify: impl FnMut(UserId),
        clock: &impl Clock,
        limit: Duration,
    ) -> Result<(), Error> {
        self.run(Request::Revoke { vm, group }, &mut Patient::new(clock, limit, notify)).map(drop)
    }

    /// Blocks the devices of `group`, whoever owns it, as the owner of a device that does what it may not
    /// may be treated. The ownership stays, and the owner may give it up; attaches, claims and new devices are
    /// refused until the group is [readmitted](Self::readmit).
    ///
    /// It waits for another CPU's operation on the group, `limit` at most, and for hardware as long as its
    /// driver allows.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`]; [`Error::Quarantined`] when its hardware did not answer before. [`Error::Busy`] if
    /// another CPU's operation did not end in time: nothing new begins on the group, but it may still be
    /// attached. [`Error::Timeout`] when hardware does not answer: it is quarantined for good.
    pub fn quarantine(&self, group: GroupId, clock: &impl Clock, limit: Duration) -> Result<(), Error> {
        let mut hands = Patient::new(clock, limit, |_| {});
        loop {
            match self.run(Request::SetAside { group }, &mut hands) {
                Err(Error::Busy) if hands.may_wait() => {}
                done => return done.map(drop),
            }
        }
    }

    /// Lets a group be used again that was [quarantined](Self::quarantine) on request. It stays blocked; its
    /// next attach needs a proof that its devices were quiesced.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::Busy`]; [`Error::Quarantined`] when its hardware did not answer: that
    /// stays.
    pub fn readmit(&self, group: GroupId) -> Result<(), Error> {
        let mut control = self.control.lock();
        control.ownership.readmit(group)?;
        control.log.note(Event::Readmitted { group });
        Ok(())
    }

    /// Ends everything that `vm` has, in whatever state it is: grants, groups as in
    /// [`revoke`](Self::revoke), all contexts, and at last its memory.
    ///
    /// # Errors
    /// [`Error::Ending`] when another CPU is at it, [`Error::Full`]: nothing changed. Otherwise the VM has
    /// neither grants nor groups, unless it is [`Error::Busy`] because another CPU's operation did not end in
    /// time; contexts and memory are kept for the reasons of [`revoke`](Self::revoke). What is not kept for
    /// good goes when this is called again.
    pub fn vm_died(
        &self,
        vm: VmId,
        notify: impl FnMut(UserId),
        clock: &impl Clock,
        limit: Duration,
    ) -> Result<(), Error> {
        self.run(Request::VmDied { vm }, &mut Patient::new(clock, limit, notify)).map(drop)
    }
}
