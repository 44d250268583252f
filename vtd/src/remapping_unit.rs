//! One unit with its own queue, root table and fault log.

use heapless::Vec;
use portcullis_hal::{
    CacheMaintenance, Clock, Iova, IovaRange, RegisterIo, RequesterId, TableMemory, sync::Mutex,
};
use portcullis_iommu::{Debts, Error, Fault, driver::TablesChanged};

use crate::{
    device_tables::DeviceTables,
    domain::DomainUsers,
    fault,
    invalidation_queue::{InvalidationQueue, MAX_BATCH},
    placement::UnitScope,
    snoop::SnoopControl,
    spec::{
        entries::ContextEntry,
        invalidation::{Descriptor, InvalidationHint},
        registers::Global,
    },
    table_access::TableAccess,
    unit::{Switch, Unit},
};

type Batch = Vec<Descriptor, MAX_BATCH>;

/// One unit of the driver. The tables that its methods are passed are those of [`DeviceTables`].
#[derive(Debug)]
pub(crate) struct RemappingUnit<R, C> {
    pub(crate) unit: Unit<R, C>,
    pub(crate) scope: UnitScope,
    pub(crate) devices: DeviceTables,
    pub(crate) users: DomainUsers,
    queue: InvalidationQueue,
    /// The fault record to look at next, once one was seen. Held while one is read and cleared.
    next_fault: Mutex<Option<usize>>,
}

impl<R: RegisterIo, C: Clock> RemappingUnit<R, C> {
    /// Takes the pages that the unit needs; the unit itself is not touched.
    ///
    /// # Errors
    /// [`Error::NeedPages`].
    pub(crate) fn new<M: TableMemory, K: CacheMaintenance>(
        unit: Unit<R, C>,
        scope: UnitScope,
        tables: &TableAccess<'_, M, K>,
    ) -> Result<Self, Error> {
        let devices = DeviceTables::new(tables)?;
        let queue = InvalidationQueue::new(tables)?;
        let (users, next_fault) = (DomainUsers::new(), Mutex::new(None));
        Ok(Self { unit, scope, devices, users, queue, next_fault })
    }

    /// Gives the unit a root table that blocks every device, and makes it forget all others.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Hardware`].
    pub(crate) fn shut<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
    ) -> Result<(), Error> {
        self.unit.settle()?;
        self.queue.enable(&self.unit, tables)?;
        self.unit.flush_write_buffer()?;
        self.unit.set_root_table(self.devices.root(tables).as_u64())?;
        if self.unit.capability.root_table_invalidates() {
            return Ok(());
        }
        self.submit(tables, &[Descriptor::context_cache_global()])?;
        self.submit(tables, &[Descriptor::iotlb_global(self.unit.capability)])
    }

    /// Turns translation on, unless firmware left it on.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn translate(&self) -> Result<(), Error> {
        if self.unit.is_on(Global::TRANSLATION) {
            return Ok(());
        }
        self.unit.command(Global::TRANSLATION, Switch::On, Switch::On)
    }

    pub(crate) fn snoop_control(&self) -> Option<SnoopControl> {
        SnoopControl::of(self.unit.extended)
    }

    /// Whether hardware wants to hear of new mappings (CAP.CM, CAP.RWBF).
    pub(crate) fn wants_news(&self) -> bool {
        self.unit.capability.caching_mode() || self.unit.capability.needs_write_buffer_flush()
    }

    /// Whether something of a domain may be cached: devices were in it, and the unit answers or they still
    /// are. What left a unit that has died since was forgotten before.
    pub(crate) fn may_remember(&self, domain: u16) -> bool {
        self.users.any(domain) || self.users.were_any(domain) && self.unit.check_alive().is_ok()
    }

    /// Submits descriptors and waits until all are done.
    ///
    /// # Errors
    /// What did not answer: the unit is quarantined.
    pub(crate) fn submit<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        descriptors: &[Descriptor],
    ) -> Result<(), Error> {
        self.queue.submit(&self.unit, tables, descriptors)
    }

    /// Everything that is cached of a domain.
    pub(crate) fn whole(&self, domain: u16) -> Descriptor {
        Descriptor::iotlb_domain(self.unit.capability, domain)
    }

    /// Makes the unit forget what is owed of a domain.
    pub(crate) fn forget<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        domain: u16,
        debts: &Debts,
    ) -> Result<(), Error> {
        let whole = self.whole(domain);
        let mut batch = Batch::new();
        for run in debts.runs().unwrap_or_default() {
            let hint = match run.tables_changed {
                TablesChanged::LeavesOnly => InvalidationHint::LeavesOnly,
                TablesChanged::NonLeaves => InvalidationHint::TablesToo,
            };
            let _ = batch.push(self.range(domain, run.range, hint));
        }
        if debts.runs().is_none() || batch.contains(&whole) {
            batch.clear();
            let _ = batch.push(whole);
        }
        self.submit(tables, &batch)
    }

    /// The descriptor that invalidates a range, or the whole domain where that takes less.
    fn range(&self, domain: u16, range: IovaRange, hint: InvalidationHint) -> Descriptor {
        let capability = self.unit.capability;
        let differing = (range.start().as_u64() ^ range.last().as_u64()) >> 12;
        let mask = (u64::BITS - differing.leading_zeros()) as u8;
        if !capability.page_selective() || mask > capability.max_address_mask() {
            return self.whole(domain);
        }
        let start = Iova::new(range.start().as_u64() >> (12 + mask) << (12 + mask));
        Descriptor::iotlb_pages(capability, domain, start, mask, hint)
    }

    /// What hardware wants to hear of a new mapping (manual, 6.1, 6.8).
    pub(crate) fn announce<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        domain: u16,
        range: IovaRange,
    ) -> Result<(), Error> {
        if self.unit.capability.caching_mode() {
            return self.submit(tables, &[self.range(domain, range, InvalidationHint::TablesToo)]);
        }
        self.flush_write_buffer()
    }

    fn flush_write_buffer(&self) -> Result<(), Error> {
        self.unit.flush_write_buffer().map_err(|error| self.unit.quarantine(error))
    }

    /// Blocks devices and makes hardware forget them.
    pub(crate) fn block<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        members: impl Iterator<Item = RequesterId>,
    ) -> Result<(), Error> {
        let (mut contexts, mut translations, mut left) = (Batch::new(), Batch::new(), Left::new());
        for requester in members {
            let Some(domain) = self.devices.clear(tables, requester) else { continue };
            // At most eight members: a batch holds more.
            let _ = contexts.push(Descriptor::context_cache_device(domain, requester));
            let _ = left.push(domain);
            let flush = self.whole(domain);
            if !translations.contains(&flush) {
                let _ = translations.push(flush);
            }
        }
        // Even where nothing was present: a unit that fails to answer must not pass as blocked.
        self.unit.check_alive()?;
        if contexts.is_empty() {
            return Ok(());
        }
        // Two batches: within one, hardware may serve the IOTLB first.
        self.submit(tables, &contexts)?;
        self.submit(tables, &translations)?;
        left.iter().for_each(|&domain| self.users.remove(domain));
        Ok(())
    }

    /// Lets blocked devices join.
    pub(crate) fn join<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        members: impl Iterator<Item = RequesterId>,
        entry: ContextEntry,
    ) -> Result<(), Error> {
        let mut contexts = Batch::new();
        for requester in members {
            self.devices.set(tables, requester, entry);
            // What is not present is cached with domain 0.
            let _ = contexts.push(Descriptor::context_cache_device(0, requester));
        }
        if !self.unit.capability.caching_mode() {
            return self.flush_write_buffer();
        }
        self.submit(tables, &contexts)?;
        self.submit(tables, &[self.whole(ContextEntry::domain(entry.high))])
    }

    /// Takes the oldest fault that the unit has recorded.
    pub(crate) fn take_fault(&self) -> Option<Fault> {
        let mut next = self.next_fault.lock();
        fault::take(&self.unit, self.scope.segment(), &mut next)
    }
}

type Left = Vec<u16, MAX_BATCH>;
