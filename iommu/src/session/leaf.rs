//! One entry in a table that was found before: what the usual call replaces, without a walk.

use core::ptr;

use portcullis_hal::{Access, IoPageSize, Iova};

use super::{Inside, Session};
use crate::{
    context::{ContextHandle, SlotState},
    driver::Permit,
    entries::{EntryDriver, Leaf},
    error::Error,
    memory::RegionPart,
    ownership::Owner,
    removals::Removals,
};

/// Entries of one last-level table of a context, as a session found them. Later sessions find one of them without a walk
/// as long as the context lives.
#[derive(Clone, Copy, Debug)]
pub struct LeafTable<'i> {
    /// Says of which [`Iommu`](crate::Iommu) the context is.
    state: &'i SlotState,
    context: ContextHandle,
    leaf: Leaf,
}

/// An entry for one page, in a context of the session's VM.
pub struct LeafEntry<'a, D: EntryDriver> {
    inside: Inside<'a, D>,
    leaf: Leaf,
    number: u64,
}

impl LeafTable<'_> {
    /// The first address that the entries map.
    #[must_use]
    pub const fn start(&self) -> Iova {
        self.leaf.start
    }

    /// Those of the entries that map some of `bytes` bytes at `start`, where pages begin and end; `None` when there are none.
    #[must_use]
    pub fn within(self, start: Iova, bytes: u64) -> Option<Self> {
        let first = start.as_u64().max(self.leaf.start.as_u64());
        let end = |start: Iova, bytes| start.as_u64().checked_add(bytes);
        let end = end(start, bytes)?.min(end(self.leaf.start, self.leaf.bytes)?);
        let skipped = self.leaf.number_of(Iova::new(first))?;
        let bytes = end.checked_sub(first)? & !(self.leaf.page_size.bytes() - 1);
        let place = self.leaf.place.wrapping_add(skipped as usize);
        let leaf = Leaf { start: Iova::new(first), bytes, place, ..self.leaf };
        (bytes != 0).then_some(Self { leaf, ..self })
    }
}

impl<D: EntryDriver> LeafEntry<'_, D> {
    /// How many of the table's entries stand before it.
    #[inline(always)]
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// Size of its page.
    #[inline(always)]
    #[must_use]
    pub const fn page_size(&self) -> IoPageSize {
        self.leaf.page_size
    }
}

impl<'i, D: EntryDriver, const GROUPS: usize, const CONTEXTS: usize, const CPUS: usize>
    Session<'_, 'i, D, GROUPS, CONTEXTS, CPUS>
{
    /// The table with the entry for `iova` of a context of which it was decided that hypercalls change its entries; `None`
    /// where there is none, or the entry is not for them.
    pub fn leaf_table(&self, context: ContextHandle, iova: Iova) -> Option<LeafTable<'i>> {
        let state = self.present.beside(context.slot as usize)?;
        let inside = self.entries_of(context)?;
        let leaf = self.iommu.driver.leaf(&inside.context.tables, iova)?;
        Some(LeafTable { state, context, leaf })
    }

    /// The entry for the page that begins at `iova`; `None` when it is not in this table, or the context has ended, or is of
    /// another VM or another [`Iommu`](crate::Iommu).
    #[inline(always)]
    pub fn entry(&self, table: &LeafTable<'_>, iova: Iova) -> Option<LeafEntry<'_, D>> {
        let number = table.leaf.number_of(iova)?;
        let context = table.context;
        let (state, behind) = self.present.look(context.slot as usize)?;
        // Of a context that was found before, what its entries are of needs no second look: it was decided for ever.
        let behind = behind?.as_ref().filter(|behind| behind.owner == Owner::Guest(self.vm))?;
        if !state.is_of(context) || !ptr::eq(state, table.state) {
            return None;
        }
        let inside = Inside { session: &self.vm, context: behind, state, slot: context.slot };
        Some(LeafEntry { inside, leaf: table.leaf, number })
    }

    /// Replaces an entry by one that leads to `new`, or nowhere, as [`exchange`](Self::exchange) does; says so by `done`;
    /// then makes hardware forget what was there and counts it out. `None` where the entry cannot lead there: then
    /// nothing changed, and `exchange` says what is wrong.
    ///
    /// # Errors
    /// As for [`kill`](Self::kill): the entry is replaced, and what was there is never counted out.
    #[inline(always)]
    pub fn replace(
        &self,
        entry: &LeafEntry<'_, D>,
        new: Option<(&RegionPart<'_>, Access)>,
        done: impl FnOnce(),
    ) -> Option<Result<(), Error>> {
        let (inside, bytes) = (&entry.inside, entry.page_size().bytes());
        if !self.has_found(inside) {
            return None;
        }
        if new.is_some_and(|(part, _)| !part.is_of(&self.vm) || !part.is_page_of(bytes)) {
            return None;
        }
        let extent = new.map(|(part, access)| (part.extent(), access));
        let place = entry.leaf.place.wrapping_add(entry.number as usize);
        let old = self.iommu.driver.exchange_at(&Permit::new(), &inside.context.tables, place, extent)?;
        let owed = old.map(|start| {
            let mut owed = self.owed();
            owed.removed(start, bytes);
            owed
        });
        if let Some((part, _)) = new {
            self.count_in(part, bytes);
        }
        done();
        let killed = self.killed(inside);
        match (killed, owed) {
            (Ok(()), Some(owed)) => owed.count_out(),
            (Ok(()), None) => {}
            (Err(_), _) => self.unkilled.set(self.unkilled.get() | inside.bit()),
        }
        Some(killed)
    }
}
