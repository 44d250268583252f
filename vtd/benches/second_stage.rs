//! Second-stage tables against the limits of the machine, measured in the same run.
//!
//! `store` and `xchg` are loops over the leaf entries alone; `floor` is a bare walk and a store. The table
//! at the end tells how far from them the driver is. Each figure is the best pass, in ns a page.

mod setup;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, Throughput};
use portcullis_hal::{
    Access, TableMemory,
    sync::{AtomicU64, Ordering},
};
use portcullis_vtd::SecondStage;
use setup::{LEAVES, Order, PAGES, Pool, access, bare_walk};

/// 1 GiB in 4 KiB pages.
const GIB: u64 = PAGES / 4;
const LARGE: u64 = 2 << 20;
const LARGE_PAGES: u64 = 512;
/// Beyond the warm tables, where larger pages are possible.
const LARGE_FIRST: u64 = 2 * PAGES;
const LARGE_PHYSICAL: u64 = (1 << 40) + LARGE;
/// An entry that maps something.
const ENTRY: u64 = 1 << 40 | 3;
const ORDERS: [(&str, Order); 2] = [("sequential", Order::Sequential), ("scattered", Order::Scattered)];

/// What is measured: tables, and where their leaves are.
struct Rig<'p> {
    pool: &'p Pool,
    tables: RefCell<SecondStage>,
    leaf_tables: Vec<usize>,
}

/// Measures, and keeps the best ns a page of each row and subject.
struct Bench<'c> {
    criterion: &'c mut Criterion,
    best: BTreeMap<(String, &'static str), f64>,
}

impl Bench<'_> {
    /// A pass handles `pages` pages and returns the time that counts.
    fn row(&mut self, row: &str, subject: &'static str, pages: u64, pass: impl Fn() -> Duration) {
        let mut best = Duration::MAX;
        let mut group = self.criterion.benchmark_group(row);
        group.sample_size(10).throughput(Throughput::Elements(pages));
        group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
        group.bench_function(subject, |bencher| {
            bencher.iter_custom(|passes| {
                let times = (0..passes).map(|_| pass()).inspect(|time| best = best.min(*time));
                times.sum()
            });
        });
        group.finish();
        if best < Duration::MAX {
            self.best.insert((row.to_owned(), subject), best.as_secs_f64() * 1e9 / pages as f64);
        }
    }
}

/// Visits every page once.
#[inline(always)]
fn each(order: Order, mut work: impl FnMut(u64)) {
    for step in 0..PAGES {
        work(order.page(step));
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

impl Rig<'_> {
    fn cells(&self) -> &[AtomicU64] {
        self.pool.memory().cells()
    }

    fn leaf(&self, page: u64) -> &AtomicU64 {
        &self.cells()[self.leaf_tables[(page / LEAVES) as usize] + (page % LEAVES) as usize]
    }

    /// Visits the leaves of consecutive pages, a table at a time.
    fn stream(&self, pages: u64, work: impl Fn(&AtomicU64, u64)) {
        for (first, &table) in (0..pages).step_by(LEAVES as usize).zip(&self.leaf_tables) {
            let leaves = &self.cells()[table..table + LEAVES as usize];
            leaves.iter().zip(first..).for_each(|(leaf, page)| work(leaf, page));
        }
    }

    /// Visits the leaves of all pages, looking each up.
    fn visit(&self, order: Order, work: impl Fn(&AtomicU64, u64)) {
        each(order, |page| work(self.leaf(page), page));
    }

    /// Brings all leaves to what a pass begins with, or ends with.
    fn set_all(&self, mapped: bool) {
        let value = |page: u64| if mapped { ENTRY + page * setup::PAGE } else { 0 };
        self.stream(PAGES, |leaf, page| leaf.store(value(page), Ordering::Relaxed));
    }

    /// A pass of `work`, which maps (or unmaps) `pages` pages.
    fn pass(&self, maps: bool, work: impl Fn(&mut SecondStage)) -> Duration {
        self.set_all(!maps);
        time(|| work(&mut self.tables.borrow_mut()))
    }

    /// What one page a call is measured against.
    fn limits(&self, bench: &mut Bench<'_>, row: &str, maps: bool, order: Order) {
        let value = |page: u64| if maps { ENTRY + page * setup::PAGE } else { 0 };
        let store = |leaf: &AtomicU64, page| leaf.store(value(page), Ordering::Relaxed);
        let exchange = |leaf: &AtomicU64, page| {
            black_box(leaf.swap(value(page), Ordering::AcqRel));
        };
        let root = self.tables.borrow().root().as_u64();
        let walk = |page| store(bare_walk(self.cells(), root, page), page);
        bench.row(row, "store", PAGES, || self.pass(maps, |_| self.visit(order, store)));
        bench.row(row, "xchg", PAGES, || self.pass(maps, |_| self.visit(order, exchange)));
        bench.row(row, "floor", PAGES, || self.pass(maps, |_| each(order, walk)));
    }

    fn one_page_a_call(&self, bench: &mut Bench<'_>) {
        let at = &access(self.pool);
        for (name, order) in ORDERS {
            let row = format!("map one page, {name}");
            self.limits(bench, &row, true, order);
            bench.row(&row, "exclusive", PAGES, || {
                self.pass(true, |tables| each(order, |page| setup::map_exclusive(tables, at, page, 1)))
            });
            bench.row(&row, "shared", PAGES, || {
                self.pass(true, |tables| each(order, |page| setup::map(tables, at, page, 1)))
            });
            let row = format!("unmap one page, {name}");
            self.limits(bench, &row, false, order);
            bench.row(&row, "exclusive", PAGES, || {
                self.pass(false, |tables| each(order, |page| setup::unmap_exclusive(tables, at, page, 1)))
            });
            bench.row(&row, "shared", PAGES, || {
                self.pass(false, |tables| each(order, |page| setup::unmap(tables, at, page, 1)))
            });
        }
    }

    fn one_gib_a_call(&self, bench: &mut Bench<'_>) {
        let at = &access(self.pool);
        for (row, maps) in [("map 1 GiB of 4 KiB", true), ("unmap 1 GiB of 4 KiB", false)] {
            let value = |page: u64| if maps { ENTRY + page * setup::PAGE } else { 0 };
            let store = |leaf: &AtomicU64, page| leaf.store(value(page), Ordering::Relaxed);
            bench.row(row, "store", GIB, || self.pass(maps, |_| self.stream(GIB, store)));
            bench.row(row, "shared", GIB, || {
                self.pass(maps, |tables| match maps {
                    true => setup::map(tables, at, 0, GIB),
                    false => setup::unmap(tables, at, 0, GIB),
                })
            });
        }
    }

    fn large_pages(&self, bench: &mut Bench<'_>) {
        let at = &access(self.pool);
        let tables = self.tables.borrow();
        let pages = LARGE_PAGES * LARGE / setup::PAGE;
        let map = || {
            let extent = setup::extent_at(LARGE_PHYSICAL, LARGE_PAGES * LARGE);
            tables.map(at, setup::iova(LARGE_FIRST), extent, Access::READ).expect("free");
        };
        let unmap = || setup::unmap(&tables, at, LARGE_FIRST, pages);
        bench.row("1 GiB of 2 MiB", "map", LARGE_PAGES, || {
            let elapsed = time(map);
            unmap();
            elapsed
        });
        bench.row("1 GiB of 2 MiB", "unmap", LARGE_PAGES, || {
            map();
            time(unmap)
        });
    }

    fn walks(&self, bench: &mut Bench<'_>) {
        let at = &access(self.pool);
        self.set_all(true);
        let tables = self.tables.borrow();
        let root = tables.root().as_u64();
        let load = |page| {
            black_box(bare_walk(self.cells(), root, page).load(Ordering::Acquire));
        };
        let lookup = |page| {
            black_box(tables.lookup(at, setup::iova(page)));
        };
        for (name, order) in ORDERS {
            let row = format!("walk, {name}");
            bench.row(&row, "floor", PAGES, || time(|| each(order, load)));
            bench.row(&row, "lookup", PAGES, || time(|| each(order, lookup)));
        }
    }

    /// Each thread maps a half of the pages, one a call; returns the time until all are done.
    fn halves(&self, threads: u64) -> Duration {
        self.set_all(false);
        let (tables, barrier) = (&*self.tables.borrow(), &Barrier::new(threads as usize));
        let half = |first: u64| {
            let at = &access(self.pool);
            barrier.wait();
            time(|| (first..first + PAGES / 2).for_each(|page| setup::map(tables, at, page, 1)))
        };
        thread::scope(|scope| {
            let spawn = |thread| scope.spawn(move || half(thread * PAGES / 2));
            let running: Vec<_> = (0..threads).map(spawn).collect();
            running.into_iter().map(|thread| thread.join().expect("no panic")).max().unwrap_or_default()
        })
    }
}

/// Row, subject, limit, and how many times the limit it may take. Of the threads: how many times faster two
/// shall be.
const GOALS: [(&str, &str, &str, f64); 13] = [
    ("map one page, sequential", "exclusive", "store", 3.0),
    ("map one page, sequential", "shared", "xchg", 1.5),
    ("map one page, scattered", "exclusive", "floor", 1.1),
    ("map one page, scattered", "shared", "floor", 1.1),
    ("unmap one page, sequential", "exclusive", "store", 3.5),
    ("unmap one page, sequential", "shared", "xchg", 1.5),
    ("unmap one page, scattered", "exclusive", "floor", 1.1),
    ("unmap one page, scattered", "shared", "floor", 1.1),
    ("map 1 GiB of 4 KiB", "shared", "store", 3.0),
    ("unmap 1 GiB of 4 KiB", "shared", "store", 2.5),
    ("walk, sequential", "lookup", "floor", 1.1),
    ("walk, scattered", "lookup", "floor", 1.1),
    ("two threads", "one", "two", 1.9),
];

fn print_summary(bench: &Bench<'_>) {
    let best = |row: &str, subject: &'static str| bench.best.get(&(row.to_owned(), subject));
    println!("\n{:28} {:10} {:>8}  {:>8}        ratio  goal", "best pass, ns a page", "", "driver", "limit");
    for (row, subject, limit, goal) in GOALS {
        let (Some(ours), Some(bound)) = (best(row, subject), best(row, limit)) else { continue };
        println!("{row:28} {subject:10} {ours:8.2}  {bound:8.2} {limit:6} {:5.2}  {goal}", ours / bound);
    }
    for subject in ["map", "unmap"] {
        if let Some(ours) = best("1 GiB of 2 MiB", subject) {
            println!("{:28} {subject:10} {ours:8.2}", "1 GiB of 2 MiB");
        }
    }
}

fn main() {
    let pool = setup::pool();
    let tables = setup::warm(&pool);
    let leaf_tables = setup::leaf_tables(&pool, &tables);
    let rig = Rig { pool: &pool, tables: RefCell::new(tables), leaf_tables };
    let mut criterion = Criterion::default().configure_from_args();
    let mut bench = Bench { criterion: &mut criterion, best: BTreeMap::new() };
    rig.one_page_a_call(&mut bench);
    rig.one_gib_a_call(&mut bench);
    rig.large_pages(&mut bench);
    rig.walks(&mut bench);
    bench.row("two threads", "one", PAGES / 2, || rig.halves(1));
    bench.row("two threads", "two", PAGES, || rig.halves(2));
    print_summary(&bench);
    criterion.final_summary();
}
