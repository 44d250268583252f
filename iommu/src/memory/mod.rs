//! Registered guest memory: which host memory is behind a guest's addresses, and how often devices can
//! reach it.
//!
//! A VM's guest-physical ranges are registered with the host memory behind them, and from then on its
//! devices are pointed at guest addresses. Each region counts the 4 KiB units that tables map of it, and
//! is given back only when none is left.
//!
//! # Concurrency
//! Registering and unregistering take a lock. Looking up and counting take none and wait for nobody:
//! regions are found by binary search in an order that is published beside a version; a search that met
//! a change looks through the slots, in which a live region stays where it is.

mod calls;
mod ending;
mod order;
mod owed;
mod region;
mod returned;
mod seen;
mod shards;
mod tokens;

use const_fn::const_fn;
use portcullis_hal::{
    DmaExtent, GuestPhysAddr, GuestPhysRange, IoPageSize, PhysAddr, PhysRange, array_of,
    sync::{AtomicU32, AtomicU64, Mutex, Ordering, fence},
};

use self::{
    order::Order,
    region::{Counted, Region, Seen},
    tokens::UNIT,
};
pub use self::{
    owed::Owed,
    seen::{RegionPart, SeenRegion},
};
pub(crate) use self::{shards::Shard, tokens::Tokens};
use crate::{error::Error, group::VmId};

/// Regions that one [`Iommu`](crate::Iommu) holds, of all VMs together. One for the model checker,
/// which tracks every word.
pub const REGIONS: usize = if cfg!(loom) { 1 } else { 64 };

/// Names a registered region: slot and generation. A handle that outlived its region is stale for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct RegionHandle {
    slot: u32,
    generation: u32,
}

impl RegionHandle {
    /// The slot that the handle names: a number for people; it says nothing without the generation.
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

/// A registered region, as it was when it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// What the guest calls it.
    pub guest: GuestPhysRange,
    /// First address of the host memory behind it.
    pub host: PhysAddr,
    /// The smallest of the alignments of both addresses and the length. Contexts with larger pages
    /// cannot map the region.
    pub page_size: IoPageSize,
    /// Units of 4 KiB that tables map of it, each as often as it is mapped.
    pub mapped: u64,
}

/// The registered regions of all VMs.
#[derive(Debug)]
pub(crate) struct RegisteredMemory<const N: usize, const CPUS: usize> {
    regions: [Region; N],
    /// Held by whoever registers or unregisters.
    control: Mutex<()>,
    /// Odd while the orders are being changed.
    version: AtomicU32,
    /// By owner and guest address.
    by_guest: Order<N>,
    /// By host address.
    by_host: Order<N>,
    /// What sessions count, by CPU.
    shards: [Shard<N>; CPUS],
    /// What the control plane counted out of entries that sessions had made: 0 or below, wrapping.
    balance: [AtomicU64; N],
}

/// Units counted in for one mapping, and the memory that it may lead to.
#[must_use = "tokens are installed or go back to their region"]
pub(crate) struct Taken<'m> {
    region: &'m Region,
    slot: u32,
    counted: Counted,
}

impl<const N: usize, const CPUS: usize> RegisteredMemory<N, CPUS> {
    #[const_fn(cfg(not(loom)))]
    pub(crate) const fn new() -> Self {
        Self {
            regions: array_of![Region::new(); N],
            control: Mutex::new(()),
            version: AtomicU32::new(0),
            by_guest: Order::new(),
            by_host: Order::new(),
            shards: array_of![Shard::new(); CPUS],
            balance: array_of![AtomicU64::new(0); N],
        }
    }

    fn register(&self, vm: VmId, guest: GuestPhysRange, extent: DmaExtent) -> Result<RegionHandle, Error> {
        let seen = check(Seen { owner: vm, guest, extent })?;
        let _control = self.control.lock();
        if let Some(region) = self.clash(&seen) {
            return Err(Error::Overlaps { region });
        }
        let (slot, region) =
            self.slots().find(|(_, region)| region.see().is_none()).ok_or(Error::Full { capacity: N })?;
        if !region.fill(seen) {
            return Err(Error::Busy);
        }
        self.reorder(|| {
            let start = guest.start();
            self.by_guest.insert(slot, |other| self.is(other, |other| other.ends_before_guest(vm, start)));
            self.by_host.insert(slot, |other| self.is(other, |other| other.ends_before_host(extent.start())));
        });
        Ok(RegionHandle { slot, generation: region.generation() })
    }

    fn info(&self, vm: VmId, handle: RegionHandle) -> Result<RegionInfo, Error> {
        let _control = self.control.lock();
        let (region, seen) = self.named(vm, handle)?;
        Ok(RegionInfo {
            guest: seen.guest,
            host: seen.extent.start(),
            page_size: seen.page_size(),
            mapped: self.mapped(handle.slot, region),
        })
    }

    fn named(&self, vm: VmId, handle: RegionHandle) -> Result<(&Region, Seen), Error> {
        let stale = Error::Stale { slot: handle.slot };
        let region = self.regions.get(handle.slot as usize).ok_or(stale)?;
        if region.generation() != handle.generation {
            return Err(stale);
        }
        let seen = region.see().ok_or(stale)?;
        if seen.owner == vm { Ok((region, seen)) } else { Err(Error::OwnedBy { owner: seen.owner }) }
    }

    /// A region of the same VM that shares guest addresses, or of any VM that shares host memory.
    fn clash(&self, new: &Seen) -> Option<RegionHandle> {
        let clashes = |old: Seen| {
            let guest = old.owner == new.owner && old.guest.overlaps(new.guest);
            guest || old.host().zip(new.host()).is_some_and(|(old, new)| old.overlaps(new))
        };
        self.slots()
            .find(|(_, region)| region.see().is_some_and(clashes))
            .map(|(slot, region)| RegionHandle { slot, generation: region.generation() })
    }

    /// A region of any VM that holds some of this memory.
    pub(crate) fn region_in(&self, range: PhysRange) -> Option<RegionHandle> {
        let mut regions = self.slots();
        regions
            .find(|(_, region)| region.host().is_some_and(|host| host.overlaps(range)))
            .map(|(slot, region)| RegionHandle { slot, generation: region.generation() })
    }

    /// Changes the orders; searches notice.
    fn reorder(&self, change: impl FnOnce()) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        change();
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Counts the pages of `guest` in, for a mapping of it; `hint` is a slot to look at first.
    #[inline]
    pub(crate) fn take(&self, hint: u32, vm: VmId, guest: GuestPhysRange) -> Result<Taken<'_>, Error> {
        match self.take_at(hint, vm, guest) {
            Some(taken) => Ok(taken),
            None => self.take_anywhere(vm, guest),
        }
    }

    #[inline(never)]
    fn take_anywhere(&self, vm: VmId, guest: GuestPhysRange) -> Result<Taken<'_>, Error> {
        let start = guest.start();
        if let Some(value) = [start.as_u64(), guest.bytes()].into_iter().find(|value| value % UNIT != 0) {
            return Err(Error::Misaligned { value });
        }
        let taken = self.find(vm, start, |slot| self.take_at(slot, vm, guest));
        taken.ok_or_else(|| self.why_not(vm, guest))
    }

    #[inline]
    fn take_at(&self, slot: u32, vm: VmId, guest: GuestPhysRange) -> Option<Taken<'_>> {
        let region = self.regions.get(slot as usize)?;
        if !guest.is_aligned(IoPageSize::SIZE_4K) {
            return None;
        }
        Some(Taken { region, slot, counted: region.take(vm, guest)? })
    }

    /// The memory of the region in a slot, if it is open: then it does not end before the caller's session.
    #[inline(always)]
    fn open_extent(&self, slot: u32) -> Option<DmaExtent> {
        self.regions.get(slot as usize)?.open_extent()
    }

    /// Whether the region in a slot holds all of this host memory.
    #[inline(always)]
    fn holds(&self, slot: u32, start: PhysAddr, bytes: u64) -> bool {
        let part =
            |extent: DmaExtent| extent.part(start.as_u64().wrapping_sub(extent.start().as_u64()), bytes);
        self.regions.get(slot as usize).and_then(Region::extent).and_then(part).is_some()
    }

    /// The first region, in the order of host memory, that does not end before `address`. Exact for
    /// regions that are counted into all the while.
    fn region_from(&self, address: PhysAddr) -> Option<(u32, PhysRange)> {
        let found = self.search(&self.by_host, |region| region.ends_before_host(address));
        if let Ok(None) = found {
            return None;
        }
        let found = found.ok().flatten().and_then(|slot| Some((slot, self.host_of(slot)?)));
        found.or_else(|| {
            let hosts = self.slots().filter_map(|(slot, _)| Some((slot, self.host_of(slot)?)));
            hosts.filter(|(_, host)| host.last() >= address).min_by_key(|(_, host)| host.start())
        })
    }

    /// Calls `act` with each region that holds some of this memory: its slot, and how many bytes.
    fn each_region(&self, start: PhysAddr, bytes: u64, mut act: impl FnMut(u32, u64)) {
        let mut left = PhysRange::new(start, bytes).ok();
        while let Some(range) = left {
            let Some((slot, host)) = self.region_from(range.start()) else { return };
            let first = range.start().max(host.start());
            let last = range.last().min(host.last());
            let Some(more) = last.as_u64().checked_sub(first.as_u64()) else { return };
            act(slot, more.wrapping_add(1));
            left = last.checked_add(1).and_then(|next| {
                let rest = range.last().as_u64().checked_sub(next.as_u64())?;
                PhysRange::new(next, rest.wrapping_add(1)).ok()
            });
        }
    }

    /// Counts units out of the region in a slot.
    #[inline]
    fn give_back(&self, slot: u32, tokens: Tokens) {
        match self.regions.get(slot as usize) {
            Some(region) => region.give_back(tokens),
            None => tokens.install(),
        }
    }

    /// Counts units out that sessions have counted in.
    fn balance(&self, slot: u32, tokens: &Tokens) {
        if let Some(balance) = self.balance.get(slot as usize) {
            balance.fetch_sub(tokens.count(), Ordering::Release);
        }
    }

    /// The shard of a CPU.
    pub(crate) fn shard(&self, cpu: usize) -> Option<&Shard<N>> {
        self.shards.get(cpu)
    }

    /// What `look` finds at the region that may hold the VM's address; where the orders are changing, at
    /// any region.
    fn find<T>(&self, vm: VmId, start: GuestPhysAddr, look: impl Fn(u32) -> Option<T>) -> Option<T> {
        match self.search(&self.by_guest, |region| region.ends_before_guest(vm, start)) {
            Ok(found) => found.and_then(look),
            Err(Reordered) => self.slots().find_map(|(slot, _)| look(slot)),
        }
    }

    /// Why no open region holds a guest range.
    #[cold]
    fn why_not(&self, vm: VmId, guest: GuestPhysRange) -> Error {
        let deciding =
            |slot| self.is(slot, |region| region.is_deciding() && region.holds(vm, guest)).then_some(());
        match self.find(vm, guest.start(), deciding) {
            Some(()) => Error::Busy,
            None => Error::NotRegistered { guest },
        }
    }

    #[inline]
    fn search(
        &self,
        order: &Order<N>,
        is_before: impl Fn(&Region) -> bool,
    ) -> Result<Option<u32>, Reordered> {
        let version = self.version.load(Ordering::Acquire);
        let found = order.search(|slot| self.is(slot, &is_before));
        fence(Ordering::Acquire);
        let settled = version & 1 == 0 && self.version.load(Ordering::Relaxed) == version;
        if settled { Ok(found) } else { Err(Reordered) }
    }

    fn host_of(&self, slot: u32) -> Option<PhysRange> {
        self.regions.get(slot as usize)?.host()
    }

    #[inline]
    fn is(&self, slot: u32, holds: impl Fn(&Region) -> bool) -> bool {
        self.regions.get(slot as usize).is_some_and(holds)
    }

    fn slots(&self) -> impl Iterator<Item = (u32, &Region)> {
        (0..).zip(&self.regions)
    }
}

/// The orders changed during a search.
struct Reordered;

/// Checks what does not depend on other regions.
fn check(seen: Seen) -> Result<Seen, Error> {
    let (guest, host) = (seen.guest.bytes(), seen.extent.bytes());
    if guest != host {
        return Err(Error::SizesDiffer { guest, host });
    }
    let numbers = [seen.guest.start().as_u64(), seen.extent.start().as_u64(), host];
    match numbers.into_iter().find(|number| number % UNIT != 0) {
        Some(value) => Err(Error::Misaligned { value }),
        None => Ok(seen),
    }
}

impl Taken<'_> {
    /// The memory that the mapping may lead to.
    #[inline]
    pub(crate) const fn extent(&self) -> DmaExtent {
        self.counted.part
    }

    #[inline]
    pub(crate) const fn slot(&self) -> u32 {
        self.slot
    }

    /// Whether a context whose smallest page has so many bytes can map the region.
    #[inline]
    pub(crate) const fn fits_pages_of(&self, bytes: u64) -> bool {
        self.counted.alignment & bytes.wrapping_sub(1) == 0
    }

    /// The largest page of the region.
    pub(crate) fn page_size(&self) -> IoPageSize {
        region::page_size(self.counted.alignment)
    }

    /// The mapping exists.
    #[inline]
    pub(crate) fn install(self) {
        self.counted.tokens.install();
    }

    /// There will be no mapping.
    #[inline]
    pub(crate) fn give_back(self) {
        self.region.give_back(self.counted.tokens);
    }
}
