//! The policy: grants, contexts, and the only way to the drivers.

use const_fn::const_fn;
use portcullis_hal::{
    Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, array_of, seats::Gates, sync::Mutex,
};

use crate::{
    bars::Bars,
    coherency::Notices,
    context::{ContextHandle, Contexts, Entered, Slot, empty_slot},
    driver::{Aperture, Driver, Outcome, Permit},
    error::Error,
    event::{Event, Log},
    fault::Fault,
    group::{GroupId, VmId},
    memory::{REGIONS, RegisteredMemory},
    operate::AtOnce,
    ownership::{Owner, Ownership, Request, Reserved, Yield},
};

/// External references that may live at a time.
pub const MAX_USERS: usize = 32;

/// The IOMMU of a machine: one driver, its groups and its contexts.
///
/// Every method may be called from any CPU at any time. Methods that change ownership take one lock, for
/// a bounded number of steps and never while hardware, a clock or a callback is waited for. `map`,
/// `map_guest`, `unmap` and `iova_to_phys` do not take it: they enter their context's gate, which waits
/// for nobody.
///
/// Hardware is waited for, each time under the driver's deadline, by whatever switches or blocks a group
/// or destroys a context; by `unmap`, which returns after its invalidation is confirmed and may have to take
/// its turn at the unit's queue first; and by `map` and `map_guest` where hardware may remember that nothing
/// was there.
pub struct Iommu<
    D: Driver,
    const GROUPS: usize = 32,
    const CONTEXTS: usize = 32,
    const CPUS: usize = { crate::session::CPUS },
> {
    pub(crate) driver: D,
    pub(crate) control: Mutex<Control<GROUPS, CONTEXTS>>,
    pub(crate) contexts: Contexts<D::Context, CONTEXTS, CPUS>,
    pub(crate) notices: Notices,
    pub(crate) memory: RegisteredMemory<REGIONS, CPUS>,
    pub(crate) bars: Bars,
}

/// What the lock guards.
#[derive(Debug)]
pub(crate) struct Control<const GROUPS: usize, const CONTEXTS: usize> {
    pub(crate) ownership: Ownership<GROUPS, CONTEXTS, MAX_USERS>,
    pub(crate) log: Log,
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// A policy over `driver`, whose hardware blocks every device: no group, no grant, no context.
    #[must_use]
    #[const_fn(cfg(not(loom)))]
    pub const fn new(driver: D) -> Self {
        Self {
            driver,
            control: Mutex::new(Control { ownership: Ownership::new(), log: Log::new() }),
            contexts: Gates::new(array_of![empty_slot(); CONTEXTS]),
            notices: Notices::new(),
            memory: RegisteredMemory::new(),
            bars: Bars::new(),
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
        self.control.lock().ownership.add_group(members)
    }

    /// A device joins a group, and the context that the group has. It must come out of reset, as a device
    /// does that was just plugged in: nothing else shows that it holds no old addresses.
    ///
    /// # Errors
    /// [`Error::DuplicateDevice`], [`Error::BadMemberCount`], [`Error::Busy`], [`Error::Quarantined`], or
    /// why the context refuses it: the group is as before. [`Error::Timeout`] when hardware did not answer:
    /// the group is quarantined, with the device.
    pub fn add_device(&self, group: GroupId, device: DeviceId) -> Result<(), Error> {
        self.run(Request::AddDevice { group, device }, &mut AtOnce).map(drop)
    }

    /// A device leaves its group and is blocked. With the last one the ownership ends, and every claim and
    /// grant with it.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::Busy`], [`Error::Quarantined`]. [`Error::Timeout`] when hardware did not
    /// answer: the group is quarantined, and keeps the device.
    pub fn remove_device(&self, device: DeviceId) -> Result<(), Error> {
        self.run(Request::RemoveDevice { device }, &mut AtOnce).map(drop)
    }

    /// Notes memory that a device reaches at fixed addresses. As long as it is
    /// [needed](crate::ownership::Harm::Needed), no guest claims the group.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::Full`].
    pub fn declare_reserved(&self, region: Reserved) -> Result<(), Error> {
        self.control.lock().ownership.declare_reserved(region)
    }

    /// Lets `vm` claim `group` from now on. For the hypervisor's control plane only.
    ///
    /// # Errors
    /// [`Error::UnknownVm`], [`Error::UnknownGroup`], [`Error::Full`], [`Error::Ending`].
    pub fn grant(&self, vm: VmId, group: GroupId) -> Result<(), Error> {
        self.notices.check(vm)?;
        self.control.lock().ownership.grant(vm, group)
    }

    /// Lets `vm` claim `group` no more. What it has claimed it keeps: [`revoke`](Self::revoke) ends that.
    ///
    /// # Errors
    /// [`Error::UnknownGroup`].
    pub fn withdraw_grant(&self, vm: VmId, group: GroupId) -> Result<(), Error> {
        self.control.lock().ownership.withdraw_grant(vm, group)
    }

    /// Makes an empty context for `vm`.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Ending`], [`Error::Busy`] while a caller with an old handle is just turned
    /// away. Of the driver: [`Error::Unsupported`], [`Error::Misaligned`] or [`Error::OutsideAperture`] for
    /// the spec, [`Error::NoSnoopControl`], [`Error::NeedPages`], [`Error::OutOfNumbers`],
    /// [`Error::Quarantined`]. Nothing was made.
    pub fn create_context(&self, vm: VmId, spec: &D::Spec) -> Result<ContextHandle, Error> {
        self.create(Owner::Guest(vm), spec)
    }

    /// Makes an empty context for the hypervisor's own drivers.
    ///
    /// # Errors
    /// As [`create_context`](Self::create_context), but never [`Error::Ending`].
    pub fn create_host_context(&self, spec: &D::Spec) -> Result<ContextHandle, Error> {
        self.create(Owner::Host, spec)
    }

    fn create(&self, owner: Owner, spec: &D::Spec) -> Result<ContextHandle, Error> {
        match self.run_with(Request::CreateContext { owner }, Some(spec), &mut AtOnce)? {
            Yield::Context(context) => Ok(context),
            _ => Err(Error::Busy),
        }
    }

    /// Ends a context and gives its table pages back.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::InUse`], [`Error::Busy`] while a mapping call or any session is inside,
    /// [`Error::Quarantined`] when an invalidation was never confirmed: its pages are kept.
    pub fn destroy_context(&self, context: ContextHandle) -> Result<(), Error> {
        self.run(Request::DestroyContext { context }, &mut AtOnce).map(drop)
    }

    /// What the context can map.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`].
    pub fn aperture(&self, context: ContextHandle) -> Result<Aperture, Error> {
        Ok(self.driver.aperture(&self.enter(context)?.context()?.tables))
    }

    /// Whose context it is.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::Busy`].
    #[inline]
    pub fn owner(&self, context: ContextHandle) -> Result<Owner, Error> {
        Ok(self.enter(context)?.context()?.owner)
    }

    /// Lets devices in the context reach `extent` at `iova`; visible to hardware when it returns. Any CPU, at
    /// any time; waits for hardware only where that may remember that nothing was there.
    ///
    /// # Errors
    /// Nothing changed after [`Error::Stale`]; [`Error::Busy`] while the context ends or another CPU changes
    /// the same tables; [`Error::OtherBacking`] when the context maps registered memory, by
    /// itself or in sessions;
    /// [`Error::IsBar`] for registers of a device;
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::PhysicalTooWide`], [`Error::NoAccess`],
    /// [`Error::AlreadyMapped`], [`Error::NeedPages`]; and [`Error::Quarantined`] when hardware had failed
    /// before.
    ///
    /// [`Error::Timeout`] or [`Error::Hardware`] when hardware did not confirm: the mapping stands.
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
        self.no_bar(extent)?;
        context.backing.by_extents()?;
        self.flush_before(&context.tables, extent);
        match self.driver.map(&Permit::new(), &context.tables, iova, extent, access) {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Quarantined { error }) | Err(error) => Err(error),
        }
    }

    /// Ends the mappings of `range`; returns the number of bytes that were mapped. When it returns, no
    /// device reaches them any more.
    ///
    /// Any CPU, at any time. It waits for hardware to confirm the invalidation, under the driver's deadline,
    /// and before that for its turn at the unit's queue, under a deadline as well.
    ///
    /// # Errors
    /// Nothing changed after [`Error::Stale`]; [`Error::Busy`] while the context ends or another CPU changes
    /// the same tables; [`Error::Misaligned`], [`Error::OutsideAperture`]; [`Error::SplitsPage`] when a large
    /// page lies only partly inside; [`Error::IsBar`] where a BAR is mapped;
    /// [`Error::OtherBacking`] when sessions change the context's entries.
    ///
    /// [`Error::Timeout`] or [`Error::Hardware`] when hardware did not confirm: the entries are gone, but the
    /// memory must not be reused. [`Error::Quarantined`] when hardware had failed before: the same, and the
    /// entries may still stand.
    #[inline]
    pub fn unmap(&self, context: ContextHandle, range: IovaRange) -> Result<u64, Error> {
        let entered = self.enter(context)?;
        self.no_bar_mapped(entered.state, context, range)?;
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
        let entered = self.enter(context)?;
        let tables = &entered.context()?.tables;
        self.driver.enforce_cache_coherency(&Permit::new(), tables)?;
        let coherency = self.driver.coherency(tables);
        self.note_coherency(context.slot as usize, coherency);
        Ok(())
    }

    /// The group of a device, as of one that a [fault](Self::take_fault) names.
    pub fn group_of(&self, device: DeviceId) -> Option<GroupId> {
        self.control.lock().ownership.group_of(device)
    }

    /// Takes the oldest fault that hardware has recorded, and logs whose device it was.
    pub fn take_fault(&self) -> Option<Fault> {
        let fault = self.driver.take_fault()?;
        let mut control = self.control.lock();
        let owner = control.ownership.owner_of_device(fault.device);
        control.log.note(Event::Fault { fault, owner });
        Some(fault)
    }

    /// Takes the oldest event of the log.
    pub fn take_event(&self) -> Option<Event> {
        self.control.lock().log.take()
    }

    /// Events that found the log full.
    pub fn lost_events(&self) -> u64 {
        self.control.lock().log.lost()
    }

    #[inline]
    pub(crate) fn slot(&self, number: usize) -> Option<Slot<'_, D::Context, CPUS>> {
        self.contexts.at(number).map(Slot)
    }

    #[inline]
    pub(crate) fn enter(&self, handle: ContextHandle) -> Result<Entered<'_, D::Context>, Error> {
        self.slot(handle.slot as usize).ok_or(Error::Stale { slot: handle.slot })?.enter(handle)
    }
}
