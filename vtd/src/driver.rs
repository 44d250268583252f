//! What the policy asks of the units.

use heapless::Vec;
use portcullis_hal::{
    Access, CacheMaintenance, Clock, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange, RegisterIo,
    TableMemory,
    sync::{Ordering, fence},
};
use portcullis_iommu::{
    Aperture, Coherency, Debts, Driver, Error, Fault, Outcome, PageSizes, Permit, Removals, Run, Target,
    driver::{MAX_MEMBERS, TablesChanged},
};

use crate::{
    context::{ContextSpec, VtdContext, VtdPrepared},
    remapping::VtdIommu,
    remapping_unit::RemappingUnit,
    second_stage::SecondStage,
};

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance, const UNITS: usize> Driver
    for VtdIommu<R, M, C, K, UNITS>
{
    type Spec = ContextSpec;
    type Context = VtdContext;
    type Prepared = VtdPrepared;

    fn create(&self, _: &Permit, spec: &ContextSpec) -> Result<VtdContext, Error> {
        let units = self.units_for(spec)?;
        let format = self.format(units, spec.address_bits)?;
        let (needs, snoop) = (self.needs(units), self.snoop_of(units, spec.coherency));
        let domain = self.domains.take()?;
        let tables = SecondStage::new(&self.tables(needs.write_back), format, snoop, spec.page_limit)
            .inspect_err(|_| self.domains.give_back(domain))?;
        Ok(VtdContext { tables, domain, units, needs })
    }

    fn destroy<T: Removals>(&self, _: &Permit, context: VtdContext, removals: &mut T) -> Outcome {
        let VtdContext { tables, domain, units, needs } = context;
        let touched = self.of(units).filter(|(_, unit)| unit.may_remember(domain));
        let flushed = self.on_each(touched, |_, unit, tables| unit.submit(tables, &[unit.whole(domain)]));
        if let Err(error) = flushed {
            return Outcome::Quarantined { error };
        }
        tables.end(&self.tables(needs.write_back), removals);
        self.units.iter().for_each(|unit| unit.users.reset(domain));
        self.domains.give_back(domain);
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
        let members = self.members(members)?;
        self.of(members.units()).try_for_each(|(_, unit)| unit.unit.check_alive())?;
        let mut prepared = VtdPrepared { members, target: None, context_tables: Vec::new() };
        if let Target::Context(context) = target {
            self.check_alive(context)?;
            self.admit(&prepared.members, context)?;
            prepared.target = Some(context.entry());
            if let Err(error) = self.reserve_buses(&mut prepared) {
                self.abandon(prepared);
                return Err(error);
            }
        }
        Ok(prepared)
    }

    fn commit(&self, _: &Permit, mut prepared: VtdPrepared) -> Outcome {
        let _one_at_a_time = self.switching.lock();
        self.add_buses(&mut prepared);
        Outcome::from(self.switch(&prepared.members, prepared.target))
    }

    fn block(&self, _: &Permit, members: &[DeviceId]) -> Outcome {
        let _one_at_a_time = self.switching.lock();
        let mut blocked = Ok(());
        for few in members.chunks(MAX_MEMBERS) {
            blocked = blocked.and(self.block_members(&self.known_members(few)));
        }
        Outcome::from(blocked)
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
        self.check_alive(context)?;
        context.tables.map(&self.tables(context.needs.write_back), iova, extent, access)?;
        if context.needs.news {
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
        self.check_alive(context)?;
        let tables = self.tables(context.needs.write_back);
        let bytes = context.tables.take_out(&tables, range, removals)?;
        if bytes > 0 {
            // Tables stay in the tree until the context ends.
            debts.owe(Run { range, tables_changed: TablesChanged::LeavesOnly });
        }
        Ok(bytes)
    }

    fn flush(&self, permit: &Permit, context: &VtdContext, debts: &mut Debts) -> Outcome {
        if debts.is_empty() {
            return Outcome::Done;
        }
        // A unit that the context comes to later walks tables without what was taken out: the look at who
        // uses the domain comes after the stores.
        fence(Ordering::SeqCst);
        let domain = context.domain;
        let forgot = self.on_each(self.using(domain), |_, unit, tables| unit.forget(tables, domain, debts));
        if forgot.is_ok() {
            debts.settle(permit);
        }
        Outcome::from(forgot)
    }

    fn flush_lines(&self, _: &Permit, memory: Option<PhysRange>) {
        match memory {
            Some(memory) => self.cache.flush(memory),
            None => self.cache.flush_everything(),
        }
    }

    fn iova_to_phys(&self, context: &VtdContext, iova: Iova) -> Option<(PhysAddr, Access)> {
        context.tables.lookup(&self.tables(context.needs.write_back), iova)
    }

    fn enforce_cache_coherency(&self, _: &Permit, context: &VtdContext) -> Result<(), Error> {
        let _nobody_joins = self.switching.lock();
        self.check_alive(context)?;
        let witness = self.of(context.units).find_map(|(_, unit)| unit.snoop_control());
        let witness = witness.ok_or(Error::NoSnoopControl)?;
        if self.using(context.domain).any(|(_, unit)| unit.snoop_control().is_none()) {
            return Err(Error::NoSnoopControl);
        }
        context.tables.enforce_snoop(&self.tables(context.needs.write_back), witness)
    }

    #[inline]
    fn coherency(&self, context: &VtdContext) -> Coherency {
        context.verdict()
    }

    fn take_fault(&self) -> Option<Fault> {
        let count = self.units.len().max(1);
        // Where one device faults without end, the others' units have their turn.
        let first = self.fault_turn.fetch_add(1, Ordering::Relaxed);
        let turns = (0..count).map(|step| first.wrapping_add(step) % count);
        turns.filter_map(|place| self.units.get(place)).find_map(RemappingUnit::take_fault)
    }
}
