//! Trees of TCE tables in donated memory.
//!
//! Only the root exists at first; lower tables come on demand and stay until the tree is dissolved, so
//! a table that hardware may walk is never freed under it. A missing table reads as empty entries.
//! Nothing here allocates, and every loop is bounded by the range that the caller named.

mod range;
mod replace;
mod reserve;
mod stripes;
mod tree;

use portcullis_hal::{
    PagePool, PageRun, PoolError, TableMemory,
    sync::{AtomicU32, AtomicU64, Ordering},
};
use portcullis_iommu::{Error, Removals, Unheard};

use crate::{firmware::TableRoot, geometry::Geometry, spec::tce::Tce};
pub use range::Entries;
pub(crate) use replace::put;
use reserve::Reserve;
use stripes::Stripes;
pub(crate) use tree::{Placed, Tree};

/// One tree of tables. All methods want the pool that [`new`](Self::new) got.
///
/// Entries are either exchanged one at a time by callers who settle among themselves who owns an
/// entry, or mapped and unmapped in ranges, which exclude each other where they touch; do not mix both
/// on the same entries at the same time.
#[derive(Debug)]
pub struct Table {
    tree: Tree,
    root: PageRun,
    /// 4 KiB pages taken, the root's included.
    pages: AtomicU32,
    page_limit: u32,
    stripes: Stripes,
}

impl Table {
    /// An empty tree, which may take `page_limit` pages of 4 KiB in all.
    ///
    /// # Errors
    /// [`Error::NeedPages`] when pool or limit have no room for the root; [`Error::Misaligned`] with the
    /// base of the donated memory when hardware could not address tables of this size there (their
    /// position is or-ed with the index, so they must be aligned to their size).
    pub fn new<M: TableMemory>(
        pool: &PagePool<M>,
        geometry: Geometry,
        page_limit: u32,
    ) -> Result<Self, Error> {
        let base = pool.memory().base().as_u64();
        if base & (geometry.level_bytes() - 1) != 0 {
            return Err(Error::Misaligned { value: base });
        }
        let count = geometry.level_pages();
        if count as u64 > u64::from(page_limit) {
            return Err(Error::NeedPages { count });
        }
        let root = take(pool, geometry)?;
        let pages = AtomicU32::new(count as u32);
        Ok(Self { tree: Tree::at(geometry, root.first()), root, pages, page_limit, stripes: Stripes::new() })
    }

    /// Shape of the tree.
    #[inline]
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.tree.geometry
    }

    /// Pages of 4 KiB that the tree holds now.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages.load(Ordering::Relaxed)
    }

    /// What a TVE must know of the tree.
    #[must_use]
    pub fn root<M: TableMemory>(&self, pool: &PagePool<M>) -> TableRoot {
        TableRoot {
            address: pool.address(&self.root),
            levels: self.tree.geometry.levels(),
            level_bytes: self.tree.geometry.level_bytes(),
            page_size: self.tree.geometry.page_size(),
        }
    }

    /// The entry at `index`; empty where a table is missing or beyond the tree.
    #[inline]
    #[must_use]
    pub fn lookup<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Tce {
        self.entry(pool, index).map_or(Tce::EMPTY, |cell| Tce::from_memory(cell.load(Ordering::Relaxed)))
    }

    /// Puts `new` at `index` in one atomic step and returns what was there. An entry that leads nowhere
    /// needs no table: where one is missing, nothing changes.
    ///
    /// Visible to hardware after the caller's store barrier. A valid old entry, and every new one in a
    /// window that is in use, owes a kill.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for an index beyond the tree; [`Error::NeedPages`] when a table is missing
    /// and cannot be had. Nothing changed.
    #[inline]
    pub fn exchange<M: TableMemory>(&self, pool: &PagePool<M>, index: u64, new: Tce) -> Result<Tce, Error> {
        if let Some(cell) = self.entry(pool, index) {
            return Ok(Tce::from_memory(cell.swap(new.to_memory(), Ordering::AcqRel)));
        }
        if index >= self.tree.geometry.entries() {
            return Err(Error::Unsupported { value: index });
        }
        if !new.is_valid() {
            return Ok(Tce::EMPTY);
        }
        let mut reserve = Reserve::fill(self, pool, self.missing_below(pool, index, index))?;
        let leaf = self.leaf_or_link(pool, index, &mut reserve)?;
        let cell = leaf.get(self.tree.geometry.slot(index, 0)).ok_or(Error::Unsupported { value: index })?;
        Ok(Tce::from_memory(cell.swap(new.to_memory(), Ordering::AcqRel)))
    }

    /// Gives all pages back. No TVE points here any more and the kill of every PE that used the tree was
    /// seen finished: the caller vouches for it.
    pub fn dissolve<M: TableMemory>(self, pool: &PagePool<M>) {
        self.end(pool, &mut Unheard);
    }

    /// As [`dissolve`](Self::dissolve), and tells `removals` which memory was still mapped.
    pub fn end<M: TableMemory, T: Removals>(self, pool: &PagePool<M>, removals: &mut T) {
        let above = u32::from(self.tree.geometry.levels()) - 1;
        give_back(pool, self.tree.geometry, self.root, above, removals);
    }

    /// The entries of the last-level table that holds `index`, which lies in the tree, if the table exists.
    pub(crate) fn leaf_place<M: TableMemory>(&self, pool: &PagePool<M>, index: u64) -> Option<Placed> {
        self.tree.leaf_place(pool, index)
    }

    /// The cell of the entry at `index`, unless a table is missing there or the index is beyond the tree.
    #[inline]
    fn entry<'p, M: TableMemory>(&self, pool: &'p PagePool<M>, index: u64) -> Option<&'p AtomicU64> {
        if index >= self.tree.geometry.entries() {
            return None;
        }
        self.cell(pool, index)
    }

    /// The last-level table that holds `index`; missing tables are linked from `reserve`.
    fn leaf_or_link<'p, M: TableMemory>(
        &self,
        pool: &'p PagePool<M>,
        index: u64,
        reserve: &mut Reserve<'_, M>,
    ) -> Result<&'p [AtomicU64], Error> {
        let broken = Error::Unsupported { value: index };
        let mut cells = self.tree.root(pool).ok_or(broken)?;
        for above in (1..u32::from(self.tree.geometry.levels())).rev() {
            let cell = cells.get(self.tree.geometry.slot(index, above)).ok_or(broken)?;
            let entry = match Tce::from_memory(cell.load(Ordering::Acquire)) {
                entry if entry.is_valid() => entry,
                _ => link(pool, cell, reserve)?,
            };
            cells = self.tree.child(pool, entry).ok_or(broken)?;
        }
        Ok(cells)
    }

    /// Tables that are missing for `first..=last`, all of which lies below one missing entry or exists.
    fn missing_below<M: TableMemory>(&self, pool: &PagePool<M>, first: u64, last: u64) -> u64 {
        let above = self.tree.missing_at(pool, first).unwrap_or(0);
        let bits = self.tree.geometry.level_bits();
        (1..=above).map(|level| (last >> (bits * level)) - (first >> (bits * level)) + 1).sum()
    }
}

/// Gives the pages of a tree back that is reached by nothing but `tree`; tells `removals` what was still mapped.
pub(crate) fn end<M: TableMemory, T: Removals>(pool: &PagePool<M>, tree: Tree, removals: &mut T) {
    let address = pool.memory().page_address(tree.root_page());
    if let Some(root) = pool.reclaim(address, tree.geometry.level_pages()) {
        give_back(pool, tree.geometry, root, u32::from(tree.geometry.levels()) - 1, removals);
    }
}

/// Takes one zeroed table.
pub(crate) fn take<M: TableMemory>(pool: &PagePool<M>, geometry: Geometry) -> Result<PageRun, Error> {
    let count = geometry.level_pages();
    pool.take(count).map_err(|error| match error {
        PoolError::NeedPages { count } | PoolError::BadCount { count } => Error::NeedPages { count },
        _ => Error::NeedPages { count },
    })
}

/// Installs a reserved table at `cell`. When another CPU was faster, its table is used and ours goes back.
fn link<M: TableMemory>(
    pool: &PagePool<M>,
    cell: &AtomicU64,
    reserve: &mut Reserve<'_, M>,
) -> Result<Tce, Error> {
    let table = reserve.pop()?;
    let entry = Tce::indirect(pool.address(&table));
    let linked = cell.compare_exchange(0, entry.to_memory(), Ordering::AcqRel, Ordering::Acquire);
    match linked {
        Ok(_) => Ok(entry),
        Err(faster) => {
            reserve.push(table);
            Ok(Tce::from_memory(faster))
        }
    }
}

/// Gives back a table `above` levels over the last one, and all below it; tells what that led to.
fn give_back<M: TableMemory, T: Removals>(
    pool: &PagePool<M>,
    geometry: Geometry,
    table: PageRun,
    above: u32,
    removals: &mut T,
) {
    let entries = || pool.cells(&table).iter().map(|cell| Tce::from_memory(cell.load(Ordering::Acquire)));
    if above > 0 {
        for entry in entries().filter(|entry| entry.is_valid()) {
            if let Some(child) = pool.reclaim(entry.address(), geometry.level_pages()) {
                give_back(pool, geometry, child, above - 1, removals);
            }
        }
    } else if T::WANTED {
        range::tell_entries(entries(), geometry.page_size(), removals);
    }
    pool.give_back(table);
}
