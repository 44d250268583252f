//! What a driver offers to hypercalls: entries that are replaced one guest page at a time.

use portcullis_hal::{Access, DmaExtent, IoPageSize, Iova, PhysAddr};

use crate::{
    driver::{Driver, Outcome, Permit},
    error::Error,
    removals::Removals,
};

/// What [`exchange_each`](EntryDriver::exchange_each) came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// Pages whose entries were replaced.
    pub pages: u64,
    /// Those among them that lead somewhere now.
    pub mapping: u64,
}

/// Entries of one last-level table, each for one page. They stay where they are while the context lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The first address that they map.
    pub start: Iova,
    /// Bytes that they map.
    pub bytes: u64,
    /// Size of the page of one entry.
    pub page_size: IoPageSize,
    /// What the driver finds the first of them by; the others follow one by one.
    pub place: usize,
}

impl Leaf {
    /// Which of the entries is that of the page that begins at `iova`.
    #[inline(always)]
    pub(crate) const fn number_of(&self, iova: Iova) -> Option<u64> {
        // Below the first page the offset is larger than any table.
        let offset = iova.as_u64().wrapping_sub(self.start.as_u64());
        if offset < self.bytes && offset & (self.page_size.bytes() - 1) == 0 {
            Some(offset >> self.page_size.shift())
        } else {
            None
        }
    }
}

/// A driver whose entries guests change themselves, through [`Session`](crate::Session)s.
///
/// Only contexts whose entries nobody changes otherwise come here, and at any moment at most one caller
/// changes an entry: callers settle among themselves who. `tables_exist`, `exchange` and `kill` allocate
/// nothing and wait for nobody but hardware, so that they may be called in real mode. All are called on any
/// CPU.
pub trait EntryDriver: Driver {
    /// Whether all tables exist for the entries of `bytes` bytes at `iova`. Allocates nothing.
    ///
    /// # Errors
    /// [`Error::NeedPages`] with the 4 KiB pages of one missing table, at least;
    /// [`Error::Misaligned`], [`Error::OutsideAperture`].
    fn tables_exist(&self, context: &Self::Context, iova: Iova, bytes: u64) -> Result<(), Error>;

    /// Makes the tables that are missing for the entries of `bytes` bytes at `iova`.
    ///
    /// # Errors
    /// [`Error::NeedPages`], [`Error::Misaligned`], [`Error::OutsideAperture`]. No entry changed.
    fn provide(&self, permit: &Permit, context: &Self::Context, iova: Iova, bytes: u64) -> Result<(), Error>;

    /// Replaces the entries of `bytes` bytes at `iova` by those that lead to `new`, which is as long, or by
    /// none, and tells `removals` which memory they led to. Where a table is missing nothing was mapped.
    /// Ordered before a later [`kill`](Self::kill).
    ///
    /// # Errors
    /// [`Error::Misaligned`], [`Error::OutsideAperture`], [`Error::PhysicalTooWide`], [`Error::NoAccess`],
    /// and [`Error::NeedPages`] for new entries in a missing table. Nothing changed.
    fn exchange<R: Removals>(
        &self,
        permit: &Permit,
        context: &Self::Context,
        iova: Iova,
        bytes: u64,
        new: Option<(DmaExtent, Access)>,
        removals: &mut R,
    ) -> Result<(), Error>;

    /// The last-level table that holds the entry for `iova`, if hypercalls may change that entry and the table exists.
    fn leaf(&self, context: &Self::Context, iova: Iova) -> Option<Leaf>;

    /// As [`exchange`](Self::exchange), for the entry at `place` of a [leaf](Self::leaf) of this context, and a page that
    /// begins at a multiple of its size: where the entry led. `None` where it cannot lead there: nothing changed.
    fn exchange_at(
        &self,
        permit: &Permit,
        context: &Self::Context,
        place: usize,
        new: Option<(DmaExtent, Access)>,
    ) -> Option<Option<PhysAddr>>;

    /// As [`exchange`](Self::exchange), for consecutive pages, each by its own of `new`; the triple says where, of how many
    /// bytes, and how many at most. Ends with `new`, or before one that leads where `exchange` would refuse it.
    ///
    /// # Errors
    /// As for `exchange`, of all these pages, whose tables must exist. Nothing changed.
    fn exchange_each<R: Removals>(
        &self,
        permit: &Permit,
        context: &Self::Context,
        (iova, bytes, count): (Iova, u64, u64),
        new: impl Iterator<Item = Option<(DmaExtent, Access)>>,
        removals: &mut R,
    ) -> Result<Exchanged, Error> {
        let (mut exchanged, mut at) = (Exchanged::default(), iova.as_u64());
        for (_, new) in (0..count).zip(new) {
            match self.exchange(permit, context, Iova::new(at), bytes, new, removals) {
                Ok(()) => {}
                Err(error) if exchanged.pages == 0 => return Err(error),
                Err(_) => break,
            }
            exchanged.pages += 1;
            exchanged.mapping += u64::from(new.is_some());
            at = at.wrapping_add(bytes);
        }
        Ok(exchanged)
    }

    /// Bytes of the page that one entry leads to: guest pages are multiples of it.
    fn page_bytes(&self, context: &Self::Context) -> u64;

    /// Whether hardware can put the address `last`, and all below it, on the bus. Where not, `exchange` refuses.
    fn reaches(&self, context: &Self::Context, last: PhysAddr) -> bool;

    /// Makes hardware forget what any device has cached of the context, old entries and missing ones, and
    /// waits for it under a deadline. On `Quarantined` it may still be cached. Not called while no group is attached:
    /// whatever hardware has cached of the context has to go when the last one leaves.
    fn kill(&self, permit: &Permit, context: &Self::Context) -> Outcome;
}
