//! Donated memory and the pool over it.
#![allow(missing_docs, reason = "tests document themselves by their names")]

use std::{collections::BTreeSet, ptr::NonNull, sync::Barrier, thread};

use portcullis_hal::{DonatedPages, PagePool, PhysAddr, PoolError, TableMemory, sync::Ordering};

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u64; 512]);

const BASE: PhysAddr = PhysAddr::new(0x4000_0000);

fn donate(memory: &mut [Page]) -> DonatedPages<'_> {
    let (start, pages) = (NonNull::from(&mut *memory).cast(), memory.len());
    // SAFETY: the exclusive borrow lasts as long as the result, and no hardware exists.
    unsafe { DonatedPages::new(start, BASE, pages) }.expect("aligned memory")
}

fn memory(pages: usize) -> Vec<Page> {
    vec![Page([u64::MAX; 512]); pages]
}

#[test]
fn h01_donated_memory_must_be_aligned_and_must_not_wrap() {
    let mut memory = memory(2);
    let start: NonNull<u64> = NonNull::from(memory.as_mut_slice()).cast();
    let new = |start, base, pages| {
        // SAFETY: refused before any use, or dropped at once.
        unsafe { DonatedPages::new(start, PhysAddr::new(base), pages) }.is_some()
    };
    assert!(new(start, 0x1000, 2));
    assert!(!new(start, 0x1008, 2));
    assert!(!new(start.map_addr(|a| a.saturating_add(8)), 0x1000, 1));
    assert!(!new(start, u64::MAX - 0xfff, 2));
    assert!(!new(start, 0x1000, usize::MAX / 2048));
}

#[test]
fn h02_a_stale_index_is_a_fault_of_logic_only() {
    let mut memory = memory(4);
    let donated = donate(&mut memory);
    assert!(donated.pages(4, 1).is_none());
    assert!(donated.pages(usize::MAX, 2).is_none());
    assert!(donated.pages(3, 1).is_some());
    assert_eq!(donated.page_at(PhysAddr::new(0x4000_3fff)), Some(3));
    assert_eq!(donated.page_at(PhysAddr::new(0x4000_4000)), None);
    assert_eq!(donated.page_at(PhysAddr::new(0x3fff_ffff)), None);
}

#[test]
fn h03_pages_come_zeroed_and_once() {
    let mut memory = memory(70);
    let pool = PagePool::new(donate(&mut memory)).expect("a region");
    let mut seen = BTreeSet::new();
    while let Ok(run) = pool.take(1) {
        assert!(pool.cells(&run).iter().all(|cell| cell.load(Ordering::Relaxed) == 0));
        pool.cells(&run)[0].store(7, Ordering::Relaxed);
        assert!(seen.insert(run.first()), "page {} came twice", run.first());
    }
    assert_eq!(seen.len(), 69);
    assert!(!seen.contains(&0), "the bitmap was handed out");
    assert_eq!(pool.take(1), Err(PoolError::NeedPages { count: 1 }));
    assert_eq!(pool.free_pages(), 0);
}

#[test]
fn h03_runs_are_contiguous_aligned_and_return() {
    let mut memory = memory(130);
    let pool = PagePool::new(donate(&mut memory)).expect("a region");
    let free = pool.free_pages();
    let run = pool.take(16).expect("sixteen pages");
    assert_eq!((run.first() % 16, run.pages()), (0, 16));
    assert_eq!(pool.free_pages(), free - 16);
    let address = pool.address(&run);
    assert_eq!(address.as_u64(), BASE.as_u64() + run.first() as u64 * 4096);
    drop(run);
    assert_eq!(pool.free_pages(), free - 16, "a dropped run must stay out of the pool");
    let found = pool.reclaim(address, 16).expect("the run that was dropped");
    pool.give_back(found);
    assert_eq!(pool.free_pages(), free);
    assert_eq!(pool.reclaim(address, 16), None, "free pages are nobody's to reclaim");
    assert_eq!(pool.reclaim(BASE, 1), None, "the bitmap is nobody's to reclaim");
    for count in [0, 3, 128] {
        assert_eq!(pool.take(count), Err(PoolError::BadCount { count }));
    }
}

#[test]
fn h03_a_region_without_a_page_to_hand_out_is_refused() {
    let mut memory = memory(1);
    assert_eq!(PagePool::new(donate(&mut memory)).err(), Some(PoolError::BadRegion { pages: 1 }));
}

#[test]
fn h03_two_cpus_never_get_the_same_page() {
    let mut memory = memory(if cfg!(miri) { 130 } else { 513 });
    let pool = PagePool::new(donate(&mut memory)).expect("a region");
    let barrier = Barrier::new(2);
    let take = || {
        barrier.wait();
        let mut mine = Vec::new();
        // Miri is some thousand times slower than the machine.
        for round in 0..if cfg!(miri) { 60 } else { 10_000 } {
            if round % 3 == 2 {
                mine.pop().into_iter().for_each(|run| pool.give_back(run));
            } else if let Ok(run) = pool.take(1) {
                assert_eq!(pool.cells(&run)[0].swap(1, Ordering::Relaxed), 0, "page is another's");
                mine.push(run);
            }
        }
        mine.into_iter().map(|run| run.first()).collect::<Vec<_>>()
    };
    let (mut first, second) = thread::scope(|scope| {
        let (first, second) = (scope.spawn(take), scope.spawn(take));
        (first.join().expect("no panic"), second.join().expect("no panic"))
    });
    first.extend(second);
    let count = first.len();
    assert_eq!(first.into_iter().collect::<BTreeSet<_>>().len(), count);
}
