//! The way from the root of a tree to its entries.

use portcullis_hal::{
    PagePool, TABLE_PAGE_CELLS, TableMemory,
    sync::{AtomicU64, Ordering},
};

use portcullis_iommu::Error;

use super::take;
use crate::{geometry::Geometry, spec::tce::Tce};

/// Shape and place of a tree: all that a look-up needs, in a value that fits anywhere. Who holds one sees to it that the
/// tree still exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    pub(crate) geometry: Geometry,
    /// Where the root begins among the cells of the donated memory.
    root_place: usize,
    /// Bits of an index that choose the entry in one table.
    slot_mask: u64,
    /// How far they are shifted in the root.
    root_shift: u32,
}

/// Entries that stand side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Index of the first.
    pub(crate) first: u64,
    pub(crate) count: u64,
    /// Where the first stands among the cells of the donated memory.
    pub(crate) place: usize,
}

impl Placed {
    /// Those of them with an index in `first..end`; `None` when there are none.
    pub(crate) fn within(self, first: u64, end: u64) -> Option<Self> {
        let begin = first.max(self.first);
        let count = end.min(self.first + self.count).checked_sub(begin).filter(|&count| count != 0)?;
        let place = self.place.wrapping_add((begin - self.first) as usize);
        Some(Self { first: begin, count, place })
    }
}

impl Tree {
    /// The tree whose root begins at page `root` of the donated memory.
    #[inline]
    pub(crate) const fn at(geometry: Geometry, root: usize) -> Self {
        Self {
            geometry,
            root_place: root.wrapping_mul(TABLE_PAGE_CELLS),
            slot_mask: (1 << geometry.level_bits()) - 1,
            root_shift: geometry.index_bits() - geometry.level_bits(),
        }
    }

    /// First page of the root.
    pub(crate) const fn root_page(&self) -> usize {
        self.root_place / TABLE_PAGE_CELLS
    }

    /// Where the entry at `index`, which lies in the tree, stands among the cells of the donated memory.
    #[inline(always)]
    pub(crate) fn place<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Option<usize> {
        let (cells, base) = (pool.memory().cells(), pool.memory().base().as_u64());
        let mut shift = self.root_shift;
        let mut table = self.root_place;
        while shift != 0 {
            let place = table.wrapping_add((index >> shift & self.slot_mask) as usize);
            let entry = Tce::from_memory(cells.get(place)?.load(Ordering::Acquire));
            if !entry.is_valid() {
                return None;
            }
            // An address below the base becomes a place far beyond the last cell.
            table = (entry.address().as_u64().wrapping_sub(base) / size_of::<u64>() as u64) as usize;
            shift = shift.wrapping_sub(self.geometry.level_bits());
        }
        Some(table.wrapping_add((index & self.slot_mask) as usize))
    }

    /// The last-level table that holds `index`, which lies in the tree, if the table exists.
    #[inline]
    pub(crate) fn leaf<'p, M: TableMemory>(
        &self,
        pool: &'p PagePool<M>,
        index: u64,
    ) -> Option<&'p [AtomicU64]> {
        let first = self.place(pool, index)?.wrapping_sub(self.geometry.slot(index, 0));
        pool.memory().cells().get(first..)?.get(..1 << self.geometry.level_bits())
    }

    /// The entries of the last-level table that holds `index`, which lies in the tree, if the table exists.
    pub(crate) fn leaf_place<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Option<Placed> {
        let slot = self.geometry.slot(index, 0);
        let place = self.place(pool, index)?.wrapping_sub(slot);
        Some(Placed { first: index - slot as u64, count: 1 << self.geometry.level_bits(), place })
    }

    /// The table that an indirect entry leads to.
    #[inline]
    pub(super) fn child<'p, M: TableMemory>(
        &self,
        pool: &'p PagePool<M>,
        entry: Tce,
    ) -> Option<&'p [AtomicU64]> {
        if !entry.is_valid() {
            return None;
        }
        let page = pool.memory().page_at(entry.address())?;
        pool.memory().pages(page, self.geometry.level_pages())
    }

    /// The cells of the root.
    pub(super) fn root<'p, M: TableMemory>(&self, pool: &'p PagePool<M>) -> Option<&'p [AtomicU64]> {
        pool.memory().pages(self.root_page(), self.geometry.level_pages())
    }

    /// How many levels over the last one the entry stands at which the walk to `index` ends early.
    pub(super) fn missing_at<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Option<u32> {
        let mut cells = self.root(pool)?;
        for above in (1..u32::from(self.geometry.levels())).rev() {
            let entry = cells.get(self.geometry.slot(index, above))?.load(Ordering::Acquire);
            match self.child(pool, Tce::from_memory(entry)) {
                Some(child) => cells = child,
                None => return Some(above),
            }
        }
        None
    }

    /// The last index below the missing table that ends the walk to `index`.
    pub(crate) fn last_missing<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> u64 {
        let above = self.missing_at(pool, index).unwrap_or(0);
        index | ((1 << (self.geometry.level_bits() * above)) - 1)
    }

    /// Links what is missing on the way to `index`, one table after the other: what was linked stays when the next one
    /// cannot be had.
    pub(crate) fn provide<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Result<(), Error> {
        let broken = Error::Unsupported { value: index };
        let mut cells = self.root(pool).ok_or(broken)?;
        for above in (1..u32::from(self.geometry.levels())).rev() {
            let cell = cells.get(self.geometry.slot(index, above)).ok_or(broken)?;
            let entry = match Tce::from_memory(cell.load(Ordering::Acquire)) {
                entry if entry.is_valid() => entry,
                _ => self.link(pool, cell)?,
            };
            cells = self.child(pool, entry).ok_or(broken)?;
        }
        Ok(())
    }

    /// Installs an empty table at `cell`. When another CPU was faster, its table is used and ours goes back.
    fn link<M: TableMemory>(&self, pool: &PagePool<M>, cell: &AtomicU64) -> Result<Tce, Error> {
        let table = take(pool, self.geometry)?;
        let entry = Tce::indirect(pool.address(&table));
        match cell.compare_exchange(0, entry.to_memory(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(entry),
            Err(faster) => {
                pool.give_back(table);
                Ok(Tce::from_memory(faster))
            }
        }
    }
}
