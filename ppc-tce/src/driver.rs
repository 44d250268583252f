//! One host bridge behind the boundary to the policy.

use core::time::Duration;

use portcullis_hal::{
    Access, CacheMaintenance, Clock, DeviceId, DmaExtent, Iova, IovaRange, PagePool, PhysAddr, PhysRange,
    RegisterIo, Segment, TableMemory,
    sync::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use portcullis_iommu::{
    Aperture, Coherency, Debts, Driver, Error, Fault, Outcome, Permit, Removals, Run, Target,
    driver::TablesChanged,
};

use crate::{
    context::{Context, ContextSpec},
    fault,
    firmware::{Firmware, PeNumber, TableRoot, WindowNumber},
    generation::Generation,
    kill::KillRegister,
    pe::{self, PeTable, Slots},
    spec::tce::Tce,
    table::Table,
    window,
};

/// What the platform says of one bridge.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Generation of the bridge (device-tree property `compatible`).
    pub generation: Generation,
    /// Segment of its devices.
    pub segment: Segment,
    /// PEs that the bridge has (`ibm,opal-num-pes`), at least 2.
    pub pe_count: u16,
    /// PE of devices that were given no other (`ibm,opal-reserved-pe`): never used, always blocked.
    pub reserved_pe: PeNumber,
    /// How long a single wait for the bridge may take. A kill takes microseconds.
    pub kill_limit: Duration,
}

/// Driver of one host bridge, for up to `DEVICES` devices in contexts.
///
/// After a kill that was not confirmed the whole bridge is quarantined: devices cannot be attached any
/// more, and no table page goes back to the pool.
///
/// Any CPU may call it at any time, as [`Driver`] says. Switching and blocking take one lock around firmware;
/// kills take their turn at the bridge's register, under a deadline.
#[derive(Debug)]
pub struct TceIommu<F, R, M, C, K, const DEVICES: usize = 64> {
    firmware: F,
    kill: KillRegister<R>,
    pub(crate) pool: PagePool<M>,
    clock: C,
    cache: K,
    config: Config,
    /// The last address that the bridge can put on the fabric.
    pub(crate) last_real: u64,
    pes: PeTable<DEVICES>,
    quarantined: AtomicBool,
    contexts_made: AtomicU64,
    /// Slot to look for faults in next, so that a busy faulter hides nobody.
    next_fault: AtomicUsize,
}

/// A switch for which every member has its PE.
#[derive(Debug)]
pub struct Prepared {
    slots: Slots,
    join: Option<Join>,
}

#[derive(Clone, Copy, Debug)]
struct Join {
    context: u64,
    window: WindowNumber,
    table: TableRoot,
}

impl<F, R, M, C, K, const DEVICES: usize> TceIommu<F, R, M, C, K, DEVICES>
where
    F: Firmware,
    R: RegisterIo,
    M: TableMemory,
    C: Clock,
    K: CacheMaintenance,
{
    /// Takes a bridge that firmware has initialised: checks its set-up, closes every window of every PE,
    /// bypass included, and kills all TCEs. Afterwards no device behind it reaches memory.
    ///
    /// Every function must still be in the reserved PE, where firmware's reset of the bridge puts it:
    /// firmware has no call that tells, and a function left in another PE would share it with the device
    /// that the PE is given to.
    ///
    /// For one CPU, before anything else uses the bridge; waits for hardware, each time up to the limit.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a `pe_count` that the generation does not have, or a reserved PE
    /// beyond it; [`Error::Hardware`] when firmware refused, the bridge is fenced, or PHB Control lacks
    /// what erratum HW557787 asks for; [`Error::Timeout`] when the kill was not confirmed.
    pub fn bring_up(
        firmware: F,
        registers: R,
        pool: PagePool<M>,
        clock: C,
        cache: K,
        config: Config,
    ) -> Result<Self, Error> {
        let count = config.pe_count;
        if count < 2 || count > config.generation.max_pes() || config.reserved_pe.0 >= count {
            return Err(Error::Unsupported { value: u64::from(count) });
        }
        let kill = KillRegister::new(registers, config.generation, config.kill_limit);
        kill.check_set_up()?;
        for pe in 0..count {
            window::unset_all(&firmware, PeNumber(pe))?;
        }
        kill.kill_all(&clock, &cache)?;
        Ok(Self {
            firmware,
            kill,
            pool,
            clock,
            cache,
            config,
            last_real: (1 << config.generation.real_address_bits()) - 1,
            pes: PeTable::new(),
            quarantined: AtomicBool::new(false),
            contexts_made: AtomicU64::new(0),
            next_fault: AtomicUsize::new(0),
        })
    }

    /// The pool of table pages, to see how many are free. Any CPU, at any time.
    #[must_use]
    pub const fn pool(&self) -> &PagePool<M> {
        &self.pool
    }

    /// Whether the bridge failed to confirm a kill. Any CPU, at any time: one load.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// The entry for the first page of an extent.
    #[inline]
    pub(crate) fn tce(&self, extent: DmaExtent, access: Access) -> Result<Tce, Error> {
        let address = extent.start().as_u64().wrapping_add(extent.bytes() - 1);
        if address > self.last_real {
            return Err(Error::PhysicalTooWide { address });
        }
        let tce = Tce::leaf(extent.start(), access);
        if tce.is_valid() { Ok(tce) } else { Err(Error::NoAccess) }
    }

    /// Kills the TCEs of some slots' PEs; a failure quarantines the bridge.
    fn kill_slots(&self, slots: impl Iterator<Item = usize>) -> Result<(), Error> {
        self.check_health()?;
        let pes = slots.map(|slot| self.config.pe_of_slot(slot));
        self.kill.kill_pes(pes, &self.clock, &self.cache).inspect_err(|_| self.quarantine())
    }

    /// Kills what any device may have cached of a context. A PE that joins meanwhile has cached nothing
    /// older than the caller's stores: `connect` notes the context before it opens the window, and the
    /// barriers on both sides order stores before loads.
    #[inline]
    pub(crate) fn kill_context(&self, context: &Context) -> Result<(), Error> {
        self.cache.store_barrier();
        if self.pes.may_have_slots(context.id) { self.kill_slots_of(context) } else { Ok(()) }
    }

    #[cold]
    fn kill_slots_of(&self, context: &Context) -> Result<(), Error> {
        let mut slots = self.pes.slots_of(context.id).peekable();
        if slots.peek().is_none() {
            return Ok(());
        }
        self.kill_slots(slots)
    }

    fn check_health(&self) -> Result<(), Error> {
        if self.is_quarantined() { Err(Error::Quarantined) } else { Ok(()) }
    }

    fn quarantine(&self) {
        self.quarantined.store(true, Ordering::Release);
    }

    /// Closes the windows of all slots, as far as firmware lets us, then kills.
    fn disconnect(&self, slots: &[usize]) -> Result<(), Error> {
        let mut closed = Ok(());
        for &slot in slots {
            let unset = window::unset_all(&self.firmware, self.config.pe_of_slot(slot));
            closed = closed.and(unset.inspect_err(|_| self.quarantine()));
        }
        closed?;
        self.kill_slots(slots.iter().copied())?;
        slots.iter().for_each(|&slot| self.pes.leave(slot));
        Ok(())
    }

    /// Opens the windows of blocked slots on a context.
    fn connect(&self, slots: &[usize], join: Join) -> Result<(), Error> {
        for &slot in slots {
            self.pes.join(slot, join.context);
            self.cache.store_barrier();
            window::set(&self.firmware, self.config.pe_of_slot(slot), join.window, join.table)?;
        }
        self.kill_slots(slots.iter().copied())
    }

    fn switch(&self, prepared: &Prepared) -> Result<(), Error> {
        self.disconnect(&prepared.slots)?;
        let Some(join) = prepared.join else { return Ok(()) };
        self.connect(&prepared.slots, join).inspect_err(|_| {
            // Parks all members; where that fails, too, the bridge is quarantined by it.
            let _ = self.disconnect(&prepared.slots);
        })
    }
}

impl<F, R, M, C, K, const DEVICES: usize> Driver for TceIommu<F, R, M, C, K, DEVICES>
where
    F: Firmware,
    R: RegisterIo,
    M: TableMemory,
    C: Clock,
    K: CacheMaintenance,
{
    type Spec = ContextSpec;
    type Context = Context;
    type Prepared = Prepared;

    fn create(&self, _: &Permit, spec: &ContextSpec) -> Result<Context, Error> {
        let (range, window, geometry) = spec.check(self.config.generation)?;
        let table = Table::new(&self.pool, geometry, spec.page_limit.unwrap_or(u32::MAX))?;
        let id = self.contexts_made.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Ok(Context::new(id, table, range, window))
    }

    /// Every PE that left the context was killed then, so nothing of it is cached any more.
    fn destroy<T: Removals>(&self, _: &Permit, context: Context, removals: &mut T) -> Outcome {
        let users = self.pes.slots_of(context.id).count() as u32;
        if users != 0 {
            return Outcome::Quarantined { error: Error::InUse { users } };
        }
        let healthy = self.check_health();
        if healthy.is_ok() {
            context.table.end(&self.pool, removals);
        }
        Outcome::from(healthy)
    }

    fn aperture(&self, context: &Context) -> Aperture {
        context.aperture()
    }

    fn prepare(
        &self,
        _: &Permit,
        members: &[DeviceId],
        target: Target<'_, Context>,
    ) -> Result<Prepared, Error> {
        self.check_health()?;
        let mut devices = self.pes.lock();
        let slots = pe::assign_slots(&mut devices, &self.config, &self.firmware, members)?;
        let join = match target {
            Target::Blocked => None,
            Target::Context(context) => Some(Join {
                context: context.id,
                window: context.window,
                table: context.table.root(&self.pool),
            }),
        };
        Ok(Prepared { slots, join })
    }

    fn commit(&self, _: &Permit, prepared: Prepared) -> Outcome {
        let _control = self.pes.lock();
        Outcome::from(self.switch(&prepared))
    }

    fn block(&self, _: &Permit, members: &[DeviceId]) -> Outcome {
        let devices = self.pes.lock();
        let slots = pe::known_slots(&devices, &self.config, members);
        if slots.is_empty() {
            return Outcome::Done;
        }
        Outcome::from(self.disconnect(&slots))
    }

    /// Ends with a kill when devices are attached: the bridge fetches TCEs a cache line at a time, so
    /// the empty entry may be cached beside a valid neighbour. When that kill is not confirmed the
    /// mapping stands and the bridge is quarantined.
    // Into each of the policy's calls: no call, and no result in memory.
    #[inline(always)]
    fn map(
        &self,
        _: &Permit,
        context: &Context,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<Outcome, Error> {
        let address = extent.start();
        let entries = context.entries(iova, extent.bytes(), address)?;
        let last = address.as_u64().wrapping_add(extent.bytes() - 1);
        if last > self.last_real {
            return Err(Error::PhysicalTooWide { address: last });
        }
        self.check_health()?;
        context.map(&self.pool, entries, Tce::leaf(address, access))?;
        match self.kill_context(context) {
            Ok(()) => Ok(Outcome::Done),
            Err(error) => Ok(Outcome::Quarantined { error }),
        }
    }

    #[inline(always)]
    fn unmap<T: Removals>(
        &self,
        _: &Permit,
        context: &Context,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut T,
    ) -> Result<u64, Error> {
        let entries = context.entries(range.start(), range.bytes(), PhysAddr::new(0))?;
        let pages = context.table.take_out(&self.pool, entries, removals)?;
        if pages != 0 {
            debts.owe(Run { range, tables_changed: TablesChanged::LeavesOnly });
        }
        Ok(pages << context.page_size().shift())
    }

    /// One kill for each PE of the context and one sync for all, however many ranges are owed.
    #[inline]
    fn flush(&self, permit: &Permit, context: &Context, debts: &mut Debts) -> Outcome {
        if debts.is_empty() {
            return Outcome::Done;
        }
        let killed = self.kill_context(context);
        if killed.is_ok() {
            debts.settle(permit);
        }
        Outcome::from(killed)
    }

    #[inline]
    fn iova_to_phys(&self, context: &Context, iova: Iova) -> Option<(PhysAddr, Access)> {
        context.range.contains(IovaRange::new(iova, 1).ok()?).then_some(())?;
        let tce = context.table.lookup(&self.pool, context.index(iova));
        let offset = iova.as_u64() & (context.page_size().bytes() - 1);
        tce.is_valid().then_some((PhysAddr::new(tce.address().as_u64() | offset), tce.access()))
    }

    /// Always granted: the bridge is part of the coherent fabric, and what it does for a device is
    /// snooped whatever the device's No Snoop attribute says (PHB3 and PHB4 functional specifications,
    /// "DMA ordering and coherency"; other systems report these machines as coherent without asking).
    fn enforce_cache_coherency(&self, _: &Permit, _: &Context) -> Result<(), Error> {
        Ok(())
    }

    /// Host bridges snoop the caches.
    fn flush_lines(&self, _: &Permit, _: Option<PhysRange>) {}

    #[inline]
    fn coherency(&self, _: &Context) -> Coherency {
        Coherency::Coherent
    }

    /// Asks firmware for each attached device whether its PE is frozen; taking the fault lets the PE go
    /// on. Calls firmware under the control plane's lock, so never from a guest exit.
    fn take_fault(&self) -> Option<Fault> {
        let devices = self.pes.lock();
        let start = self.next_fault.load(Ordering::Relaxed);
        for step in 0..devices.len() {
            let slot = start.wrapping_add(step).checked_rem(devices.len())?;
            let (requester, pe) = (*devices.get(slot)?, self.config.pe_of_slot(slot));
            if let Ok(Some(entry)) = self.firmware.frozen(pe) {
                self.next_fault.store(slot.wrapping_add(1), Ordering::Relaxed);
                // A PE that stays frozen is blocked, which harms nobody; it is reported again.
                let _ = self.firmware.clear_freeze(pe);
                return Some(fault::decode(self.config.segment, requester, entry));
            }
        }
        None
    }
}
