//! A driver that does next to nothing, so that what is seen is the policy.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use portcullis_hal::{Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange};
use portcullis_iommu::{
    Aperture, Coherency, Debts, Driver, Error, Fault, Outcome, PageSizes, Permit, Removals, Run, Target,
    driver::TablesChanged,
};

/// Hardware that does everything at once.
pub struct Idle;

/// Tables with room for one mapping: where the last one led.
pub struct Last(AtomicU64);

impl Driver for Idle {
    type Spec = ();
    type Context = Last;
    type Prepared = ();

    fn create(&self, _: &Permit, (): &()) -> Result<Last, Error> {
        Ok(Last(AtomicU64::new(0)))
    }

    fn destroy<R: Removals>(&self, _: &Permit, _: Last, _: &mut R) -> Outcome {
        Outcome::Done
    }

    #[inline]
    fn aperture(&self, _: &Last) -> Aperture {
        let range = IovaRange::new(Iova::new(0), 1 << 39).expect("a range");
        Aperture { range, page_sizes: PageSizes::SIZE_4K }
    }

    fn prepare(&self, _: &Permit, _: &[DeviceId], _: Target<'_, Last>) -> Result<(), Error> {
        Ok(())
    }

    fn commit(&self, _: &Permit, (): ()) -> Outcome {
        Outcome::Done
    }

    fn block(&self, _: &Permit, _: &[DeviceId]) -> Outcome {
        Outcome::Done
    }

    #[inline]
    fn map(&self, _: &Permit, tables: &Last, _: Iova, to: DmaExtent, _: Access) -> Result<Outcome, Error> {
        tables.0.store(to.start().as_u64(), Relaxed);
        Ok(Outcome::Done)
    }

    #[inline]
    fn unmap<R: Removals>(
        &self,
        _: &Permit,
        tables: &Last,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut R,
    ) -> Result<u64, Error> {
        if R::WANTED {
            removals.removed(PhysAddr::new(tables.0.load(Relaxed)), range.bytes());
        }
        debts.owe(Run { range, tables_changed: TablesChanged::LeavesOnly });
        Ok(range.bytes())
    }

    #[inline]
    fn flush(&self, permit: &Permit, _: &Last, debts: &mut Debts) -> Outcome {
        debts.settle(permit);
        Outcome::Done
    }

    fn iova_to_phys(&self, tables: &Last, _: Iova) -> Option<(PhysAddr, Access)> {
        Some((PhysAddr::new(tables.0.load(Relaxed)), Access::all()))
    }

    fn enforce_cache_coherency(&self, _: &Permit, _: &Last) -> Result<(), Error> {
        Err(Error::NoSnoopControl)
    }

    fn flush_lines(&self, _: &Permit, _: Option<PhysRange>) {}

    fn coherency(&self, _: &Last) -> Coherency {
        Coherency::Coherent
    }

    fn take_fault(&self) -> Option<Fault> {
        None
    }
}
