//! The driver: the remapping units of a machine behind the policy's boundary.

use core::time::Duration;

use heapless::Vec;
use portcullis_hal::{
    CacheMaintenance, Clock, DeviceId, RegisterIo, Segment, TableMemory,
    page_pool::PagePool,
    sync::{AtomicBool, AtomicUsize, Mutex, Ordering},
};
use portcullis_iommu::Error;

use crate::{
    context::VtdContext,
    domain::DomainIds,
    placement::{MAX_UNITS, UnitScope, UnitSet},
    remapping_unit::RemappingUnit,
    snoop::SnoopControl,
    table_access::TableAccess,
    unit::Unit,
};

/// What the hypervisor knows of the machine beyond the units' registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Bits of physical address ([`Dmar::host_address_bits`](crate::Dmar::host_address_bits)), 32..=52.
    pub host_address_bits: u8,
    /// How long a command or a batch of invalidations may take before the unit counts as dead.
    pub timeout: Duration,
}

impl Default for MachineConfig {
    /// 52 bits of physical address, one second.
    fn default() -> Self {
        Self { host_address_bits: 52, timeout: Duration::from_secs(1) }
    }
}

/// The same for a machine with one unit, which has a whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    /// PCI segment of the devices behind it ([`Drhd::segment`](crate::dmar::Drhd::segment)).
    pub segment: Segment,
    /// As [`MachineConfig::host_address_bits`].
    pub host_address_bits: u8,
    /// As [`MachineConfig::timeout`].
    pub timeout: Duration,
}

impl UnitConfig {
    /// The defaults for a unit of `segment`: 52 bits of physical address, one second.
    #[must_use]
    pub const fn new(segment: Segment) -> Self {
        Self { segment, host_address_bits: 52, timeout: Duration::from_secs(1) }
    }
}

/// One unit to be taken over.
#[derive(Debug)]
pub struct UnitAt<R> {
    /// Its registers ([`Drhd::base`](crate::dmar::Drhd::base)).
    pub registers: R,
    /// The devices behind it.
    pub scope: UnitScope,
}

/// The driver of a machine's remapping units, of which there are at most `UNITS` (and [`MAX_UNITS`]).
///
/// Any CPU may call it at any time. Attach-side calls and [`flush`] take locks and wait for
/// hardware under a deadline; `map` does so only where hardware demands it of every new mapping
/// (CAP.CM, CAP.RWBF). A wait that ends without an answer quarantines its unit: from then on every call that
/// needs this unit returns [`Error::Quarantined`], and the memory that it may still use stays out of the
/// pool. Groups and contexts that are not behind it go on.
///
/// [`flush`]: portcullis_iommu::Driver::flush
#[derive(Debug)]
pub struct VtdIommu<R, M, C, K, const UNITS: usize = 1> {
    pub(crate) units: Vec<RemappingUnit<R, C>, UNITS>,
    pub(crate) pool: PagePool<M>,
    pub(crate) cache: K,
    pub(crate) host_address_bits: u8,
    /// Held while root or context entries change, or which units a context is on.
    pub(crate) switching: Mutex<()>,
    pub(crate) domains: DomainIds,
    /// A unit is quarantined: which one is asked only then.
    pub(crate) wounded: AtomicBool,
    /// Place of the unit whose faults are asked for next.
    pub(crate) fault_turn: AtomicUsize,
}

/// Units that answer, before anything is written to one.
type Probed<R, C, const UNITS: usize> = Vec<(Unit<R, C>, UnitScope), UNITS>;

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance> VtdIommu<R, M, C, K> {
    /// [`bring_up_all`](VtdIommu::bring_up_all) for the only unit of a machine, or of one of its segments.
    ///
    /// # Errors
    /// As there.
    pub fn bring_up(
        registers: R,
        pool: PagePool<M>,
        clock: C,
        cache: K,
        config: UnitConfig,
    ) -> Result<Self, Error> {
        let unit = Unit::probe(registers, clock, config.timeout)?;
        let probed = Vec::from_array([(unit, UnitScope::all(config.segment))]);
        Self::take_over(probed, pool, cache, config.host_address_bits)
    }
}

impl<R: RegisterIo, M: TableMemory, C: Clock, K: CacheMaintenance, const UNITS: usize>
    VtdIommu<R, M, C, K, UNITS>
{
    /// Takes the units over with every device blocked. All have a root table that blocks before translation
    /// is turned on in any; translation that firmware left on stays on while the tables change under it, so
    /// there is no gap. Protected memory regions are ended last.
    ///
    /// For the boot CPU, once, before any device is given away.
    ///
    /// # Errors
    /// [`Error::Full`] for more units than `UNITS`, [`Error::Unsupported`] for none. [`Error::Hardware`]
    /// names a register that is absent (all ones) or says too little: queued invalidation and a second-stage
    /// table are needed. [`Error::NeedPages`] when the pool holds less than three pages a unit: root table,
    /// queue and status. So far nothing changed. [`Error::Timeout`] when a unit does not answer: all others
    /// block every device and go on doing so, and all protected memory regions stay. The units hold
    /// addresses in the donated memory by then, which must not be used for anything else.
    pub fn bring_up_all(
        units: impl IntoIterator<Item = UnitAt<R>>,
        pool: PagePool<M>,
        clock: C,
        cache: K,
        config: MachineConfig,
    ) -> Result<Self, Error>
    where
        C: Clone,
    {
        let mut probed = Probed::new();
        for UnitAt { registers, scope } in units {
            let unit = Unit::probe(registers, clock.clone(), config.timeout)?;
            probed.push((unit, scope)).map_err(|_| Error::Full { capacity: UNITS })?;
        }
        Self::take_over(probed, pool, cache, config.host_address_bits)
    }

    fn take_over(
        mut probed: Probed<R, C, UNITS>,
        pool: PagePool<M>,
        cache: K,
        host_address_bits: u8,
    ) -> Result<Self, Error> {
        const { assert!(UNITS <= MAX_UNITS) };
        let numbers = probed.iter().map(|(unit, _)| unit.capability.domains()).min();
        let domains = DomainIds::new(numbers.ok_or(Error::Unsupported { value: 0 })?);
        let mut units = Vec::new();
        probed.reverse();
        while let Some((unit, scope)) = probed.pop() {
            let tables = access(&pool, &cache, !unit.extended.coherent());
            let unit = RemappingUnit::new(unit, scope, &tables)?;
            units.push(unit).map_err(|_| Error::Full { capacity: UNITS })?;
        }
        let (switching, wounded, fault_turn) = (Mutex::new(()), AtomicBool::new(false), AtomicUsize::new(0));
        let driver = Self { units, pool, cache, host_address_bits, switching, domains, wounded, fault_turn };
        driver.close_all()?;
        Ok(driver)
    }

    /// Every device behind every unit that answers is blocked, whatever the others do.
    fn close_all(&self) -> Result<(), Error> {
        let mut shut = UnitSet::NONE;
        let mut closed = Ok(());
        for (place, unit) in self.units.iter().enumerate() {
            match unit.shut(&self.tables_of(unit)) {
                Ok(()) => shut = shut.with(place),
                Err(error) => closed = closed.and(Err(error)),
            }
        }
        for (_, unit) in self.of(shut) {
            closed = closed.and(unit.translate());
        }
        closed?;
        self.units.iter().try_for_each(|unit| unit.unit.disable_protected_memory())
    }

    /// Proof that at least one unit can make DMA cache-coherent (ECAP.SC), or `None`.
    #[must_use]
    pub fn snoop_control(&self) -> Option<SnoopControl> {
        self.units.iter().find_map(RemappingUnit::snoop_control)
    }

    /// Where table pages come from.
    #[must_use]
    pub const fn pool(&self) -> &PagePool<M> {
        &self.pool
    }

    /// Most bits of I/O virtual address that a context for all units can have.
    #[must_use]
    pub fn address_bits(&self) -> u8 {
        let capabilities = || self.units.iter().map(|unit| unit.unit.capability);
        let common = |levels| capabilities().all(|capability| capability.supports_levels(levels));
        let levels = (3..=5).rfind(|&levels| common(levels)).unwrap_or(0);
        let bits = capabilities().map(|capability| capability.address_bits()).min();
        bits.unwrap_or(0).min(12 + 9 * levels)
    }

    /// The units that devices are behind.
    ///
    /// # Errors
    /// [`Error::NotBehindUnit`].
    pub fn units_of(&self, devices: &[DeviceId]) -> Result<UnitSet, Error> {
        devices.iter().try_fold(UnitSet::NONE, |units, &device| {
            Ok(units.with(self.place(device).ok_or(Error::NotBehindUnit { device })?))
        })
    }

    /// The unit that a device is behind: the one that names it most closely.
    pub(crate) fn place(&self, device: DeviceId) -> Option<usize> {
        let units = self.units.iter().enumerate();
        units
            .filter_map(|(place, unit)| Some((unit.scope.distance(device)?, place)))
            .min()
            .map(|(_, place)| place)
    }

    /// The units of a set, with their places.
    pub(crate) fn of(&self, units: UnitSet) -> impl Iterator<Item = (usize, &RemappingUnit<R, C>)> {
        self.units.iter().enumerate().filter(move |&(place, _)| units.contains(place))
    }

    /// The units on which a domain has devices.
    pub(crate) fn using(&self, domain: u16) -> impl Iterator<Item = (usize, &RemappingUnit<R, C>)> {
        self.of(UnitSet::ALL).filter(move |(_, unit)| unit.users.any(domain))
    }

    /// How a unit's own tables are reached.
    pub(crate) fn tables_of(&self, unit: &RemappingUnit<R, C>) -> TableAccess<'_, M, K> {
        self.tables(!unit.unit.extended.coherent())
    }

    /// How tables are reached, which must be written back or not.
    #[inline]
    pub(crate) fn tables(&self, write_back: bool) -> TableAccess<'_, M, K> {
        access(&self.pool, &self.cache, write_back)
    }

    /// Does something on each of the units, also behind one that fails; the first error counts.
    pub(crate) fn on_each<'u>(
        &self,
        units: impl Iterator<Item = (usize, &'u RemappingUnit<R, C>)>,
        mut act: impl FnMut(usize, &'u RemappingUnit<R, C>, &TableAccess<'_, M, K>) -> Result<(), Error>,
    ) -> Result<(), Error>
    where
        R: 'u,
        C: 'u,
    {
        let mut done = Ok(());
        for (place, unit) in units {
            done = done.and(act(place, unit, &self.tables_of(unit)));
        }
        if done.is_err() {
            self.wounded.store(true, Ordering::Release);
        }
        done
    }

    /// [`Error::Quarantined`] when the context is on a unit that has failed to answer, or when all units
    /// have that it could be on.
    #[inline]
    pub(crate) fn check_alive(&self, context: &VtdContext) -> Result<(), Error> {
        if self.wounded.load(Ordering::Acquire) { self.check_units(context) } else { Ok(()) }
    }

    #[cold]
    fn check_units(&self, context: &VtdContext) -> Result<(), Error> {
        let mut alive = self.of(context.units).filter(|(_, unit)| unit.unit.check_alive().is_ok());
        alive.next().ok_or(Error::Quarantined)?;
        self.using(context.domain).try_for_each(|(_, unit)| unit.unit.check_alive())
    }
}

#[inline]
fn access<'p, M: TableMemory, K: CacheMaintenance>(
    pool: &'p PagePool<M>,
    cache: &'p K,
    write_back: bool,
) -> TableAccess<'p, M, K> {
    TableAccess::new(pool, if write_back { Some(cache) } else { None })
}
