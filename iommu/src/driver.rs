//! The boundary between policy and the drivers of IOMMU hardware.
//!
//! Domain IDs, units, PE numbers and table formats stay on the driver's side; groups, grants and
//! claims on this one.

use bitflags::bitflags;
use portcullis_hal::{Access, DeviceId, DmaExtent, Iova, IovaRange, PhysAddr, PhysRange};

use crate::{coherency::Coherency, error::Error, fault::Fault, removals::Removals};

/// Devices that one group may hold: a multi-function device's eight functions.
pub const MAX_MEMBERS: usize = 8;

/// The right to change hardware: only the policy can make one, and only after its own checks.
#[derive(Debug)]
pub struct Permit(());

impl Permit {
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

bitflags! {
    /// IOMMU page sizes: bit `n` stands for pages of `2^n` bytes.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PageSizes: u64 {
        /// 4 KiB.
        const SIZE_4K = 1 << 12;
        /// 64 KiB.
        const SIZE_64K = 1 << 16;
        /// 2 MiB.
        const SIZE_2M = 1 << 21;
        /// 16 MiB.
        const SIZE_16M = 1 << 24;
        /// 256 MiB.
        const SIZE_256M = 1 << 28;
        /// 1 GiB.
        const SIZE_1G = 1 << 30;
    }
}

/// A range of I/O virtual addresses that a context can map, and its page sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aperture {
    /// Addresses that may be mapped.
    pub range: IovaRange,
    /// Sizes that a mapping may be made of; ranges are multiples of the smallest.
    pub page_sizes: PageSizes,
}

/// What hardware did of a change that was already decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a quarantined unit keeps its memory: somebody has to know"]
#[non_exhaustive]
pub enum Outcome {
    /// Finished, hardware has confirmed it.
    Done,
    /// Hardware did not answer. The devices count as blocked, their memory must not be reused.
    Quarantined {
        /// What did not answer.
        error: Error,
    },
}

impl Outcome {
    /// The outcome as a result.
    ///
    /// # Errors
    /// What did not answer.
    #[inline]
    pub const fn confirmed(self) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            Self::Quarantined { error } => Err(error),
        }
    }
}

impl From<Result<(), Error>> for Outcome {
    #[inline]
    fn from(confirmed: Result<(), Error>) -> Self {
        match confirmed {
            Ok(()) => Self::Done,
            Err(error) => Self::Quarantined { error },
        }
    }
}

/// Where a group's DMA goes next.
#[derive(Debug)]
pub enum Target<'c, C> {
    /// Nowhere: every transaction is refused.
    Blocked,
    /// Through the tables of a context.
    Context(&'c C),
}

/// A range of mappings that was taken out of a table and whose invalidation is still owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Addresses whose entries were cleared.
    pub range: IovaRange,
    /// Whether non-leaf entries changed, too: cached intermediate entries must go.
    pub tables_changed: TablesChanged,
}

/// Whether an unmap changed entries that point to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TablesChanged {
    /// Leaf entries only.
    LeavesOnly,
    /// At least one non-leaf entry.
    NonLeaves,
}

/// Ranges that [`Debts`] tells apart.
const MAX_RUNS: usize = 16;

/// Invalidations owed by unmaps: donated scratch, typically one for each CPU.
///
/// Not `Copy`. As long as a debt is in here, the frames that were unmapped may still be reached. When
/// more ranges come than fit, they become one flush of the whole context.
#[derive(Debug, Default)]
pub struct Debts(Owed);

/// One run, which is what an unmap owes, needs no room for many to be made.
#[derive(Debug, Default)]
#[expect(clippy::large_enum_variant, reason = "there is no allocator to box into")]
enum Owed {
    #[default]
    Nothing,
    One(Run),
    Several(heapless::Vec<Run, MAX_RUNS>),
    Everything,
}

impl Debts {
    /// Scratch that owes nothing.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self(Owed::Nothing)
    }

    /// Notes that `run` must be invalidated, joining it to the last one where they touch.
    #[inline]
    pub fn owe(&mut self, run: Run) {
        match self.0 {
            Owed::Nothing => self.0 = Owed::One(run),
            _ => self.owe_more(run),
        }
    }

    #[inline(never)]
    fn owe_more(&mut self, run: Run) {
        let mut runs = heapless::Vec::new();
        match core::mem::replace(&mut self.0, Owed::Everything) {
            Owed::Everything => return,
            Owed::Nothing => {}
            Owed::One(only) => runs = heapless::Vec::from_array([only]),
            Owed::Several(several) => runs = several,
        }
        if let Some(last) = runs.last_mut()
            && let Some(joined) = join(*last, run)
        {
            *last = joined;
        } else if runs.push(run).is_err() {
            return;
        }
        self.0 = Owed::Several(runs);
    }

    /// Notes that the whole context must be invalidated.
    pub fn owe_everything(&mut self) {
        self.0 = Owed::Everything;
    }

    /// The ranges to invalidate, or `None` when the whole context must be.
    #[must_use]
    pub fn runs(&self) -> Option<&[Run]> {
        match &self.0 {
            Owed::Nothing => Some(&[]),
            Owed::One(run) => Some(core::slice::from_ref(run)),
            Owed::Several(runs) => Some(runs),
            Owed::Everything => None,
        }
    }

    /// Whether nothing is owed.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        matches!(self.0, Owed::Nothing)
    }

    /// Forgets what was owed. A driver calls this after hardware has confirmed the invalidation; the
    /// permit keeps everybody else from it.
    #[inline]
    pub fn settle(&mut self, _: &Permit) {
        self.0 = Owed::Nothing;
    }
}

fn join(first: Run, second: Run) -> Option<Run> {
    let next = first.range.last().checked_add(1)?;
    if next != second.range.start() {
        return None;
    }
    let range =
        IovaRange::new(first.range.start(), first.range.bytes().checked_add(second.range.bytes())?).ok()?;
    let non_leaves = TablesChanged::NonLeaves;
    let tables_changed = if second.tables_changed == non_leaves { non_leaves } else { first.tables_changed };
    Some(Run { range, tables_changed })
}

/// A driver of IOMMU hardware.
///
/// Every method may be called from any CPU at any time. Attach-side methods (`create`, `destroy`,
/// `prepare`, `commit`, `block`) may take locks and wait for hardware. `flush` waits for hardware, too, and
/// for its turn at the unit's queue. `map` and `unmap` change tables without a lock of the whole context and
/// give up with [`Error::Busy`] after a bounded number of looks at another CPU's change; `map` waits for
/// hardware only where that may remember that nothing was there. `aperture`, `iova_to_phys` and `coherency`
/// wait for nobody. Every wait for hardware or for a turn has a deadline, which the driver was given.
///
/// A method that returns an [`Error`] changed nothing, unless it says otherwise.
pub trait Driver {
    /// What a new context shall be like: widths, page sizes, coherency.
    type Spec;
    /// Tables of one context.
    type Context;
    /// A change of context for which everything that can fail was reserved.
    type Prepared;

    /// Makes empty tables.
    ///
    /// # Errors
    /// [`Error::NeedPages`], [`Error::OutOfNumbers`]; [`Error::Unsupported`], [`Error::Misaligned`],
    /// [`Error::OutsideAperture`] or [`Error::NoSnoopControl`] for a spec that the hardware cannot fulfil;
    /// [`Error::Quarantined`].
    fn create(&self, permit: &Permit, spec: &Self::Spec) -> Result<Self::Context, Error>;

    /// Gives the table pages back and tells `removals` what was still mapped. The policy has seen that no
    /// device uses the context any more; the driver flushes whatever hardware may still cache of it before
    /// a page is reused. On `Quarantined` the pages are kept and nothing is told.
    fn destroy<R: Removals>(&self, permit: &Permit, context: Self::Context, removals: &mut R) -> Outcome;

    /// What the context can map.
    fn aperture(&self, context: &Self::Context) -> Aperture;

    /// Reserves all that a switch of `members` to `target` needs.
    ///
    /// # Errors
    /// [`Error::NotBehindUnit`], [`Error::BadMemberCount`], [`Error::OutOfNumbers`], [`Error::NeedPages`],
    /// [`Error::Hardware`] when firmware refused, [`Error::Quarantined`]. Nothing changed.
    fn prepare(
        &self,
        permit: &Permit,
        members: &[DeviceId],
        target: Target<'_, Self::Context>,
    ) -> Result<Self::Prepared, Error>;

    /// Makes the prepared switch: all members are blocked before the first one joins the target. On `Done` hardware has
    /// forgotten, for these members, the context that they were in.
    fn commit(&self, permit: &Permit, prepared: Self::Prepared) -> Outcome;

    /// Blocks all members; needs nothing that could be missing. Devices unknown to the hardware count as blocked. On
    /// `Done` hardware has forgotten, for these members, the context that they were in.
    fn block(&self, permit: &Permit, members: &[DeviceId]) -> Outcome;

    /// Maps `extent` at `iova`. Both and the length are multiples of the smallest page size; larger
    /// pages are used where alignment allows. Visible to hardware when it returns `Done`. On
    /// `Quarantined` the mapping stands, and hardware may or may not see it.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::PhysicalTooWide`], [`Error::NoAccess`],
    /// [`Error::AlreadyMapped`], [`Error::NeedPages`], [`Error::Busy`] while another CPU changes the same
    /// tables, [`Error::Quarantined`]. Nothing changed.
    fn map(
        &self,
        permit: &Permit,
        context: &Self::Context,
        iova: Iova,
        extent: DmaExtent,
        access: Access,
    ) -> Result<Outcome, Error>;

    /// Takes the mappings of `range` out of the tables, notes in `debts` what must be invalidated and
    /// tells `removals` which memory was mapped; returns the number of bytes. Unmapped holes are skipped.
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::SplitsPage`] when a large page lies only
    /// partly inside, [`Error::Busy`] while another CPU changes the same tables, [`Error::Quarantined`].
    /// Nothing changed.
    fn unmap<R: Removals>(
        &self,
        permit: &Permit,
        context: &Self::Context,
        range: IovaRange,
        debts: &mut Debts,
        removals: &mut R,
    ) -> Result<u64, Error>;

    /// Invalidates what is owed, with draining, and settles it once hardware has confirmed. Takes its turn
    /// at the unit's queue and waits for hardware, both under a deadline. On `Quarantined` the debts stay.
    fn flush(&self, permit: &Permit, context: &Self::Context, debts: &mut Debts) -> Outcome;

    /// Writes back and drops the lines that CPUs' caches hold of `memory`, or of all memory when there is
    /// too much to name; returns when memory has them. The policy calls it for contexts that are not
    /// coherent: before it maps memory, and after an unmap was confirmed. A driver none of whose devices goes past
    /// the caches has nothing to do.
    fn flush_lines(&self, permit: &Permit, memory: Option<PhysRange>);

    /// Where `iova` leads now and with which rights, or `None` when it is not mapped.
    fn iova_to_phys(&self, context: &Self::Context, iova: Iova) -> Option<(PhysAddr, Access)>;

    /// Makes every DMA through the context cache-coherent, whatever the device asks for.
    ///
    /// # Errors
    /// [`Error::NoSnoopControl`] when hardware cannot, [`Error::HasMappings`] when entries exist
    /// without it. Repeating it succeeds.
    fn enforce_cache_coherency(&self, permit: &Permit, context: &Self::Context) -> Result<(), Error>;

    /// How DMA through the context goes now.
    fn coherency(&self, context: &Self::Context) -> Coherency;

    /// Takes the oldest fault that hardware has recorded, if any.
    fn take_fault(&self) -> Option<Fault>;
}
