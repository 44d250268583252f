//! Second-stage tables: where the DMA of one context may land (manual, sections 3.7 and 9.8).
//!
//! # Concurrency
//! The unit of exclusion is a *slot*: the level-2 entry above a leaf table, or a higher entry that points
//! to no table. An operation first marks all slots of its range busy, in ascending order, in a bit that
//! hardware ignores; then it judges them, takes the pages it needs, and only then stores what hardware
//! sees. So each call is all or nothing, leaves are plain stores, and a page mapped in an existing
//! table costs one locked instruction. Calls on disjoint slots never meet; a call that meets a busy slot
//! polls it a bounded number of times and gives up with [`Error::Busy`], nothing changed.
//!
//! Tables are taken on demand and go back only when the whole context is destroyed: a table that is in
//! the tree stays there, so a walker never meets a page that was given away. A slot that has a leaf
//! table keeps it: later mappings of 2 MiB there are made of 4 KiB entries.

mod change;
mod filler;
mod leaves;
mod one_page;
mod request;
mod reservation;
mod slots;
mod write_back;

use portcullis_hal::{
    Access, CacheMaintenance, Iova, IovaRange, PhysAddr, TableMemory,
    page_pool::PageRun,
    sync::{AtomicU32, AtomicU64, Ordering},
    table_memory::TABLE_PAGE_CELLS,
};
use portcullis_iommu::{Error, Removals, Unheard};

use crate::{
    snoop::SnoopControl,
    spec::entries::Pte,
    table_access::{Table, TableAccess, need_pages},
};

/// Bytes of the smallest page.
const PAGE: u64 = 4096;
/// Entries in one table.
const ENTRIES: u64 = TABLE_PAGE_CELLS as u64;
/// I/O virtual addresses that reach the interrupt logic and never a table (manual, section 3.14).
const INTERRUPTS: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// log2 of the bytes that an entry of a level covers: level 1 is a 4 KiB page.
const fn shift(level: u8) -> u32 {
    3 + 9 * level as u32
}

/// Where in its table the entry of a level for an address is.
const fn index(address: u64, level: u8) -> usize {
    (address >> shift(level) & (ENTRIES - 1)) as usize
}

/// The entry of a table whose entries are of `level` for an address; there always is one.
#[inline]
fn entry_for(table: &Table, address: u64, level: u8) -> Option<&AtomicU64> {
    table.get(index(address, level))
}

/// Where an entry that points to no table leads an address to.
#[inline]
fn translation(pte: Pte, address: u64, level: u8) -> Option<(PhysAddr, Access)> {
    let offset = address & ((1 << shift(level)) - 1);
    pte.is_present().then(|| (PhysAddr::new(pte.address() | offset), pte.access()))
}

/// The shape of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Format {
    /// Levels: 3, 4 or 5.
    pub levels: u8,
    /// Bits of I/O virtual address that may be mapped; at most `12 + 9 * levels`.
    pub address_bits: u8,
    /// Highest level whose entries may be pages: 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB.
    pub largest_page: u8,
    /// Bits of physical address that the platform has; at most 52.
    pub physical_bits: u8,
}

/// The tables of one context.
///
/// Dropping one keeps its pages out of the pool; [`give_back`](Self::give_back) returns them.
#[derive(Debug)]
#[must_use = "dropping the tables keeps their pages out of the pool for good"]
pub struct SecondStage {
    root: PageRun,
    root_address: u64,
    format: Format,
    aperture: IovaRange,
    last_address: u64,
    last_physical: u64,
    /// [`Pte::SNOOP`] when DMA is made coherent, else 0. Changed with all slots busy, read with one.
    snoop: AtomicU64,
    pages: AtomicU32,
    page_limit: u32,
}

impl SecondStage {
    /// Empty tables: one page, the root. `page_limit` is the most table pages that they may take, the
    /// root included; `snoop` makes every page that is mapped cache-coherent.
    ///
    /// # Errors
    /// [`Error::NeedPages`] when the pool is empty or the limit is 0; [`Error::Unsupported`] for a format that no hardware
    /// has.
    pub fn new<M: TableMemory, K: CacheMaintenance>(
        access: &TableAccess<'_, M, K>,
        format: Format,
        snoop: Option<SnoopControl>,
        page_limit: Option<u32>,
    ) -> Result<Self, Error> {
        let aperture = check_format(format)?;
        let page_limit = page_limit.unwrap_or(u32::MAX);
        if page_limit == 0 {
            return Err(Error::NeedPages { count: 1 });
        }
        let root = access.pool.take(1).map_err(need_pages)?;
        access.write_back(access.pool.cells(&root));
        Ok(Self {
            root_address: access.pool.address(&root).as_u64(),
            root,
            format,
            aperture,
            last_address: aperture.last().as_u64(),
            last_physical: (1 << format.physical_bits) - 1,
            snoop: AtomicU64::new(snoop.map_or(0, |_| Pte::SNOOP)),
            pages: AtomicU32::new(1),
            page_limit,
        })
    }

    /// Physical address of the root table.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        PhysAddr::new(self.root_address)
    }

    /// The shape of the tables.
    #[must_use]
    pub const fn format(&self) -> Format {
        self.format
    }

    /// Whether every page that is mapped is cache-coherent.
    #[inline]
    #[must_use]
    pub fn is_coherent(&self) -> bool {
        self.snoop.load(Ordering::Acquire) != 0
    }

    /// Table pages taken so far, the root included.
    #[must_use]
    pub fn pages(&self) -> u32 {
        self.pages.load(Ordering::Relaxed)
    }

    /// All addresses that may be mapped.
    #[must_use]
    pub const fn aperture(&self) -> IovaRange {
        self.aperture
    }

    /// Where `iova` leads now and with which rights. Any CPU, at any time.
    #[inline]
    #[must_use]
    pub fn lookup<M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'_, M, K>,
        iova: Iova,
    ) -> Option<(PhysAddr, Access)> {
        let address = iova.as_u64();
        if address > self.last_address {
            return None;
        }
        match self.find_leaf(access, address) {
            Some(leaf) => translation(Pte(leaf.entry.load(Ordering::Acquire)), address, 1),
            None => self.lookup_on_any_way(access, address),
        }
    }

    /// Through larger pages, and past entries on which another CPU works.
    #[inline(never)]
    fn lookup_on_any_way<M: TableMemory, K: CacheMaintenance>(
        &self,
        access: &TableAccess<'_, M, K>,
        address: u64,
    ) -> Option<(PhysAddr, Access)> {
        let (mut table, mut level) = (access.table(&self.root)?, self.format.levels);
        loop {
            let pte = Pte(entry_for(table, address, level)?.load(Ordering::Acquire)).idle();
            match access.table_of(pte) {
                Some(next) if level > 1 => (table, level) = (next, level - 1),
                _ => return translation(pte, address, level),
            }
        }
    }

    /// Gives all table pages back. The caller has seen the invalidation that ends hardware's use of them.
    pub fn give_back<M: TableMemory, K: CacheMaintenance>(self, access: &TableAccess<'_, M, K>) {
        self.end(access, &mut Unheard);
    }

    /// As [`give_back`](Self::give_back), and tells `removals` which memory was still mapped.
    pub fn end<M: TableMemory, K: CacheMaintenance, T: Removals>(
        self,
        access: &TableAccess<'_, M, K>,
        removals: &mut T,
    ) {
        give_back_below(access, self.root_address, self.format.levels, removals);
        access.pool.give_back(self.root);
    }
}

/// Gives back the tables that the table at `table`, whose entries are of `level`, points to.
fn give_back_below<M: TableMemory, K: CacheMaintenance, T: Removals>(
    access: &TableAccess<'_, M, K>,
    table: u64,
    level: u8,
    removals: &mut T,
) {
    let entries = access.entries(table, 0, TABLE_PAGE_CELLS).unwrap_or_default();
    let entries = entries.iter().map(|entry| Pte(entry.load(Ordering::Acquire)));
    if level == 1 {
        if T::WANTED {
            leaves::tell_leaves(entries, removals);
        }
        return;
    }
    for pte in entries {
        if !pte.is_table(level) {
            leaves::remove_page(pte, level, removals);
            continue;
        }
        give_back_below(access, pte.address(), level.saturating_sub(1), removals);
        if let Some(run) = access.pool.reclaim(PhysAddr::new(pte.address()), 1) {
            access.pool.give_back(run);
        }
    }
}

/// The aperture of a format that some hardware may have.
fn check_format(format: Format) -> Result<IovaRange, Error> {
    let Format { levels, address_bits, largest_page, physical_bits } = format;
    if !(3..=5).contains(&levels) {
        return Err(Error::Unsupported { value: levels.into() });
    }
    if !(12..=12 + 9 * levels).contains(&address_bits) {
        return Err(Error::Unsupported { value: address_bits.into() });
    }
    if !(1..=3).contains(&largest_page) {
        return Err(Error::Unsupported { value: largest_page.into() });
    }
    if !(32..=52).contains(&physical_bits) {
        return Err(Error::Unsupported { value: physical_bits.into() });
    }
    IovaRange::new(Iova::new(0), 1 << address_bits)
        .map_err(|_| Error::Unsupported { value: address_bits.into() })
}
