//! The driver: one remapping unit behind the policy's boundary.

use core::time::Duration;

use heapless::Vec;
use portcullis_hal::{
    CacheMaintenance, Clock, Iova, IovaRange, RegisterIo, RequesterId, Segment, TableMemory,
    page_pool::{PagePool, PageRun},
    sync::Mutex,
};
use portcullis_iommu::{Error, driver::MAX_MEMBERS};

use crate::{
    device_tables::DeviceTables,
    domain::DomainIds,
    invalidation_queue::{InvalidationQueue, MAX_BATCH},
    second_stage::{Format, SecondStage},
    snoop::{Coherency, SnoopControl},
    spec::{
        entries::ContextEntry,
        invalidation::{Descriptor, InvalidationHint},
        registers::{Capability, Global},
    },
    table_access::{TableAccess, need_pages},
    unit::{Switch, Unit},
};

/// What the hypervisor knows of a unit beyond its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// PCI segment of the devices behind it ([`Drhd::segment`](crate::dmar::Drhd::segment)).
    pub segment: Segment,
    /// Bits of physical address ([`Dmar::host_address_bits`](crate::Dmar::host_address_bits)), 32..=52.
    pub host_address_bits: u8,
    /// How long a command or a batch of invalidations may take before the unit counts as dead.
    pub timeout: Duration,
}

impl UnitConfig {
    /// The defaults for a unit of `segment`: 52 bits of physical address, one second.
    #[must_use]
    pub const fn new(segment: Segment) -> Self {
        Self { segment, host_address_bits: 52, timeout: Duration::from_secs(1) }
    }
}

/// What a new context shall be like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextSpec {
    /// Bits of I/O virtual address; the shallowest table that the unit has and that covers them is used.
    pub address_bits: u8,
    /// Whose word counts on cache coherency.
    pub coherency: Coherency,
    /// Most table pages that the context may take, the root included; `None` for as many as there are.
    pub page_limit: Option<u32>,
}

/// Tables of one context, and the domain ID that hardware tags its translations with.
#[derive(Debug)]
pub struct VtdContext {
    pub(crate) tables: SecondStage,
    pub(crate) domain: u16,
}

impl VtdContext {
    /// The tables: to look at, not to change.
    pub const fn tables(&self) -> &SecondStage {
        &self.tables
    }
}

/// A switch for which everything that could be missing was reserved.
///
/// Dropping one keeps its pages out of the pool.
#[derive(Debug)]
#[must_use = "commit it"]
pub struct VtdPrepared {
    pub(crate) members: Vec<RequesterId, MAX_MEMBERS>,
    pub(crate) target: Option<ContextEntry>,
    pub(crate) context_tables: Vec<(u8, PageRun), MAX_MEMBERS>,
}

/// The driver of one remapping unit.
///
/// Any CPU may call it at any time. Attach-side calls and [`flush`] take locks and wait for
/// hardware under a deadline; `map` does so only where hardware demands it of every new mapping
/// (CAP.CM, CAP.RWBF). After the first wait that ends without an answer every call returns
/// [`Error::Quarantined`], and the memory that hardware may still use stays out of the pool.
///
/// [`flush`]: portcullis_iommu::Driver::flush
#[derive(Debug)]
pub struct VtdIommu<R, M, C, K> {
    pub(crate) unit: Unit<R, C>,
    pub(crate) pool: PagePool<M>,
    pub(crate) cache: K,
    pub(crate) config: UnitConfig,
    pub(crate) queue: InvalidationQueue,
    pub(crate) devices: DeviceTables,
    /// Held while root or context entries change.
    pub(crate) switching: Mutex<()>,
    pub(crate) domains: DomainIds,
    /// The fault record to look at next, once one was seen. Held while one is read and cleared.
    pub(crate) fault_log: Mutex<Option<usize>>,
}

pub(crate) type Batch = Vec<Descriptor, MAX_BATCH>;

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance> VtdIommu<R, M, C, K> {
    /// Takes the unit over with every device blocked. Translation that firmware left on stays on while
    /// the tables change under it, so there is no gap; protected memory regions are ended last.
    ///
    /// For the boot CPU, once for each unit, before any device is given away.
    ///
    /// # Errors
    /// [`Error::Hardware`] names a register that is absent (all ones) or says too little: queued
    /// invalidation and a second-stage table are needed; nothing changed. [`Error::NeedPages`] when
    /// the pool holds less than the three pages of root table, queue and status. [`Error::Timeout`] when
    /// the unit does not answer: it may hold addresses in the donated memory by then, which must not be
    /// used for anything else.
    pub fn bring_up(
        registers: R,
        pool: PagePool<M>,
        clock: C,
        cache: K,
        config: UnitConfig,
    ) -> Result<Self, Error> {
        let unit = Unit::probe(registers, clock, config.timeout)?;
        let tables = TableAccess::new(&pool, needed(&unit, &cache));
        let devices = DeviceTables::new(&tables)?;
        let queue = InvalidationQueue::new(&tables)?;
        let root = devices.root(&tables).as_u64();
        unit.settle()?;
        queue.enable(&unit, &tables)?;
        unit.flush_write_buffer()?;
        unit.set_root_table(root)?;
        if !unit.capability.root_table_invalidates() {
            queue.submit(&unit, &tables, &[Descriptor::context_cache_global()])?;
            queue.submit(&unit, &tables, &[Descriptor::iotlb_global(unit.capability)])?;
        }
        if !unit.is_on(Global::TRANSLATION) {
            unit.command(Global::TRANSLATION, Switch::On, Switch::On)?;
        }
        unit.disable_protected_memory()?;
        let domains = DomainIds::new(unit.capability.domains());
        let (switching, fault_log) = (Mutex::new(()), Mutex::new(None));
        Ok(Self { unit, pool, cache, config, queue, devices, switching, domains, fault_log })
    }

    /// Proof that the unit can make DMA cache-coherent (ECAP.SC), or `None`.
    #[must_use]
    pub fn snoop_control(&self) -> Option<SnoopControl> {
        SnoopControl::of(self.unit.extended)
    }

    /// Where table pages come from.
    #[must_use]
    pub const fn pool(&self) -> &PagePool<M> {
        &self.pool
    }

    /// What the unit's capability register said.
    #[must_use]
    pub const fn capability(&self) -> Capability {
        self.unit.capability
    }

    #[inline]
    pub(crate) fn tables(&self) -> TableAccess<'_, M, K> {
        TableAccess::new(&self.pool, needed(&self.unit, &self.cache))
    }

    pub(crate) fn submit(&self, descriptors: &[Descriptor]) -> Result<(), Error> {
        self.queue.submit(&self.unit, &self.tables(), descriptors)
    }

    /// The format that serves so many bits of address.
    pub(crate) fn format(&self, address_bits: u8) -> Result<Format, Error> {
        let capability = self.unit.capability;
        let serves = |&levels: &u8| capability.supports_levels(levels) && 12 + 9 * levels >= address_bits;
        let levels = (3..=5).find(serves).filter(|_| address_bits <= capability.address_bits());
        let levels = levels.ok_or(Error::Unsupported { value: address_bits.into() })?;
        let largest_page = match (capability.large_2m(), capability.large_1g()) {
            (true, true) => 3,
            (true, false) => 2,
            _ => 1,
        };
        Ok(Format { levels, address_bits, largest_page, physical_bits: self.config.host_address_bits })
    }

    /// The descriptor that invalidates a range, or the whole domain where that takes less.
    pub(crate) fn invalidate_range(
        &self,
        domain: u16,
        range: IovaRange,
        hint: InvalidationHint,
    ) -> Descriptor {
        let capability = self.unit.capability;
        let differing = (range.start().as_u64() ^ range.last().as_u64()) >> 12;
        let mask = (u64::BITS - differing.leading_zeros()) as u8;
        if !capability.page_selective() || mask > capability.max_address_mask() {
            return Descriptor::iotlb_domain(capability, domain);
        }
        let start = Iova::new(range.start().as_u64() >> (12 + mask) << (12 + mask));
        Descriptor::iotlb_pages(capability, domain, start, mask, hint)
    }

    /// What hardware wants to hear of a new mapping (manual, 6.1, 6.8).
    #[cold]
    pub(crate) fn announce(&self, context: &VtdContext, iova: Iova, bytes: u64) -> Result<(), Error> {
        if !self.unit.capability.caching_mode() {
            return self.unit.flush_write_buffer().map_err(|error| self.unit.quarantine(error));
        }
        let range = IovaRange::new(iova, bytes).map_err(|_| Error::OutsideAperture { iova, bytes })?;
        self.submit(&[self.invalidate_range(context.domain, range, InvalidationHint::TablesToo)])
    }

    /// Blocks the members and makes hardware forget them.
    pub(crate) fn block_members(&self, members: impl Iterator<Item = RequesterId>) -> Result<(), Error> {
        let tables = self.tables();
        let (mut contexts, mut translations) = (Batch::new(), Batch::new());
        for requester in members {
            let Some(domain) = self.devices.clear(&tables, requester) else { continue };
            // At most eight members: a batch holds more.
            let _ = contexts.push(Descriptor::context_cache_device(domain, requester));
            let flush = Descriptor::iotlb_domain(self.unit.capability, domain);
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
        self.submit(&contexts)?;
        self.submit(&translations)
    }

    /// Lets blocked members join.
    pub(crate) fn join_members(&self, members: &[RequesterId], entry: ContextEntry) -> Result<(), Error> {
        let tables = self.tables();
        let mut contexts = Batch::new();
        for &requester in members {
            self.devices.set(&tables, requester, entry);
            // What is not present is cached with domain 0.
            let _ = contexts.push(Descriptor::context_cache_device(0, requester));
        }
        if !self.unit.capability.caching_mode() {
            return self.unit.flush_write_buffer().map_err(|error| self.unit.quarantine(error));
        }
        self.submit(&contexts)?;
        let domain = ContextEntry::domain(entry.high);
        self.submit(&[Descriptor::iotlb_domain(self.unit.capability, domain)])
    }

    /// Gives up a switch that was not wholly reserved.
    pub(crate) fn abandon(&self, mut prepared: VtdPrepared) {
        while let Some((_, page)) = prepared.context_tables.pop() {
            self.pool.give_back(page);
        }
    }

    /// Reserves the context tables that the members' buses lack.
    pub(crate) fn reserve_buses(&self, prepared: &mut VtdPrepared) -> Result<(), Error> {
        for requester in &prepared.members {
            let bus = requester.bus();
            let reserved = prepared.context_tables.iter().any(|&(reserved, _)| reserved == bus);
            if reserved || self.devices.has_bus(&self.tables(), bus) {
                continue;
            }
            let page = self.pool.take(1).map_err(need_pages)?;
            if let Err((_, page)) = prepared.context_tables.push((bus, page)) {
                self.pool.give_back(page);
            }
        }
        Ok(())
    }
}

fn needed<'k, R, C, K>(unit: &Unit<R, C>, cache: &'k K) -> Option<&'k K> {
    if unit.extended.coherent() { None } else { Some(cache) }
}
