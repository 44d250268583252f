//! The smallest hardware, on the model checker's atomics: one device, contexts of one entry.
//!
//! Its accesses are relaxed: what one CPU must see of another, the policy has to order.

#![allow(dead_code, reason = "each test file uses a part")]

use std::time::Duration;

use loom::{
    sync::{
        Arc,
        atomic::{
            AtomicU32,
            Ordering::{Relaxed, Release},
        },
    },
    thread,
};
use portcullis_fake::obedient::ObedientFunctions;
use portcullis_hal::{
    Access, Clock, DeviceId, DmaExtent, IoPageSize, Iova, IovaRange, PhysAddr, PhysRange, RequesterId,
    Segment,
};
use portcullis_iommu::{
    Aperture, Claim, Coherency, ContextHandle, Debts, Driver, EntryDriver, Error, Fault, GroupId, Iommu,
    Leaf, Outcome, PageSizes, Permit, Removals, Target, VmId, pci::Method,
};

pub(crate) const VM: VmId = VmId(1);
pub(crate) const OTHER: VmId = VmId(2);
pub(crate) const PAGE: u64 = 4096;
/// What a context leads to that nothing was mapped in.
pub(crate) const EMPTY: u32 = 0;
/// Where hardware leads while devices are blocked.
pub(crate) const BLOCKED: u32 = 0;

pub(crate) type Policy = Iommu<Small, 1, 2>;

/// Hardware, as a device and a bystander see it.
pub(crate) struct Small {
    /// The context that the device reaches, by number.
    pub(crate) reached: AtomicU32,
    /// Invalidations that were confirmed.
    pub(crate) flushed: AtomicU32,
    /// Contexts that were made.
    pub(crate) made: AtomicU32,
    /// Contexts that were given back.
    pub(crate) destroyed: AtomicU32,
    /// The entry of the last context that was given back, at that moment.
    pub(crate) left: AtomicU32,
    /// The entry of the last context that the device joined, at that moment.
    pub(crate) found: AtomicU32,
}

/// A context of one entry.
pub(crate) struct Tables {
    number: u32,
    entry: AtomicU32,
    coherency: Coherency,
}

impl Small {
    /// Hardware on which somebody left the device running.
    fn running() -> Self {
        Self {
            reached: AtomicU32::new(9),
            flushed: AtomicU32::new(0),
            made: AtomicU32::new(0),
            destroyed: AtomicU32::new(0),
            left: AtomicU32::new(EMPTY),
            found: AtomicU32::new(EMPTY),
        }
    }
}

/// Empties the entry; what was in it.
fn clear<R: Removals>(tables: &Tables, removals: &mut R) -> u32 {
    // Nobody else changes it meanwhile. A load is what finds a change that was not seen.
    let entry = tables.entry.load(Relaxed);
    tables.entry.store(EMPTY, Relaxed);
    if entry != EMPTY {
        removals.removed(PhysAddr::new(u64::from(entry) * PAGE), PAGE);
    }
    entry
}

impl Driver for Small {
    type Spec = Coherency;
    type Context = Tables;
    type Prepared = u32;

    fn create(&self, _: &Permit, spec: &Coherency) -> Result<Tables, Error> {
        let number = self.made.fetch_add(1, Relaxed) + 1;
        Ok(Tables { number, entry: AtomicU32::new(EMPTY), coherency: *spec })
    }

    fn destroy<R: Removals>(&self, _: &Permit, context: Tables, removals: &mut R) -> Outcome {
        assert_ne!(
            self.reached.load(Relaxed),
            context.number,
            "tables were given back that a device reaches"
        );
        self.left.store(clear(&context, removals), Relaxed);
        self.destroyed.fetch_add(1, Relaxed);
        Outcome::Done
    }

    fn aperture(&self, _: &Tables) -> Aperture {
        let range = IovaRange::new(Iova::new(0), 1 << 39).expect("a range");
        Aperture { range, page_sizes: PageSizes::SIZE_4K }
    }

    fn prepare(&self, _: &Permit, _: &[DeviceId], target: Target<'_, Tables>) -> Result<u32, Error> {
        match target {
            Target::Context(tables) => {
                self.found.store(tables.entry.load(Relaxed), Relaxed);
                Ok(tables.number)
            }
            Target::Blocked => Ok(BLOCKED),
        }
    }

    fn commit(&self, _: &Permit, prepared: u32) -> Outcome {
        // A device acts after what was done before its driver let it.
        self.reached.store(prepared, Release);
        Outcome::Done
    }

    fn block(&self, _: &Permit, _: &[DeviceId]) -> Outcome {
        self.reached.store(BLOCKED, Relaxed);
        Outcome::Done
    }

    fn map(&self, _: &Permit, to: &Tables, _: Iova, extent: DmaExtent, _: Access) -> Result<Outcome, Error> {
        to.entry.store((extent.start().as_u64() / PAGE) as u32, Relaxed);
        Ok(Outcome::Done)
    }

    fn unmap<R: Removals>(
        &self,
        _: &Permit,
        of: &Tables,
        _: IovaRange,
        _: &mut Debts,
        removals: &mut R,
    ) -> Result<u64, Error> {
        Ok(if clear(of, removals) == EMPTY { 0 } else { PAGE })
    }

    fn flush(&self, permit: &Permit, _: &Tables, debts: &mut Debts) -> Outcome {
        self.flushed.fetch_add(1, Relaxed);
        debts.settle(permit);
        Outcome::Done
    }

    fn iova_to_phys(&self, context: &Tables, _: Iova) -> Option<(PhysAddr, Access)> {
        let entry = context.entry.load(Relaxed);
        (entry != EMPTY).then(|| (PhysAddr::new(u64::from(entry) * PAGE), Access::READ))
    }

    fn enforce_cache_coherency(&self, _: &Permit, _: &Tables) -> Result<(), Error> {
        Err(Error::NoSnoopControl)
    }

    fn flush_lines(&self, _: &Permit, _: Option<PhysRange>) {}

    fn coherency(&self, context: &Tables) -> Coherency {
        context.coherency
    }

    fn take_fault(&self) -> Option<Fault> {
        None
    }
}

impl EntryDriver for Small {
    fn tables_exist(&self, _: &Tables, _: Iova, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn provide(&self, _: &Permit, _: &Tables, _: Iova, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn exchange<R: Removals>(
        &self,
        _: &Permit,
        tables: &Tables,
        _: Iova,
        _: u64,
        new: Option<(DmaExtent, Access)>,
        removals: &mut R,
    ) -> Result<(), Error> {
        clear(tables, removals);
        let entry = new.map_or(EMPTY, |(extent, _)| (extent.start().as_u64() / PAGE) as u32);
        tables.entry.store(entry, Relaxed);
        Ok(())
    }

    fn leaf(&self, _: &Tables, _: Iova) -> Option<Leaf> {
        Some(Leaf { start: Iova::new(0), bytes: PAGE, page_size: IoPageSize::SIZE_4K, place: 0 })
    }

    fn exchange_at(
        &self,
        _: &Permit,
        tables: &Tables,
        _: usize,
        new: Option<(DmaExtent, Access)>,
    ) -> Option<Option<PhysAddr>> {
        let entry = new.map_or(EMPTY, |(extent, _)| (extent.start().as_u64() / PAGE) as u32);
        let old = tables.entry.load(Relaxed);
        tables.entry.store(entry, Relaxed);
        Some((old != EMPTY).then(|| PhysAddr::new(u64::from(old) * PAGE)))
    }

    fn page_bytes(&self, _: &Tables) -> u64 {
        PAGE
    }

    fn reaches(&self, _: &Tables, _: PhysAddr) -> bool {
        true
    }

    fn kill(&self, _: &Permit, _: &Tables) -> Outcome {
        self.flushed.fetch_add(1, Relaxed);
        Outcome::Done
    }
}

/// A clock that never reaches a deadline: a wait that another CPU could hold up for ever fails the model
/// by exceeding its branches.
pub(crate) struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

/// A machine with one group of one device, granted to both VMs.
pub(crate) fn machine() -> (Arc<Policy>, GroupId) {
    let (iommu, group) = machine_of();
    (Arc::new(iommu), group)
}

/// The same with seats for so many CPUs.
pub(crate) fn machine_of<const CPUS: usize>() -> (Iommu<Small, 1, 2, CPUS>, GroupId) {
    let iommu = Iommu::new(Small::running());
    let group = iommu.add_group(&[device()]).expect("a group");
    iommu.grant(VM, group).expect("a grant");
    iommu.grant(OTHER, group).expect("a grant");
    (iommu, group)
}

/// As [`machine`], with the group attached to a context of `coherency` of the first VM. The claim is never
/// given up: it is for revocation to end.
pub(crate) fn attached(coherency: Coherency) -> (Arc<Policy>, GroupId, ContextHandle) {
    let (iommu, group) = machine();
    let context = iommu.create_context(VM, &coherency).expect("a context");
    let mut claim = iommu.claim(VM, group).expect("a claim");
    attach(&mut claim, context);
    std::mem::forget(claim);
    (iommu, group, context)
}

pub(crate) fn attach<const CPUS: usize>(claim: &mut Claim<'_, Small, 1, 2, CPUS>, context: ContextHandle) {
    let limit = Duration::from_millis(1);
    let quiet = claim.quiesce(&ObedientFunctions, &Stopped, Method::BusMasterOff, limit);
    claim.attach(context, quiet.expect("a proof")).expect("an attach");
}

pub(crate) fn device() -> DeviceId {
    DeviceId { segment: Segment(0), requester: RequesterId::new(1) }
}

/// Another CPU.
pub(crate) fn cpu<T: 'static>(
    iommu: &Arc<Policy>,
    act: impl FnOnce(&Policy) -> T + 'static,
) -> thread::JoinHandle<T> {
    let iommu = iommu.clone();
    thread::spawn(move || act(&iommu))
}
