//! What the policy asks of one unit.

use heapless::Vec;
use portcullis_hal::{
    Access, CacheMaintenance, Clock, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange, RegisterIo,
    TableMemory,
};
use portcullis_iommu::{
    Aperture, Because, Coherency, Debts, Driver, Error, Fault, Outcome, PageSizes, Permit, Removals, Target,
    driver::MAX_MEMBERS, driver::TablesChanged,
};

use crate::{
    fault,
    remapping::{Batch, ContextSpec, VtdContext, VtdIommu, VtdPrepared},
    second_stage::SecondStage,
    spec::{
        entries::ContextEntry,
        invalidation::{Descriptor, InvalidationHint},
    },
};

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance> Driver for VtdIommu<R, M, C, K> {
    type Spec = ContextSpec;
    type Context = VtdContext;
    type Prepared = VtdPrepared;

    fn create(&self, _: &Permit, spec: &ContextSpec) -> Result<VtdContext, Error> {
        self.unit.check_alive()?;
        let snoop = spec.coherency.witness();
        // The witness may come from another unit.
        if snoop.is_some() && self.snoop_control().is_none() {
            return Err(Error::NoSnoopControl);
        }
        let format = self.format(spec.address_bits)?;
        let domain = self.domains.take()?;
        let tables = SecondStage::new(&self.tables(), format, snoop, spec.page_limit)
            .inspect_err(|_| self.domains.give_back(domain))?;
        Ok(VtdContext { tables, domain })
    }

    fn destroy<T: Removals>(&self, _: &Permit, context: VtdContext, removals: &mut T) -> Outcome {
        let flush = Descriptor::iotlb_domain(self.unit.capability, context.domain);
        if let Err(error) = self.submit(&[flush]) {
            return Outcome::Quarantined { error };
        }
        context.tables.end(&self.tables(), removals);
        self.domains.give_back(context.domain);
        Outcome::Done
    }

    fn aperture(&self, context: &VtdContext) -> Aperture {
        let mut page_sizes = PageSizes::SIZE_4K;
        let largest = context.tables.format().largest_page;
        page_sizes.set(PageSizes::SIZE_2M, largest >= 2);
        page_sizes.set(PageSizes::SIZE_1G, largest >= 3);
        Aperture { range: context.tables.aperture(), page_sizes }
    }

    fn prepare(
        &self,
        _: &Permit,
        members: &[DeviceId],
        target: Target<'_, VtdContext>,
    ) -> Result<VtdPrepared, Error> {
        self.unit.check_alive()?;
        if let Some(&device) = members.iter().find(|device| device.segment != self.config.segment) {
            return Err(Error::NotBehindUnit { device });
        }
        if members.len() > MAX_MEMBERS {
            return Err(Error::BadMemberCount { count: members.len() });
        }
        let target = match target {
            Target::Blocked => None,
            Target::Context(VtdContext { tables, domain }) => {
                Some(ContextEntry::new(tables.root(), tables.format().levels, *domain))
            }
        };
        let members = members.iter().map(|device| device.requester).collect();
        let mut prepared = VtdPrepared { members, target, context_tables: Vec::new() };
        if prepared.target.is_some()
            && let Err(error) = self.reserve_buses(&mut prepared)
        {
            self.abandon(prepared);
            return Err(error);
        }
        Ok(prepared)
    }

    fn commit(&self, _: &Permit, mut prepared: VtdPrepared) -> Outcome {
        let _one_at_a_time = self.switching.lock();
        let tables = self.tables();
        while let Some((bus, page)) = prepared.context_tables.pop() {
            if let Some(unused) = self.devices.add_bus(&tables, bus, page) {
                self.pool.give_back(unused);
            }
        }
        let blocked = self.block_members(prepared.members.iter().copied());
        let switched = blocked.and_then(|()| match prepared.target {
            None => Ok(()),
            Some(entry) => self.join_members(&prepared.members, entry),
        });
        if switched.is_err() {
            // Hardware does not answer any more; what it has not cached yet stays closed.
            let _ = self.block_members(prepared.members.iter().copied());
        }
        Outcome::from(switched)
    }

    fn block(&self, _: &Permit, members: &[DeviceId]) -> Outcome {
        let _one_at_a_time = self.switching.lock();
        let ours = members.iter().filter(|device| device.segment == self.config.segment);
        Outcome::from(self.block_members(ours.map(|device| device.requester)))
    }

    /// Beyond what the boundary asks: [`Error::Busy`] when another CPU works on the same 2 MiB for
    /// long. `Quarantined` only of units with CAP.CM or CAP.RWBF.
    // Into each of the policy's calls: the common page costs no call and no result in memory.
    #[inline(always)]
    fn map(
        &self,
        _: &Permit,
        context: &VtdContext,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<Outcome, Error> {
        self.unit.check_alive()?;
        context.tables.map(&self.tables(), iova, extent, access)?;
        let capability = self.unit.capability;
        if capability.caching_mode() || capability.needs_write_buffer_flush() {
            return Ok(self.announce(context, iova, extent.bytes()).into());
        }
        Ok(Outcome::Done)
    }

    #[inline]
    fn unmap<T: Removals>(
        &self,
        _: &Permit,
        context: &VtdContext,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut T,
    ) -> Result<u64, Error> {
        self.unit.check_alive()?;
        let bytes = context.tables.take_out(&self.tables(), range, removals)?;
        if bytes > 0 {
            // Tables stay in the tree until the context ends.
            debts.owe(portcullis_iommu::Run { range, tables_changed: TablesChanged::LeavesOnly });
        }
        Ok(bytes)
    }

    fn flush(&self, permit: &Permit, context: &VtdContext, debts: &mut Debts) -> Outcome {
        if debts.is_empty() {
            return Outcome::Done;
        }
        let whole = Descriptor::iotlb_domain(self.unit.capability, context.domain);
        let mut batch = Batch::new();
        for run in debts.runs().unwrap_or_default() {
            let hint = match run.tables_changed {
                TablesChanged::LeavesOnly => InvalidationHint::LeavesOnly,
                TablesChanged::NonLeaves => InvalidationHint::TablesToo,
            };
            let _ = batch.push(self.invalidate_range(context.domain, run.range, hint));
        }
        if debts.runs().is_none() || batch.contains(&whole) {
            batch.clear();
            let _ = batch.push(whole);
        }
        let result = self.submit(&batch);
        if result.is_ok() {
            debts.settle(permit);
        }
        Outcome::from(result)
    }

    fn flush_lines(&self, _: &Permit, memory: Option<PhysRange>) {
        match memory {
            Some(memory) => self.cache.flush(memory),
            None => self.cache.flush_everything(),
        }
    }

    fn iova_to_phys(&self, context: &VtdContext, iova: Iova) -> Option<(PhysAddr, Access)> {
        context.tables.lookup(&self.tables(), iova)
    }

    fn enforce_cache_coherency(&self, _: &Permit, context: &VtdContext) -> Result<(), Error> {
        self.unit.check_alive()?;
        let witness = self.snoop_control().ok_or(Error::NoSnoopControl)?;
        context.tables.enforce_snoop(&self.tables(), witness)
    }

    #[inline]
    fn coherency(&self, context: &VtdContext) -> Coherency {
        if context.tables.is_coherent() {
            return Coherency::Coherent;
        }
        let because =
            if self.snoop_control().is_some() { Because::NotEnforced } else { Because::NoSnoopControl };
        Coherency::NonCoherent { because }
    }

    fn take_fault(&self) -> Option<Fault> {
        let mut next = self.fault_log.lock();
        fault::take(&self.unit, self.config.segment, &mut next)
    }
}
