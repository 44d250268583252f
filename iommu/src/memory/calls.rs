//! Registered memory as the hypervisor asks for it.

use portcullis_hal::{Access, DmaExtent, GuestPhysRange, Iova, IovaRange, PhysRange, sync::Ordering};

use super::{RegionHandle, RegionInfo, returned::Returned};
use crate::{
    context::{Context, ContextHandle, Entered},
    driver::{Debts, Driver, Outcome, Permit},
    error::Error,
    group::VmId,
    policy::Iommu,
    removals::{Removals, Unheard},
};

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Makes `extent` the memory behind the guest-physical range `guest` of `vm`. For the hypervisor's
    /// control plane; takes a lock. The extent stays reachable for the VM's devices, as far as it is
    /// mapped, until an [`unregister_memory`](Self::unregister_memory) succeeds.
    ///
    /// # Errors
    /// [`Error::SizesDiffer`], [`Error::Misaligned`] when an address or the length is no multiple of
    /// 4 KiB, [`Error::Overlaps`] with a region of the same VM at these guest addresses or of any VM in
    /// this memory, [`Error::IsBar`], [`Error::Full`].
    pub fn register_memory(
        &self,
        vm: VmId,
        guest: GuestPhysRange,
        extent: DmaExtent,
    ) -> Result<RegionHandle, Error> {
        // Held, so that no BAR is declared there meanwhile.
        let control = self.control.lock();
        let host = PhysRange::new(extent.start(), extent.bytes()).ok();
        if let Some(bar) = host.and_then(|host| control.ownership.bar_in(host)) {
            return Err(Error::IsBar { device: bar.device });
        }
        self.memory.register(vm, guest, extent)
    }

    /// Ends a region. When it returns, no table leads there and no mapping can begin. Takes a lock, and holds
    /// it while it waits a bounded time for sessions that are under way.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::OwnedBy`] for another VM's region, [`Error::StillMapped`] with the
    /// number of 4 KiB units that are mapped or being mapped, [`Error::Busy`] when a session did not end in
    /// time: nothing changed.
    pub fn unregister_memory(&self, vm: VmId, region: RegionHandle) -> Result<(), Error> {
        self.memory.unregister(vm, region, || self.contexts.outlast_soon())
    }

    /// Ends all regions of a VM that is going: no new mapping of them begins. Takes a lock. What is still
    /// mapped stays until a later call.
    ///
    /// # Errors
    /// [`Error::StillMapped`] with the sum of the 4 KiB units of regions that stay; [`Error::Busy`] when a
    /// session did not end in time: all of them stay.
    pub fn release_memory(&self, vm: VmId) -> Result<(), Error> {
        self.memory.release(vm, || self.contexts.outlast_soon())
    }

    /// What is known of a region. Takes a lock.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::OwnedBy`].
    pub fn region(&self, vm: VmId, region: RegionHandle) -> Result<RegionInfo, Error> {
        self.memory.info(vm, region)
    }

    /// Lets devices in the context reach the memory behind `guest`, a range inside one region of the
    /// context's owner, at `iova`; visible to hardware when it returns. Any CPU, at any time; takes no
    /// lock, and waits for hardware only where that may remember that nothing was there.
    ///
    /// The first mapping call decides whether a context maps regions or bare extents.
    ///
    /// # Errors
    /// No entry and no count changed after [`Error::NotRegistered`]; [`Error::OwnedByHost`] for a context
    /// of the host, which has no guest memory; [`Error::PageTooLarge`] when the context has only pages larger
    /// than the region's; [`Error::OtherBacking`] when it maps bare extents; and, as of [`map`](Self::map),
    /// [`Error::Stale`], [`Error::Busy`], [`Error::Misaligned`], [`Error::OutsideAperture`],
    /// [`Error::PhysicalTooWide`], [`Error::NoAccess`], [`Error::AlreadyMapped`],
    /// [`Error::NeedPages`], [`Error::Quarantined`].
    ///
    /// [`Error::Timeout`] or [`Error::Hardware`] when hardware did not confirm: the mapping stands and is
    /// counted.
    #[inline]
    pub fn map_guest(
        &self,
        context: ContextHandle,
        iova: Iova,
        guest: GuestPhysRange,
        access: Access,
    ) -> Result<(), Error> {
        let entered = self.enter(context)?;
        let context = entered.context()?;
        let hint = context.backing.by_regions()?;
        let taken = self.memory.take(hint, context.guest()?, guest)?;
        if taken.slot() != hint {
            context.backing.remember(taken.slot());
        }
        let smallest = self.driver.aperture(&context.tables).page_sizes.bits();
        if !taken.fits_pages_of(smallest & smallest.wrapping_neg()) {
            let page_size = taken.page_size();
            taken.give_back();
            return Err(Error::PageTooLarge { page_size });
        }
        self.flush_before(&context.tables, taken.extent());
        match self.driver.map(&Permit::new(), &context.tables, iova, taken.extent(), access) {
            Ok(outcome) => {
                taken.install();
                outcome.confirmed()
            }
            Err(error) => {
                taken.give_back();
                Err(error)
            }
        }
    }

    /// Unmaps and waits for hardware; then what was counted goes back.
    #[inline]
    pub(crate) fn unmap_from(
        &self,
        entered: &Entered<'_, D::Context>,
        range: IovaRange,
    ) -> Result<u64, Error> {
        let context = entered.context()?;
        if context.backing.is_extents() {
            return self.unmap_and_flush(entered, context, range, &mut Unheard);
        }
        if context.backing.may_be_entries() {
            return self.unmap_nothing(context, range);
        }
        let mut returned = Returned::new(&self.memory, &context.backing);
        let bytes = self.unmap_and_flush(entered, context, range, &mut returned)?;
        returned.give_back();
        Ok(bytes)
    }

    /// An unmap where no mapping is that it could end: refused for entries of sessions and for what could
    /// never be mapped.
    #[cold]
    #[inline(never)]
    fn unmap_nothing(&self, context: &Context<D::Context>, range: IovaRange) -> Result<u64, Error> {
        if context.backing.is_entries() {
            return Err(Error::OtherBacking);
        }
        let (aperture, start, bytes) = (self.driver.aperture(&context.tables), range.start(), range.bytes());
        let smallest = aperture.page_sizes.bits() & aperture.page_sizes.bits().wrapping_neg();
        let misaligned = |value: &u64| value & smallest.wrapping_sub(1) != 0;
        if let Some(value) = [start.as_u64(), bytes].into_iter().find(misaligned) {
            return Err(Error::Misaligned { value });
        }
        if aperture.range.contains(range) {
            Ok(0)
        } else {
            Err(Error::OutsideAperture { iova: start, bytes })
        }
    }

    #[inline(always)]
    pub(crate) fn unmap_telling<R: Removals>(
        &self,
        entered: &Entered<'_, D::Context>,
        context: &Context<D::Context>,
        range: IovaRange,
        removals: &mut R,
    ) -> Result<u64, Error> {
        let (permit, mut debts) = (Permit::new(), Debts::new());
        let bytes = self.driver.unmap(&permit, &context.tables, range, &mut debts, removals)?;
        match self.driver.flush(&permit, &context.tables, &mut debts) {
            Outcome::Done => Ok(bytes),
            Outcome::Quarantined { error } => {
                entered.state.poisoned.store(true, Ordering::Release);
                Err(error)
            }
        }
    }

    /// Ends tables that no device uses; what they still mapped is counted out.
    pub(crate) fn end_tables(&self, context: Context<D::Context>) -> Result<(), Error> {
        let mut returned = Returned::new(&self.memory, &context.backing);
        self.destroy_and_flush(context.tables, &mut returned).confirmed()?;
        match context.backing.is_entries() {
            true => returned.give_back_to_sessions(),
            false => returned.give_back(),
        }
        Ok(())
    }
}
