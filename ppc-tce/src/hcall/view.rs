//! The owner's view of a window: what the guest wrote, and who changes it just now.
//!
//! Each entry has two cells in donated pages. The *view word* owns the entry: whoever exchanged its busy bit in may
//! change what hardware sees. The *guest form* is the number that the guest wrote, bit for bit.

use portcullis_hal::{
    IoPageSize, PagePool, TableMemory,
    sync::{AtomicU64, Ordering, spin_loop},
};
use portcullis_iommu::{Error, Unheard};

use super::{reply::Mode, spec::GuestTce};
use crate::{
    geometry::Geometry,
    table::{self, Placed, Tree},
};

/// Looks at a word that another CPU holds, in virtual mode. Its holder waits for hardware at most.
const PATIENCE: u32 = 1 << 14;

/// Set while a CPU changes the entry.
const BUSY: u64 = 1;
/// Set while the entry maps memory: the units of its page are counted in each connected context.
const LIVE: u64 = 2;

/// A view word without its busy bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(u64);

impl Word {
    /// The entry maps nothing.
    pub(super) const DEAD: Self = Self(0);

    /// The word beside this guest form.
    #[inline]
    pub(super) const fn of(form: GuestTce) -> Self {
        if form.maps() { Self(LIVE) } else { Self::DEAD }
    }

    /// Live if one of the two is.
    #[inline]
    pub(super) const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    pub(super) const fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }
}

/// What came of trying to take an entry that may be what it shall be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Take {
    /// It is.
    Dead,
    /// Another CPU has it.
    Contended,
    /// It was not, and is the caller's.
    Taken(Word),
}

/// The two cells of one entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'p> {
    word: &'p AtomicU64,
    form: &'p AtomicU64,
}

impl<'p> Entry<'p> {
    /// The entry that has this pair of the pool's cells.
    #[inline(always)]
    pub(super) fn at<V: TableMemory>(pool: &'p PagePool<V>, pair: usize) -> Option<Self> {
        let (pairs, _) = pool.memory().cells().as_chunks();
        pairs.get(pair).map(Self::of)
    }

    #[inline]
    pub(super) fn of(cells: &'p [AtomicU64; 2]) -> Self {
        let [word, form] = cells;
        Self { word, form }
    }

    /// What the guest wrote last.
    #[inline]
    pub(super) fn form(self) -> u64 {
        self.form.load(Ordering::Relaxed)
    }

    /// Whether the entry maps nothing, is written so, and nobody has taken it: true of one moment.
    #[inline]
    pub(super) fn is_dead_as(self, form: u64) -> bool {
        self.word.load(Ordering::Acquire) & (BUSY | LIVE) == 0 && self.form() == form
    }

    /// Takes the entry, unless another CPU has it.
    #[inline(always)]
    pub(super) fn try_take(self) -> Option<Word> {
        self.take_at(self.word.load(Ordering::Relaxed))
    }

    /// Takes the entry, if this is its word.
    #[inline(always)]
    fn take_at(self, word: u64) -> Option<Word> {
        if word & BUSY != 0 {
            return None;
        }
        let taken = self.word.compare_exchange(word, word | BUSY, Ordering::Acquire, Ordering::Relaxed);
        taken.ok().map(Word)
    }

    /// Takes the entry as [`take`](Self::take) does, unless it [is dead as](Self::is_dead_as) `form`.
    #[inline(always)]
    pub(super) fn take_unless_dead_as<M: Mode>(self, form: u64) -> Take {
        let word = self.word.load(Ordering::Acquire);
        if word & (BUSY | LIVE) == 0 && self.form() == form {
            return Take::Dead;
        }
        match self.take_at(word) {
            Some(word) => Take::Taken(word),
            None if M::FINAL => self.take_patiently().map_or(Take::Contended, Take::Taken),
            None => Take::Contended,
        }
    }

    /// Takes the entry: at once in real mode or not at all, after a bounded number of looks in virtual mode.
    #[inline]
    pub(super) fn take<M: Mode>(self) -> Option<Word> {
        match self.try_take() {
            None if M::FINAL => self.take_patiently(),
            taken => taken,
        }
    }

    #[cold]
    fn take_patiently(self) -> Option<Word> {
        for _ in 0..PATIENCE {
            if let Some(word) = self.try_take() {
                return Some(word);
            }
            spin_loop();
        }
        None
    }

    /// Gives the entry up as it was.
    pub(super) fn give_back(self) {
        self.give(Word(self.word.load(Ordering::Relaxed) & !BUSY));
    }

    /// Gives the entry up with a new word; what the holder stored before is seen by the next one.
    #[inline]
    pub(super) fn give(self, word: Word) {
        self.word.store(word.0, Ordering::Release);
    }

    /// Gives the entry up with what the guest wrote.
    #[inline]
    pub(super) fn write(self, form: u64, word: Word) {
        self.form.store(form, Ordering::Relaxed);
        self.give(word);
    }
}

/// The tree of one window. All methods want the pool that [`new`](Self::new) got.
#[derive(Clone, Copy, Debug)]
pub(super) struct View(Tree);

impl View {
    /// An empty view of `entries` entries.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a shape that cannot be; [`Error::NeedPages`] when there is no room for the root.
    pub(super) fn new<V: TableMemory>(pool: &PagePool<V>, entries: u64, levels: u8) -> Result<Self, Error> {
        let bytes = entries.checked_mul(2 * IoPageSize::SIZE_4K.bytes());
        let bytes = bytes.ok_or(Error::Unsupported { value: entries })?;
        let geometry = Geometry::covering(IoPageSize::SIZE_4K, levels, bytes)?;
        Ok(Self(Tree::at(geometry, table::take(pool, geometry)?.first())))
    }

    /// The view that [`shape`](Self::shape) was asked of.
    #[inline]
    pub(super) const fn of_shape(levels: u8, level_bits: u8, root: usize) -> Self {
        Self(Tree::at(Geometry::of_levels(IoPageSize::SIZE_4K, levels, level_bits), root))
    }

    /// Levels, log2 of the cells of one table, first page of the root.
    pub(super) const fn shape(self) -> (u8, u8, usize) {
        (self.0.geometry.levels(), self.0.geometry.level_bits() as u8, self.0.root_page())
    }

    /// The entry at `index`, which lies in the window; `None` while a table is missing there.
    #[inline(always)]
    pub(super) fn entry<V: TableMemory>(self, pool: &PagePool<V>, index: u64) -> Option<Entry<'_>> {
        Entry::at(pool, self.0.place(pool, index << 1)? >> 1)
    }

    /// The entries of the table that holds `index`, which lies in the window: their numbers, and the pair of the first.
    pub(super) fn leaf_place<V: TableMemory>(self, pool: &PagePool<V>, index: u64) -> Option<Placed> {
        let cells = self.0.leaf_place(pool, index << 1)?;
        Some(Placed { first: cells.first >> 1, count: cells.count >> 1, place: cells.place >> 1 })
    }

    /// The entries of the table that holds `index`, from that one on.
    #[inline]
    pub(super) fn entries_from<V: TableMemory>(
        self,
        pool: &PagePool<V>,
        index: u64,
    ) -> Option<&[[AtomicU64; 2]]> {
        let slot = self.0.geometry.slot(index, 0);
        let (pairs, _) = self.0.leaf(pool, index << 1)?.as_chunks();
        pairs.get(slot & ((1 << (self.0.geometry.level_bits() - 1)) - 1)..)
    }

    /// The first index behind the missing table that ends the walk to `index`, one whose table is missing.
    pub(super) fn behind_missing<V: TableMemory>(self, pool: &PagePool<V>, index: u64) -> u64 {
        (self.0.last_missing(pool, index << 1) >> 1).saturating_add(1)
    }

    /// Links what is missing on the way to `index`. Tables that were linked stay when the next one cannot be had: they
    /// read as nothing.
    ///
    /// # Errors
    /// [`Error::NeedPages`].
    pub(super) fn provide<V: TableMemory>(self, pool: &PagePool<V>, index: u64) -> Result<(), Error> {
        self.0.provide(pool, index << 1)
    }

    /// Gives all pages back. Nobody looks at the view any more: the caller vouches for it.
    pub(super) fn end<V: TableMemory>(self, pool: &PagePool<V>) {
        table::end(pool, self.0, &mut Unheard);
    }
}
