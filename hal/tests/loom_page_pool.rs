//! The page pool in every interleaving, on every value that weak memory lets a load return.
#![allow(missing_docs, reason = "tests document themselves by their names")]
#![cfg(loom)]

use loom::{cell::UnsafeCell, model, sync::Arc, thread};
use portcullis_hal::{
    PagePool, PhysAddr, TableMemory,
    sync::{AtomicU64, Ordering},
};

/// Memory whose pages have one cell, to keep the model small: the pool counts in pages.
struct SmallPages(Vec<AtomicU64>);

// SAFETY: the cells live as long as the value, nothing else uses them, and no hardware exists. A page is
// shorter than the trait says, and `pages`, by which alone the pool gets at them, agrees with that.
unsafe impl TableMemory for SmallPages {
    fn cells(&self) -> &[AtomicU64] {
        &self.0
    }

    fn base(&self) -> PhysAddr {
        PhysAddr::new(0x1000)
    }

    fn page_count(&self) -> usize {
        self.0.len()
    }

    fn pages(&self, first: usize, pages: usize) -> Option<&[AtomicU64]> {
        self.0.get(first..first + pages)
    }
}

/// A pool, and for each page what only its owner may touch: the checker reports every race for it.
struct Shared {
    pool: PagePool<SmallPages>,
    owned: Vec<UnsafeCell<()>>,
}

/// A pool with `free` pages from page 1; page 0 is the bitmap.
fn shared(free: usize) -> Arc<Shared> {
    let memory = SmallPages((0..=free).map(|_| AtomicU64::new(u64::MAX)).collect());
    let owned = (0..=free).map(|_| UnsafeCell::new(())).collect();
    Arc::new(Shared { pool: PagePool::new(memory).expect("a region"), owned })
}

impl Shared {
    /// Takes pages, uses them as their only owner, and gives them back; whether there were any.
    fn use_pages(&self, count: usize) -> bool {
        let Ok(run) = self.pool.take(count) else { return false };
        for cell in self.pool.cells(&run) {
            assert_eq!(cell.swap(7, Ordering::Relaxed), 0, "a page came unzeroed");
        }
        for page in run.first()..run.first() + run.pages() {
            self.owned[page].with_mut(|_| ());
        }
        self.pool.give_back(run);
        true
    }
}

/// Lets CPUs use so many pages each, and one after the other at the end.
fn contend<const CPUS: usize>(free: usize, counts: [usize; CPUS]) {
    model(move || {
        let shared = shared(free);
        let cpus = counts.map(|count| {
            let shared = shared.clone();
            thread::spawn(move || shared.use_pages(count))
        });
        let served = cpus.map(|cpu| cpu.join().expect("no panic"));
        assert!(served.contains(&true), "all of them were refused");
        assert_eq!(shared.pool.free_pages(), free, "a page was lost or made up");
        assert!(counts.iter().all(|&count| shared.use_pages(count)));
    });
}

#[test]
fn h03_a_page_has_one_owner_at_a_time() {
    contend(1, [1, 1]);
}

#[test]
fn h03_of_three_cpus_one_gets_the_only_page() {
    model(|| {
        let shared = shared(1);
        let cpus = [1, 2].map(|_| {
            let shared = shared.clone();
            thread::spawn(move || shared.pool.take(1).ok())
        });
        let mine = shared.pool.take(1).ok();
        let [first, second] = cpus.map(|cpu| cpu.join().expect("no panic"));
        let runs: Vec<_> = [mine, first, second].into_iter().flatten().collect();
        assert_eq!(runs.len(), 1);
    });
}

#[test]
fn h03_runs_and_single_pages_share_a_word() {
    contend(3, [2, 1]);
}

#[test]
fn h03_who_leaves_enough_for_the_others_refuses_nobody() {
    model(|| {
        let shared = shared(2);
        let other = shared.clone();
        let cpu = thread::spawn(move || other.use_pages(1));
        assert!(shared.use_pages(1) && shared.use_pages(1));
        assert!(cpu.join().expect("no panic"));
    });
}
