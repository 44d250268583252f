//! Trees of tables, as hypercalls use them: without policy, without a bridge.
#![allow(missing_docs, reason = "tests document themselves by their names")]

mod machine;

use std::thread;

use machine::{GIB, PAGE, POOL_PAGES, hardware, pool};
use portcullis_fake::{memory::FakeMemory, phb::PhbKind};
use portcullis_hal::{Access, IoPageSize, Iova, PagePool, PhysAddr};
use portcullis_iommu::Error;
use portcullis_ppc_tce::{Geometry, Table, Tce};

fn donated() -> PagePool<FakeMemory> {
    pool(&hardware(PhbKind::Phb4, POOL_PAGES).0, POOL_PAGES)
}

fn geometry(levels: u8, bytes: u64) -> Geometry {
    Geometry::covering(IoPageSize::SIZE_4K, levels, bytes).expect("a geometry")
}

fn tce(page: u64) -> Tce {
    Tce::leaf(PhysAddr::new(page * PAGE), Access::all())
}

/// Takes pages until `left` are free.
fn starve(pool: &PagePool<FakeMemory>, left: usize) {
    while pool.free_pages() > left {
        let _kept = pool.take(1).expect("a page");
    }
}

#[test]
fn e05_only_the_root_exists_at_first_and_a_missing_table_reads_as_empty() {
    let pool = donated();
    let free = pool.free_pages();
    let table = Table::new(&pool, geometry(3, GIB * 512), u32::MAX).expect("a tree");
    assert_eq!((free - pool.free_pages(), table.pages()), (1, 1));
    assert_eq!(table.lookup(&pool, 77), Tce::EMPTY);
    assert_eq!(table.exchange(&pool, 77, Tce::EMPTY), Ok(Tce::EMPTY));
    let all = table.entries(0, table.geometry().entries()).expect("all entries");
    assert_eq!(table.unmap(&pool, all), Ok(0));
    assert_eq!((free - pool.free_pages(), table.pages()), (1, 1));
    table.exchange(&pool, 77, tce(5)).expect("room");
    assert_eq!((free - pool.free_pages(), table.pages()), (3, 3));
    assert_eq!((table.lookup(&pool, 77), table.lookup(&pool, 78)), (tce(5), Tce::EMPTY));
    assert_eq!(table.unmap(&pool, all), Ok(1));
    assert_eq!(table.lookup(&pool, 77), Tce::EMPTY);
}

#[test]
fn e06_an_exchange_returns_the_old_entry_and_refuses_an_index_beyond_the_tree() {
    let pool = donated();
    for levels in 1..=4 {
        let table = Table::new(&pool, geometry(levels, 2 << 20), u32::MAX).expect("a tree");
        let end = table.geometry().entries();
        for index in [0, 1, end / 2, end - 1] {
            assert_eq!(table.exchange(&pool, index, tce(index + 1)), Ok(Tce::EMPTY));
        }
        for index in [0, 1, end / 2, end - 1] {
            assert_eq!(table.exchange(&pool, index, tce(9)), Ok(tce(index + 1)), "{levels} {index}");
            assert_eq!(table.lookup(&pool, index), tce(9));
        }
        for beyond in [end, end + 1, 1 << 63, u64::MAX] {
            assert_eq!(table.exchange(&pool, beyond, tce(1)), Err(Error::Unsupported { value: beyond }));
            assert_eq!(table.lookup(&pool, beyond), Tce::EMPTY);
        }
        table.dissolve(&pool);
    }
}

#[test]
fn e06_two_cpus_that_exchange_one_entry_lose_nothing() {
    const ROUNDS: u64 = 20_000;
    let pool = donated();
    let table = Table::new(&pool, geometry(2, GIB), u32::MAX).expect("a tree");
    let sum = |cpu: u64| {
        let (table, pool) = (&table, &pool);
        move || {
            let old = |round| table.exchange(pool, 3, tce(round * 2 + cpu + 1)).expect("room");
            (0..ROUNDS).map(|round| old(round).address().as_u64() / PAGE).sum::<u64>()
        }
    };
    let taken: u64 = thread::scope(|scope| {
        [scope.spawn(sum(0)), scope.spawn(sum(1))].map(|cpu| cpu.join().expect("a sum")).iter().sum()
    });
    let left = table.lookup(&pool, 3).address().as_u64() / PAGE;
    assert_eq!(taken + left, (1..=2 * ROUNDS).sum::<u64>(), "each entry came out once");
}

/// Who lags behind finds tables, is faster and catches up: so the CPUs meet at one missing table after the
/// other, even where few run at once.
#[test]
fn e07_cpus_that_miss_the_same_tables_link_one_and_give_theirs_back() {
    const CPUS: u64 = 4;
    const TABLES: u64 = 512;
    let pool = PagePool::new(FakeMemory::coherent(PhysAddr::new(0), 1024)).expect("a pool");
    let free = pool.free_pages();
    for round in 0..20 {
        let table = Table::new(&pool, geometry(2, GIB), u32::MAX).expect("a tree");
        let touch_all = &|cpu: u64| {
            for index in (cpu..TABLES * 512).step_by(512) {
                table.exchange(&pool, index, tce(cpu + 1)).expect("room");
            }
        };
        thread::scope(|scope| (0..CPUS).for_each(|cpu| drop(scope.spawn(move || touch_all(cpu)))));
        for (index, cpu) in (0..TABLES).flat_map(|table| (0..CPUS).map(move |cpu| (table * 512 + cpu, cpu))) {
            assert_eq!(table.lookup(&pool, index), tce(cpu + 1), "round {round}");
        }
        assert_eq!((free - pool.free_pages(), table.pages()), (513, 513), "round {round}");
        table.dissolve(&pool);
        assert_eq!(pool.free_pages(), free);
    }
}

#[test]
fn e08_without_a_page_an_exchange_changes_nothing_at_every_allocation() {
    for left in 0..4 {
        let pool = donated();
        let table = Table::new(&pool, geometry(5, GIB), u32::MAX).expect("a tree");
        starve(&pool, left);
        let missing = Error::NeedPages { count: 4 - left };
        assert_eq!(table.exchange(&pool, 512, tce(1)), Err(missing));
        assert_eq!((pool.free_pages(), table.pages()), (left, 1));
        assert_eq!(table.lookup(&pool, 512), Tce::EMPTY);
    }
}

#[test]
fn e08_without_a_page_a_range_changes_nothing_at_every_allocation() {
    // Five last-level tables are touched, and the middle one above them is missing, too.
    let (first, count) = (512 - 5, 3 * 512 + 7);
    for left in 0..=6 {
        let pool = donated();
        let table = Table::new(&pool, geometry(3, 2 << 20), u32::MAX).expect("a tree");
        starve(&pool, left);
        let entries = table.entries(first, count).expect("entries");
        let mapped = table.map(&pool, entries, tce(1));
        let seen = (0..4096).filter(|&index| table.lookup(&pool, index).is_valid()).count() as u64;
        if left == 6 {
            assert_eq!((mapped, seen, pool.free_pages()), (Ok(()), count, 0));
            continue;
        }
        assert_eq!(mapped, Err(Error::NeedPages { count: 6 - left }));
        assert_eq!((seen, pool.free_pages(), table.pages()), (0, left, 1));
    }
}

#[test]
fn e09_the_limit_counts_the_root_and_is_never_exceeded() {
    let pool = donated();
    let free = pool.free_pages();
    assert_eq!(Table::new(&pool, geometry(2, GIB), 0).err(), Some(Error::NeedPages { count: 1 }));
    let table = Table::new(&pool, geometry(2, GIB), 3).expect("a tree");
    table.exchange(&pool, 0, tce(1)).expect("the second page");
    table.exchange(&pool, 512, tce(1)).expect("the third page");
    assert_eq!(table.exchange(&pool, 1024, tce(1)), Err(Error::NeedPages { count: 1 }));
    table.exchange(&pool, 513, tce(1)).expect("needs no page");
    assert_eq!((table.pages(), free - pool.free_pages()), (3, 3));
}

#[test]
fn e10_memory_that_is_not_aligned_to_a_table_is_refused() {
    let memory = FakeMemory::coherent(PhysAddr::new(0x3000), 64);
    let pool = PagePool::new(memory).expect("a pool");
    let wide = Geometry::covering(IoPageSize::SIZE_4K, 1, 4 << 20).expect("8 KiB tables");
    assert_eq!(Table::new(&pool, wide, 64).err(), Some(Error::Misaligned { value: 0x3000 }));
    assert!(Table::new(&pool, geometry(1, 2 << 20), 64).is_ok());
}

#[test]
fn e11_a_dissolved_tree_gives_back_every_page() {
    let pool = donated();
    let free = pool.free_pages();
    for levels in 1..=5 {
        let table = Table::new(&pool, geometry(levels, 2 << 20), u32::MAX).expect("a tree");
        let end = table.geometry().entries();
        for index in [0, end / 3, end / 2, end - 1] {
            table.exchange(&pool, index, tce(1)).expect("room");
        }
        assert_eq!(free - pool.free_pages(), table.pages() as usize);
        table.dissolve(&pool);
        assert_eq!(pool.free_pages(), free, "{levels} levels");
    }
}

#[test]
fn e12_a_range_is_mapped_as_a_whole_or_not_at_all() {
    let pool = donated();
    let table = Table::new(&pool, geometry(2, GIB), u32::MAX).expect("a tree");
    table.exchange(&pool, 1030, tce(99)).expect("room");
    let pages = table.pages();
    let entries = table.entries(500, 600).expect("entries");
    let in_the_way = Error::AlreadyMapped { iova: Iova::new(1030 * PAGE) };
    assert_eq!(table.map(&pool, entries, tce(7)), Err(in_the_way));
    assert_eq!(table.pages(), pages, "a refused range took a table");
    let single = table.entries(1030, 1).expect("an entry");
    assert_eq!(table.map(&pool, single, tce(7)), Err(in_the_way));
    assert!((500..1030).all(|index| table.lookup(&pool, index) == Tce::EMPTY));
    assert_eq!(table.exchange(&pool, 1030, Tce::EMPTY), Ok(tce(99)));
    assert_eq!(table.map(&pool, entries, tce(7)), Ok(()));
    assert!((0..600).all(|page| table.lookup(&pool, 500 + page) == tce(7 + page)));
    assert_eq!((table.lookup(&pool, 499), table.lookup(&pool, 1100)), (Tce::EMPTY, Tce::EMPTY));
    assert_eq!(table.unmap(&pool, entries), Ok(600));
    assert_eq!(table.unmap(&pool, entries), Ok(0));
}

#[test]
fn e13_ranges_that_cpus_map_at_once_do_not_mix() {
    let pool = donated();
    let table = Table::new(&pool, geometry(2, GIB), u32::MAX).expect("a tree");
    let (first, count) = (300, 600);
    for round in 0..300 {
        let mapped: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|cpu| {
                    let (table, pool) = (&table, &pool);
                    scope.spawn(move || {
                        let entries = table.entries(first, count).expect("entries");
                        table.map(pool, entries, tce(cpu << 20))
                    })
                })
                .collect();
            threads.into_iter().map(|cpu| cpu.join().expect("a result")).collect()
        });
        let winners: Vec<_> = (0..3).filter(|&cpu| mapped[cpu as usize].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {mapped:?}");
        let base = winners[0] << 20;
        assert!((0..count).all(|page| table.lookup(&pool, first + page) == tce(base + page)));
        let entries = table.entries(first, count).expect("entries");
        assert_eq!(table.unmap(&pool, entries), Ok(count));
    }
}
