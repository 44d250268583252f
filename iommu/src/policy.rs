//! The policy: grants, claims, and the only way to the drivers.

use const_fn::const_fn;
use portcullis_hal::{
    Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, array_of,
    sync::{Mutex, Ordering},
};

use crate::{
    context::{Backing, Context, ContextHandle, Entered, Slot},
    driver::{Aperture, Driver, MAX_MEMBERS, Outcome, Permit, Target},
    error::Error,
    fault::Fault,
    group::{Group, GroupId, Health, MAX_GRANTS, VmId},
    memory::{REGIONS, RegisteredMemory},
};

/// The IOMMU of a machine: one driver, its groups and its contexts.
///
/// Every method may be called from any CPU at any time. Methods that change ownership take a lock;
/// `map`, `unmap` and `iova_to_phys` enter their context's gate and wait for nobody.
pub struct Iommu<D: Driver, const GROUPS: usize = 32, const CONTEXTS: usize = 32> {
    pub(crate) driver: D,
    pub(crate) memory: RegisteredMemory<REGIONS>,
    groups: Mutex<heapless::Vec<Group, GROUPS>>,
    contexts: [Slot<D::Context>; CONTEXTS],
}

/// The right to attach a group, held by one VM: the only one there is, until it is released.
///
/// Dropping it releases the group, too.
#[must_use = "dropping a claim blocks and releases its group"]
pub struct Claim<'i, D: Driver, const GROUPS: usize, const CONTEXTS: usize> {
    iommu: &'i Iommu<D, GROUPS, CONTEXTS>,
    group: GroupId,
    owner: VmId,
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize> Iommu<D, GROUPS, CONTEXTS> {
    /// A policy over `driver`, whose hardware blocks every device: no group, no grant, no context.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new(driver: D) -> Self {
        Self {
            driver,
            memory: RegisteredMemory::new(),
            groups: Mutex::new(heapless::Vec::new()),
            contexts: array_of![Slot::new(); CONTEXTS],
        }
    }

    /// The driver: to ask, never to change.
    #[must_use]
    pub const fn driver(&self) -> &D {
        &self.driver
    }

    /// Registers the devices of one group. Nobody may claim it before a [`grant`](Self::grant).
    ///
    /// # Errors
    /// [`Error::BadMemberCount`], [`Error::DuplicateDevice`], [`Error::Full`].
    pub fn add_group(&self, members: &[DeviceId]) -> Result<GroupId, Error> {
        if members.is_empty() || members.len() > MAX_MEMBERS {
            return Err(Error::BadMemberCount { count: members.len() });
        }
        let mut groups = self.groups.lock();
        let mut group = Group::default();
        for &device in members {
            let known = groups.iter().chain([&group]).any(|group| group.members.contains(&device));
            if known || group.members.push(device).is_err() {
                return Err(Error::DuplicateDevice { device });
            }
        }
        let id = GroupId(groups.len() as u32);
        groups.push(group).map_err(|_| Error::Full { capacity: GROUPS })?;
        Ok(id)
    }

    /// Lets `vm` claim `group` from now on. For the hypervisor's control plane only.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`], [`Error::Full`].
    pub fn grant(&self, vm: VmId, group: GroupId) -> Result<(), Error> {
        self.with_group(group, |group| {
            if group.grants.contains(&vm) {
                return Ok(());
            }
            group.grants.push(vm).map_err(|_| Error::Full { capacity: MAX_GRANTS })
        })
    }

    /// Takes the group for `vm`: its devices are blocked first, then owned.
    ///
    /// # Errors
    /// [`Error::NotGranted`], [`Error::OwnedBy`] (another VM, or this one already),
    /// [`Error::Quarantined`] when its hardware does not answer; then the group stays free and blocked.
    pub fn claim(&self, vm: VmId, group: GroupId) -> Result<Claim<'_, D, GROUPS, CONTEXTS>, Error> {
        self.with_group(group, |state| {
            if !state.grants.contains(&vm) {
                return Err(Error::NotGranted { vm, group });
            }
            if let Some(owner) = state.owner {
                return Err(Error::OwnedBy { owner });
            }
            if state.health == Health::Quarantined {
                return Err(Error::Quarantined);
            }
            self.settle(state, |driver, permit, members| driver.block(permit, members))?;
            state.owner = Some(vm);
            Ok(())
        })?;
        Ok(Claim { iommu: self, group, owner: vm })
    }

    /// Makes an empty context for `vm`.
    ///
    /// # Errors
    /// [`Error::Full`], or what the driver says of the spec.
    pub fn create_context(&self, vm: VmId, spec: &D::Spec) -> Result<ContextHandle, Error> {
        for (index, slot) in self.contexts.iter().enumerate() {
            let Some(mut gate) = slot.gate.close() else { continue };
            if gate.is_some() {
                continue;
            }
            let tables = self.driver.create(&Permit::new(), spec)?;
            *gate = Some(Context { owner: vm, tables, backing: Backing::undecided() });
            let generation = slot.generation.load(Ordering::Relaxed);
            return Ok(ContextHandle { slot: index as u32, generation });
        }
        Err(Error::Full { capacity: CONTEXTS })
    }

    /// Ends a context and gives its table pages back.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InUse`], [`Error::Busy`] while a mapping call is inside,
    /// [`Error::Quarantined`] when an invalidation was never confirmed: its pages are kept.
    pub fn destroy_context(&self, handle: ContextHandle) -> Result<(), Error> {
        let stale = Error::Stale { slot: handle.slot };
        let slot = self.contexts.get(handle.slot as usize).ok_or(stale)?;
        let mut gate = slot.gate.close().ok_or(Error::Busy)?;
        if slot.generation.load(Ordering::Relaxed) != handle.generation || gate.is_none() {
            return Err(stale);
        }
        match slot.users.load(Ordering::Acquire) {
            0 => {}
            users => return Err(Error::InUse { users }),
        }
        if slot.poisoned.load(Ordering::Acquire) {
            return Err(Error::Quarantined);
        }
        slot.generation.fetch_add(1, Ordering::Relaxed);
        let Some(context) = gate.take() else { return Err(stale) };
        self.dissolve(context)
    }

    /// What the context can map.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`].
    pub fn aperture(&self, context: ContextHandle) -> Result<Aperture, Error> {
        Ok(self.driver.aperture(&self.enter(context)?.context()?.tables))
    }

    /// Lets devices in the context reach `extent` at `iova`; visible to hardware when it returns.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`] while the context ends, [`Error::OtherBacking`] when it maps
    /// registered memory, or what the driver says. Nothing changed.
    /// [`Error::Timeout`] when hardware did not confirm: the mapping stands.
    #[inline]
    pub fn map(
        &self,
        context: ContextHandle,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        let entered = self.enter(context)?;
        let context = entered.context()?;
        context.backing.by_extents()?;
        match self.driver.map(&Permit::new(), &context.tables, iova, extent, access) {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Quarantined { error }) | Err(error) => Err(error),
        }
    }

    /// Ends the mappings of `range`; returns the number of bytes that were mapped. When it returns, no
    /// device reaches them any more.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`], or what the driver says of the range: nothing changed.
    /// [`Error::Timeout`] when hardware did not confirm: the memory must not be reused.
    #[inline]
    pub fn unmap(&self, context: ContextHandle, range: IovaRange) -> Result<u64, Error> {
        let entered = self.enter(context)?;
        self.unmap_from(&entered, range)
    }

    /// Where `iova` leads now, or `None`.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`].
    #[inline]
    pub fn iova_to_phys(
        &self,
        context: ContextHandle,
        iova: Iova,
    ) -> Result<Option<(PhysAddr, Access)>, Error> {
        Ok(self.driver.iova_to_phys(&self.enter(context)?.context()?.tables, iova))
    }

    /// Makes every DMA through the context cache-coherent.
    ///
    /// # Errors
    /// [`Error::NoSnoopControl`], [`Error::HasMappings`], [`Error::Stale`], [`Error::Busy`].
    pub fn enforce_cache_coherency(&self, context: ContextHandle) -> Result<(), Error> {
        self.driver.enforce_cache_coherency(&Permit::new(), &self.enter(context)?.context()?.tables)
    }

    /// Takes the oldest fault that hardware has recorded.
    pub fn take_fault(&self) -> Option<Fault> {
        self.driver.take_fault()
    }

    fn with_group<T>(
        &self,
        id: GroupId,
        act: impl FnOnce(&mut Group) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut groups = self.groups.lock();
        act(groups.get_mut(id.0 as usize).ok_or(Error::UnknownGroup { group: id })?)
    }

    #[inline]
    pub(crate) fn enter(&self, handle: ContextHandle) -> Result<Entered<'_, D::Context>, Error> {
        self.contexts.get(handle.slot as usize).ok_or(Error::Stale { slot: handle.slot })?.enter(handle)
    }

    /// Lets hardware act on all members; on no answer the group is quarantined.
    fn settle(
        &self,
        group: &mut Group,
        act: impl FnOnce(&D, &Permit, &[DeviceId]) -> Outcome,
    ) -> Result<(), Error> {
        match act(&self.driver, &Permit::new(), &group.members) {
            Outcome::Done => Ok(()),
            Outcome::Quarantined { error } => {
                group.health = Health::Quarantined;
                Err(error)
            }
        }
    }

    /// Counts a group out of the context that it left; on bad hardware the context stays as it is.
    fn leave(&self, handle: ContextHandle, left: &Result<(), Error>) {
        let Some(slot) = self.contexts.get(handle.slot as usize) else { return };
        if left.is_err() {
            slot.poisoned.store(true, Ordering::Release);
        }
        slot.users.fetch_sub(1, Ordering::AcqRel);
    }

    fn attach(&self, id: GroupId, owner: VmId, handle: ContextHandle) -> Result<(), Error> {
        self.with_group(id, |group| {
            if group.health == Health::Quarantined {
                return Err(Error::Quarantined);
            }
            let entered = self.enter(handle)?;
            let context = entered.context()?;
            if context.owner != owner {
                return Err(Error::OwnedBy { owner: context.owner });
            }
            let permit = Permit::new();
            let prepared = self.driver.prepare(&permit, &group.members, Target::Context(&context.tables))?;
            entered.slot.users.fetch_add(1, Ordering::AcqRel);
            let switched = self.settle(group, |driver, permit, _| driver.commit(permit, prepared));
            if let Some(old) = group.context.replace(handle) {
                self.leave(old, &switched);
            }
            switched
        })
    }

    fn detach(&self, id: GroupId) -> Result<(), Error> {
        self.with_group(id, |group| {
            let Some(context) = group.context else { return Ok(()) };
            let blocked = self.settle(group, |driver, permit, members| driver.block(permit, members));
            group.context = None;
            self.leave(context, &blocked);
            blocked
        })
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize> Claim<'_, D, GROUPS, CONTEXTS> {
    /// The group that is claimed.
    #[must_use]
    pub const fn group(&self) -> GroupId {
        self.group
    }

    /// Switches the whole group to a context of the same VM, from blocked or from another context. DMA
    /// sees the old context, none, or the new one.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::OwnedBy`] for another VM's context, [`Error::Busy`], or what the driver
    /// refuses: nothing changed. [`Error::Timeout`] when hardware did not answer: the group is
    /// quarantined.
    pub fn attach(&mut self, context: ContextHandle) -> Result<(), Error> {
        self.iommu.attach(self.group, self.owner, context)
    }

    /// Blocks the whole group.
    ///
    /// # Errors
    /// [`Error::Timeout`] when hardware did not answer: the group is quarantined.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.iommu.detach(self.group)
    }

    /// Blocks the group and gives it up.
    ///
    /// # Errors
    /// [`Error::Timeout`] when hardware did not answer: the group is given up, but quarantined.
    pub fn release(self) -> Result<(), Error> {
        let given_up = self.give_up();
        // The group may have a new owner by now: `Drop` must not release it from under that one.
        core::mem::forget(self);
        given_up
    }

    fn give_up(&self) -> Result<(), Error> {
        let blocked = self.iommu.detach(self.group);
        self.iommu.with_group(self.group, |group| {
            group.owner = None;
            Ok(())
        })?;
        blocked
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize> Drop for Claim<'_, D, GROUPS, CONTEXTS> {
    fn drop(&mut self) {
        // Hardware that did not answer is noted in the group, which stays quarantined.
        let _ = self.give_up();
    }
}
