//! Two CPUs in one tree of tables, in every interleaving and on every value that weak memory lets a load
//! return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use loom::{model, sync::Arc, thread};
use portcullis_fake::few_cells::FewCells;
use portcullis_hal::{Access, IoPageSize, PagePool, PhysAddr};
use portcullis_iommu::Error;
use portcullis_ppc_tce::{Geometry, Table, Tce};

/// Entries of each table that are used.
const LENT: usize = 2;
/// The first entry of the second last-level table.
const SECOND: u64 = 512;

struct Tree {
    pool: PagePool<FewCells>,
    table: Table,
    free: usize,
}

/// An empty tree of `levels` tables from an entry down to the root, and `free` pages for more.
fn tree(levels: u8, free: usize) -> Arc<Tree> {
    // The bitmap and the root take a page each.
    let pool = PagePool::new(FewCells::new(free + 2, LENT)).expect("a pool");
    let geometry = Geometry::covering(IoPageSize::SIZE_4K, levels, 1 << 21).expect("a shape");
    let table = Table::new(&pool, geometry, u32::MAX).expect("a tree");
    Arc::new(Tree { free: pool.free_pages(), pool, table })
}

fn tce(page: u64) -> Tce {
    Tce::leaf(PhysAddr::new(page << 12), Access::all())
}

impl Tree {
    fn exchange(&self, index: u64, page: u64) -> Tce {
        self.table.exchange(&self.pool, index, tce(page)).expect("room")
    }

    fn map(&self, first: u64, count: u64, page: u64) -> Result<(), Error> {
        self.table.map(&self.pool, self.table.entries(first, count).expect("inside"), tce(page))
    }

    fn unmap(&self, first: u64, count: u64) -> Result<u64, Error> {
        self.table.unmap(&self.pool, self.table.entries(first, count).expect("inside"))
    }

    fn at(&self, index: u64) -> Tce {
        self.table.lookup(&self.pool, index)
    }

    /// Pages that the tree holds; both counts agree on it.
    fn held(&self) -> usize {
        let held = self.table.pages() as usize - 1;
        assert_eq!(self.free - self.pool.free_pages(), held, "a page was lost");
        held
    }
}

/// What two CPUs make of a tree.
fn both<A: 'static, B>(
    tree: &Arc<Tree>,
    first: impl FnOnce(&Tree) -> A + 'static,
    second: impl FnOnce(&Tree) -> B,
) -> (A, B) {
    let other = tree.clone();
    let cpu = thread::spawn(move || first(&other));
    let mine = second(tree);
    (cpu.join().expect("no panic"), mine)
}

#[test]
fn e07_of_two_tables_for_one_place_one_is_linked_and_the_other_goes_back() {
    model(|| {
        let tree = tree(2, 2);
        let old = both(&tree, |tree| tree.exchange(0, 5), |tree| tree.exchange(1, 6));
        assert_eq!(old, (Tce::EMPTY, Tce::EMPTY));
        assert_eq!((tree.at(0), tree.at(1)), (tce(5), tce(6)), "an entry was lost");
        assert_eq!(tree.held(), 1);
    });
}

#[test]
fn e07_ranges_that_miss_the_same_table_above_theirs_share_one() {
    let mut builder = model::Builder::new();
    // So many steps that a bound is needed: a CPU is interrupted at most twice while it could go on.
    builder.preemption_bound = Some(2);
    builder.check(|| {
        let tree = tree(3, 4);
        let mapped = both(&tree, |tree| tree.map(0, 2, 5), |tree| tree.map(SECOND, 1, 8));
        assert_eq!(mapped, (Ok(()), Ok(())));
        assert_eq!([0, 1, SECOND].map(|index| tree.at(index)), [tce(5), tce(6), tce(8)]);
        assert_eq!(tree.held(), 3, "two last-level tables and one above");
    });
}

#[test]
fn e13_of_two_who_map_a_range_one_does_and_the_other_leaves_nothing() {
    model(|| {
        let tree = tree(2, 2);
        let mapped = both(&tree, |tree| tree.map(0, 2, 5), |tree| tree.map(0, 2, 8));
        let (page, refused) = match mapped {
            (Ok(()), Err(refused)) => (5, refused),
            (Err(refused), Ok(())) => (8, refused),
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused, Error::Busy | Error::AlreadyMapped { .. }), "{refused:?}");
        assert_eq!((tree.at(0), tree.at(1)), (tce(page), tce(page + 1)));
        assert_eq!(tree.held(), 1);
    });
}

#[test]
fn e13_one_page_and_a_range_over_it_exclude_each_other() {
    model(|| {
        let tree = tree(1, 1);
        let (one, range) = both(&tree, |tree| tree.map(1, 1, 5), |tree| tree.map(0, 2, 8));
        assert_ne!(one.is_ok(), range.is_ok(), "{one:?}, {range:?}");
        let expected = if one.is_ok() { [Tce::EMPTY, tce(5)] } else { [tce(8), tce(9)] };
        assert_eq!([tree.at(0), tree.at(1)], expected);
    });
}

#[test]
fn e13_map_and_unmap_of_a_range_exclude_each_other() {
    model(|| {
        let tree = tree(1, 1);
        let (mapped, unmapped) = both(&tree, |tree| tree.map(0, 2, 5), |tree| tree.unmap(0, 2));
        assert!(matches!(mapped, Ok(()) | Err(Error::Busy)), "{mapped:?}");
        let expected = match unmapped {
            Ok(0) | Err(Error::Busy) if mapped.is_ok() => [tce(5), tce(6)],
            Ok(0 | 2) | Err(Error::Busy) => [Tce::EMPTY; 2],
            other => panic!("{other:?}"),
        };
        assert_eq!([tree.at(0), tree.at(1)], expected);
        assert_eq!(tree.held(), 0);
    });
}

#[test]
fn e13_a_range_is_mapped_anew_only_after_all_of_it_is_gone() {
    model(|| {
        let tree = tree(1, 1);
        tree.map(0, 2, 5).expect("free");
        let (mapped, unmapped) = both(&tree, |tree| tree.map(0, 2, 8), |tree| tree.unmap(0, 2));
        let expected = match (mapped, unmapped) {
            (Ok(()), Ok(2)) => [tce(8), tce(9)],
            (Err(Error::Busy | Error::AlreadyMapped { .. }), Ok(2)) => [Tce::EMPTY; 2],
            (Err(Error::AlreadyMapped { .. }), Err(Error::Busy)) => [tce(5), tce(6)],
            other => panic!("{other:?}"),
        };
        assert_eq!([tree.at(0), tree.at(1)], expected);
    });
}
