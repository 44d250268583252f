//! Queued invalidation: the only way to make hardware forget (manual, section 6.5.2).

use portcullis_hal::{
    CacheMaintenance, Clock, PhysAddr, RegisterIo, TableMemory, TimedOut,
    page_pool::PageRun,
    sync::{AtomicU64, Mutex, MutexGuard, Ordering},
    table_memory::TABLE_PAGE_CELLS,
    wait_until,
};
use portcullis_iommu::Error;

use crate::{
    spec::{
        invalidation::{DESCRIPTOR_BYTES, Descriptor},
        registers::{FSTS, FaultStatus, Global, IQA, IQH, IQT},
    },
    table_access::{TableAccess, need_pages},
    unit::{Switch, Unit},
};

/// Most descriptors of one batch.
pub(crate) const MAX_BATCH: usize = 24;
/// Descriptors in the queue: one page of 16 bytes each.
const ENTRIES: usize = TABLE_PAGE_CELLS / 2;
/// How often a batch is submitted before errors of the queue count as permanent.
const ATTEMPTS: u32 = 3;
/// How many other CPUs' batches a caller is ready to wait for.
const QUEUED_CALLERS: u32 = 64;

/// Where the next descriptor goes, and the number of the last wait.
#[derive(Debug)]
struct Position {
    tail: usize,
    sequence: u32,
}

/// The queue and the cell that hardware writes when a batch is done.
///
/// A batch is submitted, and waited for, under one lock: the queue is empty between batches. Hardware
/// may write the status cell even after a timeout, so neither page ever goes back to the pool.
#[derive(Debug)]
pub(crate) struct InvalidationQueue {
    queue: PageRun,
    status: PageRun,
    position: Mutex<Position>,
}

/// How a submitted batch ended.
enum End {
    Done,
    Failed(FaultStatus),
}

impl InvalidationQueue {
    pub(crate) fn new<M: TableMemory, K: CacheMaintenance>(
        tables: &TableAccess<'_, M, K>,
    ) -> Result<Self, Error> {
        let queue = tables.pool.take(1).map_err(need_pages)?;
        let status = match tables.pool.take(1) {
            Ok(status) => status,
            Err(error) => {
                tables.pool.give_back(queue);
                return Err(need_pages(error));
            }
        };
        Ok(Self { queue, status, position: Mutex::new(Position { tail: 0, sequence: 0 }) })
    }

    /// Turns the queue on, after firmware's own has run empty and was turned off (11.4.9, 6.5.2).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn enable<R: RegisterIo, C: Clock, M: TableMemory, K: CacheMaintenance>(
        &self,
        unit: &Unit<R, C>,
        tables: &TableAccess<'_, M, K>,
    ) -> Result<(), Error> {
        let registers = &unit.registers;
        if unit.is_on(Global::QUEUED_INVALIDATION) {
            let missing = TimedOut { register: IQH as u32, bits: registers.read64(IQT) };
            let empty = || (registers.read64(IQH) == registers.read64(IQT)).then_some(());
            wait_until(&unit.clock, unit.timeout, missing, empty)?;
            unit.command(Global::QUEUED_INVALIDATION, Switch::Off, Switch::Off)?;
        }
        registers.write64(IQT, 0);
        // Size 0: one page; width 0: descriptors of 128 bits.
        registers.write64(IQA, tables.pool.address(&self.queue).as_u64());
        unit.command(Global::QUEUED_INVALIDATION, Switch::On, Switch::On)
    }

    /// Submits the descriptors and waits until all are done. They may be executed in any order and,
    /// after an error of the queue, more than once.
    ///
    /// # Errors
    /// [`Error::Timeout`], or [`Error::Hardware`] with the fault status when the queue fails again and
    /// again: the unit is quarantined. [`Error::Quarantined`] when it already was.
    pub(crate) fn submit<R: RegisterIo, C: Clock, M: TableMemory, K: CacheMaintenance>(
        &self,
        unit: &Unit<R, C>,
        tables: &TableAccess<'_, M, K>,
        descriptors: &[Descriptor],
    ) -> Result<(), Error> {
        let mut position = self.lock(unit)?;
        unit.check_alive()?;
        self.run(unit, tables, &mut position, descriptors).map_err(|error| unit.quarantine(error))
    }

    fn lock<R: RegisterIo, C: Clock>(&self, unit: &Unit<R, C>) -> Result<MutexGuard<'_, Position>, Error> {
        let missing = TimedOut { register: IQT as u32, bits: 0 };
        let limit = unit.timeout.saturating_mul(QUEUED_CALLERS);
        wait_until(&unit.clock, limit, missing, || match unit.check_alive() {
            Ok(()) => self.position.try_lock().map(Ok),
            Err(error) => Some(Err(error)),
        })?
    }

    fn run<R: RegisterIo, C: Clock, M: TableMemory, K: CacheMaintenance>(
        &self,
        unit: &Unit<R, C>,
        tables: &TableAccess<'_, M, K>,
        position: &mut Position,
        descriptors: &[Descriptor],
    ) -> Result<(), Error> {
        unit.flush_write_buffer()?;
        let mut seen = FaultStatus::empty();
        for _ in 0..ATTEMPTS {
            let batch = descriptors.get(..MAX_BATCH).unwrap_or(descriptors);
            for &descriptor in batch {
                self.push(tables, position, descriptor);
            }
            // 0 is what the cell holds at first, and what a replaced descriptor writes.
            position.sequence = position.sequence.wrapping_add(1).max(1);
            let status = tables.pool.address(&self.status);
            self.push(tables, position, Descriptor::wait(status, position.sequence));
            unit.registers.write64(IQT, position.tail as u64 * DESCRIPTOR_BYTES);
            match self.wait(unit, tables, position.sequence)? {
                End::Done => return Ok(()),
                End::Failed(errors) => seen = errors,
            }
            self.recover(unit, tables, seen, status);
        }
        Err(Error::Hardware { source: FSTS as u32, code: seen.bits().into() })
    }

    fn push<M: TableMemory, K: CacheMaintenance>(
        &self,
        tables: &TableAccess<'_, M, K>,
        position: &mut Position,
        descriptor: Descriptor,
    ) {
        self.write(tables, position.tail, descriptor);
        position.tail = (position.tail + 1) % ENTRIES;
    }

    /// Hardware always snoops the queue (11.4.3, C), so nothing is written back here.
    fn write<M: TableMemory, K>(&self, tables: &TableAccess<'_, M, K>, index: usize, descriptor: Descriptor) {
        if let Some([low, high]) = tables.pool.cells(&self.queue).get(index * 2..index * 2 + 2) {
            high.store(descriptor.high.to_le(), Ordering::Relaxed);
            low.store(descriptor.low.to_le(), Ordering::Release);
        }
    }

    fn wait<R: RegisterIo, C: Clock, M: TableMemory, K>(
        &self,
        unit: &Unit<R, C>,
        tables: &TableAccess<'_, M, K>,
        sequence: u32,
    ) -> Result<End, Error> {
        let cell: Option<&AtomicU64> = tables.pool.cells(&self.status).first();
        let missing = TimedOut { register: IQH as u32, bits: sequence.into() };
        let end = wait_until(&unit.clock, unit.timeout, missing, || {
            if cell.is_some_and(|cell| u64::from_le(cell.load(Ordering::Acquire)) as u32 == sequence) {
                return Some(End::Done);
            }
            let status = unit.registers.read32(FSTS);
            let errors = FaultStatus::from_bits_truncate(status) & FaultStatus::QUEUE_ERRORS;
            (status != u32::MAX && !errors.is_empty()).then_some(End::Failed(errors))
        })?;
        Ok(end)
    }

    /// Gets a stopped queue going (11.4.7.1): the descriptor that hardware refuses becomes a harmless
    /// wait, the errors are cleared. What a device TLB's timeout aborted is submitted again by the caller.
    fn recover<R: RegisterIo, C: Clock, M: TableMemory, K: CacheMaintenance>(
        &self,
        unit: &Unit<R, C>,
        tables: &TableAccess<'_, M, K>,
        errors: FaultStatus,
        status: PhysAddr,
    ) {
        if errors.contains(FaultStatus::QUEUE_ERROR) {
            let head = (unit.registers.read64(IQH) / DESCRIPTOR_BYTES) as usize % ENTRIES;
            self.write(tables, head, Descriptor::wait(status, 0));
        }
        unit.registers.write32(FSTS, errors.bits());
    }
}
