//! Cache lines of memory that devices reach past the caches.
//!
//! In a context that is not coherent, a CPU's dirty line of a page could overwrite what a device stored there, and
//! a line that a CPU kept could hide it. So lines are written back and dropped before a page is mapped, and
//! once more after the last DMA: when hardware has confirmed that it reaches the page no longer, before
//! anybody uses the page for something else. Contexts that are coherent pay for one look.

use heapless::Vec;
use portcullis_hal::{DmaExtent, IovaRange, PhysAddr, PhysRange};

use crate::{
    coherency::Coherency,
    context::{Context, Entered},
    driver::{Driver, Outcome, Permit},
    error::Error,
    policy::Iommu,
    removals::Removals,
};

/// Ranges of memory that one unmap notes; when there are more, all caches are written back.
const RUNS: usize = 64;

/// Notes what memory was mapped, and passes it on.
struct Noting<'r, R> {
    told: &'r mut R,
    /// `None` when there are too many.
    runs: Option<Vec<PhysRange, RUNS>>,
}

impl<'r, R: Removals> Noting<'r, R> {
    const fn new(told: &'r mut R) -> Self {
        Self { told, runs: Some(Vec::new()) }
    }

    fn write_back<D: Driver>(&self, driver: &D) {
        let permit = Permit::new();
        match &self.runs {
            Some(runs) => runs.iter().for_each(|run| driver.flush_lines(&permit, Some(*run))),
            None => driver.flush_lines(&permit, None),
        }
    }
}

impl<R: Removals> Removals for Noting<'_, R> {
    const WANTED: bool = true;

    fn removed(&mut self, start: PhysAddr, bytes: u64) {
        self.told.removed(start, bytes);
        let (Some(runs), Ok(run)) = (&mut self.runs, PhysRange::new(start, bytes)) else { return };
        if runs.push(run).is_err() {
            self.runs = None;
        }
    }
}

impl<D: Driver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Iommu<D, GROUPS, CONTEXTS, CPUS>
{
    #[inline]
    fn is_coherent(&self, tables: &D::Context) -> bool {
        // It never ends, and begins only while nothing is mapped.
        matches!(self.driver.coherency(tables), Coherency::Coherent)
    }

    /// Before `extent` is mapped: what CPUs stored there is in memory.
    #[inline]
    pub(crate) fn flush_before(&self, tables: &D::Context, extent: DmaExtent) {
        if !self.is_coherent(tables) {
            self.flush_extent(extent);
        }
    }

    #[cold]
    fn flush_extent(&self, extent: DmaExtent) {
        self.driver.flush_lines(&Permit::new(), PhysRange::new(extent.start(), extent.bytes()).ok());
    }

    /// Unmaps, waits for hardware, and then sees to the lines of what was mapped.
    #[inline]
    pub(crate) fn unmap_and_flush<R: Removals>(
        &self,
        entered: &Entered<'_, D::Context>,
        context: &Context<D::Context>,
        range: IovaRange,
        removals: &mut R,
    ) -> Result<u64, Error> {
        if self.is_coherent(&context.tables) {
            return self.unmap_telling(entered, context, range, removals);
        }
        self.unmap_noting(entered, context, range, removals)
    }

    #[cold]
    fn unmap_noting<R: Removals>(
        &self,
        entered: &Entered<'_, D::Context>,
        context: &Context<D::Context>,
        range: IovaRange,
        removals: &mut R,
    ) -> Result<u64, Error> {
        let mut noting = Noting::new(removals);
        let bytes = self.unmap_telling(entered, context, range, &mut noting)?;
        noting.write_back(&self.driver);
        Ok(bytes)
    }

    /// Destroys tables, and sees to the lines of what they still mapped.
    pub(crate) fn destroy_and_flush<R: Removals>(&self, tables: D::Context, removals: &mut R) -> Outcome {
        if self.is_coherent(&tables) {
            return self.driver.destroy(&Permit::new(), tables, removals);
        }
        let mut noting = Noting::new(removals);
        let outcome = self.driver.destroy(&Permit::new(), tables, &mut noting);
        if outcome == Outcome::Done {
            noting.write_back(&self.driver);
        }
        outcome
    }
}
