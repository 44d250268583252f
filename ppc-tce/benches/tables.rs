//! What a page costs, beside what the machine allows in the same run.
//!
//! `store` is a loop of 8-byte stores into leaf tables, `xchg` the same with an atomic exchange, `floor` a
//! walk without any check and a store. Ratios to these carry over between machines, times do not.
//! `put` and `walk` are single entries of a tree, as hypercalls use them; `map`, `unmap` and `lookup` go
//! through the policy, with no device attached.

mod ground;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use criterion::Criterion;
use ground::{
    GIB, Ground, PAGE, PAGES, full_table,
    hcalls::{Caller, LIST},
    index, scattered,
};
use portcullis_hal::{Access, PhysAddr};
use portcullis_ppc_tce::Tce;

const GIB_PAGES: u64 = GIB / PAGE;

/// Best nanoseconds a page of each row that was run.
#[derive(Default)]
struct Rows(RefCell<BTreeMap<&'static str, f64>>);

impl Rows {
    /// Measures sweeps over `pages` pages each; `sweep` returns the time that counts.
    fn row(
        &self,
        criterion: &mut Criterion,
        name: &'static str,
        pages: u64,
        mut sweep: impl FnMut() -> Duration,
    ) {
        criterion.bench_function(name, |bencher| {
            bencher.iter_custom(|sweeps| {
                (0..sweeps)
                    .map(|_| {
                        let took = sweep();
                        let nanoseconds = took.as_nanos() as f64 / pages as f64;
                        let mut rows = self.0.borrow_mut();
                        let best = rows.entry(name).or_insert(f64::MAX);
                        *best = best.min(nanoseconds);
                        took
                    })
                    .sum()
            });
        });
    }

    fn print_ratios(&self) {
        let rows = self.0.borrow();
        println!(
            "{:24} {:>8} {:>8} {:>8} {:>8}",
            "ns a page, best sweep", "", "/ store", "/ xchg", "/ floor"
        );
        for (name, time) in rows.iter() {
            let order = if name.ends_with("scattered") { "scattered" } else { "sequential" };
            let ratio = |limit: &str| {
                let limit = rows.get(format!("limit {limit} {order}").as_str());
                limit.map_or("-".to_owned(), |limit| format!("{:.2}", time / limit))
            };
            println!("{name:24} {time:8.2} {:>8} {:>8} {:>8}", ratio("store"), ratio("xchg"), ratio("floor"));
        }
        if let (Some(one), Some(two)) = (rows.get("map one CPU"), rows.get("map two CPUs")) {
            println!("two CPUs in one context: × {:.2}", one / two);
        }
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// All pages in an order.
fn sweep(order: fn(u64) -> u64, mut act: impl FnMut(u64)) -> Duration {
    timed(|| (0..PAGES).for_each(|number| act(order(number))))
}

const ORDERS: [fn(u64) -> u64; 2] = [|number| number, scattered];

fn limits(criterion: &mut Criterion, rows: &Rows) {
    let leaves: Vec<Box<[AtomicU64]>> =
        (0..PAGES >> 11).map(|_| (0..2048).map(|_| AtomicU64::new(0)).collect()).collect();
    let cells: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let leaves = black_box(leaves);
    let names = [
        ["limit store sequential", "limit xchg sequential", "limit floor sequential"],
        ["limit store scattered", "limit xchg scattered", "limit floor scattered"],
    ];
    for ([store, xchg, floor], order) in names.into_iter().zip(ORDERS) {
        rows.row(criterion, store, PAGES, || {
            sweep(order, |page| cells[page as usize].store(black_box(page), Ordering::Relaxed))
        });
        rows.row(criterion, xchg, PAGES, || {
            sweep(order, |page| {
                black_box(cells[page as usize].swap(page, Ordering::AcqRel));
            })
        });
        rows.row(criterion, floor, PAGES, || {
            sweep(order, |page| {
                leaves[(page >> 11) as usize][(page & 2047) as usize]
                    .store(black_box(page), Ordering::Relaxed);
            })
        });
    }
}

fn entries(criterion: &mut Criterion, rows: &Rows) {
    let (pool, table) = full_table();
    let names = [["put sequential", "walk sequential"], ["put scattered", "walk scattered"]];
    for ([put, walk], order) in names.into_iter().zip(ORDERS) {
        rows.row(criterion, put, PAGES, || {
            sweep(order, |page| {
                let tce = Tce::leaf(PhysAddr::new(page * PAGE), Access::all());
                let _ = black_box(table.exchange(&pool, index(black_box(page)), tce));
            })
        });
        rows.row(criterion, walk, PAGES, || {
            sweep(order, |page| {
                black_box(table.lookup(&pool, index(black_box(page))));
            })
        });
    }
}

/// Hypercalls of a guest in real mode, with all accounting; lists follow each other in memory, or do not.
fn hypercalls(criterion: &mut Criterion, rows: &Rows) {
    let mut caller = Caller::full();
    for (name, order) in ["hcall put sequential", "hcall put scattered"].into_iter().zip(ORDERS) {
        rows.row(criterion, name, PAGES, || sweep(order, |page| caller.put(black_box(page), page)));
    }
    let batches = || (0..PAGES).step_by(LIST as usize);
    let lists: [(_, fn(u64) -> u64); 2] =
        [("hcall indirect sequential", |entry| entry), ("hcall indirect scattered", |entry| entry ^ 1)];
    for (name, page) in lists {
        caller.write_list(page);
        rows.row(criterion, name, PAGES, || {
            timed(|| batches().for_each(|entry| caller.indirect(black_box(entry))))
        });
    }
    rows.row(criterion, "hcall stuff sequential", PAGES, || {
        batches().for_each(|entry| caller.indirect(entry));
        timed(|| batches().for_each(|entry| caller.stuff(black_box(entry))))
    });
}

fn pages(criterion: &mut Criterion, rows: &Rows) {
    let ground = Ground::new();
    let names = [
        ["map sequential", "lookup sequential", "unmap sequential"],
        ["map scattered", "lookup scattered", "unmap scattered"],
    ];
    for ([map, lookup, unmap], order) in names.into_iter().zip(ORDERS) {
        rows.row(criterion, map, PAGES, || {
            let took = sweep(order, |page| ground.map(black_box(page), 1));
            ground.unmap(0, PAGES);
            took
        });
        ground.map(0, PAGES);
        rows.row(criterion, lookup, PAGES, || {
            sweep(order, |page| {
                black_box(ground.lookup(black_box(page)));
            })
        });
        ground.unmap(0, PAGES);
        rows.row(criterion, unmap, PAGES, || {
            ground.map(0, PAGES);
            sweep(order, |page| ground.unmap(black_box(page), 1))
        });
    }
}

fn ranges(criterion: &mut Criterion, rows: &Rows) {
    let ground = Ground::new();
    rows.row(criterion, "map 1 GiB", GIB_PAGES, || {
        let took = timed(|| ground.map(black_box(0), GIB_PAGES));
        ground.unmap(0, GIB_PAGES);
        took
    });
    rows.row(criterion, "unmap 1 GiB", GIB_PAGES, || {
        ground.map(0, GIB_PAGES);
        timed(|| ground.unmap(black_box(0), GIB_PAGES))
    });
}

/// One page a call: all of them by one CPU, or half by each of two.
fn two_cpus(criterion: &mut Criterion, rows: &Rows) {
    let ground = Ground::new();
    for (name, cpus) in [("map one CPU", 1), ("map two CPUs", 2)] {
        rows.row(criterion, name, PAGES, || {
            let share = PAGES / cpus;
            let took = timed(|| {
                thread::scope(|scope| {
                    for cpu in 0..cpus {
                        let ground = &ground;
                        scope.spawn(move || {
                            (cpu * share..(cpu + 1) * share).for_each(|page| ground.map(black_box(page), 1));
                        });
                    }
                });
            });
            ground.unmap(0, PAGES);
            took
        });
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let rows = Rows::default();
    limits(&mut criterion, &rows);
    entries(&mut criterion, &rows);
    hypercalls(&mut criterion, &rows);
    pages(&mut criterion, &rows);
    ranges(&mut criterion, &rows);
    two_cpus(&mut criterion, &rows);
    rows.print_ratios();
    criterion.final_summary();
}
