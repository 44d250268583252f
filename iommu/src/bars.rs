//! Registers of devices (BARs) as targets of DMA: peer to peer.

use const_fn::const_fn;
use portcullis_hal::{
    Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange, array_of,
    sync::{AtomicU64, Ordering},
};

use crate::{
    context::{ContextHandle, Slot, SlotState},
    driver::{Driver, Outcome, Permit},
    error::Error,
    operate::AtOnce,
    ownership::{Answer, BarMapping, Request},
    policy::Iommu,
};

/// BARs that one [`Iommu`] knows.
pub const BARS: usize = 64;

/// Where BARs are, for callers without the lock. It may name memory that is a BAR no more, so whoever
/// finds something here asks again under the lock.
#[derive(Debug)]
pub(crate) struct Bars {
    /// From the lowest to the highest address that was ever a BAR: memory is mostly far from it, so that
    /// one look suffices.
    hull: Bar,
    each: [Bar; BARS],
}

/// First and last address; empty when the first is larger.
#[derive(Debug)]
struct Bar {
    first: AtomicU64,
    last: AtomicU64,
}

impl Bar {
    #[const_fn(cfg(not(loom)))]
    const fn empty() -> Self {
        Self { first: AtomicU64::new(u64::MAX), last: AtomicU64::new(0) }
    }

    #[inline]
    fn is_in(&self, first: u64, last: u64) -> bool {
        self.first.load(Ordering::Acquire) <= last && first <= self.last.load(Ordering::Relaxed)
    }

    fn is(&self, range: PhysRange) -> bool {
        self.first.load(Ordering::Relaxed) == range.start().as_u64()
            && self.last.load(Ordering::Relaxed) == range.last().as_u64()
    }

    /// Makes it longer, so that `range` is in it. Called with the lock held.
    fn reach_over(&self, range: PhysRange) {
        let last = self.last.load(Ordering::Relaxed).max(range.last().as_u64());
        self.last.store(last, Ordering::Relaxed);
        let first = self.first.load(Ordering::Relaxed).min(range.start().as_u64());
        self.first.store(first, Ordering::Release);
    }

    fn set(&self, range: PhysRange) {
        self.first.store(u64::MAX, Ordering::Release);
        self.last.store(range.last().as_u64(), Ordering::Relaxed);
        self.first.store(range.start().as_u64(), Ordering::Release);
    }
}

impl Bars {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self { hull: Bar::empty(), each: array_of![Bar::empty(); BARS] }
    }

    /// Whether some of this memory may be a BAR.
    fn may_hold(&self, start: PhysAddr, bytes: u64) -> bool {
        let first = start.as_u64();
        let last = first.saturating_add(bytes.saturating_sub(1));
        self.each.iter().any(|bar| bar.is_in(first, last))
    }

    /// Whether it is memory as most memory is: no BAR is anywhere near.
    #[inline]
    fn are_far_from(&self, start: PhysAddr, bytes: u64) -> bool {
        let first = start.as_u64();
        !self.hull.is_in(first, first.saturating_add(bytes))
    }

    /// Notes `range` in the place of one that is not `known` any more. Called with the lock held.
    fn note(&self, range: PhysRange, known: impl Fn(&Bar) -> bool) -> Result<(), Error> {
        let full = Error::Full { capacity: BARS };
        let free = self.each.iter().find(|bar| !known(bar)).ok_or(full)?;
        self.hull.reach_over(range);
        free.set(range);
        Ok(())
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    /// Notes registers of a device at fixed addresses (a BAR), so that only the owner of its group maps
    /// them. For the hypervisor's control plane, before anything is mapped there: what a bare extent leads to already
    /// is not looked for. Takes a lock.
    ///
    /// # Errors
    /// [`Error::UnknownDevice`], [`Error::IsBar`] with the device whose BAR overlaps it,
    /// [`Error::Overlaps`] with registered memory, [`Error::Full`].
    pub fn declare_bar(&self, device: DeviceId, range: PhysRange) -> Result<(), Error> {
        let ownership = &mut self.control.lock().ownership;
        if let Some(region) = self.memory.region_in(range) {
            return Err(Error::Overlaps { region });
        }
        // A place that is noted in vain, because the rest is refused, is free for the next one.
        if ownership.bar_in(range).is_none() {
            self.bars.note(range, |noted| ownership.bars().any(|bar| noted.is(bar.range)))?;
        }
        ownership.declare_bar(device, range)
    }

    /// Lets devices in the context reach `extent`, a BAR of `device` or a part of it, at `iova`. The
    /// context must be of the owner of the device's group. When that ownership ends, in whatever way, the
    /// mapping is taken out and hardware has forgotten it before anybody else gets the group. Until then the context
    /// is not destroyed, and [`unmap`](Self::unmap) refuses these addresses. Takes a lock, not while hardware works.
    ///
    /// # Errors
    /// [`Error::ForeignBar`] for another owner's device or nobody's, [`Error::UnknownBar`],
    /// [`Error::Stale`], [`Error::Busy`], [`Error::Quarantined`], [`Error::Ending`], [`Error::Full`], or what
    /// the driver says: nothing changed. [`Error::Timeout`] when hardware did not confirm: the mapping stands.
    pub fn map_bar(
        &self,
        context: ContextHandle,
        iova: Iova,
        device: DeviceId,
        extent: DmaExtent,
        access: Access,
    ) -> Result<(), Error> {
        let outside = Error::OutsideAperture { iova, bytes: extent.bytes() };
        let iova = IovaRange::new(iova, extent.bytes()).map_err(|_| outside)?;
        self.run(Request::MapBar { context, device, iova, extent, access }, &mut AtOnce).map(drop)
    }

    /// Ends one mapping of a BAR: `range` is all of it. When it returns, no device reaches it any more.
    ///
    /// # Errors
    /// [`Error::UnknownBar`], [`Error::Stale`], [`Error::Busy`], [`Error::Quarantined`]: nothing changed.
    /// [`Error::Timeout`] when hardware did not confirm: the group of the BAR is quarantined.
    pub fn unmap_bar(&self, context: ContextHandle, range: IovaRange) -> Result<(), Error> {
        self.run(Request::UnmapBar { context, iova: range }, &mut AtOnce).map(drop)
    }

    /// Refuses memory that is a BAR.
    #[inline]
    pub(crate) fn no_bar(&self, extent: DmaExtent) -> Result<(), Error> {
        if self.bars.are_far_from(extent.start(), extent.bytes()) {
            Ok(())
        } else {
            self.look_for_bar(extent)
        }
    }

    #[cold]
    fn look_for_bar(&self, extent: DmaExtent) -> Result<(), Error> {
        if !self.bars.may_hold(extent.start(), extent.bytes()) {
            return Ok(());
        }
        let Ok(range) = PhysRange::new(extent.start(), extent.bytes()) else { return Ok(()) };
        match self.control.lock().ownership.bar_in(range) {
            Some(bar) => Err(Error::IsBar { device: bar.device }),
            None => Ok(()),
        }
    }

    /// Refuses addresses at which a BAR is mapped.
    #[inline]
    pub(crate) fn no_bar_mapped(
        &self,
        slot: &SlotState,
        context: ContextHandle,
        range: IovaRange,
    ) -> Result<(), Error> {
        if slot.leads_to_bars.load(Ordering::Relaxed) { self.look_for_bar_at(context, range) } else { Ok(()) }
    }

    #[cold]
    fn look_for_bar_at(&self, context: ContextHandle, range: IovaRange) -> Result<(), Error> {
        match self.control.lock().ownership.bar_mapped_in(context.slot as usize, range) {
            Some(device) => Err(Error::IsBar { device }),
            None => Ok(()),
        }
    }

    pub(crate) fn install_bar(
        &self,
        slot: &Slot<'_, D::Context, CPUS>,
        mapping: BarMapping,
        extent: DmaExtent,
        access: Access,
    ) -> Answer {
        slot.state().leads_to_bars.store(true, Ordering::Relaxed);
        let inside = slot.0.enter();
        let context = inside.as_ref().and_then(|inside| inside.as_ref());
        let Some(context) = context else { return Answer::Refused(Error::Busy) };
        if let Err(error) = context.backing.admit_bar() {
            return Answer::Refused(error);
        }
        match self.driver.map(&Permit::new(), &context.tables, mapping.iova.start(), extent, access) {
            Ok(Outcome::Done) => Answer::Done,
            Ok(Outcome::Quarantined { error }) => Answer::Failed(error),
            Err(error) => Answer::Refused(error),
        }
    }

    pub(crate) fn remove_bar(&self, slot: &Slot<'_, D::Context, CPUS>, mapping: BarMapping) -> Answer {
        let entered = match slot.enter_again(mapping.context as u32) {
            Ok(entered) => entered,
            Err(error) => return Answer::Failed(error),
        };
        self.unmap_from(&entered, mapping.iova).map_or_else(Answer::Failed, |_| Answer::Done)
    }
}
