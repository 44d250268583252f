//! A driver whose tables are a map of pages: any CPU, any page size, and moments to stop at.
#![allow(dead_code, unused_imports, reason = "each test file uses a part")]

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

pub(crate) use portcullis_fake::memory::extent;
use portcullis_hal::{
    Access, DeviceId, DmaExtent, GuestPhysAddr, GuestPhysRange, IoPageSize, Iova, IovaRange, PhysAddr,
    PhysRange, TimedOut,
};
use portcullis_iommu::{
    Aperture, Coherency, ContextHandle, Debts, Driver, EntryDriver, Error, Exchanged, Fault, Iommu, Leaf,
    Outcome, PageSizes, Permit, Removals, Run, Target, VmId, driver::TablesChanged,
};

pub(crate) const PAGE: u64 = 4096;
pub(crate) const LARGE: u64 = 2 << 20;
/// What the entries of one table map.
pub(crate) const LEAF: u64 = 8 * PAGE;
pub(crate) const DEAD: Error = Error::Timeout(TimedOut { register: 0x88, bits: 1 });
pub(crate) const VM: VmId = VmId(1);
pub(crate) const OTHER: VmId = VmId(2);

type Hook = Mutex<Option<Box<dyn FnMut() + Send>>>;

/// The driver, and how it shall behave.
#[derive(Default)]
pub(crate) struct Pages {
    /// Hardware confirms nothing.
    pub(crate) dead: AtomicBool,
    /// New mappings are not confirmed.
    pub(crate) deaf: AtomicBool,
    /// Kills that sessions have asked for.
    pub(crate) kills: AtomicU64,
    /// Called in the middle of a map, before anything is stored.
    pub(crate) on_map: Hook,
    /// Called in the middle of a flush.
    pub(crate) on_flush: Hook,
    /// Called before a device joins.
    pub(crate) on_commit: Hook,
}

/// First address of an entry, to memory and length.
pub(crate) struct Tables {
    entries: Mutex<BTreeMap<u64, (u64, u64)>>,
    sizes: PageSizes,
}

impl Tables {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, u64)>> {
        self.entries.lock().expect("nobody panicked")
    }
}

fn call(hook: &Hook) {
    if let Some(hook) = hook.lock().expect("nobody panicked").as_mut() {
        hook();
    }
}

impl Pages {
    fn outcome(&self) -> Outcome {
        if self.dead.load(Ordering::Relaxed) { Outcome::Quarantined { error: DEAD } } else { Outcome::Done }
    }
}

impl Driver for Pages {
    type Spec = PageSizes;
    type Context = Tables;
    type Prepared = ();

    fn create(&self, _: &Permit, sizes: &PageSizes) -> Result<Tables, Error> {
        Ok(Tables { entries: Mutex::default(), sizes: *sizes })
    }

    fn destroy<R: Removals>(&self, _: &Permit, context: Tables, removals: &mut R) -> Outcome {
        let outcome = self.outcome();
        if outcome == Outcome::Done {
            for &(phys, bytes) in context.lock().values() {
                removals.removed(PhysAddr::new(phys), bytes);
            }
        }
        outcome
    }

    fn aperture(&self, context: &Tables) -> Aperture {
        let range = IovaRange::new(Iova::new(0), 1 << 48).expect("a range");
        Aperture { range, page_sizes: context.sizes }
    }

    fn prepare(&self, _: &Permit, _: &[DeviceId], _: Target<'_, Tables>) -> Result<(), Error> {
        Ok(())
    }

    fn commit(&self, _: &Permit, (): ()) -> Outcome {
        call(&self.on_commit);
        self.outcome()
    }

    fn block(&self, _: &Permit, _: &[DeviceId]) -> Outcome {
        self.outcome()
    }

    fn map(
        &self,
        _: &Permit,
        tables: &Tables,
        iova: Iova,
        to: DmaExtent,
        _: Access,
    ) -> Result<Outcome, Error> {
        call(&self.on_map);
        let (first, phys, bytes) = (iova.as_u64(), to.start().as_u64(), to.bytes());
        let outside = Error::OutsideAperture { iova, bytes };
        let last = first.checked_add(bytes - 1).filter(|&last| last < 1 << 48).ok_or(outside)?;
        let smallest = 1 << tables.sizes.bits().trailing_zeros();
        if let Some(value) = [first, phys, bytes].into_iter().find(|value| value % smallest != 0) {
            return Err(Error::Misaligned { value });
        }
        let mut entries = tables.lock();
        if let Some((&before, &(_, long))) = entries.range(..=last).next_back()
            && before + long > first
        {
            return Err(Error::AlreadyMapped { iova: Iova::new(before) });
        }
        let mut at = 0;
        while at < bytes {
            let fits = |size: &u64| ((first + at) | (phys + at)) % size == 0 && bytes - at >= *size;
            let size = tables.sizes.iter().map(|size| size.bits()).filter(fits).max().expect("aligned");
            entries.insert(first + at, (phys + at, size));
            at += size;
        }
        let deaf = self.deaf.load(Ordering::Relaxed);
        Ok(if deaf { Outcome::Quarantined { error: DEAD } } else { Outcome::Done })
    }

    fn unmap<R: Removals>(
        &self,
        _: &Permit,
        tables: &Tables,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut R,
    ) -> Result<u64, Error> {
        let (first, last) = (range.start().as_u64(), range.last().as_u64());
        let mut entries = tables.lock();
        let touched: Vec<_> = entries
            .range(..=last)
            .rev()
            .take_while(|&(&iova, &(_, bytes))| iova + (bytes - 1) >= first)
            .map(|(&iova, &entry)| (iova, entry))
            .collect();
        if let Some(&(iova, _)) =
            touched.iter().find(|&&(iova, (_, bytes))| iova < first || iova + (bytes - 1) > last)
        {
            return Err(Error::SplitsPage { iova: Iova::new(iova) });
        }
        for &(iova, (phys, bytes)) in touched.iter().rev() {
            entries.remove(&iova);
            removals.removed(PhysAddr::new(phys), bytes);
        }
        if !touched.is_empty() {
            debts.owe(Run { range, tables_changed: TablesChanged::LeavesOnly });
        }
        Ok(touched.iter().map(|&(_, (_, bytes))| bytes).sum())
    }

    fn flush(&self, permit: &Permit, _: &Tables, debts: &mut Debts) -> Outcome {
        if debts.is_empty() {
            return Outcome::Done;
        }
        call(&self.on_flush);
        let outcome = self.outcome();
        if outcome == Outcome::Done {
            debts.settle(permit);
        }
        outcome
    }

    fn iova_to_phys(&self, tables: &Tables, iova: Iova) -> Option<(PhysAddr, Access)> {
        let iova = iova.as_u64();
        let entries = tables.lock();
        let (&first, &(phys, bytes)) = entries.range(..=iova).next_back()?;
        (iova - first < bytes).then(|| (PhysAddr::new(phys + iova - first), Access::all()))
    }

    fn flush_lines(&self, _: &Permit, _: Option<PhysRange>) {}

    fn coherency(&self, _: &Tables) -> Coherency {
        Coherency::Coherent
    }

    fn enforce_cache_coherency(&self, _: &Permit, _: &Tables) -> Result<(), Error> {
        Err(Error::NoSnoopControl)
    }

    fn take_fault(&self) -> Option<Fault> {
        None
    }
}

impl EntryDriver for Pages {
    fn tables_exist(&self, _: &Tables, _: Iova, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn provide(&self, _: &Permit, _: &Tables, _: Iova, _: u64) -> Result<(), Error> {
        Ok(())
    }

    /// Entries of 4 KiB.
    fn exchange<R: Removals>(
        &self,
        _: &Permit,
        tables: &Tables,
        iova: Iova,
        bytes: u64,
        new: Option<(DmaExtent, Access)>,
        removals: &mut R,
    ) -> Result<(), Error> {
        let mut entries = tables.lock();
        for at in (0..bytes).step_by(PAGE as usize) {
            let old = match new {
                Some((to, _)) => entries.insert(iova.as_u64() + at, (to.start().as_u64() + at, PAGE)),
                None => entries.remove(&(iova.as_u64() + at)),
            };
            if let Some((phys, bytes)) = old {
                removals.removed(PhysAddr::new(phys), bytes);
            }
        }
        Ok(())
    }

    /// Tables of eight pages of 4 KiB.
    fn leaf(&self, _: &Tables, iova: Iova) -> Option<Leaf> {
        let start = iova.as_u64() & !(LEAF - 1);
        let place = (start / PAGE) as usize;
        Some(Leaf { start: Iova::new(start), bytes: LEAF, page_size: IoPageSize::SIZE_4K, place })
    }

    fn exchange_at(
        &self,
        _: &Permit,
        tables: &Tables,
        place: usize,
        new: Option<(DmaExtent, Access)>,
    ) -> Option<Option<PhysAddr>> {
        let (mut entries, iova) = (tables.lock(), place as u64 * PAGE);
        let old = match new {
            Some((to, _)) => entries.insert(iova, (to.start().as_u64(), PAGE)),
            None => entries.remove(&iova),
        };
        Some(old.map(|(phys, _)| PhysAddr::new(phys)))
    }

    fn page_bytes(&self, _: &Tables) -> u64 {
        PAGE
    }

    fn reaches(&self, _: &Tables, _: PhysAddr) -> bool {
        true
    }

    fn kill(&self, _: &Permit, _: &Tables) -> Outcome {
        self.kills.fetch_add(1, Ordering::Relaxed);
        self.outcome()
    }
}

pub(crate) type Policy = Iommu<Pages, 4, 8>;

pub(crate) fn policy() -> Policy {
    Iommu::new(Pages::default())
}

pub(crate) fn guest(start: u64, bytes: u64) -> GuestPhysRange {
    GuestPhysRange::new(GuestPhysAddr::new(start), bytes).expect("a range")
}

pub(crate) fn iovas(start: u64, bytes: u64) -> IovaRange {
    IovaRange::new(Iova::new(start), bytes).expect("a range")
}

/// A context of pages of 4 KiB and 2 MiB.
pub(crate) fn context(iommu: &Policy, vm: VmId) -> ContextHandle {
    iommu.create_context(vm, &(PageSizes::SIZE_4K | PageSizes::SIZE_2M)).expect("a context")
}

pub(crate) fn map(
    iommu: &Policy,
    context: ContextHandle,
    iova: u64,
    start: u64,
    bytes: u64,
) -> Result<(), Error> {
    iommu.map_guest(context, Iova::new(iova), guest(start, bytes), Access::all())
}

/// Units of 4 KiB that the walk from 0 finds mapped to host memory in `host`.
pub(crate) fn live(iommu: &Policy, context: ContextHandle, units: u64, host: std::ops::Range<u64>) -> u64 {
    let leads_in = |unit: &u64| {
        let found = iommu.iova_to_phys(context, Iova::new(unit * PAGE)).expect("a live context");
        found.is_some_and(|(phys, _)| host.contains(&phys.as_u64()))
    };
    (0..units).filter(leads_in).count() as u64
}
